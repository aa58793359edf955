//! The real flights and leases of several instances, on paused time, against a Cloud Storage and a model whose
//! faults follow from a seed.
//!
//! Each seed is one world: some instances, some callers that retry as CPOA does, and what goes wrong. Requests
//! go over loopback sockets within one thread, so that time advances only when all are waiting.
//! `IGA_SIMULATION_SEEDS=100..200` runs others than the usual ones; a failure names its seed and prints what
//! happened in its world.

use crate::support::random::Rng;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use iga::app::App;
use iga::config::Config;
use iga::error::Error;
use iga::flight::Deadlines;
use iga::generate::{Generated, Origin};
use iga::request::GenerateRequest;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::{Rfc2822, Rfc3339};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

#[test]
fn the_rules_of_payment_hold_in_every_world() {
    let seeds = seeds();
    let next = Mutex::new(seeds.clone());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(seed) = next.lock().unwrap().next() {
                    if let Err(failure) = std::panic::catch_unwind(|| simulate(seed)) {
                        let text = failure.downcast_ref::<String>().cloned().unwrap_or_default();
                        failed.lock().unwrap().push((seed, text));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    for (seed, text) in &failed {
        println!("IGA_SIMULATION_SEEDS={seed}..{} {text}", seed + 1);
    }
    println!("{} worlds", seeds.count());
    assert!(failed.is_empty(), "{} worlds broke a rule", failed.len());
}

fn seeds() -> Range<u64> {
    let Ok(given) = std::env::var("IGA_SIMULATION_SEEDS") else { return 0..SEEDS };
    let (first, end) = given.split_once("..").expect("IGA_SIMULATION_SEEDS is like 100..200");
    first.parse().unwrap()..end.parse().unwrap()
}

fn simulate(seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(World::new(seed).run());
}

/// What goes wrong in one world, and all that has happened in it.
struct World {
    seed: u64,
    /// One request in so many to Cloud Storage meets a fault; 0 is none.
    fault_in: usize,
    model_fault_in: usize,
    /// An account without `storage.objects.delete`.
    overwrites_are_refused: bool,
    has_date: bool,
    has_mutation_limit: bool,
    model_time: Range<u64>,
    start: Instant,
    state: Mutex<Happened>,
}

struct Happened {
    rng: Rng,
    /// Faults are over.
    is_calm: bool,
    objects: BTreeMap<String, Object>,
    generations: u64,
    last_mutation: BTreeMap<String, Instant>,
    /// By prompt: images made, and those of them whose response was lost.
    paid: BTreeMap<String, usize>,
    lost: BTreeMap<String, usize>,
    /// Expired leases that another holder overwrote.
    takeovers: usize,
    /// Leases that another holder overwrote before they had expired.
    broken_leases: Vec<String>,
    log: Vec<String>,
}

#[derive(Clone)]
struct Object {
    resource: Value,
    updated: Instant,
    generation: u64,
}

/// When an instance's requests to Cloud Storage get no answer: for the others it is frozen.
type Partition = Range<Instant>;

struct Instance {
    app: Arc<App>,
    server: JoinHandle<()>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Wish {
    key: Option<String>,
    prompt: String,
}

#[derive(Clone)]
struct Endpoint {
    world: Arc<World>,
    partition: Option<Partition>,
    name: usize,
}

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Slow(u64),
    /// Never arrives, and gets no answer.
    Dropped,
    /// Is done, and gets no answer.
    Unanswered,
    /// Is done after its sender has given up.
    Late(u64),
    Status(u16),
    /// Is done, and answered with a status.
    DoneButStatus(u16),
    DoneButCutShort,
}

impl World {
    fn new(seed: u64) -> Arc<World> {
        let mut rng = Rng::new(seed);
        let level = seed % 4;
        Arc::new(World {
            seed,
            fault_in: [0, 12, 6, 3][level as usize],
            model_fault_in: if level == 0 { 0 } else { 8 },
            overwrites_are_refused: rng.one_in(6),
            has_date: !rng.one_in(6),
            has_mutation_limit: !rng.one_in(4),
            model_time: [1..4, 5..15, 15..40][rng.below(3)].clone(),
            start: Instant::now(),
            state: Mutex::new(Happened {
                rng,
                is_calm: false,
                objects: BTreeMap::new(),
                generations: 0,
                last_mutation: BTreeMap::new(),
                paid: BTreeMap::new(),
                lost: BTreeMap::new(),
                takeovers: 0,
                broken_leases: Vec::new(),
                log: Vec::new(),
            }),
        })
    }

    async fn run(self: Arc<World>) {
        let mut rng = self.state().rng.fork();
        let instances = 2 + rng.below(2);
        let mut all = Vec::new();
        for name in 0..instances {
            let freezes = self.fault_in > 0 && rng.one_in(3);
            let from = self.start + rng.seconds(30);
            let partition = freezes.then(|| from..from + rng.seconds(60));
            all.push(self.instance(name, partition).await);
        }
        let apps: Vec<_> = all.iter().map(|instance| Arc::clone(&instance.app)).collect();
        let callers: Vec<_> = (0..3 + rng.below(4))
            .map(|number| {
                let caller = Arc::clone(&self).caller(number, apps.clone(), rng.fork());
                tokio::spawn(caller)
            })
            .collect();
        let mut told = Vec::new();
        for caller in callers {
            told.extend(caller.await.unwrap());
        }
        // Half of the worlds stop as on SIGTERM while work is under way.
        let patience = if rng.one_in(2) { 8 } else { 600 };
        for instance in &all {
            instance.app.flights.stop(Instant::now() + Duration::from_secs(patience)).await;
        }
        self.state().is_calm = true;
        self.log("calm");
        sleep(LEASE_LIFE + Duration::from_secs(2)).await;
        self.images_are_found_again(&told).await;
        drop(all);
    }

    /// Asks for each key once more, of a new instance without faults, and checks what all have got.
    async fn images_are_found_again(self: &Arc<World>, told: &[(Wish, Option<Generated>)]) {
        let last = self.instance(99, None).await;
        let wishes: BTreeSet<_> = told.iter().map(|(wish, _)| wish.clone()).collect();
        for wish in wishes {
            let broken = self.state().broken_leases.clone();
            if !broken.is_empty() {
                self.broke(&format!("a live lease was taken over: {broken:?}"), &wish);
            }
            let stored = self.images_of(&wish);
            let paid = self.paid(&wish);
            // Paid by an instance that has stopped, or by a flight whose deadline has passed, and not stored.
            let gone = paid.saturating_sub(stored.len() + self.lost(&wish));
            let life = if self.overwrites_are_refused { GENERATION } else { Duration::ZERO };
            // Without a date a lease's end counts from when it was first seen.
            let seen = if self.has_date { Duration::ZERO } else { LEASE_LIFE };
            let limit = Duration::from_secs(self.model_time.end + 10) + life + seen;
            let answer = timeout(limit, self.ask(&last.app, &wish, "afterwards")).await;
            let Ok(answer) = answer else { self.broke("a lease outlives its holder", &wish) };
            // Where nothing tells how old a lease is that may not be overwritten, none may follow it.
            let is_unknowable = self.overwrites_are_refused && !self.has_date;
            if is_unknowable && stored.is_empty() && answer.is_err() {
                continue;
            }
            let Ok(generated) = answer else {
                self.broke(&format!("afterwards there is no answer: {answer:?}"), &wish)
            };
            let may_be_new = wish.key.is_none() && !self.is_window_long();
            if !stored.is_empty() && self.paid(&wish) > paid && !may_be_new {
                self.broke("an image was there and another one was paid", &wish);
            }
            let mut images: BTreeSet<_> = told
                .iter()
                .filter(|(other, _)| *other == wish)
                .filter_map(|(_, generated)| Some(generated.as_ref()?.object.clone()))
                .collect();
            images.insert(generated.object);
            if let Some(gone) = images.iter().find(|name| !self.state().objects.contains_key(*name))
            {
                self.broke(&format!("told, and not there: {gone}"), &wish);
            }
            if wish.key.is_some() && images.len() > 1 {
                self.broke(&format!("a key was told of {images:?}"), &wish);
            }
            if wish.key.is_some() {
                let (lost, takeovers) = (self.lost(&wish), self.state().takeovers);
                if self.paid(&wish) > 1 + lost + takeovers + gone {
                    let paid = self.paid(&wish);
                    self.broke(
                        &format!("{paid} paid, {lost} responses lost, {takeovers} taken over, {gone} gone"),
                        &wish,
                    );
                }
            }
        }
        last.server.abort();
    }

    /// One caller as CPOA is one: three tries of 20 s, with pauses.
    async fn caller(
        self: Arc<World>,
        number: usize,
        apps: Vec<Arc<App>>,
        mut rng: Rng,
    ) -> Vec<(Wish, Option<Generated>)> {
        let wish = if rng.one_in(3) {
            Wish { key: None, prompt: format!("free-{}", rng.below(2)) }
        } else {
            let key = rng.below(2);
            Wish { key: Some(format!("key-{key}")), prompt: format!("keyed-{key}") }
        };
        sleep(rng.seconds(20)).await;
        let mut told = Vec::new();
        for attempt in 0..3 {
            let app = &apps[rng.below(apps.len())];
            let id = format!("caller-{number}-{attempt}");
            let answer = timeout(Duration::from_secs(20), self.ask(app, &wish, &id)).await;
            self.log(&format!("{id} {wish:?}: {answer:?}"));
            let answer = answer.ok().and_then(Result::ok);
            let is_told = answer.is_some();
            told.push((wish.clone(), answer));
            if is_told {
                break;
            }
            sleep(Duration::from_millis(if attempt == 0 { 500 } else { 1000 })).await;
        }
        told
    }

    async fn ask(&self, app: &Arc<App>, wish: &Wish, id: &str) -> Result<Generated, Error> {
        let body = json!({"prompt": wish.prompt}).to_string();
        let request = GenerateRequest::parse(body.as_bytes(), &app.config)?;
        let origin = Origin { request_id: id.to_owned(), workflow_id: None };
        let deadlines = Deadlines::new(app.config.generation_deadline, None);
        app.flights
            .answer(request, wish.key.clone(), origin, deadlines)
            .await
            .map(|(generated, _)| generated)
    }

    async fn instance(self: &Arc<World>, name: usize, partition: Option<Partition>) -> Instance {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let url = format!("http://{host}");
        if let Some(partition) = &partition {
            self.log(&format!("instance {name} is cut off {:?}", self.since(partition)));
        }
        let endpoint = Endpoint { world: Arc::clone(self), partition, name };
        let router = Router::new().fallback(respond).with_state(endpoint);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let window = if self.is_window_long() { "3600" } else { "5" };
        let config = Config::from_vars(|variable| {
            let value = match variable {
                "STORAGE_EMULATOR_HOST" | "IGA_VERTEXAI_ENDPOINT" => url.as_str(),
                "GCE_METADATA_HOST" => &host,
                "GCS_BUCKET_NAME" => "bucket",
                "IGA_VERTEXAI_PROJECT_ID" => "test-project",
                "IGA_VERTEXAI_LOCATION" => "global",
                "IGA_VERTEXAI_IMAGE_MODEL_ID" => "gemini-3.1-flash-image",
                "IGA_SHARED_RETRIES" => "yes",
                "IGA_RETRY_WINDOW_SECONDS" => window,
                "IGA_GENERATION_DEADLINE_SECONDS" => "90",
                _ => return None,
            };
            Some(value.to_owned())
        });
        Instance { app: App::new(config.unwrap()), server }
    }

    fn is_window_long(&self) -> bool {
        self.seed % 8 < 4
    }

    fn since(&self, partition: &Partition) -> [Duration; 2] {
        [partition.start, partition.end].map(|at| at - self.start)
    }

    fn state(&self) -> MutexGuard<'_, Happened> {
        self.state.lock().unwrap()
    }

    fn log(&self, text: &str) {
        let at = self.start.elapsed();
        self.state().log.push(format!("{at:?} {text}"));
    }

    #[track_caller]
    fn broke(&self, rule: &str, wish: &Wish) -> ! {
        let state = self.state();
        let world = format!(
            "fault_in {} refused {} date {} limit {} model {:?}",
            self.fault_in,
            self.overwrites_are_refused,
            self.has_date,
            self.has_mutation_limit,
            self.model_time
        );
        let log = state.log.join("\n  ");
        drop(state);
        panic!("{rule}: {wish:?}\n  {world}\n  {log}");
    }

    fn images_of(&self, wish: &Wish) -> Vec<String> {
        let prompt = iga::id::sha256_hex(&[wish.prompt.as_bytes()]);
        let state = self.state();
        let images = state
            .objects
            .iter()
            .filter(|(_, object)| object.resource["metadata"]["prompt_sha256"] == prompt);
        images.map(|(name, _)| name.clone()).collect()
    }

    fn paid(&self, wish: &Wish) -> usize {
        self.state().paid.get(&wish.prompt).copied().unwrap_or_default()
    }

    fn lost(&self, wish: &Wish) -> usize {
        self.state().lost.get(&wish.prompt).copied().unwrap_or_default()
    }

    fn storage_fault(&self) -> Fault {
        let mut state = self.state();
        if self.fault_in == 0 || state.is_calm || !state.rng.one_in(self.fault_in) {
            return Fault::None;
        }
        let rng = &mut state.rng;
        match rng.below(9) {
            0 => Fault::Slow(rng.below(1900) as u64),
            1 => Fault::Dropped,
            2 | 3 => Fault::Unanswered,
            4 => Fault::Late(rng.below(15_000) as u64),
            5 => Fault::Status([429, 503, 500][rng.below(3)]),
            6 => Fault::DoneButStatus([503, 500][rng.below(2)]),
            7 => Fault::DoneButCutShort,
            _ => Fault::Slow(rng.below(200) as u64),
        }
    }

    /// Does what a request to Cloud Storage asks for: a status and a body.
    fn apply(&self, request: &StorageRequest) -> (u16, Value) {
        let mut state = self.state();
        match request {
            StorageRequest::Stat(name) => match state.objects.get(name) {
                Some(object) => (200, object.resource.clone()),
                None => (404, google_error("No such object")),
            },
            StorageRequest::List(prefix) => {
                let objects = state.objects.iter().filter(|(name, _)| name.starts_with(prefix));
                let items: Vec<_> = objects.map(|(_, object)| object.resource.clone()).collect();
                (200, if items.is_empty() { json!({}) } else { json!({"items": items}) })
            }
            StorageRequest::Insert { name, if_generation, resource } => {
                let old = state.objects.get(name).cloned();
                let generation = old.as_ref().map_or(0, |old| old.generation);
                if generation != *if_generation {
                    return (412, google_error("conditionNotMet"));
                }
                if old.is_some() && self.overwrites_are_refused {
                    return (403, google_error("storage.objects.delete denied"));
                }
                let now = Instant::now();
                let limited = state
                    .last_mutation
                    .get(name)
                    .is_some_and(|last| now.duration_since(*last) < Duration::from_millis(990));
                if limited && self.has_mutation_limit {
                    return (429, google_error("rateLimitExceeded"));
                }
                if let Some(old) = &old {
                    let holder = |resource: &Value| resource["metadata"]["holder"].clone();
                    let is_other = holder(&old.resource) != holder(resource);
                    let is_lease = old.resource["metadata"]["renewal"].is_string()
                        || old.resource["metadata"]["life_ms"].is_string();
                    if is_other && is_lease && resource["metadata"]["life_ms"].is_string() {
                        // A claim by another caller hands the lease's age on.
                        let aged = old.resource["metadata"]["aged_ms"].as_str();
                        let aged = aged.map_or(0, |aged| aged.parse().unwrap());
                        let age = now.duration_since(old.updated) + Duration::from_millis(aged);
                        if age < LEASE_LIFE {
                            state.broken_leases.push(format!("{name} after {age:?}"));
                        } else {
                            state.takeovers += 1;
                        }
                    }
                }
                state.generations += 1;
                let generation = state.generations;
                let mut resource = resource.clone();
                resource["generation"] = generation.to_string().into();
                let updated = self.clock();
                resource["updated"] = updated.format(&Rfc3339).unwrap().into();
                let object = Object { resource: resource.clone(), updated: now, generation };
                state.last_mutation.insert(name.clone(), now);
                state.objects.insert(name.clone(), object);
                (200, resource)
            }
        }
    }

    fn clock(&self) -> OffsetDateTime {
        let start = OffsetDateTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_345);
        start + self.start.elapsed()
    }

    fn dated(&self, status: u16, body: Body) -> Response {
        let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
        let date = self.clock().format(&Rfc2822).unwrap();
        // hyper adds a date of its own to a response without one.
        let date = if self.has_date { date } else { "unknown".to_owned() };
        response.headers_mut().insert("date", date.parse().unwrap());
        response
    }
}

