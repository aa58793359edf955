//! Google's errors, read leniently: the JSON envelope in all its shapes, XML, HTML and plain text.

use crate::model::elements;
use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};
use serde_json::{Map, Value};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

/// An error of one of Google's services. A field of another type than documented counts
/// as absent.
#[derive(Debug, Default)]
pub struct GoogleError {
    /// The body was JSON.
    pub json: bool,
    /// The HTTP status that the envelope names.
    pub code: Option<u16>,
    /// The kind of error, such as `INVALID_ARGUMENT`.
    pub status: String,
    pub message: String,
    /// `google.rpc.ErrorInfo`, or `errors[].reason` of Cloud Storage.
    pub reasons: Vec<String>,
    /// `google.rpc.BadRequest`: `field: description`.
    pub violations: Vec<String>,
    /// The details that only support reads; safety filters hide their codes there.
    pub debug: String,
    /// A quota of zero does not recover.
    pub quota_is_zero: bool,
    /// `google.rpc.RetryInfo`
    pub retry_delay: Option<Duration>,
    /// The beginning of a body that is not JSON, for the log.
    pub body: Option<UnreadBody>,
}

/// The beginning of an error's body, without control characters.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct UnreadBody(String);

impl GoogleError {
    pub fn parse(body: &[u8]) -> GoogleError {
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => GoogleError::of(&value),
            Err(_) => GoogleError::of_text(&String::from_utf8_lossy(body)),
        }
    }

    /// The error in a body, alone or in an array: its envelope, otherwise the value in its place.
    pub fn of(body: &Value) -> GoogleError {
        let all = elements(body);
        let envelope = all.iter().find(|element| !element["error"].is_null()).or(all.first());
        let envelope = envelope.unwrap_or(&Value::Null);
        match &envelope["error"] {
            Value::String(error) => GoogleError {
                json: true,
                message: text(envelope, "error_description").unwrap_or(error.clone()),
                reasons: vec![error.clone()],
                ..GoogleError::default()
            },
            Value::Object(error) => GoogleError::of_members(error),
            _ => GoogleError::of_members(envelope.as_object().unwrap_or(&Map::new())),
        }
    }

    fn of_members(error: &Map<String, Value>) -> GoogleError {
        let error = &Value::Object(error.clone());
        let details = elements(&error["details"]);
        let all = || details.iter().chain(elements(&error["errors"]));
        let message = text(error, "message").unwrap_or_default();
        GoogleError {
            json: true,
            code: number(&error["code"]).and_then(|code| u16::try_from(code as i64).ok()),
            status: text(error, "status").unwrap_or_default(),
            reasons: all().filter_map(|detail| text(detail, "reason")).collect(),
            violations: details.iter().flat_map(field_violations).collect(),
            debug: details.iter().filter_map(|detail| text(detail, "detail")).collect(),
            quota_is_zero: details.iter().any(is_zero_quota) || says_zero_quota(&message),
            retry_delay: details.iter().find_map(|d| retry_delay(field(d, "retryDelay"))),
            body: None,
            message,
        }
    }

    /// Cloud Storage's XML, an HTML page, or plain text.
    fn of_text(body: &str) -> GoogleError {
        let is_markup = body.trim_start().starts_with('<');
        let message = match between(body, "<Message>", "</Message>") {
            Some(message) => match between(body, "<Details>", "</Details>") {
                Some(details) => format!("{message} {details}"),
                None => message,
            },
            None if is_markup => between(body, "<title>", "</title>").unwrap_or_default(),
            None => body.to_owned(),
        };
        GoogleError {
            message: on_one_line(&message, MAX_MESSAGE_CHARS),
            reasons: between(body, "<Code>", "</Code>").into_iter().collect(),
            body: Some(UnreadBody(on_one_line(body, MAX_LOGGED_CHARS)))
                .filter(|UnreadBody(text)| !text.is_empty()),
            ..GoogleError::default()
        }
    }

    /// Google's message for the caller, with reasons, violations and support codes that it does not contain.
    pub fn text(&self, http_status: u16) -> String {
        let mut text = match self.message.trim() {
            "" => format!("HTTP {http_status} without an explanation."),
            message => message.chars().take(MAX_TEXT_CHARS).collect(),
        };
        let codes = support_codes(&self.debug).map(|codes| format!("Support codes: {codes}"));
        for more in self.violations.iter().cloned().chain(codes) {
            if !text.contains(&more) {
                text.push_str(&format!(" {more}"));
            }
        }
        if !self.reasons.is_empty() {
            text.push_str(&format!(" [{}]", self.reasons.join(", ")));
        }
        text
    }

    pub fn has_reason(&self, reason: &str) -> bool {
        self.reasons.iter().any(|given| given == reason)
    }

    /// When to try again: `Retry-After` in seconds or as a date, otherwise `RetryInfo`. Whole seconds, rounded up,
    /// at most [`MAX_RETRY_AFTER`].
    pub fn retry_after(&self, headers: &HeaderMap) -> Option<Duration> {
        retry_after_header(headers).or(self.retry_delay)
    }
}

