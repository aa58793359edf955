//! Few images in transfer at once while each takes little time.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The order of images that could be in transfer at once.
///
/// The bytes of a few images stay in the processor's caches until they are uploaded; those of many do not, which
/// costs half as much CPU again. So an image waits for its turn while others end in quick succession. If none
/// ends for a moment, the network is the limit, and waiting would only cost time.
#[derive(Debug, Clone)]
pub struct Turns {
    free: Arc<Semaphore>,
    /// How many images have ended.
    ended: Arc<AtomicUsize>,
}

/// Ends on drop.
#[derive(Debug)]
pub struct Turn {
    ended: Arc<AtomicUsize>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns { free: Arc::new(Semaphore::new(AT_ONCE)), ended: Arc::default() }
    }
}

impl Turns {
    /// Waits for a turn: at most 300 ms, and only 20 ms if no other image ends meanwhile.
    pub async fn begin(&self) -> Turn {
        let mut permit = pin!(Arc::clone(&self.free).acquire_owned());
        let mut ended = self.ended.load(Ordering::Relaxed);
        for _ in 0..CHECKS {
            if let Ok(permit) = timeout(CHECK_AFTER, permit.as_mut()).await {
                return self.turn(permit.ok());
            }
            let before = std::mem::replace(&mut ended, self.ended.load(Ordering::Relaxed));
            if before == ended {
                break;
            }
        }
        self.turn(None)
    }

    fn turn(&self, permit: Option<OwnedSemaphorePermit>) -> Turn {
        Turn { ended: Arc::clone(&self.ended), _permit: permit }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

const AT_ONCE: usize = 2;
const CHECK_AFTER: Duration = Duration::from_millis(20);
const CHECKS: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    /// Transfers images that take `each`; returns how many were in transfer at once and how long all took.
    async fn transfer(images: usize, each: Duration) -> (usize, Duration) {
        let (turns, in_transfer) = (Turns::default(), Arc::new(AtomicUsize::new(0)));
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..images {
            let (turns, in_transfer) = (turns.clone(), Arc::clone(&in_transfer));
            tasks.spawn(async move {
                let _turn = turns.begin().await;
                let at_once = in_transfer.fetch_add(1, Ordering::Relaxed) + 1;
                sleep(each).await;
                in_transfer.fetch_sub(1, Ordering::Relaxed);
                at_once
            });
        }
        let most = tasks.join_all().await.into_iter().max().unwrap_or_default();
        (most, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn quick_images_are_transferred_a_few_at_once() {
        let each = Duration::from_millis(5);
        assert_eq!(transfer(80, each).await, (AT_ONCE, each * 80usize.div_ceil(AT_ONCE) as u32));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_images_wait_for_a_moment_only() {
        let each = Duration::from_secs(1);
        let (most, took) = transfer(80, each).await;
        assert!(most == 80 && took <= each + 2 * CHECK_AFTER, "{most} {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_image_waits_longer_than_the_limit() {
        let turns = Turns::default();
        let mut others = Vec::new();
        for _ in 0..AT_ONCE {
            others.push(turns.begin().await);
        }
        let ending = tokio::spawn({
            let turns = turns.clone();
            async move {
                loop {
                    drop(turns.turn(None));
                    sleep(CHECK_AFTER / 2).await;
                }
            }
        });
        let start = Instant::now();
        turns.begin().await;
        assert!(start.elapsed() <= CHECK_AFTER * (CHECKS as u32 + 1), "{:?}", start.elapsed());
        ending.abort();
    }
}
