//! Cloud Storage's JSON API.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap, Method, StatusCode, header};
use bytes::Bytes;
use memchr::memmem;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::faults::{Action, Fault, Stage, hinder, spoil};
use super::metadata::Denied;
use super::objects::{Failed, NewObject, Preconditions, StoredObject, Unmet, crc32c, md5_hash};
use super::wire::{Answer, Handled, Inflow, Refusal};
use super::{Call, Services, lock};

/// `/upload/storage/v1/b/BUCKET/o`, all three kinds.
pub(super) async fn upload(services: &Arc<Services>, mut call: Call, bucket: &str) -> Handled {
    if let (Some(id), "PUT" | "DELETE") = (call.query.get("upload_id").cloned(), call.method.as_str()) {
        return session(services, call, &id).await;
    }
    if call.method != Method::POST {
        return Ok(error(StatusCode::METHOD_NOT_ALLOWED, "methodNotAllowed", "Method not allowed."));
    }
    services.count(|counters| counters.uploads_started += 1);
    enter(services, &call, bucket, "storage.objects.create")?;
    if !call.headers.contains_key(header::CONTENT_LENGTH) && !call.headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(error(StatusCode::LENGTH_REQUIRED, "required", "Length Required"));
    }
    match call.query.get("uploadType").map(String::as_str) {
        Some("media") => media(services, call, bucket).await,
        Some("multipart") => multipart(services, call, bucket).await,
        Some("resumable") => {
            let body = call.body.all().await?;
            resumable(services, call, bucket, &body).await
        }
        _ => Ok(invalid("Unknown upload type.")),
    }
}

/// `/storage/v1/b/BUCKET…`: everything but uploads.
pub(super) async fn objects(services: &Services, call: &Call, bucket: &str, rest: &[&str]) -> Handled {
    match (call.method.as_str(), rest) {
        ("GET", []) => {
            enter(services, call, bucket, "storage.buckets.get")?;
            let body = json!({"kind": "storage#bucket", "id": bucket, "name": bucket, "storageClass": "STANDARD"});
            Ok(Answer::json(StatusCode::OK, &body))
        }
        ("GET", ["iam", "testPermissions"]) => test_permissions(services, call, bucket),
        ("GET", ["o"]) => {
            enter(services, call, bucket, "storage.objects.list")?;
            services.count(|counters| counters.lists += 1);
            let items = services.objects.list(bucket, call.query.get("prefix").map_or("", String::as_str));
            let mut body = json!({"kind": "storage#objects"});
            if !items.is_empty() {
                body["items"] = items.into();
            }
            Ok(Answer::json(StatusCode::OK, &body))
        }
        ("GET", ["o", name]) => read(services, call, bucket, name).await,
        ("DELETE", ["o", name]) => delete(services, call, bucket, name).await,
        ("POST", ["o"]) => Ok(invalid(
            "Upload requests must include an uploadType URL parameter and a URL path beginning with /upload/",
        )),
        _ => Ok(error(StatusCode::NOT_IMPLEMENTED, "notImplemented", "Not part of this emulator.")),
    }
}

/// Which of the asked permissions the caller has: those that nobody withheld.
fn test_permissions(services: &Services, call: &Call, bucket: &str) -> Handled {
    // Asking needs no permission, so none is named here.
    enter(services, call, bucket, "")?;
    let mut body = json!({"kind": "storage#testIamPermissionsResponse"});
    let asked = call.query.get("permissions");
    if let Some(held) = asked.filter(|permission| !services.options.withheld.contains(permission)) {
        body["permissions"] = json!([held]);
    }
    Ok(Answer::json(StatusCode::OK, &body))
}

async fn read(services: &Services, call: &Call, bucket: &str, name: &str) -> Handled {
    let media = call.query.get("alt").is_some_and(|alt| alt == "media");
    services.count(|counters| if media { counters.media_gets += 1 } else { counters.metadata_gets += 1 });
    enter(services, call, bucket, "storage.objects.get")?;
    let (generation, conditions) = (generation(call)?, conditions(call)?);
    let fault = services.faults.take(Stage::Read, &format!("{bucket}/{name}"));
    let answer = match services.objects.read(bucket, name, generation, &conditions) {
        Ok(object) if media => content(&object, &call.headers),
        Ok(object) => Answer::json(StatusCode::OK, &object.metadata),
        Err(Unmet::Precondition(Failed::NotMatch)) => Answer::empty(StatusCode::NOT_MODIFIED),
        Err(unmet) => refused(services, unmet, bucket, name),
    };
    spoil(fault, answer).await
}

