//! The HTTP contract: routes, headers, the response to a prompt, and the error for each failure of the model.

use crate::support::service::{BUCKET, PROMPT, Response, Service, fetch, images, reached};
use iga::error::Kind;
use iga_emulator::{Action, Stage};
use serde_json::json;

#[tokio::test]
async fn a_prompt_becomes_a_stored_image_and_three_fields() {
    let service = Service::start().await;
    let response = service.prompt().await;
    response.is_image();
    assert_eq!(response.text("prompt_used"), PROMPT);
    assert_eq!(response.text("model_version"), "vertex-ai-gemini-nano-banana-2.1");
    let id = response.header("x-request-id");
    let start = format!("gs://{BUCKET}/images/iga/{id}_");
    let end = response.text("image_url").strip_prefix(&start).expect("the id names the object");
    assert!(end.len() == "5e6f7a8b.png".len() && end.ends_with(".png"), "{end}");

    let object = service.only_object();
    assert_eq!(response.text("image_url"), format!("gs://{BUCKET}/{}", object.name));
    assert!(object.bytes.starts_with(b"\x89PNG"));
    assert_eq!(object.metadata["contentType"], "image/png");
    let metadata = &object.metadata["metadata"];
    assert_eq!(metadata["request_id"], id);
    assert_eq!(
        (&metadata["model"], &metadata["aspect_ratio"]),
        (&json!("gemini-nano-banana-2.1"), &json!("1:1"))
    );
    assert_eq!(metadata["prompt_sha256"].as_str().unwrap().len(), 64);
    assert!(!object.metadata.to_string().contains("fox"), "the prompt stays out of the metadata");
    assert_eq!(service.emulator.counters().paid_generations, 1);
}

#[tokio::test]
async fn the_workflow_id_goes_to_the_metadata() {
    let service = Service::current().await;
    let request = service
        .request()
        .header("x-workflow-id", "wf-7")
        .header("content-type", "application/json");
    fetch(request.body(json!({"prompt": PROMPT}).to_string())).await.is_image();
    assert_eq!(service.only_object().metadata["metadata"]["workflow_id"], "wf-7");
}

#[tokio::test]
async fn a_workflow_id_in_any_alphabet_is_escaped_in_the_metadata() {
    for (id, escaped) in [
        ("Zürich 作业".as_bytes(), "Z%C3%BCrich %E4%BD%9C%E4%B8%9A"),
        (b"Z\xfcrich", "Z%C3%BCrich"),
    ] {
        let service = Service::current().await;
        let id = reqwest::header::HeaderValue::from_bytes(id).unwrap();
        let request = service
            .request()
            .header("x-workflow-id", id)
            .header("content-type", "application/json");
        fetch(request.body(json!({"prompt": PROMPT}).to_string())).await.is_image();
        assert_eq!(service.only_object().metadata["metadata"]["workflow_id"], escaped);
    }
}

#[tokio::test]
async fn a_cloud_task_may_be_an_octet_stream_and_its_name_is_the_key() {
    let service = Service::current().await;
    let task = |name: &'static str| {
        let request = service.request().header("content-type", "application/octet-stream");
        request.header("x-cloudtasks-taskname", name).body(json!({"prompt": PROMPT}).to_string())
    };
    let first = fetch(task("task-1")).await;
    let again = fetch(task("task-1")).await;
    assert_eq!(first.is_image().text("image_url"), again.is_image().text("image_url"));
    assert_eq!(service.emulator.counters().paid_generations, 1);
}

#[tokio::test]
async fn two_different_keys_are_refused() {
    let service = Service::current().await;
    let request = service.request().header("content-type", "application/json");
    let request = request.header("idempotency-key", "a").header("x-idempotency-key", "b");
    let refused = fetch(request.body(json!({"prompt": PROMPT}).to_string())).await;
    refused.is_error(400, "IGA_INVALID_IDEMPOTENCY_KEY").details_have("two different keys");
    assert_eq!(service.emulator.requests().len(), 0);
}

