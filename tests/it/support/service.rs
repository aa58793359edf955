//! A running service with its own emulator, its requests, and assertions on its responses.

use iga::app::App;
use iga::config::{Config, Timing};
use iga::server;
use iga_emulator::{Action, Counters, Emulator, Fault, Options, Recorded, Stage, StoredObject};
use reqwest::header::HeaderMap;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub const BUCKET: &str = "test-images";
pub const PROMPT: &str = "A red fox in fresh snow";

/// The smallest PNG of each colour.
pub const RED: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC";
pub const GREEN: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNg+M8AAAICAQBF9FLUAAAAAElFTkSuQmCC";
pub const BLUE: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNgYPgPAAEDAQA2dBFAAAAAAElFTkSuQmCC";

pub struct Service {
    pub emulator: Emulator,
    pub url: String,
    pub http: Client,
}

/// A complete HTTP response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

/// Stops a service and waits until its flights have ended.
pub struct Stop {
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Stop {
    pub async fn now(self) {
        let _ = self.stop.send(());
        self.serving.await.unwrap();
    }
}

impl Service {
    pub async fn start() -> Service {
        Service::with(&[]).await
    }

    /// A service with these settings in addition to the usual ones; the last of a name wins.
    pub async fn with(settings: &[(&str, &str)]) -> Service {
        Service::on(emulator().await, settings).await
    }

    /// One of several services on the same emulator. It never takes a request without a key for a retry.
    pub async fn on(emulator: Emulator, settings: &[(&str, &str)]) -> Service {
        let config = config(&emulator, settings);
        Service::run(emulator, config).await
    }

    /// A service that takes every equal request for a retry.
    pub async fn that_joins(emulator: Emulator, settings: &[(&str, &str)]) -> Service {
        let mut config = config(&emulator, settings);
        config.timing.variant_age = Duration::ZERO;
        Service::run(emulator, config).await
    }

    pub async fn run(emulator: Emulator, config: Config) -> Service {
        let app = App::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(server::serve(app, listener, std::future::pending()));
        Service { emulator, url, http: client() }
    }

    /// A service that stops, as on SIGTERM, when `Stop::now` is called.
    pub async fn run_until_stopped(emulator: Emulator, config: Config) -> (Service, Stop) {
        let app = App::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let stopped = async move { drop(stopped.await) };
        let serving = tokio::spawn(server::serve(app, listener, stopped));
        (Service { emulator, url, http: client() }, Stop { stop, serving })
    }

    /// A service with a current model, so that no fallback is called.
    pub async fn current() -> Service {
        Service::with(CURRENT).await
    }

    /// Makes the model respond like this from now on.
    pub fn model_responds(&self, status: u16, body: impl Into<String>) {
        let response =
            Action::response_with(status, "application/json; charset=UTF-8", body.into());
        self.emulator.script(Fault::new(Stage::Model, response).always());
    }

    pub fn fault(&self, stage: Stage, action: Action) {
        self.emulator.script(Fault::new(stage, action));
    }

    pub fn request(&self) -> RequestBuilder {
        self.http.post(format!("{}/generate_image", self.url))
    }

    pub async fn post(&self, body: Value) -> Response {
        self.post_text(body.to_string()).await
    }

    pub async fn post_text(&self, body: impl Into<reqwest::Body>) -> Response {
        fetch(self.request().header("content-type", "application/json").body(body)).await
    }

    pub async fn prompt(&self) -> Response {
        self.prompt_of(PROMPT).await
    }

    pub async fn prompt_of(&self, prompt: &str) -> Response {
        self.post(json!({"prompt": prompt})).await
    }

    /// The only stored image.
    pub fn only_object(&self) -> StoredObject {
        only_image(&self.emulator)
    }

    /// The requests to a model, in order.
    pub fn model_requests(&self) -> Vec<Recorded> {
        let is_generation =
            |request: &Recorded| request.path.contains("/publishers/google/models/");
        self.emulator.requests().into_iter().filter(is_generation).collect()
    }
}

impl Response {
    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str) -> &Response {
        assert_eq!((self.status, self.text("error_code")), (status, code), "{self:?}");
        assert_eq!(self.fields(), ["details", "error_code", "message"]);
        assert!(self.body.as_object().unwrap().values().all(|value| value.is_string()), "{self:?}");
        self
    }

