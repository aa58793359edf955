//! The object that an upload makes, before its bytes are known.

use std::collections::BTreeMap;

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};

use crate::faults::Write;
use crate::objects::{crc32c, md5_hash};
use crate::preconditions::Preconditions;
use crate::response::Refusal;
use crate::storage_error::{error, invalid, invalid_parameter};

#[derive(Clone)]
pub(crate) struct UploadSpec {
    pub bucket: String,
    pub name: String,
    pub content_type: Option<String>,
    pub fields: Map<String, Value>,
    pub conditions: Preconditions,
    pub write: Write,
}

impl UploadSpec {
    pub fn new(
        query: &BTreeMap<String, String>,
        bucket: &str,
        fields: Map<String, Value>,
        exists: impl FnOnce(&str) -> bool,
    ) -> Result<Self, Refusal> {
        let text = |field: &str| fields.get(field).and_then(Value::as_str).map(str::to_owned);
        let name = query.get("name").cloned().or_else(|| text("name")).unwrap_or_default();
        if name.is_empty() {
            return Err(error(StatusCode::BAD_REQUEST, "required", "Required").into());
        }
        let illegal =
            name.len() > 1024 || name.contains(['\r', '\n']) || matches!(name.as_str(), "." | "..");
        if illegal || name.starts_with(".well-known/acme-challenge/") {
            return Err(invalid("Invalid argument.").into());
        }
        let conditions = Preconditions::from_query(query)
            .map_err(|parameter| invalid_parameter(query, parameter))?;
        let creates = match conditions.generation_match() {
            Some(generation) => generation == 0,
            None => !exists(&name),
        };
        let upload = Self {
            bucket: bucket.to_owned(),
            name,
            content_type: text("contentType"),
            fields,
            conditions,
            write: if creates { Write::Create } else { Write::Overwrite },
        };
        upload.validate()?;
        Ok(upload)
    }

    /// Refuses metadata whose fields have the wrong types.
    fn validate(&self) -> Result<(), Refusal> {
        let texts = [
            "name",
            "contentType",
            "cacheControl",
            "contentDisposition",
            "contentEncoding",
            "crc32c",
            "md5Hash",
        ];
        let is_text = |name: &&str| self.fields.get(*name).is_none_or(Value::is_string);
        let custom_is_texts = match self.fields.get("metadata") {
            None => true,
            Some(Value::Object(custom)) => custom.values().all(Value::is_string),
            Some(_) => false,
        };
        if texts.iter().all(is_text) && custom_is_texts {
            Ok(())
        } else {
            Err(invalid("Invalid argument.").into())
        }
    }

    /// `BUCKET/OBJECT-NAME`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.bucket, self.name)
    }

    /// Compares the bytes with every checksum that was sent along.
    pub fn verify(&self, headers: &HeaderMap, bytes: &[u8]) -> Result<(), Refusal> {
        let field = |name: &str| self.fields.get(name).and_then(Value::as_str);
        let hashes = headers.get_all("x-goog-hash").iter().filter_map(|value| value.to_str().ok());
        let hashes: Vec<(&str, &str)> = hashes
            .flat_map(|value| value.split(','))
            .filter_map(|hash| hash.trim().split_once('='))
            .collect();
        let sent = |field: Option<&'_ str>, header: &str| -> Vec<String> {
            let in_header =
                hashes.iter().filter(|(kind, _)| *kind == header).map(|(_, hash)| *hash);
            field.into_iter().chain(in_header).map(str::to_owned).collect()
        };
        for (what, sent, actual) in [
            ("CRC32C", sent(field("crc32c"), "crc32c"), crc32c(bytes)),
            ("MD5 hash", sent(field("md5Hash"), "md5"), md5_hash(bytes)),
        ] {
            if let Some(wrong) = sent.iter().find(|sent| **sent != actual) {
                let message = format!(
                    "Provided {what} \"{wrong}\" doesn't match calculated {what} \"{actual}\"."
                );
                return Err(invalid(&message).into());
            }
        }
        Ok(())
    }
}
