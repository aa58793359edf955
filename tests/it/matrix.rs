//! Every fault at every stage: what the caller gets, what is paid, what is left in the bucket.
//!
//! The table stands in `docs/reliability.md`; `IGA_WRITE_DOCS=1 cargo test matrix` writes it anew.

use crate::support::service::{CURRENT, PROMPT, Service, config, emulator, fetch};
use iga::telemetry;
use iga_emulator::{Action, Fault, Stage, StoredObject};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reliability.md");
const BEGIN: &str = "<!-- fault matrix: begin -->\n";
const END: &str = "<!-- fault matrix: end -->\n";

/// Where a fault acts: its name in the table, the emulator's stage, and the objects it is about.
const STAGES: &[(&str, Stage, &str)] = &[
    ("token", Stage::Token, ""),
    ("lease", Stage::UploadStart, "/.iga/"),
    ("lease, stored", Stage::UploadEnd, "/.iga/"),
    ("model call", Stage::Model, ""),
    ("model's answer", Stage::Response, ""),
    ("upload, start", Stage::UploadStart, "/iga_req_"),
    ("upload, body", Stage::UploadBody, "/iga_req_"),
    ("upload, stored", Stage::UploadEnd, "/iga_req_"),
];

fn actions(stage: Stage) -> Vec<(&'static str, Action)> {
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
    if stage == Stage::Response {
        // A model that answers with a status has not been paid: that is the stage before.
        actions.retain(|(_, action)| !matches!(action, Action::Response { .. }));
    }
    if stage == Stage::UploadEnd {
        actions.push(("wrong checksum", Action::WrongChecksum));
    }
    actions
}

/// One row of the table.
struct Row {
    stage: &'static str,
    fault: &'static str,
    lasting: bool,
    status: u16,
    code: String,
    paid: u64,
    images: usize,
    leases: usize,
    receipts: usize,
    metrics: String,
}

impl Row {
    fn text(&self) -> String {
        let Row { stage, fault, status, code, paid, images, metrics, .. } = self;
        let how_often = if self.lasting { "lasting" } else { "once" };
        let answer = if *status == 200 { "200".to_owned() } else { format!("{status} `{code}`") };
        let record = match (self.leases, self.receipts) {
            (0, 0) => "none",
            (0, _) => "receipt",
            _ => "lease",
        };
        format!(
            "| {stage} | {fault} | {how_often} | {answer} | {paid} | {images} | {record} | {metrics} |\n"
        )
    }
}

#[test]
fn every_fault_at_every_stage_has_its_row() {
    let mut runs = Vec::new();
    for &(stage, at, matching) in STAGES {
        for (fault, action) in actions(at) {
            for lasting in [false, true] {
                let fault_there = Fault::new(at, action.clone()).matching(matching);
                let fault_there = if lasting { fault_there.always() } else { fault_there };
                runs.push(move || run(stage, fault, lasting, fault_there));
            }
        }
    }
    let rows = side_by_side(runs);
    for row in &rows {
        let text = row.text();
        assert!(row.paid <= 1 && row.images as u64 <= row.paid, "{text}");
        assert!(row.status != 200 || row.images == 1, "{text}");
        assert!([200, 403, 429, 500, 503].contains(&row.status), "{text}");
        assert!(row.status == 200 || row.code.starts_with("IGA_"), "{text}");
        // A paid image is still being saved after the answer, under its lease. Where the records themselves
        // cannot be written, only time ends a lease. Else none is left.
        let may_hold_a_lease =
            row.stage.starts_with("lease") || (row.paid == 1 && row.stage.starts_with("upload"));
        assert!(row.leases == 0 || (row.status != 200 && may_hold_a_lease), "{text}");
    }
    let table = table(&rows);
    println!("{table}");
    document(&table);
}

/// Runs some at a time, each on a thread of its own: they wait more than they work.
fn side_by_side(runs: Vec<impl FnOnce() -> Row + Send + 'static>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut runs = runs.into_iter().peekable();
    while runs.peek().is_some() {
        let threads: Vec<_> = runs.by_ref().take(AT_ONCE).map(thread::spawn).collect();
        rows.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
    }
    rows
}

const AT_ONCE: usize = 16;

fn run(stage: &'static str, fault: &'static str, lasting: bool, fault_there: Fault) -> Row {
    let logged = Arc::new(Mutex::new(Vec::<Value>::new()));
    let write = {
        let logged = Arc::clone(&logged);
        move |line: &[u8]| logged.lock().unwrap().push(serde_json::from_slice(line).unwrap())
    };
    let _logging = tracing::subscriber::set_default(telemetry::json_lines(false, write));
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio.block_on(async {
        let emulator = emulator().await;
        let mut config = config(&emulator, CURRENT);
        if fault == "silence" {
            // Only here a try, or the whole generation, ends by the clock.
            config.generation_deadline = Duration::from_secs(4);
            config.timing.token_try = Duration::from_secs(1);
            config.timing.record_try = Duration::from_secs(1);
            config.timing.upload_try = Duration::from_secs(1);
        }
        let service = Service::run(emulator, config).await;
        service.emulator.script(fault_there);
        let request = service
            .request()
            .header("content-type", "application/json")
            .header("idempotency-key", "k");
        let answer = fetch(request.body(json!({"prompt": PROMPT}).to_string())).await;
        service.emulator.clear_faults();
        let objects = service.emulator.objects();
        let (records, images): (Vec<_>, Vec<_>) =
            objects.into_iter().partition(|object| object.name.contains("/.iga/"));
        assert!(
            images.iter().all(|image| image.bytes.ends_with(b"IEND\xaeB`\x82")),
            "nothing is half"
        );
        Row {
            stage,
            fault,
            lasting,
            status: answer.status,
            code: answer.text("error_code").to_owned(),
            paid: service.emulator.counters().paid_generations,
            images: images.len(),
            leases: records.iter().filter(|record| !is_receipt(record)).count(),
            receipts: records.iter().filter(|record| is_receipt(record)).count(),
            metrics: metrics(&logged.lock().unwrap()),
        }
    })
}

fn is_receipt(record: &StoredObject) -> bool {
    !record.metadata["metadata"]["object"].is_null()
}

/// The status counted, and what went wrong on the way.
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

fn table(rows: &[Row]) -> String {
    let mut table =
        "| stage | fault | how often | answer | paid | images | record left | metrics |\n|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    table.extend(rows.iter().map(Row::text));
    table
}

/// Compares the table with the one in the document, or writes it there.
fn document(table: &str) {
    let text = std::fs::read_to_string(DOCUMENT).unwrap();
    let begin = text.find(BEGIN).expect("the document has a place for the table") + BEGIN.len();
    let end = text.find(END).expect("the table ends somewhere");
    if std::env::var_os("IGA_WRITE_DOCS").is_some() {
        std::fs::write(DOCUMENT, [&text[..begin], table, &text[end..]].concat()).unwrap();
        return;
    }
    for (found, written) in table.lines().zip(text[begin..end].lines()) {
        assert_eq!(found, written, "docs/reliability.md says something else");
    }
    assert_eq!(table, &text[begin..end]);
}
