//! Uploads to Cloud Storage in one request: media and multipart.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use memchr::memmem;
use serde_json::{Map, Value};

use crate::faults::{Action, Fault, Stage, hinder, spoil};
use crate::objects::{NewObject, Preconditions, Unmet, crc32c, md5_hash};
use crate::storage::{conditions, enter, refused};
use crate::storage_error::{error, invalid};
use crate::wire::{Answer, Handled, Inflow, Refusal};
use crate::{Call, Services, resumable};

/// `/upload/storage/v1/b/BUCKET/o`, all three kinds.
pub(crate) async fn upload(services: &Arc<Services>, call: Call, bucket: &str) -> Handled {
    if let (Some(id), "PUT" | "DELETE") =
        (call.query.get("upload_id").cloned(), call.method.as_str())
    {
        return resumable::session(services, call, &id).await;
    }
    if call.method != Method::POST {
        return Ok(error(
            StatusCode::METHOD_NOT_ALLOWED,
            "methodNotAllowed",
            "Method not allowed.",
        ));
    }
    services.count(|counters| counters.uploads_started += 1);
    enter(services, &call, bucket, "storage.objects.create")?;
    if !call.headers.contains_key(header::CONTENT_LENGTH)
        && !call.headers.contains_key(header::TRANSFER_ENCODING)
    {
        return Ok(error(StatusCode::LENGTH_REQUIRED, "required", "Length Required"));
    }
    match call.query.get("uploadType").map(String::as_str) {
        Some("media") => media(services, call, bucket).await,
        Some("multipart") => multipart(services, call, bucket).await,
        Some("resumable") => resumable::open(services, call, bucket).await,
        _ => Ok(invalid("Unknown upload type.")),
    }
}

/// What an upload is to become, before its bytes are known.
#[derive(Clone)]
pub(crate) struct Plan {
    pub bucket: String,
    pub name: String,
    pub content_type: Option<String>,
    pub fields: Map<String, Value>,
    pub conditions: Preconditions,
}

