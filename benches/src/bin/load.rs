//! The callers: sends requests with a fixed concurrency and measures how long each takes.
//!
//! - `load images URL REQUESTS CONCURRENCY [prompt_bytes=N]` asks a service for images, each with its
//!   own prompt.
//! - `load model URL REQUESTS CONCURRENCY` calls the model directly and reads its response.
//!
//! Prints one JSON object. `refused` counts the responses 503, `failed` all others that are not 200.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::CONTENT_TYPE;
use hyper::{Request, StatusCode};
use iga_benches::{Args, HttpClient, PREDICT_PATH, client};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

struct Load {
    client: HttpClient<Full<Bytes>>,
    url: String,
    mode: Mode,
    requests: usize,
    begun: AtomicUsize,
}

enum Mode {
    Images { prompt_bytes: usize },
    Model,
}

#[derive(Default)]
struct Results {
    durations: Vec<Duration>,
    refused: usize,
}

#[tokio::main]
async fn main() {
    let mut args = Args::new("load images|model URL REQUESTS CONCURRENCY [prompt_bytes=VALUE]");
    let mode: String = args.positional();
    let url: String = args.positional();
    let requests = args.positional();
    let concurrency: usize = args.positional();
    let mode = match mode.as_str() {
        "model" => Mode::Model,
        _ => Mode::Images { prompt_bytes: args.option("prompt_bytes").unwrap_or(0) },
    };
    args.end();
    let load = Load { client: client(&url), url, mode, requests, begun: AtomicUsize::new(0) };
    let load = Arc::new(load);
    let start = Instant::now();
    let callers: Vec<_> =
        (0..concurrency).map(|_| tokio::spawn(Arc::clone(&load).call_until_done())).collect();
    let mut results = Results::default();
    for caller in callers {
        let own = caller.await.expect("a caller does not panic");
        results.durations.extend(own.durations);
        results.refused += own.refused;
    }
    let seconds = start.elapsed().as_secs_f64();
    let Results { mut durations, refused } = results;
    durations.sort();
    let percentile = |share: f64| {
        let index = (durations.len() as f64 * share) as usize;
        durations.get(index).or(durations.last()).map(|duration| duration.as_secs_f64() * 1e3)
    };
    let failed = requests - durations.len() - refused;
    println!(
        "{}",
        json!({"ok": durations.len(), "refused": refused, "failed": failed, "seconds": seconds,
               "p50_ms": percentile(0.5), "p99_ms": percentile(0.99), "max_ms": percentile(1.0)})
    );
}

impl Load {
    /// Sends one request after another until all have begun.
    async fn call_until_done(self: Arc<Self>) -> Results {
        let mut results = Results::default();
        loop {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            if number >= self.requests {
                return results;
            }
            let start = Instant::now();
            match self.call(number).await {
                Ok(StatusCode::OK) => results.durations.push(start.elapsed()),
                Ok(StatusCode::SERVICE_UNAVAILABLE) => results.refused += 1,
                Ok(_) => {}
                Err(error) => eprintln!("{error}"),
            }
        }
    }

    async fn call(&self, number: usize) -> Result<StatusCode, String> {
        // The prompt is new in every request and run: for a repeated one, IGA returns the image that it has.
        let mut prompt = format!("a lighthouse at dusk, number {number} of {}", std::process::id());
        match &self.mode {
            Mode::Images { prompt_bytes } => {
                prompt.extend(std::iter::repeat_n('.', prompt_bytes.saturating_sub(prompt.len())));
                let body = json!({"prompt": prompt}).to_string();
                self.post("/generate_image", body.into()).await
            }
            Mode::Model => self.post(PREDICT_PATH, predict(prompt)).await,
        }
    }

    async fn post(&self, path: &str, body: Bytes) -> Result<StatusCode, String> {
        let request = Request::post(format!("{}{path}", self.url))
            .header(CONTENT_TYPE, "application/json")
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
        if status != StatusCode::OK {
            eprintln!("{status}: {}", String::from_utf8_lossy(&beginning));
        }
        Ok(status)
    }
}

fn predict(prompt: String) -> Bytes {
    json!({"instances": [{"prompt": prompt}]}).to_string().into()
}
