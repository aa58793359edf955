//! IGA and the emulator against what Google publishes: its clients, the bodies that they send, the limit of changes of
//! an object, and the faults that clients of Cloud Storage must cope with.

use crate::support::process::command;
use crate::support::service::{
    CURRENT, PACED, PROMPT, Response, Service, config, emulator, emulator_that_limits,
    emulator_with, eventually, fetch, images, only_image, records,
};
use iga::config::{Config, Timing};
use iga_emulator::{
    Action, Emulator, Fault, OperationKind, Options, Recorded, Stage, StorageOperation,
};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

// ---- Google's clients

/// `iga-local emulator`, as a process.
struct LocalEmulator {
    _process: Child,
    _images: TempDir,
    url: String,
}

impl LocalEmulator {
    async fn start() -> LocalEmulator {
        let images = TempDir::new().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_iga-local"))
            .arg("emulator")
            .args(["--anonymous", "--unlimited-mutations", "--revive", IMAGEN])
            .arg("--dir")
            .arg(images.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = lines.next_line().await.unwrap().expect("it prints its address");
        LocalEmulator { _process: process, _images: images, url }
    }
}

#[tokio::test]
#[ignore = "needs Google's clients for Python"]
async fn googles_clients_for_python_work_with_the_emulator() {
    let emulator = LocalEmulator::start().await;
    let output = python("clients.py", &[&emulator.url]).await;
    assert_rows(&output, 69);
}

#[tokio::test]
#[ignore = "needs Google's clients for Node.js"]
async fn googles_clients_for_node_work_with_the_emulator() {
    let emulator = LocalEmulator::start().await;
    let folder = std::env::var_os(NODE_MODULES).expect(NODE_MODULES);
    let mut node = Command::new("node");
    node.args([&program("clients.mjs"), &emulator.url]).env(NODE_MODULES, folder);
    let output = run(node).await;
    assert_rows(&output, 12);
}

fn program(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance").join(name);
    path.to_str().unwrap().to_owned()
}

/// Runs a program of `tests/conformance/` with the Python that has Google's clients.
async fn python(name: &str, arguments: &[&str]) -> Output {
    let python = std::env::var_os("IGA_TEST_GOOGLE_PYTHON").unwrap_or(OsString::from("python3"));
    let mut command = Command::new(python);
    command.args(["-W", "ignore", &program(name)]).args(arguments);
    run(command).await
}

/// Runs a program without the Google credentials of a developer, which would come first.
async fn run(mut command: Command) -> Output {
    let home = TempDir::new().unwrap();
    command
        .env_remove("GOOGLE_APPLICATION_CREDENTIALS")
        .envs([("HOME", home.path()), ("CLOUDSDK_CONFIG", home.path())]);
    command.kill_on_drop(true).output().await.expect("the program can be started")
}

#[track_caller]
fn assert_rows(output: &Output, count: usize) {
    let [printed, errors] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    let expected = format!("{count} of {count} calls as expected");
    assert!(
        output.status.success() && printed.lines().any(|line| line == expected),
        "{printed}\n{errors}"
    );
}

// ---- the bodies that google-genai sends

/// The same images, asked of IGA and of google-genai, and the differences that are right.
const BODIES: &str = include_str!("../conformance/bodies.json");

#[tokio::test]
#[ignore = "needs Google's clients for Python"]
async fn the_bodies_are_those_that_google_genai_sends() {
    let table: Value = serde_json::from_str(BODIES).unwrap();
    let pairs = table["pairs"].as_array().unwrap();
    let revive = [IMAGEN, "imagen-3.0-generate-001"].map(str::to_owned).into();
    let emulator = emulator_with(Options { revive, ..Options::default() }).await;
    for pair in pairs {
        let text = |name: &str| pair[name].as_str().unwrap_or_default();
        let settings = [
            ("IGA_VERTEXAI_IMAGE_MODEL_ID", text("model")),
            ("IGA_VERTEXAI_LOCATION", text("location")),
            ("IGA_VERTEXAI_LABELS", text("labels")),
        ];
        let mut request = pair["iga"].clone();
        request["prompt"] = PROMPT.into();
        let service = Service::on(emulator.clone(), &settings).await;
        service.post(request).await.is_image();
    }
    let output = python("bodies.py", &[&emulator.url(), PROMPT]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bodies = bodies(&emulator);
    let (ours, theirs) = bodies.split_at(pairs.len());
    assert_eq!(theirs.len(), pairs.len());

    let mut found = BTreeSet::new();
    for ((pair, ours), theirs) in pairs.iter().zip(ours).zip(theirs) {
        for path in paths(ours).union(&paths(theirs)) {
            let (ours, theirs) = (ours.pointer(path), theirs.pointer(path));
            if ours != theirs {
                found.insert(json!([pair["model"], path, ours, theirs]).to_string());
            }
        }
    }
    let known = table["differences"].as_array().unwrap().iter().map(|known| {
        assert!(known["reason"].is_string(), "{known}");
        let fields = ["model", "path", "iga", "google_genai"].map(|field| known[field].clone());
        Value::from_iter(fields).to_string()
    });
    assert_eq!(found, known.collect());
}

/// The bodies of all requests to a model, in order.
fn bodies(emulator: &Emulator) -> Vec<Value> {
    let is_generation = |request: &Recorded| request.path.contains("/publishers/google/models/");
    let requests = emulator.requests().into_iter().filter(is_generation);
    requests.map(|request| serde_json::from_slice(&request.body).unwrap()).collect()
}

/// The JSON pointers of all values that contain no other.
fn paths(value: &Value) -> BTreeSet<String> {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(elements) => {
            elements.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    if below.is_empty() {
        return BTreeSet::from([String::new()]);
    }
    let paths = below.into_iter().flat_map(|(name, value)| {
        paths(value).into_iter().map(move |path| format!("/{name}{path}"))
    });
    paths.collect()
}

// ---- the limit of changes of an object

/// IGA with its own pauses between two writes of a record, for an emulator with Cloud Storage's limit.
fn paced(emulator: &Emulator, settings: &[(&str, &str)]) -> Config {
    let mut config = config(emulator, &[CURRENT, settings].concat());
    config.timing.record_spacing = Timing::DEFAULT.record_spacing;
    config.timing.first_retry_wait = Timing::DEFAULT.first_retry_wait;
    config
}

async fn paced_pair(settings: &[(&str, &str)]) -> [Service; 2] {
    let emulator = emulator_that_limits(Options::default()).await;
    let one = Service::run(emulator.clone(), paced(&emulator, settings)).await;
    let other = Service::run(emulator.clone(), paced(&emulator, settings)).await;
    [one, other]
}

async fn with_key(service: &Service) -> Response {
    fetch(request_with_key(service)).await
}

fn request_with_key(service: &Service) -> RequestBuilder {
    let request = service.request().header("content-type", "application/json");
    request.header("idempotency-key", "k").body(json!({"prompt": PROMPT}).to_string())
}

fn inserts(emulator: &Emulator, part: &str) -> Vec<StorageOperation> {
    let is_wanted = |operation: &StorageOperation| {
        operation.kind == OperationKind::Insert && operation.object.contains(part)
    };
    emulator.operations().into_iter().filter(is_wanted).collect()
}

/// The only record, once it is a receipt.
async fn receipt(emulator: &Emulator) {
    eventually(|| records(emulator).iter().all(|record| record["object"].is_string())).await;
    assert_eq!(records(emulator).len(), 1);
}

#[tokio::test]
async fn a_fast_model_needs_no_change_that_the_limit_refuses() {
    let [service, _] = paced_pair(&[]).await;
    with_key(&service).await.is_image();
    receipt(&service.emulator).await;
    let statuses: Vec<_> =
        inserts(&service.emulator, KEY).iter().map(|operation| operation.status).collect();
    assert_eq!(statuses, [Some(200), Some(200)], "the lease and the receipt");
}

#[tokio::test]
async fn a_receipt_right_after_a_renewal_keeps_to_the_limit() {
    let emulator = emulator_that_limits(Options::default()).await;
    let mut config = paced(&emulator, &[]);
    // The first renewal comes after a second; the image arrives less than a second later.
    config.timing.lease_life = Duration::from_secs(3);
    let service = Service::run(emulator.clone(), config).await;
    service.fault(Stage::Model, Action::Delay { ms: 1400 });
    with_key(&service).await.is_image();
    receipt(&emulator).await;
    let writes = inserts(&emulator, KEY);
    assert!(writes.iter().any(|write| write.metadata.contains_key("renewal")), "{writes:?}");
    assert!(writes.iter().all(|write| write.status == Some(200)), "{writes:?}");
}

#[tokio::test]
async fn a_retry_right_after_a_failure_is_paid_once_under_the_limit() {
    for failures in [1, 2] {
        let [one, other] = paced_pair(&[]).await;
        one.emulator.script(Fault::new(Stage::Model, Action::status(500)).times(failures));
        for failed in 0..failures {
            let service = if failed == 0 { &one } else { &other };
            with_key(service).await.is_error(500, "IGA_VERTEXAI_API_ERROR");
        }
        let first = with_key(&other).await;
        assert_eq!(with_key(&one).await.body, first.is_image().body);
        receipt(&one.emulator).await;
        let paid = one.emulator.counters().paid_generations;
        assert_eq!((paid, images(&one.emulator).len()), (1, 1));
    }
}

#[tokio::test]
async fn equal_requests_on_two_instances_are_paid_once_under_the_limit() {
    let [one, other] = paced_pair(&[]).await;
    let (a, b, c, d) =
        tokio::join!(with_key(&one), with_key(&other), with_key(&one), with_key(&other));
    let responses = [a, b, c, d];
    for response in &responses {
        assert_eq!(response.is_image().body, responses[0].body);
    }
    receipt(&one.emulator).await;
    assert_eq!((one.emulator.counters().paid_generations, images(&one.emulator).len()), (1, 1));
}

/// Runs the tests of these modules again, with the limit and production's pauses.
#[tokio::test]
async fn flights_tasks_and_the_contract_hold_under_the_limit() {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["flights::", "contract::", "queue::", "--test-threads", "16"]).env(PACED, "yes");
    // Under the limit the second holder waits, and finds the first one's image.
    again.args(["--skip", "a_holder_that_finishes_second"]);
    // Two variants must arrive within 300 ms, which a busy machine does not ensure.
    again.args(["--skip", "the_retry_of_a_variant"]);
    let output = again.kill_on_drop(true).output().await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let count = printed.lines().filter(|line| line.ends_with(" ... ok")).count();
    assert!(output.status.success() && count > 50, "{printed}");
}

#[tokio::test]
async fn the_doctor_finds_a_healthy_bucket_healthy_under_the_limit() {
    let emulator = emulator_that_limits(Options::default()).await;
    let output = command(&emulator, CURRENT).arg("doctor").output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(emulator.objects().is_empty());
    let deletes = emulator.counters().deletes;
    assert!((2..=3).contains(&deletes), "{deletes} deletes: the first comes too early");
}

// ---- the faults of Google's conformance tests for clients of Cloud Storage

/// An operation of IGA that meets these faults, one after the other.
struct Retried {
    operation: Operation,
    faults: &'static [&'static str],
    /// The status of the response, or of the doctor 200 and 500.
    status: u16,
    /// How often the operation is requested.
    tries: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operation {
    /// The object that proves that the bucket accepts objects.
    Probe,
    Lease,
    Image,
    ReadRecord,
    ReadImage,
    List,
    Permissions,
    Delete,
}

const fn retried(
    operation: Operation,
    faults: &'static [&'static str],
    status: u16,
    tries: usize,
) -> Retried {
    Retried { operation, faults, status, tries }
}

/// Temporary errors are retried, at most twice, and others are not. On purpose IGA does more than Google's tests ask:
/// after a 401 it tries once with a new token, and it tries again to store an image that is paid. A refused question
/// for permissions is left unanswered, because the doctor then tries them.
const RETRIED: &[Retried] = &[
    retried(Operation::Probe, &["503", "503"], 200, 3),
    retried(Operation::Probe, &["reset", "reset"], 200, 3),
    retried(Operation::Probe, &["reset", "503"], 200, 3),
    retried(Operation::Probe, &["408"], 200, 2),
    retried(Operation::Probe, &["429"], 200, 2),
    retried(Operation::Probe, &["503", "503", "503"], 500, 3),
    retried(Operation::Probe, &["400"], 500, 1),
    retried(Operation::Probe, &["503", "400"], 500, 2),
    retried(Operation::Probe, &["401"], 200, 2),
    retried(Operation::Probe, &["reset", "401"], 200, 3),
    retried(Operation::Probe, &["401", "401"], 500, 2),
    retried(Operation::Lease, &["503", "503"], 200, 3),
    retried(Operation::Lease, &["reset", "reset"], 200, 3),
    retried(Operation::Lease, &["reset", "503"], 200, 3),
    retried(Operation::Lease, &["408"], 200, 2),
    retried(Operation::Lease, &["429"], 200, 2),
    retried(Operation::Lease, &["503", "503", "503"], 500, 3),
    retried(Operation::Lease, &["400"], 500, 1),
    retried(Operation::Lease, &["503", "400"], 500, 2),
    retried(Operation::Lease, &["401"], 200, 2),
    retried(Operation::Lease, &["reset", "401"], 200, 3),
    retried(Operation::Lease, &["401", "401"], 500, 2),
    retried(Operation::Image, &["503", "503"], 200, 3),
    retried(Operation::Image, &["reset", "reset"], 200, 3),
    retried(Operation::Image, &["reset", "503"], 200, 3),
    retried(Operation::Image, &["408"], 200, 2),
    retried(Operation::Image, &["429"], 200, 2),
    retried(Operation::Image, &["503", "503", "503"], 200, 4),
    retried(Operation::Image, &["400"], 200, 2),
    retried(Operation::Image, &["503", "400"], 200, 3),
    retried(Operation::Image, &["401"], 200, 2),
    retried(Operation::Image, &["reset", "401"], 200, 3),
    retried(Operation::Image, &["401", "401"], 200, 3),
    retried(Operation::ReadRecord, &["503", "503"], 200, 3),
    retried(Operation::ReadRecord, &["reset", "reset"], 200, 3),
    retried(Operation::ReadRecord, &["reset", "503"], 200, 3),
    retried(Operation::ReadRecord, &["408"], 200, 2),
    retried(Operation::ReadRecord, &["429"], 200, 2),
    retried(Operation::ReadRecord, &["503", "503", "503"], 500, 3),
    retried(Operation::ReadRecord, &["400"], 500, 1),
    retried(Operation::ReadRecord, &["503", "400"], 500, 2),
    retried(Operation::ReadRecord, &["401"], 200, 2),
    retried(Operation::ReadRecord, &["reset", "401"], 200, 3),
    retried(Operation::ReadRecord, &["401", "401"], 500, 2),
    retried(Operation::ReadImage, &["503", "503"], 200, 3),
    retried(Operation::ReadImage, &["reset", "reset"], 200, 3),
    retried(Operation::ReadImage, &["reset", "503"], 200, 3),
    retried(Operation::ReadImage, &["408"], 200, 2),
    retried(Operation::ReadImage, &["429"], 200, 2),
    retried(Operation::ReadImage, &["503", "503", "503"], 500, 3),
    retried(Operation::ReadImage, &["400"], 500, 1),
    retried(Operation::ReadImage, &["503", "400"], 500, 2),
    retried(Operation::ReadImage, &["401"], 200, 2),
    retried(Operation::ReadImage, &["reset", "401"], 200, 3),
    retried(Operation::ReadImage, &["401", "401"], 500, 2),
    retried(Operation::List, &["503", "503"], 200, 3),
    retried(Operation::List, &["reset", "reset"], 200, 3),
    retried(Operation::List, &["reset", "503"], 200, 3),
    retried(Operation::List, &["408"], 200, 2),
    retried(Operation::List, &["429"], 200, 2),
    retried(Operation::List, &["503", "503", "503"], 500, 3),
    retried(Operation::List, &["400"], 500, 1),
    retried(Operation::List, &["503", "400"], 500, 2),
    retried(Operation::List, &["401"], 200, 2),
    retried(Operation::List, &["reset", "401"], 200, 3),
    retried(Operation::List, &["401", "401"], 500, 2),
    retried(Operation::Delete, &["503", "503"], 200, 3),
    retried(Operation::Delete, &["reset", "reset"], 200, 3),
    retried(Operation::Delete, &["reset", "503"], 200, 3),
    retried(Operation::Delete, &["408"], 200, 2),
    retried(Operation::Delete, &["429"], 200, 2),
    retried(Operation::Delete, &["503", "503", "503"], 500, 3),
    retried(Operation::Delete, &["400"], 500, 1),
    retried(Operation::Delete, &["503", "400"], 500, 2),
    retried(Operation::Delete, &["401"], 200, 2),
    retried(Operation::Delete, &["reset", "401"], 200, 3),
    retried(Operation::Delete, &["401", "401"], 500, 2),
    retried(Operation::Permissions, &["408"], 200, 1),
    retried(Operation::Permissions, &["429"], 200, 1),
    retried(Operation::Permissions, &["400"], 200, 1),
    retried(Operation::Permissions, &["401"], 200, 2),
];

impl Operation {
    fn stage(self) -> Stage {
        match self {
            Operation::Probe | Operation::Lease | Operation::Image => Stage::UploadStart,
            Operation::ReadRecord | Operation::ReadImage => Stage::Stat,
            Operation::List => Stage::List,
            Operation::Permissions => Stage::Permissions,
            Operation::Delete => Stage::Delete,
        }
    }

