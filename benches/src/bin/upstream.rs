//! A fast fake of Google's services. It computes its responses before the first request and keeps
//! only the checksum of an upload. An uploaded image must be that of the model's response, byte for
//! byte.
//!
//! `upstream IMAGE_BYTES [OPTION=VALUE…]` prints its URLs as one JSON object, then serves until it is
//! killed. The model, Cloud Storage and the token endpoint have a port each, as they are different
//! hosts at Google. The metadata server is always plain HTTP; it also serves `/counts`. Options:
//!
//! - `latency_ms`: how long the model takes.
//! - `chunked=true`: the model's response has no `Content-Length`.
//! - `upload_mbit`: reads each upload at that many Mbit/s.
//! - `tls`: a directory with `certificate.pem` and `key.pem`; serves TLS 1.3.
//! - `host`: the IP address to listen on.

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header::{CONTENT_TYPE, HOST, LOCATION};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use iga_benches::{Args, RESPONSE_HEAD, RESPONSE_TAIL, UPLOAD_PATH, image};
use memchr::memmem;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;

struct Fake {
    latency: Duration,
    chunked: bool,
    upload_bytes_per_second: Option<f64>,
    tls: bool,
    response: Bytes,
    image_bytes: usize,
    crc32c: u32,
    generated: AtomicUsize,
    stored: AtomicUsize,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut args =
        Args::new("upstream IMAGE_BYTES [latency_ms|chunked|upload_mbit|tls|host=VALUE…]");
    let image = image(args.positional());
    let tls: Option<PathBuf> = args.option("tls");
    let host = args.option("host").unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let response = [RESPONSE_HEAD, &BASE64_STANDARD.encode(&image), RESPONSE_TAIL].concat();
    let fake = Fake {
        latency: Duration::from_millis(args.option("latency_ms").unwrap_or(0)),
        chunked: args.option("chunked").unwrap_or(false),
        upload_bytes_per_second: args.option("upload_mbit").map(|mbit: f64| mbit * 1e6 / 8.0),
        tls: tls.is_some(),
        response: response.into(),
        image_bytes: image.len(),
        crc32c: crc32c::crc32c(&image),
        generated: AtomicUsize::new(0),
        stored: AtomicUsize::new(0),
    };
    args.end();
    drop(image);
    let acceptor = tls.map(|directory| acceptor(&directory));
    let router = router(Arc::new(fake));
    let mut urls = json!({});
    for name in ["metadata", "model", "storage", "token"] {
        let listener = TcpListener::bind((host, 0)).await?;
        let acceptor = acceptor.clone().filter(|_| name != "metadata");
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        urls[name] = format!("{scheme}://{}", listener.local_addr()?).into();
        tokio::spawn(serve(listener, acceptor, router.clone()));
    }
    println!("{urls}");
    std::future::pending().await
}

fn acceptor(directory: &std::path::Path) -> TlsAcceptor {
    let certificates = CertificateDer::pem_file_iter(directory.join("certificate.pem"))
        .and_then(Iterator::collect)
        .expect("the certificate is readable");
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem")).expect("the key is readable");
    let config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .expect("the key belongs to the certificate");
    TlsAcceptor::from(Arc::new(config))
}

/// Handshakes run beside each other, so that one at a distance does not delay the next.
async fn serve(listener: TcpListener, acceptor: Option<TlsAcceptor>, router: Router) {
    while let Ok((stream, _)) = listener.accept().await {
        let router = router.clone();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            match acceptor {
                Some(acceptor) => serve_connection(acceptor.accept(stream).await?, router).await,
                None => serve_connection(stream, router).await,
            }
            std::io::Result::Ok(())
        });
    }
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let service = TowerToHyperService::new(router);
    // A client may close its connection at any time.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn router(fake: Arc<Fake>) -> Router {
    Router::new()
        .route("/", get(|| async { METADATA_FLAVOR }))
        .route("/counts", get(counts))
        .route("/token", post(token))
        .route("/computeMetadata/v1/instance/service-accounts/{account}/token", get(token))
        .route("/computeMetadata/v1/{*rest}", get(metadata))
        .route("/v1/projects/{*model}", post(predict))
        .route("/v1beta1/projects/{*model}", post(predict))
        .route("/storage/v1/b/{bucket}/iam/testPermissions", get(permissions))
        .route("/upload/storage/v1/b/{bucket}/o", post(upload).put(put))
        .with_state(fake)
}

const METADATA_FLAVOR: [(&str, &str); 1] = [("Metadata-Flavor", "Google")];

async fn counts(State(fake): State<Arc<Fake>>) -> impl IntoResponse {
    let generated = fake.generated.load(Ordering::Relaxed);
    let stored = fake.stored.load(Ordering::Relaxed);
    (JSON, json!({"generated": generated, "stored": stored}).to_string())
}

/// An access token: from the metadata server, or in exchange for a token of another provider.
async fn token() -> impl IntoResponse {
    let token = json!({
        "access_token": "benchmark",
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "expires_in": 3599,
        "token_type": "Bearer",
    });
    (METADATA_FLAVOR, JSON, token.to_string())
}

/// Any other metadata: clients ask for the name of the account and its scopes.
async fn metadata() -> impl IntoResponse {
    let account = json!({"aliases": ["default"], "email": "benchmark@example.com", "scopes": []});
    (METADATA_FLAVOR, JSON, account.to_string())
}

