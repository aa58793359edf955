//! The fields of a log line, and how the line is written.

use crate::error::is_control;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt::{self, Write as _};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::Level;
use tracing::field::{Field, Visit};

/// The format of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineFormat {
    Json,
    Text { colours: bool },
}

/// Fields in the order in which they were recorded. Fields whose names begin with one of [`GROUPS`]
/// become members of one object.
#[derive(Debug, Default, Clone)]
pub struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    /// The fields that every line begins with. `place` is where an error was logged, for Error Reporting.
    pub fn line(level: Level, logger: &str, place: Option<(&str, u32)>) -> Fields {
        let mut line = Fields(Vec::with_capacity(LINE_FIELDS));
        line.set("timestamp", timestamp());
        line.set("severity", severity(level));
        line.set("level", level.as_str());
        line.set("service_name", "iga");
        line.set("logger_name", logger);
        if let (Level::ERROR, Some((file, number))) = (level, place) {
            line.set("@type", REPORTED_ERROR);
            line.set("serviceContext.service", "iga");
            line.set("serviceContext.version", env!("CARGO_PKG_VERSION"));
            line.set(
                "context.reportLocation",
                serde_json::json!({"filePath": file, "lineNumber": number, "functionName": logger}),
            );
        }
        line
    }

    /// Sets a field. A time (`…_ms`) is added to the value that the field already has.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        let value = value.into();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => {
                let sum = known.as_u64().zip(value.as_u64()).map(|(a, b)| a.saturating_add(b));
                *known = match sum.filter(|_| name.ends_with("_ms")) {
                    Some(sum) => sum.into(),
                    None => value,
                };
            }
            None => self.0.push((name, value)),
        }
    }

    /// Adds the fields of `other` that are not there yet.
    pub fn extend(&mut self, other: &Fields) {
        for (name, value) in &other.0 {
            if self.get(name).is_none() {
                self.0.push((name, value.clone()));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    fn text(&self, name: &str) -> &str {
        self.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

impl LineFormat {
    /// One whole line, ending in a newline.
    pub fn render(self, fields: &Fields) -> Vec<u8> {
        let mut line = match self {
            LineFormat::Json => {
                let json = serde_json::to_string(fields).unwrap_or_default();
                escape_controls(&json).into_owned()
            }
            LineFormat::Text { colours } => text(fields, colours),
        };
        line.push('\n');
        line.into_bytes()
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_map(None)?;
        let group_of = |name: &'static str| GROUPS.iter().position(|group| name.starts_with(group));
        for (name, value) in self.0.iter().filter(|(name, _)| group_of(name).is_none()) {
            line.serialize_entry(name, value)?;
        }
        for (number, group) in GROUPS.iter().enumerate() {
            let members = self.0.iter().filter(|(name, _)| group_of(name) == Some(number));
            let members: Map<_, _> = members
                .map(|(name, value)| (name[group.len()..].to_owned(), value.clone()))
                .collect();
            if !members.is_empty() {
                line.serialize_entry(group.trim_end_matches('.'), &members)?;
            }
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

/// `time level message name=value …`, for a person at a terminal.
fn text(fields: &Fields, colours: bool) -> String {
    let severity = fields.text("severity");
    let (colour, end) = match (colours, severity) {
        (false, _) => ("", ""),
        (true, "ERROR") => ("\u{1b}[31m", RESET),
        (true, "WARNING") => ("\u{1b}[33m", RESET),
        (true, "DEBUG") => ("\u{1b}[2m", RESET),
        (true, _) => ("\u{1b}[32m", RESET),
    };
    let time = fields.text("timestamp").get(11..23).unwrap_or_default();
    let message = escape_controls(fields.text("message"));
    let mut line = format!("{time} {colour}{severity:<7}{end} {message}");
    let shown =
        |name: &str| !SHOWN_ELSEWHERE.contains(&name) && !name.starts_with("serviceContext");
    for (name, value) in fields.0.iter().filter(|(name, _)| shown(name)) {
        let value = match value {
            Value::String(text) if !text.contains([' ', '"']) => text.clone(),
            other => other.to_string(),
        };
        let _ = write!(line, " {name}={}", escape_controls(&value));
    }
    line
}

/// Escapes control characters. In JSON text they appear inside strings only.
fn escape_controls(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return text.into();
    }
    let escaped = text.chars().fold(String::with_capacity(text.len() + 16), |mut out, c| {
        match is_control(c) {
            true => drop(write!(out, "\\u{:04x}", c as u32)),
            false => out.push(c),
        }
        out
    });
    escaped.into()
}

fn timestamp() -> String {
    let now = OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(now.nanosecond() / 1_000_000 * 1_000_000).unwrap_or(now);
    now.format(&Rfc3339).unwrap_or_default()
}

fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG | Level::TRACE => "DEBUG",
    }
}

const GROUPS: [&str; 4] = ["tags.", "httpRequest.", "serviceContext.", "context."];
const SHOWN_ELSEWHERE: &[&str] = &[
    "timestamp",
    "severity",
    "level",
    "message",
    "service_name",
    "logger_name",
    "@type",
    "context.reportLocation",
];
const RESET: &str = "\u{1b}[0m";
const LINE_FIELDS: usize = 40;

/// The `@type` with which Error Reporting groups an entry without a stack trace ("Format errors in
/// logs").
const REPORTED_ERROR: &str =
    "type.googleapis.com/google.devtools.clouderrorreporting.v1beta1.ReportedErrorEvent";