    /// Part of the object's name.
    fn name(self) -> &'static str {
        match self {
            Operation::Probe => ".iga/writable",
            Operation::Lease | Operation::ReadRecord => KEY,
            Operation::Image | Operation::ReadImage | Operation::List => "/iga_req_",
            Operation::Permissions | Operation::Delete => "",
        }
    }

    fn is(self, operation: &StorageOperation) -> bool {
        let is_lease = operation.metadata.contains_key("life_ms");
        let kind = match self {
            Operation::Probe | Operation::Image => OperationKind::Insert,
            Operation::Lease if is_lease => OperationKind::Insert,
            Operation::Lease => return false,
            Operation::ReadRecord | Operation::ReadImage => OperationKind::Stat,
            Operation::List => OperationKind::List,
            Operation::Permissions => OperationKind::Bucket,
            Operation::Delete => OperationKind::Delete,
        };
        operation.kind == kind && operation.object.contains(self.name())
    }

    fn script(self, emulator: &Emulator, faults: &[&str]) {
        for fault in faults {
            let action = match *fault {
                "reset" => Action::Reset,
                status => Action::status(status.parse().unwrap()),
            };
            let fault = Fault::new(self.stage(), action).matching(self.name());
            let is_lease = self == Operation::Lease;
            emulator.script(if is_lease { fault.with_metadata("life_ms") } else { fault });
        }
    }
}

