//! Reads the stages of each request, and its lines, from the service's own log.

use crate::hub::Hub;
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// A layer of the log that tells the playground of each stage when it ends.
pub struct Observer(pub Arc<Hub>);

/// The request of a span.
struct Request {
    began: Instant,
    id: String,
    workflow: String,
}

impl<S> Layer<S> for Observer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let fields = Fields::of(|fields| attributes.record(fields));
        let Some(request_id) = fields.text("request_id") else { return };
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Request {
                began: Instant::now(),
                id: request_id.to_owned(),
                workflow: fields.text("workflow_id").unwrap_or_default().to_owned(),
            });
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let extensions = span.extensions();
        let Some(request) = extensions.get::<Request>() else { return };
        for (field, value) in Fields::of(|fields| values.record(fields)).0 {
            if let Some((_, stage)) = STAGES.iter().find(|(known, _)| *known == field) {
                request.publish(&self.0, &json!({"type": "stage", "stage": stage, "ms": value}));
            } else if field == PAID && value == true {
                request.publish(&self.0, &json!({"type": "stage", "stage": "paid"}));
            } else if field == DELIVERED {
                self.0.count_delivery(request.workflow.clone());
                request.publish(&self.0, &json!({"type": "stage", "stage": "delivered"}));
            }
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::INFO {
            return;
        }
        let fields = Fields::of(|fields| event.record(fields));
        let Some(message) = fields.text("message") else { return };
        let message = with_error(message, fields.text("tags.error_type"));
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(request) = span.extensions().get::<Request>() {
                let line = json!({"type": "line", "level": level.as_str(), "message": message});
                request.publish(&self.0, &line);
            }
        }
    }
}

impl Request {
    /// Sends an event with the request's ids and the time since it began.
    fn publish(&self, hub: &Hub, event: &Value) {
        let mut event = event.clone();
        event["workflow"] = self.workflow.as_str().into();
        event["request"] = self.id.as_str().into();
        event["at_ms"] = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).into();
        hub.publish(&event);
    }
}

/// The recorded fields and their values.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn of(record: impl FnOnce(&mut Fields)) -> Fields {
        let mut fields = Fields::default();
        record(&mut fields);
        fields
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name)?.1.as_str()
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}").into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), value.into()));
    }
}

/// A line's message with the type of the error that it counts.
pub fn with_error(message: &str, error_type: Option<&str>) -> String {
    error_type.map_or(message.to_owned(), |error_type| format!("{message}: {error_type}"))
}

/// The fields of a request's span that are recorded when a stage ends.
const STAGES: [(&str, &str); 4] =
    [("token_ms", "token"), ("lease_ms", "lease"), ("model_ms", "model"), ("upload_ms", "upload")];

/// Recorded once a model has made the image.
const PAID: &str = "paid";

/// Recorded once the response has the image's URI.
const DELIVERED: &str = "image_url";
