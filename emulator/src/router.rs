//! From a request's path to its handler.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use hyper::body::Incoming;

use crate::body_reader::BodyReader;
use crate::clock::http_date;
use crate::faults::{Stage, Subject, apply_after};
use crate::response::{HandlerResult, Refusal, Response};
use crate::rpc_error::not_found_page;
use crate::services::{Call, Services};
use crate::{batch, control, metadata_server, storage, storage_error, token_endpoints, vertex};

/// Handles any request, and records it unless it is one to the emulator itself.
pub(crate) async fn handle(services: Arc<Services>, request: Request<Incoming>) -> HandlerResult {
    let request = request.map(BodyReader::new);
    match request.uri().path() {
        path if path.starts_with("/_emulator/") => {
            control::handle(&services, Call::new(request, 0)).await
        }
        "/batch/storage/v1" | "/batch" => batch(&services, request).await,
        _ => handle_one(&services, request).await,
    }
}

/// Handles the requests of a batch one after the other.
async fn batch(services: &Arc<Services>, request: Request<BodyReader>) -> HandlerResult {
    let (parts, mut body) = request.into_parts();
    let body = body.all().await?;
    let Some(requests) = batch::read(&parts.headers, &body) else {
        let message = "Failed to parse batch request, error: 0 items. Received batch body.";
        return Ok(storage_error::invalid(message));
    };
    let mut responses = Vec::new();
    for part in requests {
        let response = match handle_one(services, part.request).await {
            Ok(response) => response,
            Err(Refusal::Response(response)) => *response,
            Err(abort) => return Err(abort),
        };
        responses.push((part.id, response));
    }
    Ok(batch::write(&responses))
}

async fn handle_one(services: &Arc<Services>, request: Request<BodyReader>) -> HandlerResult {
    let number = services.recorder.request(&request);
    let call = Call::new(request, number);
    match route(services, call).await {
        Ok(response) => Ok(finish(services, number, response)),
        Err(Refusal::Response(response)) => Ok(finish(services, number, *response)),
        Err(Refusal::Abort(ending)) => {
            write_to_journal(services, number, None);
            Err(Refusal::Abort(ending))
        }
    }
}

/// Records the response and adds `Date`.
fn finish(services: &Services, number: usize, response: Response) -> Response {
    services.recorder.response(number, response.status);
    write_to_journal(services, number, Some(&response));
    if response.status == StatusCode::UNAUTHORIZED {
        services.recorder.count(|counters| counters.unauthorized += 1);
    }
    if services.objects.rules().omit_date {
        return response;
    }
    response.with("date", http_date(services.clock.now()))
}

fn write_to_journal(services: &Services, number: usize, response: Option<&Response>) {
    if let Some(journal) = &services.journal {
        journal.write(&services.recorder.recorded(number), response);
    }
}

async fn route(services: &Arc<Services>, mut call: Call) -> HandlerResult {
    let segments: Vec<String> = call.segments.clone();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match (call.method.as_str(), &segments[..]) {
        (_, ["upload", "storage", "v1", "b", bucket, "o"])
        | (_, ["resumable", "upload", "storage", "v1", "b", bucket, "o"]) => {
            return storage::upload(services, call, bucket).await;
        }
        // Google's client for Node.js leaves `/storage/v1` out with STORAGE_EMULATOR_HOST.
        (_, ["storage", "v1", "b", rest @ ..] | ["b", rest @ ..])
        | ("GET", ["download", "storage", "v1", "b", rest @ ..]) => {
            return storage::handle(services, call, rest).await;
        }
        (_, ["storage", "v1", ..] | ["upload" | "download", "storage", ..]) => {
            return Ok(storage::not_implemented());
        }
        _ => {}
    }
    let body = call.body.all().await?;
    services.recorder.body(call.number, &body);
    route_with_body(services, &call, &segments, &body).await
}

async fn route_with_body(
    services: &Arc<Services>,
    call: &Call,
    segments: &[&str],
    body: &Bytes,
) -> HandlerResult {
    let (tokens, headers) = (&services.tokens, &call.headers);
    match (call.method.as_str(), segments) {
        ("GET", ["computeMetadata", .., last]) => {
            let response = metadata_server::metadata(tokens, &call.path, &call.query, headers);
            if *last == "token" { issue(services, call, response).await } else { Ok(response) }
        }
        ("GET", [""]) => Ok(metadata_server::root()),
        ("POST", ["token"]) => {
            issue(services, call, token_endpoints::oauth(tokens, headers, body)).await
        }
        ("POST", ["v1", "token"]) => {
            issue(services, call, token_endpoints::exchange(tokens, headers, body)).await
        }
        ("POST", ["v1", "projects", _, "serviceAccounts", account])
            if account.ends_with(":generateAccessToken") =>
        {
            let response = token_endpoints::impersonate(tokens, &services.clock, headers, body)?;
            issue(services, call, response).await
        }
        (
            "POST",
            [
                version,
                "projects",
                project,
                "locations",
                location,
                "publishers",
                "google",
                "models",
                model,
            ],
        ) if is_version(version) => {
            vertex::generate(services, call, [project, location, model], body).await
        }
        ("GET", [version, "publishers", "google", "models"]) if is_version(version) => {
            vertex::publisher_models(services, call)
        }
        ("GET", [version, "publishers", "google", "models", model]) if is_version(version) => {
            vertex::publisher_model(services, call, model)
        }
        _ => Ok(not_found_page(&call.path)),
    }
}

fn is_version(segment: &str) -> bool {
    matches!(segment, "v1" | "v1beta1")
}

/// Counts a token that was issued, and lets faults act on it.
async fn issue(services: &Services, call: &Call, response: Response) -> HandlerResult {
    services.recorder.count(|counters| counters.token_fetches += 1);
    apply_after(services.faults.take(Stage::Token, Subject::path(&call.path)), response).await
}
