//! Scripted faults: what goes wrong, with which requests, how often.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::image::ImageSpec;
use crate::response::{Cut, Delivery, Ending, HandlerResult, Refusal, Response};
use crate::{rpc_error, storage_error};

/// One thing that goes wrong; as JSON `{"stage": "model", "action": {"response": {"status":
/// 503}}}`.
///
/// It acts on a request that meets all of the conditions: `matching`, `prefix`, `suffix`, `prompt`,
/// `write`, `metadata` and `without_metadata`; those that are left out hold for every request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub stage: Stage,
    /// Part of `BUCKET/OBJECT-NAME` in Cloud Storage, otherwise of the decoded path.
    #[serde(default)]
    pub matching: String,
    /// How the object's name begins (without its bucket), otherwise the decoded path.
    #[serde(default)]
    pub prefix: String,
    /// How the object's name ends, otherwise the decoded path.
    #[serde(default)]
    pub suffix: String,
    /// Part of the prompt; no other stage than `model` and `response` has one.
    #[serde(default)]
    pub prompt: String,
    /// Uploads that create an object, or those that overwrite one.
    #[serde(default)]
    pub write: Option<Write>,
    /// Keys that the object's custom metadata has: the uploaded one's, otherwise the stored one's.
    #[serde(default)]
    pub metadata: Vec<String>,
    /// Keys that the object's custom metadata lacks.
    #[serde(default)]
    pub without_metadata: Vec<String>,
    /// How many requests that meet the conditions pass first.
    #[serde(default)]
    pub skip: u32,
    /// How many requests it then acts on; `None` (JSON `null`) is every one.
    #[serde(default = "once")]
    pub times: Option<u32>,
    /// Bytes let through first: of the request's body at `upload_body`, otherwise of the
    /// response's.
    #[serde(default)]
    pub after: u64,
    pub action: Action,
}

/// The operation at which a fault acts, and the moment in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Any endpoint that issues access tokens.
    Token,
    /// Before the model is called: nothing is paid.
    Model,
    /// While the response with the paid image is sent.
    Response,
    /// `Stat` or `Download`.
    Read,
    /// A GET of an object's metadata.
    Stat,
    /// A GET of an object's content.
    Download,
    List,
    /// `testIamPermissions`.
    Permissions,
    /// Before an upload's media is read; for a resumable one, at the start of its session.
    UploadStart,
    /// Once `after` bytes of an upload's body are read.
    UploadBody,
    /// When the object has been stored.
    UploadEnd,
    /// Before an object is deleted.
    Delete,
    /// When the object has been deleted.
    DeleteEnd,
}

/// What an upload does to the name: creates it (`ifGenerationMatch=0`, or nothing is there) or
/// overwrites it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    Create,
    Overwrite,
}

/// What a fault does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Sends this response instead. An upload's body is read to its end first, so the response
    /// arrives.
    Response(ScriptedResponse),
    /// Waits, then continues as usual.
    Delay { ms: u64 },
    /// Never responds: silent until the client or the emulator goes away.
    Stall,
    /// Breaks the connection with a TCP RST.
    Reset,
    /// Closes the connection cleanly; a resumable upload's chunk is instead kept up to `after`
    /// only.
    Truncate,
    /// Stores the object and reports another `crc32c` (only at `upload_end`).
    WrongChecksum,
}

/// A response to send instead of the ordinary one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptedResponse {
    #[serde(default = "ok")]
    pub status: u16,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// A string is sent as it is, anything else as JSON. At `response`, `$IMAGE` in it becomes the
    /// image in base64. Without a body: the ordinary one for status 200, otherwise Google's error
    /// for the status.
    #[serde(default)]
    pub body: Option<Value>,
    /// The image, instead of the one that the request asks for.
    #[serde(default)]
    pub image: Option<ImageSpec>,
    /// Without it a body given here is sent at once, with `Content-Length`, and the ordinary one as
    /// usual.
    #[serde(default)]
    pub delivery: Option<Delivery>,
}

