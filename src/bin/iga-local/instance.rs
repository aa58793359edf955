//! A second instance of the service: a real process of this program, to be killed.

use crate::hub::Hub;
use crate::observer::with_error;
use serde_json::{Value, json};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

pub struct Instance {
    process: Child,
    pub pid: u32,
    pub url: String,
}

impl Instance {
    /// Starts it on a free port, against an emulator that runs already.
    ///
    /// # Errors
    /// A sentence, if it does not listen in time.
    pub async fn start(emulator_url: &str, hub: Arc<Hub>) -> Result<Instance, String> {
        let program = std::env::current_exe().map_err(problem)?;
        let mut process = Command::new(program)
            .args(["serve", "--until-stdin-ends", "--emulator", emulator_url])
            .envs([("IGA_PORT", "0"), ("IGA_HOST", "127.0.0.1"), ("IGA_LOG_FORMAT", "json")])
            .env_remove("PORT")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(problem)?;
        let output = process.stdout.take().ok_or("The second instance has no output.")?;
        let mut lines = BufReader::new(output).lines();
        let address = timeout(START_WITHIN, listening(&mut lines)).await;
        let address = address.map_err(|_| "The second instance does not listen.")??;
        let pid = process.id().ok_or("The second instance has ended.")?;
        tokio::spawn(pass_on(lines, hub));
        Ok(Instance { process, pid, url: format!("http://{address}") })
    }

    /// Ends it with SIGKILL.
    pub async fn kill(mut self) -> Result<(), String> {
        self.process.kill().await.map_err(problem)
    }
}

fn problem(error: std::io::Error) -> String {
    format!("The second instance cannot be run: {error}.")
}

/// Waits for the log line with the address.
async fn listening(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String, String> {
    while let Some(line) = lines.next_line().await.map_err(problem)? {
        let line: Value = serde_json::from_str(&line).unwrap_or_default();
        if let (Some("listening"), Some(address)) =
            (line["message"].as_str(), line["address"].as_str())
        {
            return Ok(address.to_owned());
        }
    }
    Err("The second instance ended before it listened.".to_owned())
}

/// Passes on the lines about requests, until the process ends.
async fn pass_on(mut lines: Lines<BufReader<ChildStdout>>, hub: Arc<Hub>) {
    while let Ok(Some(line)) = lines.next_line().await {
        let line: Value = serde_json::from_str(&line).unwrap_or_default();
        if line["workflow_id"].is_string() && line["level"] != "DEBUG" {
            let message = line["message"].as_str().unwrap_or_default();
            hub.publish(&json!({
                "type": "line",
                "level": line["level"],
                "message": with_error(message, line["tags"]["error_type"].as_str()),
                "workflow": line["workflow_id"],
                "request": line["request_id"],
                "instance": "second",
            }));
        }
    }
}

const START_WITHIN: Duration = Duration::from_secs(60);
