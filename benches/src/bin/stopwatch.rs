//! From exec to the first success: starts a program, asks without pause until it answers 200, then ends it.
//!
//! `stopwatch health|picture PORT COMMAND…` prints milliseconds. The program must listen on that port of loopback.

use iga_benches::Args;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio, exit};
use std::time::{Duration, Instant};

fn main() {
    let mut args = Args::new("stopwatch health|picture PORT COMMAND…");
    let request = match args.text().as_str() {
        "picture" => PICTURE,
        _ => HEALTH,
    };
    let port = args.number() as u16;
    let mut command = Command::new(args.text());
    command.args(args.rest()).stdout(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn().expect("the program can be started");
    let answered = std::iter::repeat_with(|| ask(port, request))
        .take_while(|_| start.elapsed() < GIVE_UP)
        .find(|succeeded| *succeeded)
        .map(|_| start.elapsed());
    let _ = child.kill();
    let _ = child.wait();
    match answered {
        Some(took) => println!("{}", took.as_secs_f64() * 1e3),
        None => {
            eprintln!("no success within {} s", GIVE_UP.as_secs());
            exit(1)
        }
    }
}

fn ask(port: u16, request: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
        // The program that is waited for may want this core.
        std::thread::yield_now();
        return false;
    };
    let _ = stream.set_read_timeout(Some(GIVE_UP));
    let mut answer = [0; 12];
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer.ends_with(b" 200")
}

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

const PICTURE: &str = "POST /generate_image HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                       Content-Type: application/json\r\nContent-Length: 23\r\n\r\n{\"prompt\":\"lighthouse\"}";

const GIVE_UP: Duration = Duration::from_secs(60);
