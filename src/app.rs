//! Builds the parts of the service from the settings. Sends nothing: the first request fetches
//! credentials and opens connections.

use crate::budget::Budget;
use crate::config::{Config, Platform};
use crate::flight::{Flights, Rules};
use crate::generate::Generator;
use crate::google::client::Client;
use crate::google::http::tls_provider;
use crate::google::storage::Storage;
use crate::google::vertex::{CALL_TIME, Vertex};
use crate::targets::Targets;
use std::sync::Arc;

/// The parts of the service, shared by all requests.
pub struct App {
    pub config: Config,
    pub budget: Budget,
    pub flights: Arc<Flights>,
    pub generator: Arc<Generator>,
    pub storage: Arc<Storage>,
    pub client: Arc<Client>,
}

impl App {
    /// Builds every part for these settings.
    pub fn new(config: Config) -> Arc<App> {
        // One provider for all TLS of the process; a second App, as in tests, finds it installed.
        let _ = tls_provider().install_default();
        let client = Arc::new(Client::new(config.credentials.clone(), config.timing));
        let budget = Budget::new(config.transfer_budget_bytes);
        let vertex = Vertex {
            client: Arc::clone(&client),
            endpoint: config.vertex_endpoint.clone(),
            project_id: config.project_id.clone(),
            budget: budget.clone(),
            first_wait: config.timing.first_retry_wait,
            call_time: CALL_TIME.min(config.generation_deadline / 2),
            labels: config.labels.clone(),
            request_type: config.request_type,
        };
        let storage = Arc::new(Storage::new(Arc::clone(&client), &config));
        let targets = Targets::new(&config);
        let generator = Arc::new(Generator::new(vertex, Arc::clone(&storage), targets));
        let rules = Rules {
            max_generations: config.max_generations,
            retry_window: config.retry_window,
            shared_retries: config.shared_retries,
            answer_within: config.answer_within,
            timing: config.timing,
            respond_after_end: config.platform == Platform::Lambda,
        };
        let flights = Arc::new(Flights::new(Arc::clone(&generator), Arc::clone(&storage), rules));
        Arc::new(App { config, budget, flights, generator, storage, client })
    }
}
