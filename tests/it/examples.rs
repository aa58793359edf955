//! The programs of `examples/` get their image from the built binary, pay once, and say why a prompt was refused.

use crate::support::process::Process;
use crate::support::python::python;
use crate::support::service::{BUCKET, CURRENT, PROMPT, client, emulator, only_image};
use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, header};
use iga::retry::TRIES;
use iga_emulator::{Action, Emulator, Fault, Stage};
use serde_json::Value;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::process::Command;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Example {
    Python,
    JavaScript,
    Curl,
}

/// The end of a run.
#[derive(Debug)]
struct Run {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Example {
    fn command(self, url: &str, arguments: &[&str]) -> Command {
        let (program, file) = match self {
            Example::Python => (python(), "generate_image.py"),
            Example::JavaScript => (OsString::from("node"), "generate_image.mjs"),
            Example::Curl => (OsString::from("sh"), "generate_image.sh"),
        };
        let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "examples", file].iter().collect();
        let mut command = Command::new(program);
        command.arg(path).args(arguments).env("IGA_URL", url).kill_on_drop(true);
        command.envs([("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1")]);
        command
    }

    async fn run(self, url: &str, arguments: &[&str]) -> Run {
        Run::of(self.command(url, arguments)).await
    }
}

impl Run {
    async fn of(mut command: Command) -> Run {
        let output = command.output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Run {
            status: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// The run printed where its image is, and the image was paid once.
    #[track_caller]
    fn paid_once(&self, emulator: &Emulator) {
        let printed = format!("gs://{BUCKET}/{}\n", only_image(emulator).name);
        assert_eq!((self.status, &self.stdout), (Some(0), &printed), "{self:?}");
        assert_eq!(emulator.counters().paid_generations, 1);
    }
}

/// Runs a test for all examples at the same time, because they mostly wait.
async fn with_each(test: impl AsyncFn(Example)) {
    tokio::join!(test(Example::Python), test(Example::JavaScript), test(Example::Curl));
}

/// Forwards requests to a service, and records when they came and their headers.
struct Relay {
    url: String,
    requests: Arc<Mutex<Vec<(Instant, HeaderMap)>>>,
}

impl Relay {
    async fn to(service: &str, loses_first_response: bool) -> Relay {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let forward = {
            let (service, requests, client) = (service.to_owned(), Arc::clone(&requests), client());
            async move |request: Request| {
                let (parts, body) = request.into_parts();
                let is_first = {
                    let mut requests = requests.lock().unwrap();
                    requests.push((Instant::now(), parts.headers.clone()));
                    requests.len() == 1
                };
                let body: Bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                let url = format!("{service}{}", parts.uri.path());
                let mut headers = parts.headers;
                headers.remove(header::HOST);
                let request = client.request(parts.method, url).headers(headers).body(body);
                let response = request.send().await.unwrap();
                if is_first && loses_first_response {
                    std::future::pending::<()>().await;
                }
                let (status, headers) = (response.status(), response.headers().clone());
                (status, headers, response.bytes().await.unwrap()).into_response()
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(forward);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Relay { url, requests }
    }

    /// The values of a header in all requests.
    fn values(&self, name: &str) -> Vec<Option<String>> {
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|(_, headers)| headers.get(name).map(text)).collect()
    }
}

#[tokio::test]
#[ignore = "needs Python with the packages requests and google-auth, Node and curl"]
async fn an_example_prints_where_its_image_is() {
    with_each(async |example| {
        let emulator = emulator().await;
        let process = Process::start(&emulator, CURRENT).await;
        let prompt = r#"A "red" fox \ ein roter Füchsling"#;
        example.run(&process.url, &[prompt]).await.paid_once(&emulator);
        assert_eq!(emulator.generations()[0].prompt, prompt, "{example:?}");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Python with the packages requests and google-auth, Node and curl"]
async fn an_example_pays_once_after_an_outage_or_without_quota() {
    with_each(async |example| {
        for (status, arguments) in [(503, &[PROMPT][..]), (429, &[PROMPT, "cover-7d3f"])] {
            let emulator = emulator().await;
            emulator.script(Fault::new(Stage::Model, Action::status(status)).times(TRIES as u32));
            let process = Process::start(&emulator, CURRENT).await;
            example.run(&process.url, arguments).await.paid_once(&emulator);
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Python with the packages requests and google-auth, Node and curl"]
async fn an_example_whose_first_response_is_lost_pays_once() {
    let settings = &[CURRENT, &[("IGA_RETRY_WINDOW_SECONDS", "600")]].concat();
    with_each(async |example| {
        for key in [None, Some("cover-7d3f")] {
            let emulator = emulator().await;
            let process = Process::start(&emulator, settings).await;
            let relay = Relay::to(&process.url, true).await;
            let arguments: Vec<_> = [PROMPT].into_iter().chain(key).collect();
            let mut command = example.command(&relay.url, &arguments);
            command.env("IGA_TIMEOUT_SECONDS", "2");
            Run::of(command).await.paid_once(&emulator);
            let key = key.map(str::to_owned);
            assert_eq!(relay.values("idempotency-key"), [key.clone(), key], "{example:?}");
        }
    })
    .await;
}

/// IGA does not begin a wait that is as long as its own deadline.
#[tokio::test]
#[ignore = "needs Python with the packages requests and google-auth, Node and curl"]
async fn an_example_waits_as_long_as_the_service_asks() {
    let settings = &[CURRENT, &[("IGA_GENERATION_DEADLINE_SECONDS", "4")]].concat();
    with_each(async |example| {
        let emulator = emulator().await;
        let busy = Action::Response(
            serde_json::from_str(r#"{"status": 503, "headers": {"retry-after": "4"}}"#).unwrap(),
        );
        emulator.script(Fault::new(Stage::Model, busy));
        let process = Process::start(&emulator, settings).await;
        let relay = Relay::to(&process.url, false).await;
        example.run(&relay.url, &[PROMPT]).await.paid_once(&emulator);
        let requests = relay.requests.lock().unwrap();
        let [(first, _), (second, _)] = &requests[..] else { panic!("{}", requests.len()) };
        assert!(*second - *first >= Duration::from_secs(4), "{example:?}");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Python with the packages requests and google-auth, Node and curl"]
async fn an_example_does_not_send_a_refused_prompt_again() {
    with_each(async |example| {
        let emulator = emulator().await;
        let process = Process::start(&emulator, CURRENT).await;
        let run = example.run(&process.url, &["[blocked] A red fox"]).await;
        assert_eq!((run.status, run.stdout.as_str()), (Some(1), ""), "{run:?}");
        let (status, body) = run.stderr.split_once(' ').unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        let (code, message) = (&body["error_code"], &body["message"]);
        assert_eq!((status, code), ("400", &"IGA_VERTEXAI_PROMPT_BLOCKED_SAFETY".into()));
        assert_eq!(message, "Prompt blocked by safety filters.");
        assert_eq!(emulator.counters().model_calls, 1);
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Python with the packages requests and google-auth, Node and curl"]
async fn an_example_fails_if_no_service_listens() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    with_each(async |example| {
        let run = example.run(&format!("http://{address}"), &[PROMPT]).await;
        assert!(run.status.is_some_and(|status| status != 0), "{run:?}");
        assert!(run.stdout.is_empty() && !run.stderr.contains("Traceback"), "{run:?}");
        assert!(!run.stderr.is_empty(), "{run:?}");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Python with the packages requests and google-auth, Node and curl"]
async fn an_example_sends_an_id_token_only_if_told_to() {
    with_each(async |example| {
        let emulator = emulator().await;
        let process = Process::start(&emulator, CURRENT).await;
        let relay = Relay::to(&process.url, false).await;
        let run = example.run(&relay.url, &[PROMPT]).await;
        assert_eq!(run.status, Some(0), "{run:?}");
        let (metadata_server, relayed) = (emulator.host(), relay.url.clone());
        let mut command = match example {
            Example::Python => example.command(&relay.url, &["--id-token", PROMPT, "a-key"]),
            Example::JavaScript | Example::Curl => example.command(&relay.url, &[PROMPT, "a-key"]),
        };
        command.env_remove("GOOGLE_APPLICATION_CREDENTIALS");
        command.envs([
            ("GCE_METADATA_HOST", metadata_server.as_str()),
            ("GCE_METADATA_IP", metadata_server.as_str()),
            ("IGA_ID_TOKEN", "an-id-token"),
        ]);
        let run = Run::of(command).await;
        assert_eq!(run.status, Some(0), "{run:?}");
        let [None, Some(sent)] = &relay.values("authorization")[..] else {
            panic!("{example:?}: {:?}", relay.values("authorization"))
        };
        match example {
            Example::Python => assert_eq!(audience(sent), relayed),
            Example::JavaScript | Example::Curl => assert_eq!(sent, "Bearer an-id-token"),
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Python with the packages requests and google-auth"]
async fn an_example_without_a_source_of_id_tokens_says_so() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let mut command = Example::Python.command("http://127.0.0.1:9", &["--id-token", PROMPT]);
    command.env_remove("GOOGLE_APPLICATION_CREDENTIALS");
    command.envs([("GCE_METADATA_HOST", &closed), ("GCE_METADATA_IP", &closed)]);
    let run = Run::of(command).await;
    assert_eq!((run.status, run.stdout.as_str()), (Some(1), ""), "{run:?}");
    assert!(run.stderr.contains("no ID token: ") && !run.stderr.contains("Traceback"), "{run:?}");
}

/// The `aud` of the ID token in an `Authorization` header.
fn audience(authorization: &str) -> String {
    let token = authorization.strip_prefix("Bearer ").expect("a bearer token");
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("a JWT")).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    claims["aud"].as_str().unwrap().to_owned()
}
