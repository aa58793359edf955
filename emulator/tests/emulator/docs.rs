//! The examples in the crate's documentation.

use http::Method;
use serde_json::Value;

use crate::support::*;

/// Every block of JSON in the documentation is a fault.
#[tokio::test]
async fn the_documented_faults_are_accepted() {
    let setup = Setup::new().await;
    let docs = include_str!("../../src/lib.rs").replace("//! ", "").replace("//!", "");
    let blocks: Vec<&str> =
        docs.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 8, "{}", blocks.len());
    for block in blocks {
        for fault in serde_json::Deserializer::from_str(block).into_iter::<Value>() {
            let fault = fault.expect(block).to_string();
            let request = setup.request(Method::POST, "/_emulator/faults").body(fault);
            let (status, body) = send(request).await;
            assert_eq!(status, 204, "{block}: {body}");
        }
    }
}
