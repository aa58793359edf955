//! `iga health`: asks a running service whether it answers, for images that hold no shell and no client.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Sends `GET /health` over plain TCP.
///
/// # Errors
/// A sentence, where no 200 came within a few seconds.
pub fn ask(address: SocketAddr) -> Result<(), String> {
    let status = status_line(address).map_err(|error| {
        let why = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                format!("nothing came within {} s", LIMIT.as_secs())
            }
            _ => error.to_string(),
        };
        format!("No answer from http://{address}/health: {why}.")
    })?;
    match status.strip_prefix("HTTP/1.1 200") {
        Some(_) => Ok(()),
        None => Err(format!("http://{address}/health answered {status:?} instead of 200.")),
    }
}

/// The beginning of the answer, as far as its status.
fn status_line(address: SocketAddr) -> std::io::Result<String> {
    let end = Instant::now() + LIMIT;
    let mut socket = TcpStream::connect_timeout(&address, LIMIT)?;
    socket.set_write_timeout(Some(LIMIT))?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes())?;
    let (mut answer, mut length) = ([0; "HTTP/1.1 200".len()], 0);
    while length < answer.len() {
        let left = end.saturating_duration_since(Instant::now());
        // A limit of zero would be none at all.
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match socket.read(&mut answer[length..])? {
            0 => break,
            read => length += read,
        }
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Shorter than Docker's own limit for a probe, so that the sentence is seen.
const LIMIT: Duration = Duration::from_secs(3);
