//! The built binary under load: a thousand requests at once, requests beyond capacity, and a stop signal.

use crate::connections;
use crate::support::process::Process;
use crate::support::service::{
    CURRENT, Response, client, emulator, emulator_with, fetch, images, reached, records,
};
use iga_emulator::{Action, Emulator, Fault, Options, Stage};
use reqwest::Client;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Figures of the table in docs/reliability.md.
pub const AT_ONCE: usize = 1000;
pub const AT_ONCE_MIB: u64 = 512;
pub const BEYOND: usize = 20;
pub const CAPACITY: usize = 4;
pub const AT_STOP: usize = 60;
pub const LARGE_BODIES: usize = 200;
pub const LARGE_BODIES_MIB: u64 = 100;
pub const BUDGET_MIB: usize = 16;

fn send(http: &Client, process: &Process, prompt: &str, key: Option<&str>) -> JoinHandle<Response> {
    let request = http
        .post(format!("{}/generate_image", process.url))
        .header("content-type", "application/json");
    let request = match key {
        Some(key) => request.header("idempotency-key", key),
        None => request,
    };
    tokio::spawn(fetch(request.body(json!({"prompt": prompt}).to_string())))
}

fn send_many(http: &Client, process: &Process, count: usize) -> Vec<JoinHandle<Response>> {
    (0..count).map(|number| send(http, process, &format!("Image {number}"), None)).collect()
}

async fn all(requests: Vec<JoinHandle<Response>>) -> Vec<Response> {
    let mut responses = Vec::new();
    for request in requests {
        responses.push(request.await.unwrap());
    }
    responses
}

async fn slow_emulator() -> Emulator {
    emulator_with(Options { latency: Duration::from_secs(3), ..Options::default() }).await
}

/// Raises the limit of open files of this process, and checks it.
fn open_files_at_least(wanted: usize) {
    let pid = std::process::id().to_string();
    let limit = format!("--nofile={wanted}:");
    let _ = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line
        .and_then(|line| line.split_whitespace().next())
        .and_then(|soft| soft.parse::<usize>().ok());
    assert!(soft.is_some_and(|soft| soft >= wanted), "the limit of open files: {soft:?}");
}

async fn model_called(emulator: &Emulator, calls: u64) {
    reached(emulator, |counters| counters.model_calls >= calls).await;
}

/// The number of records that are neither receipts nor released.
fn leases(emulator: &Emulator) -> usize {
    let is_lease =
        |record: &serde_json::Value| record["object"].is_null() && record["released"].is_null();
    records(emulator).into_iter().filter(is_lease).count()
}

fn settings<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [CURRENT, &[("IGA_DEBUG_MODE", "False")], more].concat()
}

/// The peak memory of a process, in MiB.
fn peak_mib(process: &Process) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", process.child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs many open files"]
async fn a_thousand_requests_at_once_all_get_their_image() {
    // This process holds both the callers' and the emulator's ends of all connections.
    open_files_at_least(4 * AT_ONCE);
    let emulator = slow_emulator().await;
    let process =
        Process::start(&emulator, &settings(&[("IGA_MAX_GENERATIONS", &AT_ONCE.to_string())]))
            .await;
    let requests = send_many(&client(), &process, AT_ONCE);
    model_called(&emulator, AT_ONCE as u64).await;
    let under_way = requests.iter().filter(|request| !request.is_finished()).count();
    let responses = all(requests).await;
    let urls: BTreeSet<_> =
        responses.iter().map(|response| response.is_image().text("image_url")).collect();
    assert_eq!(urls.len(), AT_ONCE);
    assert_eq!(emulator.counters().paid_generations, AT_ONCE as u64);
    assert_eq!(images(&emulator).len(), AT_ONCE);
    let peak_mib = peak_mib(&process);
    println!(
        "{AT_ONCE} requests, {under_way} of them under way when the last came: at most {peak_mib} MiB"
    );
    assert!(peak_mib < AT_ONCE_MIB, "{peak_mib} MiB");
    process.signal("TERM");
    assert!(process.end().await.0.success());
}

#[tokio::test]
async fn every_request_under_way_gets_its_image_after_a_stop_signal() {
    let emulator = slow_emulator().await;
    let process = Process::start(&emulator, &settings(&[])).await;
    let http = client();
    let mut requests = send_many(&http, &process, AT_STOP - 20);
    requests.extend(
        (0..20).map(|number| send(&http, &process, "A red fox", Some(&format!("key-{number}")))),
    );
    model_called(&emulator, AT_STOP as u64).await;
    process.signal("TERM");
    for response in all(requests).await {
        response.is_image();
    }
    assert!(process.end().await.0.success());
    assert_eq!((emulator.counters().paid_generations, leases(&emulator)), (AT_STOP as u64, 0));
    assert_eq!(images(&emulator).len(), AT_STOP);
}

