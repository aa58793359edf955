//! Connections: silent, slow and invalid clients, their limits, their log lines, and an unread log.

use crate::support::process::{Process, command, post};
use crate::support::service::{
    CURRENT, PROMPT, Service, client, config, emulator, emulator_with, fetch, reached,
};
use iga_emulator::Options;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

async fn connect(service: &Service) -> TcpStream {
    TcpStream::connect(service.url.trim_start_matches("http://")).await.unwrap()
}

/// The bytes received until the service closes the connection, and the time that takes on the paused clock.
async fn until_closed(mut stream: TcpStream) -> (String, Duration) {
    let start = Instant::now();
    let mut received = Vec::new();
    // A reset also ends the connection.
    let _ = stream.read_to_end(&mut received).await;
    (String::from_utf8(received).unwrap(), start.elapsed())
}

async fn raw(service: &Service, head: &str) -> String {
    let mut stream = connect(service).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    until_closed(stream).await.0
}

#[tokio::test(start_paused = true)]
async fn a_client_without_a_first_header_is_disconnected_within_20_s() {
    let service = Service::start().await;
    for sent in ["", "GET /health HT", "GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: "] {
        let mut stream = connect(&service).await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let (received, elapsed) = until_closed(stream).await;
        assert_eq!((received.as_str(), elapsed.as_secs()), ("", 20), "{sent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_longer_than_a_load_balancer_keeps_it() {
    let service = Service::start().await;
    let mut stream = connect(&service).await;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (received, elapsed) = until_closed(stream).await;
    assert!(received.starts_with("HTTP/1.1 200") && received.ends_with(r#"{"status":"ok"}"#));
    assert_eq!(elapsed.as_secs(), 75);
}

#[tokio::test]
async fn a_missing_or_invalid_host_is_400() {
    let service = Service::start().await;
    for hosts in ["", "Host: \r\n", "Host: a b\r\n", "Host: a\r\nHost: b\r\n", "Host: u@h\r\n"] {
        let head = format!("GET /health HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        let received = raw(&service, &head).await;
        assert!(received.starts_with("HTTP/1.1 400"), "{hosts:?}: {received}");
        assert!(received.contains("IGA_INVALID_HOST"), "{hosts:?}: {received}");
        assert!(received.contains("x-request-id: iga_req_"), "{hosts:?}: {received}");
    }
    for head in [
        "GET /health HTTP/1.0\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: iga_service:5007\r\nConnection: close\r\n\r\n",
    ] {
        let received = raw(&service, head).await;
        assert!(received.contains(r#"{"status":"ok"}"#), "{head:?}: {received}");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_are_served() {
    let emulator = emulator().await;
    let mut config = config(&emulator, &[]);
    config.max_connections = 2;
    let service = Service::run(emulator, config).await;
    let held = [connect(&service).await, connect(&service).await];
    let mut waiting = connect(&service).await;
    waiting
        .write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    // The held connections are served while the third one waits; each then makes room.
    let [first, second] = held;
    for mut stream in [first, second] {
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let (received, _) = until_closed(stream).await;
        assert!(received.starts_with("HTTP/1.1 200"), "{received}");
    }
    let (received, _) = until_closed(waiting).await;
    assert!(received.starts_with("HTTP/1.1 200"), "{received}");
}

#[tokio::test]
async fn a_caller_that_leaves_is_logged_as_499() {
    let latency = Duration::from_secs(2);
    let emulator = emulator_with(Options { latency, ..Options::default() }).await;
    let settings = [CURRENT, &[("IGA_DEBUG_MODE", "False")]].concat();
    let process = Process::start(&emulator, &settings).await;
    let asking = tokio::spawn(post(&process, &json!({"prompt": PROMPT})).send());
    reached(&emulator, |counters| counters.model_calls > 0).await;
    asking.abort();
    process.signal("TERM");
    let (_, lines) = process.end().await;
    let summaries: Vec<_> = lines.iter().filter(|line| line["httpRequest"].is_object()).collect();
    assert_eq!(summaries.len(), 1, "{summaries:?}");
    let line = summaries[0];
    assert_eq!((&line["status"], &line["outcome"]), (&json!(499), &json!("caller_left")));
    assert_eq!(line["tags"], json!({"status": "caller_left"}));
}

#[tokio::test]
async fn a_successful_request_writes_one_short_line_at_info_level() {
    let emulator = emulator().await;
    let settings = [CURRENT, &[("IGA_DEBUG_MODE", "False")]].concat();
    let process = Process::start(&emulator, &settings).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = post(&process, &json!({"prompt": PROMPT.repeat(9)}))
        .header("traceparent", trace)
        .header("x-workflow-id", "a-workflow-of-the-podcast-7f3c")
        .header("idempotency-key", "k")
        .header("user-agent", "python-requests/2.32.3");
    let response = fetch(request).await;
    let id = response.is_image().header("x-request-id").to_owned();
    process.signal("TERM");
    let (_, lines) = process.end().await;
    let of_request: Vec<_> = lines.iter().filter(|line| line["request_id"] == *id).collect();
    let bytes: usize = of_request.iter().map(|line| line.to_string().len() + 1).sum();
    assert!(of_request.len() == 1 && bytes <= 1500, "{bytes} bytes: {of_request:#?}");
    let line = of_request[0];
    assert_eq!((&line["paid"], &line["joined"]), (&json!(true), &json!(false)));
    assert_eq!(line["image_url"], response.body["image_url"]);
    assert_eq!(line["metric_name"], json!("iga_generate_image_request_count"));
    for stage in ["token_ms", "model_ms", "upload_ms", "image_bytes"] {
        assert!(line[stage].is_u64(), "{stage}: {line}");
    }
    let http = &line["httpRequest"];
    assert_eq!(http["requestMethod"], json!("POST"));
    assert_eq!((&http["requestUrl"], &http["status"]), (&json!("/generate_image"), &json!(200)));
    assert_eq!(http["remoteIp"], json!("127.0.0.1"));
    assert!(http["latency"].as_str().unwrap().ends_with('s'), "{http}");
}

#[tokio::test]
async fn an_unread_log_blocks_neither_requests_nor_shutdown() {
    let emulator = emulator().await;
    let mut command = command(&emulator, CURRENT);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    // Read up to the line with the address, and nothing after it.
    let mut start = Vec::new();
    let url = loop {
        start.push(stdout.read_u8().await.unwrap());
        let Some(line) = start.strip_suffix(b"\n") else { continue };
        let line: Value =
            serde_json::from_slice(line.rsplit(|b| *b == b'\n').next().unwrap()).unwrap();
        if line["message"] == "listening" {
            break format!("http://{}", line["address"].as_str().unwrap());
        }
    };
    let http = client();
    // Each request logs about 1 KB; the pipe and the queue together hold less than all of them.
    for _ in 0..40 {
        let requests =
            (0..100).map(|_| fetch(http.get(format!("{url}/nothing/{}", "x".repeat(200)))));
        for response in futures(requests).await {
            response.is_error(404, "IGA_NOT_FOUND");
        }
    }
    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
    assert!(ended.expect("it ends").unwrap().success());
}

async fn futures<T: Send + 'static>(
    all: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let tasks: Vec<_> = all.map(tokio::spawn).collect();
    let mut ended = Vec::new();
    for task in tasks {
        ended.push(task.await.unwrap());
    }
    ended
}
