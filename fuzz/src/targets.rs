//! What must hold for every input of the parsers. A target panics if it does not hold.

use http::{HeaderMap, HeaderValue};
use iga::app::App;
use iga::config::{self, Config};
use iga::error::{Error, Kind, MAX_DETAILS_BYTES, is_control};
use iga::extract::{ExtractError, Extracted, ImageExtractor, Limits};
use iga::google::credential_file::CredentialFile;
use iga::google::proxy;
use iga::google::rpc_error::{GoogleError, MAX_RETRY_AFTER};
use iga::model::{Family, Outcome};
use iga::request::GenerateRequest;
use iga::runtime;
use serde_json::Value;
use std::sync::{Arc, LazyLock};
use tokio::runtime::Runtime;

pub type Target = fn(&[u8]);

pub const TARGETS: &[(&str, Target)] = &[
    ("body", body),
    ("credentials", credentials),
    ("env", env),
    ("error", error),
    ("event", event),
    ("extractor", extractor),
    ("gemini", gemini),
    ("imagen", imagen),
    ("proxy", proxy_setting),
];

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    Config::from_vars(|name| {
        let value = match name {
            "GCP_PROJECT_ID" => "test-project",
            "GCP_LOCATION" => "global",
            "GCS_BUCKET_NAME" => "test-images",
            "IGA_VERTEXAI_IMAGE_MODEL_ID" => "gemini-3.1-flash-image",
            // Nothing listens there: no target may send anything.
            "STORAGE_EMULATOR_HOST" | "IGA_VERTEXAI_ENDPOINT" => "http://127.0.0.1:9",
            "GCE_METADATA_HOST" => "127.0.0.1:9",
            _ => return None,
        };
        Some(value.to_owned())
    })
    .expect("valid settings")
});
static APP: LazyLock<Arc<App>> = LazyLock::new(|| App::new(CONFIG.clone()));
static TOKIO: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
});

fn assert_presentable(text: &str) {
    assert!(text.len() <= MAX_DETAILS_BYTES && !text.contains(is_control), "{text:?}");
}

/// A request is valid, and the same when its JSON is written anew, or it gets a 4xx.
fn body(input: &[u8]) {
    let is_json = serde_json::from_slice::<Value>(input);
    let request = match GenerateRequest::parse(input, &CONFIG) {
        Ok(request) => request,
        Err(error) => {
            assert!((400..500).contains(&error.kind.row().status), "{error:?}");
            assert_presentable(&error.to_string());
            let is_malformed = error.kind == Kind::MalformedJson;
            assert!(is_json.is_err() || !is_malformed || has_twice(input), "{error:?}");
            return;
        }
    };
    assert!(!request.prompt.trim().is_empty());
    // The strings of other members are skipped, and may hold what no string may hold.
    let Ok(written) = is_json.map(|json| json.to_string()) else { return };
    let again = GenerateRequest::parse(written.as_bytes(), &CONFIG).expect("it is valid again");
    assert_eq!(again.prompt, request.prompt);
    assert_eq!(again.fingerprint(), request.fingerprint());
}

/// Whether JSON may have a member twice, which a request may not, and a `Value` may.
fn has_twice(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    // A name may be written with escapes.
    text.contains('\\') || text.match_indices('"').count() > 4
}

/// A response has the same meaning in whatever chunks it arrives, and every JSON text can be read.
fn extractor(input: &[u8]) {
    let Some((&how, text)) = input.split_first() else { return };
    let limits = match how % 2 {
        0 => Limits::DEFAULT,
        _ => Limits { skeleton_bytes: 200, image_bytes: 40, images: 3 },
    };
    let family = [Family::Gemini, Family::Imagen][usize::from(how / 2 % 2)];
    let whole = extracted([text], limits, family);
    let size = usize::from(how / 4) + 1;
    let parts = extracted(text.chunks(size), limits, family);
    match (&whole, &parts) {
        (Ok(whole), Ok(parts)) => {
            assert_eq!(whole.skeleton, parts.skeleton);
            // An image that is too large may also be no base64 further on.
            assert_eq!(whole.unusable.is_some(), parts.unusable.is_some());
            assert!(how % 2 == 1 || whole.unusable == parts.unusable);
            assert_eq!(images(whole), images(parts));
        }
        (Err(whole), Err(parts)) => assert_eq!(whole, parts),
        _ => panic!("{whole:?} is not {parts:?}"),
    }
    if serde_json::from_slice::<Value>(text).is_ok() {
        assert!(whole.is_ok(), "{whole:?}");
    }
}

fn extracted<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    limits: Limits,
    family: Family,
) -> Result<Extracted, ExtractError> {
    let mut extractor = ImageExtractor::new(limits, family.best_so_far());
    for chunk in chunks {
        extractor.feed(chunk)?;
        assert!(extractor.held_bytes() <= 2 * (limits.image_bytes + 4096));
    }
    extractor.finish()
}

