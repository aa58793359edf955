//! The floor for start-up and size: the smallest server on axum and tokio that answers at all.
//!
//! `floor` has tokio's default runtime; `floor one-thread` has that of one thread.

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
        .route("/generate_image", post(|| async { ANSWER }));
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(0);
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    axum::serve(listener, router).await
}

const HEALTH: &str = r#"{"status":"ok"}"#;

const ANSWER: &str =
    r#"{"image_url":"gs://bucket/picture.png","prompt_used":"","model_version":"vertex-ai-none"}"#;
