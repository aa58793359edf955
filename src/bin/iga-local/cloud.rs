//! Google's services as the function uses them here: an emulator of this process, an emulator that
//! runs already, or the real ones.

use iga::config::Config;
use iga_emulator::{Emulator, Options};
use std::path::Path;
use std::time::Duration;

/// Starts an emulator that stores objects under `dir`.
pub async fn start(options: Options, dir: &Path) -> Result<Emulator, String> {
    check_directory(dir)?;
    let options = Options { directory: Some(dir.to_owned()), ..options };
    Emulator::start(options).await.map_err(|error| format!("The emulator cannot start: {error}."))
}

/// An emulator for one function, whose generations take this long.
pub async fn start_for_one(latency: Duration, dir: &Path) -> Result<Emulator, String> {
    let options = Options { buckets: vec![BUCKET.to_owned()], latency, ..Options::default() };
    start(options, dir).await
}

/// Creates the directory and a file in it, so that a directory that cannot be used is named before
/// anything else.
fn check_directory(dir: &Path) -> Result<(), String> {
    let probe = dir.join(format!(".iga-local-{}", std::process::id()));
    let result = std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&probe, ""))
        .and_then(|()| std::fs::remove_file(&probe));
    result.map_err(|error| {
        format!("The folder {} (--dir) cannot be used for images: {error}.", dir.display())
    })
}

/// The settings of the environment.
pub fn google_config() -> Result<Config, String> {
    Config::from_env().map_err(|problems| problems.to_string())
}

/// The settings of the environment, with an emulator in place of Google.
pub fn emulator_config(emulator_url: &str) -> Result<Config, String> {
    let environment = |name: &str| std::env::var(name).ok();
    let host = emulator_url.trim_start_matches("http://").to_owned();
    let config = Config::from_vars(|name| match name {
        "STORAGE_EMULATOR_HOST" | "IGA_VERTEXAI_ENDPOINT" => Some(emulator_url.to_owned()),
        "GCE_METADATA_HOST" => Some(host.clone()),
        "GCS_BUCKET_NAME" => Some(BUCKET.to_owned()),
        "IGA_VERTEXAI_PROJECT_ID" => Some("iga-local".to_owned()),
        "GOOGLE_APPLICATION_CREDENTIALS" | "HOME" | "K_SERVICE" | "AWS_LAMBDA_RUNTIME_API" => None,
        "GCP_LOCATION" => environment(name).or(Some("us-central1".to_owned())),
        "IGA_HOST" => environment(name).or(Some("127.0.0.1".to_owned())),
        _ => environment(name),
    });
    config.map_err(|problems| problems.to_string())
}

pub const BUCKET: &str = "iga-images";
