//! The first request of a process.

use crate::support::service::{PROMPT, Service};
use serde_json::json;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::timeout;

#[tokio::test]
async fn connections_are_opened_while_the_access_token_is_fetched() {
    let silent = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (metadata, model, storage) = (silent().await, silent().await, silent().await);
    let host = |server: &TcpListener| server.local_addr().unwrap().to_string();
    let url = |server: &TcpListener| format!("http://{}", host(server));
    let service = Service::with(&[
        ("GCE_METADATA_HOST", &host(&metadata)),
        ("IGA_VERTEXAI_ENDPOINT", &url(&model)),
        ("STORAGE_EMULATOR_HOST", &url(&storage)),
    ])
    .await;
    let request = service.request().json(&json!({"prompt": PROMPT})).send();
    let opened = async {
        let (_token, _model, _storage) =
            tokio::try_join!(metadata.accept(), model.accept(), storage.accept()).unwrap();
    };
    tokio::select! {
        () = opened => {}
        response = timeout(Duration::from_secs(60), request) => panic!("{response:?}"),
    }
}
