//! Cloud Storage's JSON API.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::faults::{Fault, Stage, Subject, apply_after, apply_before};
use crate::listing::Listing;
use crate::objects::{Bucket, StoreError, StoredObject};
use crate::preconditions::FailedCondition;
use crate::recorder::OperationKind;
use crate::response::{HandlerResult, Refusal, Response};
use crate::services::{Call, Services};
use crate::storage_access::{
    admit, admit_credentials, conditions, generation, now, record, refused, require,
};
use crate::storage_error::{error, forbidden, invalid, invalid_parameter, no_such_bucket};
use crate::upload::metadata_fields;
use crate::{copies, partial_response, resumable, single_request_upload};

/// `/storage/v1/b` and what is below it.
pub(crate) async fn handle(
    services: &Services,
    mut call: Call,
    segments: &[&str],
) -> HandlerResult {
    let body = call.body.all().await?;
    services.recorder.body(call.number, &body);
    let response = match segments {
        [] => buckets(services, &call, &body),
        [bucket, "o", rest @ ..] => objects(services, &call, bucket, rest, &body).await,
        [bucket, rest @ ..] => in_bucket(services, &call, bucket, rest, &body).await,
    }?;
    Ok(with_fields(response, call.query.get("fields")))
}

/// The response with only the fields that the query asks for.
fn with_fields(response: Response, mask: Option<&String>) -> Response {
    let Some(mask) = mask.filter(|_| response.status == StatusCode::OK) else {
        return response;
    };
    match serde_json::from_slice(&response.body) {
        Ok(value) => {
            let selected = Response::json(StatusCode::OK, &partial_response::select(&value, mask));
            Response { body: selected.body, ..response }
        }
        Err(_) => response,
    }
}

/// The buckets of the project, whichever the query names.
fn buckets(services: &Services, call: &Call, body: &[u8]) -> HandlerResult {
    match call.method.as_str() {
        "GET" => {
            admit_credentials(services, call, "storage.buckets.list")?;
            let prefix = call.query.get("prefix").map_or("", String::as_str);
            let buckets = services.objects.buckets();
            let buckets = buckets.iter().filter(|bucket| bucket.name.starts_with(prefix));
            let items: Vec<_> = buckets.map(bucket_resource).collect();
            Ok(Response::json(StatusCode::OK, &json!({"kind": "storage#buckets", "items": items})))
        }
        "POST" => {
            admit_credentials(services, call, "storage.buckets.create")?;
            let mut fields = metadata_fields(body)?;
            let name = fields.remove("name");
            let name = name.as_ref().and_then(Value::as_str).unwrap_or_default();
            if services.objects.has_bucket(name) {
                let message = "Your previous request to create the named bucket succeeded and you already own it.";
                return Ok(error(StatusCode::CONFLICT, "conflict", message));
            }
            check_settings(&fields)?;
            if services.objects.create_bucket(name, fields).is_err() {
                return Ok(invalid(&format!("Invalid bucket name: '{name}'")));
            }
            bucket_response(services.objects.bucket(name))
        }
        _ => Ok(not_implemented()),
    }
}

fn bucket_resource(bucket: &Bucket) -> Value {
    let Bucket { name, metageneration, settings } = bucket;
    let mut resource = json!({
        "kind": "storage#bucket",
        "id": name,
        "name": name,
        "projectNumber": "123456789012",
        "metageneration": metageneration.to_string(),
        "location": "US",
        "locationType": "multi-region",
        "storageClass": "STANDARD",
    });
    for (field, value) in settings {
        resource[field] = value.clone();
    }
    resource
}

fn bucket_response(bucket: Option<Bucket>) -> HandlerResult {
    let bucket = bucket.ok_or_else(no_such_bucket)?;
    Ok(Response::json(StatusCode::OK, &bucket_resource(&bucket)))
}

/// Refuses the settings that would change what the bucket does.
fn check_settings(fields: &Map<String, Value>) -> Result<(), Refusal> {
    match fields.keys().find(|field| !BUCKET_SETTINGS.contains(&field.as_str())) {
        Some(other) => {
            let message = format!("A bucket's {other} is not part of this emulator.");
            Err(error(StatusCode::NOT_IMPLEMENTED, "notImplemented", &message).into())
        }
        None => Ok(()),
    }
}

async fn in_bucket(
    services: &Services,
    call: &Call,
    bucket: &str,
    rest: &[&str],
    body: &[u8],
) -> HandlerResult {
    match (call.method.as_str(), rest) {
        ("GET", []) => get_bucket(services, call, bucket, "storage.buckets.get"),
        ("PATCH", []) => {
            get_bucket(services, call, bucket, "storage.buckets.update")?;
            let fields = metadata_fields(body)?;
            check_settings(&fields)?;
            let patched = services.objects.patch_bucket(bucket, fields, &conditions(call)?);
            bucket_response(Some(patched.map_err(|problem| refused(problem, bucket, ""))?))
        }
        ("DELETE", []) => {
            get_bucket(services, call, bucket, "storage.buckets.delete")?;
            if services.objects.delete_bucket(bucket) {
                return Ok(Response::empty(StatusCode::NO_CONTENT));
            }
            let message = "The bucket you tried to delete is not empty.";
            Ok(error(StatusCode::CONFLICT, "conflict", message))
        }
        ("GET", ["iam"]) => {
            get_bucket(services, call, bucket, "storage.buckets.getIamPolicy")?;
            let policy = json!({"kind": "storage#policy", "resourceId": format!("projects/_/buckets/{bucket}"), "version": 1, "etag": "CAE="});
            Ok(Response::json(StatusCode::OK, &policy))
        }
        ("GET", ["iam", "testPermissions"]) => test_permissions(services, call, bucket).await,
        _ => Ok(not_implemented()),
    }
}