#[tokio::test]
async fn a_prompt_is_forwarded_and_echoed_exactly() {
    let service = Service::current().await;
    let prompt = "  \u{1f98a} \"quoted\" \\ back\0slash\n\ttab  ";
    let response = service.post(json!({"prompt": prompt, "unknown": [1, {"x": null}]})).await;
    assert_eq!(response.is_image().text("prompt_used"), prompt);
    let sent: serde_json::Value =
        serde_json::from_slice(&service.model_requests()[0].body).unwrap();
    assert_eq!(sent["contents"][0]["parts"][0]["text"], prompt);
}

#[tokio::test]
async fn health_and_index_respond_to_get_and_head() {
    let service = Service::start().await;
    let health = fetch(service.http.get(format!("{}/health", service.url))).await;
    assert_eq!((health.status, &health.body), (200, &json!({"status": "ok"})));
    let index = fetch(service.http.get(format!("{}/", service.url))).await;
    assert_eq!((index.status, index.text("service")), (200, "iga"));
    assert_eq!(index.text("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(index.body["routes"], json!(["POST /generate_image", "GET /health", "GET /"]));
    for path in ["/", "/health"] {
        let head = fetch(service.http.head(format!("{}{path}", service.url))).await;
        assert_eq!(head.status, 200);
        assert!(head.header("x-request-id").starts_with("iga_req_"));
    }
    assert_eq!(service.emulator.requests().len(), 0, "nothing is fetched before it is needed");
}

#[tokio::test]
async fn other_routes_and_methods_are_refused() {
    let service = Service::start().await;
    let url = |path: &str| format!("{}{path}", service.url);
    for path in ["/nothing", "/generate_image/", "/healthz", "//"] {
        let refused = fetch(service.http.get(url(path))).await;
        refused.is_error(404, "IGA_NOT_FOUND");
        assert_eq!(refused.text("message"), "No such endpoint.");
        assert!(refused.header("x-request-id").starts_with("iga_req_"));
    }
    for (refused, allow) in [
        (fetch(service.http.get(url("/generate_image"))).await, "POST"),
        (fetch(service.http.put(url("/generate_image")).body("{}")).await, "POST"),
        (fetch(service.http.post(url("/health"))).await, "GET, HEAD"),
        (fetch(service.http.delete(url("/"))).await, "GET, HEAD"),
    ] {
        refused.is_error(405, "IGA_METHOD_NOT_ALLOWED");
        assert_eq!(
            (refused.text("message"), refused.header("allow")),
            ("Method not allowed.", allow)
        );
    }
}

/// Makes the model respond like this, and returns the response to a prompt.
async fn when_the_model_responds(status: u16, body: &str) -> (Response, Service) {
    let service = Service::current().await;
    service.model_responds(status, body);
    let response = service.prompt().await;
    assert_eq!(images(&service.emulator).len(), 0);
    (response, service)
}

fn google(code: u16, status: &str, message: &str) -> String {
    json!({"error": {"code": code, "message": message, "status": status}}).to_string()
}

#[tokio::test]
async fn every_model_failure_has_its_error() {
    let blocked = "The prompt could not be submitted. This prompt contains sensitive words that violate Google's \
                   Responsible AI practices. Support codes: 42876398";
    for (status, body, row, words, calls) in [
        (
            400,
            google(400, "INVALID_ARGUMENT", blocked),
            Kind::SafetyBlocked,
            "Support codes: 42876398",
            1,
        ),
        (
            400,
            google(400, "INVALID_ARGUMENT", "Invalid aspect ratio"),
            Kind::InvalidArgument,
            "Invalid aspect",
            1,
        ),
        (401, google(401, "UNAUTHENTICATED", "bad token"), Kind::PermissionDenied, "bad token", 2),
        (
            403,
            google(403, "PERMISSION_DENIED", "Permission denied on x"),
            Kind::PermissionDenied,
            "denied on x",
            1,
        ),
        (
            400,
            google(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
            Kind::PermissionDenied,
            "User location",
            1,
        ),
        (
            400,
            json!({"error": {"message": "Invalid.", "status": null, "details": [null,
                {"fieldViolations": [{"field": "a.b", "description": "Cannot find field."}]}]}})
            .to_string(),
            Kind::InvalidArgument,
            "Invalid. a.b: Cannot find field.",
            1,
        ),
        (
            404,
            google(404, "NOT_FOUND", "Publisher Model `x` was not found"),
            Kind::ModelNotFound,
            "retired, or not served in global; try",
            3,
        ),
        (
            404,
            google(404, "NOT_FOUND", "Requested entity was not found."),
            Kind::InvalidArgument,
            "Requested entity",
            1,
        ),
        (
            404,
            google(404, "NOT_FOUND", "Project `x` was not found."),
            Kind::PlaceNotFound,
            "Project `x`",
            1,
        ),
        (404, "<html>nothing here</html>".to_owned(), Kind::PlaceNotFound, "location global", 1),
        (
            429,
            google(429, "RESOURCE_EXHAUSTED", "Quota exceeded, limit: 0"),
            Kind::ResourceExhausted,
            "limit: 0",
            1,
        ),
        (
            429,
            google(429, "RESOURCE_EXHAUSTED", "Resource exhausted."),
            Kind::ResourceExhausted,
            "exhausted",
            3,
        ),
        (
            429,
            format!("[{}]", google(429, "X", "In an array.")),
            Kind::ResourceExhausted,
            "In an array.",
            3,
        ),
        (500, google(500, "INTERNAL", "Internal error"), Kind::VertexApi, "Internal error", 1),
        (504, google(504, "DEADLINE_EXCEEDED", "too late"), Kind::VertexApi, "too late", 1),
        (
            503,
            google(503, "UNAVAILABLE", "overloaded"),
            Kind::VertexUnavailable,
            "Service Unavailable: overloaded",
            3,
        ),
        (200, "this is no JSON".to_owned(), Kind::VertexApi, "not valid JSON", 1),
        (200, r#"{"candidates": 7}"#.to_owned(), Kind::EmptyImage, "no candidates", 1),
        (200, "{}".to_owned(), Kind::EmptyImage, "no candidates", 1),
    ] {
        let (response, service) = when_the_model_responds(status, &body).await;
        let row = row.row();
        response.is_error(row.status, row.code).details_have(words);
        assert_eq!(response.text("message"), row.message);
        let waits = response.headers.contains_key("retry-after");
        assert_eq!(waits, row.status == 503 || row.status == 429, "{response:?}");
        assert_eq!(service.emulator.counters().model_calls, calls, "{body}");
    }
}

#[tokio::test]
async fn retry_after_of_the_model_reaches_the_caller() {
    let delay = |delay: &str| {
        let details =
            json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]);
        json!({"error": {"message": "x", "details": details}}).to_string()
    };
    for status in [429, 503] {
        let header = |value: &str| Action::status(status).header("retry-after", value);
        let body = |body: String| Action::response_with(status, "application/json", body);
        for (action, seconds) in [
            (header("600"), "600"),
            (header("599.02"), "600"),
            (header("Fri, 01 Jan 2100 00:00:00 GMT"), "3600"),
            (header("7200"), "3600"),
            (header("18446744073709551615"), "3600"),
            (body(delay("544.98s")), "545"),
            (body(delay("1e19s")), "3600"),
            (body(delay("1000s")).header("retry-after", "700"), "700"),
        ] {
            let service = Service::current().await;
            service.fault(Stage::Model, action.clone());
            let response = service.prompt().await;
            assert_eq!(
                (response.status, response.header("retry-after")),
                (status, seconds),
                "{action:?}"
            );
            let calls = service.emulator.counters().model_calls;
            assert_eq!(calls, 1, "no wait starts that would pass the deadline");
        }
    }
}

#[tokio::test]
async fn a_transient_model_error_is_retried() {
    for status in [429, 503] {
        let service = Service::current().await;
        service.fault(Stage::Model, Action::status(status));
        service.fault(Stage::Model, Action::status(status));
        service.prompt().await.is_image();
        let counters = service.emulator.counters();
        assert_eq!((counters.model_calls, counters.paid_generations), (3, 1));
    }
}

#[tokio::test]
async fn an_expired_token_is_replaced_once() {
    let service = Service::current().await;
    service.prompt().await.is_image();
    service.emulator.expire_tokens();
    service.prompt().await.is_image();
    let counters = service.emulator.counters();
    assert_eq!(
        (counters.unauthorized, counters.paid_generations, images(&service.emulator).len()),
        (1, 2, 2)
    );
}

#[tokio::test]
async fn the_deadline_ends_a_silent_model() {
    let service = Service::with(
        &[&[("IGA_GENERATION_DEADLINE_SECONDS", "0.3")], crate::support::service::CURRENT].concat(),
    )
    .await;
    for stage in [Stage::Model, Stage::Response] {
        service.fault(stage, Action::Stall);
        let response = service.prompt().await;
        response.is_error(503, "IGA_VERTEXAI_API_ERROR").details_have("Service Unavailable");
        assert!(response.headers.contains_key("retry-after"));
    }
    assert_eq!(images(&service.emulator).len(), 0);
}

#[tokio::test]
async fn a_broken_model_response_is_an_error_and_is_not_retried() {
    for action in [Action::Reset, Action::Truncate] {
        for after in [0, 1000] {
            let service = Service::current().await;
            let fault = iga_emulator::Fault::new(Stage::Response, action.clone()).after(after);
            service.emulator.script(fault);
            let response = service.prompt().await;
            assert!(response.status >= 500, "{response:?}");
            assert_eq!(response.text("error_code"), "IGA_VERTEXAI_API_ERROR");
            let counters = service.emulator.counters();
            assert_eq!((counters.paid_generations, images(&service.emulator).len()), (1, 0));
        }
    }
}

#[tokio::test]
async fn a_request_beyond_capacity_is_503_at_once() {
    let service = Service::with(
        &[&[("IGA_MAX_GENERATIONS", "1")], crate::support::service::CURRENT].concat(),
    )
    .await;
    service.fault(Stage::Model, Action::Stall);
    let held = tokio::spawn(fetch(
        service
            .request()
            .header("content-type", "application/json")
            .body(json!({"prompt": "slow"}).to_string()),
    ));
    reached(&service.emulator, |counters| counters.model_calls == 1).await;
    let refused = service.prompt().await;
    refused.is_error(503, "IGA_OVERLOADED");
    assert_eq!(
        (refused.text("message"), refused.header("retry-after")),
        ("IGA is at capacity.", "1")
    );
    let health = fetch(service.http.get(format!("{}/health", service.url))).await;
    assert_eq!(health.status, 200);
    held.abort();
}

#[tokio::test]
async fn an_invalid_key_is_400_before_any_upstream_request() {
    let service = Service::current().await;
    for (header, key) in [
        ("idempotency-key", ""),
        ("x-idempotency-key", "a b"),
        ("x-cloudtasks-taskname", &"x".repeat(256)),
    ] {
        let request =
            service.request().header("content-type", "application/json").header(header, key);
        let refused = fetch(request.body(json!({"prompt": PROMPT}).to_string())).await;
        refused.is_error(400, "IGA_INVALID_IDEMPOTENCY_KEY");
        assert_eq!(refused.text("message"), "Idempotency key is invalid.");
    }
    assert_eq!(service.emulator.requests().len(), 0);
}
