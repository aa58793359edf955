//! The memory budget that caps all in-flight images.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The memory that all images in transfer may hold together.
///
/// A reservation that does not fit waits. Reservations that wait for each other cannot wait for ever: one at a
/// time may exceed the budget, so at most the budget and one image are held.
#[derive(Debug, Clone)]
pub struct Budget {
    units: Arc<Semaphore>,
    overdraft: Arc<Semaphore>,
    total_units: u32,
}

/// One image's part of the [`Budget`], given back on drop.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    held: Option<OwnedSemaphorePermit>,
    held_units: u32,
    overdraft: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub fn new(bytes: usize) -> Budget {
        let total_units = units(bytes).max(1);
        Budget {
            units: Arc::new(Semaphore::new(total_units as usize)),
            overdraft: Arc::new(Semaphore::new(1)),
            total_units,
        }
    }

    /// Waits until `bytes` are free and reserves them.
    pub async fn reserve(&self, bytes: usize) -> Reservation {
        let mut reservation =
            Reservation { budget: self.clone(), held: None, held_units: 0, overdraft: None };
        reservation.grow_to(bytes).await;
        reservation
    }
}

impl Reservation {
    /// Waits until the reservation covers `bytes`; returns at once if it does already.
    pub async fn grow_to(&mut self, bytes: usize) {
        let wanted = units(bytes).saturating_sub(self.held_units);
        if wanted == 0 || self.overdraft.is_some() {
            return;
        }
        let more = Arc::clone(&self.budget.units).acquire_many_owned(wanted);
        let overdraft = Arc::clone(&self.budget.overdraft).acquire_owned();
        tokio::select! {
            biased;
            permit = more, if self.held_units + wanted <= self.budget.total_units => {
                self.take(permit.expect("the budget is never closed"), wanted);
            }
            permit = overdraft => self.overdraft = Some(permit.expect("the budget is never closed")),
        }
    }

    fn take(&mut self, permit: OwnedSemaphorePermit, units: u32) {
        self.held_units += units;
        match &mut self.held {
            Some(held) => held.merge(permit),
            held => *held = Some(permit),
        }
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// Reservations grow in steps of this size, so that reading does not queue for every chunk.
const UNIT_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::task::yield_now;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_reservation_that_does_not_fit_waits_until_memory_is_given_back() {
        let budget = Budget::new(4 * UNIT_BYTES);
        let first = budget.reserve(3 * UNIT_BYTES).await;
        let _over = budget.reserve(2 * UNIT_BYTES).await;
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { drop(budget.reserve(2 * UNIT_BYTES).await) }
        });
        yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn reservations_that_wait_for_each_other_finish_one_after_the_other() {
        let budget = Budget::new(2 * UNIT_BYTES);
        let mut reservations = Vec::new();
        for _ in 0..2 {
            reservations.push(budget.reserve(UNIT_BYTES).await);
        }
        let (finished, mut order) = tokio::sync::mpsc::unbounded_channel();
        for (number, mut reservation) in reservations.into_iter().enumerate() {
            let finished = finished.clone();
            tokio::spawn(async move {
                reservation.grow_to(10 * UNIT_BYTES).await;
                finished.send(number).unwrap();
            });
        }
        for expected in 0..2 {
            let next = timeout(Duration::from_secs(1), order.recv()).await;
            assert_eq!(next.expect("both finish"), Some(expected));
        }
    }

    #[tokio::test]
    async fn an_image_larger_than_the_whole_budget_still_gets_through() {
        let budget = Budget::new(UNIT_BYTES);
        let reservation = budget.reserve(100 * UNIT_BYTES).await;
        assert!(reservation.overdraft.is_some());
    }
}
