//! Cloud Storage's JSON API, uploads aside; and the errors that it answers with.

use std::collections::BTreeMap;

use http::{HeaderMap, StatusCode, header};
use serde_json::json;

use crate::faults::{Stage, hinder, spoil};
use crate::metadata::Denied;
use crate::objects::{Failed, Preconditions, StoredObject, Unmet};
use crate::storage_error::{error, invalid, located};
use crate::wire::{Answer, Handled, Refusal};
use crate::{Call, Services};

/// `/storage/v1/b/BUCKET…`: everything but uploads.
pub(crate) async fn objects(
    services: &Services,
    call: &Call,
    bucket: &str,
    rest: &[&str],
) -> Handled {
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
            let items =
                services.objects.list(bucket, call.query.get("prefix").map_or("", String::as_str));
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
    let is_held = |permission: &&String| !services.options.withheld.contains(permission);
    let held: Vec<_> = call.permissions.iter().filter(is_held).collect();
    if !held.is_empty() {
        body["permissions"] = json!(held);
    }
    Ok(Answer::json(StatusCode::OK, &body))
}

async fn read(services: &Services, call: &Call, bucket: &str, name: &str) -> Handled {
    let media = call.query.get("alt").is_some_and(|alt| alt == "media");
    services.count(
        |counters| if media { counters.media_gets += 1 } else { counters.metadata_gets += 1 },
    );
    enter(services, call, bucket, "storage.objects.get")?;
    let (generation, conditions) = (generation(call)?, conditions(call)?);
    let fault = services.faults.take(Stage::Read, &format!("{bucket}/{name}"));
    let answer = match services.objects.read(bucket, name, generation, &conditions) {
        Ok(object) if media => content(&object, &call.headers),
        Ok(object) => Answer::json(StatusCode::OK, &object.metadata),
        Err(Unmet::Precondition(Failed::NotMatch)) => Answer::empty(StatusCode::NOT_MODIFIED),
        Err(unmet) => refused(unmet, bucket, name),
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
        Err(unmet) => refused(unmet, bucket, name),
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
    for (field, header) in
        [("cacheControl", "cache-control"), ("contentDisposition", "content-disposition")]
    {
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

/// Lets in who has a token and names a bucket that exists.
pub(crate) fn enter(
    services: &Services,
    call: &Call,
    bucket: &str,
    permission: &str,
) -> Result<(), Refusal> {
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
        let message =
            format!("Permission '{permission}' denied on resource (or it may not exist).");
        return Err(error(StatusCode::FORBIDDEN, "forbidden", &message).into());
    }
    if services.objects.has_bucket(bucket) {
        return Ok(());
    }
    Err(error(StatusCode::NOT_FOUND, "notFound", "The specified bucket does not exist.").into())
}

pub(crate) fn conditions(call: &Call) -> Result<Preconditions, Refusal> {
    Preconditions::from_query(&call.query)
        .map_err(|parameter| invalid_parameter(&call.query, parameter))
}

fn generation(call: &Call) -> Result<Option<i64>, Refusal> {
    let generation = call.query.get("generation").map(|text| text.parse()).transpose();
    generation.map_err(|_| invalid_parameter(&call.query, "generation"))
}

fn invalid_parameter(query: &BTreeMap<String, String>, parameter: &str) -> Refusal {
    let value = query.get(parameter).map_or("", String::as_str);
    invalid(&format!("Invalid value '{value}' for parameter {parameter}.")).into()
}

pub(crate) fn refused(unmet: Unmet, bucket: &str, name: &str) -> Answer {
    match unmet {
        Unmet::Precondition(_) => {
            let message = "At least one of the pre-conditions you specified did not hold.";
            located(StatusCode::PRECONDITION_FAILED, "conditionNotMet", message, "If-Match")
        }
        Unmet::NoSuchObject => {
            error(StatusCode::NOT_FOUND, "notFound", &format!("No such object: {bucket}/{name}"))
        }
        Unmet::Io(problem) => {
            error(StatusCode::INTERNAL_SERVER_ERROR, "internalError", &problem.to_string())
        }
    }
}
