//! Mutated input: every parser returns a value or one of its own errors.
//!
//! `PROPTEST_CASES=10000000 cargo test --release --test it fuzz` runs more cases. Proptest keeps failures in
//! `proptest-regressions`; turn each into a test.

use crate::support::service::{CURRENT, config, emulator};
use http::{HeaderMap, HeaderValue};
use iga::app::App;
use iga::config::Config;
use iga::error::{MAX_DETAILS_BYTES, is_control};
use iga::google::credential_file::CredentialFile;
use iga::google::proxy;
use iga::google::rpc_error::{GoogleError, MAX_RETRY_AFTER};
use iga::model::Family;
use iga::request::GenerateRequest;
use iga::runtime;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value;
use std::sync::{Arc, LazyLock};
use tokio::runtime::Runtime;

static TOKIO: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static CONFIG: LazyLock<Config> =
    LazyLock::new(|| TOKIO.block_on(async { config(&emulator().await, CURRENT) }));
static APP: LazyLock<Arc<App>> = LazyLock::new(|| App::new(CONFIG.clone()));

/// One change of a text, such as a careless client or a broken network makes.
#[derive(Debug, Clone)]
enum Change {
    Cut(Index),
    Replace(Index, u8),
    Insert(Index, Vec<u8>),
    Repeat(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<Index>;
    let fragments: &[&[u8]] = &[
        b"null",
        b"{}",
        b"[]",
        b"\"",
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b":",
        b",",
        b"-1e999",
        b"0.0",
        b"\n",
        b"\xff",
        b"-----BEGIN PRIVATE KEY-----",
        b"\xe2\x80\xa8",
        b"\xe2\x80\xae",
        b"[[[[[[[[",
        b"\"prompt\":",
        b"error",
    ];
    prop_oneof![
        index().prop_map(Change::Cut),
        (index(), any::<u8>()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        (index(), select(fragments)).prop_map(|(at, text)| Change::Insert(at, text.to_vec())),
        (index(), index()).prop_map(|(from, to)| Change::Repeat(from, to)),
    ]
}

fn apply(mut text: Vec<u8>, changes: Vec<Change>) -> Vec<u8> {
    for change in changes {
        let length = text.len() + 1;
        match change {
            Change::Cut(at) => text.truncate(at.index(length)),
            Change::Replace(at, byte) if !text.is_empty() => {
                let at = at.index(text.len());
                text[at] = byte;
            }
            Change::Replace(..) => {}
            Change::Insert(at, bytes) => {
                let at = at.index(length);
                text.splice(at..at, bytes);
            }
            Change::Repeat(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                let part = text[from.min(to)..from.max(to)].to_vec();
                text.extend(part);
            }
        }
    }
    text
}

/// One of these texts with a few changes.
fn mutated(texts: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    (select(texts), prop::collection::vec(change(), 0..6))
        .prop_map(|(text, changes)| apply(text.as_bytes().to_vec(), changes))
}

const BODIES: &[&str] = &[
    r#"{"prompt": "a fox", "aspect_ratio": "16:9", "add_watermark": false, "seed": 7.0}"#,
    r#"{"prompt": "\u00e9\ud83e\udd8a", "model_id_override": "gemini-3.1-flash-image", "image_size": "2K"}"#,
    r#"{"prompt": "x", "negative_prompt": "y", "person_generation": "allow_all", "output_mime_type": "image/png"}"#,
];

const FILES: &[&str] = &[
    r#"{"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}"#,
    r#"{"type": "service_account", "client_email": "a@b", "private_key_id": "k", "project_id": "p",
        "private_key": "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\n"}"#,
    r#"{"type": "external_account", "audience": "//iam.googleapis.com/p/providers/x", "subject_token_type": "t",
        "token_url": "u", "credential_source": {"url": "http://169.254.169.254/metadata/identity/oauth2/token"}}"#,
    r#"{"type": "impersonated_service_account", "service_account_impersonation_url": "https://x/serviceAccounts/c@d:g",
        "source_credentials": {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}}"#,
];

