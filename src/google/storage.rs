//! Cloud Storage: images, put once and confirmed, and the records by which instances agree ("Cloud Storage
//! JSON API", "Objects: insert", "Request preconditions").

use crate::config::{Config, Timing};
use crate::error::{Error, Kind};
use crate::google::admission::{Admission, Uploads};
use crate::google::client::{Client, SendError};
use crate::google::http::{Via, next_chunk, text};
use crate::google::rpc_error::GoogleError;
use crate::image::{Blob, Format, Image};
use crate::retry::{self, within};
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
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::{Rfc2822, Rfc3339};
use tokio::time::{Instant, sleep, timeout_at};

pub struct Storage {
    client: Arc<Client>,
    /// Scheme, host and port.
    endpoint: String,
    bucket: String,
    /// Empty, or ending in a slash.
    prefix: String,
    timing: Timing,
    uploads: Uploads,
}

/// A small object that is all metadata, by which instances tell each other something.
#[derive(Debug, Clone)]
pub struct Record {
    pub metadata: Metadata,
    pub generation: String,
    /// Since it was written.
    pub age: Age,
}

pub type Metadata = BTreeMap<String, String>;

/// How old an object is by Cloud Storage's clock. Its `Date` has whole seconds, so the age is an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Age {
    /// May be negative, by less than a second.
    at_least: time::Duration,
    /// None where nothing tells.
    at_most: Option<time::Duration>,
}

/// What came of writing a [`Record`].
#[derive(Debug)]
pub enum Written {
    /// It is there, in this generation.
    Confirmed(String),
    /// The precondition did not hold; this is there instead.
    Conflict(Option<Record>),
}

/// An image in the bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredImage {
    pub object: String,
    /// The model that made it, where its metadata say so.
    pub model: Option<String>,
    pub age: Age,
}

/// An image on its way into the bucket. Its name is fixed, so that storing it again is safe.
pub struct Upload {
    pub name: String,
    pub image: Image,
    pub metadata: Metadata,
    /// An object of this name may be there: an earlier try had no clear answer, or another instance may have
    /// stored its image of the same request under this name.
    pub may_be_there: AtomicBool,
}

