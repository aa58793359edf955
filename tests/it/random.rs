//! The payment rules hold for many callers with and without keys, on two instances, with faults at every stage.
//!
//! Each seed is one scenario. `IGA_TEST_SEEDS=100..200` selects other seeds; a failing scenario prints its seed.

use crate::support::random::Rng;
use crate::support::service::{BUCKET, CURRENT, HOUR, Response, client, config, emulator_with};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use iga::app::App;
use iga::error::Kind;
use iga::server;
use iga_emulator::{Action, Emulator, Fault, Options, Stage, StoredObject};
use reqwest::Client;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_payment_rules_hold_in_every_scenario() {
    let at_once = Arc::new(Semaphore::new(8));
    let scenarios: Vec<_> = seeds()
        .map(|seed| {
            let at_once = Arc::clone(&at_once);
            let scenario = async move {
                let _turn = at_once.acquire_owned().await.unwrap();
                Scenario::of(seed).run().await;
            };
            (seed, tokio::spawn(scenario))
        })
        .collect();
    for (seed, scenario) in scenarios {
        if scenario.await.is_err() {
            panic!("this scenario failed: IGA_TEST_SEEDS={seed}..{}", seed + 1);
        }
    }
}

fn seeds() -> Range<u64> {
    let Ok(given) = std::env::var("IGA_TEST_SEEDS") else { return 0..16 };
    let (first, end) = given.split_once("..").expect("IGA_TEST_SEEDS is like 100..200");
    first.parse().unwrap()..end.parse().unwrap()
}

/// The faults and the settings of one test run.
#[derive(Debug)]
struct Scenario {
    seed: u64,
    fault_level: FaultLevel,
    shared: bool,
    variant_age: Duration,
    answer_within: &'static str,
    max_generations: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FaultLevel {
    /// No faults.
    Off,
    /// All faults are transient, and no paid response is lost.
    Transient,
    /// Paid responses are lost, connections stall, an instance is killed.
    Severe,
}

/// The fields by which the service recognises equal requests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RequestSpec {
    key: Option<String>,
    prompt: String,
}

/// One request and its response.
#[derive(Debug)]
struct Exchange {
    spec: RequestSpec,
    /// Its `X-Workflow-ID`, which identifies its image.
    id: String,
    sent: Instant,
    ended: Instant,
    /// `None` if the caller left or the instance was killed.
    response: Option<Response>,
}

impl Scenario {
    fn of(seed: u64) -> Scenario {
        let mut rng = Rng::new(seed);
        let shared = rng.one_in(2);
        let variant_age = match rng.below(3) {
            0 => Duration::ZERO,
            // A receipt does not hold the age of its flight, so images would be shared within the hour.
            1 if !shared => HOUR,
            _ => SHORT_VARIANT_AGE,
        };
        Scenario {
            seed,
            fault_level: [
                FaultLevel::Off,
                FaultLevel::Transient,
                FaultLevel::Transient,
                FaultLevel::Severe,
            ][seed as usize % 4],
            shared,
            variant_age,
            answer_within: if rng.one_in(3) { "0.08" } else { "off" },
            max_generations: if rng.one_in(3) { "3" } else { "80" },
        }
    }

