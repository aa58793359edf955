//! What has happened: counters, requests, generations, storage operations.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

/// What has happened so far, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Requests for a token, at any of the endpoints.
    pub token_fetches: u64,
    /// Requests for a generation, whatever their outcome.
    pub model_calls: u64,
    pub model_calls_by_model: BTreeMap<String, u64>,
    /// Generations that made an image, delivered or not.
    pub paid_generations: u64,
    pub paid_generations_by_model: BTreeMap<String, u64>,
    /// Inserts and resumable sessions that were begun.
    pub uploads_started: u64,
    /// Objects that were created or overwritten.
    pub uploads_completed: u64,
    /// Uploads refused with 412.
    pub uploads_refused: u64,
    pub metadata_gets: u64,
    pub media_gets: u64,
    pub lists: u64,
    /// Requests to delete, whatever their outcome.
    pub deletes: u64,
    /// Requests refused with 401.
    pub unauthorized: u64,
    /// Objects that exist now.
    pub objects: u64,
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub method: Method,
    /// As sent, that is, percent-encoded.
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    /// The beginning of the body; of an upload only the JSON metadata.
    pub body: Bytes,
    /// Whether it is a generation that made an image, delivered or not.
    pub paid: bool,
    /// `None` while there is no response, or if the connection ended without one.
    pub status: Option<u16>,
}

/// A request for an image that reached a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Generation {
    pub project: String,
    pub location: String,
    pub model: String,
    pub prompt: String,
    pub labels: BTreeMap<String, String>,
    /// Whether an image was made, delivered or not.
    pub paid: bool,
    /// `None` while there is no response, or if the connection ended without one.
    pub status: Option<u16>,
}

/// A request to Cloud Storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StorageOperation {
    pub kind: OperationKind,
    pub bucket: String,
    /// Empty for an operation on the bucket.
    pub object: String,
    /// The preconditions, such as `ifGenerationMatch`, and `generation`.
    pub conditions: BTreeMap<String, String>,
    /// The custom metadata of an uploaded object.
    pub metadata: BTreeMap<String, String>,
    /// Whether the objects of the bucket were changed, whatever the response says.
    pub applied: bool,
    /// `None` while there is no response, or if the connection ended without one.
    pub status: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    Insert,
    /// A GET of an object's metadata.
    Stat,
    /// A GET of an object's content.
    Download,
    Delete,
    List,
    Patch,
    /// Also a rewrite and a compose.
    Copy,
    /// Anything about the bucket itself.
    Bucket,
}

/// Collects all records; requests are identified by their numbers.
#[derive(Default)]
pub(crate) struct Recorder {
    counters: watch::Sender<Counters>,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    requests: Vec<Recorded>,
    generations: Vec<Entry<Generation>>,
    operations: Vec<Entry<StorageOperation>>,
}

struct Entry<T> {
    request: usize,
    what: T,
}

impl Recorder {
    pub fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.counters.send_modify(change);
    }

    pub fn counters(&self) -> Counters {
        self.counters.borrow().clone()
    }

    /// Waits until the counters meet the condition.
    pub async fn reached(&self, condition: impl FnMut(&Counters) -> bool) {
        // The sender lives in `self`.
        let _ = self.counters.subscribe().wait_for(condition).await;
    }

    /// Records a request and returns its number.
    pub fn request<B>(&self, request: &Request<B>) -> usize {
        let mut log = self.lock();
        log.requests.push(Recorded {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            headers: request.headers().clone(),
            body: Bytes::new(),
            paid: false,
            status: None,
        });
        log.requests.len() - 1
    }

    pub fn body(&self, request: usize, body: &[u8]) {
        let beginning = &body[..body.len().min(RECORDED_BYTES)];
        self.lock().requests[request].body = Bytes::copy_from_slice(beginning);
    }

    pub fn response(&self, request: usize, status: StatusCode) {
        self.lock().requests[request].status = Some(status.as_u16());
    }

    pub fn generation(&self, request: usize, generation: Generation) {
        self.lock().generations.push(Entry { request, what: generation });
    }

    /// Marks a generation as paid.
    pub fn paid(&self, request: usize, model: &str) {
        let mut log = self.lock();
        log.requests[request].paid = true;
        for generation in log.generations.iter_mut().filter(|entry| entry.request == request) {
            generation.what.paid = true;
        }
        drop(log);
        self.count(|counters| {
            counters.paid_generations += 1;
            *counters.paid_generations_by_model.entry(model.to_owned()).or_default() += 1;
        });
    }

    pub fn operation(&self, request: usize, operation: StorageOperation) {
        self.lock().operations.push(Entry { request, what: operation });
    }

    /// Marks an operation as applied.
    pub fn applied(&self, request: usize) {
        let mut log = self.lock();
        for operation in log.operations.iter_mut().filter(|entry| entry.request == request) {
            operation.what.applied = true;
        }
    }

    /// One request as it is recorded so far.
    pub fn recorded(&self, request: usize) -> Recorded {
        self.lock().requests[request].clone()
    }

    pub fn requests(&self) -> Vec<Recorded> {
        self.lock().requests.clone()
    }

    pub fn generations(&self) -> Vec<Generation> {
        let log = self.lock();
        let status = |entry: &Entry<Generation>| log.requests[entry.request].status;
        log.generations
            .iter()
            .map(|entry| Generation { status: status(entry), ..entry.what.clone() })
            .collect()
    }

    pub fn operations(&self) -> Vec<StorageOperation> {
        let log = self.lock();
        let status = |entry: &Entry<StorageOperation>| log.requests[entry.request].status;
        log.operations
            .iter()
            .map(|entry| StorageOperation { status: status(entry), ..entry.what.clone() })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorded {
    /// For other processes; without credentials.
    pub(crate) fn to_json(&self) -> Value {
        let text = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into())
        };
        let is_public = |(name, _): &(&http::HeaderName, _)| *name != http::header::AUTHORIZATION;
        let headers: Map<String, Value> = self.headers.iter().filter(is_public).map(text).collect();
        json!({
            "method": self.method.as_str(),
            "path": self.path,
            "query": self.query,
            "headers": headers,
            "body": String::from_utf8_lossy(&self.body),
            "paid": self.paid,
            "status": self.status,
        })
    }
}

const RECORDED_BYTES: usize = 64 * 1024;
