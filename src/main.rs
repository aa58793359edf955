//! Cold start: settings, log, parts, runtime.

use iga::app::App;
use iga::config::{self, Config};
use iga::{runtime, telemetry};
use std::fmt::Display;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(problem) = config::load_env_file() {
        return refuse(problem);
    }
    let config = match Config::from_vars(|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(problems) => return refuse(problems),
    };
    telemetry::install(config.debug);
    let app = match App::new(config) {
        Ok(app) => app,
        Err(error) => return refuse(error),
    };
    app.config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if let Some(hint) = app.auth.hint() {
        tracing::warn!("{hint}");
    }
    let served = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
        .and_then(|tokio| tokio.block_on(runtime::run(app)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            tracing::error!("{problem}");
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Ends a process that cannot serve with these settings.
fn refuse(problem: impl Display) -> ExitCode {
    eprintln!("{problem}");
    ExitCode::from(2)
}