    async fn run(self) {
        let emulator = emulator_with(Options { latency: GENERATION, ..Options::default() }).await;
        let mut rng = Rng::new(!self.seed);
        faults(self.fault_level, &mut rng).into_iter().for_each(|fault| emulator.script(fault));

        let stalls = self.fault_level == FaultLevel::Severe;
        let instances = [(); 2].map(|()| self.instance(&emulator, stalls));
        let http = client();
        let inject_faults = tokio::spawn(self.inject_faults(
            emulator.clone(),
            Arc::clone(&instances[1]),
            rng.fork(),
        ));
        let callers: Vec<_> = (0..CALLERS)
            .map(|number| tokio::spawn(caller(number, instances.clone(), http.clone(), rng.fork())))
            .collect();
        let mut exchanges = Vec::new();
        for caller in callers {
            exchanges.extend(caller.await.unwrap());
        }
        inject_faults.await.unwrap();
        emulator.clear_faults();
        for instance in &instances {
            instance.stop().await;
        }

        // Leases that an instance left behind expire before new instances get the same requests.
        emulator.advance_clock(LEASE_LIFE + Duration::from_secs(2));
        let instances = [(); 2].map(|()| self.instance(&emulator, false));
        let specs: BTreeSet<_> = exchanges.iter().map(|exchange| exchange.spec.clone()).collect();
        let mut asked = Vec::new();
        for (number, spec) in specs.iter().enumerate() {
            for (place, instance) in instances.iter().enumerate() {
                let (instance, http, spec) = (Arc::clone(instance), http.clone(), spec.clone());
                let id = format!("afterwards-{number}-{place}");
                asked.push(tokio::spawn(async move {
                    ask_until_not_503(&instance, &http, &spec, &id).await
                }));
            }
        }
        let mut afterwards = Vec::new();
        for asked in asked {
            afterwards.extend(asked.await.unwrap());
        }
        for instance in &instances {
            instance.stop().await;
        }
        Results {
            scenario: &self,
            exchanges,
            afterwards,
            objects: emulator.objects(),
            paid: paid(&emulator),
        }
        .check();
    }

    /// An instance whose limits are short if Google stalls; otherwise a busy machine does not reach them.
    fn instance(&self, emulator: &Emulator, stalls: bool) -> Arc<Instance> {
        let shared = if self.shared { "yes" } else { "no" };
        let deadline = if stalls { "3" } else { "60" };
        let settings = [
            CURRENT,
            &[
                ("IGA_SHARED_RETRIES", shared),
                ("IGA_ANSWER_WITHIN_SECONDS", self.answer_within),
                ("IGA_MAX_GENERATIONS", self.max_generations),
                ("IGA_GENERATION_DEADLINE_SECONDS", deadline),
                ("IGA_RETRY_WINDOW_SECONDS", "3600"),
            ],
        ];
        let mut config = config(emulator, &settings.concat());
        config.timing.variant_age = self.variant_age;
        config.timing.lease_life = LEASE_LIFE;
        let one_try = if stalls { Duration::from_millis(600) } else { HOUR };
        (config.timing.record_try, config.timing.upload_try) = (one_try, one_try);
        Instance::start(App::new(config))
    }

    /// Injects faults while the callers send requests.
    fn inject_faults(
        &self,
        emulator: Emulator,
        doomed: Arc<Instance>,
        mut rng: Rng,
    ) -> impl Future<Output = ()> + use<> {
        let fault_level = self.fault_level;
        async move {
            if fault_level == FaultLevel::Off {
                return;
            }
            for _ in 0..3 {
                sleep(rng.ms(150)).await;
                emulator.expire_tokens();
                faults(fault_level, &mut rng)
                    .into_iter()
                    .take(3)
                    .for_each(|fault| emulator.script(fault));
            }
            if fault_level == FaultLevel::Severe && rng.one_in(2) {
                doomed.die();
                emulator.advance_clock(LEASE_LIFE + Duration::from_secs(2));
            }
        }
    }
}

/// The stop signal of an instance, and the task that ends after it.
type Stop = (oneshot::Sender<()>, JoinHandle<()>);

/// An instance with its own threads, so that it can be killed with its tasks.
struct Instance {
    url: String,
    runtime: std::sync::Mutex<Option<Runtime>>,
    stop: std::sync::Mutex<Option<Stop>>,
    dead: AtomicBool,
}

