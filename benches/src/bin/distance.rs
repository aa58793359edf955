//! A link with a round-trip time: moves the caller's network namespace away from a new one.
//!
//! `distance NUMBER RTT_MS COMMAND…` connects 10.77.NUMBER.1 in its own namespace with 10.77.NUMBER.2
//! in a new one and runs the command there. Each packet takes half of the round-trip time. The kernel
//! runs TCP on both ends, so handshakes, slow start and congestion windows are real. It needs
//! `/dev/net/tun`, the command `ip` and the right to administer its namespace.

use iga_benches::Args;
use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Result, Write};
use std::os::fd::AsRawFd;
use std::process::{Command, exit};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let mut args = Args::new("distance NUMBER RTT_MS COMMAND…");
    let number: u8 = args.positional();
    let delay = Duration::from_millis(args.positional()) / 2;
    let mut command = Command::new(args.positional::<String>());
    command.args(args.rest());

    let subnet = format!("10.77.{number}");
    let near = interface(&format!("near{number}"), &format!("{subnet}.1"), &format!("{subnet}.2"))?;
    // SAFETY: the process has one thread, and the call changes no memory.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(Error::last_os_error());
    }
    let far = interface("far", &format!("{subnet}.2"), &format!("{subnet}.1"))?;
    relay(near.try_clone()?, far.try_clone()?, delay);
    relay(far, near, delay);
    exit(command.status()?.code().unwrap_or(1))
}

/// Creates a network interface whose packets the file reads and writes.
fn interface(name: &str, address: &str, peer: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeros is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the file is open, and the request is an `ifreq` that ends with a zero byte.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) } != 0 {
        return Err(Error::last_os_error());
    }
    ip(&["address", "add", address, "peer", peer, "dev", name])?;
    ip(&["link", "set", name, "txqueuelen", "10000", "up"])?;
    Ok(file)
}

fn ip(words: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(words).status()?;
    if status.success() { Ok(()) } else { Err(Error::other(format!("ip {words:?}: {status}"))) }
}

/// Writes each packet of `from` into `to` after the delay, until one of them is gone.
fn relay(mut from: File, mut to: File, delay: Duration) {
    let (sender, receiver) = mpsc::channel::<(Instant, Box<[u8]>)>();
    thread::spawn(move || {
        let mut packet = [0; MTU];
        while let Ok(len) = from.read(&mut packet) {
            if sender.send((Instant::now() + delay, packet[..len].into())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, packet) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // The kernel refuses packets that it does not understand, as a router would.
            let _ = to.write(&packet);
        }
    });
}

const MTU: usize = 1500;