impl Retried {
    /// Status and tries; of an image also that it is paid once.
    async fn outcome(&self) -> (u16, usize) {
        let emulator = emulator().await;
        let Retried { operation, faults, .. } = *self;
        match operation {
            Operation::Permissions | Operation::Delete => {
                operation.script(&emulator, faults);
                let output = command(&emulator, CURRENT).arg("doctor").output().await.unwrap();
                let status = if output.status.success() { 200 } else { 500 };
                return (status, self.tries(&emulator, 0));
            }
            Operation::ReadRecord | Operation::ReadImage => {
                let config = config(&emulator, CURRENT);
                let (first, stop) = Service::run_until_stopped(emulator.clone(), config).await;
                with_key(&first).await.is_image();
                stop.now().await;
            }
            Operation::List => {
                let dead = Service::on(emulator.clone(), CURRENT).await;
                dead.fault(Stage::Model, Action::Stall);
                tokio::spawn(request_with_key(&dead).send());
                emulator.reached(|counters| counters.model_calls == 1).await;
                emulator.advance_clock(Duration::from_secs(3602));
            }
            Operation::Probe | Operation::Lease | Operation::Image => {}
        }
        let before = self.tries(&emulator, 0);
        operation.script(&emulator, faults);
        let service = Service::on(emulator.clone(), CURRENT).await;
        let response = match operation {
            // The record of a key proves as much as the probe, which is then left out.
            Operation::Probe => service.prompt().await,
            _ => with_key(&service).await,
        };
        let paid = emulator.counters().paid_generations;
        if response.status == 200 {
            only_image(&emulator);
            assert_eq!(paid, 1, "{operation:?} {faults:?}");
        }
        (response.status, self.tries(&emulator, before))
    }

    fn tries(&self, emulator: &Emulator, before: usize) -> usize {
        let operations = emulator.operations();
        operations.iter().filter(|operation| self.operation.is(operation)).count() - before
    }
}

#[tokio::test]
async fn every_operation_copes_with_the_faults_of_googles_tests() {
    let at_once = Arc::new(Semaphore::new(8));
    let outcome = |row: &'static Retried| {
        let at_once = Arc::clone(&at_once);
        tokio::spawn(async move {
            let _turn = at_once.acquire().await.unwrap();
            row.outcome().await
        })
    };
    let outcomes: Vec<_> = RETRIED.iter().map(outcome).collect();
    let mut wrong = Vec::new();
    for (row, outcome) in RETRIED.iter().zip(outcomes) {
        let outcome = outcome.await.unwrap();
        if outcome != (row.status, row.tries) {
            let Retried { operation, faults, .. } = row;
            wrong.push(format!("{operation:?} {faults:?}: {outcome:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

const KEY: &str = "/.iga/key/";
const IMAGEN: &str = "imagen-4.0-generate-001";
const NODE_MODULES: &str = "IGA_TEST_NODE_MODULES";
