//! The baseline for start-up and size: the smallest HTTP server on axum and tokio.
//!
//! `minimal_server` uses tokio's default runtime; `minimal_server one-thread` uses a single thread.

use axum::Router;
use axum::routing::{get, post};
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::TcpListener;

fn main() -> std::io::Result<()> {
    let mut runtime = match std::env::args().nth(1) {
        Some(_) => tokio::runtime::Builder::new_current_thread(),
        None => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.enable_all().build()?.block_on(serve())
}

async fn serve() -> std::io::Result<()> {
    let router = Router::new()
        .route("/health", get(|| async { HEALTH }))
        .route("/generate_image", post(|| async { RESPONSE }));
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(0);
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    axum::serve(listener, router).await
}

const HEALTH: &str = r#"{"status":"ok"}"#;

const RESPONSE: &str =
    r#"{"image_url":"gs://bucket/image.png","prompt_used":"","model_version":"vertex-ai-none"}"#;
