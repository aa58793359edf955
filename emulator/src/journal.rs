//! A file to which every request is written with its response, for checks against Google's schemas.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::recorder::Recorded;
use crate::response::Response;

/// Writes one JSON object a line.
pub(crate) struct Journal(Mutex<File>);

impl Journal {
    /// Appends to the file, so that several emulators may share it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot open {}: {error}", path.display()))
        })?;
        Ok(Self(Mutex::new(file)))
    }

    /// Writes a request; `None` stands for a connection that ended without a response.
    pub fn write(&self, request: &Recorded, response: Option<&Response>) {
        let mut line = request.to_json();
        line["body"] = match is_form(request) {
            true => shortened(form(&request.body)),
            false => json_or_text(&request.body),
        };
        line["response"] = response.map_or(Value::Null, |response| {
            json!({
                "status": response.status.as_u16(),
                "content_type": response.headers.get("content-type").and_then(|kind| kind.to_str().ok()),
                "body": json_or_text(&response.body),
                "scripted": response.is_scripted,
            })
        });
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk must not change what the emulator does.
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

fn is_form(request: &Recorded) -> bool {
    let kind = request.headers.get("content-type").and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"))
}

fn form(body: &[u8]) -> Value {
    let fields = form_urlencoded::parse(body);
    fields.map(|(name, value)| (name.into_owned(), Value::from(value.into_owned()))).collect()
}

/// JSON with its long texts shortened; what is not JSON as the beginning of its text.
fn json_or_text(body: &[u8]) -> Value {
    serde_json::from_slice(body).map(shortened).unwrap_or_else(|_| {
        String::from_utf8_lossy(&body[..body.len().min(SHORT_BYTES)]).into_owned().into()
    })
}

/// Cuts texts to a length that leaves base64 valid.
fn shortened(value: Value) -> Value {
    match value {
        Value::String(text) if text.len() > SHORT_BYTES && text.is_ascii() => {
            text[..SHORT_BYTES].into()
        }
        Value::Array(elements) => elements.into_iter().map(shortened).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name, shortened(value))).collect()
        }
        other => other,
    }
}

const SHORT_BYTES: usize = 400;
