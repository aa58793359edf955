//! Cold start: settings, log, parts, runtime.

use iga::app::App;
use iga::config::{self, Config};
use iga::{runtime, telemetry};
use std::fmt::Display;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use tokio::task::spawn_blocking;

/// musl's own allocator has one lock and gives every large buffer back to the kernel.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Err(problem) = config::load_env_file() {
        return refuse(problem);
    }
    let config = match Config::from_vars(|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(problems) => return refuse(problems),
    };
    telemetry::install(config.debug);
    let app = App::new(config);
    app.config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if let Some(hint) = app.auth.hint() {
        tracing::warn!("{hint}");
    }
    let workers = available_parallelism().map_or(1, NonZero::get).min(MOST_WORKERS);
    match tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build() {
        Ok(tokio) => tokio.block_on(serve(app)),
        Err(error) => fail(error),
    }
}

/// Serves. Beside it the HTTP client is built, for that takes longer than all else that a start does.
async fn serve(app: Arc<App>) -> ExitCode {
    let auth = Arc::clone(&app.auth);
    let client = spawn_blocking(move || auth.client.build().err().map(|error| error.to_string()));
    tokio::select! {
        served = runtime::run(app) => served.map_or_else(fail, |()| ExitCode::SUCCESS),
        Ok(Some(problem)) = client => refuse(problem),
    }
}

fn fail(problem: impl Display) -> ExitCode {
    tracing::error!("{problem}");
    eprintln!("{problem}");
    ExitCode::FAILURE
}

/// Ends a process that cannot serve with these settings, on this machine.
fn refuse(problem: impl Display) -> ExitCode {
    eprintln!("{problem}");
    ExitCode::from(2)
}

/// Two move more pictures than any model makes; more of them only wake each other (docs/performance.md).
const MOST_WORKERS: usize = 2;
