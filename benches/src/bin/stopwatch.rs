//! Measures the time from `exec` to the first success: starts a program, repeats a request without a pause until the
//! response is 200, then kills the program.
//!
//! `stopwatch health|image PORT COMMAND…` prints milliseconds. The program must listen on that port of 127.0.0.1.

use iga_benches::Args;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio, exit};
use std::time::{Duration, Instant};

fn main() {
    let mut args = Args::new("stopwatch health|image PORT COMMAND…");
    let request = match args.positional::<String>().as_str() {
        "image" => IMAGE,
        _ => HEALTH,
    };
    let port = args.positional();
    let mut command = Command::new(args.positional::<String>());
    command.args(args.rest()).stdout(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn().expect("the program starts");
    let first_success = std::iter::repeat_with(|| succeeds(port, request))
        .take_while(|_| start.elapsed() < TIMEOUT)
        .find(|succeeded| *succeeded)
        .map(|_| start.elapsed());
    let _ = child.kill();
    let _ = child.wait();
    match first_success {
        Some(duration) => println!("{}", duration.as_secs_f64() * 1e3),
        None => {
            eprintln!("no success within {} s", TIMEOUT.as_secs());
            exit(1)
        }
    }
}

fn succeeds(port: u16, request: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
        // The program under test may need this core.
        std::thread::yield_now();
        return false;
    };
    let _ = stream.set_read_timeout(Some(TIMEOUT));
    let mut status_line = [0; 12];
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut status_line).is_ok()
        && status_line.ends_with(b" 200")
}

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

const IMAGE: &str = "POST /generate_image HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                       Content-Type: application/json\r\nContent-Length: 23\r\n\r\n{\"prompt\":\"lighthouse\"}";

const TIMEOUT: Duration = Duration::from_secs(60);
