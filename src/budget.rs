//! The memory budget that caps all in-flight images.

use crate::turns::{Turn, Turns};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The memory that all images in transfer, and the requests that wait for them, may hold together.
///
/// An image that does not fit waits; freed memory goes to the oldest image that waits. One image at
/// a time may exceed the budget, so that images which wait for each other finish one after the
/// other. Memory in use never exceeds the budget plus one image.
#[derive(Debug, Clone)]
pub struct Budget {
    state: Arc<Mutex<BudgetState>>,
    turns: Turns,
}

/// Memory of the [`Budget`], given back on drop.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    holder: Holder,
    bytes: usize,
    /// An image's.
    _turn: Option<Turn>,
}

#[derive(Debug)]
enum Holder {
    /// The image's number: older images have smaller ones.
    Image(u64, Arc<Notify>),
    Request,
}

#[derive(Debug)]
struct BudgetState {
    total: usize,
    /// Bytes that requests may hold even while images wait.
    kept_for_requests: usize,
    held_by_requests: usize,
    held_by_images: usize,
    images: BTreeMap<u64, Holding>,
    next_image: u64,
    /// The image that may exceed the budget, while it does.
    exceeding: Option<u64>,
    /// Bytes that an image of unknown length reserves.
    usual: usize,
}

/// The bytes that an image holds and the bytes that it waits for.
#[derive(Debug)]
struct Holding {
    bytes: usize,
    wanted: usize,
    /// Its first reservation is the usual size at the time of the grant.
    begins_with_usual: bool,
    granted: Arc<Notify>,
}

impl Budget {
    /// A budget of this many bytes.
    pub fn new(bytes: usize) -> Budget {
        let state = BudgetState {
            total: bytes,
            kept_for_requests: bytes / 8,
            held_by_requests: 0,
            held_by_images: 0,
            images: BTreeMap::new(),
            next_image: 0,
            exceeding: None,
            usual: FIRST_USUAL_BYTES,
        };
        Budget { state: Arc::new(Mutex::new(state)), turns: Turns::default() }
    }

    /// Waits for the image's turn and until its `bytes` are free, and reserves them.
    pub async fn reserve(&self, bytes: usize) -> Reservation {
        let mut reservation = self.image(false, self.turns.begin().await);
        reservation.wait_for(bytes).await;
        reservation
    }

    /// Like [`reserve`](Budget::reserve), for an image of unknown length: reserves the usual size.
    pub async fn reserve_usual(&self) -> Reservation {
        let mut reservation = self.image(true, self.turns.begin().await);
        let usual = self.lock().usual;
        reservation.wait_for(usual).await;
        reservation
    }

    /// An empty reservation for a request, to be grown with [`Reservation::try_grow_to`].
    pub fn request(&self) -> Reservation {
        Reservation { budget: self.clone(), holder: Holder::Request, bytes: 0, _turn: None }
    }

