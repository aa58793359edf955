//! The service on a socket, with the playground in front of it.

use crate::announcement::{announce, service_url};
use crate::cloud;
use crate::hub::Hub;
use crate::observer::Observer;
use crate::playground::{self, Playground};
use clap::Args;
use iga::app::App;
use iga::config::Config;
use iga::router::router;
use iga::{runtime, telemetry};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

#[derive(Args)]
pub struct Serve {
    /// How long the emulator's models take for an image, in milliseconds.
    #[arg(long, default_value_t = 1500)]
    latency_ms: u64,
    /// Use the emulator that runs at this URL, without a playground, as one of several instances.
    #[arg(long, value_name = "URL", conflicts_with_all = ["latency_ms", "open"])]
    emulator: Option<String>,
    /// Open the playground in the browser.
    #[arg(long)]
    open: bool,
    /// End at once when standard input ends, because the process that started this one has ended.
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

impl Serve {
    /// What excludes `--google`, if anything does.
    pub fn conflict_with_google(&self) -> Option<&'static str> {
        if self.open {
            return Some("the argument '--google' cannot be used with '--open'");
        }
        let conflict = "the argument '--google' cannot be used with '--emulator <URL>'";
        self.emulator.as_ref().map(|_| conflict)
    }
}

pub async fn run(args: Serve, google: bool, dir: PathBuf) -> Result<ExitCode, String> {
    if args.until_stdin_ends {
        std::thread::spawn(exit_when_stdin_ends);
    }
    if google {
        let config = cloud::google_config()?;
        telemetry::install(config.debug, config.log_format);
        runtime::run(App::new(config)).await?;
    } else if let Some(url) = &args.emulator {
        let config = cloud::emulator_config(url.trim_end_matches('/'))?;
        telemetry::install(config.debug, config.log_format);
        let app = App::new(config);
        let listener = runtime::bind(&app.config)?;
        announce(listener.local_addr().map_err(|error| error.to_string())?, url, None);
        let service = router(Arc::clone(&app));
        runtime::serve(app, service, listener, runtime::stop_signal()).await;
    } else {
        with_playground(args, dir).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn with_playground(args: Serve, dir: PathBuf) -> Result<(), String> {
    let emulator = cloud::start_for_one(Duration::from_millis(args.latency_ms), &dir).await?;
    let config = cloud::emulator_config(&emulator.url())?;
    let hub = Arc::new(Hub::default());
    let observer = Observer(Arc::clone(&hub));
    telemetry::install_with(config.debug, config.log_format, observer);
    warn_of_other_machines(&config);
    let app = App::new(config);
    let listener = runtime::bind(&app.config)?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    announce(address, &emulator.url(), Some(&dir));
    if args.open {
        open(&format!("{}/", service_url(address)));
    }
    let service = router(Arc::clone(&app));
    let playground = Playground::new(emulator, Arc::clone(&app), Arc::clone(&hub));
    let service = playground::router(playground, service);
    let stop = async {
        runtime::stop_signal().await;
        // The streams of events would keep their connections open.
        hub.close();
    };
    runtime::serve(app, service, listener, stop).await;
    Ok(())
}

fn exit_when_stdin_ends() {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    std::process::exit(0);
}

fn warn_of_other_machines(config: &Config) {
    if !config.host.is_loopback() {
        tracing::warn!(
            "IGA_HOST is {}: other machines can use the service and its playground",
            config.host
        );
    }
}

fn open(url: &str) {
    if let Err(error) = open::that_detached(url) {
        eprintln!("The browser cannot be opened: {error}. Open {url} yourself.");
    }
}
