//! What every request to Cloud Storage passes: credentials, the bucket, a permission, valid
//! parameters.

use std::collections::BTreeMap;

use http::StatusCode;
use http::header::AUTHORIZATION;

use crate::objects::{Moment, StoreError};
use crate::options::Retention;
use crate::preconditions::Preconditions;
use crate::recorder::{OperationKind, StorageOperation};
use crate::response::{Refusal, Response};
use crate::services::{Call, Services};
use crate::storage_error::{error, forbidden, invalid_parameter, located, no_such_bucket};
use crate::tokens::Denied;

/// Requires valid credentials and a bucket that exists.
pub(crate) fn admit(
    services: &Services,
    call: &Call,
    bucket: &str,
    permission: &str,
) -> Result<(), Refusal> {
    admit_credentials(services, call, permission)?;
    if services.objects.has_bucket(bucket) {
        return Ok(());
    }
    Err(no_such_bucket())
}

/// Requires valid credentials.
pub(crate) fn admit_credentials(
    services: &Services,
    call: &Call,
    permission: &str,
) -> Result<(), Refusal> {
    if services.objects.rules().anonymous && !call.headers.contains_key(AUTHORIZATION) {
        return Ok(());
    }
    services.tokens.admit(&call.headers).map_err(|denied| unauthorized(denied, permission).into())
}

fn unauthorized(denied: Denied, permission: &str) -> Response {
    let challenge = "Bearer realm=\"https://accounts.google.com/\"";
    let status = StatusCode::UNAUTHORIZED;
    match denied {
        Denied::Missing => {
            let message = format!(
                "Anonymous caller does not have {permission} access to the Google Cloud Storage {}. \
                 Permission '{permission}' denied on resource (or it may not exist).",
                if permission.starts_with("storage.buckets") { "bucket" } else { "object" },
            );
            located(status, "required", &message, "Authorization")
                .with("www-authenticate", challenge)
        }
        Denied::Expired | Denied::Unknown => {
            located(status, "authError", "Invalid Credentials", "Authorization")
                .with("www-authenticate", format!("{challenge}, error=\"invalid_token\""))
        }
    }
}

/// Requires a permission of the caller.
pub(crate) fn require(services: &Services, permission: &str) -> Result<(), Refusal> {
    if services.lacks(permission) { Err(forbidden(permission).into()) } else { Ok(()) }
}

/// Records the operation that a request asks for.
pub(crate) fn record(
    services: &Services,
    call: &Call,
    kind: OperationKind,
    bucket: &str,
    object: &str,
    metadata: BTreeMap<String, String>,
) {
    let is_condition = |(name, _): &(&String, &String)| {
        name.starts_with("if") || matches!(name.as_str(), "generation")
    };
    let owned = |(name, value): (&String, &String)| (name.clone(), value.clone());
    let operation = StorageOperation {
        kind,
        bucket: bucket.to_owned(),
        object: object.to_owned(),
        conditions: call.query.iter().filter(is_condition).map(owned).collect(),
        metadata,
        applied: false,
        status: None,
    };
    services.recorder.operation(call.number, operation);
}

pub(crate) fn now(services: &Services) -> Moment {
    Moment { time: services.clock.now(), instant: tokio::time::Instant::now() }
}

pub(crate) fn conditions(call: &Call) -> Result<Preconditions, Refusal> {
    Preconditions::from_query(&call.query)
        .map_err(|parameter| invalid_parameter(&call.query, parameter))
}

pub(crate) fn generation(call: &Call) -> Result<Option<i64>, Refusal> {
    let generation = call.query.get("generation").map(|text| text.parse()).transpose();
    generation.map_err(|_| invalid_parameter(&call.query, "generation"))
}

/// The response to an operation that the store did not carry out.
pub(crate) fn refused(problem: StoreError, bucket: &str, name: &str) -> Response {
    match problem {
        StoreError::Precondition(_) => {
            let message = "At least one of the pre-conditions you specified did not hold.";
            located(StatusCode::PRECONDITION_FAILED, "conditionNotMet", message, "If-Match")
        }
        StoreError::NoSuchObject => {
            error(StatusCode::NOT_FOUND, "notFound", &format!("No such object: {bucket}/{name}"))
        }
        StoreError::Forbidden(permission) => forbidden(permission),
        StoreError::Retained(Retention::Policy) => {
            let message = format!(
                "Object '{bucket}/{name}' is subject to bucket's retention policy and cannot be deleted, \
                 overwritten or archived until 2099-12-31T16:00:00.000000-08:00"
            );
            error(StatusCode::FORBIDDEN, "retentionPolicyNotMet", &message)
        }
        StoreError::Retained(Retention::Hold) => {
            let message = format!(
                "Object '{bucket}/{name}' is under active Temporary hold and cannot be deleted, \
                 overwritten or archived until hold is removed."
            );
            error(StatusCode::FORBIDDEN, "objectUnderActiveHold", &message)
        }
        StoreError::TooManyMutations => {
            let message = format!(
                "The object {bucket}/{name} exceeded the rate limit for object mutation operations \
                 (create, update, and delete). Please reduce your request rate. \
                 See https://cloud.google.com/storage/docs/gcs429."
            );
            error(StatusCode::TOO_MANY_REQUESTS, "rateLimitExceeded", &message)
        }
        StoreError::Io(problem) => {
            error(StatusCode::INTERNAL_SERVER_ERROR, "internalError", &problem.to_string())
        }
    }
}
