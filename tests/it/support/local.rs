//! The built `iga-local` as a process.

use std::path::Path;
use std::process::Stdio;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// `iga-local` in a folder, with an environment that holds only a path and a free port.
pub fn iga_local(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iga-local"));
    command.env_clear().current_dir(folder).kill_on_drop(true).stdin(Stdio::null());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("IGA_PORT", "0");
    command
}

/// A running `iga-local serve`.
pub struct Playground {
    _process: Child,
    pub url: String,
    pub emulator: String,
    /// What it printed before its first log line.
    pub announcement: String,
    pub folder: TempDir,
}

impl Playground {
    /// Waits until it listens.
    pub async fn start(options: &[&str], settings: &[(&str, &str)]) -> Playground {
        let folder = TempDir::new().unwrap();
        let mut command = iga_local(folder.path());
        command.arg("serve").args(options).envs(settings.iter().copied());
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut announcement = String::new();
        loop {
            let line = lines.next_line().await.unwrap().expect("it listens before it ends");
            match line.contains("\"message\":\"listening\"") {
                true => break,
                false => announcement += &format!("{line}\n"),
            }
        }
        // A process blocks when the pipe is full.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let place = |name: &str| {
            let line = announcement.lines().find_map(|line| line.trim().strip_prefix(name));
            line.map(|rest| rest.trim().trim_end_matches('/').to_owned())
        };
        let url = place("Playground").expect("it prints the URL");
        let emulator = place("Emulator").expect("it prints the emulator's URL");
        Playground { _process: process, url, emulator, announcement, folder }
    }
}
