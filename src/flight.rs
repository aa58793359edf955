//! One paid generation for each request, however often the caller asks: single flight, as in Go's `singleflight`.
//!
//! A generation runs in a task of its own, its *flight*. Handlers wait for it, and a caller that
//! leaves does not stop it. A request joins a flight instead of paying for another generation
//!
//! - with an idempotency key, if the key is the same; a different request with that key is refused;
//! - without a key, if the requests are equal, and the flight is under way or its image was stored
//!   within the retry window, and the flight began at least [`Timing::variant_age`] ago. Such a
//!   request is a retry. Requests fired together are deliberate variants; each gets its own image.
//!
//! ```text
//! begin ─► acquire ─► Running ─────► Stored ─► complete     Stored: joined until the retry window has passed;
//!             │         │  ▲           ▲                    the receipt is written after the callers' response
//!             │         ▼  │           │
//!             │       StoreFailed ─────┘                    paid, but Cloud Storage fails: stored again and again, at
//!             │         │                                   once when a caller joins, until the deadline
//!             └─────────┴─► Failed ─► release               reported to the callers that wait, then forgotten
//! ```
//!
//! The lease makes the same rules hold between instances ([`crate::lease`]). A request with a key
//! always takes a lease; a request without a key takes one if the settings say so.

use crate::config::Timing;
use crate::error::{Error, Kind};
use crate::generate::{Generated, Generator, Naming, Origin};
use crate::google::storage::{FINGERPRINT, Metadata, Storage, Upload};
use crate::id::random_hex;
use crate::lease::{Acquired, Callers, Lease, LeaseRequest};
use crate::panic::unless_it_panics;
use crate::request::{GenerateRequest, Prompt, WeakPrompt};
use crate::telemetry::metrics;
use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// All flights of this instance, and the rules by which requests share them.
pub struct Flights {
    generator: Arc<Generator>,
    storage: Arc<Storage>,
    rules: Rules,
    /// One permit for each flight that may be under way.
    permits: Arc<Semaphore>,
    index: Mutex<FlightIndex>,
    /// Closed once no flight may begin any more.
    tasks: TaskTracker,
    /// Cancelled once flights have no time left to end by themselves.
    cancel: CancellationToken,
}

/// The settings that decide which requests share a flight.
#[derive(Debug, Clone)]
pub struct Rules {
    pub max_generations: usize,
    pub retry_window: Option<Duration>,
    pub shared_retries: bool,
    pub answer_within: Option<Duration>,
    pub timing: Timing,
    /// The platform freezes an instance once it has responded, so the response waits for the end of
    /// the flight.
    pub respond_after_end: bool,
}

/// When a request's work must be over.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// The image must be stored by then.
    pub generation: Instant,
    /// The response must be sent and the lease given back by then.
    pub response: Instant,
}

impl Deadlines {
    /// The deadlines of a generation that begins now. If the platform ends the request, the image must
    /// be stored a little earlier, so that the lease can still be given back.
    pub fn new(generation_limit: Duration, platform: Option<Instant>) -> Deadlines {
        let now = Instant::now();
        let own = now + generation_limit;
        match platform {
            None => Deadlines { generation: own, response: own },
            Some(end) => {
                let margin = (end.saturating_duration_since(now) / 4).min(RELEASE_MARGIN);
                Deadlines { generation: own.min(end - margin), response: end }
            }
        }
    }
}

/// What two requests must have in common to share a flight.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum JoinKey {
    /// If two requests use one key, the record in the bucket decides which owns it.
    Key {
        key: String,
        fingerprint: String,
    },
    Equal {
        fingerprint: String,
    },
}

/// The flights that may be joined, and some that may no longer be: searching all of them for each
/// request would take too long.
#[derive(Default)]
struct FlightIndex {
    flights: HashMap<JoinKey, Vec<Arc<Flight>>>,
    /// The number of join keys at which those of forgotten flights are removed.
    sweep_at: usize,
}

struct Flight {
    /// The id of the request that began it.
    name: String,
    /// Shared with its callers while it runs, so that a joining request need not keep its own copy.
    prompt: WeakPrompt,
    /// The `holder` in its records.
    holder: String,
    began: Instant,
    joins: AtomicUsize,
    callers: watch::Sender<Callers>,
    progress: watch::Receiver<Progress>,
    /// Notified when a caller waits for an image that could not be stored.
    store_now: Arc<Notify>,
}