#[tokio::test]
async fn a_stopped_generation_releases_its_lease_for_a_retry_elsewhere() {
    let emulator = emulator().await;
    emulator.script(Fault::new(Stage::Model, Action::Stall).times(2));
    let process = Process::start(&emulator, &settings(&[])).await;
    let http = client();
    let stalled = [send(&http, &process, "Image", Some("k")), send(&http, &process, "Image", None)];
    model_called(&emulator, 2).await;
    process.signal("TERM");
    let refused = loop {
        let response = send(&http, &process, "Another", None).await.unwrap();
        if response.status == 503 {
            break response;
        }
    };
    refused.is_error(503, "IGA_OVERLOADED").details_have("stopping");
    assert_eq!(refused.header("retry-after"), "1");
    for response in all(stalled.into()).await {
        response.is_error(503, "IGA_OVERLOADED").details_have("stopped before the image was ready");
        assert_eq!(response.header("retry-after"), "1");
    }
    assert!(process.end().await.0.success());
    assert_eq!(leases(&emulator), 0);

    // The emulator's clock has not advanced, so a remaining lease would delay the retry beyond its deadline.
    let elsewhere =
        Process::start(&emulator, &settings(&[("IGA_GENERATION_DEADLINE_SECONDS", "8")])).await;
    send(&http, &elsewhere, "Image", Some("k")).await.unwrap().is_image();
}

#[tokio::test]
async fn requests_beyond_capacity_are_refused_at_once_and_served_later() {
    let emulator = emulator().await;
    // Only the first generations are slow, so that the others come while they run.
    emulator.script(Fault::new(Stage::Model, Action::Delay { ms: 3000 }).times(CAPACITY as u32));
    let process =
        Process::start(&emulator, &settings(&[("IGA_MAX_GENERATIONS", &CAPACITY.to_string())]))
            .await;
    let http = client();
    let ask = |number: usize| {
        send(&http, &process, &format!("Image {number}"), Some(&format!("key-{number}")))
    };
    let (sender, mut responses) = mpsc::unbounded_channel();
    for number in 0..BEYOND {
        let (sender, request) = (sender.clone(), ask(number));
        tokio::spawn(async move { sender.send((number, request.await.unwrap())) });
    }
    let mut missing = Vec::new();
    for _ in 0..BEYOND - CAPACITY {
        let (number, response) = responses.recv().await.unwrap();
        response.is_error(503, "IGA_OVERLOADED");
        assert_eq!(response.header("retry-after"), "1");
        missing.push(number);
    }
    let health = fetch(http.get(format!("{}/health", process.url))).await;
    assert_eq!((health.status, health.text("status")), (200, "ok"));
    let taken = (0..BEYOND).filter(|number| !missing.contains(number));
    let joins = all(taken.map(ask).collect()).await;
    let mut first = Vec::new();
    for _ in 0..CAPACITY {
        first.push(responses.recv().await.unwrap());
    }
    first.sort_by_key(|(number, _)| *number);
    for (join, (_, first)) in joins.iter().zip(&first) {
        assert_eq!(join.is_image().body, first.body);
    }
    while !missing.is_empty() {
        let mut later = Vec::new();
        for number in missing.split_off(missing.len() - CAPACITY) {
            later.push(ask(number));
        }
        for response in all(later).await {
            response.is_image();
        }
    }
    assert_eq!(emulator.counters().paid_generations, BEYOND as u64);
    process.signal("TERM");
    assert!(process.end().await.0.success());
    assert_eq!(leases(&emulator), 0);
}

