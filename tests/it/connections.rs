//! Connections: silent, slow and invalid clients, mutated requests, limits, log lines, and an unread log.

use crate::support::process::{Process, command, post};
use crate::support::random::Rng;
use crate::support::service::{
    CURRENT, PROMPT, Service, client, config, emulator, emulator_with, fetch, reached,
};
use iga_emulator::Options;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// Figures of the table in docs/reliability.md.
pub const FIRST_HEADER_SECONDS: u64 = 20;
pub const KEEP_ALIVE_SECONDS: u64 = 75;
pub const UNREAD_REQUESTS: usize = 4000;
pub const MUTATED_REQUESTS: u64 = 4000;

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
        assert_eq!((received.as_str(), elapsed.as_secs()), ("", FIRST_HEADER_SECONDS), "{sent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_longer_than_a_load_balancer_keeps_it() {
    let service = Service::start().await;
    let mut stream = connect(&service).await;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (received, elapsed) = until_closed(stream).await;
    assert!(received.starts_with("HTTP/1.1 200") && received.ends_with(r#"{"status":"ok"}"#));
    assert_eq!(elapsed.as_secs(), KEEP_ALIVE_SECONDS);
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

/// The statuses of the responses on a connection: each is complete and valid HTTP, and none is 5xx.
fn statuses(received: &[u8], sent: &[u8]) -> Vec<u16> {
    let shown = || format!("{:?} to {:?}", received.escape_ascii(), sent.escape_ascii());
    let (mut rest, mut statuses) = (received, Vec::new());
    while !rest.is_empty() {
        let end = rest
            .windows(4)
            .position(|bytes| bytes == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("{}", shown()));
        let head = std::str::from_utf8(&rest[..end]).unwrap();
        rest = &rest[end + 4..];
        let (line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
        let status = line.strip_prefix("HTTP/1.1 ").or(line.strip_prefix("HTTP/1.0 "));
        let status: u16 = status
            .and_then(|line| line.get(..3)?.parse().ok())
            .unwrap_or_else(|| panic!("{}", shown()));
        assert!((100..500).contains(&status), "{}", shown());
        if status == 100 {
            continue;
        }
        let length = headers.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.unwrap_or_else(|| panic!("{}", shown())).parse::<usize>().unwrap();
        // A response to HEAD has the length of the body that GET would get.
        let body = match sent.windows(4).any(|bytes| bytes == b"HEAD") {
            true => rest.get(..length).filter(|body| body.starts_with(b"{")).unwrap_or_default(),
            false => rest.get(..length).unwrap_or_else(|| panic!("{}", shown())),
        };
        rest = &rest[body.len()..];
        if !body.is_empty() {
            serde_json::from_slice::<Value>(body).unwrap_or_else(|_| panic!("{}", shown()));
        }
        statuses.push(status);
    }
    statuses
}

/// Sends the parts one by one, and receives until the service closes the connection. Closes the sending side after
/// the first response. Without a response, closes it after a while, because the service waits for more of a request.
async fn exchange(service: &Service, parts: &[&[u8]]) -> Vec<u8> {
    let mut stream = connect(service).await;
    stream.set_nodelay(true).unwrap();
    let mut received = Vec::new();
    let exchange = async {
        for part in parts {
            // The service may have refused the request and closed.
            if stream.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = timeout(Duration::from_millis(200), stream.read_buf(&mut received)).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut received).await;
    };
    timeout(Duration::from_secs(60), exchange).await.expect("the service closes the connection");
    received
}

const HEAD: &str = "POST /generate_image HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n";

/// A request whose prompt is only paid for if a body is taken for a request.
const INNER: &str = "POST /generate_image HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
                     Content-Length: 21\r\n\r\n{\"prompt\": \"smuggled\"}";

#[tokio::test]
async fn no_second_request_is_recognised_in_a_body() {
    let service = Service::current().await;
    let (length, chunk) = (INNER.len(), format!("{:x}\r\n{INNER}\r\n0\r\n\r\n", INNER.len()));
    let chunked = "Transfer-Encoding: chunked";
    for (headers, body, expected) in [
        (format!("Content-Length: {length}"), INNER, 400),
        (format!("Content-Length: {length}\r\nContent-Length: {length}"), INNER, 400),
        (format!("Content-Length: {length}\r\nContent-Length: 0"), INNER, 400),
        (format!("Content-Length: 0\r\nContent-Length: {length}"), INNER, 400),
        (format!("Content-Length: 0, {length}"), INNER, 400),
        (format!("Content-Length: +{length}"), INNER, 400),
        (format!("Content-Length: 0x{length:x}"), INNER, 400),
        ("Content-Length: -1".to_owned(), INNER, 400),
        ("Content-Length: 99999999999999999999".to_owned(), INNER, 400),
        (format!("Content-Length : {length}"), INNER, 400),
        (format!("Content-Length:\r\n {length}"), INNER, 400),
        (chunked.to_owned(), &chunk, 400),
        (format!("Content-Length: 0\r\n{chunked}"), &chunk, 400),
        (format!("{chunked}\r\nContent-Length: 0"), &chunk, 400),
        // By its length this is one request, so nothing after the last chunk is read.
        (format!("Content-Length: {}\r\n{chunked}", length + 5), &format!("0\r\n\r\n{INNER}"), 400),
        (format!("{chunked}\r\nContent-Length: {}", length + 5), &format!("0\r\n\r\n{INNER}"), 400),
        (format!("{chunked}, identity"), &chunk, 400),
        (format!("{chunked}\r\nTransfer-Encoding: identity"), &chunk, 400),
        ("Transfer-Encoding: xchunked".to_owned(), &chunk, 400),
        ("Transfer-Encoding : chunked".to_owned(), &chunk, 400),
        ("Transfer-Encoding:\x0bchunked".to_owned(), &chunk, 400),
        ("X: y\r\n Transfer-Encoding: chunked".to_owned(), &chunk, 400),
        (chunked.to_owned(), &format!("0x{chunk}"), 400),
        (chunked.to_owned(), &format!("ffffffffffffffff{chunk}"), 400),
        (chunked.to_owned(), &format!("-{chunk}"), 400),
    ] {
        let sent = format!("{HEAD}{headers}\r\n\r\n{body}");
        let received = exchange(&service, &[sent.as_bytes()]).await;
        assert_eq!(statuses(&received, sent.as_bytes()), [expected], "{headers:?}");
    }
    assert_eq!(service.emulator.counters().model_calls, 0);
    // The search finds a request that is no part of a body.
    let sent =
        format!("GET /health HTTP/1.1\r\nHost: a\r\n\r\n{HEAD}Content-Length: 2\r\n\r\n{{}}");
    let received = exchange(&service, &[sent.as_bytes()]).await;
    assert_eq!(statuses(&received, sent.as_bytes()), [200, 400]);
}

/// Changes bytes of a request as a broken or hostile client would.
fn mutated(request: &str, rng: &mut Rng) -> Vec<u8> {
    const FRAGMENTS: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b"\r\n\r\n",
        b"\xff",
        b"\xc3\xa9",
        b"\r\n folded: x",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: 1\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Host: b\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"-1\r\n",
        b"5;x=\"\r\n",
        b"http://b/",
        b"*",
        b"CONNECT a:80",
        b"OPTIONS * ",
        b"/../",
        b"%00",
        b"?",
        b"#",
    ];
    let mut bytes = request.as_bytes().to_vec();
    for _ in 0..1 + rng.below(3) {
        let anywhere = rng.below(bytes.len() + 1);
        let lines = bytes[..anywhere].windows(2).rposition(|end| end == b"\r\n");
        // Half of the changes are at the start of a line, where a header is still valid.
        let at = if rng.one_in(2) { lines.map_or(anywhere, |end| end + 2) } else { anywhere };
        let end = (at + 1 + rng.below(12)).min(bytes.len());
        match rng.below(10) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 if at < bytes.len() => bytes[at] = rng.next() as u8,
            3 => {
                bytes.drain(at..end);
            }
            4 => {
                bytes.splice(at..at, bytes[at..end].to_vec());
            }
            5 if rng.one_in(4) => bytes.truncate(at),
            6 if rng.one_in(20) => {
                let huge = [b"X: ".to_vec(), vec![b'x'; 70_000], b"\r\n".to_vec()].concat();
                bytes.splice(at..at, huge);
            }
            7 if rng.one_in(20) => {
                let many = b"X: y\r\n".repeat(150);
                bytes.splice(at..at, many);
            }
            _ => {
                let fragment = FRAGMENTS[rng.below(FRAGMENTS.len())];
                bytes.splice(at..at, fragment.iter().copied());
            }
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutated_request_gets_a_valid_response_or_is_closed() {
    let service = Arc::new(Service::current().await);
    let (queue, mut tasks) = (Arc::new(Semaphore::new(64)), Vec::new());
    for seed in 0..MUTATED_REQUESTS {
        let (service, queue) = (Arc::clone(&service), Arc::clone(&queue));
        tasks.push(tokio::spawn(async move {
            let _turn = queue.acquire_owned().await.unwrap();
            let mut rng = Rng::new(seed);
            let body = format!(r#"{{"prompt": "number {seed}"}}"#);
            let post = format!("{HEAD}Content-Length: {}\r\n\r\n{body}", body.len());
            let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
            let chunked = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{chunks}");
            let get = "GET /health HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
            let request = match rng.below(6) {
                0 => post,
                1 => chunked,
                2 => format!("{HEAD}Content-Length: 2\r\n\r\n{{}}"),
                3 => format!("{get}{post}{get}"),
                4 => format!("{get}{get}"),
                _ => get.to_owned(),
            };
            let generations = request.matches("number").count();
            let sent = mutated(&request, &mut rng);
            let mut parts: Vec<&[u8]> = Vec::new();
            let mut rest = &sent[..];
            for _ in 0..rng.below(4) {
                let (part, after) = rest.split_at(rng.below(rest.len() + 1));
                parts.push(part);
                rest = after;
            }
            parts.push(rest);
            let received = exchange(&service, &parts).await;
            statuses(&received, &sent);
            // A copy of the bytes of a request can be another request, but only of the same prompt.
            generations
        }));
    }
    let mut generations = 0;
    for (seed, task) in tasks.into_iter().enumerate() {
        generations += task.await.unwrap_or_else(|error| panic!("case {seed}: {error}"));
    }
    let health = fetch(service.http.get(format!("{}/health", service.url))).await;
    assert_eq!((health.status, health.text("status")), (200, "ok"));
    service.prompt().await.is_image();
    let paid = service.emulator.counters().paid_generations as usize;
    println!(
        "{MUTATED_REQUESTS} requests, {generations} of them with a prompt, {paid} images paid"
    );
    assert!(paid > 1 && paid <= generations + 1, "{paid} of {generations} were paid");
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
async fn a_full_file_table_is_survived() {
    let emulator = emulator().await;
    let settings = [CURRENT, &[("IGA_DEBUG_MODE", "False")]].concat();
    let process = Process::start(&emulator, &settings).await;
    process.limit_files(8);
    let address = process.url.trim_start_matches("http://");
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let sent =
        format!("{HEAD}Content-Length: 15\r\nConnection: close\r\n\r\n{{\"prompt\": \"x\"}}");
    let mut first = silent.remove(0);
    first.write_all(sent.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    first.read_to_end(&mut received).await.unwrap();
    assert!(received.starts_with(b"HTTP/1.1 503 "), "{}", received.escape_ascii());
    drop(silent);
    // Before it has noticed that, it may answer 503.
    let generated = async {
        loop {
            let response = fetch(post(&process, &json!({"prompt": PROMPT}))).await;
            if response.status == 200 {
                break response;
            }
            assert_eq!(response.status, 503, "{response:?}");
        }
    };
    timeout(Duration::from_secs(60), generated).await.unwrap().is_image();
    process.signal("TERM");
    let (status, lines) = process.end().await;
    assert!(status.success());
    let why = "Too many open files";
    let says = |line: &Value, field: &str| line[field].to_string().contains(why);
    assert!(lines.iter().any(|line| says(line, "message")), "all were accepted: {lines:#?}");
    // The file that was missing is that of the CA certificates, or a connection to the metadata server.
    let failed = |line: &&Value| line["error_code"].is_string();
    assert!(lines.iter().filter(failed).all(|line| says(line, "causes")), "{lines:#?}");
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
    const ROUNDS: usize = UNREAD_REQUESTS / 100;
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
    for _ in 0..ROUNDS {
        let requests =
            (0..100).map(|_| fetch(http.get(format!("{url}/nothing/{}", "x".repeat(200)))));
        for response in futures(requests).await {
            response.is_error(404, "IGA_NOT_FOUND");
        }
    }
    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let ended = timeout(Duration::from_secs(30), child.wait()).await;
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