impl Fault {
    /// A fault that acts on one request, whichever comes first.
    pub fn new(stage: Stage, action: Action) -> Self {
        Self {
            stage,
            matching: String::new(),
            prefix: String::new(),
            suffix: String::new(),
            prompt: String::new(),
            write: None,
            metadata: Vec::new(),
            without_metadata: Vec::new(),
            skip: 0,
            times: once(),
            after: 0,
            action,
        }
    }

    pub fn matching(self, part: impl Into<String>) -> Self {
        Self { matching: part.into(), ..self }
    }

    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    pub fn suffix(self, suffix: impl Into<String>) -> Self {
        Self { suffix: suffix.into(), ..self }
    }

    pub fn prompt(self, part: impl Into<String>) -> Self {
        Self { prompt: part.into(), ..self }
    }

    pub fn write(self, write: Write) -> Self {
        Self { write: Some(write), ..self }
    }

    /// Adds a key that the object's custom metadata must have.
    pub fn with_metadata(mut self, key: impl Into<String>) -> Self {
        self.metadata.push(key.into());
        self
    }

    /// Adds a key that the object's custom metadata must lack.
    pub fn without_metadata(mut self, key: impl Into<String>) -> Self {
        self.without_metadata.push(key.into());
        self
    }

    /// Lets this many matching requests pass first.
    pub fn skip(self, requests: u32) -> Self {
        Self { skip: requests, ..self }
    }

    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Acts on every matching request.
    pub fn always(self) -> Self {
        Self { times: None, ..self }
    }

    pub fn after(self, bytes: u64) -> Self {
        Self { after: bytes, ..self }
    }

    fn acts_on(&self, stage: Stage, subject: &Subject) -> bool {
        let has = |key: &String| subject.metadata.is_some_and(|fields| fields.contains_key(key));
        self.stage.covers(stage)
            && subject.path.contains(&self.matching)
            && subject.name.starts_with(&self.prefix)
            && subject.name.ends_with(&self.suffix)
            && subject.prompt.contains(&self.prompt)
            && (self.write.is_none() || self.write == subject.write)
            && self.metadata.iter().all(has)
            && !self.without_metadata.iter().any(has)
    }
}

impl Stage {
    fn covers(self, stage: Self) -> bool {
        self == stage || self == Self::Read && matches!(stage, Self::Stat | Self::Download)
    }

    /// The permission that Cloud Storage requires at this stage.
    fn permission(self) -> &'static str {
        match self {
            Self::Read | Self::Stat | Self::Download => "storage.objects.get",
            Self::List => "storage.objects.list",
            Self::Delete | Self::DeleteEnd => "storage.objects.delete",
            Self::Permissions => "storage.buckets.get",
            Self::UploadStart | Self::UploadBody | Self::UploadEnd => "storage.objects.create",
            Self::Token | Self::Model | Self::Response => "",
        }
    }

    /// Google's error at this stage.
    fn error(self, status: StatusCode) -> Response {
        match self {
            Self::Token | Self::Model | Self::Response => rpc_error::plain_error(status),
            _ => storage_error::plain_error(status, self.permission()),
        }
    }
}

impl Action {
    /// Google's own error for this status.
    pub fn status(status: u16) -> Self {
        Self::Response(ScriptedResponse { status, ..ScriptedResponse::default() })
    }

    /// Any response at all, for instance a recorded one.
    pub fn response_with(status: u16, content_type: &str, body: impl Into<String>) -> Self {
        let body = Some(Value::String(body.into()));
        let response = ScriptedResponse { status, body, ..ScriptedResponse::default() };
        Self::Response(response).header("content-type", content_type)
    }

    /// A 200 with this JSON; `$IMAGE` in it becomes an image in base64.
    pub fn json(body: Value) -> Self {
        Self::Response(ScriptedResponse { body: Some(body), ..ScriptedResponse::default() })
    }

    /// The ordinary response with another image.
    pub fn image(image: ImageSpec) -> Self {
        Self::Response(ScriptedResponse { image: Some(image), ..ScriptedResponse::default() })
    }

