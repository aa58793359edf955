//! Cloud Storage: images, put once and confirmed, and the records by which instances agree ("Cloud Storage
//! JSON API", "Objects: insert", "Request preconditions").

use crate::config::{Config, Timing};
use crate::error::{Error, Kind};
use crate::google::client::{Client, SendError};
use crate::google::http::{Via, next_chunk, text};
use crate::google::rpc_error::GoogleError;
use crate::image::{Blob, Image};
use crate::retry::{self, Again, Failure, within};
use crate::telemetry::metrics;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::{Rfc2822, Rfc3339};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};

pub struct Storage {
    client: Arc<Client>,
    /// Scheme, host and port.
    endpoint: String,
    bucket: String,
    /// Empty, or ending in a slash.
    prefix: String,
    timing: Timing,
    /// Set once the bucket is known to take objects.
    writable: OnceCell<()>,
}

/// A small object that is all metadata, by which instances tell each other something.
#[derive(Debug, Clone)]
pub struct Record {
    pub metadata: Metadata,
    pub generation: String,
    /// Since it was written, by Cloud Storage's own clock; up to a second too little.
    pub age: Duration,
}

pub type Metadata = BTreeMap<String, String>;

/// What came of writing a [`Record`].
#[derive(Debug)]
pub enum Written {
    /// It stands there, in this generation.
    Mine(String),
    /// Something else stood there, or nothing any more where something was to be replaced.
    Conflict(Option<Record>),
}

/// What Cloud Storage says of an account's permissions on the bucket.
#[derive(Debug)]
pub enum Access {
    /// Those of the permissions asked for that the account has.
    Granted(Vec<String>),
    NoBucket(String),
    /// No answer, or none that says it.
    Unknown(Error),
}

/// What Cloud Storage says of an object ("Objects" resource).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    size: String,
    crc32c: String,
    generation: String,
    updated: String,
    #[serde(default)]
    metadata: Metadata,
}

struct NewObject<'a> {
    name: &'a str,
    content_type: &'a str,
    blob: &'a Blob,
    metadata: &'a Metadata,
    /// The generation that must be there now.
    if_generation: Option<&'a str>,
}

/// What came of one try to insert an object.
enum Inserted {
    Confirmed(Stored),
    /// The precondition does not hold.
    Occupied,
}

impl Storage {
    pub fn new(client: Arc<Client>, config: &Config) -> Storage {
        Storage {
            client,
            endpoint: config.storage_endpoint.clone(),
            bucket: config.bucket.clone(),
            prefix: config.prefix.clone(),
            timing: config.timing,
            writable: OnceCell::new(),
        }
    }

    /// Empty, or ending in a slash.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The object's name for an image: fixed before the first try, so that trying again is safe.
    pub fn image_name(&self, stem: &str, image: &Image) -> String {
        format!("{}{stem}.{}", self.prefix, image.format.extension())
    }

    /// Asks, once in a process, whether the bucket takes objects: nobody should pay for an image
    /// that cannot be stored ("Buckets: testIamPermissions").
    ///
    /// # Errors
    /// Where Cloud Storage says that it does not. Any other answer is left for the upload to meet.
    pub async fn check_writable(&self, deadline: Instant) -> Result<(), Error> {
        self.writable.get_or_try_init(|| self.test_permission(deadline)).await.copied()
    }

    async fn test_permission(&self, deadline: Instant) -> Result<(), Error> {
        match self.access(&[CREATE_PERMISSION], deadline).await? {
            Access::Granted(granted) if granted.is_empty() => Err(Kind::FileSave.because(format!(
                "This service's account may not create objects in bucket {} ({CREATE_PERMISSION}).",
                self.bucket
            ))),
            Access::NoBucket(message) => {
                Err(Kind::FileSave.because(format!("Bucket {}: {message}", self.bucket)))
            }
            Access::Granted(_) | Access::Unknown(_) => Ok(()),
        }
    }