fn retry_after_header(headers: &HeaderMap) -> Option<Duration> {
    let header = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let date = |text: &str| OffsetDateTime::parse(text, &Rfc2822).ok();
    let text = header(RETRY_AFTER)?;
    match text.parse() {
        Ok(seconds) => whole_seconds(seconds),
        Err(_) => {
            // Both dates are of the server's clock.
            let now = header(DATE).and_then(date).unwrap_or_else(OffsetDateTime::now_utc);
            whole_seconds((date(text)? - now).as_seconds_f64())
        }
    }
}

/// A protobuf duration in JSON (`"17s"`, `"1.5s"`), also as a number or in its members.
fn retry_delay(delay: &Value) -> Option<Duration> {
    let seconds = match delay {
        Value::String(text) => text.trim().strip_suffix('s').unwrap_or(text.trim()).parse().ok()?,
        Value::Object(_) => {
            number(&delay["seconds"]).unwrap_or_default()
                + number(&delay["nanos"]).unwrap_or_default() / 1e9
        }
        other => number(other)?,
    };
    whole_seconds(seconds)
}

/// Rounded up, at most [`MAX_RETRY_AFTER`]; `None` unless positive.
fn whole_seconds(seconds: f64) -> Option<Duration> {
    let longest = MAX_RETRY_AFTER.as_secs_f64();
    (seconds > 0.0).then(|| Duration::from_secs(seconds.min(longest).ceil() as u64))
}

fn field_violations(detail: &Value) -> Vec<String> {
    let violation = |violation: &Value| {
        let description = text(violation, "description");
        match (text(violation, "field"), description) {
            (Some(field), Some(description)) => Some(format!("{field}: {description}")),
            (field, description) => field.or(description),
        }
    };
    elements(field(detail, "fieldViolations")).iter().filter_map(violation).collect()
}

/// `google.rpc.ErrorInfo` or `google.rpc.QuotaFailure` with a limit of zero.
fn is_zero_quota(detail: &Value) -> bool {
    let is_zero = |value: &Value| number(value) == Some(0.0);
    let violates_zero = |violation: &Value| {
        is_zero(field(violation, "quotaValue"))
            || text(violation, "description").is_some_and(|text| says_zero_quota(&text))
    };
    is_zero(field(&detail["metadata"], "quotaLimitValue"))
        || elements(&detail["violations"]).iter().any(violates_zero)
}

/// Whether a message names a limit of zero: `limit: 0`, `limit of '0'`.
fn says_zero_quota(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.match_indices("limit").any(|(at, word)| {
        let after = message[at + word.len()..].trim_start_matches("_value");
        let after = after.trim_start_matches([' ', ':', '=', '\'', '"', '`']);
        let number =
            after.strip_prefix("of ").unwrap_or(after).trim_start_matches(['\'', '"', '`']);
        match number.strip_prefix('0') {
            None => false,
            Some(rest) => {
                let rest = rest.strip_prefix(['.', ',']).unwrap_or(rest);
                !rest.starts_with(|next: char| next.is_ascii_alphanumeric())
            }
        }
    })
}

/// The codes by which a safety filter names its category.
pub fn support_codes(text: &str) -> Option<&str> {
    let lower = text.to_ascii_lowercase();
    let after = &text[lower.find("support code")? + "support code".len()..];
    let codes = after.trim_start_matches(['s', 'S', ':', ' ']);
    let end = codes.find(|c: char| !c.is_ascii_digit() && c != ',' && c != ' ');
    Some(codes[..end.unwrap_or(codes.len())].trim_matches([',', ' ']))
        .filter(|codes| !codes.is_empty())
}