const PROXIES: &[&str] =
    &["http://user:pass@proxy:3128/", "socks5h://proxy", "[::1]:80", "https://proxy"];

const RESPONSES: &[&str] = &[
    r#"{"candidates": [{"content": {"parts": [{"text": "x"}, {"inlineData": {"mimeType": "image/png", "data": "0"}}]},
        "finishReason": "STOP"}], "promptFeedback": {"blockReason": "SAFETY"}, "modelVersion": "x"}"#,
    r#"{"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": "0"}, {"raiFilteredReason": "x"}]}"#,
    r#"{"error": {"code": 429, "message": "x", "status": "RESOURCE_EXHAUSTED", "details": [{"retryDelay": "1s"}]}}"#,
];

/// Events without a prompt, so that no image is generated.
const EVENTS: &[&str] = &[
    r#"{"version": "2.0", "rawPath": "/generate_image", "headers": {"content-type": "application/json"},
        "requestContext": {"http": {"method": "POST", "path": "/generate_image"}}, "body": "{}", "isBase64Encoded": false}"#,
    r#"{"httpMethod": "POST", "path": "/generate_image", "headers": {}, "body": "e30=", "isBase64Encoded": true,
        "requestContext": {"elb": {"targetGroupArn": "x"}}}"#,
    r#"{"prompt": ""}"#,
];

proptest! {
    #[test]
    fn a_request_is_valid_or_gets_a_4xx_error(body in mutated(BODIES)) {
        match GenerateRequest::parse(&body, &CONFIG) {
            Ok(request) => prop_assert!(!request.prompt.trim().is_empty()),
            Err(error) => {
                let details = error.to_string();
                prop_assert!((400..500).contains(&error.kind.row().status), "{details}");
                prop_assert!(details.len() <= MAX_DETAILS_BYTES && !details.contains(is_control), "{details:?}");
            }
        }
    }

    #[test]
    fn a_credentials_file_is_valid_or_its_problem_is_one_sentence(file in mutated(FILES)) {
        match CredentialFile::parse(&file) {
            Ok(file) => prop_assert!(file.json["type"].is_string() && !file.kind.to_string().is_empty()),
            Err(problem) => prop_assert!(!problem.contains(is_control) && problem.len() < 400, "{problem:?}"),
        }
    }

    #[test]
    fn a_proxy_is_valid_or_its_problem_is_one_sentence(proxy in mutated(PROXIES)) {
        if let Ok(text) = String::from_utf8(proxy) && let Err(problem) = proxy::check(&text) {
            prop_assert!(problem.ends_with("such as http://proxy.example.com:3128"), "{problem:?}");
        }
    }

    #[test]
    fn every_response_skeleton_has_an_outcome(skeleton in mutated(RESPONSES)) {
        if let Ok(skeleton) = serde_json::from_slice(&skeleton) {
            for family in [Family::Imagen, Family::Gemini] {
                let _ = family.outcome(&skeleton);
                let _ = family.best_so_far()(&skeleton);
            }
        }
    }

    #[test]
    fn a_google_error_of_any_shape_is_read(body in mutated(RESPONSES), wait in ".*") {
        let error = GoogleError::parse(&body);
        prop_assert!(!error.text(503).is_empty());
        prop_assert_eq!(error.json, serde_json::from_slice::<Value>(&body).is_ok());
        let mut headers = HeaderMap::new();
        if let Ok(wait) = HeaderValue::from_str(&wait) {
            headers.insert("retry-after", wait);
        }
        prop_assert!(error.retry_after(&headers).is_none_or(|wait| wait <= MAX_RETRY_AFTER));
    }

    #[test]
    fn an_event_gets_a_response_or_an_error(event in mutated(EVENTS)) {
        if let Ok(event) = String::from_utf8(event) {
            let invoked = TOKIO.block_on(runtime::invoke(Arc::clone(&APP), &event));
            prop_assert!(invoked.is_ok() || !invoked.unwrap_err().is_empty());
        }
    }
}