    /// Which of these permissions the account has on the bucket ("Buckets: testIamPermissions").
    ///
    /// # Errors
    /// Where there is no access token to ask with.
    pub async fn access(&self, permissions: &[&str], deadline: Instant) -> Result<Access, Error> {
        #[derive(Deserialize)]
        struct Granted {
            #[serde(default)]
            permissions: Vec<String>,
        }

        let query: Vec<_> =
            permissions.iter().map(|permission| format!("permissions={permission}")).collect();
        let url = format!(
            "{}/storage/v1/b/{}/iam/testPermissions?{}",
            self.endpoint,
            self.bucket,
            query.join("&")
        );
        let limit = self.timing.record_try;
        let response =
            match self.client.send(deadline, limit, || Request::get(&url).body(text(""))).await {
                Ok(response) => response,
                Err(SendError::Unsent(error)) => return Err(error),
                Err(error) => return Ok(Access::Unknown(no_answer(error).error)),
            };
        let status = response.status();
        let body = body(response, within(deadline, limit)).await;
        let google = GoogleError::parse(&body);
        Ok(match (status, serde_json::from_slice::<Granted>(&body)) {
            (StatusCode::OK, Ok(granted)) => Access::Granted(granted.permissions),
            (StatusCode::NOT_FOUND, _) if !google.message.is_empty() => {
                Access::NoBucket(google.message)
            }
            _ => Access::Unknown(file_save(&message_of(status, &google))),
        })
    }

    /// What time it is for Cloud Storage, which says so to anybody.
    pub async fn time(&self, deadline: Instant) -> Result<OffsetDateTime, Error> {
        let request = Request::get(&self.endpoint).body(text(""));
        let response = self
            .client
            .send_unsigned(Via::Pool, deadline, request)
            .await
            .map_err(|error| no_answer(error).error)?;
        server_time(&response).ok_or_else(|| file_save("Cloud Storage's answer bears no date."))
    }

    /// Puts an image where nothing is yet, and returns once Cloud Storage has confirmed it, whole.
    ///
    /// # Errors
    /// Anything Cloud Storage refused after its retries.
    pub async fn put_image(
        &self,
        name: &str,
        image: &Image,
        metadata: &Metadata,
        deadline: Instant,
    ) -> Result<(), Error> {
        let start = Instant::now();
        let (blob, content_type) = (&image.blob, image.format.content_type());
        let object = NewObject { name, content_type, blob, metadata, if_generation: None };
        let result = retry::until(deadline, self.timing.first_retry_wait, |_| {
            self.put_once(&object, deadline)
        })
        .await;
        match &result {
            Ok(()) => metrics::uploaded(blob.len(), start.elapsed()),
            Err(error) => metrics::upload_failed(&error.to_string()),
        }
        result
    }

    /// A 200 counts only for the very bytes that were sent; else the next try meets the object and
    /// looks again. What stands there already may be an earlier try of ours, its answer lost.
    async fn put_once(&self, object: &NewObject<'_>, deadline: Instant) -> Result<(), Failure> {
        let blob = object.blob;
        match self.insert(object, deadline, self.timing.upload_try).await? {
            Inserted::Confirmed(stored) if stored.is(blob) => Ok(()),
            Inserted::Confirmed(_) => Err(Failure::later(file_save(
                "Cloud Storage confirmed other bytes than were sent.",
            ))),
            Inserted::Occupied => match self.stat(object.name, deadline).await? {
                Some((stored, _)) if stored.is(blob) => Ok(()),
                Some(_) => {
                    Err(Failure::never(file_save("Another object already has the image's name.")))
                }
                None => Err(Failure::later(file_save("The object has vanished again."))),
            },
        }
    }

    /// Writes a record where nothing is, or over the generation given.
    ///
    /// The metadata must be unlike those that anyone else would write: after a lost answer, they are how
    /// our own record is recognised.
    pub async fn write_record(
        &self,
        name: &str,
        if_generation: Option<&str>,
        metadata: &Metadata,
        deadline: Instant,
    ) -> Result<Written, Error> {
        let nothing = Blob::default();
        let object = NewObject {
            name,
            content_type: "application/octet-stream",
            blob: &nothing,
            metadata,
            if_generation,
        };
        let write = async || match self.insert(&object, deadline, self.timing.record_try).await? {
            Inserted::Confirmed(stored) => Ok(Written::Mine(stored.generation)),
            Inserted::Occupied => Ok(match self.stat_record(name, deadline).await? {
                Some(record) if record.metadata == *metadata => Written::Mine(record.generation),
                other => Written::Conflict(other),
            }),
        };
        retry::until(deadline, self.timing.first_retry_wait, |_| write()).await
    }

