//! Cloud Storage: pictures, put once and confirmed ("Cloud Storage JSON API", "Objects: insert").

use crate::auth::{Auth, SendError};
use crate::error::{Error, Kind};
use crate::image::{Blob, Picture};
use crate::retry::{self, Again, Failure};
use crate::telemetry;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};

pub struct Storage {
    pub http: Client,
    pub auth: Arc<Auth>,
    /// Scheme, host and port.
    pub endpoint: String,
    pub bucket: String,
    /// Empty, or ending in a slash.
    pub prefix: String,
    pub first_wait: Duration,
    /// Set once the bucket is known to take objects.
    pub writable: OnceCell<()>,
}

/// What Cloud Storage says of an object ("Objects" resource).
#[derive(Debug, Clone, Deserialize)]
pub struct Stored {
    size: String,
    crc32c: String,
}

impl Storage {
    /// The object's name for a picture: fixed before the first try, so that trying again is safe.
    pub fn picture_name(&self, stem: &str, picture: &Picture) -> String {
        format!("{}{stem}.{}", self.prefix, picture.format.extension())
    }

    /// `gs://BUCKET/NAME`
    pub fn uri(&self, name: &str) -> String {
        format!("gs://{}/{name}", self.bucket)
    }

    /// Asks, once in a process, whether the bucket takes objects: nobody should pay for a picture
    /// that cannot be stored ("Buckets: testIamPermissions").
    ///
    /// # Errors
    /// Where Cloud Storage says that it does not. Any other answer is left for the upload to meet.
    pub async fn check_writable(&self, deadline: Instant) -> Result<(), Error> {
        self.writable.get_or_try_init(|| self.test_permission(deadline)).await.copied()
    }

    async fn test_permission(&self, deadline: Instant) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Granted {
            #[serde(default)]
            permissions: Vec<String>,
        }

        let url = format!("{}/storage/v1/b/{}/iam/testPermissions", self.endpoint, self.bucket);
        let query = [("permissions", CREATE_PERMISSION)];
        let response = match self.auth.send(deadline, || self.http.get(&url).query(&query)).await {
            Ok(response) => response,
            Err(SendError::Credentials(error)) => return Err(error),
            Err(SendError::Http(error)) => {
                tracing::debug!("bucket not checked: {error}");
                return Ok(());
            }
            Err(SendError::Deadline) => return Err(too_late()),
        };
        let status = response.status();
        let body = body(response, deadline).await;
        match (status, serde_json::from_slice::<Granted>(&body)) {
            (StatusCode::OK, Ok(granted)) if granted.permissions.is_empty() => Err(Kind::FileSave.because(format!(
                "This service's account may not create objects in bucket {} ({CREATE_PERMISSION}).",
                self.bucket
            ))),
            (StatusCode::NOT_FOUND, _) => match google_message(&body) {
                Some(message) => Err(Kind::FileSave.because(format!("Bucket {}: {message}", self.bucket))),
                None => Ok(()),
            },
            (_, _) => Ok(()),
        }
    }

    /// Puts a picture where nothing is yet, and returns once Cloud Storage has confirmed it, whole.
    ///
    /// # Errors
    /// Anything Cloud Storage refused after its retries.
    pub async fn put_picture(
        &self,
        name: &str,
        picture: &Picture,
        metadata: Value,
        deadline: Instant,
    ) -> Result<(), Error> {
        let start = Instant::now();
        let result = retry::until(deadline, self.first_wait, |_| {
            self.insert(name, picture.format.content_type(), &picture.blob, &metadata, deadline)
        });
        match result.await {
            Ok(()) => {
                telemetry::uploaded(picture.blob.len(), start.elapsed());
                Ok(())
            }
            Err(error) => {
                telemetry::upload_failed(&error.to_string());
                Err(error)
            }
        }
    }

    /// One multipart upload: metadata and media in one request.
    async fn insert(
        &self,
        name: &str,
        content_type: &str,
        blob: &Blob,
        metadata: &Value,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let resource = json!({
            "name": name,
            "contentType": content_type,
            "crc32c": crc32c_text(blob.crc32c()),
            "metadata": metadata,
        });
        let url = format!("{}/upload/storage/v1/b/{}/o", self.endpoint, self.bucket);
        let query = [("uploadType", "multipart"), ("name", name), ("ifGenerationMatch", "0")];
        let response = self.auth.send(deadline, || {
            let body = Multipart::new(&resource, content_type, blob);
            self.http
                .post(&url)
                .query(&query)
                .header(CONTENT_TYPE, format!("multipart/related; boundary={}", body.boundary))
                .header(CONTENT_LENGTH, body.remaining)
                .body(reqwest::Body::wrap(body))
        });
        let response = response.await.map_err(no_answer)?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => confirmed(response, blob, deadline).await,
            // An earlier try of ours may have made it, its answer lost.
            StatusCode::PRECONDITION_FAILED => self.check_stored(name, blob, deadline).await,
            _ => Err(refused(response, deadline).await),
        }
    }

    async fn check_stored(&self, name: &str, blob: &Blob, deadline: Instant) -> Result<(), Failure> {
        let name = utf8_percent_encode(name, PATH_SEGMENT);
        let url = format!("{}/storage/v1/b/{}/o/{name}", self.endpoint, self.bucket);
        let response = self.auth.send(deadline, || self.http.get(&url)).await.map_err(no_answer)?;
        match response.status() {
            StatusCode::OK => match stored(response, deadline).await {
                Some(stored) if stored.is(blob) => Ok(()),
                Some(_) => {
                    Err(Failure::never(Kind::FileSave.because("Another object already has the picture's name.")))
                }
                None => Err(Failure::later(Kind::FileSave.because("Cloud Storage's answer makes no sense."))),
            },
            _ => Err(refused(response, deadline).await),
        }
    }
}