#[derive(Debug)]
enum StorageRequest {
    Stat(String),
    List(String),
    Insert { name: String, if_generation: u64, resource: Value },
}

async fn respond(State(endpoint): State<Endpoint>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if path.ends_with("/token") {
        let token = json!({"access_token": "t", "expires_in": 36000, "token_type": "Bearer"});
        return token.to_string().into_response();
    }
    if path.starts_with("/computeMetadata/") {
        return StatusCode::NOT_FOUND.into_response();
    }
    let world = Arc::clone(&endpoint.world);
    if path.contains("/models/") {
        return world.model(request).await;
    }
    let request = StorageRequest::read(request).await;
    let is_cut_off = endpoint.partition.is_some_and(|range| range.contains(&Instant::now()));
    let fault = match is_cut_off && !world.state().is_calm {
        true => Fault::Dropped,
        false => world.storage_fault(),
    };
    let name = endpoint.name;
    let done =
        |text: &str| world.log(&format!("instance {name}: {} {fault:?} {text}", request.text()));
    let (status, body) = match fault {
        Fault::Dropped => {
            done("");
            return std::future::pending().await;
        }
        Fault::Status(status) => (status, google_error("it passes")),
        Fault::Late(ms) => {
            let late = Arc::clone(&world);
            tokio::spawn(async move {
                sleep(Duration::from_millis(ms)).await;
                let (status, _) = late.apply(&request);
                late.log(&format!("instance {name}: {} late {status}", request.text()));
            });
            return std::future::pending().await;
        }
        Fault::Slow(ms) => {
            sleep(Duration::from_millis(ms)).await;
            world.apply(&request)
        }
        Fault::None | Fault::Unanswered | Fault::DoneButStatus(_) | Fault::DoneButCutShort => {
            world.apply(&request)
        }
    };
    done(&status.to_string());
    match fault {
        Fault::Unanswered => std::future::pending().await,
        Fault::DoneButStatus(status) => {
            world.dated(status, Body::from(google_error("it passes").to_string()))
        }
        Fault::DoneButCutShort => world.dated(status, Body::from("{\"size\": \"0\", ")),
        _ => world.dated(status, Body::from(body.to_string())),
    }
}