    #[track_caller]
    pub fn details_have(&self, words: &str) -> &Response {
        assert!(self.text("details").contains(words), "{words:?} is not in {self:?}");
        self
    }

    #[track_caller]
    pub fn is_image(&self) -> &Response {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(self.fields(), ["image_url", "model_version", "prompt_used"]);
        self
    }

    pub fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn fields(&self) -> Vec<&str> {
        let mut fields: Vec<_> =
            self.body.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort();
        fields
    }
}

/// An emulator with the usual bucket and small images.
pub async fn emulator() -> Emulator {
    emulator_with(Options::default()).await
}

/// Without the limit of changes of an object, unless the services pause between two writes.
pub async fn emulator_with(options: Options) -> Emulator {
    let mutation_interval = options.mutation_interval.filter(|_| is_paced());
    emulator_that_limits(Options { mutation_interval, ..options }).await
}

/// Whether services pause between two writes and before a retry as in production. Otherwise they hardly do, for speed.
fn is_paced() -> bool {
    std::env::var_os(PACED).is_some()
}

pub const PACED: &str = "IGA_TEST_PACED";

/// With Cloud Storage's limit of changes of an object, or the given one.
pub async fn emulator_that_limits(options: Options) -> Emulator {
    Emulator::start(Options { buckets: vec![BUCKET.to_owned()], shrunk: 16, ..options })
        .await
        .unwrap()
}

/// Waits until the counters of the emulator fulfil a condition.
pub async fn reached(emulator: &Emulator, happened: impl FnMut(&Counters) -> bool) {
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, emulator.reached(happened)).await.expect("it happens");
}

/// Waits until something has happened that may follow a response, such as a receipt.
pub async fn eventually(mut happened: impl FnMut() -> bool) {
    let wait = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it happens");
}

/// The metadata of all records of keys and requests.
pub fn records(emulator: &Emulator) -> Vec<Value> {
    let is_record = |object: &StoredObject| {
        object.name.contains("/.iga/key/") || object.name.contains("/.iga/request/")
    };
    let records = emulator.objects().into_iter().filter(is_record);
    records.map(|record| record.metadata["metadata"].clone()).collect()
}

/// The only stored image.
pub fn only_image(emulator: &Emulator) -> StoredObject {
    let names = images(emulator);
    assert_eq!(names.len(), 1, "{names:?}");
    emulator.object(BUCKET, &names[0]).unwrap()
}

/// The names of all images.
pub fn images(emulator: &Emulator) -> Vec<String> {
    let names = emulator.objects().into_iter().map(|object| object.name);
    names.filter(|name| !name.contains(".iga/")).collect()
}

/// Longer than any test.
pub const HOUR: Duration = Duration::from_secs(3600);

pub const CURRENT: &[(&str, &str)] = &[
    ("IGA_VERTEXAI_IMAGE_MODEL_ID", "gemini-3.1-flash-image"),
    ("IGA_VERTEXAI_LOCATION", "global"),
];

pub fn config(emulator: &Emulator, settings: &[(&str, &str)]) -> Config {
    let (url, host) = (emulator.url(), emulator.host());
    let usual = [
        ("STORAGE_EMULATOR_HOST", url.as_str()),
        ("IGA_VERTEXAI_ENDPOINT", &url),
        ("GCE_METADATA_HOST", &host),
        ("GCS_BUCKET_NAME", BUCKET),
        ("IGA_VERTEXAI_PROJECT_ID", "test-project"),
        ("IGA_VERTEXAI_LOCATION", "us-central1"),
    ];
    let find = |name: &str| {
        let all = usual.iter().chain(settings);
        all.rev().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned())
    };
    let mut config = Config::from_vars(find).unwrap();
    config.timing = Timing { variant_age: HOUR, lease_life: HOUR, ..Timing::DEFAULT };
    if !is_paced() {
        config.timing.first_retry_wait = Duration::from_millis(1);
        config.timing.record_spacing = Duration::from_millis(1);
    }
    config
}

/// An HTTP client without a proxy. It installs the TLS provider, which reqwest needs even for plain HTTP.
pub fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().unwrap()
}

/// Sends a request and reads the whole response.
pub async fn fetch(request: RequestBuilder) -> Response {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.bytes().await.unwrap();
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).expect("every response is JSON")
    };
    Response { status, headers, body }
}
