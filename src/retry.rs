//! Retries: how often, how long to wait, and when to stop.

use crate::error::Error;
use backon::{BackoffBuilder, ExponentialBuilder, Retryable};
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;

/// A failed attempt, and whether another one can help.
#[derive(Debug)]
pub struct Failure {
    pub error: Error,
    pub again: Again,
}

/// Whether and when to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    Never,
    /// After the back-off, or after the error's `retry_after` if that is longer.
    Later,
}

impl Failure {
    pub fn never(error: Error) -> Failure {
        Failure { error, again: Again::Never }
    }

    pub fn later(error: Error) -> Failure {
        Failure { error, again: Again::Later }
    }
}

/// Calls `attempt` at most [`TRIES`] times, with exponential, jittered waits from `first_wait` on.
///
/// The attempt gets its number, from 1. A wait that would end past the deadline is not begun.
///
/// # Errors
/// The error of the last attempt.
pub async fn until<T, F>(
    deadline: Instant,
    first_wait: Duration,
    mut attempt: impl FnMut(usize) -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut number = 0;
    let next = || {
        number += 1;
        attempt(number)
    };
    next.retry(backoff(first_wait))
        .when(|failure: &Failure| failure.again == Again::Later)
        .adjust(|failure, wait| {
            let wait = wait?.max(failure.error.retry_after.unwrap_or_default());
            (wait < deadline.saturating_duration_since(Instant::now())).then_some(wait)
        })
        .notify(|failure, wait| {
            tracing::debug!(wait_ms = wait.as_millis() as u64, "trying again: {}", failure.error);
        })
        .await
        .map_err(|failure| failure.error)
}

/// The waits between [`TRIES`] attempts.
pub fn waits(first_wait: Duration) -> impl Iterator<Item = Duration> + Send {
    backoff(first_wait).build()
}

fn backoff(first_wait: Duration) -> ExponentialBuilder {
    ExponentialBuilder::default().with_min_delay(first_wait).with_jitter().with_max_times(TRIES - 1)
}

/// The end of a try that begins now and may take `limit`, but not longer than the deadline.
pub fn within(deadline: Instant, limit: Duration) -> Instant {
    deadline.min(Instant::now() + limit)
}

/// The most attempts.
pub const TRIES: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const SECOND: Duration = Duration::from_secs(1);

    fn error() -> Error {
        Kind::VertexApi.because("no")
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_after_the_last_try_with_growing_waits() {
        let start = Instant::now();
        let mut starts = Vec::new();
        let result: Result<(), _> = until(start + 60 * SECOND, SECOND, |_| {
            starts.push(start.elapsed());
            async { Err(Failure::later(error())) }
        })
        .await;
        assert!(result.is_err());
        assert_eq!(starts.len(), TRIES);
        assert!(starts[1] >= SECOND && starts[2] - starts[1] >= 2 * SECOND, "{starts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hopeless_failure_is_not_tried_again() {
        let mut tries = 0;
        let result: Result<(), _> = until(Instant::now() + 60 * SECOND, SECOND, |_| {
            tries += 1;
            async { Err(Failure::never(error())) }
        })
        .await;
        assert!(result.is_err() && tries == 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_that_cannot_finish_is_not_begun() {
        let start = Instant::now();
        let result: Result<(), _> = until(start + 10 * SECOND, SECOND, |_| async {
            Err(Failure::later(error().retry_after(11 * SECOND)))
        })
        .await;
        assert!(result.is_err());
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_retry_after_is_not_waited_for() {
        let start = Instant::now();
        let result: Result<(), _> = until(start + 10 * SECOND, SECOND, |_| async {
            Err(Failure::later(error().retry_after(Duration::MAX)))
        })
        .await;
        assert!(result.is_err());
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_honoured() {
        let start = Instant::now();
        let result = until(start + 60 * SECOND, SECOND, |number| async move {
            if number == 1 {
                Err(Failure::later(error().retry_after(7 * SECOND)))
            } else {
                Ok(number)
            }
        })
        .await;
        assert_eq!(result.unwrap(), 2);
        assert_eq!(start.elapsed().as_secs(), 7);
    }
}
