//! A fast fake of Google's services: its answers are computed before the first request, and of an upload it keeps
//! nothing but the checksum. What is uploaded must be the picture that was sent, byte for byte.
//!
//! `upstream PICTURE_BYTES [LATENCY_MS]` prints its address, then serves until it is killed. The latency is the
//! model's alone.

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
use iga_benches::{ANSWER_HEAD, ANSWER_TAIL, Args, picture};
use memchr::memmem;
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::net::TcpListener;

#[derive(Clone)]
struct Fake {
    latency: Duration,
    answer: Bytes,
    picture_bytes: usize,
    crc32c: u32,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut args = Args::new("upstream PICTURE_BYTES [LATENCY_MS]");
    let picture = picture(args.number());
    let latency = Duration::from_millis(args.number_or(0) as u64);
    let answer = [ANSWER_HEAD, &BASE64_STANDARD.encode(&picture), ANSWER_TAIL].concat();
    let fake = Fake {
        latency,
        answer: answer.into(),
        picture_bytes: picture.len(),
        crc32c: crc32c::crc32c(&picture),
    };
    drop(picture);
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

/// Of all else the metadata server tells, clients ask for the account's name and its scopes.
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
    Ok((JSON, fake.answer).into_response())
}

async fn permissions() -> impl IntoResponse {
    (JSON, r#"{"permissions":["storage.objects.create"]}"#)
}

/// A multipart upload, or the beginning of a resumable one ("Uploads and downloads", Cloud Storage).
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
    // The media stand after the second empty line: that of the metadata's part, then that of their own.
    let mut body = Upload { body, read: Bytes::new() };
    for _ in 0..2 {
        body.skip_to(b"\r\n\r\n").await?;
    }
    body.check(&fake).await
}

/// The rest of a resumable upload, in one piece.
async fn put(State(fake): State<Fake>, body: Body) -> Result<Response, StatusCode> {
    Upload { body, read: Bytes::new() }.check(&fake).await
}

struct Upload {
    body: Body,
    /// What has been received and not looked at.
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
        let piece = frame.into_data().unwrap_or_default();
        self.read = match self.read.is_empty() {
            true => piece,
            false => BytesMut::from_iter(self.read.iter().chain(&piece)).freeze(),
        };
        Ok(())
    }

    async fn skip_to(&mut self, mark: &[u8]) -> Result<(), StatusCode> {
        loop {
            if let Some(place) = memmem::find(&self.read, mark) {
                self.read.advance(place + mark.len());
                return Ok(());
            }
            self.more().await?;
        }
    }

    /// Reads to the end; of what comes, the first `picture_bytes` must be the picture.
    async fn check(mut self, fake: &Fake) -> Result<Response, StatusCode> {
        let (mut missing, mut crc32c) = (fake.picture_bytes, 0);
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
            "name": "picture.png",
            "bucket": "benchmark",
            "generation": "1",
            "metageneration": "1",
            "size": fake.picture_bytes.to_string(),
            "crc32c": BASE64_STANDARD.encode(crc32c.to_be_bytes()),
            "updated": "2026-01-01T00:00:00.000Z",
        });
        Ok((JSON, object.to_string()).into_response())
    }
}

const JSON: [(axum::http::HeaderName, &str); 1] =
    [(CONTENT_TYPE, "application/json; charset=UTF-8")];
