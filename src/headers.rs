//! The headers that IGA reads from a request.

use crate::error::{Error, Kind};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// The caller's idempotency key, if the request carries one.
///
/// # Errors
/// 400 for a key that is empty, too long or not visible ASCII, and for two different keys.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let given = |names: &[&str]| -> Vec<&HeaderValue> {
        names.iter().flat_map(|name| headers.get_all(*name)).collect()
    };
    let mut values = given(&KEY_HEADERS);
    if values.is_empty() {
        values = given(&[TASK_NAME]);
    }
    let Some(value) = values.first() else {
        return Ok(None);
    };
    if values.iter().any(|other| other != value) {
        return Err(Kind::InvalidIdempotencyKey.because("The request has two different keys."));
    }
    match value.to_str() {
        Ok(key)
            if (1..=MAX_KEY_CHARS).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Ok(Some(key.to_owned()))
        }
        _ => Err(Kind::InvalidIdempotencyKey.because(format!(
            "The key must have 1 to {MAX_KEY_CHARS} characters, all of them visible ASCII."
        ))),
    }
}

/// The caller's name for the work that this request is part of, as the log shows it.
///
/// Header values are bytes: UTF-8 where that is valid, otherwise ISO 8859-1, which Python's clients send.
pub fn workflow_id(headers: &HeaderMap) -> Option<String> {
    let bytes = headers.get("x-workflow-id")?.as_bytes();
    let id = match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    };
    let fits = (1..=MAX_WORKFLOW_ID_CHARS).contains(&id.chars().count());
    (fits && !id.contains(char::is_control)).then_some(id)
}

/// A workflow id for an object's metadata: characters outside ASCII are percent-encoded.
pub fn percent_encoded(workflow_id: &str) -> String {
    const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');
    utf8_percent_encode(workflow_id, ESCAPED).to_string()
}

/// Refuses a body that is compressed or not JSON. An empty body passes; it lacks the prompt, whatever
/// its type.
///
/// # Errors
/// 415.
pub fn check_content(headers: &HeaderMap, body: &[u8]) -> Result<(), Error> {
    if body.is_empty() {
        return Ok(());
    }
    let codings = headers.get_all(CONTENT_ENCODING).iter();
    let coded = codings.map(|value| String::from_utf8_lossy(value.as_bytes())).find(|codings| {
        let mut names = codings.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.any(|name| !name.eq_ignore_ascii_case("identity"))
    });
    if let Some(coding) = coded {
        let text = format!("The request's Content-Encoding is {coding:?}; send the body as it is.");
        return Err(Kind::UnsupportedMediaType.because(text));
    }
    let given = headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let essence = given.as_deref().unwrap_or_default().split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    // Cloud Tasks sends every body with this type, unless the task names another.
    let from_a_task = headers.contains_key(TASK_NAME) && essence == "application/octet-stream";
    if is_json(&essence) || from_a_task {
        return Ok(());
    }
    Err(Kind::UnsupportedMediaType.because(match given {
        Some(given) => format!("The request's Content-Type is {given:?}."),
        None => "The request has no Content-Type.".to_owned(),
    }))
}

fn is_json(essence: &str) -> bool {
    let is_suffixed = |subtype: &str| subtype.len() > "+json".len() && subtype.ends_with("+json");
    essence == "application/json"
        || essence.split_once('/').is_some_and(|(kind, subtype)| {
            !kind.is_empty() && !kind.contains(char::is_whitespace) && is_suffixed(subtype)
        })
}

