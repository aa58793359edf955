//! Cold start: settings, log, parts, runtime.

use iga::app::App;
use iga::config::{self, Config};
use iga::{runtime, telemetry};
use std::fmt::Display;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::task::spawn_blocking;

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
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(tokio) => tokio.block_on(serve(app)),
        Err(error) => fail(error),
    }
}

/// Serves. Beside it the HTTP client is built, for that takes longer than all else that a start does.
async fn serve(app: Arc<App>) -> ExitCode {
    let auth = Arc::clone(&app.auth);
    let client = spawn_blocking(move || auth.http.client().err().map(ToString::to_string));
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
