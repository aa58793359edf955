//! Resumable uploads to Cloud Storage: sessions and their chunks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use crate::faults::{Action, Stage, hinder};
use crate::storage::refused;
use crate::storage_error::{error, invalid};
use crate::uploads::{Plan, commit, confirm, drain, metadata_fields, start};
use crate::wire::{Answer, Handled, Refusal};
use crate::{Call, Services, lock};

/// Every session there has been.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<String, Session>>);

struct Session {
    plan: Plan,
    /// As declared at the start.
    length: Option<u64>,
    received: Vec<u8>,
    state: State,
}

enum State {
    Open,
    /// With what the object became.
    Finished(Value),
    Cancelled,
}

/// The POST that begins a session.
pub(crate) async fn open(services: &Services, mut call: Call, bucket: &str) -> Handled {
    let body = call.body.all().await?;
    services.record_body(call.number, &body);
    let fields = if body.is_empty() { Map::new() } else { metadata_fields(&body)? };
    let mut plan = Plan::new(&call, bucket, fields)?;
    let declared = |name| call.headers.get(name).and_then(|value| value.to_str().ok());
    plan.content_type = plan.content_type.or(declared("x-upload-content-type").map(str::to_owned));
    let length = declared("x-upload-content-length").and_then(|length| length.parse().ok());
    start(services, &mut call.body, &plan).await?;
    if let Err(unmet) = services.objects.check(bucket, &plan.name, &plan.conditions) {
        services.count(|counters| counters.uploads_refused += 1);
        return Ok(refused(unmet, bucket, &plan.name));
    }
    let (addr, name) =
        (services.addr, utf8_percent_encode(&plan.name, NON_ALPHANUMERIC).to_string());
    let mut sessions = lock(&services.sessions.0);
    let id = format!("emulated-session-{}", sessions.len() + 1);
    sessions.insert(id.clone(), Session { plan, length, received: Vec::new(), state: State::Open });
    let query = format!("uploadType=resumable&name={name}&upload_id={id}");
    let location = format!("http://{addr}/upload/storage/v1/b/{bucket}/o?{query}");
    Ok(Answer::empty(StatusCode::OK).with("location", location).with("x-guploader-uploadid", id))
}

/// A PUT or DELETE to a session, which needs no token.
pub(crate) async fn session(services: &Arc<Services>, mut call: Call, id: &str) -> Handled {
    let plan = match lock(&services.sessions.0).get(id) {
        None => return Ok(error(StatusCode::NOT_FOUND, "notFound", "No such upload session.")),
        Some(Session { state: State::Cancelled, .. }) => {
            return Ok(error(StatusCode::GONE, "gone", "The upload session was cancelled."));
        }
        Some(Session { state: State::Finished(resource), .. }) => {
            return Ok(Answer::json(StatusCode::OK, resource));
        }
        Some(session) => session.plan.clone(),
    };
    if call.method == Method::DELETE {
        with_session(services, id, |session| session.state = State::Cancelled)?;
        return Ok(Answer::empty(StatusCode::from_u16(499).expect("three digits are a status")));
    }
    let chunk = match call.headers.get(header::CONTENT_RANGE) {
        None => Chunk::WHOLE,
        Some(value) => value
            .to_str()
            .ok()
            .and_then(Chunk::parse)
            .ok_or_else(|| Refusal::from(invalid("Failed to parse Content-Range header.")))?,
    };
    if chunk.first.is_some() {
        break_off(services, &mut call, id, &plan, &chunk).await?;
    }
    let body = call.body.all().await?;
    let Some(bytes) = with_session(services, id, |session| session.take(&chunk, &body))?? else {
        return with_session(services, id, |session| session.progress());
    };
    plan.verify(&call.headers, &bytes)?;
    let resource = commit(services, plan.clone(), bytes).await?;
    with_session(services, id, |session| {
        session.received = Vec::new();
        session.state = State::Finished(resource.clone());
    })?;
    confirm(services, &plan.subject(), resource).await
}

fn with_session<T>(
    services: &Services,
    id: &str,
    act: impl FnOnce(&mut Session) -> T,
) -> Result<T, Refusal> {
    let mut sessions = lock(&services.sessions.0);
    let gone = || Refusal::from(error(StatusCode::GONE, "gone", "The upload session is gone."));
    sessions.get_mut(id).map(act).ok_or_else(gone)
}

/// Lets a fault break a chunk off; what came before stays, in whole units, as at Google.
async fn break_off(
    services: &Services,
    call: &mut Call,
    id: &str,
    plan: &Plan,
    chunk: &Chunk,
) -> Result<(), Refusal> {
    let Some(fault) = services.faults.take(Stage::UploadBody, &plan.subject()) else {
        return Ok(());
    };
    call.body.at_least(fault.after).await?;
    if matches!(fault.action, Action::Delay { .. } | Action::WrongChecksum) {
        return hinder(Some(fault)).await;
    }
    let read = usize::try_from(fault.after).unwrap_or(usize::MAX).min(call.body.read.len());
    let kept = Bytes::copy_from_slice(&call.body.read[..read - read % UNIT_BYTES]);
    drain(Some(&fault), &mut call.body).await?;
    let part = Chunk { first: chunk.first, last: None, total: None };
    with_session(services, id, |session| session.take(&part, &kept))??;
    if matches!(fault.action, Action::Truncate) {
        return Err(with_session(services, id, |session| session.progress())?.into());
    }
    hinder(Some(fault)).await
}

