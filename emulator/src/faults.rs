//! Scripted faults: what goes wrong, at which stage, how often.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::wire::{Answer, Broken, Ending, Handled, Refusal};
use crate::{rpc_error, storage_error};

/// One thing that goes wrong; as JSON `{"stage": "model", "action": {"answer": {"status": 503}}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub stage: Stage,
    /// Part of the subject: `BUCKET/OBJECT-NAME` in Cloud Storage, elsewhere the decoded path.
    #[serde(default)]
    pub matching: String,
    /// How many requests it hits; `None` (JSON `null`) is every one.
    #[serde(default = "once")]
    pub times: Option<u32>,
    /// Bytes let through first: of the request's body at `UploadBody`, else of the answer's.
    #[serde(default)]
    pub after: u64,
    pub action: Action,
}

/// When a fault acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Any endpoint that hands out access tokens.
    Token,
    /// Before the model is called: nothing is paid.
    Model,
    /// While the paid answer is sent.
    Answer,
    /// A GET of an object's metadata or media.
    Read,
    /// Before an upload's media is read; for a resumable one, at the start of its session.
    UploadStart,
    /// Once `after` bytes of an upload's body are read.
    UploadBody,
    /// When the object has been stored.
    UploadEnd,
    /// Before an object is deleted.
    Delete,
}

/// What a fault does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Answers this instead. An upload's body is read to its end first, so the answer arrives.
    Answer {
        status: u16,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        /// Without one, the error that Google sends with this status.
        #[serde(default)]
        body: Option<String>,
    },
    /// Waits, then goes on as if nothing had been.
    Delay { ms: u64 },
    /// Falls silent until the peer or the emulator goes away.
    Stall,
    /// Breaks the connection with a TCP RST.
    Reset,
    /// Closes the connection cleanly; a resumable upload's chunk is instead kept up to `after` only.
    Truncate,
    /// Stores the object and reports another `crc32c` (only at `UploadEnd`).
    WrongChecksum,
}

impl Fault {
    /// A fault that hits one request, whatever its subject.
    pub fn new(stage: Stage, action: Action) -> Self {
        Self { stage, matching: String::new(), times: once(), after: 0, action }
    }

    pub fn matching(self, part: impl Into<String>) -> Self {
        Self { matching: part.into(), ..self }
    }

    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Hits every request.
    pub fn always(self) -> Self {
        Self { times: None, ..self }
    }

    pub fn after(self, bytes: u64) -> Self {
        Self { after: bytes, ..self }
    }
}

impl Action {
    /// Google's own error for this status.
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: BTreeMap::new(), body: None }
    }

    /// Any answer at all, for instance a recorded one.
    pub fn answer_with(status: u16, content_type: &str, body: impl Into<String>) -> Self {
        Self::status(status).header("content-type", content_type).body(body)
    }

    /// Adds a header to an answer; other actions have none.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.insert(name.to_owned(), value.to_owned());
        }
        self
    }

    fn body(mut self, text: impl Into<String>) -> Self {
        if let Self::Answer { body, .. } = &mut self {
            *body = Some(text.into());
        }
        self
    }

    /// Whether HTTP can carry it: a known status, headers without control characters.
    pub fn validate(&self) -> Result<(), String> {
        let Self::Answer { status, headers, .. } = self else {
            return Ok(());
        };
        StatusCode::from_u16(*status).map_err(|error| format!("status {status}: {error}"))?;
        for (name, value) in headers {
            name.parse::<HeaderName>().map_err(|error| format!("header {name}: {error}"))?;
            value.parse::<HeaderValue>().map_err(|error| format!("header {name}: {error}"))?;
        }
        Ok(())
    }
}

fn once() -> Option<u32> {
    Some(1)
}

/// The faults still to come, in the order in which they were scripted.
#[derive(Default)]
pub(crate) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub fn push(&self, fault: Fault) {
        if fault.times != Some(0) {
            self.lock().push(fault);
        }
    }

    pub fn clear(&self) {
        self.lock().clear();
    }

    /// The first fault for this stage and subject, used up by one.
    pub fn take(&self, stage: Stage, subject: &str) -> Option<Fault> {
        let mut faults = self.lock();
        let index = faults
            .iter()
            .position(|fault| fault.stage == stage && subject.contains(&fault.matching))?;
        let taken = faults[index].clone();
        if let Some(times) = &mut faults[index].times {
            *times = times.saturating_sub(1);
        }
        faults.retain(|fault| fault.times != Some(0));
        Some(taken)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a fault act before the work of its stage is done.
pub(crate) async fn hinder(fault: Option<Fault>) -> Result<(), Refusal> {
    let Some(fault) = fault else { return Ok(()) };
    match fault.action {
        Action::Answer { status, headers, body } => {
            Err(scripted(fault.stage, status, headers, body).into())
        }
        Action::Delay { ms } => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok(())
        }
        Action::Stall => Err(Refusal::Break(Ending::Stall)),
        Action::Reset => Err(Refusal::Break(Ending::Reset)),
        Action::Truncate => Err(Refusal::Break(Ending::Close)),
        Action::WrongChecksum => Ok(()),
    }
}

/// Lets a fault act on the answer after the work has been done.
pub(crate) async fn spoil(fault: Option<Fault>, mut answer: Answer) -> Handled {
    let Some(fault) = fault else {
        return Ok(answer);
    };
    let ending = match fault.action {
        Action::Stall => Ending::Stall,
        Action::Reset => Ending::Reset,
        Action::Truncate => Ending::Close,
        Action::Answer { .. } | Action::Delay { .. } | Action::WrongChecksum => {
            hinder(Some(fault)).await?;
            return Ok(answer);
        }
    };
    if fault.after == 0 {
        return Err(Refusal::Break(ending));
    }
    answer.broken = Some(Broken { after: fault.after, ending });
    Ok(answer)
}

fn scripted(
    stage: Stage,
    status: u16,
    headers: BTreeMap<String, String>,
    body: Option<String>,
) -> Answer {
    let mut answer = match (body, stage) {
        (Some(body), _) => Answer::new(code(status), "application/json; charset=UTF-8", body),
        (None, Stage::Token | Stage::Model | Stage::Answer) => rpc_error::plain_error(code(status)),
        (
            None,
            Stage::Read | Stage::UploadStart | Stage::UploadBody | Stage::UploadEnd | Stage::Delete,
        ) => storage_error::plain_error(code(status)),
    };
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            answer.headers.insert(name, value);
        }
    }
    if answer.body.is_empty() {
        answer.headers.remove(header::CONTENT_TYPE);
    }
    answer
}

fn code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_used_up_by_matching_requests_only() {
        let faults = Faults::default();
        faults.push(Fault::new(Stage::Model, Action::Reset).matching("banana").times(2));
        assert_eq!(faults.take(Stage::Model, "models/gemini-3-pro-image"), None);
        assert_eq!(faults.take(Stage::Answer, "models/nano-banana"), None);
        assert!(faults.take(Stage::Model, "models/nano-banana").is_some());
        assert!(faults.take(Stage::Model, "models/nano-banana").is_some());
        assert_eq!(faults.take(Stage::Model, "models/nano-banana"), None);
    }

    #[test]
    fn the_shortest_json_of_a_fault_hits_once() {
        let json = r#"{"stage": "upload_body", "after": 9, "action": "stall"}"#;
        let fault: Fault = serde_json::from_str(json).expect("it is a fault");
        assert_eq!(fault, Fault::new(Stage::UploadBody, Action::Stall).after(9));
    }
}
