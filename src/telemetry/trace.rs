//! The trace that a request belongs to, for the correlation of log lines.

use axum::http::HeaderMap;

/// The trace a request belongs to ("Trace context", "Using distributed tracing").
#[derive(Debug, PartialEq, Eq)]
pub struct Trace {
    /// 32 hex digits.
    pub id: String,
    /// 16 hex digits.
    pub span_id: Option<String>,
    pub sampled: bool,
}

impl Trace {
    /// Reads `traceparent`, or `X-Cloud-Trace-Context` if that is absent or not valid.
    pub fn from_headers(headers: &HeaderMap) -> Option<Trace> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let w3c = text("traceparent").and_then(Trace::from_traceparent);
        w3c.or_else(|| text("x-cloud-trace-context").and_then(Trace::from_cloud_trace_context))
    }

    /// `00-TRACE-SPAN-FLAGS`, all hex.
    fn from_traceparent(text: &str) -> Option<Trace> {
        let mut parts = text.split('-');
        let (_version, id, span_id, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let flags = u8::from_str_radix(flags, 16).ok()?;
        let (id, span_id) = (hex_digits(id, 32)?, hex_digits(span_id, 16)?);
        Some(Trace { id, span_id: Some(span_id), sampled: flags & 1 == 1 })
    }

    /// `TRACE/SPAN;o=OPTIONS`. The span is specified as decimal; some proxies send hex, an empty one or none.
    fn from_cloud_trace_context(text: &str) -> Option<Trace> {
        let (ids, options) = text.split_once(';').unwrap_or((text, ""));
        let (id, span) = ids.split_once('/').unwrap_or((ids, ""));
        let span_id = match (span, span.parse::<u64>()) {
            ("", _) | (_, Ok(0)) => None,
            (_, Ok(number)) => Some(format!("{number:016x}")),
            (_, Err(_)) => Some(hex_digits(span, 16)?),
        };
        let options = options.strip_prefix("o=").and_then(|options| options.parse::<u8>().ok());
        let sampled = options.is_some_and(|options| options & 1 == 1);
        Some(Trace { id: hex_digits(id, 32)?, span_id, sampled })
    }
}

fn hex_digits(text: &str, len: usize) -> Option<String> {
    let fits = text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (fits && text.bytes().any(|byte| byte != b'0')).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn both_trace_headers_are_read_and_nonsense_is_not() {
        let older =
            headers(&[("x-cloud-trace-context", "4BF92F3577B34DA6A3CE929D0E0E4736/255;o=1")]);
        let trace = Trace::from_headers(&older).unwrap();
        assert_eq!((trace.span_id.as_deref(), trace.sampled), (Some("00000000000000ff"), true));
        assert_eq!(trace.id, "4bf92f3577b34da6a3ce929d0e0e4736");
        for (rest, span_id, sampled) in [
            ("/;o=1", None, true),
            ("/", None, false),
            ("", None, false),
            (";o=1", None, true),
            ("/0;o=1", None, true),
            ("/00f067aa0ba902b7;o=1", Some("00f067aa0ba902b7"), true),
            ("/00F067AA0BA902B7", Some("00f067aa0ba902b7"), false),
            ("/18446744073709551615;o=0", Some("ffffffffffffffff"), false),
            ("/1;o=3", Some("0000000000000001"), true),
        ] {
            let value = format!("4bf92f3577b34da6a3ce929d0e0e4736{rest}");
            let trace = Trace::from_headers(&headers(&[("x-cloud-trace-context", &value)]));
            let trace = trace.unwrap_or_else(|| panic!("{value}"));
            assert_eq!(trace.id, "4bf92f3577b34da6a3ce929d0e0e4736");
            assert_eq!((trace.span_id.as_deref(), trace.sampled), (span_id, sampled), "{value}");
        }
        for (name, value) in [
            ("traceparent", "00-zz-00f067aa0ba902b7-01"),
            ("traceparent", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
            ("traceparent", ""),
            ("x-cloud-trace-context", "abc/1;o=1"),
            ("x-cloud-trace-context", "4bf92f3577b34da6a3ce929d0e0e4736/x"),
        ] {
            assert_eq!(Trace::from_headers(&headers(&[(name, value)])), None, "{value}");
        }
    }
}