    pub async fn read_record(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<Record>, Error> {
        retry::until(deadline, self.timing.first_retry_wait, |_| self.stat_record(name, deadline))
            .await
    }

    /// Deletes an object, if it still is of the generation given; whether it was there is all the same.
    pub async fn delete(
        &self,
        name: &str,
        generation: Option<&str>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut url = self.object_url(name);
        url.extend(
            generation.into_iter().flat_map(|generation| ["?ifGenerationMatch=", generation]),
        );
        let limit = self.timing.record_try;
        let delete = async || {
            let request = || Request::delete(&url).body(text(""));
            let response = self.client.send(deadline, limit, request).await.map_err(no_answer)?;
            match response.status().as_u16() {
                // Google says 204, other servers 200.
                200 | 204 | 404 | 412 => Ok(()),
                _ => Err(refused(response, within(deadline, limit)).await),
            }
        };
        retry::until(deadline, self.timing.first_retry_wait, |_| delete()).await
    }

    /// One multipart upload: metadata and media in one request.
    async fn insert(
        &self,
        object: &NewObject<'_>,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Inserted, Failure> {
        let resource = json!({
            "name": object.name,
            "contentType": object.content_type,
            "crc32c": crc32c_text(object.blob.crc32c()),
            "metadata": object.metadata,
        });
        let (name, generation) = (escaped(object.name), object.if_generation.unwrap_or("0"));
        let query = format!("uploadType=multipart&name={name}&ifGenerationMatch={generation}");
        let url = format!("{}/upload/storage/v1/b/{}/o?{query}", self.endpoint, self.bucket);
        let response = self.client.send(deadline, limit, || {
            let body = Multipart::new(&resource, object.content_type, object.blob);
            Request::post(&url)
                .header(CONTENT_TYPE, format!("multipart/related; boundary={}", body.boundary))
                .body(body.boxed_unsync())
        });
        let response = response.await.map_err(no_answer)?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => {
                Ok(Inserted::Confirmed(stored(response, within(deadline, limit)).await?))
            }
            StatusCode::PRECONDITION_FAILED => Ok(Inserted::Occupied),
            // So says a server that wants to replace an object which is gone.
            StatusCode::NOT_FOUND if object.if_generation.is_some() => Ok(Inserted::Occupied),
            _ => Err(refused(response, within(deadline, limit)).await),
        }
    }

    async fn stat_record(&self, name: &str, deadline: Instant) -> Result<Option<Record>, Failure> {
        Ok(self.stat(name, deadline).await?.map(|(stored, age)| Record {
            metadata: stored.metadata,
            generation: stored.generation,
            age,
        }))
    }

    /// An object's metadata and age.
    async fn stat(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<(Stored, Duration)>, Failure> {
        let url = self.object_url(name);
        let limit = self.timing.record_try;
        let response = self
            .client
            .send(deadline, limit, || Request::get(&url).body(text("")))
            .await
            .map_err(no_answer)?;
        match response.status() {
            StatusCode::OK => {
                let now = server_time(&response);
                let stored = stored(response, within(deadline, limit)).await?;
                let age = now
                    .and_then(|now| Duration::try_from(now - stored.updated()?).ok())
                    .unwrap_or_default();
                Ok(Some((stored, age)))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(refused(response, within(deadline, limit)).await),
        }
    }

    fn object_url(&self, name: &str) -> String {
        format!("{}/storage/v1/b/{}/o/{}", self.endpoint, self.bucket, escaped(name))
    }
}

impl Stored {
    fn updated(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(&self.updated, &Rfc3339).ok()
    }

    fn is(&self, blob: &Blob) -> bool {
        self.size == blob.len().to_string() && self.crc32c == crc32c_text(blob.crc32c())
    }
}

async fn stored(response: Response<Incoming>, deadline: Instant) -> Result<Stored, Failure> {
    serde_json::from_slice(&body(response, deadline).await).map_err(|error| {
        Failure::later(
            file_save("Cloud Storage's answer broke off or makes no sense.").caused_by(error),
        )
    })
}

/// The `Date` of an answer: Cloud Storage's clock, not ours.
fn server_time<T>(response: &Response<T>) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(response.headers().get(DATE)?.to_str().ok()?, &Rfc2822).ok()
}

fn file_save(details: &str) -> Error {
    Kind::FileSave.because(details)
}

/// What could be read of a small answer; empty where it broke off.
async fn body(response: Response<Incoming>, deadline: Instant) -> Vec<u8> {
    let (mut answer, mut body) = (response.into_body(), Vec::new());
    while let Ok(Ok(Some(chunk))) = timeout_at(deadline, next_chunk(&mut answer)).await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER_BYTES {
            return Vec::new();
        }
    }
    body
}

