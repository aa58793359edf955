//! The one summary line of a request, written when its response is ready or its caller has left.

use crate::error::{Error, Severity};
use crate::telemetry::metrics;
use axum::extract::Request;
use axum::http::header::USER_AGENT;
use axum::response::Response;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{Level, Span};

/// The part of the summary line that describes the request. If it is dropped without
/// [`finish`](Summary::finish), it writes that the caller left.
pub struct Summary {
    span: Span,
    start: Instant,
    method: String,
    path: String,
    protocol: String,
    user_agent: Option<String>,
    remote_ip: Option<IpAddr>,
    /// Requests for an image are counted, and always logged at info level or above. Other requests are
    /// logged at debug level if they succeed.
    is_generation: bool,
    is_finished: bool,
}

/// How a request ended.
struct Ending<'a> {
    status: u16,
    outcome: &'a str,
    error: Option<&'a Error>,
}

impl Summary {
    pub fn new(
        span: Span,
        request: &Request,
        remote_ip: Option<IpAddr>,
        is_generation: bool,
    ) -> Summary {
        if is_generation {
            span.record("paid", false);
            span.record("joined", false);
        }
        let user_agent = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
        Summary {
            span,
            start: Instant::now(),
            method: shortened(request.method().as_str()),
            path: shortened(request.uri().path()),
            protocol: format!("{:?}", request.version()),
            user_agent: user_agent.map(shortened),
            remote_ip,
            is_generation,
            is_finished: false,
        }
    }

    /// Writes the line for a response that is ready to be sent.
    pub fn finish(mut self, response: &Response) {
        self.is_finished = true;
        let error = response.extensions().get::<Arc<Error>>();
        let outcome = error.map_or("success", |error| error.kind.row().tag);
        self.write(Ending {
            status: response.status().as_u16(),
            outcome,
            error: error.map(|error| &**error),
        });
    }

    fn write(&self, ending: Ending<'_>) {
        let _entered = self.span.enter();
        let level = ending.level(self.is_generation);
        let latency = self.start.elapsed();
        // The level of an event is part of its call site.
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: TARGET,
                    metric_name = self.is_generation.then_some(metrics::REQUESTS),
                    value = self.is_generation.then_some(1_u64),
                    tags.status = self.is_generation.then_some(ending.outcome),
                    status = ending.status,
                    outcome = ending.outcome,
                    error_code = ending.error.map(|error| error.kind.row().code),
                    details = ending.error.map(ToString::to_string),
                    causes = ending.error.map(Error::causes).filter(|causes| !causes.is_empty()),
                    httpRequest.requestMethod = self.method,
                    httpRequest.requestUrl = self.path,
                    httpRequest.status = ending.status,
                    httpRequest.latency = latency_text(latency),
                    httpRequest.userAgent = self.user_agent,
                    httpRequest.remoteIp = self.remote_ip.map(|ip| ip.to_string()),
                    httpRequest.protocol = self.protocol,
                    "{} {} {}",
                    self.method,
                    self.path,
                    ending.status,
                )
            };
        }
        match level {
            Level::ERROR => line!(error),
            Level::WARN => line!(warn),
            Level::INFO => line!(info),
            Level::DEBUG | Level::TRACE => line!(debug),
        }
        if self.is_generation {
            metrics::request_timed(ending.outcome, latency);
        }
    }
}

impl Drop for Summary {
    fn drop(&mut self) {
        if !self.is_finished {
            self.write(Ending { status: CALLER_LEFT, outcome: "caller_left", error: None });
        }
    }
}

impl Ending<'_> {
    fn level(&self, is_generation: bool) -> Level {
        match (self.error, is_generation) {
            (Some(error), _) => match error.kind.row().severity {
                Severity::Error => Level::ERROR,
                Severity::Warning => Level::WARN,
                Severity::Info => Level::INFO,
            },
            (None, true) => Level::INFO,
            (None, false) => Level::DEBUG,
        }
    }
}

/// A duration as Cloud Logging's `HttpRequest` writes it.
fn latency_text(latency: Duration) -> String {
    format!("{:.3}s", latency.as_secs_f64())
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The logger name by which the log finds the line that gets the span's summary fields.
pub const TARGET: &str = "iga::summary";

/// nginx's number for a request whose caller closed the connection.
const CALLER_LEFT: u16 = 499;
const MAX_CHARS: usize = 256;
