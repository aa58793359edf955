//! The built binary as a process.

use crate::support::service::{BUCKET, client};
use iga_emulator::Emulator;
use serde_json::Value;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

/// A running `iga`, on a free port.
pub struct Process {
    pub child: Child,
    pub url: String,
    /// Reads the log all the time, because a process blocks when the pipe is full.
    logged: JoinHandle<Vec<Value>>,
}

impl Process {
    pub async fn start(emulator: &Emulator, settings: &[(&str, &str)]) -> Process {
        Process::of(command(emulator, settings).stdout(Stdio::piped()).spawn().unwrap()).await
    }

    /// A started `iga` whose output is piped, once it listens.
    pub async fn of(mut child: Child) -> Process {
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listening = loop {
            let line = lines.next_line().await.unwrap().expect("it listens before it ends");
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["message"] == "listening" {
                break line;
            }
        };
        let url = format!("http://{}", listening["address"].as_str().unwrap());
        Process { child, url, logged: tokio::spawn(logged(lines)) }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        assert!(
            std::process::Command::new("kill")
                .args([&format!("-{name}"), &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Lets it open so many files more than it has open now.
    pub fn limit_files(&self, more: usize) {
        let pid = self.child.id().expect("it runs");
        let is_free = |number: &u64| !Path::new(&format!("/proc/{pid}/fd/{number}")).exists();
        let limit = (0..).filter(is_free).nth(more).expect("there are more numbers");
        let mut prlimit = std::process::Command::new("prlimit");
        prlimit.args([format!("--pid={pid}"), format!("--nofile={limit}:{limit}")]);
        assert!(prlimit.status().unwrap().success());
    }

    /// Waits for its end, and returns what it logged after it listened.
    pub async fn end(mut self) -> (ExitStatus, Vec<Value>) {
        let logged = self.logged.await.unwrap();
        (self.child.wait().await.unwrap(), logged)
    }
}

async fn logged(mut lines: Lines<BufReader<ChildStdout>>) -> Vec<Value> {
    let mut logged = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        logged.push(serde_json::from_str(&line).expect("every line is JSON"));
    }
    logged
}

/// `iga` with exactly these settings and an empty environment otherwise.
pub fn command(emulator: &Emulator, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iga"));
    command.env_clear().current_dir(std::env::temp_dir()).kill_on_drop(true);
    command.envs([
        ("STORAGE_EMULATOR_HOST", emulator.url()),
        ("IGA_VERTEXAI_ENDPOINT", emulator.url()),
    ]);
    command.envs([("GCE_METADATA_HOST", emulator.host())]);
    command.envs([
        ("GCS_BUCKET_NAME", BUCKET),
        ("GCP_PROJECT_ID", "test-project"),
        ("GCP_LOCATION", "us-central1"),
    ]);
    command.envs([("IGA_HOST", "127.0.0.1"), ("PORT", "0")]);
    command.envs(settings.iter().copied());
    command
}

pub fn post(process: &Process, body: &Value) -> reqwest::RequestBuilder {
    let request = client().post(format!("{}/generate_image", process.url));
    request.header("content-type", "application/json").body(body.to_string())
}
