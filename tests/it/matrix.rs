//! Every fault at every stage: what the caller gets, what is paid and stored, and what a retry gets and pays.
//!
//! The tables are in `docs/reliability.md`; `IGA_WRITE_DOCS=1 cargo test --test it matrix` rewrites them.

use crate::support::service::{
    CURRENT, HOUR, PROMPT, Response, Service, config, emulator_with, fetch, images, records,
};
use iga::telemetry;
use iga_emulator::{Action, Emulator, Fault, Options, Stage, Write};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reliability.md");
const BEGIN: &str = "<!-- fault matrix: begin -->\n";
const END: &str = "<!-- fault matrix: end -->\n";

/// Where a fault acts, and the setup that a request needs to reach it.
#[derive(Clone, Copy)]
struct Place {
    /// The stage, and after a comma the moment.
    name: &'static str,
    stage: Stage,
    matching: &'static str,
    /// The metadata field that the written record must have.
    field: Option<&'static str>,
    setup: Setup,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Setup {
    Plain,
    /// The model is slow enough for a renewal of the lease.
    LongModel,
    /// The model fails, so that the lease is released.
    FailingModel,
    /// Another instance has stored the image of the key before.
    Stored,
}

const PLACES: &[Place] = &[
    place("token, response", Stage::Token, "", None, Setup::Plain),
    place("lease, write", Stage::UploadStart, KEY, Some("life_ms"), Setup::Plain),
    place("lease, response", Stage::UploadEnd, KEY, Some("life_ms"), Setup::Plain),
    place("renewal, write", Stage::UploadStart, KEY, Some("renewal"), Setup::LongModel),
    place("renewal, response", Stage::UploadEnd, KEY, Some("renewal"), Setup::LongModel),
    place("model, call", Stage::Model, "", None, Setup::Plain),
    place("model, response", Stage::Response, "", None, Setup::Plain),
    place("upload, start", Stage::UploadStart, "/iga_req_", None, Setup::Plain),
    place("upload, body", Stage::UploadBody, "/iga_req_", None, Setup::Plain),
    place("upload, response", Stage::UploadEnd, "/iga_req_", None, Setup::Plain),
    place("receipt, write", Stage::UploadStart, KEY, Some("object"), Setup::Plain),
    place("receipt, response", Stage::UploadEnd, KEY, Some("object"), Setup::Plain),
    place("release, write", Stage::UploadStart, KEY, Some("released"), Setup::FailingModel),
    place("release, response", Stage::UploadEnd, KEY, Some("released"), Setup::FailingModel),
    place("reading, record", Stage::Stat, KEY, None, Setup::Stored),
    place("reading, image", Stage::Stat, "/iga_req_", None, Setup::Stored),
];

/// The part of a place before the comma, with the heading and the introduction of its table.
const STAGES: &[(&str, &str, &str)] = &[
    ("token", "Access token", "IGA gets a token before it reads, writes or pays anything."),
    ("lease", "Lease", "The lease is written before the model is called."),
    ("renewal", "Renewal of the lease", "The model is slow, and the lease is renewed meanwhile."),
    (
        "model",
        "Model",
        "The lease is held. *Call* is before the model makes the image, *response* afterwards.",
    ),
    ("upload", "Upload of the image", "The image is paid."),
    ("receipt", "Receipt", "The image is stored, and its caller has the response."),
    ("release", "Release of the lease", "The model has failed with 500; the lease is given back."),
    ("reading", "Reading an existing receipt", "Another instance has stored the image before."),
    (
        "bucket",
        "Refused writes, missing permissions and dates",
        "Refused writes end like the other faults; the rest lasts.",
    ),
];

const KEY: &str = "/.iga/key/";

const fn place(
    name: &'static str,
    stage: Stage,
    matching: &'static str,
    field: Option<&'static str>,
    setup: Setup,
) -> Place {
    Place { name, stage, matching, field, setup }
}

impl Place {
    fn fault(&self, action: Action) -> Fault {
        let fault = Fault::new(self.stage, action).matching(self.matching);
        match self.field {
            Some(field) => fault.with_metadata(field),
            None => fault,
        }
    }

