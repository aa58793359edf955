//! How instances agree which of them pays: records in the bucket, one for each key or for each request
//! without a key.
//!
//! ```text
//! (nothing) ──acquire──► lease ──complete──► receipt
//!                        │  ▲ └─ renewed while its holder lives; taken over once it has expired
//!                 release│  │acquire
//!                        ▼  │
//!                      released
//! ```
//!
//! Every arrow is a write with a generation precondition, so exactly one of several writers succeeds.
//! Ages follow Cloud Storage's clock. Our own clock only measures how long our own last write holds.
//!
//! A lease names the image that its holder will store, so the image can be found without a receipt. An
//! instance that takes over an expired lease looks for that image first, and keeps its name: if the former
//! holder's upload still arrives, both meet under one name. Nothing is ever deleted.
//!
//! Equal requests without a key that are fired together are variants. Each has a record of its own, in
//! the first free one of the numbered *slots*. A record says that its image is *owed* while no caller
//! has it; a retry takes an owed image first.

use crate::error::{Error, Kind};
use crate::generate::{Generated, Naming};
use crate::google::http::Via;
use crate::google::storage::{
    Age, FINGERPRINT, MODEL, Metadata, Record, Storage, StorageError, StoredImage, Written,
};
use crate::id::{random_hex, sha256_hex};
use crate::telemetry::metrics;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// What a lease is about, and when an existing image may be used instead.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    /// The record's name, without the number of its slot.
    pub name: String,
    /// SHA-256 of the key, for the image's metadata.
    pub key_sha256: Option<String>,
    /// The request's fingerprint; a record with another one belongs to a different request.
    pub fingerprint: String,
    /// A random value that tells this flight's records from all others.
    pub holder: String,
    /// The name that the image gets, unless a lease that is taken over has another one.
    pub stem: String,
    /// How old a receipt may be; `None` for a key, whose receipt is valid for ever.
    pub receipt_life: Option<Duration>,
    /// Without a key: a lease surely younger than this belongs to a variant.
    pub variant_age: Duration,
    /// The holders on this instance whose flights are younger than that.
    pub variants: Vec<String>,
    /// How long a lease lasts without renewal.
    pub lease_life: Duration,
    /// The least time between two writes of one record.
    pub spacing: Duration,
    /// The limit of one request to Cloud Storage.
    pub record_try: Duration,
    /// When the caller asked, before any wait for a token or a connection.
    pub asked_at: Instant,
    /// The flight ends by then.
    pub deadline: Instant,
}

/// How many callers of a flight wait, and whether one has got the image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Callers {
    pub waiting: usize,
    pub delivered: bool,
}

impl Callers {
    /// Whether no caller has the image and none waits for it.
    pub fn have_left_without_image(self) -> bool {
        self.waiting == 0 && !self.delivered
    }
}

/// The right to pay for one request's image, from the first attempt to acquire it to its end.
pub struct Lease {
    storage: Arc<Storage>,
    request: LeaseRequest,
    callers: watch::Receiver<Callers>,
    slot: usize,
    stem: String,
    /// The stem comes from a lease that was taken over.
    is_inherited: bool,
    /// The generation of our last confirmed write.
    generation: Option<String>,
    /// A write was sent whose result is not known.
    is_unsure: bool,
    /// Cloud Storage refuses to overwrite our record, for us and for all other instances.
    is_fixed: bool,
    term: Term,
    renew_at: Instant,
    /// The earliest time of the next write of our record.
    next_write: Instant,
    /// Whether our record says that its image is owed, as last written or read.
    owed: bool,
    /// Another instance's caller has asked for the image that we owe.
    is_claimed_elsewhere: bool,
    /// The slot whose image we have claimed for our own caller.
    claim: Option<usize>,
    /// When records without a known age were first seen, by generation.
    first_seen: HashMap<String, Instant>,
    /// Generations that Cloud Storage refused to overwrite.
    refused: HashSet<String>,
    /// Cloud Storage refused to create a record.
    create_refused: Option<Error>,
    /// When the first write of our lease was sent.
    sent_at: Instant,
    /// The record that was in the slot when we tried to write our lease.
    seen: Option<Record>,
    /// A random value that tells this attempt from earlier ones.
    attempt: String,
}

