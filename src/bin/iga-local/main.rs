//! The function on a developer's machine: one event, or the whole service with its playground,
//! against the embedded emulator.

mod announcement;
mod cloud;
mod hub;
mod instance;
mod invoke;
mod observer;
mod playground;
mod progress;
mod scenario;
mod serve;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use cloud::BUCKET;
use iga::config::{self, Config};
use iga::google::proxy;
use iga::telemetry;
use iga_emulator::Options;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Runs IGA on this machine. Without a command: invokes it once with an example event.
#[derive(Parser)]
#[command(name = "iga-local", version)]
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
    Invoke(invoke::Invoke),
    /// Serves HTTP on IGA_PORT, as on Cloud Run, with a playground for the browser at `/`.
    Serve(serve::Serve),
    /// Runs only the emulator, for any client; prints its address first.
    Emulator(EmulatorArgs),
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
    if let Some(conflict) = cli.conflict() {
        Cli::command().error(ErrorKind::ArgumentConflict, conflict).exit();
    }
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
    telemetry::flush();
    match result {
        Ok(code) => code,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    /// What excludes `--google`; clap does not see it, because the option belongs to all commands.
    fn conflict(&self) -> Option<&'static str> {
        match &self.command {
            Some(Command::Emulator(_)) if self.google => {
                Some("the argument '--google' cannot be used with 'emulator'")
            }
            Some(Command::Serve(args)) if self.google => args.conflict_with_google(),
            Some(_) | None => None,
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
        Some(Command::Serve(args)) => serve::run(args, google, dir).await,
        Some(Command::Invoke(args)) => invoke::run(args, google, dir).await,
        None => invoke::run(invoke::Invoke::default(), google, dir).await,
    }
}

async fn emulate(args: EmulatorArgs, dir: PathBuf) -> Result<ExitCode, String> {
    let defaults = Options::default();
    let options = Options {
        addr: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), args.port),
        latency: Duration::from_millis(args.latency_ms),
        buckets: vec![args.bucket],
        revive: args.revive,
        anonymous: args.anonymous,
        mutation_interval: defaults.mutation_interval.filter(|_| !args.unlimited_mutations),
        ..defaults
    };
    let emulator = cloud::start(options, &dir).await?;
    announcement::print(&format!("{}\n", emulator.url()));
    tokio::signal::ctrl_c().await.map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
}