/// A field in the spelling of JSON or of the protocol buffer.
fn field<'a>(value: &'a Value, camel_case: &str) -> &'a Value {
    let mut snake_case = String::new();
    for letter in camel_case.chars() {
        if letter.is_ascii_uppercase() {
            snake_case.push('_');
        }
        snake_case.push(letter.to_ascii_lowercase());
    }
    if value[camel_case].is_null() { &value[snake_case.as_str()] } else { &value[camel_case] }
}

fn text(value: &Value, key: &str) -> Option<String> {
    value[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// A number, also in a string, as 64-bit integers are written.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    }
}

fn between(text: &str, start: &str, end: &str) -> Option<String> {
    let (_, after) = text.split_once(start)?;
    let (inner, _) = after.split_once(end)?;
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    Some(entities.iter().fold(inner.to_owned(), |text, (entity, c)| text.replace(entity, c)))
}

fn on_one_line(text: &str, max_chars: usize) -> String {
    let words: Vec<_> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(max_chars).collect()
}

/// The longest wait that is passed on to callers or waited for.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Leaves room in an error's `details` for reasons and codes after the message.
const MAX_TEXT_CHARS: usize = 600;
const MAX_MESSAGE_CHARS: usize = 300;
const MAX_LOGGED_CHARS: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(body: Value) -> GoogleError {
        GoogleError::parse(body.to_string().as_bytes())
    }

    #[test]
    fn the_envelope_is_read_in_every_shape() {
        let error = json!({"code": 429, "message": "Exhausted.", "status": "RESOURCE_EXHAUSTED"});
        for body in [
            json!({"error": error}),
            json!([{"error": error}]),
            json!([{"error": error}, {"error": {"message": "Another."}}]),
            json!([null, {"other": 1}, {"error": error}]),
            error.clone(),
        ] {
            let google = parse(body.clone());
            assert!(google.json, "{body}");
            assert_eq!((google.code, google.message.as_str()), (Some(429), "Exhausted."), "{body}");
        }
        let oauth = parse(json!({"error": "invalid_grant", "error_description": "Expired."}));
        assert_eq!(oauth.text(400), "Expired. [invalid_grant]");
        assert_eq!(parse(json!({"error": "no"})).text(400), "no [no]");
        for body in [json!(null), json!([]), json!(5), json!({"error": 5}), json!({"error": {}})] {
            assert_eq!(parse(body).text(500), "HTTP 500 without an explanation.");
        }
    }

    #[test]
    fn an_odd_field_never_hides_the_rest() {
        for odd in [json!(null), json!(5), json!("x"), json!([null]), json!({"x": []}), json!([[]])]
        {
            for field in ["code", "status", "details", "errors", "other"] {
                let mut error = json!({"message": "Said.", "details": [{"reason": "WHY"}]});
                error[field] = odd.clone();
                let text = parse(json!({"error": error})).text(400);
                assert!(text.starts_with("Said."), "{field} {odd}: {text}");
            }
            let details = json!([odd, {"reason": odd, "metadata": odd, "retryDelay": odd,
                "violations": odd, "fieldViolations": odd, "detail": odd}, {"reason": "WHY"}]);
            let google = parse(json!({"error": {"message": "Said.", "details": details}}));
            assert!(google.text(400).starts_with("Said.") && google.has_reason("WHY"), "{odd}");
        }
    }

    #[test]
    fn violations_and_hidden_support_codes_are_in_the_text() {
        let google = parse(json!({"error": {"message": "Invalid.", "details": [
            {"fieldViolations": [{"field": "a.b", "description": "Cannot find field."}, {"description": "Odd."}]},
            {"@type": "DebugInfo", "detail": "[ORIGINAL ERROR] generic:: Support codes: 42876398, 1 { }"}]}}));
        assert_eq!(
            google.text(400),
            "Invalid. a.b: Cannot find field. Odd. Support codes: 42876398, 1"
        );
    }

    #[test]
    fn xml_html_and_plain_text_are_shortened() {
        let xml = "<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access denied.</Message>\n\
                   <Details>sa@p does not have &#39;create&#39; access.</Details></Error>";
        for (body, told) in [
            (xml, "Access denied. sa@p does not have 'create' access. [AccessDenied]"),
            ("Service \n\t Unavailable\u{7}", "Service Unavailable"),
            ("<html><title>Error 404 (Not Found)!!1</title>", "Error 404 (Not Found)!!1"),
            ("<html><p>Gone", "HTTP 503 without an explanation."),
            ("", "HTTP 503 without an explanation."),
        ] {
            let google = GoogleError::parse(body.as_bytes());
            assert!(!google.json);
            assert_eq!(google.text(503), told);
            assert_eq!(google.body.is_some(), !body.is_empty());
        }
        let long = json!({"error": {"message": "x".repeat(5000), "details": [{"reason": "WHY"}]}});
        assert!(parse(long).text(400).ends_with("x [WHY]"));
        let google = GoogleError::parse(&[b'x'; 10_000]);
        assert_eq!(google.text(500).len(), MAX_MESSAGE_CHARS);
        assert_eq!(google.body.unwrap().to_string().len(), MAX_LOGGED_CHARS);
    }

    #[test]
    fn a_quota_of_zero_is_recognised() {
        let detail = |detail: Value| json!({"error": {"message": "x", "details": [null, detail]}});
        let message = |message: &str| json!({"error": {"message": message}});
        for body in [
            detail(json!({"metadata": {"quota_limit_value": "0"}})),
            detail(json!({"metadata": {"quotaLimitValue": 0}})),
            detail(json!({"violations": [{"quotaValue": "5"}, {"quotaValue": "0"}]})),
            detail(json!({"violations": [{"quota_value": 0}]})),
            detail(json!({"violations": [{"description": "Limit: 0, model: x"}]})),
            message("Quota exceeded for metric: requests, limit: 0, model: x"),
            message("Quota exceeded, limit: 0.\nRetry later."),
            message("quota_limit_value: \"0\""),
            message("A limit of '0' applies"),
        ] {
            assert!(parse(body.clone()).quota_is_zero, "{body}");
        }
        for body in [
            detail(json!({"metadata": {"quota_limit_value": "10"}})),
            detail(json!({"violations": [{"quotaValue": null}]})),
            message("limit: 10"),
            message("limit: 0.5 per second"),
            message("limit 'PerMinute' of service"),
            message("Limits: 05"),
            message("the limit"),
        ] {
            assert!(!parse(body.clone()).quota_is_zero, "{body}");
        }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn retry_after_is_read_as_seconds_decimals_and_date() {
        let now = ("date", "Sun, 22 Nov 2026 14:30:00 GMT");
        for (value, seconds) in [
            ("17", Some(17)),
            (" 44.98 ", Some(45)),
            ("0.001", Some(1)),
            ("Sun, 22 Nov 2026 14:31:30 GMT", Some(90)),
            ("Mon, 22 Nov 2027 14:30:00 GMT", Some(3600)),
            ("Sun, 22 Nov 2026 14:29:00 GMT", None),
            ("18446744073709551615", Some(3600)),
            ("1e19", Some(3600)),
            ("inf", Some(3600)),
            ("0", None),
            ("-5", None),
            ("-1e300", None),
            ("NaN", None),
            ("soon", None),
            ("", None),
        ] {
            let found =
                GoogleError::default().retry_after(&headers(&[("retry-after", value), now]));
            assert_eq!(found, seconds.map(Duration::from_secs), "{value}");
        }
        let undated = headers(&[("retry-after", "Fri, 01 Jan 2100 00:00:00 GMT")]);
        assert_eq!(GoogleError::default().retry_after(&undated), Some(MAX_RETRY_AFTER));
    }

    #[test]
    fn a_retry_delay_is_read_wherever_it_stands_and_after_the_header() {
        for (delay, seconds) in [
            (json!("17s"), Some(17)),
            (json!("44.98s"), Some(45)),
            (json!(" 2.0s "), Some(2)),
            (json!("3"), Some(3)),
            (json!(4.2), Some(5)),
            (json!({"seconds": "6", "nanos": 1}), Some(7)),
            (json!("1e19s"), Some(3600)),
            (json!(1e300), Some(3600)),
            (json!("-1s"), None),
            (json!("NaNs"), None),
            (json!("soon"), None),
            (json!({"seconds": -1}), None),
            (json!(null), None),
        ] {
            let google =
                parse(json!({"error": {"details": [{"reason": "X"}, {"retryDelay": delay}]}}));
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(google.retry_after(&HeaderMap::new()), expected, "{delay}");
            let header = google.retry_after(&headers(&[("retry-after", "9")]));
            assert_eq!(header, Some(Duration::from_secs(9)));
        }
    }
}