    /// The ordinary response, sent like this.
    pub fn deliver(delivery: Delivery) -> Self {
        Self::Response(ScriptedResponse::default()).delivery(delivery)
    }

    /// Adds a header to a response; other actions have none.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Self::Response(response) = &mut self {
            response.headers.insert(name.to_owned(), value.to_owned());
        }
        self
    }

    /// Sets how a response is sent; other actions send none.
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        if let Self::Response(response) = &mut self {
            response.delivery = Some(delivery);
        }
        self
    }

    /// Whether HTTP can carry it: a known status, headers without control characters.
    pub(crate) fn validate(&self) -> Result<(), String> {
        let Self::Response(response) = self else {
            return Ok(());
        };
        let status = response.status;
        StatusCode::from_u16(status).map_err(|error| format!("status {status}: {error}"))?;
        for (name, value) in &response.headers {
            name.parse::<HeaderName>().map_err(|error| format!("header {name}: {error}"))?;
            value.parse::<HeaderValue>().map_err(|error| format!("header {name}: {error}"))?;
        }
        Ok(())
    }
}

impl Default for ScriptedResponse {
    fn default() -> Self {
        Self { status: ok(), headers: BTreeMap::new(), body: None, image: None, delivery: None }
    }
}

impl ScriptedResponse {
    /// Puts the image in base64 where the body has the placeholder.
    pub(crate) fn fill_in(&mut self, base64: impl FnOnce() -> String) {
        let text = self.body.take().map(|body| match body {
            Value::String(text) => text,
            json => json.to_string(),
        });
        let filled = text.map(|text| match text.contains(PLACEHOLDER) {
            true => text.replace(PLACEHOLDER, &base64()),
            false => text,
        });
        self.body = filled.map(Value::String);
    }

    /// The response to send at this stage in place of the ordinary one.
    fn into_response(self, stage: Stage, ordinary: Option<Response>) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = match (self.body, ordinary) {
            (None, Some(ordinary)) if self.status == ok() => ordinary,
            (None, _) => stage.error(status),
            (Some(Value::String(text)), _) => Response::new(status, JSON, text),
            (Some(value), _) => Response::new(status, JSON, value.to_string()),
        };
        for (name, value) in self.headers {
            if let (Ok(name), Ok(value)) =
                (name.parse::<HeaderName>(), value.parse::<HeaderValue>())
            {
                response.headers.insert(name, value);
            }
        }
        if response.body.is_empty() {
            response.headers.remove(header::CONTENT_TYPE);
        }
        response.delivery = self.delivery.unwrap_or(response.delivery);
        response.is_scripted = true;
        response
    }
}

/// What a fault's conditions are compared with.
#[derive(Clone, Copy, Default)]
pub(crate) struct Subject<'a> {
    /// `BUCKET/OBJECT-NAME`, or the decoded path.
    pub path: &'a str,
    /// The object's name, or the decoded path.
    pub name: &'a str,
    pub prompt: &'a str,
    pub write: Option<Write>,
    /// The object's custom metadata.
    pub metadata: Option<&'a Map<String, Value>>,
}

impl<'a> Subject<'a> {
    pub fn path(path: &'a str) -> Self {
        Self { path, name: path, ..Self::default() }
    }

    /// `path` is `BUCKET/OBJECT-NAME`.
    pub fn object(path: &'a str, metadata: Option<&'a Value>) -> Self {
        let name = path.split_once('/').map_or(path, |(_, name)| name);
        let metadata = metadata.and_then(Value::as_object);
        Self { path, name, metadata, ..Self::default() }
    }
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

