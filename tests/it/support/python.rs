//! The caller CPOA: its retry loop in Python (`cpoa.py`).

use crate::support::process::Process;
use std::ffi::OsString;
use tokio::process::Command;

/// The Python interpreter that has the package `requests`.
pub fn python() -> OsString {
    std::env::var_os("IGA_TEST_PYTHON").unwrap_or(OsString::from("python3"))
}

/// The result of a run of `cpoa.py`.
pub struct Outcome {
    pub image_url: Option<String>,
    /// One line for each request that failed.
    pub complaints: Vec<String>,
}

/// Runs `cpoa.py` with CPOA's times divided by `factor`.
pub async fn ask(process: &Process, prompt: &str, factor: u32) -> Outcome {
    ask_each(&process.url, prompt, factor).await
}

/// Like `ask`, for several services in turn; `urls` is separated by commas.
pub async fn ask_each(urls: &str, prompt: &str, factor: u32) -> Outcome {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/cpoa.py");
    let mut command = Command::new(python());
    command
        .args([script, urls, prompt, &factor.to_string()])
        .envs([("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1")]);
    let output = command.kill_on_drop(true).output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome {
        image_url: output.status.success().then(|| text(output.stdout).trim().to_owned()),
        complaints: text(output.stderr).lines().map(str::to_owned).collect(),
    }
}
