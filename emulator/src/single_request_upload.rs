//! Uploads in one request: media and multipart.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, header};
use memchr::memmem;
use serde_json::Map;

use crate::body_reader::BodyReader;
use crate::faults::{Stage, apply_before};
use crate::response::{HandlerResult, Refusal};
use crate::services::{Call, Services};
use crate::storage_error::invalid;
use crate::upload::{apply_at_start, begin, drain, metadata_fields, spec, store, take};
use crate::upload_spec::UploadSpec;

/// `uploadType=media`: the body is the object.
pub(crate) async fn media(services: &Arc<Services>, mut call: Call, bucket: &str) -> HandlerResult {
    let mut upload = spec(services, &call, bucket, Map::new())?;
    upload.content_type = content_type(&call.headers);
    begin(services, &call, &upload)?;
    apply_at_start(services, &mut call.body, &upload).await?;
    apply_within(services, &mut call.body, &upload).await?;
    let bytes = call.body.all().await?;
    upload.verify(&call.headers, &bytes)?;
    store(services, call.number, upload, bytes).await
}

/// `uploadType=multipart`: JSON metadata, then the object.
pub(crate) async fn multipart(
    services: &Arc<Services>,
    mut call: Call,
    bucket: &str,
) -> HandlerResult {
    let malformed = || Refusal::from(invalid("Malformed multipart body."));
    let boundary =
        content_type(&call.headers).as_deref().and_then(boundary).ok_or_else(malformed)?;
    // Faults are selected by the object's name, which may be in the metadata only.
    let metadata = loop {
        if let Some(part) = first_part(&call.body.read, &boundary) {
            break part;
        }
        if !call.body.more().await? {
            return Err(malformed());
        }
    };
    services.recorder.body(call.number, &metadata);
    let mut upload = spec(services, &call, bucket, metadata_fields(&metadata)?)?;
    begin(services, &call, &upload)?;
    apply_at_start(services, &mut call.body, &upload).await?;
    apply_within(services, &mut call.body, &upload).await?;
    let (declared, bytes) = second_part(call.body.all().await?, &boundary).ok_or_else(malformed)?;
    upload.content_type = upload.content_type.or(declared);
    upload.verify(&call.headers, &bytes)?;
    store(services, call.number, upload, bytes).await
}

/// The faults in the middle of an upload's body.
async fn apply_within(
    services: &Services,
    body: &mut BodyReader,
    upload: &UploadSpec,
) -> Result<(), Refusal> {
    let Some(fault) = take(services, Stage::UploadBody, upload) else {
        return Ok(());
    };
    body.at_least(fault.after).await?;
    drain(Some(&fault), body).await?;
    apply_before(Some(fault)).await
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

/// The JSON part, once all of it has arrived.
fn first_part(body: &[u8], boundary: &str) -> Option<Bytes> {
    let rest = body.strip_prefix(format!("--{boundary}\r\n").as_bytes())?;
    let head = memmem::find(rest, b"\r\n\r\n")?;
    let kind = part_type(&rest[..head]).filter(|kind| kind.starts_with("application/json"));
    let rest = kind.map(|_| &rest[head + 4..])?;
    let end = memmem::find(rest, format!("\r\n--{boundary}\r\n").as_bytes())?;
    Some(Bytes::copy_from_slice(&rest[..end]))
}

/// The media part with its type; it must be the last one, and end with the closing boundary.
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
