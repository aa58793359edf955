//! The handle of a running emulator.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::faults::Fault;
use crate::http::{self, Bandwidth};
use crate::objects::StoredObject;
use crate::options::Options;
use crate::recorder::{Counters, Generation, Recorded, StorageOperation};
use crate::router;
use crate::services::Services;
use crate::storage_rules::StorageRules;

/// A running emulator; dropping the last handle stops it.
#[derive(Clone)]
pub struct Emulator(Arc<Running>);

struct Running {
    services: Arc<Services>,
    server: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Emulator {
    /// Listens on `options.addr`.
    ///
    /// # Errors
    /// The address is taken, the directory cannot be used, or a bucket's name is illegal.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.addr).await.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {}: {error}", options.addr))
        })?;
        let bandwidth =
            Bandwidth { receiving: options.receiving_rate, sending: options.sending_rate };
        let services = Arc::new(Services::new(options, listener.local_addr()?)?);
        let handler = {
            let services = services.clone();
            move |request| router::handle(services.clone(), request)
        };
        let server = tokio::spawn(http::serve(listener, bandwidth, handler));
        Ok(Self(Arc::new(Running { services, server })))
    }

    /// Ends the server and every open connection.
    pub fn stop(&self) {
        self.0.server.abort();
    }

    /// For `STORAGE_EMULATOR_HOST`, and for the endpoint of Vertex AI.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.services.addr)
    }

    /// For `GCE_METADATA_HOST`.
    pub fn host(&self) -> String {
        self.0.services.addr.to_string()
    }

    /// Adds a fault after those added before.
    pub fn script(&self, fault: Fault) {
        self.0.services.faults.push(fault);
    }

    pub fn clear_faults(&self) {
        self.0.services.faults.clear();
    }

    pub fn storage_rules(&self) -> StorageRules {
        self.0.services.objects.rules()
    }

    /// Changes what Cloud Storage permits from now on, for instance to revoke a right.
    pub fn set_storage_rules(&self, rules: StorageRules) {
        self.0.services.objects.set_rules(rules);
    }

    pub fn counters(&self) -> Counters {
        self.0.services.counters()
    }

    /// Waits until the counters meet a condition; `objects` is not among those watched.
    pub async fn reached(&self, condition: impl FnMut(&Counters) -> bool) {
        self.0.services.recorder.reached(condition).await;
    }

    /// Every request so far, those to `/_emulator/` excepted.
    pub fn requests(&self) -> Vec<Recorded> {
        self.0.services.recorder.requests()
    }

    /// Every request for an image that reached a model, in order.
    pub fn generations(&self) -> Vec<Generation> {
        self.0.services.recorder.generations()
    }

    /// Every request to Cloud Storage that its credentials let in, in order.
    pub fn operations(&self) -> Vec<StorageOperation> {
        self.0.services.recorder.operations()
    }

    pub fn object(&self, bucket: &str, name: &str) -> Option<StoredObject> {
        self.0.services.objects.find(bucket, name)
    }

    /// The metadata of a bucket's objects whose names begin with `prefix`, by name.
    pub fn list(&self, bucket: &str, prefix: &str) -> Vec<serde_json::Value> {
        self.0.services.objects.list(bucket, prefix)
    }

    pub fn objects(&self) -> Vec<StoredObject> {
        self.0.services.objects.all()
    }

    /// Makes every token issued so far invalid.
    pub fn expire_tokens(&self) {
        self.0.services.tokens.expire();
    }

    /// Moves the clock behind `Date` and the objects' times; tokens are not affected.
    pub fn advance_clock(&self, by: Duration) {
        self.0.services.clock.advance(i64::try_from(by.as_millis()).unwrap_or(i64::MAX));
    }
}
