//! The log: one JSON object a line, as Cloud Logging and Lambda read it, or text for a terminal.

mod format;
pub mod metrics;
pub mod summary;
pub mod trace;
mod writer;

use crate::config::LogFormat;
use format::{Fields, LineFormat};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;
use trace::Trace;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Span, Subscriber, debug, field, info_span};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Context, Identity, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use writer::LogWriter;

/// Sends every log line of the process to standard output, panics too.
pub fn install(debug: bool, format: LogFormat) {
    install_with(debug, format, Identity::new());
}

/// Like [`install`]; `observer` sees the spans, and the events that are logged.
pub fn install_with(debug: bool, format: LogFormat, observer: impl Layer<Registry> + Send + Sync) {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "panic: {}", literal(panic));
    }));
    let format = match format {
        LogFormat::Json => LineFormat::Json,
        LogFormat::Text => LineFormat::Text { colours: colours() },
        LogFormat::Auto if std::io::stdout().is_terminal() => {
            LineFormat::Text { colours: colours() }
        }
        LogFormat::Auto => LineFormat::Json,
    };
    // Without standard output there is no log.
    let Ok(output) = std::io::stdout().as_fd().try_clone_to_owned() else { return };
    let writer = LogWriter::new(output, move |count| dropped(format, count));
    let _ = WRITER.set(writer.clone());
    // A second call has no effect.
    let write = move |line| writer.write(line);
    let subscriber =
        tracing_subscriber::registry().with(observer).with(Lines { debug, format, write });
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Reports panics on standard error, until [`install`] sends them to the log.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        eprintln!("panic at {place}: {}", literal(panic));
    }));
}

/// The message of a panic if it is a literal. A formatted one may hold anything, such as a key that a library
/// could not parse.
fn literal<'a>(panic: &'a std::panic::PanicHookInfo) -> &'a str {
    panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("message withheld")
}

/// Waits a little until all lines logged so far are written.
pub fn flush() {
    if let Some(writer) = WRITER.get() {
        writer.flush(FLUSH_WITHIN);
    }
}

/// Turns everything logged into JSON lines for `write`, each one whole and ending in a newline.
pub fn json_lines(
    debug: bool,
    write: impl Fn(&[u8]) + Send + Sync + 'static,
) -> impl Subscriber + Send + Sync {
    let write = move |line: Vec<u8>| write(&line);
    tracing_subscriber::registry().with(Lines { debug, format: LineFormat::Json, write })
}

/// `iga_dropped_log_lines_count`, written by the thread that writes lines.
fn dropped(format: LineFormat, count: u64) -> Vec<u8> {
    let mut line = Fields::line(Level::WARN, "iga::telemetry", None);
    line.set("message", "log lines were dropped: standard output was not read in time");
    line.set("metric_name", metrics::DROPPED_LINES);
    line.set("value", count);
    format.render(&line)
}

/// Whether to use colours: on a terminal, unless `NO_COLOR` (no-color.org) or `TERM=dumb` is set.
fn colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

static WRITER: OnceLock<LogWriter> = OnceLock::new();
const FLUSH_WITHIN: Duration = Duration::from_millis(500);

/// The span of one request. Its fields are on every line that is written while the request is handled; those
/// that are empty at first are for the summary line only ([`summary`]).
pub fn request_span(
    request_id: &str,
    workflow_id: Option<&str>,
    lambda_request_id: Option<&str>,
    trace: Option<&Trace>,
    project_id: &str,
) -> Span {
    info_span!(
        "request",
        request_id,
        workflow_id,
        requestId = lambda_request_id,
        "logging.googleapis.com/trace" =
            trace.map(|trace| format!("projects/{project_id}/traces/{}", trace.id)),
        "logging.googleapis.com/spanId" = trace.and_then(|trace| trace.span_id.as_deref()),
        "logging.googleapis.com/trace_sampled" = trace.map(|trace| trace.sampled),
        prompt_preview = field::Empty,
        prompt_sha256 = field::Empty,
        prompt_chars = field::Empty,
        model = field::Empty,
        paid = field::Empty,
        joined = field::Empty,
        image_url = field::Empty,
        image_bytes = field::Empty,
        token_ms = field::Empty,
        lease_ms = field::Empty,
        model_ms = field::Empty,
        upload_ms = field::Empty,
    )
}

/// Records the prompt: its start for the summary, all of it at debug level.
pub fn prompt_received(prompt: &str, sha256: &str) {
    let preview: String = prompt.chars().take(PREVIEW_CHARS).collect();
    let span = Span::current();
    span.record("prompt_preview", preview);
    span.record("prompt_sha256", sha256);
    span.record("prompt_chars", prompt.chars().count());
    debug!(prompt, "whole prompt");
}

const PREVIEW_CHARS: usize = 50;

