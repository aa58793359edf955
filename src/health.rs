//! `iga health`: checks a running service, for container images without a shell or an HTTP client.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Sends `GET /health` over plain TCP.
///
/// # Errors
/// A sentence, if no 200 arrived within a few seconds.
pub fn ask(address: SocketAddr) -> Result<(), String> {
    let status = status_line(address).map_err(|error| {
        let why = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                format!("nothing arrived within {} s", LIMIT.as_secs())
            }
            _ => error.to_string(),
        };
        format!("No response from http://{address}/health: {why}.")
    })?;
    match status.strip_prefix("HTTP/1.1 200") {
        Some(_) => Ok(()),
        None => Err(format!("http://{address}/health answered {status:?} instead of 200.")),
    }
}

/// The beginning of the response, up to its status.
fn status_line(address: SocketAddr) -> std::io::Result<String> {
    let end = Instant::now() + LIMIT;
    let mut socket = TcpStream::connect_timeout(&address, LIMIT)?;
    socket.set_write_timeout(Some(LIMIT))?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes())?;
    let mut head = [0; "HTTP/1.1 200".len()];
    let mut length = 0;
    while length < head.len() {
        let left = end.saturating_duration_since(Instant::now());
        // A timeout of zero would mean no timeout.
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match socket.read(&mut head[length..])? {
            0 => break,
            read => length += read,
        }
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(String::from_utf8_lossy(&head[..length]).into_owned())
}

/// Shorter than Docker's limit for a probe, so that the sentence is seen.
const LIMIT: Duration = Duration::from_secs(3);
