//! One paid generation for each request, however often the caller asks.
//!
//! A generation runs in a task of its own, its *flight*; handlers wait for it, and a caller that leaves
//! does not stop it. Who joins a flight instead of paying for another:
//!
//! - the same idempotency key, always; with a different request it is refused;
//! - without a key, an equal request that comes while the flight is under way or within the retry window
//!   after it landed, and at least [`Timing::variant_age`] after it began: a retry. Requests fired together are
//!   deliberate variants, and each gets its own image.
//!
//! ```text
//! begin ─► (lease) ─► flying ─► landed      answers joins until the retry window has passed
//!                       │  ▲
//!                       │  └─────┐
//!                       │     unsaved       paid, but Cloud Storage fails: stored again and again,
//!                       │        ▲          at once when a caller joins, until the deadline
//!                       ├────────┘
//!                       └─► failed          told to those who wait, remembered by nobody
//! ```
//!
//! The lease makes the same rules hold between instances ([`crate::lease`]). Requests with a key always
//! take one, those without where the settings say so.

use crate::config::Timing;
use crate::error::{Error, Kind};
use crate::generate::{Generated, Generator, Origin, Unstored};
use crate::google::storage::Storage;
use crate::lease::{Acquired, Lease, LeaseRequest, RELEASE_TIME};
use crate::request::GenerateRequest;
use crate::telemetry::metrics;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
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
    /// Closed when no flight may begin any more.
    tasks: TaskTracker,
    /// Cancelled when flights have no time left to end by themselves.
    cancel: CancellationToken,
}

/// The settings that decide who shares a flight.
#[derive(Debug, Clone)]
pub struct Rules {
    pub max_generations: usize,
    pub retry_window: Option<Duration>,
    pub shared_retries: bool,
    pub answer_within: Option<Duration>,
    pub timing: Timing,
}

/// What requests must have in common to share a flight.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum JoinKey {
    /// Whose key it is, of two requests with the same one, the record in the bucket decides.
    Key {
        key: String,
        fingerprint: String,
    },
    Equal {
        fingerprint: String,
    },
}

/// The flights that may be joined, and some that no longer may: to look through all for each request would
/// take the longer the more there are.
#[derive(Default)]
struct FlightIndex {
    flights: HashMap<JoinKey, Vec<Arc<Flight>>>,
    /// With so many identities, those of forgotten flights are swept out.
    sweep_at: usize,
}

struct Flight {
    /// The id of the request that began it.
    name: String,
    began: Instant,
    joins: AtomicUsize,
    progress: watch::Receiver<Progress>,
    /// Somebody waits for an unsaved image.
    store_now: Arc<Notify>,
}

