//! Resumable uploads: a POST opens a session, PUTs bring its chunks.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Map;

use crate::faults::{Action, Stage, apply_before};
use crate::response::{HandlerResult, Refusal, Response};
use crate::services::{Call, Services};
use crate::sessions::{ContentRange, State, UNIT_BYTES};
use crate::storage_access::refused;
use crate::storage_error::{error, invalid};
use crate::upload::{apply_at_start, begin, commit, confirm, drain, metadata_fields, spec, take};
use crate::upload_spec::UploadSpec;

/// The POST that opens a session.
pub(crate) async fn open(services: &Services, mut call: Call, bucket: &str) -> HandlerResult {
    let body = call.body.all().await?;
    services.recorder.body(call.number, &body);
    let fields = if body.is_empty() { Map::new() } else { metadata_fields(&body)? };
    let mut upload = spec(services, &call, bucket, fields)?;
    let declared_type = call.header("x-upload-content-type").map(str::to_owned);
    upload.content_type = upload.content_type.or(declared_type);
    let length = call.header("x-upload-content-length").and_then(|length| length.parse().ok());
    begin(services, &call, &upload)?;
    apply_at_start(services, &mut call.body, &upload).await?;
    if let Err(problem) = services.objects.check(bucket, &upload.name, &upload.conditions) {
        services.recorder.count(|counters| counters.uploads_refused += 1);
        return Ok(refused(problem, bucket, &upload.name));
    }
    let name = utf8_percent_encode(&upload.name, NON_ALPHANUMERIC).to_string();
    let id = services.sessions.open(upload, length);
    let (addr, query) = (services.addr, format!("uploadType=resumable&name={name}&upload_id={id}"));
    let location = format!("http://{addr}/upload/storage/v1/b/{bucket}/o?{query}");
    Ok(Response::empty(StatusCode::OK).with("location", location).with("x-guploader-uploadid", id))
}

/// A PUT or DELETE to a session, which needs no token.
pub(crate) async fn resume(services: &Arc<Services>, mut call: Call, id: &str) -> HandlerResult {
    let upload = open_upload(services, id)?;
    if call.method == Method::DELETE {
        services.sessions.with(id, |session| session.state = State::Cancelled)?;
        return Ok(Response::empty(StatusCode::from_u16(499).expect("three digits are a status")));
    }
    let range = content_range(&call)?;
    begin(services, &call, &upload)?;
    if range.first.is_some() {
        apply_within(services, &mut call, id, &upload, &range).await?;
    }
    let body = call.body.all().await?;
    let stored = services.sessions.with(id, |session| session.store(&range, &body))??;
    let Some(bytes) = stored else {
        return services.sessions.with(id, |session| session.progress());
    };
    upload.verify(&call.headers, &bytes)?;
    let resource = commit(services, call.number, &upload, bytes).await?;
    services.sessions.with(id, |session| {
        session.received = Vec::new();
        session.state = State::Finished(resource.clone());
    })?;
    confirm(services, &upload, resource).await
}

/// The upload of an open session; one that has ended has its response already.
fn open_upload(services: &Services, id: &str) -> Result<UploadSpec, Refusal> {
    services.sessions.with(id, |session| match &session.state {
        State::Open => Ok(session.upload.clone()),
        State::Finished(resource) => Err(Response::json(StatusCode::OK, resource).into()),
        State::Cancelled => {
            Err(error(StatusCode::GONE, "gone", "The upload session was cancelled.").into())
        }
    })?
}

fn content_range(call: &Call) -> Result<ContentRange, Refusal> {
    let Some(value) = call.headers.get(header::CONTENT_RANGE) else {
        return Ok(ContentRange::WHOLE);
    };
    let range = value.to_str().ok().and_then(ContentRange::parse);
    range.ok_or_else(|| invalid("Failed to parse Content-Range header.").into())
}

/// Lets a fault break a chunk off; the session keeps whole units of what came before, as Google's
/// does.
async fn apply_within(
    services: &Services,
    call: &mut Call,
    id: &str,
    upload: &UploadSpec,
    range: &ContentRange,
) -> Result<(), Refusal> {
    let Some(fault) = take(services, Stage::UploadBody, upload) else {
        return Ok(());
    };
    call.body.at_least(fault.after).await?;
    if matches!(fault.action, Action::Delay { .. } | Action::WrongChecksum) {
        return apply_before(Some(fault)).await;
    }
    let read = usize::try_from(fault.after).unwrap_or(usize::MAX).min(call.body.read.len());
    let kept = Bytes::copy_from_slice(&call.body.read[..read - read % UNIT_BYTES]);
    drain(Some(&fault), &mut call.body).await?;
    let part = ContentRange { first: range.first, last: None, total: None };
    services.sessions.with(id, |session| session.store(&part, &kept))??;
    if matches!(fault.action, Action::Truncate) {
        return Err(services.sessions.with(id, |session| session.progress())?.into());
    }
    apply_before(Some(fault)).await
}
