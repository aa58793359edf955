//! A panic of one piece of work, as a value.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::Poll;

/// The output of `work`; `None` if it panics.
pub async fn unless_it_panics<T>(mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    std::future::poll_fn(|context| {
        let poll = AssertUnwindSafe(|| work.as_mut().poll(context));
        match std::panic::catch_unwind(poll) {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    #[tokio::test]
    async fn a_panic_ends_the_work_and_not_its_task() {
        assert_eq!(unless_it_panics(pin!(async { 7 })).await, Some(7));
        let panics = async {
            tokio::task::yield_now().await;
            panic!("a bug")
        };
        assert_eq!(unless_it_panics::<()>(pin!(panics)).await, None);
    }
}