#[derive(Debug, Clone)]
enum Progress {
    Running,
    Stored(Generated, Instant),
    StoreFailed(Error),
    Failed(Error),
}

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

    /// The image for a request: of a flight it may join, else of one of its own.
    pub async fn answer(
        self: &Arc<Self>,
        request: GenerateRequest,
        key: Option<String>,
        origin: Origin,
        deadline: Instant,
    ) -> Result<Generated, Error> {
        let flight = self.join_or_begin(request, key, origin, deadline)?;
        match self.rules.answer_within {
            None => flight.outcome().await,
            Some(limit) => {
                timeout(limit, flight.outcome()).await.unwrap_or_else(|_| Err(still_flying()))
            }
        }
    }

    /// Lets no flight begin any more and waits until `deadline` for those under way. Then cancels the rest
    /// and waits a little until they have given their leases back.
    pub async fn stop(&self, deadline: Instant) {
        {
            // Under this lock flights begin, so that none begins unnoticed.
            let _index = lock(&self.index);
            self.tasks.close();
        }
        if timeout_at(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!("no time left: cancelling the generations under way");
            self.cancel.cancel();
            let _ = timeout(RELEASE_TIME, self.tasks.wait()).await;
        }
    }

    fn join_or_begin(
        self: &Arc<Self>,
        request: GenerateRequest,
        key: Option<String>,
        origin: Origin,
        deadline: Instant,
    ) -> Result<Arc<Flight>, Error> {
        let fingerprint = request.fingerprint();
        let join_key = match key {
            Some(key) => JoinKey::Key { key, fingerprint },
            None => JoinKey::Equal { fingerprint },
        };
        let mut index = lock(&self.index);
        let under_way = index.flights_of(&join_key, self.rules.retry_window);
        if let Some(flight) = self.rules.joinable(&join_key, under_way) {
            flight.joins.fetch_add(1, Ordering::Relaxed);
            metrics::joined(&flight.name, matches!(join_key, JoinKey::Key { .. }));
            return Ok(Arc::clone(flight));
        }
        let flight = self.begin(request, &join_key, origin, deadline)?;
        index.flights.entry(join_key).or_default().push(Arc::clone(&flight));
        Ok(flight)
    }

    fn begin(
        self: &Arc<Self>,
        request: GenerateRequest,
        join_key: &JoinKey,
        origin: Origin,
        deadline: Instant,
    ) -> Result<Arc<Flight>, Error> {
        if self.tasks.is_closed() {
            return Err(Kind::Overloaded.because("This instance is stopping."));
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| overloaded())?;
        let (report, progress) = watch::channel(Progress::Running);
        let store_now = Arc::new(Notify::new());
        let flight = Flight {
            name: origin.request_id.clone(),
            began: Instant::now(),
            joins: AtomicUsize::new(0),
            progress,
            store_now: Arc::clone(&store_now),
        };
        let task = FlightTask {
            flights: Arc::clone(self),
            permit,
            lease_request: self.lease_request(join_key),
            request,
            origin,
            deadline,
            report,
            store_now,
        };
        self.tasks.spawn(task.run().in_current_span());
        Ok(Arc::new(flight))
    }

    /// The lease to take before paying, if one is to be taken.
    fn lease_request(&self, join_key: &JoinKey) -> Option<LeaseRequest> {
        let prefix = self.storage.prefix();
        let Timing { variant_age, lease_life, .. } = self.rules.timing;
        match (join_key, self.rules.retry_window) {
            (JoinKey::Key { key, fingerprint }, _) => Some(LeaseRequest {
                name: LeaseRequest::name(prefix, "key", key),
                fingerprint: fingerprint.clone(),
                receipt_life: None,
                variant_age: Duration::ZERO,
                lease_life,
            }),
            (JoinKey::Equal { fingerprint }, Some(window)) if self.rules.shared_retries => {
                Some(LeaseRequest {
                    name: LeaseRequest::name(prefix, "request", fingerprint),
                    fingerprint: fingerprint.clone(),
                    receipt_life: Some(window),
                    variant_age,
                    lease_life,
                })
            }
            (JoinKey::Equal { .. }, _) => None,
        }
    }
}

impl FlightIndex {
    /// Those with this join_key that may be joined.
    fn flights_of(&mut self, join_key: &JoinKey, retry_window: Option<Duration>) -> &[Arc<Flight>] {
        let forget = |flights: &mut Vec<Arc<Flight>>| {
            flights.retain(|flight| flight.is_remembered(retry_window))
        };
        if self.flights.len() >= self.sweep_at {
            self.flights.values_mut().for_each(forget);
            self.flights.retain(|_, flights| !flights.is_empty());
            self.sweep_at = 2 * self.flights.len().max(FEW_IDENTITIES);
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
    /// The flight that a request with this join_key joins. Of several the one that fewest have joined:
    /// retries of variants spread over the variants.
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
                old_enough.min_by_key(|flight| flight.joins.load(Ordering::Relaxed))
            }
        }
    }
}