fn images(extracted: &Extracted) -> Vec<Option<Vec<u8>>> {
    extracted
        .images
        .iter()
        .map(|image| image.as_ref().map(|image| image.chunks().concat()))
        .collect()
}

fn gemini(input: &[u8]) {
    response(input, Family::Gemini);
}

fn imagen(input: &[u8]) {
    response(input, Family::Imagen);
}

/// The image that a response means has been kept, and the same response always means the same.
fn response(input: &[u8], family: Family) {
    let Ok(extracted) = extracted([input], Limits::DEFAULT, family) else { return };
    let outcome = family.outcome(&extracted.skeleton);
    assert_eq!(outcome, family.outcome(&extracted.skeleton));
    match outcome {
        Outcome::Image(number) => {
            assert!(extracted.images[number].as_ref().is_some_and(|image| !image.is_empty()));
        }
        Outcome::Blocked(text) | Outcome::Empty(text) => {
            assert_presentable(&Kind::SafetyBlocked.because(text).to_string());
        }
        Outcome::Unknown => {}
    }
}

/// An error of Google in any form has a text and a bounded wait. The first line is its `Retry-After`.
fn error(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (wait, body) = input.split_at(end);
    let error = GoogleError::parse(body);
    assert_eq!(error.json, serde_json::from_slice::<Value>(body).is_ok());
    let text = error.text(503);
    assert!(!text.trim().is_empty());
    let shown: Error = Kind::VertexApi.because(text);
    assert_presentable(&shown.to_string());
    if let Some(body) = &error.body {
        assert!(!body.to_string().contains(char::is_control));
    }
    let mut headers = HeaderMap::new();
    if let Ok(wait) = HeaderValue::from_bytes(wait) {
        headers.insert("retry-after", wait);
    }
    assert!(error.retry_after(&headers).is_none_or(|wait| wait <= MAX_RETRY_AFTER));
}

/// A `.env` is valid, or its problem repeats no word of it; its settings are valid, or have problems.
fn env(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let variables = match config::env_file(text) {
        Ok(variables) => variables,
        Err(problem) => {
            assert!(!problem.contains(is_control), "{problem:?}");
            let names = || config::settings::SETTINGS.iter().flat_map(|setting| setting.names);
            let long = text.split_whitespace().filter(|word| word.len() >= 12);
            for word in long.filter(|word| !names().any(|name| name.contains(*word))) {
                assert!(!problem.contains(word), "{problem:?}");
            }
            return;
        }
    };
    let is_unsafe = |text: &str| text.contains('\0');
    assert!(variables.iter().all(|(name, value)| !is_unsafe(name) && !is_unsafe(value)));
    let find = |name: &str| {
        // A path of this machine is not opened.
        let names_a_file = ["GOOGLE_APPLICATION_CREDENTIALS", "HOME", "APPDATA"].contains(&name);
        let found = variables.iter().find(|(given, _)| given == name && !names_a_file);
        found.map(|(_, value)| value.clone())
    };
    match Config::from_vars(find) {
        Ok(config) => assert!(config.max_generations > 0 && !config.bucket.is_empty()),
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
}

/// Every HTTP event gets a response that is JSON and has an id; another event gets a sentence.
fn event(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let parsed: Value = serde_json::from_str(text).unwrap_or_default();
    // No time is left, so nothing is sent.
    match TOKIO.block_on(runtime::invoke_until(Arc::clone(&APP), text, 0)) {
        Ok(response) if response["statusCode"].is_null() => {
            assert!(parsed["requestContext"].is_null(), "{response}");
            assert_eq!(response.as_object().map(|members| members.len()), Some(3), "{response}");
        }
        Ok(response) => {
            let status = response["statusCode"].as_u64().expect("a number");
            assert!((200..500).contains(&status) || status == 503, "{response}");
            assert_eq!(response["isBase64Encoded"], false);
            let name = "x-request-id";
            let id = response["headers"][name].as_str();
            let id = id.or(response["multiValueHeaders"][name][0].as_str());
            assert!(id.is_some_and(|id| id.starts_with("iga_req_")), "{response}");
            let body = response["body"].as_str().unwrap_or("{}");
            assert!(serde_json::from_str::<Value>(body).is_ok_and(|body| body.is_object()));
        }
        Err(problem) => {
            assert!(problem.starts_with("Not a Lambda HTTP event"), "{problem}");
            assert!(!parsed["requestContext"]["http"]["method"].is_string());
        }
    }
}

/// A credentials file is valid, or its problem is one sentence.
fn credentials(input: &[u8]) {
    match CredentialFile::parse(input) {
        Ok(file) => assert!(file.json["type"].is_string() && !file.kind.to_string().is_empty()),
        Err(problem) => {
            assert!(!problem.contains(is_control) && problem.len() < 400, "{problem:?}")
        }
    }
}

/// A proxy is valid, or its problem says what one looks like.
fn proxy_setting(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input)
        && let Err(problem) = proxy::check(text)
    {
        assert!(problem.ends_with("such as http://proxy.example.com:3128"), "{problem:?}");
    }
}