/// The state of a flight that its callers watch.
#[derive(Debug, Clone)]
enum Progress {
    Running,
    Stored(Generated, Instant),
    /// The last attempt to store a paid image failed; another one follows.
    StoreFailed,
    Failed(Error),
}

/// A caller that waits for a flight; counted until it is dropped.
struct Waiting(Arc<Flight>);

impl Flights {
    pub fn new(generator: Arc<Generator>, storage: Arc<Storage>, rules: Rules) -> Flights {
        Flights {
            generator,
            storage,
            permits: Arc::new(Semaphore::new(rules.max_generations)),
            rules,
            index: Mutex::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        }
    }

    /// The image for a request, from a flight that it may join or from a flight of its own.
    ///
    /// # Errors
    /// The error of the generation; 503 if the instance is full, stops, or has no time left.
    pub async fn answer(
        self: &Arc<Self>,
        request: GenerateRequest,
        key: Option<String>,
        origin: Origin,
        deadlines: Deadlines,
    ) -> Result<(Generated, Prompt), Error> {
        if Instant::now() >= deadlines.generation {
            return Err(Kind::VertexUnavailable
                .because("Service Unavailable: no time is left for a generation."));
        }
        let own_prompt = request.prompt.clone();
        let waiting = self.join_or_begin(request, key, origin, deadlines.generation)?;
        let prompt = waiting.0.prompt.upgrade().unwrap_or(own_prompt);
        let flight = Arc::clone(&waiting.0);
        let result = match self.rules.answer_within {
            None => waiting.outcome().await,
            Some(limit) => match timeout(limit, waiting.outcome()).await {
                Ok(result) => result,
                Err(_) => return Err(not_ready_yet()),
            },
        };
        if self.rules.respond_after_end {
            let _ = timeout_at(deadlines.response, flight.ended()).await;
        }
        result.map(|generated| (generated, prompt))
    }

    /// Lets no new flight begin and waits until `deadline` for those under way. Then cancels the rest
    /// and waits a little until they have given their leases back.
    pub async fn stop(&self, deadline: Instant) {
        {
            // Flights begin under this lock, so none can begin unnoticed.
            let _index = lock(&self.index);
            self.tasks.close();
        }
        if timeout_at(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!("no time left: cancelling the generations under way");
            self.cancel.cancel();
            let _ = timeout(STOP_TIME, self.tasks.wait()).await;
        }
    }

    fn join_or_begin(
        self: &Arc<Self>,
        request: GenerateRequest,
        key: Option<String>,
        origin: Origin,
        deadline: Instant,
    ) -> Result<Waiting, Error> {
        let fingerprint = request.fingerprint();
        let join_key = match key {
            Some(key) => JoinKey::Key { key, fingerprint },
            None => JoinKey::Equal { fingerprint },
        };
        let mut index = lock(&self.index);
        let under_way = index.flights_of(&join_key, self.rules.retry_window);
        let joinable = self.rules.joinable(&join_key, under_way).cloned();
        if let Some(flight) = &joinable
            && !self.may_be_owed_elsewhere(&join_key, flight)
        {
            return Ok(flight.join(&join_key));
        }
        let is_young =
            |flight: &&Arc<Flight>| flight.began.elapsed() < self.rules.timing.variant_age;
        let variants = under_way.iter().filter(is_young).map(|flight| flight.holder.clone());
        let variants = variants.collect();
        let flight = self.begin(request, join_key.clone(), variants, joinable, origin, deadline)?;
        let waiting = Waiting::on(&flight);
        index.flights.entry(join_key).or_default().push(flight);
        Ok(waiting)
    }

    /// Whether another instance may owe the image of an equal request, while this flight owes none.
    fn may_be_owed_elsewhere(&self, join_key: &JoinKey, flight: &Flight) -> bool {
        match join_key {
            JoinKey::Key { .. } => false,
            JoinKey::Equal { .. } => self.rules.shared_retries && !flight.is_owed(),
        }
    }

