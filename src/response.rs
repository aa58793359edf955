//! HTTP responses: always JSON; an error becomes its row of the contract.

use crate::error::Error;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;

/// The body of an error's response.
#[derive(Serialize)]
struct ErrorBody {
    error_code: &'static str,
    message: &'static str,
    details: String,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let row = self.kind.row();
        let details = self.to_string();
        let mut response =
            json(row.status, &ErrorBody { error_code: row.code, message: row.message, details });
        if let Some(seconds) = self.retry_after_seconds() {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// A response with a JSON body; the fields keep their order.
pub fn json(status: u16, body: &impl Serialize) -> Response {
    let text = serde_json::to_vec(body).expect("strings and lists of strings are JSON");
    let mut response = Response::new(Body::from(text));
    *response.status_mut() =
        StatusCode::from_u16(status).expect("the contract's statuses are HTTP's");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
