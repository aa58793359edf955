//! What all kinds of uploads share: their faults, and storing the object.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value};

use crate::body_reader::BodyReader;
use crate::faults::{Action, Fault, Stage, Subject, apply_after, apply_before};
use crate::objects::{NewObject, StoreError, crc32c};
use crate::recorder::OperationKind;
use crate::response::{HandlerResult, Refusal, Response};
use crate::services::{Call, Services};
use crate::storage_access::{now, record, refused, require};
use crate::storage_error::error;
use crate::upload_spec::UploadSpec;

/// Reads the upload's parameters.
pub(crate) fn spec(
    services: &Services,
    call: &Call,
    bucket: &str,
    fields: Map<String, Value>,
) -> Result<UploadSpec, Refusal> {
    let exists = |name: &str| services.objects.metadata(bucket, name).is_some();
    UploadSpec::new(&call.query, bucket, fields, exists)
}

/// Records the upload and checks that the caller may create objects.
pub(crate) fn begin(services: &Services, call: &Call, upload: &UploadSpec) -> Result<(), Refusal> {
    let custom = upload.fields.get("metadata").and_then(Value::as_object);
    let text = |(key, value): (&String, &Value)| {
        (key.clone(), value.as_str().unwrap_or_default().to_owned())
    };
    let metadata: BTreeMap<_, _> = custom.into_iter().flatten().map(text).collect();
    let (bucket, name) = (&upload.bucket, &upload.name);
    record(services, call, OperationKind::Insert, bucket, name, metadata);
    require(services, "storage.objects.create")
}

/// The next fault for an upload.
pub(crate) fn take(services: &Services, stage: Stage, upload: &UploadSpec) -> Option<Fault> {
    let path = upload.path();
    let subject = Subject::object(&path, upload.fields.get("metadata"));
    services.faults.take(stage, Subject { write: Some(upload.write), ..subject })
}

/// The faults before an upload's media is read.
pub(crate) async fn apply_at_start(
    services: &Services,
    body: &mut BodyReader,
    upload: &UploadSpec,
) -> Result<(), Refusal> {
    let fault = take(services, Stage::UploadStart, upload);
    drain(fault.as_ref(), body).await?;
    apply_before(fault).await
}

/// Reads the body to its end if the fault sends a response or closes the connection without an RST.
pub(crate) async fn drain(fault: Option<&Fault>, body: &mut BodyReader) -> Result<(), Refusal> {
    let Some(fault) = fault else { return Ok(()) };
    match fault.action {
        Action::Response(_) | Action::Truncate => while body.more().await? {},
        Action::Delay { .. } | Action::Stall | Action::Reset | Action::WrongChecksum => {}
    }
    Ok(())
}

/// Makes the object, and responds with its metadata unless a fault prevents that.
pub(crate) async fn store(
    services: &Arc<Services>,
    number: usize,
    upload: UploadSpec,
    bytes: Bytes,
) -> HandlerResult {
    let resource = commit(services, number, &upload, bytes).await?;
    confirm(services, &upload, resource).await
}

/// Makes the object and returns its metadata.
pub(crate) async fn commit(
    services: &Arc<Services>,
    number: usize,
    upload: &UploadSpec,
    bytes: Bytes,
) -> Result<Value, Refusal> {
    let default_type = || "application/octet-stream".to_owned();
    let new = NewObject {
        bucket: upload.bucket.clone(),
        name: upload.name.clone(),
        content_type: upload.content_type.clone().unwrap_or_else(default_type),
        fields: upload.fields.clone(),
        bytes,
        components: None,
    };
    let put = {
        let (services, conditions) = (services.clone(), upload.conditions.clone());
        let at = now(&services);
        tokio::task::spawn_blocking(move || services.objects.put(new, &conditions, at))
    };
    let stored = put.await.unwrap_or_else(|error| Err(StoreError::Io(error.into())));
    // Before the counters change, so that those who wait for them find it.
    if stored.is_ok() {
        services.recorder.applied(number);
    }
    services.recorder.count(|counters| match &stored {
        Ok(_) => counters.uploads_completed += 1,
        Err(StoreError::Precondition(_)) => counters.uploads_refused += 1,
        Err(_) => {}
    });
    Ok(stored.map_err(|problem| refused(problem, &upload.bucket, &upload.name))?)
}

/// Responds with the object's metadata unless a fault prevents that.
pub(crate) async fn confirm(
    services: &Services,
    upload: &UploadSpec,
    mut resource: Value,
) -> HandlerResult {
    let fault = take(services, Stage::UploadEnd, upload);
    if matches!(&fault, Some(Fault { action: Action::WrongChecksum, .. })) {
        resource["crc32c"] = crc32c(upload.name.as_bytes()).into();
    }
    apply_after(fault, Response::json(StatusCode::OK, &resource)).await
}

/// Parses the metadata that comes with an upload.
pub(crate) fn metadata_fields(json: &[u8]) -> Result<Map<String, Value>, Refusal> {
    serde_json::from_slice(json)
        .map_err(|_| error(StatusCode::BAD_REQUEST, "parseError", "Parse Error").into())
}