async fn predict(State(fake): State<Arc<Fake>>, body: Body) -> Result<Response, StatusCode> {
    let request = body.collect().await.map_err(|_| StatusCode::BAD_REQUEST)?.to_bytes();
    if memmem::find(&request, b"prompt").is_none() {
        return Err(StatusCode::BAD_REQUEST);
    }
    if !fake.latency.is_zero() {
        sleep(fake.latency).await;
    }
    fake.generated.fetch_add(1, Ordering::Relaxed);
    let response = fake.response.clone();
    let body = if fake.chunked { Body::new(Chunks(response)) } else { Body::from(response) };
    Ok((JSON, body).into_response())
}

/// A body of unknown length.
struct Chunks(Bytes);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let len = self.0.len().min(CHUNK_BYTES);
        let chunk = self.0.split_to(len);
        Poll::Ready((!chunk.is_empty()).then(|| Ok(Frame::data(chunk))))
    }
}

async fn permissions() -> impl IntoResponse {
    (JSON, r#"{"permissions":["storage.objects.create"]}"#)
}

/// An upload of one request, or the start of a resumable one ("Uploads and downloads", Cloud Storage).
async fn upload(
    State(fake): State<Arc<Fake>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, StatusCode> {
    let query = query.unwrap_or_default();
    if query.contains("uploadType=resumable") {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.ok_or(StatusCode::BAD_REQUEST)?;
        let scheme = if fake.tls { "https" } else { "http" };
        return Ok([(LOCATION, format!("{scheme}://{host}{UPLOAD_PATH}"))].into_response());
    }
    let mut upload = Upload::new(body, &fake);
    let mut name = IMAGE_NAME.to_owned();
    if query.contains("uploadType=multipart") {
        // An empty line ends the headers of each of the two parts.
        upload.read_past(b"\r\n\r\n").await?;
        let metadata = upload.read_past(b"\r\n\r\n").await?;
        let mut values = serde_json::Deserializer::from_slice(&metadata).into_iter::<Value>();
        if let Some(Ok(Value::String(given))) =
            values.next().map(|value| value.map(|mut value| value["name"].take()))
        {
            name = given;
        }
    }
    // IGA's own records are small objects under `.iga/`.
    match name.contains(".iga/") || query.contains(".iga%2F") || query.contains(".iga/") {
        true => upload.record(&name).await,
        false => upload.image(&name, &fake).await,
    }
}

/// The media of a resumable upload, in one request.
async fn put(State(fake): State<Arc<Fake>>, body: Body) -> Result<Response, StatusCode> {
    Upload::new(body, &fake).image(IMAGE_NAME, &fake).await
}

struct Upload {
    body: Body,
    start: Instant,
    bytes_per_second: Option<f64>,
    received: usize,
    /// Bytes received but not processed yet.
    read: Bytes,
}

impl Upload {
    fn new(body: Body, fake: &Fake) -> Upload {
        Upload {
            body,
            start: Instant::now(),
            bytes_per_second: fake.upload_bytes_per_second,
            received: 0,
            read: Bytes::new(),
        }
    }

    /// The next bytes of the body, not before they are due. `None` at its end.
    async fn next(&mut self) -> Result<Option<Bytes>, StatusCode> {
        let Some(frame) = self.body.frame().await else {
            return Ok(None);
        };
        let chunk = frame.map_err(|_| StatusCode::BAD_REQUEST)?.into_data().unwrap_or_default();
        self.received += chunk.len();
        if let Some(rate) = self.bytes_per_second {
            let due = self.start + Duration::from_secs_f64(self.received as f64 / rate);
            sleep_until(due).await;
        }
        Ok(Some(chunk))
    }

    async fn more(&mut self) -> Result<(), StatusCode> {
        let chunk = self.next().await?.ok_or(StatusCode::BAD_REQUEST)?;
        self.read = match self.read.is_empty() {
            true => chunk,
            false => BytesMut::from_iter(self.read.iter().chain(&chunk)).freeze(),
        };
        Ok(())
    }

    async fn read_past(&mut self, mark: &[u8]) -> Result<Bytes, StatusCode> {
        loop {
            if let Some(position) = memmem::find(&self.read, mark) {
                return Ok(self.read.split_to(position + mark.len()));
            }
            self.more().await?;
        }
    }

    /// Reads the body to its end. Its first `image_bytes` bytes must be the image.
    async fn image(mut self, name: &str, fake: &Fake) -> Result<Response, StatusCode> {
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
        while self.next().await?.is_some() {}
        if crc32c != fake.crc32c {
            return Err(StatusCode::BAD_REQUEST);
        }
        fake.stored.fetch_add(1, Ordering::Relaxed);
        Ok(object(name, fake.image_bytes, crc32c))
    }

    async fn record(mut self, name: &str) -> Result<Response, StatusCode> {
        let mut media = self.read.to_vec();
        while let Some(chunk) = self.next().await? {
            media.extend_from_slice(&chunk);
        }
        let end = memmem::rfind(&media, b"\r\n--").unwrap_or(media.len());
        Ok(object(name, end, crc32c::crc32c(&media[..end])))
    }
}

fn object(name: &str, size: usize, crc32c: u32) -> Response {
    let object = json!({
        "kind": "storage#object",
        "name": name,
        "bucket": "benchmark",
        "generation": "1",
        "metageneration": "1",
        "size": size.to_string(),
        "crc32c": BASE64_STANDARD.encode(crc32c.to_be_bytes()),
        "updated": "2026-01-01T00:00:00.000Z",
    });
    (JSON, object.to_string()).into_response()
}

const JSON: [(HeaderName, &str); 1] = [(CONTENT_TYPE, "application/json; charset=UTF-8")];

const IMAGE_NAME: &str = "image.png";

const CHUNK_BYTES: usize = 32 << 10;