impl Plan {
    pub fn new(call: &Call, bucket: &str, fields: Map<String, Value>) -> Result<Self, Refusal> {
        let text = |field: &str| fields.get(field).and_then(Value::as_str).map(str::to_owned);
        let name = call.query.get("name").cloned().or_else(|| text("name")).unwrap_or_default();
        if name.is_empty() {
            return Err(error(StatusCode::BAD_REQUEST, "required", "Required").into());
        }
        let illegal =
            name.len() > 1024 || name.contains(['\r', '\n']) || matches!(name.as_str(), "." | "..");
        if illegal || name.starts_with(".well-known/acme-challenge/") {
            return Err(invalid("Invalid argument.").into());
        }
        let content_type = text("contentType");
        let plan = Self {
            bucket: bucket.to_owned(),
            name,
            content_type,
            fields,
            conditions: conditions(call)?,
        };
        plan.validate()?;
        Ok(plan)
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

    pub fn subject(&self) -> String {
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

async fn media(services: &Arc<Services>, mut call: Call, bucket: &str) -> Handled {
    let mut plan = Plan::new(&call, bucket, Map::new())?;
    plan.content_type = content_type(&call.headers);
    start(services, &mut call.body, &plan).await?;
    receive(services, &mut call.body, &plan).await?;
    let bytes = call.body.all().await?;
    plan.verify(&call.headers, &bytes)?;
    store(services, plan, bytes).await
}

async fn multipart(services: &Arc<Services>, mut call: Call, bucket: &str) -> Handled {
    let malformed = || Refusal::from(invalid("Malformed multipart body."));
    let boundary =
        content_type(&call.headers).as_deref().and_then(boundary).ok_or_else(malformed)?;
    // The object's name may stand in the metadata only, and faults go by the name.
    let metadata = loop {
        if let Some(part) = first_part(&call.body.read, &boundary) {
            break part;
        }
        if !call.body.more().await? {
            return Err(malformed());
        }
    };
    services.record_body(call.number, &metadata);
    let mut plan = Plan::new(&call, bucket, metadata_fields(&metadata)?)?;
    start(services, &mut call.body, &plan).await?;
    receive(services, &mut call.body, &plan).await?;
    let (declared, bytes) = second_part(call.body.all().await?, &boundary).ok_or_else(malformed)?;
    plan.content_type = plan.content_type.or(declared);
    plan.verify(&call.headers, &bytes)?;
    store(services, plan, bytes).await
}

pub(crate) fn metadata_fields(json: &[u8]) -> Result<Map<String, Value>, Refusal> {
    serde_json::from_slice(json)
        .map_err(|_| error(StatusCode::BAD_REQUEST, "parseError", "Parse Error").into())
}

/// The faults before an upload's media is read.
pub(crate) async fn start(
    services: &Services,
    body: &mut Inflow,
    plan: &Plan,
) -> Result<(), Refusal> {
    let fault = services.faults.take(Stage::UploadStart, &plan.subject());
    drain(fault.as_ref(), body).await?;
    hinder(fault).await
}

/// The faults in the middle of an upload's body.
async fn receive(services: &Services, body: &mut Inflow, plan: &Plan) -> Result<(), Refusal> {
    let Some(fault) = services.faults.take(Stage::UploadBody, &plan.subject()) else {
        return Ok(());
    };
    body.at_least(fault.after).await?;
    drain(Some(&fault), body).await?;
    hinder(Some(fault)).await
}

/// Reads on to the end where an answer is to arrive, or the connection to end without an RST.
pub(crate) async fn drain(fault: Option<&Fault>, body: &mut Inflow) -> Result<(), Refusal> {
    let Some(fault) = fault else { return Ok(()) };
    match fault.action {
        Action::Answer { .. } | Action::Truncate => while body.more().await? {},
        Action::Delay { .. } | Action::Stall | Action::Reset | Action::WrongChecksum => {}
    }
    Ok(())
}

async fn store(services: &Arc<Services>, plan: Plan, bytes: Bytes) -> Handled {
    let subject = plan.subject();
    let resource = commit(services, plan, bytes).await?;
    confirm(services, &subject, resource).await
}

/// Makes the object, and returns its metadata.
pub(crate) async fn commit(
    services: &Arc<Services>,
    plan: Plan,
    bytes: Bytes,
) -> Result<Value, Refusal> {
    let (bucket, name) = (plan.bucket.clone(), plan.name.clone());
    let put = {
        let services = services.clone();
        tokio::task::spawn_blocking(move || {
            let content_type =
                plan.content_type.unwrap_or_else(|| "application/octet-stream".to_owned());
            let new = NewObject {
                bucket: plan.bucket,
                name: plan.name,
                content_type,
                fields: plan.fields,
                bytes,
            };
            services.objects.put(new, &plan.conditions, services.clock.now())
        })
    };
    let stored = put.await.unwrap_or_else(|error| Err(Unmet::Io(error.into())));
    services.count(|counters| match &stored {
        Ok(_) => counters.uploads_completed += 1,
        Err(Unmet::Precondition(_)) => counters.uploads_refused += 1,
        Err(Unmet::NoSuchObject | Unmet::Io(_)) => {}
    });
    stored.map_err(|unmet| refused(unmet, &bucket, &name).into())
}

/// Says that the object is stored, unless a fault gets in the way.
pub(crate) async fn confirm(services: &Services, subject: &str, mut resource: Value) -> Handled {
    let fault = services.faults.take(Stage::UploadEnd, subject);
    if matches!(&fault, Some(Fault { action: Action::WrongChecksum, .. })) {
        resource["crc32c"] = crc32c(subject.as_bytes()).into();
    }
    spoil(fault, Answer::json(StatusCode::OK, &resource)).await
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn boundary(content_type: &str) -> Option<String> {
    let parameters = content_type.strip_prefix("multipart/related")?;
    let value =
        parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("boundary="))?;
    let value = value.trim_matches(['"', '\'']);
    (1..=70).contains(&value.len()).then(|| value.to_owned())
}

/// The JSON part, once it has arrived whole.
fn first_part(body: &[u8], boundary: &str) -> Option<Bytes> {
    let rest = body.strip_prefix(format!("--{boundary}\r\n").as_bytes())?;
    let head = memmem::find(rest, b"\r\n\r\n")?;
    let kind = part_type(&rest[..head]).filter(|kind| kind.starts_with("application/json"));
    let rest = kind.map(|_| &rest[head + 4..])?;
    let end = memmem::find(rest, format!("\r\n--{boundary}\r\n").as_bytes())?;
    Some(Bytes::copy_from_slice(&rest[..end]))
}

/// The media part with its type; it must be the last one, and closed.
fn second_part(body: Bytes, boundary: &str) -> Option<(Option<String>, Bytes)> {
    let separator = format!("\r\n--{boundary}\r\n");
    let start = memmem::find(&body, separator.as_bytes())? + separator.len();
    // A part without headers starts with the blank line itself.
    let head = if body[start..].starts_with(b"\r\n") {
        0
    } else {
        memmem::find(&body[start..], b"\r\n\r\n")? + 2
    };
    let media = start + head + 2;
    let end = media + memmem::find(&body[media..], format!("\r\n--{boundary}").as_bytes())?;
    let closing = &body[end + separator.len() - 2..];
    let kind = part_type(&body[start..start + head]);
    matches!(closing, b"--" | b"--\r\n").then(|| (kind, body.slice(media..end)))
}

fn part_type(head: &[u8]) -> Option<String> {
    let lines = std::str::from_utf8(head).ok()?.split("\r\n");
    let mut headers = lines.filter_map(|line| line.split_once(':'));
    let (_, value) = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-type"))?;
    Some(value.trim().to_owned())
}