    fn actions(&self) -> Vec<(&'static str, Action)> {
        let mut actions = vec![
            ("500", Action::status(500)),
            ("503", Action::status(503)),
            ("429", Action::status(429)),
            ("403", Action::status(403)),
            ("delay", Action::Delay { ms: 20 }),
            ("silence", Action::Stall),
            ("reset", Action::Reset),
            ("cut short", Action::Truncate),
        ];
        if self.stage == Stage::Response {
            // An error status of the model belongs to the stage `Model`: nothing is paid.
            actions.retain(|(_, action)| !matches!(action, Action::Response { .. }));
        }
        if self.stage == Stage::UploadEnd {
            actions.push(("wrong checksum", Action::WrongChecksum));
        }
        actions
    }
}

/// One request with its fault.
struct Run {
    place: &'static str,
    fault: String,
    faults: Vec<Fault>,
    setup: Setup,
    options: Options,
    is_short: bool,
}

/// The columns of a row after place and fault.
#[derive(Clone, PartialEq, Eq)]
struct Outcome {
    response: String,
    paid: u64,
    stored: usize,
    record: &'static str,
    here: String,
    elsewhere: String,
    metrics: String,
}

struct Row {
    place: &'static str,
    fault: String,
    outcome: Outcome,
}

#[test]
fn every_fault_at_every_stage_has_its_row() {
    let rows = in_parallel(runs());
    for Row { place, fault, outcome } in &rows {
        let Outcome { response, paid, stored, here, elsewhere, .. } = outcome;
        let text = format!("{place} {fault} {}", outcome.text());
        assert!(*paid <= 1 && *stored as u64 <= *paid, "{text}");
        assert!(response != "200" || *stored == 1, "{text}");
        // A stored image is never paid for again.
        let is_paid_again = here.contains("paid") || elsewhere.contains("paid");
        assert!(*stored == 0 || !is_paid_again, "{text}");
        assert!(elsewhere.starts_with("200") || *place == ACCOUNT, "{text}");
    }
    let tables = tables(&rows);
    println!("{tables}");
    document(&tables);
}

fn runs() -> Vec<Run> {
    let mut runs = Vec::new();
    for place in PLACES {
        for (fault, action) in place.actions() {
            for lasting in [false, true] {
                let script = place.fault(action.clone());
                let script = if lasting { script.always() } else { script };
                let how_often = if lasting { "lasting" } else { "once" };
                let is_upload = place.name.starts_with("upload");
                runs.push(Run {
                    place: place.name,
                    fault: format!("{fault}, {how_often}"),
                    faults: vec![script],
                    setup: place.setup,
                    options: Options::default(),
                    is_short: fault == "silence" || (lasting && is_upload),
                });
            }
        }
    }
    let refused = |write: Write| {
        Fault::new(Stage::UploadStart, Action::status(403)).matching(KEY).write(write).always()
    };
    let [get, delete] = ["get", "delete"].map(|name| format!("storage.objects.{name}"));
    let plain = |place, fault: &str, faults, withheld: Vec<String>, omit_date| Run {
        place,
        fault: fault.to_owned(),
        faults,
        setup: Setup::Plain,
        options: Options { withheld, omit_date, ..Options::default() },
        is_short: false,
    };
    let records = "bucket, records";
    runs.extend([
        plain(records, "creates refused", vec![refused(Write::Create)], vec![], false),
        plain(records, "overwrites refused", vec![refused(Write::Overwrite)], vec![], false),
        plain(records, "responses without `Date`", vec![], vec![], true),
        plain(ACCOUNT, "without `get`", vec![], vec![get.clone()], false),
        plain(ACCOUNT, "without `delete`", vec![], vec![delete.clone()], false),
        plain(ACCOUNT, "without `get` and `delete`", vec![], vec![get, delete], false),
    ]);
    runs
}

const ACCOUNT: &str = "bucket, account";

/// Runs several at a time on a thread each, because they mostly wait.
fn in_parallel(runs: Vec<Run>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut runs = runs.into_iter().peekable();
    while runs.peek().is_some() {
        let begin = |run: Run| thread::spawn(|| run.row());
        let threads: Vec<_> = runs.by_ref().take(AT_ONCE).map(begin).collect();
        rows.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
    }
    rows
}

const AT_ONCE: usize = 16;

impl Run {
    fn row(self) -> Row {
        let logged = Arc::new(Mutex::new(Vec::<Value>::new()));
        let write = {
            let logged = Arc::clone(&logged);
            move |line: &[u8]| logged.lock().unwrap().push(serde_json::from_slice(line).unwrap())
        };
        let _logging = tracing::subscriber::set_default(telemetry::json_lines(false, write));
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (place, fault) = (self.place, self.fault.clone());
        let outcome = tokio.block_on(self.outcome(&logged));
        Row { place, fault, outcome }
    }