impl Flight {
    /// Waits for the image; where one is paid but unsaved, for the next attempt to save it.
    async fn outcome(&self) -> Result<Generated, Error> {
        let mut progress = self.progress.clone();
        if matches!(*progress.borrow_and_update(), Progress::StoreFailed(_)) {
            self.store_now.notify_one();
            let _ = progress.changed().await;
        }
        loop {
            match &*progress.borrow_and_update() {
                Progress::Running => {}
                Progress::Stored(generated, _) => return Ok(generated.clone()),
                Progress::StoreFailed(error) | Progress::Failed(error) => return Err(error.clone()),
            }
            if progress.changed().await.is_err() {
                return Err(Kind::Internal.because("The generation ended unexpectedly."));
            }
        }
    }

    fn is_remembered(&self, retry_window: Option<Duration>) -> bool {
        let has_ended = self.progress.has_changed().is_err();
        match &*self.progress.borrow() {
            Progress::Running | Progress::StoreFailed(_) => !has_ended,
            Progress::Stored(_, landed) => landed.elapsed() < retry_window.unwrap_or_default(),
            Progress::Failed(_) => false,
        }
    }
}

/// What a flight's task needs.
struct FlightTask {
    flights: Arc<Flights>,
    permit: OwnedSemaphorePermit,
    lease_request: Option<LeaseRequest>,
    request: GenerateRequest,
    origin: Origin,
    deadline: Instant,
    report: watch::Sender<Progress>,
    store_now: Arc<Notify>,
}

impl FlightTask {
    async fn run(mut self) {
        let cancel = self.flights.cancel.clone();
        let mut lease = None;
        let end = tokio::select! {
            end = self.generate_once(&mut lease) => end,
            () = cancel.cancelled() => Progress::Failed(stopped()),
        };
        if let (Some(lease), Progress::Failed(_)) = (lease, &end) {
            lease.release(Instant::now() + RELEASE_TIME).await;
        }
        // First: whoever hears of the end finds the permit free.
        drop(self.permit);
        self.report.send_replace(end);
    }

    /// Takes the lease, pays, and stores what was paid for; or finds that another instance does.
    async fn generate_once(&mut self, lease: &mut Option<Box<Lease>>) -> Progress {
        if let Some(lease_request) = self.lease_request.take() {
            match Lease::acquire(&self.flights.storage, lease_request, self.deadline).await {
                Ok(Acquired::Lease(taken)) => *lease = Some(taken),
                Ok(Acquired::Completed(generated)) => {
                    return Progress::Stored(generated, Instant::now());
                }
                Ok(Acquired::Variant) => {}
                Err(error) => return Progress::Failed(error),
            }
        }
        let paid = self.flights.generator.generate(&self.request, &self.origin, self.deadline);
        match during(lease, paid).await {
            Ok(unstored) => self.store_until_confirmed(&unstored, lease).await,
            Err(error) => Progress::Failed(error),
        }
    }

    /// Stores a paid image, however often it takes.
    async fn store_until_confirmed(
        &self,
        unstored: &Unstored,
        lease: &mut Option<Box<Lease>>,
    ) -> Progress {
        loop {
            let error = match self.store(unstored, lease).await {
                Ok(generated) => return Progress::Stored(generated, Instant::now()),
                Err(error) => error,
            };
            self.report.send_replace(Progress::StoreFailed(error.clone()));
            let pause = async {
                tokio::select! {
                    () = self.store_now.notified() => {}
                    () = sleep_until(self.deadline.min(Instant::now() + STORE_AGAIN_AFTER)) => {}
                }
            };
            during(lease, pause).await;
            if Instant::now() >= self.deadline {
                return Progress::Failed(error);
            }
            self.report.send_replace(Progress::Running);
        }
    }