impl World {
    async fn model(self: Arc<World>, request: Request) -> Response {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let prompt = body.pointer("/contents/0/parts/0/text").unwrap().as_str().unwrap().to_owned();
        let (fault, time) = {
            let mut state = self.state();
            let has_fault = self.model_fault_in > 0 && !state.is_calm;
            let has_fault = has_fault && state.rng.one_in(self.model_fault_in);
            let fault = has_fault.then(|| state.rng.below(3));
            let Range { start, end } = self.model_time;
            let time = start * 1000 + state.rng.below(((end - start) * 1000) as usize) as u64;
            (fault, Duration::from_millis(time))
        };
        if fault == Some(0) {
            return (StatusCode::SERVICE_UNAVAILABLE, google_error("busy").to_string())
                .into_response();
        }
        *self.state().paid.entry(prompt.clone()).or_default() += 1;
        self.log(&format!("model is paid for {prompt}, takes {time:?}"));
        if fault.is_some() {
            *self.state().lost.entry(prompt.clone()).or_default() += 1;
        }
        sleep(time).await;
        if fault == Some(1) {
            self.log("the model's response is lost");
            return (StatusCode::INTERNAL_SERVER_ERROR, "{}").into_response();
        }
        if fault == Some(2) {
            return std::future::pending().await;
        }
        let number = self.state().rng.below(1 << 30);
        let mut image = b"\x89PNG\r\n\x1a\n".to_vec();
        image.extend(std::iter::repeat_n(number.to_be_bytes(), 40).flatten());
        let part =
            json!({"inlineData": {"mimeType": "image/png", "data": BASE64_STANDARD.encode(image)}});
        let candidate =
            json!({"content": {"role": "model", "parts": [part]}, "finishReason": "STOP"});
        json!({"candidates": [candidate]}).to_string().into_response()
    }
}

