//! Standard output for the log. A reader that stops reading never stops the service.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A queue of lines and the thread that writes them. When the queue is full, lines are dropped and counted.
#[derive(Clone)]
pub struct LogWriter {
    lines: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    written: Arc<Mutex<Receiver<()>>>,
}

impl LogWriter {
    /// `notice` makes the line that tells how many lines were dropped.
    pub fn new(
        mut output: impl Write + Send + 'static,
        notice: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> std::io::Result<LogWriter> {
        let (lines, queue) = sync_channel::<Vec<u8>>(QUEUE_LINES);
        let (progress, written) = sync_channel(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = Arc::clone(&dropped);
        std::thread::Builder::new().name("log".to_owned()).stack_size(STACK_BYTES).spawn(
            move || {
                for line in queue {
                    if line.is_empty() {
                        let _ = progress.try_send(());
                        continue;
                    }
                    // If the output is closed, the service goes on without a log.
                    let _ = output.write_all(&line);
                    let count = lost.swap(0, Ordering::Relaxed);
                    if count > 0 {
                        let _ = output.write_all(&notice(count));
                    }
                }
            },
        )?;
        Ok(LogWriter { lines, dropped, written: Arc::new(Mutex::new(written)) })
    }

    /// Queues one line; never waits.
    pub fn write(&self, line: Vec<u8>) {
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all lines queued so far are written, or until `limit` has passed.
    pub fn flush(&self, limit: Duration) {
        let end = Instant::now() + limit;
        // An empty line makes the thread report that it has written everything before it.
        while self.lines.try_send(Vec::new()).is_err() {
            if Instant::now() >= end {
                return;
            }
            std::thread::sleep(RETRY_FLUSH);
        }
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = written.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

/// About a megabyte of ordinary lines.
const QUEUE_LINES: usize = 2048;
const STACK_BYTES: usize = 64 * 1024;
const RETRY_FLUSH: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    /// An output whose every write waits for a permit.
    struct Gate {
        permits: Receiver<()>,
        out: Sender<String>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.permits.recv().map_err(std::io::Error::other)?;
            let _ = self.out.send(String::from_utf8(bytes.to_vec()).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_dropped_and_counted_while_the_reader_stops() {
        let (permit, permits) = channel();
        let (out, read) = channel();
        let notice = |count| format!("{count} dropped").into_bytes();
        let writer = LogWriter::new(Gate { permits, out }, notice).unwrap();
        // One line may be with the thread already, so one more than the queue holds may fit.
        for number in 0..QUEUE_LINES + 101 {
            writer.write(format!("line {number}").into_bytes());
        }
        let dropped = writer.dropped.load(Ordering::Relaxed);
        assert!((100..=101).contains(&dropped), "{dropped}");
        for _ in 0..QUEUE_LINES + 2 {
            permit.send(()).unwrap();
        }
        drop(permit);
        drop(writer);
        let lines: Vec<_> = read.iter().collect();
        assert_eq!(lines[..2], ["line 0".to_owned(), format!("{dropped} dropped")]);
        assert!(lines.contains(&format!("line {}", QUEUE_LINES - 1)));
    }
}