impl Session {
    /// Takes a chunk in; returns the object's bytes when it was the last.
    fn take(&mut self, chunk: &Chunk, body: &[u8]) -> Result<Option<Bytes>, Refusal> {
        let held = self.received.len() as u64;
        if let Some(first) = chunk.first {
            chunk
                .check(first, body.len(), held)
                .map_err(|problem| Refusal::from(invalid(&problem)))?;
            let known = usize::try_from(held - first).unwrap_or(usize::MAX).min(body.len());
            self.received.extend_from_slice(&body[known..]);
        }
        let total = chunk.total(self.received.len() as u64);
        if let (Some(total), Some(length)) = (total, self.length)
            && total != length
        {
            return Err(
                invalid(&format!("Upload length is {total} where {length} was declared.")).into()
            );
        }
        let complete = total == Some(self.received.len() as u64);
        Ok(complete.then(|| Bytes::copy_from_slice(&self.received)))
    }

    /// 308, with what has been kept so far.
    fn progress(&self) -> Answer {
        let answer = Answer::empty(StatusCode::PERMANENT_REDIRECT);
        match self.received.len() {
            0 => answer,
            held => answer.with("range", format!("bytes=0-{}", held - 1)),
        }
    }
}

/// `Content-Range: bytes FIRST-LAST/TOTAL` of a PUT, where either side may be `*`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Chunk {
    /// None asks for the status, or ends the upload.
    first: Option<u64>,
    last: Option<u64>,
    total: Option<Total>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Total {
    Bytes(u64),
    /// Whatever this body brings is all there is.
    ThisBody,
}

impl Chunk {
    /// A PUT without the header.
    const WHOLE: Self = Self { first: Some(0), last: None, total: Some(Total::ThisBody) };

    fn parse(value: &str) -> Option<Self> {
        let (span, total) = value.strip_prefix("bytes ")?.split_once('/')?;
        let total = if total == "*" { None } else { Some(total.parse::<u64>().ok()?) };
        let (first, last) = match span.split_once('-') {
            None if span == "*" => (None, None),
            None => return None,
            Some((first, last)) => (Some(first.parse().ok()?), Some(last.parse().ok()?)),
        };
        let in_order = first <= last && (last.is_none() || total.is_none() || last < total);
        in_order.then_some(Self { first, last, total: total.map(Total::Bytes) })
    }

    fn total(&self, held: u64) -> Option<u64> {
        self.total.map(|total| match total {
            Total::Bytes(bytes) => bytes,
            Total::ThisBody => held,
        })
    }

    /// Refuses a body that is not what the header says, has a gap before it, or is no whole number of units.
    fn check(&self, first: u64, size: usize, held: u64) -> Result<(), String> {
        let end = first + size as u64;
        if let Some(last) = self.last.filter(|last| last + 1 != end) {
            return Err(format!(
                "Invalid request.  There were {size} byte(s) in the request body.  There should have been {} byte(s) \
                 (starting at offset {first} and ending at offset {last}) according to the Content-Range header.",
                last + 1 - first,
            ));
        }
        if first > held {
            return Err(format!("Invalid request.  The next byte to be received is {held}."));
        }
        if self.total(end) != Some(end) && !size.is_multiple_of(UNIT_BYTES) {
            return Err(format!(
                "Invalid request.  The number of bytes uploaded is required to be equal or greater than {UNIT_BYTES}, \
                 except for the final request (it's recommended to be the exact multiple of {UNIT_BYTES}).  \
                 The received request contained {size} bytes, which does not meet this requirement."
            ));
        }
        Ok(())
    }
}

/// All chunks but the last are multiples of it.
const UNIT_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        let bytes = |first, last, total: Option<u64>| {
            Some(Chunk { first, last, total: total.map(Total::Bytes) })
        };
        assert_eq!(Chunk::parse("bytes 0-9/10"), bytes(Some(0), Some(9), Some(10)));
        assert_eq!(Chunk::parse("bytes 10-19/*"), bytes(Some(10), Some(19), None));
        assert_eq!(Chunk::parse("bytes */10"), bytes(None, None, Some(10)));
        assert_eq!(Chunk::parse("bytes */*"), bytes(None, None, None));
        for wrong in ["0-9/10", "bytes 9-0/10", "bytes 0-10/10", "bytes 0/10", "bytes a-b/c", ""] {
            assert_eq!(Chunk::parse(wrong), None, "{wrong}");
        }
    }
}