/// Why Cloud Storage did not do what was asked.
#[derive(Debug, Clone)]
pub enum StorageError {
    /// 403: a permission or its condition, a perimeter, a retention policy, a hold.
    Forbidden(Error),
    /// Any other answer that another try does not change.
    Refused(Error),
    /// No answer, or one that passes.
    Unavailable(Error),
    /// Nothing was sent.
    Unsent(Error),
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

/// What Cloud Storage says of an object ("Objects" resource), as far as it is needed here.
#[derive(Debug, Clone, PartialEq)]
struct Object {
    name: String,
    size: u64,
    crc32c: Option<String>,
    generation: String,
    updated: Option<OffsetDateTime>,
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
    Confirmed(Object),
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
            uploads: Uploads::default(),
        }
    }

    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Empty, or ending in a slash.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The object's name for an image: fixed before the first try, so that trying again is safe.
    pub fn image_name(&self, stem: &str, image: &Image) -> String {
        format!("{}{stem}.{}", self.prefix, image.format.extension())
    }

    /// Lets a request in that is about to pay for an image, if the bucket takes objects.
    ///
    /// # Errors
    /// What Cloud Storage answered to the attempt to write, or to the uploads before.
    pub async fn admit(self: &Arc<Self>, deadline: Instant) -> Result<Admission, Error> {
        Uploads::admit(self, deadline).await
    }

    pub(super) fn uploads(&self) -> &Uploads {
        &self.uploads
    }

    /// Whether the bucket takes objects under the prefix, found out by writing one. Its name is constant and
    /// it is written once: 412 proves as much as 200. A 403 may mean that it exists and may not be
    /// overwritten; then an object with a random name decides.
    pub(super) async fn probe(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PROBE_TIME;
        let name = &format!("{}.iga/writable", self.prefix);
        let result = self
            .tries(deadline, |via| async move {
                match self.insert_empty(name, via, deadline).await {
                    Err(StorageError::Forbidden(_)) => {
                        let name = format!("{name}-{}", crate::id::random_hex::<8>());
                        self.insert_empty(&name, via, deadline).await
                    }
                    result => result,
                }
            })
            .await;
        result.map(drop).map_err(|error| {
            let bucket = &self.bucket;
            let details = match &error {
                StorageError::Forbidden(error) => format!(
                    "This service's account may not create objects in bucket {bucket} \
                     ({CREATE_PERMISSION}): {error}"
                ),
                StorageError::Refused(error) => format!("Bucket {bucket}: {error}"),
                StorageError::Unavailable(_) | StorageError::Unsent(_) => return error.into(),
            };
            file_save(&details).caused_by(Error::from(error))
        })
    }

    async fn insert_empty(
        &self,
        name: &str,
        via: Via,
        deadline: Instant,
    ) -> Result<Inserted, StorageError> {
        let (blob, metadata) = (&Blob::default(), &Metadata::new());
        let object = NewObject { name, content_type: OCTETS, blob, metadata, if_generation: None };
        self.insert(&object, via, deadline, self.timing.record_try).await
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
        let query = query.join("&");
        let url =
            format!("{}/storage/v1/b/{}/iam/testPermissions?{query}", self.endpoint, self.bucket);
        let limit = self.timing.record_try;
        let response =
            match self.client.send(deadline, limit, || Request::get(&url).body(text(""))).await {
                Ok(response) => response,
                Err(SendError::Unsent(error)) => return Err(error),
                Err(error) => return Ok(Access::Unknown(no_answer(error).into())),
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

    /// What time it is for Cloud Storage, which tells it without a token.
    pub async fn time(&self, deadline: Instant) -> Result<OffsetDateTime, Error> {
        let request = Request::get(&self.endpoint).body(text(""));
        let response =
            self.client.send_unsigned(Via::Pool, deadline, request).await.map_err(no_answer)?;
        server_time(&response).ok_or_else(|| file_save("Cloud Storage's answer bears no date."))
    }

    /// Puts an image where nothing is yet, and returns once Cloud Storage has confirmed it, whole. Where an
    /// image of the same request has the name already, that one is the result.
    ///
    /// # Errors
    /// Anything Cloud Storage refused after its retries.
    pub async fn put_image(
        &self,
        upload: &Upload,
        deadline: Instant,
    ) -> Result<StoredImage, Error> {
        let start = Instant::now();
        let failed = &AtomicBool::new(false);
        let result = self
            .tries(deadline, |via| async move {
                let result = self.put_once(upload, via, deadline).await;
                // A try that our own deadline cut short says nothing about Cloud Storage.
                failed.fetch_or(result.is_err() && Instant::now() < deadline, Ordering::Relaxed);
                result
            })
            .await;
        match &result {
            Ok(_) => {
                self.uploads.image_stored();
                metrics::uploaded(upload.image.blob.len(), start.elapsed());
            }
            Err(StorageError::Unsent(error)) => metrics::upload_failed(&error.to_string()),
            Err(error) => {
                let error = error.error();
                metrics::upload_failed(&error.to_string());
                if failed.load(Ordering::Relaxed) {
                    self.uploads.failed(error);
                }
            }
        }
        Ok(result?)
    }

    /// A 200 counts only for the very bytes that were sent; otherwise the next try meets the object and looks
    /// at it. An object that has the name already may be an earlier try of ours, its answer lost.
    async fn put_once(
        &self,
        upload: &Upload,
        via: Via,
        deadline: Instant,
    ) -> Result<StoredImage, StorageError> {
        let Upload { name, image, metadata, may_be_there } = upload;
        let (blob, content_type) = (&image.blob, image.format.content_type());
        let object = NewObject { name, content_type, blob, metadata, if_generation: None };
        let inserted = self.insert(&object, via, deadline, self.timing.upload_try).await;
        if matches!(inserted, Err(StorageError::Unavailable(_))) {
            may_be_there.store(true, Ordering::Relaxed);
        }
        let may_be_there = may_be_there.load(Ordering::Relaxed);
        let is_occupied = match &inserted {
            Ok(Inserted::Occupied) => true,
            // So says Cloud Storage of an object that exists, where the account may not overwrite it.
            Err(StorageError::Forbidden(error)) => {
                may_be_there && error.to_string().contains(DELETE_PERMISSION)
            }
            Ok(Inserted::Confirmed(_)) | Err(_) => false,
        };
        if is_occupied {
            return self.recognise(upload, via, deadline).await;
        }
        match inserted? {
            Inserted::Confirmed(object) if object.is(blob) => Ok(upload.stored()),
            Inserted::Confirmed(_) | Inserted::Occupied => {
                upload.may_be_there.store(true, Ordering::Relaxed);
                Err(unavailable("Cloud Storage confirmed other bytes than were sent."))
            }
        }
    }

    /// Whose the object is that has an upload's name already.
    async fn recognise(
        &self,
        upload: &Upload,
        via: Via,
        deadline: Instant,
    ) -> Result<StoredImage, StorageError> {
        let is_equal = |object: &Object, field: &str| {
            let sent = upload.metadata.get(field);
            sent.is_some() && object.metadata.get(field) == sent
        };
        match self.stat(&upload.name, via, deadline).await {
            Ok(Some((object, _))) if object.is(&upload.image.blob) => Ok(upload.stored()),
            Ok(Some((object, age))) if is_equal(&object, FINGERPRINT) => Ok(object.image(age)),
            Ok(Some(_)) => Err(StorageError::Refused(file_save(
                "Another object already has the image's name.",
            ))),
            Ok(None) => Err(unavailable("The object has vanished again.")),
            Err(StorageError::Forbidden(_)) if upload.may_be_there.load(Ordering::Relaxed) => {
                Ok(upload.stored())
            }
            Err(error) => Err(error),
        }
    }

    /// The image whose name has this stem, whatever its extension.
    pub async fn find_image(
        &self,
        stem: &str,
        deadline: Instant,
    ) -> Result<Option<StoredImage>, StorageError> {
        let listed = self.tries(deadline, |via| self.list(stem, via, deadline));
        match listed.await {
            // Where listing is forbidden, looking at each possible name may be allowed.
            Err(StorageError::Forbidden(_)) => {}
            result => return result,
        }
        for format in Format::ALL {
            let name = format!("{}{stem}.{}", self.prefix, format.extension());
            if let Some(image) = self.stat_image(&name, deadline).await? {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    pub async fn stat_image(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<StoredImage>, StorageError> {
        let stat = |via| self.stat(name, via, deadline);
        Ok(self.tries(deadline, stat).await?.map(|(object, age)| object.image(age)))
    }

    /// Writes a record where nothing is, or over the generation given, in several tries.
    pub async fn write_record(
        &self,
        name: &str,
        if_generation: Option<&str>,
        metadata: &Metadata,
        deadline: Instant,
    ) -> Result<Written, StorageError> {
        self.tries(deadline, |via| async move {
            self.write_record_once(name, if_generation, metadata, via, deadline).await
        })
        .await
    }

    /// Writes a record in one try, of at most two requests.
    ///
    /// The metadata must be unlike those that any other writer would write: after a lost answer, they are how
    /// our own record is recognised.
    pub async fn write_record_once(
        &self,
        name: &str,
        if_generation: Option<&str>,
        metadata: &Metadata,
        via: Via,
        deadline: Instant,
    ) -> Result<Written, StorageError> {
        let nothing = Blob::default();
        let object =
            NewObject { name, content_type: OCTETS, blob: &nothing, metadata, if_generation };
        match self.insert(&object, via, deadline, self.timing.record_try).await? {
            Inserted::Confirmed(object) => {
                self.uploads.record_written();
                Ok(Written::Confirmed(object.generation))
            }
            Inserted::Occupied => Ok(match self.read_record_once(name, via, deadline).await? {
                Some(record) if holds_all(&record.metadata, metadata) => {
                    Written::Confirmed(record.generation)
                }
                other => Written::Conflict(other),
            }),
        }
    }

    pub async fn read_record(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<Record>, StorageError> {
        let read = |via| self.read_record_once(name, via, deadline);
        self.tries(deadline, read).await
    }

    pub async fn read_record_once(
        &self,
        name: &str,
        via: Via,
        deadline: Instant,
    ) -> Result<Option<Record>, StorageError> {
        Ok(self.stat(name, via, deadline).await?.map(|(object, age)| Record {
            metadata: object.metadata,
            generation: object.generation,
            age,
        }))
    }

    /// Deletes an object; whether it was there makes no difference.
    pub async fn delete(
        &self,
        name: &str,
        generation: Option<&str>,
        deadline: Instant,
    ) -> Result<(), StorageError> {
        let mut url = self.object_url(name);
        url.extend(
            generation.into_iter().flat_map(|generation| ["?ifGenerationMatch=", generation]),
        );
        let (url, limit) = (&url, self.timing.record_try);
        self.tries(deadline, |via| async move {
            let request = || Request::delete(url).body(text(""));
            let response =
                self.client.send_via(via, deadline, limit, request).await.map_err(no_answer)?;
            match response.status().as_u16() {
                // Google says 204, other servers 200.
                200 | 204 | 404 | 412 => Ok(()),
                _ => Err(refusal(response, within(deadline, limit)).await),
            }
        })
        .await
    }

    /// Tries again what may pass, from the second try on over a connection of its own.
    async fn tries<T, F>(
        &self,
        deadline: Instant,
        mut attempt: impl FnMut(Via) -> F,
    ) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>>,
    {
        let mut waits = retry::waits(self.timing.first_retry_wait);
        let mut via = Via::Pool;
        loop {
            let error = match attempt(via).await {
                Err(error @ StorageError::Unavailable(_)) => error,
                result => return result,
            };
            match waits.next() {
                Some(wait) if wait < deadline.saturating_duration_since(Instant::now()) => {
                    tracing::debug!(
                        wait_ms = wait.as_millis() as u64,
                        "trying again: {}",
                        error.error()
                    );
                    sleep(wait).await;
                }
                Some(_) | None => return Err(error),
            }
            via = Via::Fresh;
        }
    }

    /// One multipart upload: metadata and media in one request.
    async fn insert(
        &self,
        object: &NewObject<'_>,
        via: Via,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Inserted, StorageError> {
        let resource = json!({
            "name": object.name,
            "contentType": object.content_type,
            "crc32c": crc32c_text(object.blob.crc32c()),
            "metadata": object.metadata,
        });
        let (name, generation) = (escaped(object.name), object.if_generation.unwrap_or("0"));
        let query = format!("uploadType=multipart&name={name}&ifGenerationMatch={generation}");
        let url = format!("{}/upload/storage/v1/b/{}/o?{query}", self.endpoint, self.bucket);
        let response = self.client.send_via(via, deadline, limit, || {
            let body = Multipart::new(&resource, object.content_type, object.blob);
            Request::post(&url)
                .header(CONTENT_TYPE, format!("multipart/related; boundary={}", body.boundary))
                .body(body.boxed_unsync())
        });
        let response = response.await.map_err(no_answer)?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => {
                let body = body(response, within(deadline, limit)).await;
                Object::parse(&body).map(Inserted::Confirmed).ok_or_else(unreadable)
            }
            StatusCode::PRECONDITION_FAILED => Ok(Inserted::Occupied),
            // So says a server that wants to replace an object which is gone.
            StatusCode::NOT_FOUND if object.if_generation.is_some() => Ok(Inserted::Occupied),
            _ => Err(refusal(response, within(deadline, limit)).await),
        }
    }

    /// An object's metadata and age; None where it is not there.
    async fn stat(
        &self,
        name: &str,
        via: Via,
        deadline: Instant,
    ) -> Result<Option<(Object, Age)>, StorageError> {
        let Some((body, now)) = self.get(&self.object_url(name), via, deadline).await? else {
            return Ok(None);
        };
        let object = Object::parse(&body).ok_or_else(unreadable)?;
        let age = Age::of(object.updated, now);
        Ok(Some((object, age)))
    }

    /// The oldest object whose name is this stem and an extension.
    async fn list(
        &self,
        stem: &str,
        via: Via,
        deadline: Instant,
    ) -> Result<Option<StoredImage>, StorageError> {
        let start = format!("{}{stem}.", self.prefix);
        let prefix = escaped(&start);
        let url = format!("{}/storage/v1/b/{}/o?prefix={prefix}", self.endpoint, self.bucket);
        let Some((body, now)) = self.get(&url, via, deadline).await? else {
            return Ok(None);
        };
        let list: Value = serde_json::from_slice(&body).map_err(|_| unreadable())?;
        let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
        let objects = items.iter().filter_map(Object::read);
        let images = objects.filter(|object| object.name.starts_with(&start));
        let oldest = images.min_by_key(|object| object.updated);
        Ok(oldest.map(|object| {
            let age = Age::of(object.updated, now);
            object.image(age)
        }))
    }

    /// The body of a 200, and its date; None for a 404.
    async fn get(
        &self,
        url: &str,
        via: Via,
        deadline: Instant,
    ) -> Result<Option<(Vec<u8>, Option<OffsetDateTime>)>, StorageError> {
        let limit = self.timing.record_try;
        let request = || Request::get(url).body(text(""));
        let response =
            self.client.send_via(via, deadline, limit, request).await.map_err(no_answer)?;
        match response.status() {
            StatusCode::OK => {
                let now = server_time(&response);
                Ok(Some((body(response, within(deadline, limit)).await, now)))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(refusal(response, within(deadline, limit)).await),
        }
    }

    fn object_url(&self, name: &str) -> String {
        format!("{}/storage/v1/b/{}/o/{}", self.endpoint, self.bucket, escaped(name))
    }
}

impl Upload {
    fn stored(&self) -> StoredImage {
        let model = self.metadata.get(MODEL).cloned();
        StoredImage { object: self.name.clone(), model, age: Age::at_least(Duration::ZERO) }
    }
}

impl Object {
    fn parse(body: &[u8]) -> Option<Object> {
        Object::read(&serde_json::from_slice(body).ok()?)
    }

    /// Reads what is needed. Servers write numbers as strings or as numbers, leave out a size of zero, and
    /// add metadata of their own.
    fn read(resource: &Value) -> Option<Object> {
        let number = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        let metadata = resource["metadata"].as_object().map(|fields| {
            let texts = fields.iter().filter_map(|(name, value)| Some((name, value.as_str()?)));
            texts.map(|(name, value)| (name.clone(), value.to_owned())).collect()
        });
        Some(Object {
            name: resource["name"].as_str().unwrap_or_default().to_owned(),
            size: number(&resource["size"]).map_or(Some(0), |size| size.parse().ok())?,
            crc32c: resource["crc32c"].as_str().map(str::to_owned),
            generation: number(&resource["generation"])?,
            updated: resource["updated"]
                .as_str()
                .and_then(|updated| OffsetDateTime::parse(updated, &Rfc3339).ok()),
            metadata: metadata.unwrap_or_default(),
        })
    }

    fn is(&self, blob: &Blob) -> bool {
        self.size == blob.len() as u64 && self.crc32c.as_ref() == Some(&crc32c_text(blob.crc32c()))
    }

    fn image(self, age: Age) -> StoredImage {
        let Object { name: object, mut metadata, .. } = self;
        StoredImage { object, model: metadata.remove(MODEL), age }
    }
}

impl Age {
    fn of(updated: Option<OffsetDateTime>, now: Option<OffsetDateTime>) -> Age {
        match updated.zip(now) {
            Some((updated, now)) => {
                let at_least = now - updated;
                Age { at_least, at_most: Some(at_least + time::Duration::SECOND) }
            }
            None => Age::at_least(Duration::ZERO),
        }
    }

    /// An age of which only a lower bound is known.
    pub fn at_least(age: Duration) -> Age {
        Age { at_least: age.try_into().unwrap_or(time::Duration::MAX), at_most: None }
    }

    pub fn has_upper_bound(self) -> bool {
        self.at_most.is_some()
    }

    pub fn is_surely_over(self, limit: Duration) -> bool {
        self.at_least > limit
    }

    pub fn is_surely_under(self, limit: Duration) -> bool {
        self.at_most.is_some_and(|at_most| at_most < limit)
    }

    pub fn plus(self, more: Duration) -> Age {
        let more = time::Duration::try_from(more).unwrap_or(time::Duration::MAX);
        let at_most = self.at_most.map(|at_most| at_most.saturating_add(more));
        Age { at_least: self.at_least.saturating_add(more), at_most }
    }

    /// The lower bound; zero where it is negative.
    pub fn lower_bound(self) -> Duration {
        self.at_least.try_into().unwrap_or_default()
    }
}

impl StorageError {
    pub fn error(&self) -> &Error {
        match self {
            StorageError::Forbidden(error)
            | StorageError::Refused(error)
            | StorageError::Unavailable(error)
            | StorageError::Unsent(error) => error,
        }
    }

    /// Whether the same request may succeed later.
    pub fn may_pass(&self) -> bool {
        match self {
            StorageError::Unavailable(_) | StorageError::Unsent(_) => true,
            StorageError::Forbidden(_) | StorageError::Refused(_) => false,
        }
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Error {
        match error {
            StorageError::Forbidden(error)
            | StorageError::Refused(error)
            | StorageError::Unavailable(error)
            | StorageError::Unsent(error) => error,
        }
    }
}

fn holds_all(metadata: &Metadata, fields: &Metadata) -> bool {
    fields.iter().all(|(name, value)| metadata.get(name) == Some(value))
}

/// The `Date` of a response: Cloud Storage's clock, not ours.
fn server_time<T>(response: &Response<T>) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(response.headers().get(DATE)?.to_str().ok()?, &Rfc2822).ok()
}

fn file_save(details: &str) -> Error {
    Kind::FileSave.because(details)
}

fn unavailable(details: &str) -> StorageError {
    StorageError::Unavailable(file_save(details))
}

fn unreadable() -> StorageError {
    unavailable("Cloud Storage's answer broke off or makes no sense.")
}

/// The body of a small response, as far as it could be read; empty where it is not small.
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

fn no_answer(error: SendError) -> StorageError {
    match error {
        SendError::Unsent(error) => StorageError::Unsent(error),
        SendError::Deadline => unavailable("Cloud Storage did not answer in time."),
        SendError::Http(error) => StorageError::Unavailable(
            Kind::FileSave.because("Cloud Storage could not be reached.").caused_by(error),
        ),
    }
}

/// What a response other than success means ("HTTP status and error codes for JSON", "Retry strategy").
async fn refusal(response: Response<Incoming>, deadline: Instant) -> StorageError {
    let (status, headers) = (response.status(), response.headers().clone());
    let google = GoogleError::parse(&body(response, deadline).await);
    let mut error = file_save(&message_of(status, &google));
    error.retry_after = google.retry_after(&headers);
    let is_busy = google.has_reason("rateLimitExceeded");
    if let Some(body) = google.body {
        error = error.caused_by(body);
    }
    match status.as_u16() {
        403 if !is_busy => StorageError::Forbidden(error),
        403 | 408 | 429 | 500 | 502 | 503 | 504 => StorageError::Unavailable(error),
        _ => StorageError::Refused(error),
    }
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
const DELETE_PERMISSION: &str = "storage.objects.delete";

/// Metadata of images: the request's fingerprint, and the model that made the image.
pub const FINGERPRINT: &str = "fingerprint";
pub const MODEL: &str = "model";

const OCTETS: &str = "application/octet-stream";

/// How long the attempt to write may take, its retries included.
const PROBE_TIME: Duration = Duration::from_secs(15);

/// Percent-encodes an object name, slashes included, into one path segment.
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
        let object = |resource: Value| Object::read(&resource).unwrap();
        let stored = |size: &str, crc32c: &str| {
            object(
                json!({"size": size, "crc32c": crc32c, "generation": "1", "updated": "2026-11-22T12:00:00.5Z"}),
            )
        };
        assert!(stored("11", "yZRlqg==").is(&blob));
        assert!(!stored("12", "yZRlqg==").is(&blob) && !stored("11", "AAAAAA==").is(&blob));
        assert!(!object(json!({"size": "11", "generation": "1"})).is(&blob), "no checksum");
    }

    #[test]
    fn objects_are_read_leniently() {
        let object = Object::read(
            &json!({"generation": 7, "crc32c": "AAAAAA==", "metadata": {"a": "b", "n": 1}}),
        );
        let object = object.unwrap();
        assert!(object.is(&Blob::default()), "a size of zero may be left out");
        assert_eq!((object.generation.as_str(), object.updated), ("7", None));
        assert_eq!(object.metadata, Metadata::from([("a".to_owned(), "b".to_owned())]));
        assert_eq!(Object::read(&json!({"size": "0"})), None, "no generation");
    }

    #[test]
    fn an_age_is_an_interval_of_a_second() {
        let at = |text: &str| Some(OffsetDateTime::parse(text, &Rfc3339).unwrap());
        let (ms, date) = (Duration::from_millis, at("2026-11-22T12:00:01Z"));
        let age = Age::of(at("2026-11-22T12:00:00.4Z"), date);
        assert!(age.is_surely_over(ms(599)) && !age.is_surely_over(ms(600)));
        assert!(age.is_surely_under(ms(1601)) && !age.is_surely_under(ms(1600)));
        // Written after the second that `Date` names had begun.
        let young = Age::of(at("2026-11-22T12:00:01.7Z"), date);
        assert!(young.is_surely_under(ms(301)) && young.lower_bound() == Duration::ZERO);
        assert!(young.plus(ms(200)).is_surely_under(ms(501)));
        assert!(!young.plus(ms(200)).is_surely_under(ms(500)));
        let unknown = Age::of(date, None);
        assert!(!unknown.is_surely_under(ms(1_000_000)) && !unknown.is_surely_over(ms(0)));
    }
}
