//! The body of a request, read as far as a handler needs it.

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::response::{Ending, Refusal};

pub(crate) struct BodyReader {
    /// `None` if the whole body is in `read`.
    body: Option<Incoming>,
    /// What has arrived so far.
    pub read: BytesMut,
}

impl BodyReader {
    pub fn new(body: Incoming) -> Self {
        Self { body: Some(body), read: BytesMut::new() }
    }

    /// Reads a little more; false at the end. A client that breaks off gets no response.
    pub async fn more(&mut self) -> Result<bool, Refusal> {
        let Some(body) = &mut self.body else {
            return Ok(false);
        };
        let frame = match body.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return Err(Refusal::Abort(Ending::Close)),
            None => return Ok(false),
        };
        if let Ok(mut data) = frame.into_data() {
            self.read.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        Ok(true)
    }

    pub async fn at_least(&mut self, bytes: u64) -> Result<(), Refusal> {
        while (self.read.len() as u64) < bytes && self.more().await? {}
        Ok(())
    }

    pub async fn all(&mut self) -> Result<Bytes, Refusal> {
        while self.more().await? {}
        Ok(self.read.split().freeze())
    }
}

impl From<Bytes> for BodyReader {
    fn from(bytes: Bytes) -> Self {
        Self { body: None, read: bytes.into() }
    }
}