/// Formats events, because the platforms want `severity` and flat fields.
struct Lines<W> {
    debug: bool,
    format: LineFormat,
    write: W,
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Fn(Vec<u8>) + 'static,
{
    /// Our own lines from the chosen level on; from libraries only warnings and errors, because their
    /// debug lines may hold headers.
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
        if let Some(span) = context.span(id) {
            let mut fields = SpanFields::default();
            attributes.record(&mut fields.every_line);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        if let Some(fields) = extensions.get_mut::<SpanFields>() {
            values.record(&mut fields.summary);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let place = metadata.file().zip(metadata.line());
        let mut line = Fields::line(*metadata.level(), metadata.target(), place);
        event.record(&mut line);
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<SpanFields>() {
                line.extend(&fields.every_line);
                if metadata.target() == summary::TARGET {
                    line.extend(&fields.summary);
                }
            }
        }
        (self.write)(self.format.render(&line));
    }
}

/// The fields of a span: those for every line in it, and those recorded later, for the summary line.
#[derive(Default)]
struct SpanFields {
    every_line: Fields,
    summary: Fields,
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderMap;
    use metrics::{request_timed, vertex_called};
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

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
        let lines = lines(false, || tracing::warn!(number = 42, ok = true, "careful"));
        let line = &lines[0];
        assert!(OffsetDateTime::parse(line["timestamp"].as_str().unwrap(), &Rfc3339).is_ok());
        assert_eq!((&line["severity"], &line["level"]), (&json!("WARNING"), &json!("WARN")));
        assert_eq!((&line["message"], &line["service_name"]), (&json!("careful"), &json!("iga")));
        assert_eq!(line["logger_name"], json!("iga::telemetry::tests"));
        assert_eq!((&line["number"], &line["ok"]), (&json!(42), &json!(true)));
    }

    #[test]
    fn a_request_is_on_every_line_written_for_it() {
        let trace = Trace::from_headers(&headers(&[(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )]));
        let lines = lines(false, || {
            let span = request_span("iga_req_1", Some("wf"), None, trace.as_ref(), "my-project");
            span.in_scope(|| tracing::info!("inside"));
            request_span("iga_req_2", None, None, None, "my-project")
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
        let lines = lines(true, || {
            request_timed("success", Duration::from_millis(1234));
            vertex_called("m", 2, "unavailable", Duration::from_secs(1));
        });
        assert_eq!(lines[0]["metric_name"], json!("iga_generate_image_latency_ms"));
        assert_eq!(
            (&lines[0]["value"], &lines[0]["tags"]),
            (&json!(1234), &json!({"status": "success"}))
        );
        assert_eq!(lines[1]["tags"], json!({"model": "m", "attempt": 2, "outcome": "unavailable"}));
    }

    #[test]
    fn the_whole_prompt_is_for_debug_level_only() {
        let prompt = format!("{}{}", "p".repeat(50), "SECRET END");
        assert!(lines(false, || prompt_received(&prompt, "abc")).is_empty());
        assert_eq!(lines(true, || prompt_received(&prompt, "abc"))[0]["prompt"], json!(prompt));
    }

    #[test]
    fn what_is_recorded_later_is_on_the_summary_line_alone_and_times_add_up() {
        let lines = lines(false, || {
            request_span("iga_req_1", None, None, None, "p").in_scope(|| {
                prompt_received(&"p".repeat(60), "abc");
                vertex_called("m", 1, "unavailable", Duration::from_millis(30));
                vertex_called("m", 2, "ok", Duration::from_millis(12));
                tracing::info!("inside");
                tracing::info!(target: summary::TARGET, "the end");
            });
        });
        assert_eq!((lines.len(), lines[0].get("model_ms")), (2, None));
        let expected = (&json!(42), &json!("p".repeat(50)), &json!(60), &json!("abc"));
        let end = &lines[1];
        let found =
            (&end["model_ms"], &end["prompt_preview"], &end["prompt_chars"], &end["prompt_sha256"]);
        assert_eq!(found, expected);
    }

    #[test]
    fn an_error_has_the_fields_of_error_reporting_and_no_control_character() {
        let text = "a\nb\u{2028}c\u{202e}d\u{9b}e";
        let raw = Arc::new(Mutex::new(Vec::new()));
        let write = {
            let raw = Arc::clone(&raw);
            move |line: &[u8]| raw.lock().unwrap().extend_from_slice(line)
        };
        tracing::subscriber::with_default(json_lines(false, write), || tracing::error!("{text}"));
        let raw = String::from_utf8(std::mem::take(&mut raw.lock().unwrap())).unwrap();
        assert!(!raw.trim_end().contains(crate::error::is_control), "{raw:?}");
        let line: Value = serde_json::from_str(&raw).unwrap();
        assert_eq!(line["message"], json!(text));
        assert!(line["@type"].as_str().unwrap().ends_with("ReportedErrorEvent"));
        assert_eq!(line["serviceContext"]["service"], json!("iga"));
        assert!(line["context"]["reportLocation"]["lineNumber"].is_u64());
    }

    #[test]
    fn libraries_log_warnings_and_errors_only() {
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