    async fn outcome(self, logged: &Mutex<Vec<Value>>) -> Outcome {
        let emulator = emulator_with(self.options.clone()).await;
        let mut config = config(&emulator, CURRENT);
        if self.is_short {
            // In these runs a try or the generation ends by its time limit.
            config.generation_deadline = Duration::from_secs(5);
            config.timing.token_try = Duration::from_millis(800);
            config.timing.record_try = Duration::from_millis(800);
            config.timing.upload_try = Duration::from_millis(1200);
        }
        let elsewhere_config = config.clone();
        match self.setup {
            Setup::Plain => {}
            Setup::LongModel => {
                config.timing.lease_life = Duration::from_secs(3);
                emulator.script(Fault::new(Stage::Model, Action::Delay { ms: 1400 }));
            }
            Setup::FailingModel => {
                emulator.script(Fault::new(Stage::Model, Action::status(500)));
            }
            Setup::Stored => {
                let (first, stop) =
                    Service::run_until_stopped(emulator.clone(), config.clone()).await;
                send(&first).await.is_image();
                stop.now().await;
                logged.lock().unwrap().clear();
            }
        }
        let (service, stop) = Service::run_until_stopped(emulator.clone(), config).await;
        self.faults.iter().for_each(|fault| emulator.script(fault.clone()));
        let response = send(&service).await;
        let (paid, stored) = (paid(&emulator), images(&emulator).len());
        let metrics = metrics(&logged.lock().unwrap());
        emulator.clear_faults();
        let here = retried(&service).await;
        stop.now().await;
        let record = record(&emulator);
        emulator.advance_clock(HOUR + Duration::from_secs(2));
        let other = Service::run(emulator.clone(), elsewhere_config).await;
        let elsewhere = retried(&other).await;
        Outcome { response: shown(&response), paid, stored, record, here, elsewhere, metrics }
    }
}

fn paid(emulator: &Emulator) -> u64 {
    emulator.counters().paid_generations
}

async fn send(service: &Service) -> Response {
    let request =
        service.request().header("content-type", "application/json").header("idempotency-key", "k");
    fetch(request.body(json!({"prompt": PROMPT}).to_string())).await
}

/// The response to a retry, and what the retry paid.
async fn retried(service: &Service) -> String {
    let before = paid(&service.emulator);
    let response = send(service).await;
    match paid(&service.emulator) - before {
        0 => shown(&response),
        more => format!("{}, {more} paid", shown(&response)),
    }
}

fn shown(response: &Response) -> String {
    match response.status {
        200 => "200".to_owned(),
        status => format!("{status} `{}`", response.text("error_code")),
    }
}

fn record(emulator: &Emulator) -> &'static str {
    let records = records(emulator);
    match records.first() {
        None => "none",
        Some(_) if records.len() > 1 => "several",
        Some(record) if record["object"].is_string() => "receipt",
        Some(record) if record["released"].is_string() => "released",
        Some(_) => "lease",
    }
}

impl Outcome {
    fn text(&self) -> String {
        let Outcome { response, paid, stored, record, here, elsewhere, metrics } = self;
        format!("{response} | {paid} | {stored} | {here} | {record} | {elsewhere} | {metrics}")
    }
}