    /// The first fault that acts on this stage and subject; its remaining `times` decrease by one.
    /// Faults that still skip requests count this one.
    pub fn take(&self, stage: Stage, subject: Subject) -> Option<Fault> {
        let mut faults = self.lock();
        let mut matching = faults.iter_mut().filter(|fault| fault.acts_on(stage, &subject));
        let taken = matching.find_map(|fault| {
            if fault.skip > 0 {
                fault.skip -= 1;
                return None;
            }
            if let Some(times) = &mut fault.times {
                *times -= 1;
            }
            Some(fault.clone())
        });
        faults.retain(|fault| fault.times != Some(0));
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a fault act before the work of its stage is done.
pub(crate) async fn apply_before(fault: Option<Fault>) -> Result<(), Refusal> {
    let Some(fault) = fault else { return Ok(()) };
    match fault.action {
        Action::Response(response) => Err(response.into_response(fault.stage, None).into()),
        Action::Delay { ms } => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok(())
        }
        Action::Stall => Err(Refusal::Abort(Ending::Stall)),
        Action::Reset => Err(Refusal::Abort(Ending::Reset)),
        Action::Truncate => Err(Refusal::Abort(Ending::Close)),
        Action::WrongChecksum => Ok(()),
    }
}

/// Lets a fault act on the response after the work has been done.
pub(crate) async fn apply_after(fault: Option<Fault>, mut response: Response) -> HandlerResult {
    let Some(fault) = fault else {
        return Ok(response);
    };
    let ending = match fault.action {
        Action::Response(scripted) => {
            return Ok(scripted.into_response(fault.stage, Some(response)));
        }
        Action::Delay { .. } | Action::WrongChecksum => {
            apply_before(Some(fault)).await?;
            return Ok(response);
        }
        Action::Stall => Ending::Stall,
        Action::Reset => Ending::Reset,
        Action::Truncate => Ending::Close,
    };
    if fault.after == 0 {
        return Err(Refusal::Abort(ending));
    }
    response.delivery.cut = Some(Cut { after: fault.after, ending });
    Ok(response)
}

fn once() -> Option<u32> {
    Some(1)
}

fn ok() -> u16 {
    200
}

const PLACEHOLDER: &str = "$IMAGE";
const JSON: &str = "application/json; charset=UTF-8";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fault_is_used_up_by_matching_requests_only() {
        let faults = Faults::default();
        faults.push(Fault::new(Stage::Model, Action::Reset).matching("banana").times(2));
        let banana = Subject::path("models/nano-banana");
        assert_eq!(faults.take(Stage::Model, Subject::path("models/gemini-3-pro-image")), None);
        assert_eq!(faults.take(Stage::Response, banana), None);
        assert!(faults.take(Stage::Model, banana).is_some());
        assert!(faults.take(Stage::Model, banana).is_some());
        assert_eq!(faults.take(Stage::Model, banana), None);
    }

    #[test]
    fn the_third_overwrite_of_a_record_can_be_named() {
        let faults = Faults::default();
        let third = Fault::new(Stage::UploadStart, Action::Stall)
            .prefix("images/.iga/")
            .write(Write::Overwrite)
            .without_metadata("image")
            .skip(2);
        faults.push(third);
        let metadata = json!({"holder": "a"});
        let record = |write| {
            let subject = Subject::object("bucket/images/.iga/key/1", Some(&metadata));
            Subject { write: Some(write), ..subject }
        };
        let receipt = json!({"holder": "a", "image": "fox.png"});
        let receipt = Subject { metadata: receipt.as_object(), ..record(Write::Overwrite) };
        let mut taken = Vec::new();
        for subject in [record(Write::Create), record(Write::Overwrite), receipt]
            .into_iter()
            .chain([record(Write::Overwrite); 3])
        {
            taken.push(faults.take(Stage::UploadStart, subject).is_some());
        }
        assert_eq!(taken, [false, false, false, false, true, false]);
    }

    #[test]
    fn the_shortest_json_of_a_fault_acts_once() {
        let json = r#"{"stage": "upload_body", "after": 9, "action": "stall"}"#;
        let fault: Fault = serde_json::from_str(json).expect("it is a fault");
        assert_eq!(fault, Fault::new(Stage::UploadBody, Action::Stall).after(9));
    }
}