    /// Stores the image and says so in the receipt. An image that came second is not kept.
    async fn store(
        &self,
        unstored: &Unstored,
        lease: &mut Option<Box<Lease>>,
    ) -> Result<Generated, Error> {
        let generator = &self.flights.generator;
        let generated = during(lease, generator.store(unstored, self.deadline)).await?;
        let Some(lease) = lease else {
            return Ok(generated);
        };
        let first = lease.complete(&generated, self.deadline).await?;
        if first != generated {
            tracing::warn!(
                object = generated.object,
                "another instance's image came first; this one is deleted"
            );
            self.flights.storage.delete(&generated.object, None, self.deadline).await?;
        }
        Ok(first)
    }
}

/// Runs `work`, and renews the lease beside it if there is one.
async fn during<T>(lease: &mut Option<Box<Lease>>, work: impl Future<Output = T>) -> T {
    match lease {
        Some(lease) => lease.during(work).await,
        None => work.await,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn overloaded() -> Error {
    Kind::Overloaded.because("As many generations are running as this instance takes.")
}

fn stopped() -> Error {
    Kind::Overloaded.because("This instance stopped before the image was there.")
}

fn still_flying() -> Error {
    Kind::VertexUnavailable
        .because("Service Unavailable: the image is not there yet; ask again for the same one.")
}

/// Below this number it does not pay to sweep.
const FEW_IDENTITIES: usize = 64;

/// How long an unsaved image rests between attempts when nobody asks for it.
const STORE_AGAIN_AFTER: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(name: &str, joins: usize, began: Instant, end: Option<Progress>) -> Arc<Flight> {
        let (report, progress) = watch::channel(Progress::Running);
        match end {
            Some(end) => drop(report.send_replace(end)),
            // It goes on for as long as the test.
            None => std::mem::forget(report),
        }
        let name = name.to_owned();
        Arc::new(Flight { name, began, joins: joins.into(), progress, store_now: Arc::default() })
    }

    fn rules(retry_window: Option<Duration>) -> Rules {
        let timing = Timing::DEFAULT;
        Rules {
            max_generations: 1,
            retry_window,
            shared_retries: false,
            answer_within: None,
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
    async fn a_key_joins_at_once() {
        let flights = [flight("a", 0, Instant::now(), None)];
        let key = JoinKey::Key { key: "k".to_owned(), fingerprint: "f".to_owned() };
        assert!(rules(None).joinable(&key, &flights).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_is_swept_out_before_it_is_many() {
        let (mut index, window) = (FlightIndex::default(), Some(Duration::from_secs(5)));
        let join_key = |number: usize| JoinKey::Equal { fingerprint: number.to_string() };
        let error = Kind::VertexApi.because("no");
        index.flights.insert(join_key(0), vec![flight("a", 0, Instant::now(), None)]);
        for number in 1..1000 {
            let failed = flight("b", 0, Instant::now(), Some(Progress::Failed(error.clone())));
            assert!(index.flights_of(&join_key(number), window).is_empty());
            index.flights.insert(join_key(number), vec![failed]);
            assert!(index.flights.len() <= 2 * FEW_IDENTITIES);
        }
        assert_eq!(index.flights_of(&join_key(0), window).len(), 1);
        assert!(index.flights_of(&join_key(999), window).is_empty(), "swept or not");
    }

    #[tokio::test(start_paused = true)]
    async fn what_landed_is_remembered_for_the_window_and_failures_are_not() {
        let window = Some(Duration::from_secs(5));
        let now = Instant::now();
        let generated = Generated { object: "o".to_owned(), model: "m".to_owned() };
        let landed = flight("a", 0, now, Some(Progress::Stored(generated, now)));
        tokio::time::advance(Duration::from_millis(4999)).await;
        assert!(landed.is_remembered(window) && !landed.is_remembered(None));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!landed.is_remembered(window));
        let error = Kind::VertexApi.because("no");
        assert!(!flight("b", 0, now, Some(Progress::Failed(error.clone()))).is_remembered(window));
        assert!(
            !flight("c", 0, now, Some(Progress::StoreFailed(error))).is_remembered(window),
            "its task is gone"
        );
        assert!(flight("d", 0, now, None).is_remembered(window));
    }
}
