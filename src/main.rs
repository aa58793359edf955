//! Cold start: settings, log, parts, runtime. Also the commands for operators.

use iga::app::App;
use iga::config::{self, Config};
use iga::google::http::NoClient;
use iga::google::proxy;
use iga::{doctor, health, runtime, telemetry};
use std::fmt::Display;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;

/// musl's own allocator has one lock and gives every large buffer back to the kernel.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Lets the allocator give free memory back to the kernel after 10 ms; its default is a second.
fn keep_free_memory_briefly() {
    // SAFETY: no other thread has been started yet.
    #[cfg(target_env = "musl")]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, 10);
    }
}

/// `mi_option_purge_delay` in mimalloc.h, in milliseconds. The crate does not name it.
#[cfg(target_env = "musl")]
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

fn main() -> ExitCode {
    telemetry::report_panics();
    let words: Vec<_> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => serve(),
        ["health"] => ask_health(),
        ["doctor"] => diagnose(doctor::OutputFormat::Text),
        ["doctor", "--json"] => diagnose(doctor::OutputFormat::Json),
        ["-h" | "--help"] => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        ["-V" | "--version"] => {
            println!("iga {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => cannot_serve(USAGE.trim_end()),
    }
}

fn serve() -> ExitCode {
    keep_free_memory_briefly();
    if let Err(problem) = config::load_env_file() {
        return cannot_serve(problem);
    }
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(problems) => return cannot_serve(problems),
    };
    // SAFETY: no other thread has been started yet.
    unsafe { proxy::exempt_token_sources(&config.credentials) };
    // Each connection takes a file. A limit that cannot be raised bounds the connections instead.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    telemetry::install(config.debug, config.log_format);
    let app = App::new(config);
    app.config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if let Some(hint) = app.client.credentials.hint() {
        tracing::warn!("{hint}");
    }
    // One thread keeps up with any model's quota; more threads cost CPU by waking each other (docs/performance.md).
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(tokio) => tokio.block_on(run(app)),
        Err(error) => fail(error),
    }
}

/// Runs the service. Building the HTTP client dominates start-up, so it is deferred until the health
/// probe is answered; an earlier request builds the client.
async fn run(app: Arc<App>) -> ExitCode {
    let client = build_client(Arc::clone(&app));
    let served = tokio::select! {
        biased;
        served = runtime::run(app) => served.map_or_else(log_and_fail, |()| ExitCode::SUCCESS),
        problem = client => cannot_serve(problem),
    };
    telemetry::flush();
    served
}

/// Returns only if the client can never be built: if the certificates are missing twice in a row. A full file table is
/// a temporary failure, and it may be full no longer when the failure is looked at.
async fn build_client(app: Arc<App>) -> NoClient {
    tokio::time::sleep(AFTER_THE_PROBE).await;
    let mut were_missing = false;
    loop {
        let app = Arc::clone(&app);
        were_missing = match spawn_blocking(move || app.client.http.build()).await {
            Ok(Ok(())) => return std::future::pending().await,
            Ok(Err(problem @ NoClient::Certificates(_))) if were_missing => return problem,
            Ok(Err(NoClient::Certificates(_))) => true,
            Ok(Err(NoClient::Files(_))) | Err(_) => false,
        };
        tokio::time::sleep(BUILD_AGAIN).await;
    }
}

fn log_and_fail(problem: String) -> ExitCode {
    tracing::error!("{problem}");
    fail(problem)
}

fn diagnose(format: doctor::OutputFormat) -> ExitCode {
    match doctor::run(&variable, format) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Docker knows 0 and 1 only, so wrong settings end with 1 as well.
fn ask_health() -> ExitCode {
    let address = config::load_env_file().and_then(|()| config::own_address(&variable));
    match address.and_then(health::ask) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => fail(problem),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn fail(problem: impl Display) -> ExitCode {
    eprintln!("{problem}");
    ExitCode::FAILURE
}

/// Reports settings, arguments or a machine with which the process cannot serve.
fn cannot_serve(problem: impl Display) -> ExitCode {
    eprintln!("{problem}");
    ExitCode::from(2)
}

const USAGE: &str = "\
Usage: iga [COMMAND]

Without a command: serves HTTP, or under AWS Lambda its events.

Commands:
  health         asks the service on this machine whether it is up; exits with 0 or 1
  doctor         checks settings, identity, models, bucket, clock and port; exits with 0 or 1;
                 with --json prints one JSON object

Options:
  -h, --help     shows this
  -V, --version  shows the version

All settings are environment variables, see docs/settings.md.
";

/// Long enough for the first health probe.
const AFTER_THE_PROBE: Duration = Duration::from_millis(50);
const BUILD_AGAIN: Duration = Duration::from_secs(1);