    fn image(&self, begins_with_usual: bool, turn: Turn) -> Reservation {
        let mut state = self.lock();
        let (number, granted) = (state.next_image, Arc::new(Notify::new()));
        state.next_image += 1;
        let holding =
            Holding { bytes: 0, wanted: 0, begins_with_usual, granted: Arc::clone(&granted) };
        state.images.insert(number, holding);
        let holder = Holder::Image(number, granted);
        Reservation { budget: self.clone(), holder, bytes: 0, _turn: Some(turn) }
    }

    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// Grows a request's reservation to `bytes` without waiting; returns false if it cannot.
    ///
    /// An eighth of the budget is kept for requests. They get more only while no image waits.
    pub fn try_grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let mut state = self.budget.lock();
        let held = state.held_by_requests.saturating_add(more);
        let fits = state.held_by_images.saturating_add(held) <= state.total;
        let images_wait = state.images.values().any(Holding::waits);
        if more > 0 && held > state.kept_for_requests && (images_wait || !fits) {
            return false;
        }
        state.held_by_requests = held;
        self.bytes += more;
        true
    }

    /// Waits until the reservation covers `bytes`; returns at once if it does already.
    pub async fn grow_to(&mut self, bytes: usize) {
        if bytes > self.bytes {
            // Grow in few steps: with many small ones, images that grow side by side would all be
            // half read when memory runs out.
            let usual = self.budget.lock().usual;
            self.wait_for(if bytes <= usual { usual } else { bytes + bytes / 2 }).await;
        }
    }

    /// Shrinks the reservation to `bytes`, the image's final length, and remembers that length.
    pub fn settle(&mut self, bytes: usize) {
        let Holder::Image(number, _) = self.holder else { return };
        let mut state = self.budget.lock();
        state.learn(bytes);
        self.bytes = self.bytes.min(bytes);
        state.hold(number, self.bytes);
        state.grant();
    }

    async fn wait_for(&mut self, bytes: usize) {
        let Holder::Image(number, granted) = &self.holder else { return };
        {
            let mut state = self.budget.lock();
            if let Some(holding) = state.images.get_mut(number) {
                holding.wanted = bytes;
            }
            state.grant();
        }
        loop {
            match self.budget.lock().images.get(number) {
                Some(holding) if holding.waits() => {}
                Some(holding) => break self.bytes = holding.bytes,
                None => break,
            }
            granted.notified().await;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        match self.holder {
            Holder::Image(number, _) => {
                state.hold(number, 0);
                state.images.remove(&number);
                state.exceeding.take_if(|exceeding| *exceeding == number);
            }
            Holder::Request => state.held_by_requests -= self.bytes,
        }
        state.grant();
    }
}

impl BudgetState {
    /// Sets the bytes that an image holds; it then waits for no more.
    fn hold(&mut self, number: u64, bytes: usize) {
        if let Some(holding) = self.images.get_mut(&number) {
            self.held_by_images = self.held_by_images - holding.bytes + bytes;
            holding.bytes = bytes;
            holding.wanted = bytes;
        }
    }

    /// Updates the usual size with the length of an image: it rises at once and falls slowly.
    fn learn(&mut self, bytes: usize) {
        self.usual = bytes.max(self.usual - self.usual / 8).max(LEAST_USUAL_BYTES);
        let not_begun = |holding: &&mut Holding| holding.begins_with_usual && holding.bytes == 0;
        for holding in self.images.values_mut().filter(not_begun) {
            holding.wanted = self.usual;
        }
    }

    /// Grants memory that fits: first to the image that exceeds the budget, then to the waiting
    /// images, strictly in the order of their age.
    fn grant(&mut self) {
        if self.fits(0) {
            self.exceeding = None;
        }
        let first = self.exceeding.filter(|number| self.images[number].waits());
        let mut waiting = first.or_else(|| self.oldest_waiting());
        while let Some(number) = waiting {
            let Holding { bytes, wanted, .. } = self.images[&number];
            if !self.fits(wanted - bytes) {
                if self.exceeding.is_some_and(|exceeding| exceeding != number) {
                    return;
                }
                self.exceeding = Some(number);
            }
            self.hold(number, wanted);
            self.images[&number].granted.notify_one();
            waiting = self.oldest_waiting();
        }
    }

    fn fits(&self, more: usize) -> bool {
        let requests = self.held_by_requests.max(self.kept_for_requests);
        self.held_by_images.saturating_add(more).saturating_add(requests) <= self.total
    }

    fn oldest_waiting(&self) -> Option<u64> {
        self.images.iter().find(|(_, holding)| holding.waits()).map(|(number, _)| *number)
    }
}

impl Holding {
    fn waits(&self) -> bool {
        self.wanted > self.bytes
    }
}

/// The usual size before any image was read: that of a PNG of 2K pixels.
const FIRST_USUAL_BYTES: usize = 8 << 20;

