//! Callers: asks for pictures, so many at once, and says how long each took.
//!
//! - `load pictures ADDRESS REQUESTS CONCURRENCY`: asks a service for pictures, each with a prompt of its own.
//! - `load ceiling ADDRESS REQUESTS CONCURRENCY PICTURE_BYTES`: asks the upstream itself, reads its answers and
//!   uploads a picture that it has ready: what the upstream and these callers could do at most.
//!
//! Prints one JSON object; times in milliseconds.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::header::CONTENT_TYPE;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use iga_benches::{Args, PREDICT_PATH, UPLOAD_PATH, client, picture};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

struct Load {
    client: Client<HttpConnector, Full<Bytes>>,
    address: String,
    what: What,
    requests: usize,
    begun: AtomicUsize,
}

enum What {
    Pictures,
    Ceiling(Bytes),
}

#[tokio::main]
async fn main() {
    let mut args = Args::new("load pictures|ceiling ADDRESS REQUESTS CONCURRENCY [PICTURE_BYTES]");
    let what = args.text();
    let address = format!("http://{}", args.text());
    let (requests, concurrency) = (args.number(), args.number());
    let what = match what.as_str() {
        "ceiling" => What::Ceiling([HEAD, &picture(args.number()), TAIL].concat().into()),
        _ => What::Pictures,
    };
    let client = client();
    let load = Arc::new(Load { client, address, what, requests, begun: AtomicUsize::new(0) });
    let start = Instant::now();
    let callers: Vec<_> =
        (0..concurrency).map(|_| tokio::spawn(Arc::clone(&load).call_until_done())).collect();
    let mut took = Vec::new();
    for caller in callers {
        took.extend(caller.await.expect("a caller does not panic"));
    }
    let seconds = start.elapsed().as_secs_f64();
    took.sort();
    let at = |share: f64| took.get((took.len() as f64 * share) as usize).or(took.last()).map(ms);
    println!(
        "{}",
        json!({"ok": took.len(), "failed": requests - took.len(), "seconds": seconds,
               "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0)})
    );
}

fn ms(duration: &Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Load {
    /// One caller after another on one connection; how long those took that succeeded.
    async fn call_until_done(self: Arc<Self>) -> Vec<Duration> {
        let mut took = Vec::new();
        loop {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            if number >= self.requests {
                return took;
            }
            let start = Instant::now();
            match self.call(number).await {
                Ok(()) => took.push(start.elapsed()),
                Err(problem) => eprintln!("{problem}"),
            }
        }
    }

    async fn call(&self, number: usize) -> Result<(), String> {
        // No two runs ask for the same: the service would answer with what it has.
        let prompt = format!("a lighthouse at dusk, number {number} of {}", std::process::id());
        match &self.what {
            What::Pictures => {
                self.post(
                    "/generate_image",
                    "application/json",
                    json!({"prompt": prompt}).to_string().into(),
                )
                .await
            }
            What::Ceiling(upload) => {
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
        let answer = self.client.request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let mut body = answer.into_body();
        let mut beginning = Bytes::new();
        while let Some(frame) = body.frame().await {
            let piece = frame.map_err(|error| error.to_string())?.into_data().unwrap_or_default();
            if beginning.is_empty() {
                beginning = piece.slice(..piece.len().min(400));
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
