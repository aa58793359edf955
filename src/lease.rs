//! How instances agree on who pays: one record in the bucket for each key, or for each request without one.
//!
//! ```text
//! (nothing) ──acquire──► lease ──complete──► receipt
//!     ▲                │  ▲
//!     └────release─────┘  └─ renewed while its holder lives; taken over once it has expired
//! ```
//!
//! Every arrow is a write with a generation precondition, so exactly one of several writers makes it. Ages
//! are Cloud Storage's own: no clock of ours is trusted.

use crate::error::{Error, Kind};
use crate::generate::Generated;
use crate::google::storage::{Metadata, Record, Storage, Written};
use crate::id::{random_hex, sha256_hex};
use crate::telemetry::metrics;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// The right to pay for one request's image.
pub struct Lease {
    storage: Arc<Storage>,
    request: LeaseRequest,
    metadata: Metadata,
    generation: String,
    renew_at: Instant,
}

/// Which image is claimed, and when an image that exists already is the answer.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    /// The record's name.
    pub name: String,
    /// The request's; a record with another belongs to a different request.
    pub fingerprint: String,
    /// How old a receipt may be; a key's is good for ever.
    pub receipt_life: Option<Duration>,
    /// A lease younger than this is no retry's business.
    pub variant_age: Duration,
    /// A lease older than this was left by somebody who died.
    pub lease_life: Duration,
}

/// What came of claiming an image.
pub enum Acquired {
    /// Nobody else pays.
    Lease(Box<Lease>),
    /// Somebody else has paid; this is the image.
    Completed(Generated),
    /// Somebody else began so shortly ago that this is not a retry.
    Variant,
}

impl LeaseRequest {
    pub fn name(prefix: &str, kind: &str, identity: &str) -> String {
        format!("{prefix}.iga/{kind}/{}", sha256_hex(&[identity.as_bytes()]))
    }
}

impl Lease {
    /// Takes the lease, or waits for the image of whoever holds it.
    ///
    /// # Errors
    /// 422 where the key belongs to another request; Cloud Storage's, before anything is paid; 503 at the deadline.
    pub async fn acquire(
        storage: &Arc<Storage>,
        request: LeaseRequest,
        deadline: Instant,
    ) -> Result<Acquired, Error> {
        let start = Instant::now();
        let metadata = lease_metadata(&request);
        let mut if_generation = None;
        let mut wait = FIRST_POLL;
        loop {
            let renew_at = Instant::now() + request.lease_life / 3;
            let lease = |generation| {
                let (storage, request, metadata) =
                    (Arc::clone(storage), request.clone(), metadata.clone());
                Lease { storage, request, metadata, generation, renew_at }
            };
            let mut seen = match storage
                .write_record(&request.name, if_generation.as_deref(), &metadata, deadline)
                .await
            {
                Ok(Written::Mine(generation)) => {
                    return Ok(Acquired::Lease(Box::new(lease(generation))));
                }
                Ok(Written::Conflict(seen)) => seen,
                Err(error) => {
                    // It may have been written all the same, and nobody would renew it or give it back.
                    lease(String::new()).release(Instant::now() + RELEASE_TIME).await;
                    return Err(error);
                }
            };
            // What stands there decides; it is looked at until it is gone or can be replaced.
            if_generation = loop {
                let Some(record) = seen else { break None };
                match judge(&record, &request)? {
                    Verdict::Completed(generated) => {
                        metrics::lease_waited("completed", start.elapsed());
                        return Ok(Acquired::Completed(generated));
                    }
                    Verdict::Variant => return Ok(Acquired::Variant),
                    Verdict::Replace => break Some(record.generation),
                    Verdict::Wait => {}
                }
                if Instant::now() + wait >= deadline {
                    metrics::lease_waited("deadline", start.elapsed());
                    return Err(Kind::VertexUnavailable.because(
                        "Service Unavailable: another instance is still working on this request.",
                    ));
                }
                sleep(wait).await;
                wait = (wait * 3 / 2).min(LONGEST_POLL);
                seen = storage.read_record(&request.name, deadline).await?;
            };
        }
    }

    /// Runs `work` and renews the lease beside it.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            never = self.renew() => match never {},
        }
    }

    /// Renews the lease for as long as this future is polled.
    async fn renew(&mut self) -> Infallible {
        let period = self.request.lease_life / 3;
        loop {
            sleep_until(self.renew_at).await;
            let start = Instant::now();
            // Each renewal is told from the one before, should its answer be lost.
            let metadata = renewed(&self.metadata);
            let if_generation = Some(self.generation.as_str());
            let written = self
                .storage
                .write_record(&self.request.name, if_generation, &metadata, start + period)
                .await;
            self.renew_at = start + period;
            match written {
                Ok(Written::Mine(generation)) => self.generation = generation,
                Ok(Written::Conflict(Some(record))) if self.is_mine(&record) => {
                    self.generation = record.generation
                }
                Ok(Written::Conflict(_)) => {
                    tracing::warn!("lease lost: another instance may pay too")
                }
                Err(error) => {
                    tracing::warn!(causes = error.causes(), "lease not renewed: {error}");
                    self.renew_at = Instant::now() + period / 4;
                }
            }
        }
    }

    /// Makes the lease a receipt for this image, unless another image came first: then it is that one.
    pub async fn complete(
        &mut self,
        generated: &Generated,
        deadline: Instant,
    ) -> Result<Generated, Error> {
        let receipt = receipt_metadata(&self.request, generated);
        let mut if_generation = Some(self.generation.clone());
        loop {
            match self
                .storage
                .write_record(&self.request.name, if_generation.as_deref(), &receipt, deadline)
                .await?
            {
                Written::Mine(_) => return Ok(generated.clone()),
                Written::Conflict(None) => if_generation = None,
                Written::Conflict(Some(record)) => match completed(&record) {
                    Some(first) => return Ok(first),
                    // A lease, be it one that a renewal of ours has moved on: what is stored comes first.
                    None => if_generation = Some(record.generation),
                },
            }
        }
    }

    /// Gives the lease back, so that the next request need not wait for its end. Best effort: it ends anyhow.
    pub async fn release(self, deadline: Instant) {
        let released = async {
            let record = self.storage.read_record(&self.request.name, deadline).await?;
            match record.filter(|record| self.is_mine(record)) {
                Some(record) => {
                    self.storage
                        .delete(&self.request.name, Some(&record.generation), deadline)
                        .await
                }
                None => Ok(()),
            }
        };
        if let Err(error) = released.await {
            tracing::warn!(causes = error.causes(), "lease not given back: {error}");
        }
    }

    fn is_mine(&self, record: &Record) -> bool {
        record.metadata.get(HOLDER) == self.metadata.get(HOLDER) && completed(record).is_none()
    }
}

