//! The function on a developer's machine: one event, or the whole service, against the embedded
//! emulator.

use clap::{Args, Parser, Subcommand};
use iga::app::App;
use iga::config::{self, Config};
use iga::google::proxy;
use iga::{runtime, telemetry};
use iga_emulator::{Emulator, Options};
use serde_json::{Value, json};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Runs IGA on this machine. Without a command: invokes it once with an example event.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Use the real clouds, with the settings of the environment and `.env`, instead of the
    /// emulator.
    #[arg(long, global = true)]
    google: bool,
    /// The folder in which the emulator stores objects, as DIR/BUCKET/OBJECT.
    #[arg(long, global = true, default_value = "images")]
    dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Handles one event, as under AWS Lambda, and shows the response and the stored object.
    Invoke(Invoke),
    /// Serves HTTP on IGA_PORT, as on Cloud Run.
    Serve,
    /// Runs only the emulator, for any client; prints its address first.
    Emulator(EmulatorArgs),
}

#[derive(Args)]
struct Invoke {
    /// File with an event: of a function URL, API Gateway or a load balancer, or a direct
    /// invocation.
    event: Option<PathBuf>,
    /// Send this prompt instead of an event from a file.
    #[arg(long, conflicts_with = "event")]
    prompt: Option<String>,
    /// Show the function's log lines too.
    #[arg(long)]
    logs: bool,
}