/// An image of unknown length reserves at least this much.
const LEAST_USUAL_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::sync::mpsc;
    use tokio::task::yield_now;
    use tokio::time::{Instant, sleep, timeout};

    const MIB: usize = 1 << 20;
    const SECOND: Duration = Duration::from_secs(1);

    fn held(budget: &Budget) -> usize {
        let state = budget.lock();
        let sum: usize = state.images.values().map(|holding| holding.bytes).sum();
        assert_eq!(sum, state.held_by_images);
        state.held_by_images + state.held_by_requests
    }

    fn try_reserve(budget: &Budget, bytes: usize) -> Option<Reservation> {
        let mut reservation = budget.request();
        reservation.try_grow_to(bytes).then_some(reservation)
    }

    #[tokio::test]
    async fn a_reservation_that_does_not_fit_waits_until_memory_is_given_back() {
        let budget = Budget::new(8 * MIB);
        let first = budget.reserve(6 * MIB).await;
        let _exceeds = budget.reserve(4 * MIB).await;
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { drop(budget.reserve(4 * MIB).await) }
        });
        yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn reservations_that_wait_for_each_other_finish_one_after_the_other() {
        let budget = Budget::new(5 * MIB);
        let mut reservations = Vec::new();
        for _ in 0..4 {
            reservations.push(budget.reserve(MIB).await);
        }
        let (finished, mut order) = mpsc::unbounded_channel();
        // The youngest asks first.
        for (number, mut reservation) in reservations.into_iter().enumerate().rev() {
            let finished = finished.clone();
            tokio::spawn(async move {
                reservation.grow_to(10 * MIB).await;
                finished.send(number).unwrap();
                sleep(SECOND).await;
            });
        }
        for expected in [3, 0, 1, 2] {
            let next = timeout(10 * SECOND, order.recv()).await;
            assert_eq!(next.expect("all finish"), Some(expected));
        }
    }

    #[tokio::test]
    async fn an_image_larger_than_the_whole_budget_still_gets_through() {
        let budget = Budget::new(MIB);
        let mut reservation = budget.reserve(100 * MIB).await;
        reservation.grow_to(101 * MIB).await;
        assert_eq!(budget.lock().exceeding, Some(0));
        reservation.settle(MIB / 2);
        assert_eq!((held(&budget), budget.lock().exceeding), (MIB / 2, None));
        drop(reservation);
        assert_eq!(held(&budget), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_wait_gives_everything_back() {
        let budget = Budget::new(8 * MIB);
        let first = budget.reserve(6 * MIB).await;
        let exceeds = budget.reserve(4 * MIB).await;
        assert!(timeout(SECOND, budget.reserve(4 * MIB)).await.is_err());
        drop(first);
        assert_eq!(held(&budget), 4 * MIB);
        drop(exceeds);
        assert_eq!((held(&budget), budget.lock().images.len()), (0, 0));
    }

    #[tokio::test]
    async fn requests_never_wait_and_leave_images_their_memory() {
        let budget = Budget::new(80 * MIB);
        let kept = try_reserve(&budget, 10 * MIB).expect("an eighth is kept for requests");
        let _image = budget.reserve(60 * MIB).await;
        let more = try_reserve(&budget, 10 * MIB).expect("it is free");
        assert!(try_reserve(&budget, 1).is_none() && try_reserve(&budget, usize::MAX).is_none());
        drop(more);
        let _exceeds = budget.reserve(60 * MIB).await;
        let waiting = timeout(Duration::ZERO, budget.reserve(MIB)).await;
        assert!(waiting.is_err());
        drop(kept);
        assert!(try_reserve(&budget, 10 * MIB).is_some(), "also while images wait");
    }

    #[tokio::test]
    async fn an_image_of_unknown_length_reserves_what_the_last_ones_took() {
        let budget = Budget::new(1024 * MIB);
        let mut unknown = budget.reserve_usual().await;
        assert_eq!(held(&budget), FIRST_USUAL_BYTES);
        unknown.grow_to(20 * MIB).await;
        unknown.settle(20 * MIB);
        drop(unknown);
        let large = budget.reserve_usual().await;
        assert_eq!(held(&budget), 20 * MIB);
        drop(large);
        for _ in 0..100 {
            budget.reserve_usual().await.settle(10);
        }
        let _small = budget.reserve_usual().await;
        assert_eq!(held(&budget), LEAST_USUAL_BYTES);
    }

    /// One image read in chunks of 32 KiB, then stored, which takes a second.
    async fn transfer(budget: &Budget, bytes: usize, length_is_known: bool) {
        let mut reservation = match length_is_known {
            true => budget.reserve(bytes).await,
            false => budget.reserve_usual().await,
        };
        for read in (0..=bytes).step_by(32 * 1024) {
            reservation.grow_to(read).await;
            yield_now().await;
        }
        reservation.settle(bytes);
        sleep(SECOND).await;
    }

    /// How long it takes until all images of one length are stored.
    async fn convoy(images: usize, bytes: usize, length_is_known: bool) -> Duration {
        let budget = Budget::new(128 * MIB);
        let start = Instant::now();
        let transfers: Vec<_> = (0..images)
            .map(|_| {
                let budget = budget.clone();
                tokio::spawn(async move { transfer(&budget, bytes, length_is_known).await })
            })
            .collect();
        for transfer in transfers {
            timeout(1000 * SECOND, transfer).await.expect("no image starves").unwrap();
        }
        assert_eq!(held(&budget), 0);
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn images_of_unknown_length_are_stored_as_fast_as_others() {
        // 14 of them fit into what is not kept for requests, and one may exceed it.
        assert_eq!(convoy(80, 8 * MIB, true).await.as_secs(), 6);
        assert_eq!(convoy(80, 8 * MIB, false).await.as_secs(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn images_larger_than_usual_are_late_by_few_waves_only() {
        for (bytes, waves) in [(10 * MIB, 7), (20 * MIB, 14), (40 * MIB, 27)] {
            assert_eq!(convoy(80, bytes, true).await.as_secs(), waves, "{bytes}");
            let unknown = convoy(80, bytes, false).await.as_secs();
            assert!(unknown <= waves + 6, "{bytes}: {unknown} against {waves}");
        }
    }

    proptest! {
        #[test]
        fn all_images_finish_within_the_budget_and_one_image(
            images in prop::collection::vec((0usize..30 * MIB, 0u64..3000, any::<bool>()), 1..60),
            budget in 1usize..64,
            requests in prop::collection::vec((0usize..MIB, 0u64..3000), 0..20),
        ) {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let total = budget * MIB;
                let budget = Budget::new(total);
                let largest = images.iter().map(|(bytes, ..)| *bytes).max().unwrap_or_default();
                let one_image = (largest + largest / 2).max(FIRST_USUAL_BYTES);
                let mut tasks = tokio::task::JoinSet::new();
                for (bytes, arrives, length_is_known) in images {
                    let budget = budget.clone();
                    tasks.spawn(async move {
                        sleep(Duration::from_millis(arrives)).await;
                        let peak = transfer_watched(&budget, bytes, length_is_known).await;
                        assert!(peak <= total + one_image, "{peak} > {total} + {one_image}");
                    });
                }
                for (bytes, arrives) in requests {
                    let budget = budget.clone();
                    tasks.spawn(async move {
                        sleep(Duration::from_millis(arrives)).await;
                        let reservation = try_reserve(&budget, bytes);
                        assert!(held(&budget) <= total + one_image);
                        sleep(SECOND).await;
                        drop(reservation);
                    });
                }
                let all = async { while let Some(done) = tasks.join_next().await { done.unwrap() } };
                timeout(10_000 * SECOND, all).await.expect("all finish");
                assert_eq!((held(&budget), budget.lock().images.len()), (0, 0));
            });
        }
    }

    /// Transfers an image in larger chunks. Returns the most memory that all holders held meanwhile.
    async fn transfer_watched(budget: &Budget, bytes: usize, length_is_known: bool) -> usize {
        let mut reservation = match length_is_known {
            true => budget.reserve(bytes).await,
            false => budget.reserve_usual().await,
        };
        let mut peak = held(budget);
        for read in (0..bytes).step_by(MIB / 2).chain([bytes]) {
            reservation.grow_to(read).await;
            peak = peak.max(held(budget));
            sleep(Duration::from_millis(1)).await;
        }
        reservation.settle(bytes);
        sleep(SECOND).await;
        peak
    }
}