async fn objects(
    services: &Services,
    call: &Call,
    bucket: &str,
    rest: &[&str],
    body: &[u8],
) -> HandlerResult {
    match (call.method.as_str(), rest) {
        ("GET", []) => list(services, call, bucket).await,
        ("GET", [name]) => read(services, call, bucket, name).await,
        ("DELETE", [name]) => delete(services, call, bucket, name).await,
        ("PATCH" | "PUT", [name]) => patch(services, call, bucket, name, body),
        ("POST", [name, "copyTo", "b", to_bucket, "o", to_name]) => {
            copies::copy(services, call, (bucket, name), (to_bucket, to_name), body)
        }
        ("POST", [name, "rewriteTo", "b", to_bucket, "o", to_name]) => {
            copies::rewrite(services, call, (bucket, name), (to_bucket, to_name), body)
        }
        ("POST", [name, "compose"]) => copies::compose(services, call, (bucket, name), body),
        ("POST", []) => Ok(invalid(
            "Upload requests must include an uploadType URL parameter and a URL path beginning with /upload/",
        )),
        _ => Ok(not_implemented()),
    }
}

/// 501.
pub(crate) fn not_implemented() -> Response {
    error(StatusCode::NOT_IMPLEMENTED, "notImplemented", "Not part of this emulator.")
}

/// `/upload/storage/v1/b/BUCKET/o`.
pub(crate) async fn upload(services: &Arc<Services>, call: Call, bucket: &str) -> HandlerResult {
    const PERMISSION: &str = "storage.objects.create";
    if let (Some(id), "PUT" | "DELETE") =
        (call.query.get("upload_id").cloned(), call.method.as_str())
    {
        return resumable::resume(services, call, &id).await;
    }
    if call.method != Method::POST {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Ok(error(status, "methodNotAllowed", "Method not allowed."));
    }
    services.recorder.count(|counters| counters.uploads_started += 1);
    admit(services, &call, bucket, PERMISSION)?;
    let has = |name| call.headers.contains_key(name);
    if !has(header::CONTENT_LENGTH) && !has(header::TRANSFER_ENCODING) {
        return Ok(error(StatusCode::LENGTH_REQUIRED, "required", "Length Required"));
    }
    match call.query.get("uploadType").map(String::as_str) {
        Some("media") => single_request_upload::media(services, call, bucket).await,
        Some("multipart") => single_request_upload::multipart(services, call, bucket).await,
        Some("resumable") => resumable::open(services, call, bucket).await,
        _ => Ok(invalid("Unknown upload type.")),
    }
}

/// The bucket, if the caller has the permission.
fn get_bucket(services: &Services, call: &Call, bucket: &str, permission: &str) -> HandlerResult {
    admit(services, call, bucket, permission)?;
    record(services, call, OperationKind::Bucket, bucket, "", BTreeMap::new());
    require(services, permission)?;
    bucket_response(services.objects.bucket(bucket))
}

/// Which of the named permissions the caller has; this request requires no permission.
async fn test_permissions(services: &Services, call: &Call, bucket: &str) -> HandlerResult {
    admit(services, call, bucket, "")?;
    record(services, call, OperationKind::Bucket, bucket, "", BTreeMap::new());
    let mut body = json!({"kind": "storage#testIamPermissionsResponse"});
    let held = call.permissions.iter().filter(|permission| !services.lacks(permission));
    let held: Vec<_> = held.collect();
    if !held.is_empty() {
        body["permissions"] = json!(held);
    }
    let fault = services.faults.take(Stage::Permissions, Subject::path(bucket));
    apply_after(fault, Response::json(StatusCode::OK, &body)).await
}

async fn list(services: &Services, call: &Call, bucket: &str) -> HandlerResult {
    const PERMISSION: &str = "storage.objects.list";
    admit(services, call, bucket, PERMISSION)?;
    services.recorder.count(|counters| counters.lists += 1);
    let listing = Listing::from_query(&call.query)
        .map_err(|parameter| invalid_parameter(&call.query, parameter))?;
    let prefix = listing.prefix();
    record(services, call, OperationKind::List, bucket, prefix, BTreeMap::new());
    require(services, PERMISSION)?;
    let body = listing.page(services.objects.list(bucket, prefix));
    let subject = format!("{bucket}/{prefix}");
    let fault = services.faults.take(Stage::List, Subject::object(&subject, None));
    apply_after(fault, Response::json(StatusCode::OK, &body)).await
}