async fn delete(services: &Services, call: &Call, bucket: &str, name: &str) -> Handled {
    services.count(|counters| counters.deletes += 1);
    enter(services, call, bucket, "storage.objects.delete")?;
    let (generation, conditions) = (generation(call)?, conditions(call)?);
    hinder(services.faults.take(Stage::Delete, &format!("{bucket}/{name}"))).await?;
    Ok(match services.objects.delete(bucket, name, generation, &conditions) {
        Ok(()) => Answer::empty(StatusCode::NO_CONTENT),
        Err(unmet) => refused(services, unmet, bucket, name),
    })
}

/// An object's bytes, or the range asked for.
fn content(object: &StoredObject, headers: &HeaderMap) -> Answer {
    let meta = |name: &str| object.metadata[name].as_str().unwrap_or_default().to_owned();
    let size = object.bytes.len();
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let (status, bytes, content_range) = match range.map(|range| parse_range(range, size)) {
        None | Some(Range::Whole) => (StatusCode::OK, object.bytes.clone(), None),
        Some(Range::Part(first, last)) => {
            let content_range = format!("bytes {first}-{last}/{size}");
            (StatusCode::PARTIAL_CONTENT, object.bytes.slice(first..=last), Some(content_range))
        }
        Some(Range::Unsatisfiable) => {
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            return error(status, "requestedRangeNotSatisfiable", "Request range not satisfiable")
                .with("content-range", format!("bytes */{size}"));
        }
    };
    let mut answer = Answer { body: bytes, ..Answer::empty(status) }
        .with("content-type", meta("contentType"))
        .with("etag", meta("etag"))
        .with("x-goog-hash", format!("crc32c={},md5={}", meta("crc32c"), meta("md5Hash")))
        .with("x-goog-generation", meta("generation"))
        .with("x-goog-metageneration", meta("metageneration"))
        .with("x-goog-storage-class", meta("storageClass"))
        .with("x-goog-stored-content-encoding", "identity")
        .with("x-goog-stored-content-length", size.to_string());
    for (field, header) in [("cacheControl", "cache-control"), ("contentDisposition", "content-disposition")] {
        if !meta(field).is_empty() {
            answer = answer.with(header, meta(field));
        }
    }
    match content_range {
        Some(range) => answer.with("content-range", range),
        None => answer,
    }
}

#[derive(Debug, PartialEq)]
enum Range {
    Whole,
    /// First and last byte.
    Part(usize, usize),
    Unsatisfiable,
}

/// One range; what does not parse, or asks for several, is ignored as HTTP allows.
fn parse_range(value: &str, size: usize) -> Range {
    let Some((first, last)) = value.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    let (first, last) = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) if first > last => return Range::Whole,
        (Ok(first), Ok(last)) => (first, last),
        (Ok(first), Err(_)) if last.is_empty() => (first, usize::MAX),
        (Err(_), Ok(0)) if first.is_empty() => return Range::Unsatisfiable,
        (Err(_), Ok(count)) if first.is_empty() => (size.saturating_sub(count), usize::MAX),
        _ => return Range::Whole,
    };
    if first >= size { Range::Unsatisfiable } else { Range::Part(first, last.min(size - 1)) }
}

/// What an upload is to become, before its bytes are known.
#[derive(Clone)]
struct Plan {
    bucket: String,
    name: String,
    content_type: Option<String>,
    fields: Map<String, Value>,
    conditions: Preconditions,
}

impl Plan {
    fn new(call: &Call, bucket: &str, fields: Map<String, Value>) -> Result<Self, Refusal> {
        let text = |field: &str| fields.get(field).and_then(Value::as_str).map(str::to_owned);
        let name = call.query.get("name").cloned().or_else(|| text("name")).unwrap_or_default();
        if name.is_empty() {
            return Err(error(StatusCode::BAD_REQUEST, "required", "Required").into());
        }
        let illegal = name.len() > 1024 || name.contains(['\r', '\n']) || matches!(name.as_str(), "." | "..");
        if illegal || name.starts_with(".well-known/acme-challenge/") {
            return Err(invalid("Invalid argument.").into());
        }
        let content_type = text("contentType");
        let plan = Self { bucket: bucket.to_owned(), name, content_type, fields, conditions: conditions(call)? };
        plan.validate()?;
        Ok(plan)
    }