impl Instance {
    fn start(app: Arc<App>) -> Arc<Instance> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let serving = runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            server::serve(app, listener, async move { stopped.await.unwrap() }).await
        });
        let (runtime, stop) = (Some(runtime).into(), Some((stop, serving)).into());
        Arc::new(Instance { url, runtime, stop, dead: AtomicBool::new(false) })
    }

    /// Stops as on SIGTERM, and returns when every flight has ended.
    async fn stop(&self) {
        let (stop, serving) = self.stop.lock().unwrap().take().unwrap();
        if !self.dead.load(Ordering::SeqCst) {
            stop.send(()).unwrap();
            serving.await.unwrap();
        }
        self.die();
    }

    /// Stops as on SIGKILL.
    fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }

    /// Sends a request; the caller leaves after `patience`.
    async fn ask(
        &self,
        http: &Client,
        spec: &RequestSpec,
        id: &str,
        patience: Duration,
    ) -> Exchange {
        let body = json!({"prompt": spec.prompt}).to_string();
        let mut request = http.post(format!("{}/generate_image", self.url)).body(body);
        request = request.header("content-type", "application/json").header("x-workflow-id", id);
        if let Some(key) = &spec.key {
            request = request.header("idempotency-key", key);
        }
        let sent = Instant::now();
        let received = async {
            let response = request.send().await?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let body =
                serde_json::from_slice(&response.bytes().await?).expect("every response is JSON");
            Ok::<_, reqwest::Error>(Response { status, headers, body })
        };
        let response = match timeout(patience, received).await {
            Ok(Ok(response)) => Some(response),
            Ok(Err(error)) => {
                assert!(self.dead.load(Ordering::SeqCst), "no response to {spec:?}: {error:?}");
                None
            }
            Err(_) => {
                assert!(patience < HOUR);
                None
            }
        };
        Exchange { spec: spec.clone(), id: id.to_owned(), sent, ended: Instant::now(), response }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.die();
    }
}

/// A caller that tries up to three times, on either instance, and sometimes leaves.
async fn caller(
    number: usize,
    instances: [Arc<Instance>; 2],
    http: Client,
    mut rng: Rng,
) -> Vec<Exchange> {
    let spec = RequestSpec::any(&mut rng);
    let mut exchanges: Vec<Exchange> = Vec::new();
    sleep(rng.ms(500)).await;
    for attempt in 0..3 {
        let instance = &instances[rng.below(2)];
        let patience = if rng.one_in(6) { rng.ms(200) } else { HOUR };
        exchanges.push(
            instance.ask(&http, &spec, &format!("caller-{number}-{attempt}"), patience).await,
        );
        let response = exchanges.last().and_then(|exchange| exchange.response.as_ref());
        if response.is_some_and(|response| response.status < 500) {
            break;
        }
        sleep(rng.ms(100)).await;
    }
    exchanges
}