async fn read(services: &Services, call: &Call, bucket: &str, name: &str) -> HandlerResult {
    const PERMISSION: &str = "storage.objects.get";
    admit(services, call, bucket, PERMISSION)?;
    let download = call.query.get("alt").is_some_and(|alt| alt == "media");
    let (stage, kind) = if download {
        services.recorder.count(|counters| counters.media_gets += 1);
        (Stage::Download, OperationKind::Download)
    } else {
        services.recorder.count(|counters| counters.metadata_gets += 1);
        (Stage::Stat, OperationKind::Stat)
    };
    record(services, call, kind, bucket, name, BTreeMap::new());
    require(services, PERMISSION)?;
    let (generation, conditions) = (generation(call)?, conditions(call)?);
    let response = match services.objects.read(bucket, name, generation, &conditions) {
        Ok(object) if download => content(&object, &call.headers),
        Ok(object) => Response::json(StatusCode::OK, &object.metadata),
        Err(StoreError::Precondition(FailedCondition::NotMatch)) => {
            Response::empty(StatusCode::NOT_MODIFIED)
        }
        // Only a caller that may list learns that an object does not exist.
        Err(StoreError::NoSuchObject) if services.lacks("storage.objects.list") => {
            forbidden("storage.objects.list")
        }
        Err(problem) => refused(problem, bucket, name),
    };
    apply_after(take(services, stage, bucket, name), response).await
}

async fn delete(services: &Services, call: &Call, bucket: &str, name: &str) -> HandlerResult {
    const PERMISSION: &str = "storage.objects.delete";
    admit(services, call, bucket, PERMISSION)?;
    services.recorder.count(|counters| counters.deletes += 1);
    record(services, call, OperationKind::Delete, bucket, name, BTreeMap::new());
    require(services, PERMISSION)?;
    let (generation, conditions) = (generation(call)?, conditions(call)?);
    apply_before(take(services, Stage::Delete, bucket, name)).await?;
    let metadata = services.objects.metadata(bucket, name);
    if let Err(problem) =
        services.objects.delete(bucket, name, generation, &conditions, now(services))
    {
        return Ok(refused(problem, bucket, name));
    }
    services.recorder.applied(call.number);
    let path = format!("{bucket}/{name}");
    let custom = metadata.as_ref().and_then(|metadata| metadata.get("metadata"));
    let fault = services.faults.take(Stage::DeleteEnd, Subject::object(&path, custom));
    apply_after(fault, Response::empty(StatusCode::NO_CONTENT)).await
}

fn patch(services: &Services, call: &Call, bucket: &str, name: &str, body: &[u8]) -> HandlerResult {
    const PERMISSION: &str = "storage.objects.update";
    admit(services, call, bucket, PERMISSION)?;
    record(services, call, OperationKind::Patch, bucket, name, BTreeMap::new());
    require(services, PERMISSION)?;
    let (fields, conditions) = (metadata_fields(body)?, conditions(call)?);
    match services.objects.patch(bucket, name, &fields, &conditions, now(services)) {
        Ok(resource) => {
            services.recorder.applied(call.number);
            Ok(Response::json(StatusCode::OK, &resource))
        }
        Err(problem) => Ok(refused(problem, bucket, name)),
    }
}

/// The next fault for a stored object.
fn take(services: &Services, stage: Stage, bucket: &str, name: &str) -> Option<Fault> {
    let path = format!("{bucket}/{name}");
    let metadata = services.objects.metadata(bucket, name);
    let custom = metadata.as_ref().and_then(|metadata| metadata.get("metadata"));
    services.faults.take(stage, Subject::object(&path, custom))
}

/// The object's content, or the requested range of it.
fn content(object: &StoredObject, headers: &HeaderMap) -> Response {
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
    let mut response = Response { body: bytes, ..Response::empty(status) }
        .with("content-type", meta("contentType"))
        .with("etag", meta("etag"))
        .with("x-goog-hash", format!("crc32c={},md5={}", meta("crc32c"), meta("md5Hash")))
        .with("x-goog-generation", meta("generation"))
        .with("x-goog-metageneration", meta("metageneration"))
        .with("x-goog-storage-class", meta("storageClass"))
        .with("x-goog-stored-content-encoding", "identity")
        .with("x-goog-stored-content-length", size.to_string());
    for (field, header) in
        [("cacheControl", "cache-control"), ("contentDisposition", "content-disposition")]
    {
        if !meta(field).is_empty() {
            response = response.with(header, meta(field));
        }
    }
    match content_range {
        Some(range) => response.with("content-range", range),
        None => response,
    }
}

#[derive(Debug, PartialEq)]
enum Range {
    Whole,
    /// First and last byte.
    Part(usize, usize),
    Unsatisfiable,
}

/// Reads one range. An invalid value, or several ranges, are ignored, as HTTP allows.
fn parse_range(value: &str, size: usize) -> Range {
    let Some((first, last)) = value.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
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

/// The settings of a bucket that are stored and shown, and change nothing else.
const BUCKET_SETTINGS: &[&str] = &["cors", "labels", "location", "storageClass", "website"];