enum Verdict {
    Completed(Generated),
    Variant,
    Wait,
    Replace,
}

/// What a record that stands where ours should means for us.
fn judge(record: &Record, request: &LeaseRequest) -> Result<Verdict, Error> {
    if record.metadata.get(FINGERPRINT) != Some(&request.fingerprint) {
        return Err(key_reused());
    }
    Ok(match completed(record) {
        Some(_) if request.receipt_life.is_some_and(|life| record.age > life) => Verdict::Replace,
        Some(generated) => Verdict::Completed(generated),
        None if record.age > request.lease_life => Verdict::Replace,
        None if !is_renewed(record) && record.age < request.variant_age => Verdict::Variant,
        None => Verdict::Wait,
    })
}

/// A lease that was renewed began longer ago than its record can tell.
fn is_renewed(record: &Record) -> bool {
    record.metadata.contains_key(RENEWAL)
}

fn key_reused() -> Error {
    Kind::IdempotencyKeyReused
        .because("The key belongs to a request with another prompt or other parameters.")
}

/// The image, if the record is a receipt.
fn completed(record: &Record) -> Option<Generated> {
    let (object, model) = (record.metadata.get(OBJECT)?, record.metadata.get(MODEL)?);
    Some(Generated { object: object.clone(), model: model.clone() })
}

fn lease_metadata(request: &LeaseRequest) -> Metadata {
    metadata([(FINGERPRINT, &request.fingerprint), (HOLDER, &random_hex::<16>())])
}

fn renewed(lease: &Metadata) -> Metadata {
    let mut metadata = lease.clone();
    metadata.insert(RENEWAL.to_owned(), random_hex::<8>());
    metadata
}

fn receipt_metadata(request: &LeaseRequest, generated: &Generated) -> Metadata {
    metadata([
        (FINGERPRINT, &request.fingerprint),
        (OBJECT, &generated.object),
        (MODEL, &generated.model),
    ])
}

fn metadata<const N: usize>(pairs: [(&str, &String); N]) -> Metadata {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

const FINGERPRINT: &str = "fingerprint";
const HOLDER: &str = "holder";
const RENEWAL: &str = "renewal";
const OBJECT: &str = "object";
const MODEL: &str = "model";

/// How long giving back a lease may take.
pub const RELEASE_TIME: Duration = Duration::from_secs(1);
const FIRST_POLL: Duration = Duration::from_millis(200);
const LONGEST_POLL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> LeaseRequest {
        LeaseRequest {
            name: "n".to_owned(),
            fingerprint: "f".to_owned(),
            receipt_life: Some(Duration::from_secs(5)),
            variant_age: Duration::from_millis(400),
            lease_life: Duration::from_secs(12),
        }
    }

    fn verdict(metadata: Metadata, age_ms: u64) -> &'static str {
        let record =
            Record { metadata, generation: "1".to_owned(), age: Duration::from_millis(age_ms) };
        match judge(&record, &request()) {
            Ok(Verdict::Completed(_)) => "completed",
            Ok(Verdict::Variant) => "variant",
            Ok(Verdict::Wait) => "wait",
            Ok(Verdict::Replace) => "replace",
            Err(error) => error.kind.row().code,
        }
    }

    #[test]
    fn what_stands_there_decides() {
        let generated = Generated { object: "o".to_owned(), model: "m".to_owned() };
        let (lease, receipt) =
            (lease_metadata(&request()), receipt_metadata(&request(), &generated));
        let other = LeaseRequest { fingerprint: "g".to_owned(), ..request() };
        for (metadata, age_ms, expected) in [
            (lease.clone(), 0, "variant"),
            (renewed(&lease), 0, "wait"),
            (lease.clone(), 400, "wait"),
            (lease.clone(), 12_000, "wait"),
            (lease, 12_001, "replace"),
            (receipt.clone(), 0, "completed"),
            (receipt.clone(), 5000, "completed"),
            (receipt, 5001, "replace"),
            (lease_metadata(&other), 0, "IGA_IDEMPOTENCY_KEY_REUSED"),
            (receipt_metadata(&other, &generated), 99_000, "IGA_IDEMPOTENCY_KEY_REUSED"),
            (Metadata::new(), 99_000, "IGA_IDEMPOTENCY_KEY_REUSED"),
        ] {
            assert_eq!(verdict(metadata, age_ms), expected, "{age_ms}");
        }
    }
}