/// The status that is counted, and the failures before it.
fn metrics(lines: &[Value]) -> String {
    let tag = |line: &Value, tag: &str| line["tags"][tag].as_str().unwrap_or_default().to_owned();
    let mut errors = BTreeMap::new();
    let mut status = String::new();
    for line in lines {
        match line["metric_name"].as_str() {
            Some("iga_generate_image_request_count") => status = tag(line, "status"),
            Some("iga_vertexai_error_count") => {
                *errors.entry(tag(line, "error_type")).or_insert(0) += 1
            }
            Some("iga_gcs_upload_failure_count") => {
                *errors.entry("upload_failure".to_owned()).or_insert(0) += 1
            }
            _ => {}
        }
    }
    let errors = errors.into_iter().map(|(error, count)| format!(", {count} × `{error}`"));
    format!("`{status}`{}", errors.collect::<String>())
}

/// A table for each stage, with one row for all faults of a place that have the same outcome.
fn tables(rows: &[Row]) -> String {
    let mut grouped: Vec<(&str, Vec<&str>, &Outcome)> = Vec::new();
    for Row { place, fault, outcome } in rows {
        let same =
            |group: &&mut (&str, Vec<&str>, &Outcome)| (group.0, group.2) == (*place, outcome);
        match grouped.iter_mut().find(same) {
            Some(group) => group.1.push(fault),
            None => grouped.push((place, vec![fault], outcome)),
        }
    }
    let mut tables = String::new();
    let mut begun = None;
    for (place, faults, outcome) in grouped {
        let (name, moment) = place.split_once(", ").expect("a stage and a moment");
        let stage = STAGES.iter().find(|(stage, ..)| *stage == name).expect("a stage of the list");
        if begun != Some(stage) {
            let (_, heading, introduction) = stage;
            tables += &format!("\n### {heading}\n\n{introduction}\n\n{HEAD}");
            begun = Some(stage);
        }
        tables += &format!("| {moment} | {} | {} |\n", listed(&faults), outcome.text());
    }
    tables + "\n"
}

const HEAD: &str = "| moment | fault | response | paid | stored | retry here | record | retry elsewhere | metrics |\n\
                    |---|---|---|---|---|---|---|---|---|\n";

/// Shortens a list of faults: `500, once` and `500, lasting` become `500`.
fn listed(faults: &[&str]) -> String {
    let mut kinds: Vec<(&str, Vec<&str>)> = Vec::new();
    for fault in faults {
        let (kind, how_often) = fault.split_once(", ").unwrap_or((fault, ""));
        match kinds.iter_mut().find(|(found, _)| *found == kind) {
            Some((_, all)) => all.push(how_often),
            None => kinds.push((kind, vec![how_often])),
        }
    }
    let of = |wanted: &[&str]| {
        let kinds: Vec<_> =
            kinds.iter().filter(|(_, all)| all == wanted).map(|(kind, _)| *kind).collect();
        kinds.join(", ")
    };
    let groups = [
        (of(&["once", "lasting"]), ""),
        (of(&["once"]), " once"),
        (of(&["lasting"]), " lasting"),
        (of(&[""]), ""),
    ];
    let groups = groups.into_iter().filter(|(kinds, _)| !kinds.is_empty());
    groups.map(|(kinds, how_often)| kinds + how_often).collect::<Vec<_>>().join("; ")
}

/// Compares the tables with those of the document, or writes them there.
fn document(tables: &str) {
    let text = std::fs::read_to_string(DOCUMENT).unwrap();
    let begin = text.find(BEGIN).expect("the document has the tables") + BEGIN.len();
    let end = text.find(END).expect("the tables have an end");
    if std::env::var_os("IGA_WRITE_DOCS").is_some() {
        std::fs::write(DOCUMENT, [&text[..begin], tables, &text[end..]].concat()).unwrap();
        return;
    }
    for (found, written) in tables.lines().zip(text[begin..end].lines()) {
        assert_eq!(found, written, "docs/reliability.md differs");
    }
    assert_eq!(tables, &text[begin..end]);
}
