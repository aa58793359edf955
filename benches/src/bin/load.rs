//! The callers: sends requests with a fixed concurrency and measures how long each takes.
//!
//! - `load images ADDRESS REQUESTS CONCURRENCY` asks a service for images, each with its own prompt.
//! - `load ceiling ADDRESS REQUESTS CONCURRENCY IMAGE_BYTES` calls the upstream directly: it reads the model's
//!   response and uploads a prepared image. No service can be faster than this.
//!
//! Prints one JSON object.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::header::CONTENT_TYPE;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use iga_benches::{Args, PREDICT_PATH, UPLOAD_PATH, client, image};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

struct Load {
    client: Client<HttpConnector, Full<Bytes>>,
    address: String,
    mode: Mode,
    requests: usize,
    begun: AtomicUsize,
}

enum Mode {
    Images,
    Ceiling(Bytes),
}

#[tokio::main]
async fn main() {
    let mut args = Args::new("load images|ceiling ADDRESS REQUESTS CONCURRENCY [IMAGE_BYTES]");
    let mode = args.text();
    let address = format!("http://{}", args.text());
    let requests = args.number();
    let concurrency = args.number();
    let mode = match mode.as_str() {
        "ceiling" => Mode::Ceiling([HEAD, &image(args.number()), TAIL].concat().into()),
        _ => Mode::Images,
    };
    let client = client();
    let load = Arc::new(Load { client, address, mode, requests, begun: AtomicUsize::new(0) });
    let start = Instant::now();
    let callers: Vec<_> =
        (0..concurrency).map(|_| tokio::spawn(Arc::clone(&load).call_until_done())).collect();
    let mut durations = Vec::new();
    for caller in callers {
        durations.extend(caller.await.expect("a caller does not panic"));
    }
    let seconds = start.elapsed().as_secs_f64();
    durations.sort();
    let percentile = |share: f64| {
        durations.get((durations.len() as f64 * share) as usize).or(durations.last()).map(ms)
    };
    println!(
        "{}",
        json!({"ok": durations.len(), "failed": requests - durations.len(), "seconds": seconds,
               "p50_ms": percentile(0.5), "p99_ms": percentile(0.99), "max_ms": percentile(1.0)})
    );
}

fn ms(duration: &Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Load {
    /// Sends one request after another until all have begun. Returns the durations of those that succeeded.
    async fn call_until_done(self: Arc<Self>) -> Vec<Duration> {
        let mut durations = Vec::new();
        loop {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            if number >= self.requests {
                return durations;
            }
            let start = Instant::now();
            match self.call(number).await {
                Ok(()) => durations.push(start.elapsed()),
                Err(error) => eprintln!("{error}"),
            }
        }
    }

    async fn call(&self, number: usize) -> Result<(), String> {
        // The prompt is new in every request and run: IGA answers a repeated one with the image that it has.
        let prompt = format!("a lighthouse at dusk, number {number} of {}", std::process::id());
        match &self.mode {
            Mode::Images => {
                self.post(
                    "/generate_image",
                    "application/json",
                    json!({"prompt": prompt}).to_string().into(),
                )
                .await
            }
            Mode::Ceiling(upload) => {
                let body = json!({"instances": [{"prompt": prompt}]}).to_string();
                self.post(PREDICT_PATH, "application/json", body.into()).await?;
                let path = format!("{UPLOAD_PATH}?uploadType=multipart");
                self.post(&path, "multipart/related; boundary=b", upload.clone()).await
            }
        }
    }

    async fn post(&self, path: &str, content_type: &str, body: Bytes) -> Result<(), String> {
        let request = Request::post(format!("{}{path}", self.address))
            .header(CONTENT_TYPE, content_type)
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let response = self.client.request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let mut body = response.into_body();
        let mut beginning = Bytes::new();
        while let Some(frame) = body.frame().await {
            let chunk = frame.map_err(|error| error.to_string())?.into_data().unwrap_or_default();
            if beginning.is_empty() {
                beginning = chunk.slice(..chunk.len().min(400));
            }
        }
        if status.is_success() {
            Ok(())
        } else {
            Err(format!("{status}: {}", String::from_utf8_lossy(&beginning)))
        }
    }
}

const HEAD: &[u8] =
    b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\nContent-Type: image/png\r\n\r\n";

const TAIL: &[u8] = b"\r\n--b--\r\n";