/// The statuses of requests with large bodies; all arrive but for the last byte before the first ends.
async fn send_large(process: &Process, kib: usize, key: Option<&str>) -> Vec<u16> {
    let header = key.map(|key| format!("Idempotency-Key: {key}\r\n")).unwrap_or_default();
    let address = process.url.trim_start_matches("http://");
    let mut open = Vec::new();
    for number in 0..LARGE_BODIES {
        let number = if key.is_some() { 0 } else { number };
        let text = "x".repeat(kib * 1024 - 20);
        let body = format!(r#"{{"prompt": "{number:04} {text}"}}"#);
        let (begin, end) = body.split_at(body.len() - 1);
        let sent = format!(
            "POST /generate_image HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{header}\
             Content-Length: {}\r\nConnection: close\r\n\r\n{begin}",
            body.len()
        );
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        open.push((stream, end.to_owned()));
    }
    for (stream, end) in &mut open {
        stream.write_all(end.as_bytes()).await.unwrap();
    }
    let mut statuses = Vec::new();
    for (mut stream, _) in open {
        let mut received = String::new();
        stream.read_to_string(&mut received).await.unwrap();
        statuses.push(received.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap());
    }
    statuses
}

#[tokio::test]
async fn large_bodies_and_waiting_callers_stay_within_the_budget() {
    // Different requests, and callers that wait for one generation.
    for (kib, key) in [(1024, None), (300, Some("k"))] {
        let emulator = emulator().await;
        emulator.script(Fault::new(Stage::Model, Action::Delay { ms: 1500 }));
        let budget = BUDGET_MIB.to_string();
        let process =
            Process::start(&emulator, &settings(&[("IGA_TRANSFER_BUDGET_MIB", &budget)])).await;
        let before_mib = peak_mib(&process);
        let statuses = send_large(&process, kib, key).await;
        let count = |status| statuses.iter().filter(|given| **given == status).count();
        println!(
            "{} images, {} refused, {before_mib} to {} MiB",
            count(200),
            count(503),
            peak_mib(&process)
        );
        assert!(count(200) > 0 && (key.is_some() || count(503) > 0), "{statuses:?}");
        assert_eq!(count(200) + count(503), LARGE_BODIES, "{statuses:?}");
        let grown = peak_mib(&process) - before_mib;
        assert!(grown <= LARGE_BODIES_MIB, "{grown} MiB for {key:?}");
        // The last receipts may not be written yet; a caller tries again.
        while send(&client(), &process, "Afterwards", None).await.unwrap().status == 503 {}
        send(&client(), &process, "Afterwards", None).await.unwrap().is_image();
        process.signal("TERM");
        assert!(process.end().await.0.success());
    }
}

#[tokio::test]
async fn a_large_prompt_holds_no_memory_once_its_image_is_stored() {
    let emulator = emulator().await;
    let settings = settings(&[
        ("IGA_TRANSFER_BUDGET_MIB", "16"),
        // Without a receipt to write, the flight ends with its response. It is remembered for longer.
        ("IGA_SHARED_RETRIES", "False"),
    ]);
    let process = Process::start(&emulator, &settings).await;
    for number in 0..20 {
        let prompt = format!("{number} {}", "x".repeat((1 << 20) - 100));
        send(&client(), &process, &prompt, None).await.unwrap().is_image();
    }
}

/// The table's other figures are medians of `benches/run.py`.
#[test]
fn the_table_of_loads_matches_the_tests_and_the_measurements() {
    let measured = include_str!("../../docs/performance/results.json");
    let measured: serde_json::Value = serde_json::from_str(measured).unwrap();
    let limited = |name: &str| {
        let mut figures: Vec<_> = measured["limited_memory"][name]["iga"]
            .as_array()
            .unwrap()
            .iter()
            .map(|figure| figure.as_f64().unwrap())
            .collect();
        figures.sort_by(f64::total_cmp);
        (figures[0], figures[figures.len() / 2], figures[figures.len() - 1])
    };
    let rows = [
        format!(
            "| {AT_ONCE} requests under way at once, a debug build | an image each, at most {AT_ONCE_MIB} MiB | `load::a_thousand_requests_at_once_all_get_their_image` |"
        ),
        format!(
            "| {BEYOND} requests with room for {CAPACITY} | {} × 503 at once, then an image each | `load::requests_beyond_capacity_are_refused_at_once_and_served_later` |",
            BEYOND - CAPACITY
        ),
        format!(
            "| SIGTERM with {AT_STOP} requests under way | an image each, no lease left | `load::every_request_under_way_gets_its_image_after_a_stop_signal` |"
        ),
        format!(
            "| {LARGE_BODIES} bodies of 1 MiB at once with a budget of {BUDGET_MIB} MiB, a debug build | an image or 503 each, memory grows by \
             at most {LARGE_BODIES_MIB} MiB | `load::large_bodies_and_waiting_callers_stay_within_the_budget` |"
        ),
        format!(
            "| a silent client, or half a header | closed after {} s | `connections::a_client_without_a_first_header_is_disconnected_within_20_s` |",
            connections::FIRST_HEADER_SECONDS
        ),
        format!(
            "| an idle connection | closed after {} s | `connections::an_idle_connection_is_kept_longer_than_a_load_balancer_keeps_it` |",
            connections::KEEP_ALIVE_SECONDS
        ),
        format!(
            "| {} requests while the log is not read | a response each, and SIGTERM ends the process | `connections::an_unread_log_blocks_neither_requests_nor_shutdown` |",
            connections::UNREAD_REQUESTS
        ),
        format!(
            "| {} mutated requests on raw sockets | no 5xx, no connection left open | `connections::a_mutated_request_gets_a_valid_response_or_is_closed` |",
            connections::MUTATED_REQUESTS
        ),
    ];
    let rows = rows.into_iter().chain([
        ("prompts", "80 × (prompt of 1 MiB + image of 8 MiB)"),
        ("in_flight", "1,000 × 1.5 MiB in flight"),
    ].map(|(key, what)| {
        let of = |name: &str| limited(&format!("{key} {name}"));
        assert_eq!((of("limited").0, of("alive").0), (1.0, 1.0), "{key}");
        assert_eq!((of("lost").2, of("refused").2), (0.0, 0.0), "{key}");
        format!("| {what}, in a control group of 256 MiB | an image each, peak {:.0} MiB | `benches/run.py --only limited_memory` |", of("mib").1)
    }));
    let page = include_str!("../../docs/reliability.md");
    for row in rows {
        assert!(page.contains(&format!("\n{row}\n")), "the page lacks:\n{row}");
    }
}
