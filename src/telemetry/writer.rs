//! Standard output for the log. A reader that stops reading never stops the service.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Writes lines at once while the output takes them. While it takes none, lines wait in a queue, which a thread
/// empties; when the queue is full, lines are dropped and counted.
#[derive(Clone)]
pub struct LogWriter(Arc<Shared>);

struct Shared {
    output: OwnedFd,
    /// Makes the line that tells how many lines were dropped.
    notice: Box<dyn Fn(u64) -> Vec<u8> + Send + Sync>,
    queue: Mutex<Queue>,
    emptied: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    dropped: u64,
    /// Only the thread writes while it exists.
    has_thread: bool,
}

impl LogWriter {
    /// `notice` makes the line that tells how many lines were dropped.
    pub fn new(
        output: OwnedFd,
        notice: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static,
    ) -> LogWriter {
        LogWriter(Arc::new(Shared {
            output,
            notice: Box::new(notice),
            queue: Mutex::default(),
            emptied: Condvar::new(),
        }))
    }

    /// Writes or queues one line; never waits.
    pub fn write(&self, line: Vec<u8>) {
        let mut queue = self.0.lock();
        if queue.lines.len() < QUEUE_LINES {
            queue.lines.push_back(line);
        } else {
            queue.dropped += 1;
        }
        if queue.has_thread {
            return;
        }
        while let Some(line) = queue.lines.front_mut() {
            let written = self.0.write_what_fits(line);
            if written < line.len() {
                line.drain(..written);
                queue.has_thread = self.start_thread().is_ok();
                return;
            }
            queue.lines.pop_front();
        }
    }

    /// Waits until all lines logged so far are written, or until `limit` has passed.
    pub fn flush(&self, limit: Duration) {
        let queue = self.0.lock();
        let _ = self.0.emptied.wait_timeout_while(queue, limit, |queue| queue.has_thread);
    }

    fn start_thread(&self) -> std::io::Result<()> {
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name("log".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || shared.empty_queue()).map(drop)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn empty_queue(&self) {
        loop {
            let line = {
                let mut queue = self.lock();
                let Some(line) = queue.lines.pop_front() else {
                    queue.has_thread = false;
                    self.emptied.notify_all();
                    return;
                };
                line
            };
            self.write_all(&line);
            let dropped = std::mem::take(&mut self.lock().dropped);
            if dropped > 0 {
                self.write_all(&(self.notice)(dropped));
            }
        }
    }

    /// Waits until the output has taken all bytes.
    fn write_all(&self, bytes: &[u8]) {
        let mut written = 0;
        while written < bytes.len() {
            self.is_writable(None);
            written += self.write_what_fits(&bytes[written..]);
        }
    }

    /// Writes until the output takes no more; returns how many bytes. If the output is closed, the service
    /// goes on without a log: all bytes count as written.
    fn write_what_fits(&self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() && self.is_writable(Some(Timespec::default())) {
            let end = bytes.len().min(written + ALWAYS_FITS);
            match rustix::io::write(&self.output, &bytes[written..end]) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return bytes.len(),
            }
        }
        written
    }

    /// Whether a write would not wait, or would fail at once.
    fn is_writable(&self, limit: Option<Timespec>) -> bool {
        let mut output = [PollFd::new(&self.output, PollFlags::OUT)];
        poll(&mut output, limit.as_ref()).is_ok_and(|ready| ready > 0)
    }
}

/// About a megabyte of ordinary lines.
const QUEUE_LINES: usize = 2048;
/// A pipe that is writable takes at least this much without waiting (`PIPE_BUF`).
const ALWAYS_FITS: usize = 4096;
const STACK_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeReader, Read, pipe};

    const LIMIT: Duration = Duration::from_secs(60);

    fn writer() -> (LogWriter, PipeReader) {
        let (reader, output) = pipe().unwrap();
        let notice = |count| format!("{count} dropped\n").into_bytes();
        (LogWriter::new(output.into(), notice), reader)
    }

    #[test]
    fn a_line_is_written_at_once_and_whole() {
        let (writer, mut reader) = writer();
        let long = format!("{}\n", "x".repeat(5 * ALWAYS_FITS));
        for line in ["first\n", &long, "last\n"] {
            writer.write(line.as_bytes().to_vec());
            assert!(!writer.0.lock().has_thread);
            let mut read = vec![0; line.len()];
            reader.read_exact(&mut read).unwrap();
            assert_eq!(String::from_utf8(read).unwrap(), line);
        }
    }

    #[test]
    fn lines_are_dropped_and_counted_while_the_reader_stops() {
        let (writer, mut reader) = writer();
        let line = |number: usize| format!("line {number:>4000}\n");
        let lines = QUEUE_LINES + 100;
        for number in 0..lines {
            writer.write(line(number).into_bytes());
        }
        let dropped = writer.0.lock().dropped;
        assert!((1..=100).contains(&dropped), "{dropped}");
        let read = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        writer.flush(LIMIT);
        writer.write(line(lines).into_bytes());
        assert!(!writer.0.lock().has_thread);
        drop(writer);
        let text = read.join().unwrap().unwrap();
        let (notices, kept): (Vec<_>, Vec<_>) =
            text.split_inclusive('\n').partition(|line| line.ends_with("dropped\n"));
        assert_eq!(notices, [format!("{dropped} dropped\n")]);
        let expected = (0..lines - dropped as usize).chain([lines]).map(line);
        assert!(kept.iter().map(|line| line.to_string()).eq(expected));
    }

    #[test]
    fn a_closed_output_is_ignored() {
        let (writer, reader) = writer();
        drop(reader);
        writer.write(vec![b'x'; 10 * ALWAYS_FITS]);
        let queue = writer.0.lock();
        assert!(queue.lines.is_empty() && !queue.has_thread);
    }
}