    fn begin(
        self: &Arc<Self>,
        request: GenerateRequest,
        join_key: JoinKey,
        variants: Vec<String>,
        joinable: Option<Arc<Flight>>,
        origin: Origin,
        deadline: Instant,
    ) -> Result<Arc<Flight>, Error> {
        if self.tasks.is_closed() {
            return Err(Kind::Overloaded.because("This instance is stopping."));
        }
        let permit = match joinable {
            // It will most likely join that flight and not pay.
            Some(_) => None,
            None => Some(self.permit()?),
        };
        let (report, progress) = watch::channel(Progress::Running);
        let store_now = Arc::new(Notify::new());
        let flight = Arc::new(Flight {
            name: origin.request_id.clone(),
            prompt: request.prompt.downgrade(),
            holder: random_hex::<16>(),
            began: Instant::now(),
            joins: AtomicUsize::new(0),
            callers: watch::Sender::default(),
            progress,
            store_now: Arc::clone(&store_now),
        });
        let stem = format!("{}_{}", origin.request_id, random_hex::<4>());
        let lease_request =
            self.lease_request(&join_key, variants, flight.holder.clone(), stem.clone(), deadline);
        let callers = flight.callers.subscribe();
        let task = FlightTask {
            flights: Arc::clone(self),
            permit,
            joinable,
            join_key,
            lease: lease_request
                .map(|request| Lease::new(Arc::clone(&self.storage), request, callers.clone())),
            callers,
            request,
            stem,
            origin,
            deadline,
            report,
            store_now,
            stage: Stage::Unpaid,
        };
        self.tasks.spawn(task.run().in_current_span());
        Ok(flight)
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.permits).try_acquire_owned().map_err(|_| overloaded())
    }

    /// The lease to acquire before paying, if one is required.
    fn lease_request(
        &self,
        join_key: &JoinKey,
        variants: Vec<String>,
        holder: String,
        stem: String,
        deadline: Instant,
    ) -> Option<LeaseRequest> {
        let prefix = self.storage.prefix();
        let Timing { variant_age, lease_life, record_spacing, record_try, .. } = self.rules.timing;
        let fingerprint = match join_key {
            JoinKey::Key { fingerprint, .. } | JoinKey::Equal { fingerprint } => {
                fingerprint.clone()
            }
        };
        let (name, key_sha256, receipt_life) = match (join_key, self.rules.retry_window) {
            (JoinKey::Key { key, .. }, _) => {
                let key_sha256 = LeaseRequest::key_sha256(key);
                (LeaseRequest::name(prefix, "key", &key_sha256), Some(key_sha256), None)
            }
            (JoinKey::Equal { fingerprint }, Some(window)) if self.rules.shared_retries => {
                let name = fingerprint.replace(':', "-");
                (LeaseRequest::name(prefix, "request", &name), None, Some(window))
            }
            (JoinKey::Equal { .. }, _) => return None,
        };
        Some(LeaseRequest {
            name,
            key_sha256,
            fingerprint,
            holder,
            stem,
            receipt_life,
            variant_age,
            variants,
            lease_life,
            spacing: record_spacing,
            record_try,
            asked_at: Instant::now(),
            deadline,
        })
    }
}

impl FlightIndex {
    /// The flights with this join key that may be joined.
    fn flights_of(&mut self, join_key: &JoinKey, retry_window: Option<Duration>) -> &[Arc<Flight>] {
        let forget = |flights: &mut Vec<Arc<Flight>>| {
            flights.retain(|flight| flight.is_remembered(retry_window))
        };
        if self.flights.len() >= self.sweep_at {
            self.flights.values_mut().for_each(forget);
            self.flights.retain(|_, flights| !flights.is_empty());
            self.sweep_at = 2 * self.flights.len().max(MIN_SWEEP);
        }
        match self.flights.get_mut(join_key) {
            Some(flights) => {
                forget(flights);
                flights
            }
            None => &[],
        }
    }
}

impl Rules {
    /// The flight that a request with this join key joins: one whose image no caller has or waits for,
    /// otherwise the one with the fewest joins. So retries of variants get the variants' images.
    fn joinable<'a>(
        &self,
        join_key: &JoinKey,
        under_way: &'a [Arc<Flight>],
    ) -> Option<&'a Arc<Flight>> {
        match join_key {
            JoinKey::Key { .. } => under_way.first(),
            JoinKey::Equal { .. } if self.retry_window.is_none() => None,
            JoinKey::Equal { .. } => {
                let old_enough = under_way
                    .iter()
                    .filter(|flight| flight.began.elapsed() >= self.timing.variant_age);
                old_enough
                    .min_by_key(|flight| (!flight.is_owed(), flight.joins.load(Ordering::Relaxed)))
            }
        }
    }
}

