//! Google's services on a loopback port: Vertex AI, Cloud Storage, the metadata server.
//!
//! It is written from Google's wire formats alone and shares no type with the clients that it
//! fakes. It is strict: what Google refuses is refused here, in Google's words.
//!
//! **Served.** Vertex AI: `:generateContent` and `:predict` with each model's own limits, locations
//! and retirement, and the publisher model lookup. Cloud Storage's JSON API: media, multipart and
//! resumable uploads, metadata, (ranged) media, list, delete; with preconditions and checksums. Tokens:
//! the metadata server, `/token` (OAuth), `/v1/token` (STS), `:generateAccessToken`.
//!
//! **Magic prompts.** A prompt that contains one of these is answered as its name says: `[blocked]`
//! (the prompt), `[filtered]` (the picture), `[empty]` (no picture, no reason), `[refuse]` (text
//! instead of a picture), `[quota]` (429), `[overloaded]` (503), `[denied]` (403).
//!
//! **Faults.** [`Fault`] names a [`Stage`] (`token`, `model`, `answer`, `read`, `upload_start`,
//! `upload_body`, `upload_end`, `delete`), what it is restricted to, how often it hits, and an
//! [`Action`]: `answer`, `delay`, `stall`, `reset`, `truncate`, `wrong_checksum`.
//!
//! **From another process.** `POST /_emulator/faults` (a [`Fault`] as JSON), `DELETE /_emulator/faults`,
//! `GET /_emulator/counters`, `GET /_emulator/objects`, `POST /_emulator/expire_tokens`,
//! `POST /_emulator/clock` (`{"advance_ms": 60000}`).
//!
//! **Not the real thing.** Signatures are not verified, listings have
//! no pages, and there are no object versions. A generation counts as paid from the moment at which
//! the model starts on it, whether or not the caller waits.

mod drawing;
mod faults;
mod metadata;
mod models;
mod objects;
mod order;
mod resumable;
mod rpc_error;
mod storage;
mod storage_error;
mod uploads;
mod vertex;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use faults::{Action, Fault, Stage};
pub use objects::StoredObject;

use faults::{Faults, spoil};
use metadata::Tokens;
use objects::Objects;
use resumable::Sessions;
use wire::{Answer, Handled, Inflow};

/// How an emulator is set up.
#[derive(Clone, Debug)]
pub struct Options {
    pub addr: SocketAddr,
    /// Objects become files `DIRECTORY/BUCKET/OBJECT-NAME`; without it they stay in memory.
    pub directory: Option<PathBuf>,
    /// The buckets that exist.
    pub buckets: Vec<String>,
    /// How long a model takes for a picture.
    pub latency: Duration,
    /// Retired models that answer as if they were still served.
    pub revive: Vec<String>,
    /// What the sides of pictures are divided by; 1 is Google's size.
    pub shrunk: u32,
    /// How long an access token holds.
    pub token_life: Duration,
    /// Cloud Storage permissions that the caller lacks, such as `storage.objects.create`.
    pub withheld: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            addr: (Ipv4Addr::LOCALHOST, 0).into(),
            directory: None,
            buckets: Vec::new(),
            latency: Duration::ZERO,
            revive: Vec::new(),
            shrunk: 1,
            token_life: Duration::from_secs(3600),
            withheld: Vec::new(),
        }
    }
}

/// A running emulator; it stops with its last handle.
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
    /// Listens; fails where the address is taken, the directory cannot be used, or a bucket's name is illegal.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.addr).await?;
        let services = Arc::new(Services::new(options, listener.local_addr()?)?);
        let handler = {
            let services = services.clone();
            move |request| serve(services.clone(), request)
        };
        let server = tokio::spawn(wire::serve(listener, handler));
        Ok(Self(Arc::new(Running { services, server })))
    }

    /// Ends the server and every open connection.
    pub fn stop(&self) {
        self.0.server.abort();
    }

    /// For `STORAGE_EMULATOR_HOST` and `IGA_VERTEXAI_ENDPOINT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.services.addr)
    }

    /// For `GCE_METADATA_HOST`.
    pub fn host(&self) -> String {
        self.0.services.addr.to_string()
    }

    /// Adds a fault behind those that are still to come.
    pub fn script(&self, fault: Fault) {
        self.0.services.faults.push(fault);
    }

    pub fn clear_faults(&self) {
        self.0.services.faults.clear();
    }

    pub fn counters(&self) -> Counters {
        self.0.services.counters()
    }

    /// Waits until the counters are such; `objects` is not among what is watched.
    pub async fn reached(&self, happened: impl FnMut(&Counters) -> bool) {
        // The sender lives as long as this handle does.
        let _ = self.0.services.counters.subscribe().wait_for(happened).await;
    }

    /// Every request so far, those of `/_emulator/` excepted.
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.0.services.requests).clone()
    }

    pub fn object(&self, bucket: &str, name: &str) -> Option<StoredObject> {
        self.0.services.objects.find(bucket, name)
    }

    pub fn objects(&self) -> Vec<StoredObject> {
        self.0.services.objects.all()
    }

    /// Makes every token handed out so far useless.
    pub fn expire_tokens(&self) {
        self.0.services.tokens.expire();
    }

    /// Moves the clock behind `Date` and objects' timestamps; tokens do not notice.
    pub fn advance_clock(&self, by: Duration) {
        self.0.services.clock.advance(by);
    }
}

