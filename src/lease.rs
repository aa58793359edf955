//! How instances agree on who pays: one note in the bucket for each key, or for each request without one.
//!
//! ```text
//! (nothing) ──take──► lease ──land──► receipt
//!     ▲                │  ▲
//!     └────release─────┘  └─ renewed while its holder lives; taken over once it has expired
//! ```
//!
//! Every arrow is a write with a generation precondition, so exactly one of several writers makes it. Ages
//! are Cloud Storage's own: no clock of ours is trusted.

use crate::error::{Error, Kind};
use crate::generate::Generated;
use crate::google::storage::{Fields, Note, Storage, Written};
use crate::id::{random_hex, sha256_hex};
use crate::telemetry::metrics;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// The right to pay for one request's image.
pub struct Lease {
    storage: Arc<Storage>,
    claim: Claim,
    fields: Fields,
    generation: String,
    renew_at: Instant,
}

/// Which image is claimed, and when an image that exists already is the answer.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The note's name.
    pub name: String,
    /// The request's; a note with another belongs to a different request.
    pub fingerprint: String,
    /// How old a receipt may be; a key's is good for ever.
    pub receipt_life: Option<Duration>,
    /// A lease younger than this is no retry's business.
    pub variant_age: Duration,
    /// A lease older than this was left by somebody who died.
    pub lease_life: Duration,
}

/// What came of claiming an image.
pub enum Claimed {
    /// Nobody else pays.
    Lease(Box<Lease>),
    /// Somebody else has paid; this is the image.
    Landed(Generated),
    /// Somebody else began so shortly ago that this is not a retry.
    Variant,
}

impl Claim {
    pub fn name(prefix: &str, kind: &str, identity: &str) -> String {
        format!("{prefix}.iga/{kind}/{}", sha256_hex(&[identity.as_bytes()]))
    }
}

