//! The sessions of resumable uploads: what they have received, and what may follow.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use crate::response::{Refusal, Response};
use crate::storage_error::{error, invalid};
use crate::upload_spec::UploadSpec;

/// Every session so far.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<String, Session>>);

pub(crate) struct Session {
    pub upload: UploadSpec,
    /// As declared at the start.
    pub length: Option<u64>,
    pub received: Vec<u8>,
    pub state: State,
}

pub(crate) enum State {
    Open,
    /// With the object's metadata.
    Finished(Value),
    Cancelled,
}

impl Sessions {
    /// Opens a session and returns its id.
    pub fn open(&self, upload: UploadSpec, length: Option<u64>) -> String {
        let mut sessions = self.lock();
        let id = format!("emulated-session-{}", sessions.len() + 1);
        let session = Session { upload, length, received: Vec::new(), state: State::Open };
        sessions.insert(id.clone(), session);
        id
    }

    pub fn with<T>(&self, id: &str, act: impl FnOnce(&mut Session) -> T) -> Result<T, Refusal> {
        let missing = || error(StatusCode::NOT_FOUND, "notFound", "No such upload session.");
        self.lock().get_mut(id).map(act).ok_or_else(|| missing().into())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Stores a chunk; returns the object's bytes if it was the last.
    pub fn store(&mut self, range: &ContentRange, body: &[u8]) -> Result<Option<Bytes>, Refusal> {
        let held = self.received.len() as u64;
        if let Some(first) = range.first {
            range
                .check(first, body.len(), held)
                .map_err(|problem| Refusal::from(invalid(&problem)))?;
            let known = usize::try_from(held - first).unwrap_or(usize::MAX).min(body.len());
            self.received.extend_from_slice(&body[known..]);
        }
        let total = range.total(self.received.len() as u64);
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

    /// 308, with the range that has been stored so far.
    pub fn progress(&self) -> Response {
        let response = Response::empty(StatusCode::PERMANENT_REDIRECT);
        match self.received.len() {
            0 => response,
            held => response.with("range", format!("bytes=0-{}", held - 1)),
        }
    }
}

/// `Content-Range: bytes FIRST-LAST/TOTAL` of a PUT, where either side may be `*`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ContentRange {
    /// `None` asks for the status, or ends the upload.
    pub first: Option<u64>,
    pub last: Option<u64>,
    pub total: Option<Total>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Total {
    Bytes(u64),
    /// The object ends with this body.
    ThisBody,
}

impl ContentRange {
    /// A PUT without the header.
    pub const WHOLE: Self = Self { first: Some(0), last: None, total: Some(Total::ThisBody) };

    pub fn parse(value: &str) -> Option<Self> {
        let (span, total) = value.strip_prefix("bytes ")?.split_once('/')?;
        let total = if total == "*" { None } else { Some(total.parse::<u64>().ok()?) };
        let (first, last) = match span.split_once('-') {
            None if span == "*" => (None, None),
            None => return None,
            // The object ends with this body, wherever that is.
            Some((first, "*")) => {
                let total = total.map_or(Total::ThisBody, Total::Bytes);
                return Some(Self {
                    first: Some(first.parse().ok()?),
                    last: None,
                    total: Some(total),
                });
            }
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

    /// Refuses a body that contradicts the header, leaves a gap, or is not a whole number of units.
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
pub(crate) const UNIT_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        let bytes = |first, last, total: Option<u64>| {
            Some(ContentRange { first, last, total: total.map(Total::Bytes) })
        };
        assert_eq!(ContentRange::parse("bytes 0-9/10"), bytes(Some(0), Some(9), Some(10)));
        assert_eq!(ContentRange::parse("bytes 10-19/*"), bytes(Some(10), Some(19), None));
        assert_eq!(ContentRange::parse("bytes */10"), bytes(None, None, Some(10)));
        assert_eq!(ContentRange::parse("bytes */*"), bytes(None, None, None));
        let to_the_end = ContentRange { first: Some(5), last: None, total: Some(Total::ThisBody) };
        assert_eq!(ContentRange::parse("bytes 5-*/*"), Some(to_the_end));
        for wrong in ["0-9/10", "bytes 9-0/10", "bytes 0-10/10", "bytes 0/10", "bytes a-b/c", ""] {
            assert_eq!(ContentRange::parse(wrong), None, "{wrong}");
        }
    }
}