/// What has happened so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Requests for a token, at any of the endpoints.
    pub token_fetches: u64,
    /// Requests for a generation, whatever became of them.
    pub model_calls: u64,
    pub model_calls_by_model: BTreeMap<String, u64>,
    /// Generations that made a picture, delivered or not.
    pub paid_generations: u64,
    pub paid_generations_by_model: BTreeMap<String, u64>,
    /// Inserts, and resumable sessions, begun.
    pub uploads_started: u64,
    /// Objects that came into being.
    pub uploads_completed: u64,
    /// Uploads refused with 412.
    pub uploads_refused: u64,
    pub metadata_gets: u64,
    pub media_gets: u64,
    pub lists: u64,
    /// Requests to delete, whatever became of them.
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
    /// Its beginning; of an upload only the JSON metadata.
    pub body: Bytes,
    /// It is a generation that made a picture, delivered or not.
    pub paid: bool,
}

/// All that a request can touch.
struct Services {
    options: Options,
    addr: SocketAddr,
    clock: Clock,
    faults: Faults,
    tokens: Tokens,
    objects: Objects,
    sessions: Sessions,
    counters: watch::Sender<Counters>,
    requests: Mutex<Vec<Recorded>>,
}

impl Services {
    fn new(options: Options, addr: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            addr,
            clock: Clock::default(),
            faults: Faults::default(),
            tokens: Tokens::new(options.token_life),
            objects: Objects::open(options.directory.clone(), &options.buckets, addr)?,
            sessions: Sessions::default(),
            counters: watch::Sender::default(),
            requests: Mutex::default(),
            options,
        })
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.counters.send_modify(change);
    }

    fn counters(&self) -> Counters {
        Counters { objects: self.objects.count(), ..self.counters.borrow().clone() }
    }

    /// Notes a request down; the number is for what becomes known of it later.
    fn record(&self, request: &Request<Incoming>) -> usize {
        let mut requests = lock(&self.requests);
        requests.push(Recorded {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            headers: request.headers().clone(),
            body: Bytes::new(),
            paid: false,
        });
        requests.len() - 1
    }

    fn record_body(&self, number: usize, body: &[u8]) {
        let kept = &body[..body.len().min(RECORDED_BYTES)];
        lock(&self.requests)[number].body = Bytes::copy_from_slice(kept);
    }

    fn record_paid(&self, number: usize) {
        lock(&self.requests)[number].paid = true;
    }
}

/// The time in the answers.
#[derive(Default)]
struct Clock {
    ahead_ms: AtomicU64,
}

impl Clock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }

    fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }
}

/// A request with its body still to be read.
struct Call {
    method: Method,
    /// Split at `/` first and decoded then, so that an object's name is one segment.
    segments: Vec<String>,
    /// Decoded, for what faults are matched against.
    path: String,
    query: BTreeMap<String, String>,
    /// The `permissions` of the query, which may be several.
    permissions: Vec<String>,
    headers: HeaderMap,
    body: Inflow,
    number: usize,
}

impl Call {
    fn new(request: Request<Incoming>, number: usize) -> Self {
        let (parts, body) = request.into_parts();
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        let permissions =
            query.filter(|(name, _)| name == "permissions").map(|(_, value)| value.into_owned());
        Self {
            method: parts.method,
            segments: parts.uri.path().split('/').skip(1).map(decode).collect(),
            path: decode(parts.uri.path()),
            query: query.into_owned().collect(),
            permissions: permissions.collect(),
            headers: parts.headers,
            body: Inflow::new(body),
            number,
        }
    }
}

async fn serve(services: Arc<Services>, request: Request<Incoming>) -> Handled {
    let own = request.uri().path().starts_with("/_emulator/");
    let number = if own { 0 } else { services.record(&request) };
    let call = Call::new(request, number);
    let dated = |answer: Answer| answer.with("date", http_date(services.clock.now()));
    match route(&services, call).await {
        Ok(answer) => Ok(counted(&services, dated(answer))),
        Err(wire::Refusal::Answer(answer)) => Ok(counted(&services, dated(*answer))),
        Err(broken) => Err(broken),
    }
}

fn counted(services: &Services, answer: Answer) -> Answer {
    if answer.status == StatusCode::UNAUTHORIZED {
        services.count(|counters| counters.unauthorized += 1);
    }
    answer
}

