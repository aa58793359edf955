//! The parts, put together from the settings. Nothing is fetched: credentials and connections come with the first request.

use crate::budget::Budget;
use crate::config::Config;
use crate::flight::{Flights, Rules};
use crate::generate::Generator;
use crate::google::client::Client;
use crate::google::storage::Storage;
use crate::google::vertex::{CALL_TIME, Vertex};
use std::sync::Arc;

pub struct App {
    pub config: Config,
    pub flights: Arc<Flights>,
    pub generator: Arc<Generator>,
    pub client: Arc<Client>,
}

impl App {
    pub fn new(config: Config) -> Arc<App> {
        // One provider for all TLS of the process; a second App, as in tests, finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Arc::new(Client::new(config.credentials.clone(), config.timing));
        let vertex = Vertex {
            client: Arc::clone(&client),
            endpoint: config.vertex_endpoint.clone(),
            project_id: config.project_id.clone(),
            budget: Budget::new(config.transfer_budget_bytes),
            first_wait: config.timing.first_retry_wait,
            call_time: CALL_TIME.min(config.generation_deadline / 2),
        };
        let storage = Arc::new(Storage {
            client: Arc::clone(&client),
            endpoint: config.storage_endpoint.clone(),
            bucket: config.bucket.clone(),
            prefix: config.prefix.clone(),
            timing: config.timing,
            writable: Default::default(),
        });
        let targets = std::iter::once(&config.model).chain(&config.fallbacks).cloned().collect();
        let generator =
            Arc::new(Generator { vertex, storage, targets, current: Default::default() });
        let rules = Rules {
            max_generations: config.max_generations,
            retry_window: config.retry_window,
            shared_retries: config.shared_retries,
            answer_within: config.answer_within,
            timing: config.timing,
        };
        let flights = Arc::new(Flights::new(Arc::clone(&generator), rules));
        Arc::new(App { config, flights, generator, client })
    }
}
