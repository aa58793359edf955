//! A fast fake of Google's services. It computes its responses before the first request and keeps only the checksum
//! of an upload. An upload must be the image of the model's response, byte for byte.
//!
//! `upstream IMAGE_BYTES [LATENCY_MS]` prints its address, then serves until it is killed. Only the model has the
//! latency.

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header::{CONTENT_TYPE, HOST, LOCATION};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use iga_benches::{Args, RESPONSE_HEAD, RESPONSE_TAIL, image};
use memchr::memmem;
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::net::TcpListener;

#[derive(Clone)]
struct Fake {
    latency: Duration,
    response: Bytes,
    image_bytes: usize,
    crc32c: u32,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut args = Args::new("upstream IMAGE_BYTES [LATENCY_MS]");
    let image = image(args.number());
    let latency = Duration::from_millis(args.number_or(0) as u64);
    let response = [RESPONSE_HEAD, &BASE64_STANDARD.encode(&image), RESPONSE_TAIL].concat();
    let fake = Fake {
        latency,
        response: response.into(),
        image_bytes: image.len(),
        crc32c: crc32c::crc32c(&image),
    };
    drop(image);
    let router = Router::new()
        .route("/", get(|| async { METADATA_FLAVOR }))
        .route("/computeMetadata/v1/instance/service-accounts/{account}/token", get(token))
        .route("/computeMetadata/v1/{*rest}", get(metadata))
        .route("/v1/projects/{*model}", post(predict))
        .route("/v1beta1/projects/{*model}", post(predict))
        .route("/storage/v1/b/{bucket}/iam/testPermissions", get(permissions))
        .route("/upload/storage/v1/b/{bucket}/o", post(upload).put(put))
        .with_state(fake);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    axum::serve(listener.tap_io(|stream| drop(stream.set_nodelay(true))), router).await
}

const METADATA_FLAVOR: [(&str, &str); 1] = [("Metadata-Flavor", "Google")];

/// "Google Cloud metadata server": an access token.
async fn token() -> impl IntoResponse {
    let token = json!({"access_token": "benchmark", "expires_in": 3599, "token_type": "Bearer"});
    (METADATA_FLAVOR, JSON, token.to_string())
}

/// Any other metadata: clients ask for the name of the account and its scopes.
async fn metadata() -> impl IntoResponse {
    let account = json!({"aliases": ["default"], "email": "benchmark@example.com", "scopes": []});
    (METADATA_FLAVOR, JSON, account.to_string())
}

async fn predict(State(fake): State<Fake>, body: Body) -> Result<Response, StatusCode> {
    let request = body.collect().await.map_err(|_| StatusCode::BAD_REQUEST)?.to_bytes();
    if memmem::find(&request, b"prompt").is_none() {
        return Err(StatusCode::BAD_REQUEST);
    }
    if !fake.latency.is_zero() {
        tokio::time::sleep(fake.latency).await;
    }
    Ok((JSON, fake.response).into_response())
}

async fn permissions() -> impl IntoResponse {
    (JSON, r#"{"permissions":["storage.objects.create"]}"#)
}

/// A multipart upload, or the start of a resumable one ("Uploads and downloads", Cloud Storage).
async fn upload(
    State(fake): State<Fake>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, StatusCode> {
    if query.is_some_and(|query| query.contains("uploadType=resumable")) {
        let host =
            headers.get(HOST).and_then(|host| host.to_str().ok()).ok_or(StatusCode::BAD_REQUEST)?;
        return Ok(
            [(LOCATION, format!("http://{host}/upload/storage/v1/b/benchmark/o"))].into_response()
        );
    }
    // Two empty lines come before the media: one in the part of the metadata, one in the part of the media.
    let mut body = Upload { body, read: Bytes::new() };
    for _ in 0..2 {
        body.skip_past(b"\r\n\r\n").await?;
    }
    body.check(&fake).await
}

/// The media of a resumable upload, in one request.
async fn put(State(fake): State<Fake>, body: Body) -> Result<Response, StatusCode> {
    Upload { body, read: Bytes::new() }.check(&fake).await
}

struct Upload {
    body: Body,
    /// Bytes received but not processed yet.
    read: Bytes,
}

impl Upload {
    async fn more(&mut self) -> Result<(), StatusCode> {
        let frame = self
            .body
            .frame()
            .await
            .ok_or(StatusCode::BAD_REQUEST)?
            .map_err(|_| StatusCode::BAD_REQUEST)?;
        let chunk = frame.into_data().unwrap_or_default();
        self.read = match self.read.is_empty() {
            true => chunk,
            false => BytesMut::from_iter(self.read.iter().chain(&chunk)).freeze(),
        };
        Ok(())
    }

    async fn skip_past(&mut self, mark: &[u8]) -> Result<(), StatusCode> {
        loop {
            if let Some(position) = memmem::find(&self.read, mark) {
                self.read.advance(position + mark.len());
                return Ok(());
            }
            self.more().await?;
        }
    }

    /// Reads the body to its end. Its first `image_bytes` bytes must be the image.
    async fn check(mut self, fake: &Fake) -> Result<Response, StatusCode> {
        let mut missing = fake.image_bytes;
        let mut crc32c = 0;
        loop {
            let part = self.read.split_to(missing.min(self.read.len()));
            crc32c = crc32c::crc32c_append(crc32c, &part);
            missing -= part.len();
            if missing == 0 {
                break;
            }
            self.more().await?;
        }
        while let Some(frame) = self.body.frame().await {
            frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        }
        if crc32c != fake.crc32c {
            return Err(StatusCode::BAD_REQUEST);
        }
        let object = json!({
            "kind": "storage#object",
            "name": "image.png",
            "bucket": "benchmark",
            "generation": "1",
            "metageneration": "1",
            "size": fake.image_bytes.to_string(),
            "crc32c": BASE64_STANDARD.encode(crc32c.to_be_bytes()),
            "updated": "2026-01-01T00:00:00.000Z",
        });
        Ok((JSON, object.to_string()).into_response())
    }
}

const JSON: [(axum::http::HeaderName, &str); 1] =
    [(CONTENT_TYPE, "application/json; charset=UTF-8")];
