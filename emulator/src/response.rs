//! Responses as the handlers make them, and the other ways in which a request can end.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a handler sends back.
pub(crate) struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub delivery: Delivery,
    /// A fault made or changed it.
    pub is_scripted: bool,
}

/// How the body of a response is sent; the default is at once, with `Content-Length`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Delivery {
    /// Send chunked, without `Content-Length`, in chunks of this size.
    pub chunk_bytes: Option<usize>,
    /// Pause before every chunk but the first.
    pub chunk_delay_ms: u64,
    /// How much larger than the body `Content-Length` is; without `cut` the connection then closes.
    pub excess_length: u64,
    pub cut: Option<Cut>,
}

/// Where the body of a response breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// Bytes of the body to send first. By default all of them: of a chunked body only the last,
    /// empty chunk is then missing.
    #[serde(default = "whole_body")]
    pub after: u64,
    pub ending: Ending,
}

/// How a connection ends before the response is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Close,
    /// TCP RST.
    Reset,
    /// The connection stays open and silent.
    Stall,
}

/// Why a request does not get the ordinary response.
pub(crate) enum Refusal {
    Response(Box<Response>),
    /// No response at all.
    Abort(Ending),
}

pub(crate) type HandlerResult = Result<Response, Refusal>;

impl Response {
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers =
            HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Self { headers, body: body.into(), ..Self::empty(status) }
    }

    pub fn empty(status: StatusCode) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            delivery: Delivery::default(),
            is_scripted: false,
        }
    }

    /// JSON with Google's indentation.
    pub fn json(status: StatusCode, value: &Value) -> Self {
        Self::new(status, "application/json; charset=UTF-8", format!("{value:#}\n"))
    }

    pub fn with(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        let value = HeaderValue::from_str(value.as_ref())
            .unwrap_or(HeaderValue::from_static("unprintable"));
        self.headers.insert(name, value);
        self
    }
}

impl From<Response> for Refusal {
    fn from(response: Response) -> Self {
        Self::Response(Box::new(response))
    }
}

impl Cut {
    /// Breaks off after the last byte of the body.
    pub fn after_body(ending: Ending) -> Self {
        Self { after: whole_body(), ending }
    }
}

fn whole_body() -> u64 {
    u64::MAX
}