impl Lease {
    /// Takes the lease, or waits for the image of whoever holds it.
    ///
    /// # Errors
    /// 422 where the key belongs to another request; Cloud Storage's, before anything is paid; 503 at the deadline.
    pub async fn take(
        storage: &Arc<Storage>,
        claim: Claim,
        deadline: Instant,
    ) -> Result<Claimed, Error> {
        let start = Instant::now();
        let fields = lease_fields(&claim);
        let mut over = None;
        let mut wait = FIRST_POLL;
        loop {
            let renew_at = Instant::now() + claim.lease_life / 3;
            let lease = |generation| {
                let (storage, claim, fields) = (Arc::clone(storage), claim.clone(), fields.clone());
                Lease { storage, claim, fields, generation, renew_at }
            };
            let mut seen =
                match storage.write_note(&claim.name, over.as_deref(), &fields, deadline).await {
                    Ok(Written::Mine(generation)) => {
                        return Ok(Claimed::Lease(Box::new(lease(generation))));
                    }
                    Ok(Written::Conflict(seen)) => seen,
                    Err(error) => {
                        // It may have been written all the same, and nobody would renew it or give it back.
                        lease(String::new()).release(Instant::now() + RELEASE_TIME).await;
                        return Err(error);
                    }
                };
            // What stands there decides; it is looked at until it is gone or can be replaced.
            over = loop {
                let Some(note) = seen else { break None };
                match judge(&note, &claim)? {
                    Verdict::Landed(generated) => {
                        metrics::lease_waited("landed", start.elapsed());
                        return Ok(Claimed::Landed(generated));
                    }
                    Verdict::Variant => return Ok(Claimed::Variant),
                    Verdict::Replace => break Some(note.generation),
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
                seen = storage.read_note(&claim.name, deadline).await?;
            };
        }
    }

    /// Renews the lease for as long as it is polled; when, is remembered between polls.
    pub async fn keep(&mut self) -> Infallible {
        let period = self.claim.lease_life / 3;
        loop {
            sleep_until(self.renew_at).await;
            let start = Instant::now();
            // Each renewal is told from the one before, should its answer be lost.
            let fields = renewed(&self.fields);
            let over = Some(self.generation.as_str());
            let written =
                self.storage.write_note(&self.claim.name, over, &fields, start + period).await;
            self.renew_at = start + period;
            match written {
                Ok(Written::Mine(generation)) => self.generation = generation,
                Ok(Written::Conflict(Some(note))) if self.is_mine(&note) => {
                    self.generation = note.generation
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
    pub async fn land(
        &mut self,
        generated: &Generated,
        deadline: Instant,
    ) -> Result<Generated, Error> {
        let receipt = receipt_fields(&self.claim, generated);
        let mut over = Some(self.generation.clone());
        loop {
            match self
                .storage
                .write_note(&self.claim.name, over.as_deref(), &receipt, deadline)
                .await?
            {
                Written::Mine(_) => return Ok(generated.clone()),
                Written::Conflict(None) => over = None,
                Written::Conflict(Some(note)) => match landed(&note) {
                    Some(first) => return Ok(first),
                    // A lease, be it one that a renewal of ours has moved on: what is stored comes first.
                    None => over = Some(note.generation),
                },
            }
        }
    }

    /// Gives the lease back, so that the next request need not wait for its end. Best effort: it ends anyhow.
    pub async fn release(self, deadline: Instant) {
        let released = async {
            let note = self.storage.read_note(&self.claim.name, deadline).await?;
            match note.filter(|note| self.is_mine(note)) {
                Some(note) => {
                    self.storage.delete(&self.claim.name, Some(&note.generation), deadline).await
                }
                None => Ok(()),
            }
        };
        if let Err(error) = released.await {
            tracing::warn!(causes = error.causes(), "lease not given back: {error}");
        }
    }

    fn is_mine(&self, note: &Note) -> bool {
        note.fields.get(HOLDER) == self.fields.get(HOLDER) && landed(note).is_none()
    }
}

enum Verdict {
    Landed(Generated),
    Variant,
    Wait,
    Replace,
}

/// What a note that stands where ours should means for us.
fn judge(note: &Note, claim: &Claim) -> Result<Verdict, Error> {
    if note.fields.get(FINGERPRINT) != Some(&claim.fingerprint) {
        return Err(key_reused());
    }
    Ok(match landed(note) {
        Some(_) if claim.receipt_life.is_some_and(|life| note.age > life) => Verdict::Replace,
        Some(generated) => Verdict::Landed(generated),
        None if note.age > claim.lease_life => Verdict::Replace,
        None if !is_renewed(note) && note.age < claim.variant_age => Verdict::Variant,
        None => Verdict::Wait,
    })
}

/// A lease that was renewed began longer ago than its note can tell.
fn is_renewed(note: &Note) -> bool {
    note.fields.contains_key(RENEWAL)
}

fn key_reused() -> Error {
    Kind::IdempotencyKeyReused
        .because("The key belongs to a request with another prompt or other parameters.")
}

/// The image, if the note is a receipt.
fn landed(note: &Note) -> Option<Generated> {
    let (object, model) = (note.fields.get(OBJECT)?, note.fields.get(MODEL)?);
    Some(Generated { object: object.clone(), model: model.clone() })
}

fn lease_fields(claim: &Claim) -> Fields {
    fields([(FINGERPRINT, &claim.fingerprint), (HOLDER, &random_hex::<16>())])
}

fn renewed(lease: &Fields) -> Fields {
    let mut fields = lease.clone();
    fields.insert(RENEWAL.to_owned(), random_hex::<8>());
    fields
}

fn receipt_fields(claim: &Claim, generated: &Generated) -> Fields {
    fields([
        (FINGERPRINT, &claim.fingerprint),
        (OBJECT, &generated.object),
        (MODEL, &generated.model),
    ])
}

fn fields<const N: usize>(pairs: [(&str, &String); N]) -> Fields {
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

    fn claim() -> Claim {
        Claim {
            name: "n".to_owned(),
            fingerprint: "f".to_owned(),
            receipt_life: Some(Duration::from_secs(5)),
            variant_age: Duration::from_millis(400),
            lease_life: Duration::from_secs(12),
        }
    }

    fn verdict(fields: Fields, age_ms: u64) -> &'static str {
        let note = Note { fields, generation: "1".to_owned(), age: Duration::from_millis(age_ms) };
        match judge(&note, &claim()) {
            Ok(Verdict::Landed(_)) => "landed",
            Ok(Verdict::Variant) => "variant",
            Ok(Verdict::Wait) => "wait",
            Ok(Verdict::Replace) => "replace",
            Err(error) => error.kind.row().code,
        }
    }

    #[test]
    fn what_stands_there_decides() {
        let generated = Generated { object: "o".to_owned(), model: "m".to_owned() };
        let (lease, receipt) = (lease_fields(&claim()), receipt_fields(&claim(), &generated));
        let other = Claim { fingerprint: "g".to_owned(), ..claim() };
        for (fields, age_ms, expected) in [
            (lease.clone(), 0, "variant"),
            (renewed(&lease), 0, "wait"),
            (lease.clone(), 400, "wait"),
            (lease.clone(), 12_000, "wait"),
            (lease, 12_001, "replace"),
            (receipt.clone(), 0, "landed"),
            (receipt.clone(), 5000, "landed"),
            (receipt, 5001, "replace"),
            (lease_fields(&other), 0, "IGA_IDEMPOTENCY_KEY_REUSED"),
            (receipt_fields(&other, &generated), 99_000, "IGA_IDEMPOTENCY_KEY_REUSED"),
            (Fields::new(), 99_000, "IGA_IDEMPOTENCY_KEY_REUSED"),
        ] {
            assert_eq!(verdict(fields, age_ms), expected, "{age_ms}");
        }
    }
}
