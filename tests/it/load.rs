//! The built binary under load: a thousand at once, more than it takes, and a stop signal in the middle.

use crate::support::process::Process;
use crate::support::service::{
    Answer, CURRENT, answer, client, emulator, emulator_with, images, reached, records,
};
use iga_emulator::{Action, Emulator, Fault, Options, Stage};
use reqwest::Client;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

fn send(http: &Client, process: &Process, prompt: &str, key: Option<&str>) -> JoinHandle<Answer> {
    let request = http
        .post(format!("{}/generate_image", process.url))
        .header("content-type", "application/json");
    let request = match key {
        Some(key) => request.header("idempotency-key", key),
        None => request,
    };
    tokio::spawn(answer(request.body(json!({"prompt": prompt}).to_string())))
}

fn send_many(http: &Client, process: &Process, count: usize) -> Vec<JoinHandle<Answer>> {
    (0..count).map(|number| send(http, process, &format!("Image {number}"), None)).collect()
}

async fn all(requests: Vec<JoinHandle<Answer>>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for request in requests {
        answers.push(request.await.unwrap());
    }
    answers
}

async fn slow_emulator() -> Emulator {
    emulator_with(Options { latency: Duration::from_secs(3), ..Options::default() }).await
}

/// Raises the limit of open files of this process.
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

/// Records that are neither receipts nor given back.
fn leases(emulator: &Emulator) -> usize {
    let is_lease =
        |record: &serde_json::Value| record["object"].is_null() && record["released"].is_null();
    records(emulator).into_iter().filter(is_lease).count()
}

fn settings<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [CURRENT, &[("IGA_DEBUG_MODE", "False")], more].concat()
}

/// The most memory that a process has used, in MiB.
fn peak_mib(process: &Process) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", process.child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs many open files"]
async fn a_thousand_at_once_are_all_answered() {
    const COUNT: usize = 1000;
    // This process holds the caller's and the emulator's ends of all connections.
    open_files_at_least(4 * COUNT);
    let emulator = slow_emulator().await;
    let process = Process::start(&emulator, &settings(&[("IGA_MAX_GENERATIONS", "1000")])).await;
    let requests = send_many(&client(), &process, COUNT);
    model_called(&emulator, COUNT as u64).await;
    let under_way = requests.iter().filter(|request| !request.is_finished()).count();
    let answers = all(requests).await;
    let urls: BTreeSet<_> =
        answers.iter().map(|answer| answer.is_image().text("image_url")).collect();
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
async fn a_stop_signal_under_load_leaves_no_caller_without_an_answer() {
    let emulator = slow_emulator().await;
    let process = Process::start(&emulator, &settings(&[])).await;
    let http = client();
    let mut requests = send_many(&http, &process, 40);
    requests.extend(
        (0..20).map(|number| send(&http, &process, "A red fox", Some(&format!("key-{number}")))),
    );
    model_called(&emulator, 60).await;
    process.signal("TERM");
    for answer in all(requests).await {
        answer.is_image();
    }
    assert!(process.end().await.0.success());
    assert_eq!((emulator.counters().paid_generations, leases(&emulator)), (60, 0));
    assert_eq!(images(&emulator).len(), 60);
}

#[tokio::test]
async fn what_cannot_finish_gives_its_lease_back_and_the_retry_elsewhere_starts_at_once() {
    let emulator = emulator().await;
    emulator.script(Fault::new(Stage::Model, Action::Stall).times(2));
    let process = Process::start(&emulator, &settings(&[])).await;
    let http = client();
    let stalled = [send(&http, &process, "Image", Some("k")), send(&http, &process, "Image", None)];
    model_called(&emulator, 2).await;
    process.signal("TERM");
    let refused = loop {
        let answer = send(&http, &process, "Another", None).await.unwrap();
        if answer.status == 503 {
            break answer;
        }
    };
    refused.is_error(503, "IGA_OVERLOADED").details_have("stopping");
    assert_eq!(refused.header("retry-after"), "1");
    for answer in all(stalled.into()).await {
        answer.is_error(503, "IGA_OVERLOADED").details_have("stopped before the image was ready");
        assert_eq!(answer.header("retry-after"), "1");
    }
    assert!(process.end().await.0.success());
    assert_eq!(leases(&emulator), 0);

    // The emulator's clock stands where it was: a lease that was left would hold the retry up for 12 s.
    let elsewhere =
        Process::start(&emulator, &settings(&[("IGA_GENERATION_DEADLINE_SECONDS", "8")])).await;
    send(&http, &elsewhere, "Image", Some("k")).await.unwrap().is_image();
}

#[tokio::test]
async fn more_than_it_takes_is_refused_at_once_and_served_later() {
    let emulator = slow_emulator().await;
    let process = Process::start(&emulator, &settings(&[("IGA_MAX_GENERATIONS", "4")])).await;
    let http = client();
    let ask = |number: usize| {
        send(&http, &process, &format!("Image {number}"), Some(&format!("key-{number}")))
    };
    let (answered, mut answers) = mpsc::unbounded_channel();
    for number in 0..20 {
        let (answered, request) = (answered.clone(), ask(number));
        tokio::spawn(async move { answered.send((number, request.await.unwrap())) });
    }
    let mut missing = Vec::new();
    for _ in 0..16 {
        let (number, answer) = answers.recv().await.unwrap();
        answer.is_error(503, "IGA_OVERLOADED");
        assert_eq!(answer.header("retry-after"), "1");
        missing.push(number);
    }
    let health = answer(http.get(format!("{}/health", process.url))).await;
    assert_eq!((health.status, health.text("status")), (200, "ok"));
    let taken = (0..20).filter(|number| !missing.contains(number));
    let joins = all(taken.map(ask).collect()).await;
    let mut first = Vec::new();
    for _ in 0..4 {
        first.push(answers.recv().await.unwrap());
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
        for answer in all(later).await {
            answer.is_image();
        }
    }
    assert_eq!((missing.len(), emulator.counters().paid_generations), (0, 20));
    process.signal("TERM");
    assert!(process.end().await.0.success());
    assert_eq!(leases(&emulator), 0);
}