impl Stored {
    fn is(&self, blob: &Blob) -> bool {
        self.size == blob.len().to_string() && self.crc32c == crc32c_text(blob.crc32c())
    }
}

/// A 200 counts only for the very bytes that were sent. Else the next try meets the object and looks again.
async fn confirmed(response: Response, blob: &Blob, deadline: Instant) -> Result<(), Failure> {
    match stored(response, deadline).await {
        Some(stored) if stored.is(blob) => Ok(()),
        Some(_) => Err(Failure::later(Kind::FileSave.because("Cloud Storage confirmed other bytes than were sent."))),
        None => Err(Failure::later(Kind::FileSave.because("Cloud Storage did not confirm the object."))),
    }
}

async fn stored(response: Response, deadline: Instant) -> Option<Stored> {
    serde_json::from_slice(&body(response, deadline).await).ok()
}

/// What could be read of a small answer; empty where it broke off.
async fn body(mut response: Response, deadline: Instant) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Ok(Some(piece))) = timeout_at(deadline, response.chunk()).await {
        body.extend_from_slice(&piece);
        if body.len() > MAX_ANSWER_BYTES {
            return Vec::new();
        }
    }
    body
}

fn no_answer(error: SendError) -> Failure {
    match error {
        SendError::Credentials(error) => Failure::never(error),
        SendError::Deadline => Failure::never(too_late()),
        SendError::Http(error) => {
            Failure::later(Kind::FileSave.because("Cloud Storage could not be reached.").caused_by(error))
        }
    }
}

fn too_late() -> Error {
    Kind::FileSave.because("Cloud Storage did not answer within the deadline.")
}

/// What an answer other than success means ("HTTP status and error codes for JSON", "Retry strategy").
async fn refused(response: Response, deadline: Instant) -> Failure {
    let status = response.status();
    let body = body(response, deadline).await;
    let message = google_message(&body).unwrap_or_else(|| format!("HTTP {} from Cloud Storage.", status.as_u16()));
    let again = match status.as_u16() {
        408 | 429 | 500 | 502 | 503 | 504 => Again::Later,
        _ => Again::Never,
    };
    Failure { error: Kind::FileSave.because(message), again }
}

fn google_message(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    body["error"]["message"].as_str().map(str::to_owned)
}

/// Base64 of the big-endian bytes, as Cloud Storage writes it.
fn crc32c_text(crc32c: u32) -> String {
    BASE64_STANDARD.encode(crc32c.to_be_bytes())
}

/// A `multipart/related` body that sends a blob's pieces as they are, its length known beforehand.
struct Multipart {
    boundary: String,
    pieces: std::vec::IntoIter<Bytes>,
    remaining: u64,
}

impl Multipart {
    fn new(resource: &Value, content_type: &str, blob: &Blob) -> Multipart {
        let boundary = crate::id::random_hex::<16>();
        let head = format!(
            "--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{resource}\r\n\
             --{boundary}\r\nContent-Type: {content_type}\r\n\r\n"
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        let remaining = (head.len() + blob.len() + tail.len()) as u64;
        let mut pieces = vec![Bytes::from(head)];
        pieces.extend_from_slice(blob.pieces());
        pieces.push(tail.into());
        Multipart { boundary, pieces: pieces.into_iter(), remaining }
    }
}

impl http_body::Body for Multipart {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.next();
        self.remaining -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(http_body::Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.remaining)
    }
}

const CREATE_PERMISSION: &str = "storage.objects.create";

/// An object's name is one segment of the path: its slashes are escaped too.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

const MAX_ANSWER_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_written_as_cloud_storage_writes_them() {
        for (bytes, text) in [(&b""[..], "AAAAAA=="), (b"123456789", "4waSgw=="), (b"hello world", "yZRlqg==")] {
            assert_eq!(crc32c_text(crc32c::crc32c(bytes)), text);
        }
    }

    #[test]
    fn the_multipart_body_is_as_long_as_it_says() {
        let blob = Blob::from(b"hello".to_vec());
        let body = Multipart::new(&json!({"name": "x"}), "image/png", &blob);
        let (boundary, length) = (body.boundary.clone(), body.remaining);
        let text: Vec<u8> = body.pieces.flatten().collect();
        assert_eq!(text.len() as u64, length);
        let expected = format!(
            "--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{{\"name\":\"x\"}}\r\n\
             --{boundary}\r\nContent-Type: image/png\r\n\r\nhello\r\n--{boundary}--\r\n"
        );
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn only_the_same_bytes_are_our_own_success() {
        let blob = Blob::from(b"hello world".to_vec());
        let stored = |size: &str, crc32c: &str| Stored { size: size.to_owned(), crc32c: crc32c.to_owned() };
        assert!(stored("11", "yZRlqg==").is(&blob));
        assert!(!stored("12", "yZRlqg==").is(&blob) && !stored("11", "AAAAAA==").is(&blob));
    }
}
