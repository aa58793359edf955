//! The playground: one page at `/` for a browser, and what the page asks for.

use crate::cloud::BUCKET;
use crate::hub::Hub;
use crate::scenario::{RECORDS, Run, Services, Start, images as stored_images};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN, REFERRER_POLICY,
    VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use iga::app::App;
use iga::model::{ImageSize, Model, Params};
use iga_emulator::Emulator;
use ring::digest;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use tokio::sync::Mutex;

/// What the page's requests need.
pub struct Playground {
    emulator: Emulator,
    app: Arc<App>,
    hub: Arc<Hub>,
    /// The fault under way, if one is.
    run: Mutex<Option<Run>>,
}

impl Playground {
    /// From now on every open page learns when an image is paid, stored or delivered.
    pub fn new(emulator: Emulator, app: Arc<App>, hub: Arc<Hub>) -> Arc<Playground> {
        let playground = Arc::new(Playground { emulator, app, hub, run: Mutex::new(None) });
        tokio::spawn(Arc::clone(&playground).publish_totals());
        playground
    }

    async fn publish_totals(self: Arc<Self>) {
        let mut deliveries = self.hub.deliveries();
        loop {
            let now = self.emulator.counters();
            self.hub.publish(&self.totals());
            let changed = self.emulator.reached(|counters| {
                counters.paid_generations != now.paid_generations
                    || counters.uploads_completed != now.uploads_completed
            });
            tokio::select! {
                () = changed => {}
                // The sender lives in `self`.
                _ = deliveries.changed() => {}
            }
        }
    }

    /// The images that were paid, stored and delivered since the start.
    fn totals(&self) -> Value {
        json!({
            "type": "totals",
            "paid": self.emulator.counters().paid_generations,
            "stored": stored_images(self.emulator.operations().iter()).len(),
            "delivered": self.hub.deliveries().borrow().len(),
        })
    }
}

/// The service's router with the playground in front of it.
pub fn router(playground: Arc<Playground>, service: Router) -> Router {
    Router::new()
        .route("/playground/settings", get(settings))
        .route("/playground/events", get(events))
        .route("/playground/images", get(images))
        .route("/playground/images/{*name}", get(image))
        .route("/playground/faults", post(begin_fault))
        .route("/playground/faults/end", post(end_fault))
        .route_layer(from_fn(for_this_page_only))
        .with_state(playground)
        .fallback_service(service.layer(from_fn(page_for_a_browser)))
}

/// Sends the page instead of the service's description, if the client can show HTML.
async fn page_for_a_browser(request: Request, next: Next) -> Response {
    let is_index = request.uri().path() == "/"
        && (request.method() == Method::GET || request.method() == Method::HEAD);
    if !is_index {
        return next.run(request).await;
    }
    let mut response = match accepts_html(request.headers()) {
        true => with_headers(PAGE.into_response(), "text/html; charset=utf-8", &PAGE_POLICY),
        false => next.run(request).await,
    };
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    response
}

fn accepts_html(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut ranges = values.flat_map(|value| value.split(','));
    ranges.any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_html = parts.next().is_some_and(|media| media.eq_ignore_ascii_case("text/html"));
        let is_refused = |part: &str| {
            let quality = part.strip_prefix("q=").and_then(|text| text.parse::<f32>().ok());
            quality.is_some_and(|quality| quality == 0.0)
        };
        is_html && !parts.any(is_refused)
    })
}

