//! The trace that a request belongs to, for the correlation of log lines.

use axum::http::HeaderMap;

/// The trace a request belongs to ("Trace context", "Using distributed tracing").
#[derive(Debug, PartialEq, Eq)]
pub struct Trace {
    /// 32 hex digits.
    pub id: String,
    /// 16 hex digits.
    pub span_id: String,
    pub sampled: bool,
}

impl Trace {
    /// Reads `traceparent`, else `X-Cloud-Trace-Context`.
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
        let id = hex(id, 32)?;
        Some(Trace { id, span_id: hex(span_id, 16)?, sampled: flags & 1 == 1 })
    }

    /// `TRACE/SPAN;o=OPTIONS`, the span in decimal.
    fn from_cloud_trace_context(text: &str) -> Option<Trace> {
        let (ids, options) = text.split_once(';').unwrap_or((text, ""));
        let (id, span_id) = ids.split_once('/').unwrap_or((ids, "0"));
        let span_id: u64 = span_id.parse().ok()?;
        Some(Trace {
            id: hex(id, 32)?,
            span_id: format!("{span_id:016x}"),
            sampled: options == "o=1",
        })
    }
}

fn hex(text: &str, len: usize) -> Option<String> {
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
        assert_eq!((trace.span_id.as_str(), trace.sampled), ("00000000000000ff", true));
        assert_eq!(trace.id, "4bf92f3577b34da6a3ce929d0e0e4736");
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