#[derive(Args)]
struct EmulatorArgs {
    /// TCP port on this machine; 0 chooses a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// How long a generation takes, in milliseconds.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// A bucket that exists.
    #[arg(long, default_value = BUCKET)]
    bucket: String,
    /// A retired model to serve all the same; may be given several times.
    #[arg(long, value_name = "MODEL")]
    revive: Vec<String>,
    /// Let Cloud Storage accept requests without credentials, as clients send them with
    /// STORAGE_EMULATOR_HOST.
    #[arg(long)]
    anonymous: bool,
    /// Accept any number of changes of an object; Cloud Storage takes about one a second.
    #[arg(long)]
    unlimited_mutations: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::report_panics();
    match cli.google {
        false => stay_on_this_machine(),
        true => {
            if let Err(problem) = config::load_env_file() {
                eprintln!("{problem}");
                return ExitCode::FAILURE;
            }
            let (config, _) = Config::read(&|name| std::env::var(name).ok());
            // SAFETY: no other thread has been started yet.
            unsafe { proxy::exempt_token_sources(&config.credentials) };
        }
    }
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result =
        tokio.map_err(|error| error.to_string()).and_then(|tokio| tokio.block_on(run(cli)));
    match result {
        Ok(code) => code,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Keeps libraries, which read these variables themselves, from other metadata servers and from
/// proxies.
fn stay_on_this_machine() {
    // SAFETY: no other thread runs yet.
    unsafe {
        std::env::remove_var("GCE_METADATA_HOST");
        std::env::set_var("NO_PROXY", "127.0.0.1");
    }
}

async fn run(cli: Cli) -> Result<ExitCode, String> {
    let Cli { command, google, dir } = cli;
    match command {
        Some(Command::Emulator(args)) => emulate(args, dir).await,
        Some(Command::Serve) => serve(google, dir).await,
        Some(Command::Invoke(args)) => invoke(args, google, dir).await,
        None => invoke(Invoke { event: None, prompt: None, logs: false }, google, dir).await,
    }
}

async fn emulate(args: EmulatorArgs, dir: PathBuf) -> Result<ExitCode, String> {
    let defaults = with_directory(dir);
    let options = Options {
        addr: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), args.port),
        latency: Duration::from_millis(args.latency_ms),
        buckets: vec![args.bucket],
        revive: args.revive,
        anonymous: args.anonymous,
        mutation_interval: defaults.mutation_interval.filter(|_| !args.unlimited_mutations),
        ..defaults
    };
    let emulator = start(options).await?;
    print(&format!("{}\n", emulator.url()));
    tokio::signal::ctrl_c().await.map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(google: bool, dir: PathBuf) -> Result<ExitCode, String> {
    let (app, emulator) = app(google, &dir).await?;
    telemetry::install(app.config.debug, app.config.log_format);
    if emulator.is_some() {
        print(&format!(
            "IGA with the emulator, images under {}. Try:\n  \
             curl http://127.0.0.1:{}/generate_image -H 'Content-Type: application/json' \
             -d '{{\"prompt\": \"a red fox\"}}'\n",
            absolute(&dir),
            app.config.port
        ));
    }
    runtime::run(app).await?;
    Ok(ExitCode::SUCCESS)
}

async fn invoke(args: Invoke, google: bool, dir: PathBuf) -> Result<ExitCode, String> {
    let (source, event) = event(&args)?;
    let (app, emulator) = app(google, &dir).await?;
    if args.logs {
        telemetry::install(app.config.debug, app.config.log_format);
    }
    let bucket = app.config.bucket.clone();
    let response = runtime::invoke(app, &event).await?;
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
        report += &object(&emulator, &dir, &bucket, uri)?;
    }
    print(&report);
    Ok(if body["error_code"].is_null() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Describes the stored object as the emulator has it; this proves the response.
fn object(emulator: &Emulator, dir: &Path, bucket: &str, uri: &str) -> Result<String, String> {
    let name = uri.strip_prefix(&format!("gs://{bucket}/")).unwrap_or(uri);
    let object =
        emulator.object(bucket, name).ok_or(format!("{uri} is not in the emulator's bucket."))?;
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    Ok(format!(
        "Object    {uri}\n          {} bytes, {}\nModel     {}\nImage     {}\n",
        text(&object.metadata["size"]),
        text(&object.metadata["contentType"]),
        text(&object.metadata["metadata"]["model"]),
        absolute(&dir.join(bucket).join(name))
    ))
}

/// Prints to standard output and ignores a closed pipe.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// The source of the event and its JSON.
fn event(args: &Invoke) -> Result<(String, String), String> {
    match (&args.event, &args.prompt) {
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

/// The service, and the emulator that it uses unless it uses the real clouds.
async fn app(google: bool, dir: &Path) -> Result<(Arc<App>, Option<Emulator>), String> {
    let environment = |name: &str| std::env::var(name).ok();
    if google {
        let config = Config::from_env().map_err(|problems| problems.to_string())?;
        return Ok((App::new(config), None));
    }
    let emulator =
        start(Options { buckets: vec![BUCKET.to_owned()], ..with_directory(dir.to_owned()) })
            .await?;
    let config = Config::from_vars(|name| match name {
        "STORAGE_EMULATOR_HOST" | "IGA_VERTEXAI_ENDPOINT" => Some(emulator.url()),
        "GCE_METADATA_HOST" => Some(emulator.host()),
        "GCS_BUCKET_NAME" => Some(BUCKET.to_owned()),
        "IGA_VERTEXAI_PROJECT_ID" => Some("iga-local".to_owned()),
        "GOOGLE_APPLICATION_CREDENTIALS" | "HOME" | "K_SERVICE" | "AWS_LAMBDA_RUNTIME_API" => None,
        "GCP_LOCATION" => environment(name).or(Some("us-central1".to_owned())),
        "IGA_HOST" => environment(name).or(Some("127.0.0.1".to_owned())),
        _ => environment(name),
    });
    let config = config.map_err(|problems| problems.to_string())?;
    Ok((App::new(config), Some(emulator)))
}

async fn start(options: Options) -> Result<Emulator, String> {
    Emulator::start(options).await.map_err(|error| format!("The emulator cannot start: {error}."))
}

fn with_directory(dir: PathBuf) -> Options {
    Options { directory: Some(dir), ..Options::default() }
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or(path.to_owned()).display().to_string()
}

const BUCKET: &str = "iga-images";
const EXAMPLE: &str = include_str!("../../events/generate_image.json");