/// Repeats a request until its response is not a 503.
async fn ask_until_not_503(
    instance: &Instance,
    http: &Client,
    spec: &RequestSpec,
    id: &str,
) -> Vec<Exchange> {
    let mut all = Vec::new();
    loop {
        let exchange = instance.ask(http, spec, &format!("{id}-{}", all.len()), HOUR).await;
        let status = exchange.response.as_ref().unwrap().status;
        all.push(exchange);
        if status != 503 {
            return all;
        }
        assert!(all.len() < 2000, "{all:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

impl RequestSpec {
    fn any(rng: &mut Rng) -> RequestSpec {
        if rng.one_in(3) {
            return RequestSpec { key: None, prompt: format!("free {}.", rng.below(4)) };
        }
        let number = rng.below(7);
        let which = if rng.one_in(8) { "other" } else { "usual" };
        RequestSpec {
            key: Some(format!("key-{number}")),
            prompt: format!("key {number}, the {which}."),
        }
    }

    /// The value by which the service recognises a retry.
    fn identity(&self) -> &str {
        self.key.as_deref().unwrap_or(&self.prompt)
    }
}

fn faults(fault_level: FaultLevel, rng: &mut Rng) -> Vec<Fault> {
    use Action::*;
    let mut table = vec![
        (Stage::Token, Action::status(500)),
        (Stage::Model, Action::status(400)),
        (Stage::Model, Action::status(429)),
        (Stage::Model, Action::status(500)),
        (Stage::Model, Action::status(503)),
        (Stage::Model, Reset),
        (Stage::Model, Delay { ms: 300 }),
        (Stage::Response, Delay { ms: 200 }),
        (Stage::Read, Action::status(503)),
        (Stage::Read, Reset),
        (Stage::Read, Truncate),
        (Stage::UploadStart, Action::status(403)),
        (Stage::UploadStart, Action::status(429)),
        (Stage::UploadStart, Action::status(503)),
        (Stage::UploadStart, Reset),
        (Stage::UploadStart, Delay { ms: 150 }),
        (Stage::UploadBody, Action::status(500)),
        (Stage::UploadBody, Reset),
        (Stage::UploadBody, Truncate),
        (Stage::UploadEnd, Action::status(500)),
        (Stage::UploadEnd, Delay { ms: 150 }),
        (Stage::UploadEnd, Reset),
        (Stage::UploadEnd, Truncate),
        (Stage::UploadEnd, WrongChecksum),
    ];
    if fault_level == FaultLevel::Severe {
        table.extend([
            (Stage::Model, Stall),
            (Stage::Response, Action::status(500)),
            (Stage::Response, Reset),
            (Stage::Response, Stall),
            (Stage::Response, Truncate),
            (Stage::Read, Stall),
            (Stage::UploadStart, Stall),
            (Stage::UploadBody, Stall),
            (Stage::UploadEnd, Stall),
            (Stage::Delete, Action::status(503)),
            (Stage::Delete, Reset),
            (Stage::Delete, Stall),
        ]);
    }
    let count = if fault_level == FaultLevel::Off { 0 } else { 4 + rng.below(8) };
    let mut any = || {
        let (stage, action) = table[rng.below(table.len())].clone();
        let fault = Fault::new(stage, action).times(1 + rng.below(3) as u32);
        match stage {
            Stage::Token | Stage::Model | Stage::Response => fault,
            Stage::Read
            | Stage::Stat
            | Stage::Download
            | Stage::List
            | Stage::Permissions
            | Stage::UploadStart
            | Stage::UploadBody
            | Stage::UploadEnd
            | Stage::Delete
            | Stage::DeleteEnd => fault.matching(["", "/.iga/", "/iga_req_"][rng.below(3)]),
        }
    };
    (0..count).map(|_| any()).collect()
}

/// The number of paid images of each prompt.
fn paid(emulator: &Emulator) -> BTreeMap<String, usize> {
    let mut paid = BTreeMap::new();
    for request in emulator.requests().into_iter().filter(|request| request.paid) {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let prompt = body.pointer("/contents/0/parts/0/text").unwrap().as_str().unwrap();
        *paid.entry(prompt.to_owned()).or_default() += 1;
    }
    paid
}

/// Everything that is known after a scenario.
struct Results<'a> {
    scenario: &'a Scenario,
    exchanges: Vec<Exchange>,
    afterwards: Vec<Exchange>,
    objects: Vec<StoredObject>,
    paid: BTreeMap<String, usize>,
}

impl Results<'_> {
    fn check(&self) {
        self.all()
            .filter_map(|exchange| exchange.response.as_ref())
            .for_each(is_a_row_of_the_contract);
        self.every_200_has_its_image();
        self.a_key_has_one_response();
        self.only_a_reused_key_is_422();
        self.only_equal_requests_share_an_image();
        self.no_more_is_paid_than_promised();
        self.no_image_is_lost();
        self.no_lease_is_left();
        self.afterwards_every_key_and_prompt_has_an_image();
        if self.scenario.fault_level == FaultLevel::Off {
            self.without_faults_nothing_fails();
        }
    }

    fn all(&self) -> impl Iterator<Item = &Exchange> {
        self.exchanges.iter().chain(&self.afterwards)
    }

    /// The exchanges that delivered an image, and the names of their objects.
    fn delivered(&self) -> impl Iterator<Item = (&Exchange, &str)> {
        self.all().filter_map(|exchange| {
            let response = exchange.response.as_ref().filter(|response| response.status == 200)?;
            let name = response.text("image_url").strip_prefix(&format!("gs://{BUCKET}/"));
            Some((exchange, name.expect("an object in the bucket")))
        })
    }

    fn images(&self) -> impl Iterator<Item = &StoredObject> {
        self.objects.iter().filter(|object| !object.name.contains("/.iga/"))
    }

    fn records(&self) -> impl Iterator<Item = &Value> {
        let is_record = |object: &&StoredObject| {
            object.name.contains("/.iga/") && !object.name.contains("/writable")
        };
        let records = self.objects.iter().filter(is_record);
        records.map(|object| &object.metadata["metadata"])
    }

    /// The exchange that an image was paid for.
    fn payer(&self, image: &StoredObject) -> &Exchange {
        let id = image.metadata["metadata"]["workflow_id"].as_str().unwrap();
        self.all().find(|exchange| exchange.id == id).expect("every image belongs to a request")
    }

    fn every_200_has_its_image(&self) {
        for (exchange, name) in self.delivered() {
            let response = exchange.response.as_ref().unwrap();
            response.is_image();
            assert_eq!(response.text("prompt_used"), exchange.spec.prompt);
            assert_eq!(response.text("model_version"), "vertex-ai-gemini-3.1-flash-image");
            let image = self.images().find(|image| image.name == name);
            let image = image
                .unwrap_or_else(|| panic!("{exchange:?} got the name of an image that is missing"));
            let whole =
                image.bytes.starts_with(b"\x89PNG\r\n\x1a\n") && image.bytes.ends_with(IEND);
            assert!(whole && image.metadata["contentType"] == "image/png", "{image:?}");
            let crc32c = BASE64_STANDARD.encode(crc32c::crc32c(&image.bytes).to_be_bytes());
            assert_eq!(image.metadata["crc32c"], crc32c);
        }
    }

    fn a_key_has_one_response(&self) {
        let mut responses = BTreeMap::new();
        for (exchange, _) in self.delivered().filter(|(exchange, _)| exchange.spec.key.is_some()) {
            let body = &exchange.response.as_ref().unwrap().body;
            assert_eq!(*responses.entry(&exchange.spec.key).or_insert(body), body, "{exchange:?}");
        }
    }

    fn only_a_reused_key_is_422(&self) {
        for refused in self.all().filter(|exchange| {
            exchange.response.as_ref().is_some_and(|response| response.status == 422)
        }) {
            let (key, prompt) = (&refused.spec.key, &refused.spec.prompt);
            let used = |exchange: &Exchange| {
                exchange.spec.key == *key
                    && exchange.spec.prompt != *prompt
                    && exchange.sent < refused.ended
            };
            assert!(key.is_some() && self.all().any(used), "{refused:?}");
        }
    }

    fn only_equal_requests_share_an_image(&self) {
        for (exchange, name) in self.delivered() {
            let image = self.images().find(|image| image.name == name).unwrap();
            let payer = self.payer(image);
            assert_eq!(exchange.spec, payer.spec, "{exchange:?} got the image of {payer:?}");
            if exchange.spec.key.is_none() && exchange.id != payer.id {
                // The retry was sent before `ended`, and the flight began after the payer sent its request.
                let apart = exchange.ended.saturating_duration_since(payer.sent);
                assert!(
                    apart >= self.scenario.variant_age,
                    "a variant got the image of another: {exchange:?} {payer:?}"
                );
            }
        }
    }

    fn no_more_is_paid_than_promised(&self) {
        if self.scenario.fault_level == FaultLevel::Severe {
            return;
        }
        let mut paid = BTreeMap::<_, usize>::new();
        let specs: BTreeSet<_> = self.all().map(|exchange| &exchange.spec).collect();
        for spec in specs {
            *paid.entry((spec.key.is_some(), spec.identity())).or_default() +=
                self.paid.get(&spec.prompt).copied().unwrap_or_default();
        }
        for ((has_key, identity), paid) in paid {
            let requests =
                self.all().filter(|exchange| exchange.spec.identity() == identity).count();
            let most = match self.scenario.variant_age {
                _ if has_key => 1,
                Duration::ZERO if self.scenario.shared => 1,
                // Each of the four instances, two of them afterwards, may pay once.
                Duration::ZERO => 4,
                _ => requests,
            };
            assert!(paid <= most, "{identity} was paid for {paid} times, at most {most} are right");
        }
    }

    /// An undelivered image belongs to a caller that left or got an error, and to a request without a key.
    fn no_image_is_lost(&self) {
        let delivered: BTreeSet<_> = self.delivered().map(|(_, name)| name).collect();
        let received: BTreeSet<_> =
            self.records().filter_map(|record| record["object"].as_str()).collect();
        for image in self.images().filter(|image| !delivered.contains(&*image.name)) {
            let payer = self.payer(image);
            let got_image = payer.response.as_ref().is_some_and(|response| response.status == 200);
            if self.scenario.fault_level != FaultLevel::Severe {
                assert!(!got_image, "{payer:?} got another image than its own, {}", image.name);
                assert!(
                    payer.spec.key.is_none(),
                    "{payer:?} paid, and no caller got {}",
                    image.name
                );
            }
        }
        for object in received {
            assert!(
                self.images().any(|image| image.name == object),
                "the receipt names {object}, which is missing"
            );
        }
    }

    fn no_lease_is_left(&self) {
        for record in self.records() {
            let is_over = record["object"].is_string() || record["released"].is_string();
            assert!(is_over, "{record}");
        }
    }

    fn afterwards_every_key_and_prompt_has_an_image(&self) {
        for exchange in &self.afterwards {
            let status = exchange.response.as_ref().unwrap().status;
            assert!([200, 422, 503].contains(&status), "{exchange:?}");
        }
        for exchange in &self.exchanges {
            let same = |other: &&Exchange| other.spec.identity() == exchange.spec.identity();
            let responses: Vec<_> = self
                .afterwards
                .iter()
                .filter(same)
                .filter_map(|exchange| exchange.response.as_ref())
                .collect();
            assert!(
                responses.iter().any(|response| response.status == 200),
                "{exchange:?} {responses:?}"
            );
        }
    }

    fn without_faults_nothing_fails(&self) {
        for exchange in self.all() {
            let Some(response) = &exchange.response else { continue };
            match (response.status, response.text("error_code")) {
                (200, _) | (422, _) => {}
                (503, "IGA_OVERLOADED") => {
                    assert_ne!(self.scenario.max_generations, "80", "{exchange:?}")
                }
                (503, "IGA_VERTEXAI_API_ERROR") => {
                    assert_ne!(self.scenario.answer_within, "off", "{exchange:?}");
                    response.details_have("the image is not ready yet");
                }
                _ => panic!("{exchange:?}"),
            }
        }
    }
}

fn is_a_row_of_the_contract(response: &Response) {
    assert!(response.header("x-request-id").starts_with("iga_req_"), "{response:?}");
    if response.status == 200 {
        return;
    }
    let (code, message) = (response.text("error_code"), response.text("message"));
    response.is_error(response.status, code);
    let is_row = Kind::ALL
        .iter()
        .map(|kind| kind.row())
        .any(|row| (row.status, row.code, row.message) == (response.status, code, message));
    assert!(is_row && code != "IGA_INTERNAL_SERVER_ERROR", "{response:?}");
    assert_eq!(
        matches!(response.status, 429 | 503),
        !response.header("retry-after").is_empty(),
        "{response:?}"
    );
}

const CALLERS: usize = 40;
/// Longer than [`SHORT_VARIANT_AGE`], because real generations are longer than the real variant age.
const GENERATION: Duration = Duration::from_millis(60);
const SHORT_VARIANT_AGE: Duration = Duration::from_millis(30);
const LEASE_LIFE: Duration = Duration::from_secs(12);
/// The end of every PNG.
const IEND: &[u8] = b"IEND\xae\x42\x60\x82";