impl Flight {
    fn join(self: &Arc<Self>, join_key: &JoinKey) -> Waiting {
        self.joins.fetch_add(1, Ordering::Relaxed);
        metrics::joined(&self.name, matches!(join_key, JoinKey::Key { .. }));
        Waiting::on(self)
    }

    /// Whether no caller has its image and none waits for it.
    fn is_owed(&self) -> bool {
        self.callers.borrow().have_left_without_image()
    }

    fn is_remembered(&self, retry_window: Option<Duration>) -> bool {
        let has_ended = self.progress.has_changed().is_err();
        match &*self.progress.borrow() {
            Progress::Running | Progress::StoreFailed => !has_ended,
            Progress::Stored(_, stored) => stored.elapsed() < retry_window.unwrap_or_default(),
            Progress::Failed(_) => false,
        }
    }

    /// Returns when the flight's task has ended, its receipt written or its lease given back.
    async fn ended(&self) {
        let mut progress = self.progress.clone();
        while progress.changed().await.is_ok() {}
    }
}

impl Waiting {
    fn on(flight: &Arc<Flight>) -> Waiting {
        flight.callers.send_modify(|callers| callers.waiting += 1);
        Waiting(Arc::clone(flight))
    }

    /// Waits for the image, also while it is paid and cannot be stored at the moment.
    async fn outcome(self) -> Result<Generated, Error> {
        let mut progress = self.0.progress.clone();
        if matches!(*progress.borrow_and_update(), Progress::StoreFailed) {
            self.0.store_now.notify_one();
        }
        loop {
            match &*progress.borrow_and_update() {
                Progress::Running | Progress::StoreFailed => {}
                Progress::Stored(generated, _) => {
                    self.0.callers.send_modify(|callers| callers.delivered = true);
                    return Ok(generated.clone());
                }
                Progress::Failed(error) => return Err(error.clone()),
            }
            if progress.changed().await.is_err() {
                return Err(generation_panicked());
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.callers.send_modify(|callers| callers.waiting -= 1);
    }
}

/// The task of a flight.
struct FlightTask {
    flights: Arc<Flights>,
    /// Released when the image is stored, or when it is paid and cannot be stored at the moment.
    permit: Option<OwnedSemaphorePermit>,
    /// The flight of this instance to join, unless another instance owes an image.
    joinable: Option<Arc<Flight>>,
    join_key: JoinKey,
    lease: Option<Lease>,
    callers: watch::Receiver<Callers>,
    request: GenerateRequest,
    /// The image's name, unless an inherited lease has another one.
    stem: String,
    origin: Origin,
    deadline: Instant,
    report: watch::Sender<Progress>,
    store_now: Arc<Notify>,
    stage: Stage,
}

/// How far a flight has come; this decides what to do if it ends there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No image of this flight can be in the bucket.
    Unpaid,
    /// The image is paid. An upload may have arrived, or may still arrive.
    Paid,
    Stored,
}

impl FlightTask {
    async fn run(mut self) {
        let cancel = self.flights.cancel.clone();
        let (end, reason) = {
            let generating = pin!(self.generate_once());
            tokio::select! {
                end = unless_it_panics(generating) => match end {
                    Some(end) => (end, "deadline"),
                    None => (Err(generation_panicked()), "panicked"),
                },
                () = cancel.cancelled() => (Err(instance_stopped()), "stopped"),
            }
        };
        // Release the permit before publishing the result, so that a woken caller can start at once.
        drop(self.permit.take());
        let Err(error) = end else { return };
        if self.stage == Stage::Stored {
            return;
        }
        if self.stage == Stage::Paid {
            metrics::image_lost(reason);
            let causes = error.causes();
            tracing::error!(reason, causes, "paid image lost, it could not be stored: {error}");
        }
        self.report.send_replace(Progress::Failed(error));
        if let Some(lease) = self.lease.as_mut().filter(|_| self.stage == Stage::Unpaid) {
            let limit =
                if cancel.is_cancelled() { STOP_TIME } else { self.flights.rules.timing.release };
            let until = Instant::now() + limit;
            tokio::select! {
                () = lease.release(until) => {}
                () = stop_soon(&cancel) => {}
            }
        }
    }

