//! The built binary under load: a thousand requests at once, requests beyond capacity, and a stop signal.

use crate::support::process::Process;
use crate::support::service::{
    CURRENT, Response, client, emulator, emulator_with, fetch, images, reached, records,
};
use iga_emulator::{Action, Emulator, Fault, Options, Stage};
use reqwest::Client;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

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
    const COUNT: usize = 1000;
    // This process holds both the callers' and the emulator's ends of all connections.
    open_files_at_least(4 * COUNT);
    let emulator = slow_emulator().await;
    let process = Process::start(&emulator, &settings(&[("IGA_MAX_GENERATIONS", "1000")])).await;
    let requests = send_many(&client(), &process, COUNT);
    model_called(&emulator, COUNT as u64).await;
    let under_way = requests.iter().filter(|request| !request.is_finished()).count();
    let responses = all(requests).await;
    let urls: BTreeSet<_> =
        responses.iter().map(|response| response.is_image().text("image_url")).collect();
    assert_eq!(urls.len(), COUNT);
    assert_eq!((emulator.counters().paid_generations, images(&emulator).len()), (1000, 1000));
    let peak_mib = peak_mib(&process);
    println!(
        "{COUNT} requests, {under_way} of them under way when the last came: at most {peak_mib} MiB"
    );
    assert!(peak_mib < 512, "{peak_mib} MiB");
    process.signal("TERM");
    assert!(process.end().await.0.success());
}

#[tokio::test]
async fn every_request_under_way_gets_its_image_after_a_stop_signal() {
    let emulator = slow_emulator().await;
    let process = Process::start(&emulator, &settings(&[])).await;
    let http = client();
    let mut requests = send_many(&http, &process, 40);
    requests.extend(
        (0..20).map(|number| send(&http, &process, "A red fox", Some(&format!("key-{number}")))),
    );
    model_called(&emulator, 60).await;
    process.signal("TERM");
    for response in all(requests).await {
        response.is_image();
    }
    assert!(process.end().await.0.success());
    assert_eq!((emulator.counters().paid_generations, leases(&emulator)), (60, 0));
    assert_eq!(images(&emulator).len(), 60);
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
    emulator.script(Fault::new(Stage::Model, Action::Delay { ms: 3000 }).times(4));
    let process = Process::start(&emulator, &settings(&[("IGA_MAX_GENERATIONS", "4")])).await;
    let http = client();
    let ask = |number: usize| {
        send(&http, &process, &format!("Image {number}"), Some(&format!("key-{number}")))
    };
    let (sender, mut responses) = mpsc::unbounded_channel();
    for number in 0..20 {
        let (sender, request) = (sender.clone(), ask(number));
        tokio::spawn(async move { sender.send((number, request.await.unwrap())) });
    }
    let mut missing = Vec::new();
    for _ in 0..16 {
        let (number, response) = responses.recv().await.unwrap();
        response.is_error(503, "IGA_OVERLOADED");
        assert_eq!(response.header("retry-after"), "1");
        missing.push(number);
    }
    let health = fetch(http.get(format!("{}/health", process.url))).await;
    assert_eq!((health.status, health.text("status")), (200, "ok"));
    let taken = (0..20).filter(|number| !missing.contains(number));
    let joins = all(taken.map(ask).collect()).await;
    let mut first = Vec::new();
    for _ in 0..4 {
        first.push(responses.recv().await.unwrap());
    }
    first.sort_by_key(|(number, _)| *number);
    for (join, (_, first)) in joins.iter().zip(&first) {
        assert_eq!(join.is_image().body, first.body);
    }
    for _ in 0..4 {
        let mut later = Vec::new();
        for number in missing.split_off(missing.len() - 4) {
            later.push(ask(number));
        }
        for response in all(later).await {
            response.is_image();
        }
    }
    assert_eq!((missing.len(), emulator.counters().paid_generations), (0, 20));
    process.signal("TERM");
    assert!(process.end().await.0.success());
    assert_eq!(leases(&emulator), 0);
}