/// Until when a lease is held, by our own monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Term(Arc<Mutex<Option<Instant>>>);

impl Term {
    pub fn is_running(&self) -> bool {
        let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        end.is_some_and(|end| Instant::now() < end)
    }

    fn set(&self, end: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }
}

/// The result of acquiring a lease.
#[derive(Debug)]
pub enum Acquired {
    /// This flight pays, and no other.
    Held,
    /// The image exists.
    Completed(Generated),
    /// The records cannot be read or are all in use: this flight pays without a lease.
    Unshared,
    /// All callers left during the wait for another instance's image.
    Abandoned,
}

/// Where our lease may be written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    slot: usize,
    if_generation: Option<String>,
    /// The stem to inherit.
    stem: Option<String>,
}

/// What a record means for us.
enum View {
    /// It may be replaced by our lease.
    Free(Place),
    /// The lease of another request of the same content.
    Variant,
    /// An expired lease that may not be overwritten.
    Fixed,
    Running(Record),
    /// The image exists; its least age, and the record that led to it.
    Image(Generated, Duration, Record),
}

/// The result of reading the records of a request.
struct Scan {
    /// The running lease or the image that comes first.
    first: Option<(usize, View)>,
    /// The first place for our lease.
    free: Option<Place>,
    mine: Option<(usize, Record)>,
}

/// Why the records of a request could not be read.
enum ScanError {
    /// The account may not read records, or may not create them.
    NoRecords(Error),
    Other(Error),
}

/// What to do next.
enum Choice {
    /// Our own write was applied, although its response was lost.
    Held,
    Write(Place),
    Completed(Generated),
    Wait,
    Unshared,
}

impl LeaseRequest {
    pub fn name(prefix: &str, kind: &str, identity: &str) -> String {
        format!("{prefix}.iga/{kind}/{identity}")
    }

    pub fn key_sha256(key: &str) -> String {
        sha256_hex(&[key.as_bytes()])
    }

    fn is_keyed(&self) -> bool {
        self.key_sha256.is_some()
    }

    /// The first slot has the plain name.
    fn slot_name(&self, slot: usize) -> String {
        if slot == 0 { self.name.clone() } else { format!("{}.{slot}", self.name) }
    }

    fn period(&self) -> Duration {
        self.lease_life / 3
    }
}

impl Lease {
    pub fn new(
        storage: Arc<Storage>,
        request: LeaseRequest,
        callers: watch::Receiver<Callers>,
    ) -> Lease {
        let now = Instant::now();
        Lease {
            storage,
            stem: request.stem.clone(),
            request,
            callers,
            slot: 0,
            is_inherited: false,
            generation: None,
            is_unsure: false,
            is_fixed: false,
            term: Term::default(),
            renew_at: now,
            next_write: now,
            owed: false,
            is_claimed_elsewhere: false,
            claim: None,
            first_seen: HashMap::new(),
            refused: HashSet::new(),
            create_refused: None,
            sent_at: now,
            seen: None,
            attempt: String::new(),
        }
    }

    /// How long this flight is surely the only one that may pay.
    pub fn term(&self) -> Term {
        self.term.clone()
    }

    /// The name and the metadata of the image that this lease is about.
    pub fn naming(&self) -> Naming {
        let LeaseRequest { fingerprint, holder, key_sha256, .. } = &self.request;
        let mut metadata = fields([(FINGERPRINT, fingerprint), (HOLDER, holder)]);
        metadata.extend(key_sha256.iter().map(|key| (KEY_SHA256.to_owned(), key.clone())));
        Naming { stem: self.stem.clone(), is_inherited: self.is_inherited, metadata }
    }

