//! The log format: one JSON object a line, as Cloud Logging and Lambda read it.

pub mod metrics;
pub mod trace;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};
use std::fmt;
use std::io::Write;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use trace::Trace;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Metadata, Span, Subscriber, debug, info, info_span};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// Sends every log line of the process to stdout, from debug level or from info level on; panics too.
pub fn install(debug: bool) {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "panic: {}", panic.payload_as_str().unwrap_or("without a message"));
    }));
    // A second call leaves the first in place.
    let _ = tracing::subscriber::set_global_default(json_lines(debug, to_stdout));
}

/// Turns everything logged into lines for `write`, each one whole and ending in a newline.
pub fn json_lines(
    debug: bool,
    write: impl Fn(&[u8]) + Send + Sync + 'static,
) -> impl Subscriber + Send + Sync {
    tracing_subscriber::registry().with(JsonLines { debug, write })
}

/// One `write` a line, so that lines of several threads never mix.
fn to_stdout(line: &[u8]) {
    // Nobody is left to tell when stdout is gone.
    let _ = std::io::stdout().lock().write_all(line);
}

/// What stands on every line that is written while a request is handled.
pub fn request_span(
    request_id: &str,
    workflow_id: Option<&str>,
    trace: Option<&Trace>,
    project_id: &str,
) -> Span {
    info_span!(
        "request",
        request_id,
        workflow_id,
        "logging.googleapis.com/trace" =
            trace.map(|trace| format!("projects/{project_id}/traces/{}", trace.id)),
        "logging.googleapis.com/spanId" = trace.map(|trace| trace.span_id.as_str()),
        "logging.googleapis.com/trace_sampled" = trace.map(|trace| trace.sampled),
    )
}

/// Says what a request asks for: the start of the prompt at info level, all of it at debug level.
pub fn prompt_received(prompt: &str, sha256: &str) {
    let preview: String = prompt.chars().take(PREVIEW_CHARS).collect();
    info!(
        prompt_preview = preview,
        prompt_sha256 = sha256,
        prompt_chars = prompt.chars().count(),
        "prompt received"
    );
    debug!(prompt, "whole prompt");
}

const PREVIEW_CHARS: usize = 50;

/// The log format: a layer of our own, because the platforms want `severity` and flat fields.
struct JsonLines<W> {
    debug: bool,
    write: W,
}

/// Fields in the order in which they were recorded; those named `tags.x` stand together as `tags`.
#[derive(Default)]
struct Fields {
    plain: Vec<(&'static str, Value)>,
    tags: Vec<(&'static str, Value)>,
}

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Fn(&[u8]) + 'static,
{
    /// Our own lines from the chosen level on; of the libraries only what is wrong, as their debug
    /// lines may hold headers.
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let ours = metadata
            .target()
            .split("::")
            .next()
            .is_some_and(|name| name == "iga" || name == "iga_local");
        let most = match (ours, self.debug) {
            (true, true) => Level::DEBUG,
            (true, false) => Level::INFO,
            (false, _) => Level::WARN,
        };
        *metadata.level() <= most
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let level = *event.metadata().level();
        let mut line = Fields::default();
        line.set("timestamp", OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default());
        line.set("severity", severity(level));
        line.set("level", level.as_str());
        event.record(&mut line);
        line.set("service_name", "iga");
        line.set("logger_name", event.metadata().target());
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.plain.extend_from_slice(&fields.plain);
            }
        }
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        (self.write)(&text);
    }
}

impl Fields {
    fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        match name.strip_prefix("tags.") {
            Some(tag) => self.tags.push((tag, value.into())),
            None => self.plain.push((name, value.into())),
        }
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_map(None)?;
        self.plain.iter().try_for_each(|(name, value)| line.serialize_entry(name, value))?;
        if !self.tags.is_empty() {
            let tags: Map<_, _> =
                self.tags.iter().map(|(tag, value)| ((*tag).to_owned(), value.clone())).collect();
            line.serialize_entry("tags", &tags)?;
        }
        line.end()
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), value);
    }
}

fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG | Level::TRACE => "DEBUG",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderMap;
    use metrics::{request_done, vertex_called};
    use serde_json::json;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    /// The lines that are written while `work` runs.
    fn lines(debug: bool, work: impl FnOnce()) -> Vec<Value> {
        let written = Arc::new(Mutex::new(Vec::new()));
        let write = {
            let written = Arc::clone(&written);
            move |line: &[u8]| written.lock().unwrap().push(serde_json::from_slice(line).unwrap())
        };
        tracing::subscriber::with_default(json_lines(debug, write), work);
        std::mem::take(&mut written.lock().unwrap())
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_line_has_what_the_platforms_read() {
        let lines = lines(false, || tracing::warn!(answer = 42, ok = true, "careful"));
        let line = &lines[0];
        assert!(OffsetDateTime::parse(line["timestamp"].as_str().unwrap(), &Rfc3339).is_ok());
        assert_eq!((&line["severity"], &line["level"]), (&json!("WARNING"), &json!("WARN")));
        assert_eq!((&line["message"], &line["service_name"]), (&json!("careful"), &json!("iga")));
        assert_eq!(line["logger_name"], json!("iga::telemetry::tests"));
        assert_eq!((&line["answer"], &line["ok"]), (&json!(42), &json!(true)));
    }

    #[test]
    fn a_request_is_on_every_line_written_for_it() {
        let trace = Trace::from_headers(&headers(&[(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )]));
        let lines = lines(false, || {
            let span = request_span("iga_req_1", Some("wf"), trace.as_ref(), "my-project");
            span.in_scope(|| tracing::info!("inside"));
            request_span("iga_req_2", None, None, "my-project")
                .in_scope(|| tracing::info!("plain"));
        });
        assert_eq!(
            (&lines[0]["request_id"], &lines[0]["workflow_id"]),
            (&json!("iga_req_1"), &json!("wf"))
        );
        let expected = "projects/my-project/traces/4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(lines[0]["logging.googleapis.com/trace"], json!(expected));
        assert_eq!(lines[0]["logging.googleapis.com/spanId"], json!("00f067aa0ba902b7"));
        assert_eq!(lines[0]["logging.googleapis.com/trace_sampled"], json!(true));
        assert!(
            lines[1].get("workflow_id").is_none()
                && lines[1].get("logging.googleapis.com/trace").is_none()
        );
    }

    #[test]
    fn metrics_carry_name_value_and_tags() {
        let lines = lines(false, || {
            request_done("success", Duration::from_millis(1234));
            vertex_called("m", 2, "unavailable", Duration::from_secs(1));
        });
        assert_eq!(lines[0]["metric_name"], json!("iga_generate_image_request_count"));
        assert_eq!(
            (&lines[0]["value"], &lines[0]["tags"]),
            (&json!(1), &json!({"status": "success"}))
        );
        assert_eq!(lines[1]["value"], json!(1234));
        assert_eq!(lines[2]["tags"], json!({"model": "m", "attempt": 2, "outcome": "unavailable"}));
    }

    #[test]
    fn the_whole_prompt_is_for_debug_level_only() {
        let prompt = format!("{}{}", "p".repeat(50), "SECRET END");
        let info = lines(false, || prompt_received(&prompt, "abc"));
        assert_eq!(info.len(), 1);
        assert_eq!(info[0]["prompt_preview"], json!("p".repeat(50)));
        assert_eq!(
            (&info[0]["prompt_sha256"], &info[0]["prompt_chars"]),
            (&json!("abc"), &json!(60))
        );
        assert_eq!(lines(true, || prompt_received(&prompt, "abc"))[1]["prompt"], json!(prompt));
    }

    #[test]
    fn libraries_are_heard_only_when_something_is_wrong() {
        let lines = lines(true, || {
            tracing::debug!(target: "hyper::client", "authorization: Bearer secret");
            tracing::info!(target: "igaming", "not ours either");
            tracing::warn!(target: "hyper::client", "odd");
            tracing::debug!(target: "iga", "ours");
        });
        let messages: Vec<_> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
        assert_eq!(messages, ["odd", "ours"]);
    }
}