    /// Refuses metadata whose fields have the wrong types.
    fn validate(&self) -> Result<(), Refusal> {
        let texts =
            ["name", "contentType", "cacheControl", "contentDisposition", "contentEncoding", "crc32c", "md5Hash"];
        let is_text = |name: &&str| self.fields.get(*name).is_none_or(Value::is_string);
        let custom_is_texts = match self.fields.get("metadata") {
            None => true,
            Some(Value::Object(custom)) => custom.values().all(Value::is_string),
            Some(_) => false,
        };
        if texts.iter().all(is_text) && custom_is_texts { Ok(()) } else { Err(invalid("Invalid argument.").into()) }
    }

    fn subject(&self) -> String {
        format!("{}/{}", self.bucket, self.name)
    }

    /// Compares the bytes with every checksum that was sent along.
    fn verify(&self, headers: &HeaderMap, bytes: &[u8]) -> Result<(), Refusal> {
        let field = |name: &str| self.fields.get(name).and_then(Value::as_str);
        let hashes = headers.get_all("x-goog-hash").iter().filter_map(|value| value.to_str().ok());
        let hashes: Vec<(&str, &str)> =
            hashes.flat_map(|value| value.split(',')).filter_map(|hash| hash.trim().split_once('=')).collect();
        let sent = |field: Option<&'_ str>, header: &str| -> Vec<String> {
            let in_header = hashes.iter().filter(|(kind, _)| *kind == header).map(|(_, hash)| *hash);
            field.into_iter().chain(in_header).map(str::to_owned).collect()
        };
        for (what, sent, actual) in [
            ("CRC32C", sent(field("crc32c"), "crc32c"), crc32c(bytes)),
            ("MD5 hash", sent(field("md5Hash"), "md5"), md5_hash(bytes)),
        ] {
            if let Some(wrong) = sent.iter().find(|sent| **sent != actual) {
                let message = format!("Provided {what} \"{wrong}\" doesn't match calculated {what} \"{actual}\".");
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
    let boundary = content_type(&call.headers).as_deref().and_then(boundary).ok_or_else(malformed)?;
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
    let fields = serde_json::from_slice(&metadata)
        .map_err(|_| Refusal::from(error(StatusCode::BAD_REQUEST, "parseError", "Parse Error")))?;
    let mut plan = Plan::new(&call, bucket, fields)?;
    start(services, &mut call.body, &plan).await?;
    receive(services, &mut call.body, &plan).await?;
    let (declared, bytes) = second_part(call.body.all().await?, &boundary).ok_or_else(malformed)?;
    plan.content_type = plan.content_type.or(declared);
    plan.verify(&call.headers, &bytes)?;
    store(services, plan, bytes).await
}

/// The faults before an upload's media is read.
async fn start(services: &Services, body: &mut Inflow, plan: &Plan) -> Result<(), Refusal> {
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
async fn drain(fault: Option<&Fault>, body: &mut Inflow) -> Result<(), Refusal> {
    let Some(fault) = fault else { return Ok(()) };
    match fault.action {
        Action::Answer { .. } | Action::Truncate => while body.more().await? {},
        Action::Delay { .. } | Action::Stall | Action::Reset | Action::WrongChecksum => {}
    }
    Ok(())
}

/// Stores the object; only then may a fault spoil the answer.
async fn store(services: &Arc<Services>, plan: Plan, bytes: Bytes) -> Handled {
    let (subject, bucket, name) = (plan.subject(), plan.bucket.clone(), plan.name.clone());
    let stored = {
        let services = services.clone();
        tokio::task::spawn_blocking(move || {
            let content_type = plan.content_type.unwrap_or_else(|| "application/octet-stream".to_owned());
            let new = NewObject { bucket: plan.bucket, name: plan.name, content_type, fields: plan.fields, bytes };
            services.objects.put(new, &plan.conditions, services.clock.now())
        })
    };
    let mut resource = match stored.await.unwrap_or_else(|error| Err(Unmet::Io(error.into()))) {
        Ok(resource) => resource,
        Err(unmet) => {
            if matches!(unmet, Unmet::Precondition(_)) {
                services.count(|counters| counters.uploads_refused += 1);
            }
            return Ok(refused(services, unmet, &bucket, &name));
        }
    };
    services.count(|counters| counters.uploads_completed += 1);
    let fault = services.faults.take(Stage::UploadEnd, &subject);
    if matches!(&fault, Some(Fault { action: Action::WrongChecksum, .. })) {
        resource["crc32c"] = crc32c(subject.as_bytes()).into();
    }
    spoil(fault, Answer::json(StatusCode::OK, &resource)).await
}

/// Resumable uploads under way, and those that are over.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Session>>);

struct Session {
    plan: Plan,
    /// As declared at the start.
    length: Option<u64>,
    received: Vec<u8>,
    state: State,
}

enum State {
    Open,
    /// With what the object became.
    Finished(Value),
    Cancelled,
}

async fn resumable(services: &Services, mut call: Call, bucket: &str, body: &Bytes) -> Handled {
    services.record_body(call.number, body);
    let fields = if body.is_empty() { Ok(Map::new()) } else { serde_json::from_slice(body) };
    let fields = fields.map_err(|_| Refusal::from(error(StatusCode::BAD_REQUEST, "parseError", "Parse Error")))?;
    let mut plan = Plan::new(&call, bucket, fields)?;
    let declared = |name| call.headers.get(name).and_then(|value| value.to_str().ok());
    plan.content_type = plan.content_type.or(declared("x-upload-content-type").map(str::to_owned));
    let length = declared("x-upload-content-length").and_then(|length| length.parse().ok());
    start(services, &mut call.body, &plan).await?;
    if let Err(unmet) = services.objects.check(bucket, &plan.name, &plan.conditions) {
        services.count(|counters| counters.uploads_refused += 1);
        return Ok(refused(services, unmet, bucket, &plan.name));
    }
    let name = utf8_percent_encode(&plan.name, NON_ALPHANUMERIC).to_string();
    let mut sessions = lock(&services.sessions.0);
    let id = format!("emulated-session-{}", sessions.len() + 1);
    sessions.insert(id.clone(), Session { plan, length, received: Vec::new(), state: State::Open });
    let addr = services.addr;
    let location =
        format!("http://{addr}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name={name}&upload_id={id}");
    Ok(Answer::empty(StatusCode::OK).with("location", location).with("x-guploader-uploadid", id))
}

/// A PUT or DELETE to a session, which needs no token.
async fn session(services: &Arc<Services>, mut call: Call, id: &str) -> Handled {
    let plan = match lock(&services.sessions.0).get(id) {
        None => {
            return Ok(error(StatusCode::NOT_FOUND, "notFound", "No such upload session."));
        }
        Some(Session { state: State::Cancelled, .. }) => {
            return Ok(error(StatusCode::GONE, "gone", "The upload session was cancelled."));
        }
        Some(Session { state: State::Finished(resource), .. }) => return Ok(Answer::json(StatusCode::OK, resource)),
        Some(session) => session.plan.clone(),
    };
    if call.method == Method::DELETE {
        lock(&services.sessions.0).entry(id.to_owned()).and_modify(|session| session.state = State::Cancelled);
        return Ok(Answer::empty(StatusCode::from_u16(499).expect("it is a status")));
    }
    let content_range = call.headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let range = match content_range.map(parse_content_range) {
        None => ContentRange { first: Some(0), last: None, total: None, whole: true },
        Some(Some(range)) => range,
        Some(None) => return Ok(invalid("Failed to parse Content-Range header.")),
    };
    if range.first.is_some() {
        kept_by_fault(services, &mut call, id, &plan, &range).await?;
    }
    let body = call.body.all().await?;
    let finished = with_session(services, id, |session| session.take(&range, &body))??;
    let Some(bytes) = finished else {
        return with_session(services, id, |session| session.progress());
    };
    plan.verify(&call.headers, &bytes)?;
    let answer = store(services, plan.clone(), bytes).await;
    let resource = services.objects.find(&plan.bucket, &plan.name);
    let stored = !matches!(&answer, Ok(answer) if answer.status == StatusCode::PRECONDITION_FAILED);
    if let (Some(object), true) = (resource, stored) {
        with_session(services, id, |session| session.state = State::Finished(object.metadata))?;
    }
    answer
}

fn with_session<T>(services: &Services, id: &str, act: impl FnOnce(&mut Session) -> T) -> Result<T, Refusal> {
    let mut sessions = lock(&services.sessions.0);
    let gone = || Refusal::from(error(StatusCode::GONE, "gone", "The upload session is gone."));
    sessions.get_mut(id).map(act).ok_or_else(gone)
}

/// Lets a fault break a chunk off; what came before stays, in whole units, as at Google.
async fn kept_by_fault(
    services: &Services,
    call: &mut Call,
    id: &str,
    plan: &Plan,
    range: &ContentRange,
) -> Result<(), Refusal> {
    let Some(fault) = services.faults.take(Stage::UploadBody, &plan.subject()) else {
        return Ok(());
    };
    call.body.at_least(fault.after).await?;
    if matches!(fault.action, Action::Delay { .. } | Action::WrongChecksum) {
        return hinder(Some(fault)).await;
    }
    let after = usize::try_from(fault.after).unwrap_or(usize::MAX).min(call.body.read.len());
    let kept = Bytes::copy_from_slice(&call.body.read[..after - after % UNIT_BYTES]);
    drain(Some(&fault), &mut call.body).await?;
    let part = ContentRange { last: None, total: None, whole: false, ..*range };
    with_session(services, id, |session| session.take(&part, &kept))??;
    if matches!(fault.action, Action::Truncate) {
        return Err(with_session(services, id, |session| session.progress())?.into());
    }
    hinder(Some(fault)).await
}

impl Session {
    /// Takes a chunk in; returns the object's bytes when it was the last.
    fn take(&mut self, range: &ContentRange, body: &[u8]) -> Result<Option<Bytes>, Refusal> {
        let held = self.received.len() as u64;
        if let Some(first) = range.first {
            let end = first + body.len() as u64;
            if range.last.is_some_and(|last| last + 1 != end) {
                let should = range.last.map_or(0, |last| last + 1 - first);
                return Err(invalid(&format!(
                    "Invalid request.  There were {} byte(s) in the request body.  There should have been {should} \
                     byte(s) (starting at offset {first} and ending at offset {}) according to the Content-Range header.",
                    body.len(),
                    first + should.saturating_sub(1),
                ))
                .into());
            }
            if first > held {
                return Err(invalid(&format!("Invalid request.  The next byte to be received is {held}.")).into());
            }
            let last_chunk = range.whole || range.total == Some(end);
            if !last_chunk && !body.len().is_multiple_of(UNIT_BYTES) {
                return Err(invalid(&format!(
                    "Invalid request.  The number of bytes uploaded is required to be equal or greater than 262144, \
                     except for the final request (it's recommended to be the exact multiple of 262144).  \
                     The received request contained {} bytes, which does not meet this requirement.",
                    body.len(),
                ))
                .into());
            }
            let known = usize::try_from(held - first).unwrap_or(usize::MAX).min(body.len());
            self.received.extend_from_slice(&body[known..]);
        }
        let total = if range.whole { Some(self.received.len() as u64) } else { range.total };
        if let (Some(total), Some(length)) = (total, self.length)
            && total != length
        {
            return Err(invalid(&format!("Upload length is {total} where {length} was declared.")).into());
        }
        let complete = total == Some(self.received.len() as u64);
        Ok(complete.then(|| Bytes::copy_from_slice(&self.received)))
    }

    /// 308, with what has been kept so far.
    fn progress(&mut self) -> Answer {
        let answer = Answer::empty(StatusCode::PERMANENT_REDIRECT);
        match self.received.len() {
            0 => answer,
            held => answer.with("range", format!("bytes=0-{}", held - 1)),
        }
    }
}

/// `Content-Range` of a chunk: `bytes FIRST-LAST/TOTAL`, either side may be `*`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct ContentRange {
    first: Option<u64>,
    last: Option<u64>,
    total: Option<u64>,
    /// There was no header: the body is all there is.
    whole: bool,
}

fn parse_content_range(value: &str) -> Option<ContentRange> {
    let (span, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let total = if total == "*" { None } else { Some(total.parse::<u64>().ok()?) };
    if span == "*" {
        return Some(ContentRange { first: None, last: None, total, whole: false });
    }
    let (first, last) = span.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    let in_order = first <= last && total.is_none_or(|total| last < total);
    in_order.then_some(ContentRange { first: Some(first), last: Some(last), total, whole: false })
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn boundary(content_type: &str) -> Option<String> {
    let parameters = content_type.strip_prefix("multipart/related")?;
    let value = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("boundary="))?;
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
    let head = if body[start..].starts_with(b"\r\n") { 0 } else { memmem::find(&body[start..], b"\r\n\r\n")? + 2 };
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

/// Lets in who has a token and names a bucket that exists.
fn enter(services: &Services, call: &Call, bucket: &str, permission: &str) -> Result<(), Refusal> {
    services.tokens.admit(&call.headers).map_err(|denied| match denied {
        Denied::Missing => {
            let message = format!(
                "Anonymous caller does not have {permission} access to the Google Cloud Storage {}. \
                 Permission '{permission}' denied on resource (or it may not exist).",
                if permission.starts_with("storage.buckets") { "bucket" } else { "object" },
            );
            located(StatusCode::UNAUTHORIZED, "required", &message, "Authorization")
                .with("www-authenticate", "Bearer realm=\"https://accounts.google.com/\"")
        }
        Denied::Expired | Denied::Unknown => {
            located(StatusCode::UNAUTHORIZED, "authError", "Invalid Credentials", "Authorization")
                .with("www-authenticate", "Bearer realm=\"https://accounts.google.com/\", error=\"invalid_token\"")
        }
    })?;
    if services.options.withheld.iter().any(|withheld| withheld == permission) {
        let message = format!("Permission '{permission}' denied on resource (or it may not exist).");
        return Err(error(StatusCode::FORBIDDEN, "forbidden", &message).into());
    }
    if services.objects.has_bucket(bucket) {
        return Ok(());
    }
    Err(error(StatusCode::NOT_FOUND, "notFound", "The specified bucket does not exist.").into())
}

fn conditions(call: &Call) -> Result<Preconditions, Refusal> {
    Preconditions::from_query(&call.query).map_err(|parameter| invalid_parameter(&call.query, parameter))
}

fn generation(call: &Call) -> Result<Option<i64>, Refusal> {
    let generation = call.query.get("generation").map(|text| text.parse()).transpose();
    generation.map_err(|_| invalid_parameter(&call.query, "generation"))
}

fn invalid_parameter(query: &BTreeMap<String, String>, parameter: &str) -> Refusal {
    let value = query.get(parameter).map_or("", String::as_str);
    invalid(&format!("Invalid value '{value}' for parameter {parameter}.")).into()
}

fn refused(services: &Services, unmet: Unmet, bucket: &str, name: &str) -> Answer {
    match unmet {
        Unmet::Precondition(_) => {
            let message = "At least one of the pre-conditions you specified did not hold.";
            located(StatusCode::PRECONDITION_FAILED, "conditionNotMet", message, "If-Match")
        }
        Unmet::NoSuchObject => error(StatusCode::NOT_FOUND, "notFound", &format!("No such object: {bucket}/{name}")),
        Unmet::Io(problem) => {
            let message = format!("{}: {problem}", services.addr);
            error(StatusCode::INTERNAL_SERVER_ERROR, "internalError", &message)
        }
    }
}

fn invalid(message: &str) -> Answer {
    error(StatusCode::BAD_REQUEST, "invalid", message)
}

fn error(status: StatusCode, reason: &str, message: &str) -> Answer {
    let cause = json!({"message": message, "domain": "global", "reason": reason});
    failure(status, message, cause)
}

/// An error that names the header at fault.
fn located(status: StatusCode, reason: &str, message: &str, header: &str) -> Answer {
    let cause = json!({
        "message": message, "domain": "global", "reason": reason, "locationType": "header", "location": header,
    });
    failure(status, message, cause)
}

fn failure(status: StatusCode, message: &str, cause: Value) -> Answer {
    let body = json!({"error": {"code": status.as_u16(), "message": message, "errors": [cause]}});
    Answer::json(status, &body)
}

/// The error that usually comes with a status.
pub(super) fn plain_error(status: StatusCode) -> Answer {
    let (reason, message) = match status.as_u16() {
        400 => ("invalid", "Invalid argument."),
        401 => return located(status, "authError", "Invalid Credentials", "Authorization"),
        403 => ("forbidden", "Permission 'storage.objects.create' denied on resource (or it may not exist)."),
        404 => ("notFound", "The specified bucket does not exist."),
        410 => ("gone", "The upload session is gone."),
        412 => {
            let message = "At least one of the pre-conditions you specified did not hold.";
            return located(status, "conditionNotMet", message, "If-Match");
        }
        429 => ("rateLimitExceeded", "The object exceeded the rate limit for object mutation operations."),
        503 => ("backendError", "Service Unavailable"),
        _ => ("internalError", "We encountered an internal error. Please try again."),
    };
    error(status, reason, message)
}

/// All chunks but the last are multiples of it.
const UNIT_BYTES: usize = 256 * 1024;