    /// Acquires the lease, or waits for the image of its holder.
    ///
    /// # Errors
    /// 422 if the key belongs to another request; an error of Cloud Storage, before anything is paid; 503
    /// at the deadline.
    pub async fn acquire(&mut self) -> Result<Acquired, Error> {
        let start = Instant::now();
        let mut wait = FIRST_POLL;
        let mut place = Place { slot: 0, if_generation: None, stem: None };
        if self.generation.is_some() {
            // Held before and renewed too late: renew our own record, unless it was taken over.
            let if_generation = self.generation.clone();
            place = Place { slot: self.slot, if_generation, stem: Some(self.stem.clone()) };
        }
        loop {
            if self.write_lease(&place).await? {
                return Ok(Acquired::Held);
            }
            // Do not retry a place at once that has just been refused.
            let mut refused = Some(place);
            place = loop {
                match self.choose().await? {
                    Choice::Held => return Ok(Acquired::Held),
                    Choice::Write(place) if Some(&place) != refused.as_ref() => break place,
                    Choice::Completed(generated) => {
                        metrics::lease_waited("completed", start.elapsed());
                        return Ok(Acquired::Completed(generated));
                    }
                    Choice::Unshared => return Ok(Acquired::Unshared),
                    Choice::Write(_) | Choice::Wait => refused = None,
                }
                if Instant::now() + wait >= self.request.deadline {
                    metrics::lease_waited("deadline", start.elapsed());
                    return Err(Kind::VertexUnavailable.because(
                        "Service Unavailable: another instance is still working on this request.",
                    ));
                }
                tokio::select! {
                    () = sleep(wait) => {}
                    _ = self.callers.wait_for(|callers| callers.waiting == 0) => {
                        metrics::lease_waited("abandoned", start.elapsed());
                        return Ok(Acquired::Abandoned);
                    }
                }
                wait = (wait * 3 / 2).min(LONGEST_POLL);
            };
        }
    }

