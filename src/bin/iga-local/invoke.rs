//! One event, as under AWS Lambda.

use crate::announcement::{absolute, print};
use crate::cloud::{self, BUCKET};
use crate::progress::with_progress;
use clap::Args;
use iga::app::App;
use iga::{runtime, telemetry};
use iga_emulator::Emulator;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Args, Default)]
pub struct Invoke {
    /// File with an event: of a function URL, API Gateway or a load balancer, or a direct
    /// invocation; `-` for standard input.
    event: Option<PathBuf>,
    /// Send this prompt instead of an event from a file.
    #[arg(long, conflicts_with = "event")]
    prompt: Option<String>,
    /// Show the function's log lines too.
    #[arg(long)]
    logs: bool,
}

pub async fn run(args: Invoke, google: bool, dir: PathBuf) -> Result<ExitCode, String> {
    let (source, event) = event(&args)?;
    let (config, emulator) = match google {
        true => (cloud::google_config()?, None),
        false => {
            let emulator = cloud::start_for_one(Duration::ZERO, &dir).await?;
            (cloud::emulator_config(&emulator.url())?, Some(emulator))
        }
    };
    let app = App::new(config);
    let invoked = runtime::invoke(app.clone(), &event);
    let response = match args.logs {
        true => {
            telemetry::install(app.config.debug, app.config.log_format);
            invoked.await?
        }
        false => with_progress("Generating an image", invoked).await?,
    };
    let (status, body) = match response["body"].as_str() {
        Some(text) => {
            let body = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
            (response["statusCode"].to_string(), body)
        }
        None => ("of a direct invocation".to_owned(), response),
    };
    let mut report = format!(
        "Event     {source}
Response  {status}
{body:#}
"
    );
    if let (Some(emulator), Some(uri)) = (emulator, body["image_url"].as_str()) {
        report += &object(&emulator, &dir, uri)?;
    }
    print(&report);
    Ok(if body["error_code"].is_null() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Describes the stored object as the emulator has it; this proves the response.
fn object(emulator: &Emulator, dir: &Path, uri: &str) -> Result<String, String> {
    let name = uri.strip_prefix(&format!("gs://{BUCKET}/")).unwrap_or(uri);
    let object =
        emulator.object(BUCKET, name).ok_or(format!("{uri} is not in the emulator's bucket."))?;
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    Ok(format!(
        "Object    {uri}\n          {} bytes, {}\nModel     {}\nImage     {}\n",
        text(&object.metadata["size"]),
        text(&object.metadata["contentType"]),
        text(&object.metadata["metadata"]["model"]),
        absolute(&dir.join(BUCKET).join(name))
    ))
}

/// The source of the event and its JSON.
fn event(args: &Invoke) -> Result<(String, String), String> {
    match (&args.event, &args.prompt) {
        (Some(path), _) if path.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| format!("The event on standard input cannot be read: {error}."))?;
            Ok(("standard input".to_owned(), text))
        }
        (Some(path), _) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                format!("The event {} cannot be read: {error}.", path.display())
            })?;
            Ok((path.display().to_string(), text))
        }
        (None, None) => Ok(("events/generate_image.json".to_owned(), EXAMPLE.to_owned())),
        (None, Some(prompt)) => {
            let mut event: Value =
                serde_json::from_str(EXAMPLE).map_err(|error| error.to_string())?;
            event["body"] = json!({"prompt": prompt}).to_string().into();
            Ok(("your prompt".to_owned(), event.to_string()))
        }
    }
}

const EXAMPLE: &str = include_str!("../../../events/generate_image.json");