fn no_answer(error: SendError) -> Failure {
    match error {
        SendError::Unsent(error) => Failure::never(error),
        SendError::Deadline => Failure::later(file_save("Cloud Storage did not answer in time.")),
        SendError::Http(error) => Failure::later(
            Kind::FileSave.because("Cloud Storage could not be reached.").caused_by(error),
        ),
    }
}

/// What an answer other than success means ("HTTP status and error codes for JSON", "Retry strategy").
async fn refused(response: Response<Incoming>, deadline: Instant) -> Failure {
    let (status, headers) = (response.status(), response.headers().clone());
    let google = GoogleError::parse(&body(response, deadline).await);
    let mut error = Kind::FileSave.because(message_of(status, &google));
    error.retry_after = google.retry_after(&headers);
    let again = match status.as_u16() {
        408 | 429 | 500 | 502 | 503 | 504 => Again::Later,
        403 if google.has_reason("rateLimitExceeded") => Again::Later,
        _ => Again::Never,
    };
    if let Some(body) = google.body {
        error = error.caused_by(body);
    }
    Failure { error, again }
}

fn message_of(status: StatusCode, google: &GoogleError) -> String {
    match (google.message.as_str(), google.json) {
        ("", _) => format!("HTTP {} from Cloud Storage.", status.as_u16()),
        (message, true) => message.to_owned(),
        (message, false) => format!("HTTP {} from Cloud Storage: {message}", status.as_u16()),
    }
}

/// Base64 of the big-endian bytes, as Cloud Storage writes it.
fn crc32c_text(crc32c: u32) -> String {
    BASE64_STANDARD.encode(crc32c.to_be_bytes())
}

/// A `multipart/related` body that sends a blob's chunks as they are, its length known beforehand.
pub struct Multipart {
    boundary: String,
    chunks: std::vec::IntoIter<Bytes>,
    remaining: u64,
}

impl Multipart {
    pub fn new(resource: &Value, content_type: &str, blob: &Blob) -> Multipart {
        let boundary = crate::id::random_hex::<16>();
        let head = format!(
            "--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{resource}\r\n\
             --{boundary}\r\nContent-Type: {content_type}\r\n\r\n"
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        let remaining = (head.len() + blob.len() + tail.len()) as u64;
        let mut chunks = vec![Bytes::from(head)];
        chunks.extend_from_slice(blob.chunks());
        chunks.push(tail.into());
        Multipart { boundary, chunks: chunks.into_iter(), remaining }
    }
}

impl http_body::Body for Multipart {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        let chunk = self.chunks.next();
        self.remaining -= chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        Poll::Ready(chunk.map(|chunk| Ok(http_body::Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.remaining)
    }
}

pub const CREATE_PERMISSION: &str = "storage.objects.create";

/// Of an object's name nothing may be read as part of a URL, its slashes neither.
fn escaped(name: &str) -> impl Display {
    utf8_percent_encode(name, UNRESERVED)
}

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

const MAX_ANSWER_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_written_as_cloud_storage_writes_them() {
        for (bytes, text) in
            [(&b""[..], "AAAAAA=="), (b"123456789", "4waSgw=="), (b"hello world", "yZRlqg==")]
        {
            assert_eq!(crc32c_text(crc32c::crc32c(bytes)), text);
        }
    }

    #[test]
    fn the_multipart_body_is_as_long_as_it_says() {
        let blob = Blob::from(b"hello".to_vec());
        let body = Multipart::new(&json!({"name": "x"}), "image/png", &blob);
        let (boundary, length) = (body.boundary.clone(), body.remaining);
        let text: Vec<u8> = body.chunks.flatten().collect();
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
        let stored = |size: &str, crc32c: &str| -> Stored {
            let resource = json!({"size": size, "crc32c": crc32c, "generation": "1", "updated": "2026-11-22T12:00:00.5Z"});
            serde_json::from_value(resource).unwrap()
        };
        assert!(stored("11", "yZRlqg==").is(&blob));
        assert!(!stored("12", "yZRlqg==").is(&blob) && !stored("11", "AAAAAA==").is(&blob));
    }
}
