//! The parts, put together from the settings. Nothing is fetched: credentials and connections come with the first request.

use crate::auth::Auth;
use crate::config::Config;
use crate::flight::{Flights, Rules};
use crate::generate::Generator;
use crate::image::Budget;
use crate::storage::Storage;
use crate::vertex::Vertex;
use reqwest::redirect::Policy;
use std::sync::Arc;
use std::time::Duration;

pub struct App {
    pub config: Config,
    pub flights: Arc<Flights>,
    pub generator: Arc<Generator>,
    pub auth: Arc<Auth>,
}

/// The HTTP client cannot be built. All else about it being fixed, the machine lacks what TLS needs;
/// Google's credentials library would panic there.
#[derive(Debug, thiserror::Error)]
#[error(
    "IGA cannot start: this machine has no usable CA certificates, so no TLS connection can be trusted. Install \
     the package ca-certificates, or point SSL_CERT_FILE at a bundle."
)]
pub struct StartError(#[source] reqwest::Error);

impl App {
    /// # Errors
    /// Where the machine lacks what TLS needs.
    pub fn new(config: Config) -> Result<Arc<App>, StartError> {
        // One provider for all TLS of the process; a second App, as in tests, finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .build()
            .map_err(StartError)?;
        let auth = Arc::new(Auth::new(config.credentials.clone(), config.timing));
        let vertex = Vertex {
            http: http.clone(),
            auth: Arc::clone(&auth),
            endpoint: config.vertex_endpoint.clone(),
            project_id: config.project_id.clone(),
            budget: Budget::new(config.transfer_budget_bytes),
            first_wait: config.timing.first_retry_wait,
        };
        let storage = Arc::new(Storage {
            http,
            auth: Arc::clone(&auth),
            endpoint: config.storage_endpoint.clone(),
            bucket: config.bucket.clone(),
            prefix: config.prefix.clone(),
            timing: config.timing,
            writable: Default::default(),
        });
        let targets = std::iter::once(&config.model).chain(&config.fallbacks).cloned().collect();
        let generator = Arc::new(Generator { vertex, storage, targets, current: Default::default() });
        let rules = Rules {
            max_generations: config.max_generations,
            retry_window: config.retry_window,
            shared_retries: config.shared_retries,
            answer_within: config.answer_within,
            timing: config.timing,
        };
        let flights = Arc::new(Flights::new(Arc::clone(&generator), rules));
        Ok(Arc::new(App { config, flights, generator, auth }))
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that a frozen instance wakes up with is most likely dead.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(20);
