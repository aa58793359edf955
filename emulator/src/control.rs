//! The emulator's own endpoints, under `/_emulator/`.

use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::faults::Fault;
use crate::recorder::Recorded;
use crate::response::{HandlerResult, Response};
use crate::services::{Call, Services};

pub(crate) async fn handle(services: &Services, mut call: Call) -> HandlerResult {
    let body = call.body.all().await?;
    let endpoint = call.segments.get(1..).unwrap_or_default().join("/");
    let json = |value: Value| Ok(Response::json(StatusCode::OK, &value));
    let result = match (call.method.as_str(), endpoint.as_str()) {
        ("POST", "faults") => add_fault(services, &body),
        ("DELETE", "faults") => {
            services.faults.clear();
            Ok(())
        }
        ("POST", "expire_tokens") => {
            services.tokens.expire();
            Ok(())
        }
        ("POST", "clock") => advance_clock(services, &body),
        ("PUT", "storage_rules") => parse(&body).map(|rules| services.objects.set_rules(rules)),
        ("GET", "storage_rules") => return json(json!(services.objects.rules())),
        ("GET", "counters") => return json(json!(services.counters())),
        ("GET", "generations") => return json(json!(services.recorder.generations())),
        ("GET", "operations") => return json(json!(services.recorder.operations())),
        ("GET", "requests") => {
            let requests = services.recorder.requests();
            return json(requests.iter().map(Recorded::to_json).collect());
        }
        ("GET", "objects") => {
            return json(
                services.objects.all().into_iter().map(|object| object.metadata).collect(),
            );
        }
        _ => {
            let problem = json!({"error": "no such endpoint"});
            return Ok(Response::json(StatusCode::NOT_FOUND, &problem));
        }
    };
    Ok(match result {
        Ok(()) => Response::empty(StatusCode::NO_CONTENT),
        Err(problem) => Response::json(StatusCode::BAD_REQUEST, &json!({"error": problem})),
    })
}

fn add_fault(services: &Services, body: &[u8]) -> Result<(), String> {
    let fault: Fault = parse(body)?;
    fault.action.validate()?;
    services.faults.push(fault);
    Ok(())
}

fn advance_clock(services: &Services, body: &[u8]) -> Result<(), String> {
    let request: Value = parse(body)?;
    let ms = request["advance_ms"].as_i64().ok_or("expected {\"advance_ms\": NUMBER}")?;
    services.clock.advance(ms);
    Ok(())
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}
