//! Objects made from other objects: `copy`, `rewrite` and `compose`.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::objects::{NewObject, StoredObject};
use crate::preconditions::Preconditions;
use crate::recorder::OperationKind;
use crate::response::{HandlerResult, Refusal, Response};
use crate::services::{Call, Services};
use crate::storage_access::{admit, conditions, now, record, refused, require};
use crate::storage_error::{invalid, invalid_parameter};
use crate::upload::metadata_fields;

/// The place of an object: bucket and name.
type Place<'a> = (&'a str, &'a str);

/// `POST …/o/SOURCE/copyTo/b/BUCKET/o/NAME`.
pub(crate) fn copy(
    services: &Services,
    call: &Call,
    from: Place<'_>,
    to: Place<'_>,
    body: &[u8],
) -> HandlerResult {
    let resource = make_copy(services, call, from, to, body)?;
    Ok(Response::json(StatusCode::OK, &resource))
}

/// `POST …/o/SOURCE/rewriteTo/b/BUCKET/o/NAME`; always done in one request.
pub(crate) fn rewrite(
    services: &Services,
    call: &Call,
    from: Place<'_>,
    to: Place<'_>,
    body: &[u8],
) -> HandlerResult {
    let resource = make_copy(services, call, from, to, body)?;
    let size = resource.get("size").cloned().unwrap_or_else(|| "0".into());
    let body = json!({
        "kind": "storage#rewriteResponse",
        "totalBytesRewritten": size,
        "objectSize": size,
        "done": true,
        "resource": resource,
    });
    Ok(Response::json(StatusCode::OK, &body))
}

/// `POST …/o/NAME/compose`: joins the contents of up to 32 objects.
pub(crate) fn compose(
    services: &Services,
    call: &Call,
    to: Place<'_>,
    body: &[u8],
) -> HandlerResult {
    let request = metadata_fields(body)?;
    let sources = request.get("sourceObjects").and_then(Value::as_array);
    let sources = sources.filter(|sources| (1..=MOST_SOURCES).contains(&sources.len()));
    let Some(sources) = sources else {
        return Ok(invalid("The number of source components must be between 1 and 32."));
    };
    let destination = request.get("destination").and_then(Value::as_object);
    begin(services, call, to)?;
    let mut bytes = Vec::new();
    for source in sources {
        let name = source["name"].as_str().unwrap_or_default();
        let generation = source["generation"].as_str().and_then(|text| text.parse().ok());
        bytes.extend_from_slice(&find(services, call, (to.0, name), generation)?.bytes);
    }
    let fields = destination.cloned().unwrap_or_default();
    let resource = store(services, call, to, (fields, Some(sources.len())), bytes.into())?;
    Ok(Response::json(StatusCode::OK, &resource))
}

fn make_copy(
    services: &Services,
    call: &Call,
    from: Place<'_>,
    to: Place<'_>,
    body: &[u8],
) -> Result<Value, Refusal> {
    begin(services, call, to)?;
    admit(services, call, from.0, "storage.objects.get")?;
    let generation = call.query.get("sourceGeneration").and_then(|text| text.parse().ok());
    let source = find(services, call, from, generation)?;
    let mut fields = source.metadata.as_object().cloned().unwrap_or_default();
    if !body.is_empty() {
        fields.extend(metadata_fields(body)?);
    }
    store(services, call, to, (fields, None), source.bytes)
}

fn begin(services: &Services, call: &Call, (bucket, name): Place<'_>) -> Result<(), Refusal> {
    admit(services, call, bucket, "storage.objects.create")?;
    record(services, call, OperationKind::Copy, bucket, name, BTreeMap::new());
    require(services, "storage.objects.create")?;
    require(services, "storage.objects.get")
}

fn find(
    services: &Services,
    call: &Call,
    (bucket, name): Place<'_>,
    generation: Option<i64>,
) -> Result<StoredObject, Refusal> {
    let conditions = Preconditions::on_source(&call.query)
        .map_err(|parameter| invalid_parameter(&call.query, parameter))?;
    let found = services.objects.read(bucket, name, generation, &conditions);
    found.map_err(|problem| refused(problem, bucket, name).into())
}

fn store(
    services: &Services,
    call: &Call,
    (bucket, name): Place<'_>,
    (fields, components): (Map<String, Value>, Option<usize>),
    bytes: Bytes,
) -> Result<Value, Refusal> {
    let content_type = fields.get("contentType").and_then(Value::as_str);
    let new = NewObject {
        bucket: bucket.to_owned(),
        name: name.to_owned(),
        content_type: content_type.unwrap_or("application/octet-stream").to_owned(),
        fields: fields.clone(),
        bytes,
        components,
    };
    let resource = services
        .objects
        .put(new, &conditions(call)?, now(services))
        .map_err(|problem| refused(problem, bucket, name))?;
    services.recorder.applied(call.number);
    Ok(resource)
}

const MOST_SOURCES: usize = 32;