fn with_headers(mut response: Response, content_type: &str, policy: &str) -> Response {
    let fields = [
        (CONTENT_TYPE, content_type),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Refuses what another site's page asks for in a browser of this machine.
async fn for_this_page_only(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(HOST).unwrap_or_default();
    let is_own_origin = text(ORIGIN).is_none_or(|origin| origin == format!("http://{host}"));
    let is_own_site =
        text(SEC_FETCH_SITE).is_none_or(|site| ["same-origin", "none"].contains(&site));
    let is_json = text(CONTENT_TYPE).is_some_and(|media| media == "application/json");
    let problem = if !is_address_of_this_machine(host) {
        "The host must be an IP address or localhost."
    } else if !is_own_origin || !is_own_site {
        "This is for the playground's own page."
    } else if request.method() == Method::POST && !is_json {
        "The content type must be application/json."
    } else {
        return next.run(request).await;
    };
    refusal(StatusCode::FORBIDDEN, problem)
}

/// A name of another site can be made to lead to this machine; an address cannot.
fn is_address_of_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

fn refusal(status: StatusCode, problem: &str) -> Response {
    let mut response = json_response(&json!({"error": problem}));
    *response.status_mut() = status;
    response
}

fn json_response(body: &Value) -> Response {
    with_headers(body.to_string().into_response(), "application/json", NOTHING)
}

/// The models of the settings with what each takes, for the form.
async fn settings(State(playground): State<Arc<Playground>>) -> Response {
    let config = &playground.app.config;
    let mut models: Vec<&Model> = Vec::new();
    for model in config.targets().map(|target| target.model) {
        if !models.contains(&model) {
            models.push(model);
        }
    }
    let describe = |model: &&Model| {
        let sizes = ImageSize::ALL.into_iter().filter(|size| takes_size(model, *size));
        json!({
            "id": model.id,
            "is_retired": model.retired,
            "ratios": model.ratios(),
            "sizes": sizes.map(ImageSize::as_str).collect::<Vec<_>>(),
        })
    };
    json_response(&json!({
        "models": models.iter().map(describe).collect::<Vec<_>>(),
        "default_ratio": config.default_aspect_ratio,
        "bucket": config.bucket,
        "emulator": playground.emulator.url(),
        "lease_seconds": config.timing.lease_life.as_secs(),
    }))
}

fn takes_size(model: &Model, size: ImageSize) -> bool {
    let params = Params {
        aspect_ratio: model.ratios().first().map_or(String::new(), |ratio| (*ratio).to_owned()),
        add_watermark: true,
        negative_prompt: None,
        seed: None,
        image_size: Some(size),
        person_generation: None,
        output_mime_type: None,
    };
    model.check(&params).is_ok()
}

async fn events(State(playground): State<Arc<Playground>>) -> Response {
    let events = playground.hub.subscribe(&playground.totals());
    with_headers(Response::new(Body::new(events)), "text/event-stream", NOTHING)
}

/// The stored images, the newest first.
async fn images(State(playground): State<Arc<Playground>>) -> Response {
    let prefix = &playground.app.config.prefix;
    let mut objects = playground.emulator.list(BUCKET, prefix);
    objects.retain(|object| object["name"].as_str().is_some_and(|name| !name.contains(RECORDS)));
    objects.sort_by(|a, b| b["timeCreated"].as_str().cmp(&a["timeCreated"].as_str()));
    objects.truncate(SHOWN_IMAGES);
    let describe = |object: &Value| {
        json!({
            "name": object["name"],
            "uri": format!("gs://{BUCKET}/{}", object["name"].as_str().unwrap_or_default()),
            "bytes": object["size"],
            "created": object["timeCreated"],
            "model": object["metadata"]["model"],
            "ratio": object["metadata"]["aspect_ratio"],
        })
    };
    json_response(&objects.iter().map(describe).collect())
}

/// An image's bytes, as Cloud Storage would send them.
async fn image(State(playground): State<Arc<Playground>>, Path(name): Path<String>) -> Response {
    let object = playground.emulator.object(BUCKET, &name);
    let Some(object) = object.filter(|object| !object.name.contains(RECORDS)) else {
        return refusal(StatusCode::NOT_FOUND, "There is no such image.");
    };
    let media = object.metadata["contentType"].as_str().unwrap_or_default();
    match media.starts_with("image/") && !media.starts_with("image/svg") {
        true => with_headers(object.bytes.into_response(), media, IMAGE_POLICY),
        false => refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "This is not an image."),
    }
}

/// Prepares a fault; the page then sends its request.
async fn begin_fault(State(playground): State<Arc<Playground>>, body: Bytes) -> Response {
    let start: Start = match serde_json::from_slice(&body) {
        Ok(start) => start,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let mut running = playground.run.lock().await;
    if let Some(run) = running.take() {
        run.abort();
    }
    let Playground { emulator, app, hub, .. } = &*playground;
    match Run::begin(&start, Services { emulator, app, hub }).await {
        Ok(run) => {
            *running = Some(run);
            json_response(&json!({}))
        }
        Err(problem) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &problem),
    }
}

/// What came of the fault of a workflow.
async fn end_fault(State(playground): State<Arc<Playground>>, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let workflow = request["workflow"].as_str().unwrap_or_default();
    let run = playground.run.lock().await.take_if(|run| run.is_of(workflow));
    match run {
        Some(run) => json_response(&json!(run.end(&playground.emulator, &playground.hub))),
        None => refusal(StatusCode::CONFLICT, "Another fault has been started."),
    }
}

const PAGE: &str = include_str!("playground.html");

/// The page runs its own script and style only, and loads nothing from elsewhere.
static PAGE_POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of_element("script"),
        hash_of_element("style")
    )
});

/// The hash of an inline element's text, as a content security policy names it.
fn hash_of_element(name: &str) -> String {
    let text = PAGE.split_once(&format!("<{name}>")).map_or("", |(_, rest)| rest);
    let text = text.split_once(&format!("</{name}>")).map_or("", |(text, _)| text);
    format!("sha256-{}", BASE64_STANDARD.encode(digest::digest(&digest::SHA256, text.as_bytes())))
}

const NOTHING: &str = "default-src 'none'";
const IMAGE_POLICY: &str = "default-src 'none'; sandbox";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SHOWN_IMAGES: usize = 60;