    /// Writes our lease; returns false if another record is there.
    async fn write_lease(&mut self, place: &Place) -> Result<bool, Error> {
        self.slot = place.slot;
        self.stem = place.stem.as_ref().unwrap_or(&self.request.stem).clone();
        self.is_inherited = place.stem.is_some();
        (self.generation, self.is_unsure, self.is_fixed) = (None, true, false);
        (self.owed, self.is_claimed_elsewhere) = (false, false);
        self.sent_at = Instant::now();
        self.attempt = random_hex::<8>();
        // A take-over counts as a renewal: without a key it is a retry's lease, however young, and not a
        // variant's.
        let is_retry = place.stem.is_some() && !self.request.is_keyed();
        let renewal = is_retry.then(random_hex::<8>);
        let (name, metadata) = (self.name(), self.lease_metadata(false, renewal));
        let generation = place.if_generation.as_deref();
        let written =
            self.storage.write_record(&name, generation, &metadata, self.request.deadline).await;
        self.next_write = Instant::now() + self.request.spacing;
        match written {
            Ok(Written::Confirmed(generation)) => self.hold(generation, self.sent_at),
            Ok(Written::Conflict(record)) => {
                (self.is_unsure, self.seen) = (false, record);
                return Ok(false);
            }
            // An earlier try may have written it; the record decides.
            Err(StorageError::Forbidden(error)) => {
                match &place.if_generation {
                    Some(generation) => drop(self.refused.insert(generation.clone())),
                    None => self.create_refused = Some(error),
                }
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// Claims an image that another instance owes, for a caller that could otherwise join a flight of this one.
    pub async fn claim_owed(&mut self) -> bool {
        let Ok(Scan {
            first: Some((slot, View::Running(record) | View::Image(_, _, record))), ..
        }) = self.scan().await
        else {
            return false;
        };
        let aged = self.age(&record).lower_bound();
        is_owed(&record) && self.claim(slot, &record, record.metadata.clone(), aged).await
    }

    /// Reads the records and decides what to do.
    async fn choose(&mut self) -> Result<Choice, Error> {
        let Scan { first, free, mine } = match self.scan().await {
            Ok(scan) => scan,
            Err(ScanError::NoRecords(error)) => return self.without_records(error),
            Err(ScanError::Other(error)) => return Err(error),
        };
        if let Some((slot, record)) = mine {
            if record.metadata.get(ATTEMPT) == Some(&self.attempt) {
                self.slot = slot;
                self.hold(record.generation, self.sent_at);
                return Ok(Choice::Held);
            }
            let stem = record.metadata.get(IMAGE).cloned();
            let if_generation = Some(record.generation);
            return Ok(Choice::Write(Place { slot, if_generation, stem }));
        }
        match (first, free) {
            (Some((slot, View::Running(record))), _) => {
                if is_owed(&record) {
                    let aged = self.age(&record).lower_bound();
                    self.claim(slot, &record, record.metadata.clone(), aged).await;
                }
                Ok(Choice::Wait)
            }
            (Some((slot, View::Image(generated, aged, record))), _) => {
                let is_receipt = completed(&record).is_some();
                if is_receipt && !is_owed(&record) {
                    return Ok(Choice::Completed(generated));
                }
                let receipt = self.receipt_metadata(&generated, false);
                match self.claim(slot, &record, receipt, aged).await {
                    true => Ok(Choice::Completed(generated)),
                    false => Ok(Choice::Wait),
                }
            }
            (_, Some(place)) => Ok(Choice::Write(place)),
            (_, None) => self.without_records(
                Kind::FileSave
                    .because("All records of this request are in use, and none may be replaced."),
            ),
        }
    }

    /// Reads the records in their order, up to the first that is missing; with a key, up to the first that
    /// counts.
    async fn scan(&mut self) -> Result<Scan, ScanError> {
        let mut scan = Scan { first: None, free: None, mine: None };
        for slot in 0..SLOTS {
            let name = self.request.slot_name(slot);
            let record = match self.seen.take_if(|_| slot == self.slot) {
                Some(seen) => Some(seen),
                None => match self.storage.read_record(&name, self.request.deadline).await {
                    Ok(record) => record,
                    Err(StorageError::Forbidden(error)) => return Err(ScanError::NoRecords(error)),
                    Err(error) => return Err(ScanError::Other(error.into())),
                },
            };
            let Some(record) = record else {
                if let Some(error) = self.create_refused.take() {
                    return Err(ScanError::NoRecords(error));
                }
                scan.free.get_or_insert(Place { slot, if_generation: None, stem: None });
                break;
            };
            if self.is_mine(&record) {
                scan.mine = Some((slot, record));
                break;
            }
            match self.judge(slot, record).await.map_err(ScanError::Other)? {
                View::Variant | View::Fixed => continue,
                View::Free(place) => drop(scan.free.get_or_insert(place)),
                view @ (View::Running(_) | View::Image(..)) => {
                    let is_first = match &scan.first {
                        None => true,
                        Some((other, _)) if self.claim == Some(*other) => false,
                        Some((_, other)) => {
                            self.claim == Some(slot) || view.precedence() < other.precedence()
                        }
                    };
                    if is_first {
                        scan.first = Some((slot, view));
                    }
                }
            }
            if self.request.is_keyed() {
                break;
            }
        }
        Ok(scan)
    }

    /// Decides without usable records: a request with a key fails, one without a key may pay.
    fn without_records(&self, error: Error) -> Result<Choice, Error> {
        if self.request.is_keyed() {
            let text = format!(
                "The record of the idempotency key cannot be used (storage.objects.get, .create and .delete are \
                 needed): {error}"
            );
            return Err(Kind::FileSave.because(text).caused_by(error));
        }
        tracing::warn!("retries of this request are not recognised on other instances: {error}");
        Ok(Choice::Unshared)
    }

    /// Decides what a record means for us.
    async fn judge(&mut self, slot: usize, record: Record) -> Result<View, Error> {
        let Record { metadata, generation, .. } = &record;
        let is_released = metadata.contains_key(RELEASED);
        let is_others = is_other_request(metadata.get(FINGERPRINT), &self.request.fingerprint);
        if is_others && !is_released {
            return Err(key_reused());
        }
        let has = |name: &str, value: &String| metadata.get(name) == Some(value);
        if self.request.variants.iter().any(|holder| has(HOLDER, holder)) {
            return Ok(View::Variant);
        }
        let age = self.age(&record);
        let is_refused = self.refused.contains(generation);
        let free = |stem: Option<String>| match is_refused {
            true => View::Fixed,
            false => View::Free(Place { slot, if_generation: Some(generation.clone()), stem }),
        };
        let deadline = self.request.deadline;
        if let Some(generated) = completed(&record) {
            if self.request.receipt_life.is_some_and(|life| age.is_surely_over(life)) {
                return Ok(free(None));
            }
            return match self.storage.stat_image(&generated.object, deadline).await {
                Ok(None) => Ok(free(None)),
                Ok(Some(_)) | Err(StorageError::Forbidden(_)) => {
                    Ok(View::Image(generated, age.lower_bound(), record))
                }
                Err(error) => Err(error.into()),
            };
        }
        let asked = parse_ms(metadata.get(ASKED_MS)).unwrap_or_default();
        let is_renewed = metadata.contains_key(RENEWAL);
        let is_young = age.plus(asked).is_surely_under(self.request.variant_age);
        if !self.request.is_keyed() && !is_released && !is_renewed && is_young {
            return Ok(View::Variant);
        }
        if is_others {
            return Ok(free(None));
        }
        let is_expired = is_released || age.is_surely_over(self.request.lease_life);
        let is_quiet = is_expired || age.is_surely_over(self.request.period() * 3 / 2);
        let mut stem = metadata.get(IMAGE).cloned();
        if let Some(named) = stem.as_ref().filter(|_| is_quiet)
            && let Some(image) = self.storage.find_image(named, deadline).await?
        {
            let is_too_old = |life| image.age.is_surely_over(life);
            let aged = image.age.lower_bound();
            match (self.request.receipt_life.is_some_and(is_too_old), generated(image)) {
                (false, Some(generated)) => return Ok(View::Image(generated, aged, record)),
                (true, _) | (_, None) => stem = None,
            }
        }
        let life = parse_ms(metadata.get(LIFE_MS)).unwrap_or(self.request.lease_life);
        Ok(match (is_expired, is_refused && !is_released) {
            (false, _) => View::Running(record),
            // Its holder cannot renew it either, so it may still be running.
            (true, true) if !age.is_surely_over(life) => View::Running(record),
            (true, _) => free(stem),
        })
    }

    /// A record's age, including the age that it had before its last write by another flight. If Cloud
    /// Storage does not tell the age, it counts from when this flight first saw the record.
    fn age(&mut self, record: &Record) -> Age {
        let before = parse_ms(record.metadata.get(AGED_MS)).unwrap_or_default();
        let age = match record.age.has_upper_bound() {
            true => record.age,
            false => {
                let seen =
                    self.first_seen.entry(record.generation.clone()).or_insert_with(Instant::now);
                Age::at_least(seen.elapsed())
            }
        };
        age.plus(before)
    }

    /// Marks the image of a record as taken by our caller. Best effort: returns false only if another
    /// writer came first.
    async fn claim(
        &mut self,
        slot: usize,
        record: &Record,
        metadata: Metadata,
        aged: Duration,
    ) -> bool {
        let written = self.rewrite(slot, record, metadata, aged, false).await;
        if let Ok(Written::Conflict(_)) = written {
            return false;
        }
        self.claim = Some(slot);
        true
    }

    /// Gives a claimed image back, because our caller has left without it.
    pub async fn give_back_claim(&mut self) {
        let Some(slot) = self.claim.take() else { return };
        let deadline = Instant::now() + self.request.record_try;
        let name = self.request.slot_name(slot);
        if let Ok(Some(record)) = self.storage.read_record_once(&name, Via::Pool, deadline).await {
            let metadata = record.metadata.clone();
            let aged = self.age(&record).lower_bound();
            let _ = self.rewrite(slot, &record, metadata, aged, true).await;
        }
    }

    /// Rewrites another flight's record, which keeps its age and counts as renewed.
    async fn rewrite(
        &mut self,
        slot: usize,
        record: &Record,
        mut metadata: Metadata,
        aged: Duration,
        owed: bool,
    ) -> Result<Written, StorageError> {
        metadata.insert(AGED_MS.to_owned(), aged.as_millis().to_string());
        metadata.insert(RENEWAL.to_owned(), random_hex::<8>());
        metadata.insert(OWED.to_owned(), yes_or_no(owed));
        match owed {
            true => drop(metadata.remove(CLAIMANT)),
            false => drop(metadata.insert(CLAIMANT.to_owned(), self.request.holder.clone())),
        }
        let (name, deadline) =
            (self.request.slot_name(slot), Instant::now() + self.request.record_try);
        let generation = Some(record.generation.as_str());
        self.storage.write_record_once(&name, generation, &metadata, Via::Pool, deadline).await
    }

    /// Runs `work` and renews the lease meanwhile.
    pub async fn during<T>(&mut self, work: Pin<&mut impl Future<Output = T>>) -> T {
        tokio::select! {
            biased;
            done = work => done,
            never = self.renew() => match never {},
        }
    }

    /// Renews the lease for as long as this future is polled.
    async fn renew(&mut self) -> Infallible {
        let mut via = Via::Pool;
        loop {
            self.renewal_is_due().await;
            let owed = self.is_owed_now();
            let (name, metadata) =
                (self.name(), self.lease_metadata(owed, Some(random_hex::<8>())));
            let generation = self.generation.clone();
            let sent = Instant::now();
            // If this future is dropped, the write may still be applied.
            self.is_unsure = true;
            self.next_write = sent + self.request.spacing;
            let deadline = sent + self.request.record_try;
            let written = self
                .storage
                .write_record_once(&name, generation.as_deref(), &metadata, via, deadline)
                .await;
            let now = Instant::now();
            self.next_write = now + self.request.spacing;
            via = Via::Pool;
            match written {
                Ok(Written::Confirmed(generation)) => {
                    self.hold(generation, sent);
                    self.owed = owed;
                }
                Ok(Written::Conflict(Some(record))) if self.is_mine(&record) => {
                    self.adopt(record);
                    self.renew_at = now;
                }
                Ok(Written::Conflict(_)) => {
                    tracing::warn!("lease lost: another instance has taken it over");
                    (self.generation, self.is_unsure) = (None, false);
                    self.term.set(None);
                }
                Err(StorageError::Forbidden(error)) => {
                    if !self.is_fixed {
                        tracing::warn!("the lease's record may not be overwritten: {error}");
                    }
                    // Other instances cannot overwrite it either: they wait for the end of this flight.
                    (self.is_fixed, self.is_unsure) = (true, false);
                    self.term.set(Some(self.request.deadline));
                    self.renew_at = now + self.request.period();
                }
                Err(error) => {
                    tracing::warn!(
                        causes = error.error().causes(),
                        "lease not renewed: {}",
                        error.error()
                    );
                    via = Via::Fresh;
                    self.renew_at = now;
                }
            }
        }
    }

    /// Returns when the lease is to be written: a third of its life after the last time, or when its image
    /// begins or ceases to be owed.
    async fn renewal_is_due(&mut self) {
        if self.generation.is_none() {
            return std::future::pending().await;
        }
        if self.request.is_keyed() {
            sleep_until(self.renew_at).await;
        } else {
            let (owed, elsewhere) = (self.owed, self.is_claimed_elsewhere);
            tokio::select! {
                () = sleep_until(self.renew_at) => {}
                _ = self.callers.wait_for(|callers| {
                    (callers.have_left_without_image() && !elsewhere) != owed
                }) => {}
            }
        }
        sleep_until(self.next_write).await;
    }

    fn is_owed_now(&mut self) -> bool {
        let callers = *self.callers.borrow();
        self.is_claimed_elsewhere &= callers.waiting == 0;
        !self.request.is_keyed() && callers.have_left_without_image() && !self.is_claimed_elsewhere
    }

    /// The image to deliver if the lease may have been lost: the one that a receipt already names,
    /// otherwise ours. For ours, tries once to write the receipt.
    pub async fn reconcile(&mut self, ours: Generated) -> Generated {
        let deadline = Instant::now() + self.request.record_try;
        let name = self.name();
        let record = match self.storage.read_record_once(&name, Via::Fresh, deadline).await {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(
                    "the record could not be read before the response: {}",
                    error.error()
                );
                return ours;
            }
        };
        let first = record.as_ref().and_then(completed).filter(|first| first.object != ours.object);
        if let Some(first) = first
            && !matches!(self.storage.stat_image(&first.object, deadline).await, Ok(None))
        {
            tracing::warn!(
                object = ours.object,
                "another instance's image came first; this one is a duplicate and stays in the bucket"
            );
            return first;
        }
        self.generation = record.map(|record| record.generation);
        self.is_unsure = false;
        let owed = self.is_owed_now();
        let _ = self.write_receipt(&ours, owed, Via::Fresh).await;
        ours
    }

    /// Turns the lease into a receipt for this image. Tries until the deadline and renews the lease
    /// between the tries; the caller already has its response.
    pub async fn complete(&mut self, generated: &Generated) {
        let mut wait = self.request.spacing;
        let mut via = Via::Pool;
        loop {
            sleep_until(self.next_write).await;
            let owed = self.is_owed_now();
            let error = match self.write_receipt(generated, owed, via).await {
                Ok(true) => return,
                Ok(false) => continue,
                Err(error) => error,
            };
            let is_late = Instant::now() + wait >= self.request.deadline;
            if is_late || !error.may_pass() {
                let causes = error.error().causes();
                tracing::warn!(
                    causes,
                    "receipt not written; the lease names the image: {}",
                    error.error()
                );
                return;
            }
            self.during(pin!(sleep(wait))).await;
            wait = (wait * 2).min(self.request.period());
            via = Via::Fresh;
        }
    }

    /// Returns true if a receipt is there, ours or another's.
    async fn write_receipt(
        &mut self,
        generated: &Generated,
        owed: bool,
        via: Via,
    ) -> Result<bool, StorageError> {
        let (name, receipt) = (self.name(), self.receipt_metadata(generated, owed));
        let generation = self.generation.clone();
        let deadline = Instant::now() + self.request.record_try;
        self.is_unsure = true;
        let written = self
            .storage
            .write_record_once(&name, generation.as_deref(), &receipt, via, deadline)
            .await;
        self.next_write = Instant::now() + self.request.spacing;
        match written? {
            Written::Confirmed(_) => Ok(true),
            Written::Conflict(Some(record)) if completed(&record).is_some() => {
                if completed(&record).is_some_and(|first| first.object != generated.object) {
                    tracing::warn!(
                        object = generated.object,
                        "another instance's receipt came first; this image is a duplicate"
                    );
                }
                Ok(true)
            }
            // A lease, perhaps a later generation of ours: the receipt of a stored image replaces it.
            Written::Conflict(record) => {
                self.generation = record.map(|record| record.generation);
                Ok(false)
            }
        }
    }

    /// Gives the lease back, so that the next request need not wait for its end. Only for a holder that has
    /// begun no upload. Best effort: the lease expires anyway.
    pub async fn release(&mut self, until: Instant) {
        let mut reads = 0;
        let mut via = Via::Pool;
        while self.generation.is_some() || self.is_unsure {
            if timeout_at(until, sleep_until(self.next_write)).await.is_err() {
                tracing::warn!("lease not given back in time");
                return;
            }
            let released = self.release_once(via, &mut reads).await;
            self.next_write = Instant::now() + self.request.spacing;
            via = Via::Fresh;
            match released {
                Ok(()) => {}
                Err(error) if error.may_pass() => {
                    tracing::debug!("lease not given back yet: {}", error.error());
                }
                Err(error) => {
                    tracing::warn!("lease not given back: {}", error.error());
                    return;
                }
            }
        }
    }

    async fn release_once(&mut self, via: Via, reads: &mut usize) -> Result<(), StorageError> {
        let (name, deadline) = (self.name(), Instant::now() + self.request.record_try);
        if self.is_unsure {
            match self.storage.read_record_once(&name, via, deadline).await? {
                Some(record) if self.is_mine(&record) => self.adopt(record),
                // A write that is still on its way may be applied later: read twice.
                Some(_) | None => {
                    self.generation = None;
                    *reads += 1;
                    self.is_unsure = *reads < 2;
                    return Ok(());
                }
            }
        }
        let Some(generation) = self.generation.clone() else { return Ok(()) };
        self.is_unsure = true;
        let generation = Some(generation.as_str());
        // Overwrite instead of deleting: slots have no gaps, and a late upload of a former holder can still
        // be found by its name.
        let mut metadata = fields([(FINGERPRINT, &self.request.fingerprint), (IMAGE, &self.stem)]);
        metadata.insert(RELEASED.to_owned(), random_hex::<8>());
        let written =
            self.storage.write_record_once(&name, generation, &metadata, via, deadline).await?;
        let is_gone = matches!(written, Written::Confirmed(_));
        if is_gone {
            (self.generation, self.is_unsure) = (None, false);
            self.term.set(None);
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.request.slot_name(self.slot)
    }

    fn hold(&mut self, generation: String, sent: Instant) {
        (self.generation, self.is_unsure, self.claim) = (Some(generation), false, None);
        self.term.set(Some(sent + self.request.lease_life));
        self.renew_at = sent + self.request.period();
    }

    /// Takes over the state of our record after another write has changed it.
    fn adopt(&mut self, record: Record) {
        let owed = is_owed(&record);
        self.is_claimed_elsewhere = !owed && record.metadata.contains_key(CLAIMANT);
        (self.owed, self.generation, self.is_unsure) = (owed, Some(record.generation), false);
    }

    fn is_mine(&self, record: &Record) -> bool {
        record.metadata.get(HOLDER) == Some(&self.request.holder) && completed(record).is_none()
    }

    fn lease_metadata(&self, owed: bool, renewal: Option<String>) -> Metadata {
        let LeaseRequest { fingerprint, holder, .. } = &self.request;
        let mut metadata =
            fields([(FINGERPRINT, fingerprint), (HOLDER, holder), (IMAGE, &self.stem)]);
        let life = self.request.deadline.saturating_duration_since(self.sent_at);
        metadata.insert(LIFE_MS.to_owned(), life.as_millis().to_string());
        metadata.insert(ATTEMPT.to_owned(), self.attempt.clone());
        let asked = self.sent_at.saturating_duration_since(self.request.asked_at);
        metadata.insert(ASKED_MS.to_owned(), asked.as_millis().to_string());
        metadata.extend(renewal.map(|renewal| (RENEWAL.to_owned(), renewal)));
        metadata.extend((!self.request.is_keyed()).then(|| (OWED.to_owned(), yes_or_no(owed))));
        metadata
    }

    fn receipt_metadata(&self, generated: &Generated, owed: bool) -> Metadata {
        let LeaseRequest { fingerprint, holder, .. } = &self.request;
        let Generated { object, model } = generated;
        let mut metadata = fields([
            (FINGERPRINT, fingerprint),
            (HOLDER, holder),
            (OBJECT, object),
            (MODEL, model),
        ]);
        metadata.extend((!self.request.is_keyed()).then(|| (OWED.to_owned(), yes_or_no(owed))));
        metadata
    }
}

impl View {
    /// An image that is owed comes first, then one whose holder has gone without a receipt, then any other.
    fn precedence(&self) -> u8 {
        match self {
            View::Running(record) | View::Image(_, _, record) if is_owed(record) => 0,
            View::Image(_, _, record) if completed(record).is_none() => 1,
            View::Image(..) | View::Running(_) | View::Free(_) | View::Variant | View::Fixed => 2,
        }
    }
}

fn is_owed(record: &Record) -> bool {
    record.metadata.get(OWED).is_some_and(|owed| owed == "yes")
}

/// A number of milliseconds in a record.
fn parse_ms(field: Option<&String>) -> Option<Duration> {
    Some(Duration::from_millis(field?.parse().ok()?))
}

fn yes_or_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// Fingerprints of different versions cannot be compared.
fn is_other_request(recorded: Option<&String>, ours: &str) -> bool {
    let version =
        |fingerprint: &str| fingerprint.split_once(':').map(|(version, _)| version.to_owned());
    recorded.is_none_or(|recorded| recorded != ours && version(recorded) == version(ours))
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

/// `None` if the object's metadata name no model: this service did not write the object.
fn generated(image: StoredImage) -> Option<Generated> {
    Some(Generated { object: image.object, model: image.model? })
}

fn fields<const N: usize>(pairs: [(&str, &String); N]) -> Metadata {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

const ATTEMPT: &str = "attempt";
const ASKED_MS: &str = "asked_ms";
const HOLDER: &str = "holder";
const IMAGE: &str = "image";
const RENEWAL: &str = "renewal";
const LIFE_MS: &str = "life_ms";
const OWED: &str = "owed";
const CLAIMANT: &str = "claimant";
const AGED_MS: &str = "aged_ms";
const RELEASED: &str = "released";
const OBJECT: &str = "object";
const KEY_SHA256: &str = "key_sha256";

/// The most records of one request.
const SLOTS: usize = 16;
const FIRST_POLL: Duration = Duration::from_millis(200);
const LONGEST_POLL: Duration = Duration::from_secs(2);