impl StorageRequest {
    async fn read(request: Request) -> StorageRequest {
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (path, query) =
            (request.uri().path().to_owned(), request.uri().query().unwrap_or("").to_owned());
        let parameter = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(found, _)| *found == name).map(|(_, value)| decode(value)).next()
        };
        if request.method() == Method::POST {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let start = memchr::memmem::find(&body, b"\r\n\r\n").unwrap() + 4;
            let end = start + memchr::memmem::find(&body[start..], b"\r\n--").unwrap();
            let mut resource: Value = serde_json::from_slice(&body[start..end]).unwrap();
            let media = end + memchr::memmem::find(&body[end..], b"\r\n\r\n").unwrap() + 4;
            let close = memchr::memmem::rfind(&body, b"\r\n--").unwrap();
            resource["size"] = (close - media).to_string().into();
            let if_generation = parameter("ifGenerationMatch").unwrap().parse().unwrap();
            return StorageRequest::Insert {
                name: parameter("name").unwrap(),
                if_generation,
                resource,
            };
        }
        match path.split_once("/o/") {
            Some((_, name)) => StorageRequest::Stat(decode(name)),
            None => StorageRequest::List(parameter("prefix").unwrap()),
        }
    }

    fn text(&self) -> String {
        match self {
            StorageRequest::Stat(name) => format!("stat {name}"),
            StorageRequest::List(prefix) => format!("list {prefix}"),
            StorageRequest::Insert { name, if_generation, resource } => {
                format!("insert {name} over {if_generation} {}", resource["metadata"])
            }
        }
    }
}

fn google_error(message: &str) -> Value {
    json!({"error": {"message": message}})
}

const SEEDS: u64 = 200;
const THREADS: usize = 2;
const LEASE_LIFE: Duration = iga::config::Timing::DEFAULT.lease_life;
const GENERATION: Duration = Duration::from_secs(90);