async fn route(services: &Arc<Services>, mut call: Call) -> Handled {
    let segments: Vec<String> = call.segments.clone();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match (call.method.as_str(), &segments[..]) {
        (_, ["upload", "storage", "v1", "b", bucket, "o"])
        | (_, ["resumable", "upload", "storage", "v1", "b", bucket, "o"]) => {
            return uploads::upload(services, call, bucket).await;
        }
        (_, ["storage", "v1", "b", bucket, rest @ ..])
        | ("GET", ["download", "storage", "v1", "b", bucket, rest @ ..]) => {
            return storage::objects(services, &call, bucket, rest).await;
        }
        _ => {}
    }
    let body = call.body.all().await?;
    if let ["_emulator", what] = segments[..] {
        return Ok(control(services, &call.method, what, &body));
    }
    services.record_body(call.number, &body);
    match (call.method.as_str(), &segments[..]) {
        ("GET", ["computeMetadata", .., last]) => {
            let answer = metadata::metadata(&services.tokens, &call.path, &call.headers);
            if *last == "token" { handed_out(services, &call, answer).await } else { Ok(answer) }
        }
        ("GET", [""]) => Ok(Answer::new(StatusCode::OK, "text/plain", "iga's emulator\n")
            .with("metadata-flavor", "Google")),
        ("POST", ["token"]) => {
            handed_out(services, &call, metadata::oauth(&services.tokens, &call.headers, &body))
                .await
        }
        ("POST", ["v1", "token"]) => {
            handed_out(services, &call, metadata::exchange(&services.tokens, &call.headers, &body))
                .await
        }
        ("POST", ["v1", "projects", _, "serviceAccounts", account])
            if account.ends_with(":generateAccessToken") =>
        {
            let answer =
                metadata::impersonate(&services.tokens, &services.clock, &call.headers, &body)?;
            handed_out(services, &call, answer).await
        }
        (
            "POST",
            [
                "v1" | "v1beta1",
                "projects",
                project,
                "locations",
                location,
                "publishers",
                "google",
                "models",
                model,
            ],
        ) => vertex::generate(services, &call, [project, location, model], &body).await,
        ("GET", ["v1" | "v1beta1", "publishers", "google", "models", model]) => {
            vertex::publisher_model(services, &call, model)
        }
        _ => Ok(not_found(&call.path)),
    }
}

async fn handed_out(services: &Services, call: &Call, answer: Answer) -> Handled {
    services.count(|counters| counters.token_fetches += 1);
    spoil(services.faults.take(Stage::Token, &call.path), answer).await
}

/// The emulator's own endpoints, under `/_emulator/`.
fn control(services: &Services, method: &Method, what: &str, body: &Bytes) -> Answer {
    let done = Answer::empty(StatusCode::NO_CONTENT);
    let wrong = |problem: String| Answer::json(StatusCode::BAD_REQUEST, &json!({"error": problem}));
    match (method.as_str(), what) {
        ("POST", "faults") => match serde_json::from_slice::<Fault>(body) {
            Ok(fault) => match fault.action.validate() {
                Ok(()) => {
                    services.faults.push(fault);
                    done
                }
                Err(problem) => wrong(problem),
            },
            Err(error) => wrong(error.to_string()),
        },
        ("DELETE", "faults") => {
            services.faults.clear();
            done
        }
        ("GET", "counters") => Answer::json(StatusCode::OK, &json!(services.counters())),
        ("GET", "objects") => {
            let all: Vec<Value> =
                services.objects.all().into_iter().map(|object| object.metadata).collect();
            Answer::json(StatusCode::OK, &Value::Array(all))
        }
        ("POST", "expire_tokens") => {
            services.tokens.expire();
            done
        }
        ("POST", "clock") => match serde_json::from_slice::<Value>(body) {
            Ok(request) if request["advance_ms"].is_u64() => {
                let ms = request["advance_ms"].as_u64().unwrap_or_default();
                services.clock.advance(Duration::from_millis(ms));
                done
            }
            _ => wrong("expected {\"advance_ms\": NUMBER}".to_owned()),
        },
        _ => Answer::json(StatusCode::NOT_FOUND, &json!({"error": "no such endpoint"})),
    }
}

/// The page that Google's front end sends for a path or a host that it does not know.
fn not_found(path: &str) -> Answer {
    let path = path.replace('&', "&amp;").replace('<', "&lt;");
    let page = format!(
        "<!DOCTYPE html>\n<html lang=en>\n  <title>Error 404 (Not Found)!!1</title>\n  \
         <p><b>404.</b> <ins>That’s an error.</ins>\n  \
         <p>The requested URL <code>{path}</code> was not found on this server.  \
         <ins>That’s all we know.</ins>\n"
    );
    Answer::new(StatusCode::NOT_FOUND, "text/html; charset=UTF-8", page)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rfc3339(at: OffsetDateTime) -> String {
    let (date, millisecond) = (at.date(), at.millisecond());
    let (hour, minute, second) = at.to_hms();
    format!("{date}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}

fn http_date(at: OffsetDateTime) -> String {
    let (weekday, month) = (at.weekday().to_string(), at.month().to_string());
    let (hour, minute, second) = at.to_hms();
    let (weekday, month) = (&weekday[..3], &month[..3]);
    format!(
        "{weekday}, {:02} {month} {} {hour:02}:{minute:02}:{second:02} GMT",
        at.day(),
        at.year()
    )
}

const RECORDED_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests;