    /// Acquires the lease, pays for the image and stores it, or gets the image of another instance.
    /// Writes the receipt after the callers have the image.
    async fn generate_once(&mut self) -> Result<(), Error> {
        if let Some(flight) = self.joinable.take() {
            let has_claim = match &mut self.lease {
                Some(lease) => timeout(JOIN_TIME, lease.claim_owed()).await.unwrap_or(false),
                None => false,
            };
            if !has_claim {
                return self.join(&flight).await;
            }
        }
        self.flights.generator.open_connections(&self.request);
        let storage = Arc::clone(&self.flights.storage);
        let (paid, _admission) = loop {
            if let Some(lease) = &mut self.lease {
                let start = Instant::now();
                let acquired = lease.acquire().await;
                metrics::lease_acquired(start.elapsed());
                match acquired? {
                    Acquired::Held => {}
                    Acquired::Completed(generated) => {
                        self.publish(generated);
                        if self.callers.borrow().have_left_without_image() {
                            self.give_back_claim().await;
                        }
                        return Ok(());
                    }
                    Acquired::Unshared => self.lease = None,
                    Acquired::Abandoned => {
                        self.give_back_claim().await;
                        if self.callers.borrow().waiting == 0 {
                            return Err(abandoned());
                        }
                        // A caller has come back meanwhile.
                        continue;
                    }
                }
            }
            if self.permit.is_none() {
                self.permit = Some(self.flights.permit()?);
            }
            let admitting = pin!(storage.admit(self.deadline));
            let admission = during(&mut self.lease, admitting).await?;
            let has_lost = AtomicBool::new(false);
            let term = self.lease.as_ref().map(Lease::term);
            let may_pay = || match &term {
                Some(term) if !term.is_running() => {
                    has_lost.store(true, Ordering::Relaxed);
                    Err(lease_lost())
                }
                Some(_) | None => Ok(()),
            };
            let generator = Arc::clone(&self.flights.generator);
            let paying = pin!(generator.generate(&self.request, &may_pay, self.deadline));
            match during(&mut self.lease, paying).await {
                Ok(paid) => break (paid, admission),
                // Another instance may hold the lease now: wait for its image.
                Err(_) if has_lost.load(Ordering::Relaxed) => {}
                Err(error) => return Err(error),
            }
        };
        self.stage = Stage::Paid;
        let naming = match &self.lease {
            Some(lease) => lease.naming(),
            None => self.naming_without_lease(),
        };
        let generator = Arc::clone(&self.flights.generator);
        let upload = generator.upload(paid, &self.request, &self.origin, naming);
        let generated = self.store_until_confirmed(&generator, &upload).await?;
        drop(upload);
        let generated = match &mut self.lease {
            Some(lease) if !lease.term().is_running() => lease.reconcile(generated).await,
            Some(_) | None => generated,
        };
        self.publish(generated.clone());
        if let Some(lease) = &mut self.lease {
            lease.complete(&generated).await;
        }
        Ok(())
    }

    /// Gets the image from another flight of this instance.
    async fn join(&mut self, flight: &Arc<Flight>) -> Result<(), Error> {
        let waiting = flight.join(&self.join_key);
        let generated = tokio::select! {
            generated = waiting.outcome() => generated?,
            _ = self.callers.wait_for(|callers| callers.waiting == 0) => return Err(abandoned()),
        };
        self.publish(generated);
        Ok(())
    }

    /// Publishes the image to the callers that wait.
    fn publish(&mut self, generated: Generated) {
        self.stage = Stage::Stored;
        drop(self.permit.take());
        if self.callers.borrow().have_left_without_image() {
            let image_url = format!("gs://{}/{}", self.flights.storage.bucket(), generated.object);
            metrics::image_undelivered(&image_url, &generated.model);
        }
        self.report.send_replace(Progress::Stored(generated, Instant::now()));
    }

    async fn give_back_claim(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.give_back_claim().await;
        }
    }