const KEY_HEADERS: [&str; 2] = ["idempotency-key", "x-idempotency-key"];
const TASK_NAME: &str = "x-cloudtasks-taskname";
const MAX_KEY_CHARS: usize = 255;
const MAX_WORKFLOW_ID_CHARS: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_key_is_visible_ascii_of_bounded_length() {
        let key = |name: &'static str, value: &[u8]| idempotency_key(&headers(&[(name, value)]));
        for name in [KEY_HEADERS[0], KEY_HEADERS[1], TASK_NAME] {
            assert_eq!(key(name, b"a-1_!").unwrap().as_deref(), Some("a-1_!"));
        }
        for bad in [&b""[..], b"a b", b"caf\xc3\xa9", &[b'x'; 256]] {
            assert_eq!(key("idempotency-key", bad).unwrap_err().kind, Kind::InvalidIdempotencyKey);
        }
        assert_eq!(idempotency_key(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn two_different_keys_are_refused_and_equal_ones_are_one() {
        let [key, x_key] = KEY_HEADERS;
        for (pairs, expected) in [
            ([(key, b"a"), (x_key, b"a")], Some("a")),
            ([(key, b"a"), (key, b"a")], Some("a")),
            ([(key, b"a"), (TASK_NAME, b"t")], Some("a")),
            ([(TASK_NAME, b"t"), (x_key, b"a")], Some("a")),
            ([(TASK_NAME, b"t"), (TASK_NAME, b"t")], Some("t")),
            ([(key, b"a"), (x_key, b"b")], None),
            ([(key, b"a"), (key, b"b")], None),
            ([(x_key, b"a"), (x_key, b"b")], None),
            ([(TASK_NAME, b"t"), (TASK_NAME, b"u")], None),
        ] {
            let pairs = pairs.map(|(name, value)| (name, &value[..]));
            match (idempotency_key(&headers(&pairs)), expected) {
                (Ok(key), Some(expected)) => assert_eq!(key.as_deref(), Some(expected)),
                (Err(error), None) => assert_eq!(error.kind, Kind::InvalidIdempotencyKey),
                (result, _) => panic!("{pairs:?}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_workflow_id_is_kept_in_any_alphabet() {
        let id = |value: &[u8]| workflow_id(&headers(&[("x-workflow-id", value)]));
        for (value, expected, metadata) in [
            (&b"wf-7"[..], "wf-7", "wf-7"),
            (b"a b/c", "a b/c", "a b/c"),
            ("Zürich".as_bytes(), "Zürich", "Z%C3%BCrich"),
            ("作业-1".as_bytes(), "作业-1", "%E4%BD%9C%E4%B8%9A-1"),
            (b"Z\xfcrich", "Zürich", "Z%C3%BCrich"),
            (b"50%", "50%", "50%25"),
        ] {
            assert_eq!(id(value).as_deref(), Some(expected));
            assert_eq!(percent_encoded(expected), metadata);
        }
        let longest = "ü".repeat(MAX_WORKFLOW_ID_CHARS);
        assert_eq!(id(longest.as_bytes()), Some(longest.clone()));
        for bad in [&b""[..], format!("{longest}x").as_bytes(), b"a\tb"] {
            assert_eq!(id(bad), None);
        }
    }

    #[test]
    fn json_is_accepted_under_all_its_types() {
        let refused =
            |pairs: &[(&'static str, &[u8])]| check_content(&headers(pairs), b"{}").is_err();
        for taken in [
            "application/json",
            "Application/JSON; charset=utf-8",
            " application/json ;x",
            "application/vnd.cpoa.v1+json",
            "application/cloudevents+json; charset=UTF-8",
        ] {
            assert!(!refused(&[("content-type", taken.as_bytes())]), "{taken}");
        }
        for not_json in [
            "",
            "text/plain",
            "text/json",
            "application/jsonx",
            "application/+json",
            "+json",
            "text/plain; a=/x+json",
            "application/octet-stream",
            "multipart/form-data",
        ] {
            assert!(refused(&[("content-type", not_json.as_bytes())]), "{not_json}");
        }
        assert!(refused(&[]) && check_content(&HeaderMap::new(), b"").is_ok());
        let task = ("x-cloudtasks-taskname", &b"t"[..]);
        assert!(!refused(&[("content-type", b"application/octet-stream"), task]));
        assert!(refused(&[("content-type", b"text/plain"), task]) && refused(&[task]));
    }

    #[test]
    fn an_encoded_body_is_refused() {
        let json = ("content-type", &b"application/json"[..]);
        let refused = |coding: &[u8]| {
            check_content(&headers(&[json, ("content-encoding", coding)]), b"{}").is_err()
        };
        for coding in ["gzip", "br", "deflate", "zstd", "x-gzip", "identity, gzip", "aws-chunked"] {
            assert!(refused(coding.as_bytes()), "{coding}");
        }
        for coding in ["identity", "Identity", "", "identity,identity"] {
            assert!(!refused(coding.as_bytes()), "{coding}");
        }
        let twice = [json, ("content-encoding", b"identity"), ("content-encoding", b"gzip")];
        assert!(check_content(&headers(&twice), b"{}").is_err());
    }
}
