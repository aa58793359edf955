//! What IGA reads from a request's headers.

use crate::error::{Error, Kind};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;

/// The caller's idempotency key, if the request carries one.
///
/// # Errors
/// 400 for a key that is empty, too long or not visible ASCII.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(value) = KEY_HEADERS.iter().find_map(|name| headers.get(*name)) else {
        return Ok(None);
    };
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

/// The caller's name for the work that this request is part of, if it can go into a log.
pub fn workflow_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get("x-workflow-id")?.to_str().ok()?;
    (1..=MAX_WORKFLOW_ID_CHARS).contains(&text.len()).then_some(text)
}

/// Refuses a body that is not JSON. An empty body is a missing prompt, whatever its type.
pub fn check_content_type(headers: &HeaderMap, body: &[u8]) -> Result<(), Error> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = given.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match body.is_empty() || essence.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(Kind::UnsupportedMediaType.because(match given {
            Some(given) => format!("The request's Content-Type is {given:?}."),
            None => "The request has no Content-Type.".to_owned(),
        })),
    }
}

const KEY_HEADERS: [&str; 3] = ["idempotency-key", "x-idempotency-key", "x-cloudtasks-taskname"];
const MAX_KEY_CHARS: usize = 255;
const MAX_WORKFLOW_ID_CHARS: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_visible_ascii_of_bounded_length() {
        let key = |name: &'static str, value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(name, axum::http::HeaderValue::from_bytes(value).unwrap());
            idempotency_key(&headers)
        };
        for name in KEY_HEADERS {
            assert_eq!(key(name, b"a-1_!").unwrap().as_deref(), Some("a-1_!"));
        }
        for bad in [&b""[..], b"a b", b"caf\xc3\xa9", &[b'x'; 256]] {
            assert_eq!(key("idempotency-key", bad).unwrap_err().kind, Kind::InvalidIdempotencyKey);
        }
        assert_eq!(idempotency_key(&HeaderMap::new()).unwrap(), None);
    }
}