    fn naming_without_lease(&self) -> Naming {
        let metadata = Metadata::from([(FINGERPRINT.to_owned(), self.request.fingerprint())]);
        Naming { stem: self.stem.clone(), is_inherited: false, metadata }
    }

    /// Stores a paid image, in as many attempts as the deadline allows. Between attempts it holds no
    /// permit: it costs only its memory, which counts in the budget.
    async fn store_until_confirmed(
        &mut self,
        generator: &Generator,
        upload: &Upload,
    ) -> Result<Generated, Error> {
        let mut wait = STORE_AGAIN_AFTER;
        loop {
            let storing = pin!(generator.store(upload, self.deadline));
            let error = match during(&mut self.lease, storing).await {
                Ok(generated) => return Ok(generated),
                Err(error) => error,
            };
            if Instant::now() >= self.deadline {
                return Err(error);
            }
            tracing::warn!(
                object = upload.name,
                causes = error.causes(),
                "a paid image could not be stored; it is tried again: {error}"
            );
            drop(self.permit.take());
            self.report.send_replace(Progress::StoreFailed);
            let (store_now, until) =
                (Arc::clone(&self.store_now), self.deadline.min(Instant::now() + wait));
            let pause = pin!(async {
                tokio::select! {
                    () = store_now.notified() => {}
                    () = sleep_until(until) => {}
                }
            });
            during(&mut self.lease, pause).await;
            if Instant::now() >= self.deadline {
                return Err(error);
            }
            wait = (wait * 2).min(STORE_AGAIN_AT_MOST);
            self.report.send_replace(Progress::Running);
        }
    }
}

/// Runs `work` and renews the lease, if any, meanwhile. `work` is pinned, because it would take its memory twice if
/// it were moved in here.
async fn during<T>(lease: &mut Option<Lease>, work: Pin<&mut impl Future<Output = T>>) -> T {
    match lease {
        Some(lease) => lease.during(work).await,
        None => work.await,
    }
}

