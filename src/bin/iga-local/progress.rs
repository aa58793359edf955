//! Shows on a terminal that something takes time.

use std::future::Future;
use std::io::IsTerminal;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, interval_at};

/// Waits for `work`. From the first second on, a line on standard error counts the seconds, if that is
/// a terminal.
pub async fn with_progress<T>(what: &str, work: impl Future<Output = T>) -> T {
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let mut work = pin!(work);
    let start = Instant::now();
    let mut seconds = interval_at(start + SECOND, SECOND);
    loop {
        tokio::select! {
            result = work.as_mut() => {
                if start.elapsed() >= SECOND {
                    eprint!("\r{CLEAR_LINE}");
                }
                return result;
            }
            _ = seconds.tick() => eprint!("\r{what}: {} s", start.elapsed().as_secs()),
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
const CLEAR_LINE: &str = "\u{1b}[K";
