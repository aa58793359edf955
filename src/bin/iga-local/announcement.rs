//! What `serve` prints once it listens.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

/// Where a person and a program find the service.
pub fn announce(service: SocketAddr, emulator: &str, dir: Option<&Path>) {
    let url = service_url(service);
    let mut text = "IGA with the emulator".to_owned();
    if let Some(dir) = dir {
        text += &format!(", images under {}.\n  Playground  {url}/", absolute(dir));
    }
    text += &format!(
        "\n  Emulator    {emulator}\n  Try         curl {url}/generate_image \
         -H 'Content-Type: application/json' -d '{{\"prompt\": \"a red fox\"}}'\n"
    );
    print(&text);
}

/// The URL by which this machine reaches a listener.
pub fn service_url(listener: SocketAddr) -> String {
    format!("http://{}", iga::config::reachable(listener))
}

/// Prints to standard output and ignores a closed pipe.
pub fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

pub fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or(path.to_owned()).display().to_string()
}