/// Returns a little after all flights have been cancelled.
async fn stop_soon(cancel: &CancellationToken) {
    cancel.cancelled().await;
    sleep(STOP_TIME).await;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn overloaded() -> Error {
    Kind::Overloaded.because("This instance already runs its maximum number of generations.")
}

fn instance_stopped() -> Error {
    Kind::Overloaded.because("This instance stopped before the image was ready.")
}

fn abandoned() -> Error {
    Kind::VertexUnavailable.because(
        "Service Unavailable: the callers left while another instance was working on this request.",
    )
}

fn lease_lost() -> Error {
    Kind::VertexUnavailable
        .because("Service Unavailable: another instance has taken over this request.")
}

fn generation_panicked() -> Error {
    Kind::Internal.because("The generation ended unexpectedly.")
}

fn not_ready_yet() -> Error {
    Kind::VertexUnavailable
        .because("Service Unavailable: the image is not ready yet; repeat the request to get it.")
}

/// Below this number of join keys, a sweep does not save enough.
const MIN_SWEEP: usize = 64;

/// The wait between two attempts to store a paid image while no caller asks for it. It doubles up to
/// the second value.
const STORE_AGAIN_AFTER: Duration = Duration::from_secs(2);
const STORE_AGAIN_AT_MOST: Duration = Duration::from_secs(30);

/// The time that is reserved for giving a lease back before the platform ends a request.
const RELEASE_MARGIN: Duration = Duration::from_secs(3);

/// How long to read records before joining a flight of this instance.
const JOIN_TIME: Duration = Duration::from_secs(4);

/// How long a cancelled flight may take to give its lease back.
const STOP_TIME: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(name: &str, joins: usize, began: Instant, end: Option<Progress>) -> Arc<Flight> {
        let (report, progress) = watch::channel(Progress::Running);
        match end {
            Some(end) => drop(report.send_replace(end)),
            // The flight runs for as long as the test.
            None => std::mem::forget(report),
        }
        Arc::new(Flight {
            prompt: Prompt::from("").downgrade(),
            name: name.to_owned(),
            holder: String::new(),
            began,
            joins: joins.into(),
            callers: watch::Sender::new(Callers { waiting: 1, delivered: false }),
            progress,
            store_now: Arc::default(),
        })
    }

    fn rules(retry_window: Option<Duration>) -> Rules {
        let timing = Timing::DEFAULT;
        Rules {
            max_generations: 1,
            retry_window,
            shared_retries: false,
            answer_within: None,
            respond_after_end: false,
            timing,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_joins_the_flight_that_is_old_enough_and_least_joined() {
        let began = Instant::now();
        let flights = [flight("a", 1, began, None), flight("b", 0, began, None)];
        let joined = |rules: &Rules| {
            let equal = JoinKey::Equal { fingerprint: "f".to_owned() };
            rules.joinable(&equal, &flights).map(|flight| flight.name.clone())
        };
        let rules = rules(Some(Duration::from_secs(5)));
        tokio::time::advance(Duration::from_millis(399)).await;
        assert_eq!(joined(&rules), None, "fired together");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(joined(&rules).as_deref(), Some("b"));
        assert_eq!(joined(&Rules { retry_window: None, ..rules }), None, "switched off");
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_that_is_owed_is_joined_first() {
        let now = Instant::now();
        let flights = [flight("delivered", 0, now, None), flight("owed", 7, now, None)];
        flights[1].callers.send_replace(Callers { waiting: 0, delivered: false });
        tokio::time::advance(Duration::from_secs(1)).await;
        let join_key = JoinKey::Equal { fingerprint: "f".to_owned() };
        let rules = rules(Some(Duration::from_secs(5)));
        assert_eq!(rules.joinable(&join_key, &flights).unwrap().name, "owed");
        flights[1].callers.send_replace(Callers { waiting: 0, delivered: true });
        assert_eq!(rules.joinable(&join_key, &flights).unwrap().name, "delivered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_platforms_end_leaves_time_to_give_a_lease_back() {
        let now = Instant::now();
        let in_seconds = |seconds| Some(now + Duration::from_secs(seconds));
        for (platform, generation, response) in
            [(None, 180, 180), (in_seconds(60), 57, 60), (in_seconds(4), 3, 4)]
        {
            let deadlines = Deadlines::new(Duration::from_secs(180), platform);
            let seconds = |at: Instant| (at - now).as_secs();
            assert_eq!(
                (seconds(deadlines.generation), seconds(deadlines.response)),
                (generation, response)
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_joins_at_once() {
        let flights = [flight("a", 0, Instant::now(), None)];
        let key = JoinKey::Key { key: "k".to_owned(), fingerprint: "f".to_owned() };
        assert!(rules(None).joinable(&key, &flights).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn forgotten_flights_are_swept_out_before_they_are_many() {
        let (mut index, window) = (FlightIndex::default(), Some(Duration::from_secs(5)));
        let join_key = |number: usize| JoinKey::Equal { fingerprint: number.to_string() };
        let error = Kind::VertexApi.because("no");
        index.flights.insert(join_key(0), vec![flight("a", 0, Instant::now(), None)]);
        for number in 1..1000 {
            let failed = flight("b", 0, Instant::now(), Some(Progress::Failed(error.clone())));
            assert!(index.flights_of(&join_key(number), window).is_empty());
            index.flights.insert(join_key(number), vec![failed]);
            assert!(index.flights.len() <= 2 * MIN_SWEEP);
        }
        assert_eq!(index.flights_of(&join_key(0), window).len(), 1);
        assert!(index.flights_of(&join_key(999), window).is_empty(), "swept or not");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stored_image_is_remembered_for_the_window_and_a_failure_is_not() {
        let window = Some(Duration::from_secs(5));
        let now = Instant::now();
        let generated = Generated { object: "o".to_owned(), model: "m".to_owned() };
        let stored = flight("a", 0, now, Some(Progress::Stored(generated, now)));
        tokio::time::advance(Duration::from_millis(4999)).await;
        assert!(stored.is_remembered(window) && !stored.is_remembered(None));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!stored.is_remembered(window));
        let error = Kind::VertexApi.because("no");
        assert!(!flight("b", 0, now, Some(Progress::Failed(error.clone()))).is_remembered(window));
        assert!(
            !flight("c", 0, now, Some(Progress::StoreFailed)).is_remembered(window),
            "its task is gone"
        );
        assert!(flight("d", 0, now, None).is_remembered(window));
    }
}
