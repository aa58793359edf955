//! Cloud Storage: images, stored once and confirmed, and the records by which instances agree ("Cloud
//! Storage JSON API", "Objects: insert", "Request preconditions").

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

/// A client of the bucket.
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

/// A small object without content, whose metadata all instances read and write.
#[derive(Debug, Clone)]
pub struct Record {
    pub metadata: Metadata,
    pub generation: String,
    /// Since the last write.
    pub age: Age,
}

pub type Metadata = BTreeMap<String, String>;

/// How old an object is by Cloud Storage's clock. Its `Date` has whole seconds, so the age is an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Age {
    /// May be negative, by less than a second.
    at_least: time::Duration,
    /// `None` if it is unknown.
    at_most: Option<time::Duration>,
}

/// The result of writing a [`Record`].
#[derive(Debug)]
pub enum Written {
    /// The record is stored, with this generation.
    Confirmed(String),
    /// The precondition did not hold; the record that is there instead, if any.
    Conflict(Option<Record>),
}

/// An image in the bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredImage {
    pub object: String,
    /// The model that made it, if the metadata name it.
    pub model: Option<String>,
    pub age: Age,
}

/// An image on its way into the bucket. Its name is fixed, so that storing it again is safe.
pub struct Upload {
    pub name: String,
    pub image: Image,
    pub metadata: Metadata,
    /// An object of this name may exist: an earlier try got no clear response, or another instance may
    /// have stored its image of the same request under this name.
    pub may_exist: AtomicBool,
}

/// Why Cloud Storage did not do what was asked.
#[derive(Debug, Clone)]
pub enum StorageError {
    /// 403: a permission or its condition, a perimeter, a retention policy, a hold.
    Forbidden(Error),
    /// Any other error that another try does not change.
    Refused(Error),
    /// No response, or a temporary error.
    Unavailable(Error),
    /// Nothing was sent.
    Unsent(Error),
}

/// The account's permissions on the bucket.
#[derive(Debug)]
pub enum Access {
    /// The requested permissions that the account has.
    Granted(Vec<String>),
    /// The bucket does not exist; Google's message.
    NoBucket(String),
    /// No response, or one without the permissions.
    Unknown(Error),
}

/// The fields of an object that are needed here ("Objects" resource).
#[derive(Debug, Clone, PartialEq)]
struct Object {
    name: String,
    size: u64,
    crc32c: Option<String>,
    generation: String,
    updated: Option<OffsetDateTime>,
    metadata: Metadata,
}

/// The parameters of an insert.
struct InsertRequest<'a> {
    name: &'a str,
    content_type: &'a str,
    blob: &'a Blob,
    metadata: &'a Metadata,
    /// The generation to replace; `None` if no object of this name may exist.
    if_generation: Option<&'a str>,
}

/// The result of one try to insert an object.
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

    /// Scheme, host and port.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
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

    /// Admits a request that is about to pay for an image, if the bucket accepts objects.
    ///
    /// # Errors
    /// The error of the test write, or of the last upload.
    pub async fn admit(self: &Arc<Self>, deadline: Instant) -> Result<Admission, Error> {
        Uploads::admit(self, deadline).await
    }

    pub(super) fn uploads(&self) -> &Uploads {
        &self.uploads
    }

    /// Tests by a write whether the bucket accepts objects under the prefix. The object's name is
    /// constant and it is written once: a 412 proves as much as a 200. A 403 may mean that the object
    /// exists and may not be overwritten; then a second object with a random name decides.
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
        let object =
            InsertRequest { name, content_type: OCTETS, blob, metadata, if_generation: None };
        self.insert(&object, via, deadline, self.timing.record_try).await
    }

    /// Which of these permissions the account has on the bucket ("Buckets: testIamPermissions").
    ///
    /// # Errors
    /// If there is no access token.
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
                Err(error) => return Ok(Access::Unknown(no_response(error).into())),
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

    /// The time by Cloud Storage's clock; this needs no access token.
    pub async fn time(&self, deadline: Instant) -> Result<OffsetDateTime, Error> {
        let request = Request::get(&self.endpoint).body(text(""));
        let response =
            self.client.send_unsigned(Via::Pool, deadline, request).await.map_err(no_response)?;
        server_time(&response)
            .ok_or_else(|| file_save("Cloud Storage's response has no Date header."))
    }

    /// Stores an image under its name, and returns once Cloud Storage has confirmed all its bytes. If an
    /// image of the same request already has the name, returns that one.
    ///
    /// # Errors
    /// The error of the last try.
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

    /// One try. A 200 counts only if it confirms the bytes that were sent; otherwise the next try finds
    /// the object and inspects it. An object that already has the name may come from an earlier try of
    /// ours whose response was lost.
    async fn put_once(
        &self,
        upload: &Upload,
        via: Via,
        deadline: Instant,
    ) -> Result<StoredImage, StorageError> {
        let Upload { name, image, metadata, may_exist } = upload;
        let (blob, content_type) = (&image.blob, image.format.content_type());
        let object = InsertRequest { name, content_type, blob, metadata, if_generation: None };
        let inserted = self.insert(&object, via, deadline, self.timing.upload_try).await;
        if matches!(inserted, Err(StorageError::Unavailable(_))) {
            may_exist.store(true, Ordering::Relaxed);
        }
        let may_exist = may_exist.load(Ordering::Relaxed);
        let is_occupied = match &inserted {
            Ok(Inserted::Occupied) => true,
            // Cloud Storage responds so if the object exists and the account may not overwrite it.
            Err(StorageError::Forbidden(error)) => {
                may_exist && error.to_string().contains(DELETE_PERMISSION)
            }
            Ok(Inserted::Confirmed(_)) | Err(_) => false,
        };
        if is_occupied {
            return self.recognise(upload, via, deadline).await;
        }
        match inserted? {
            Inserted::Confirmed(object) if object.is(blob) => Ok(upload.stored()),
            Inserted::Confirmed(_) | Inserted::Occupied => {
                upload.may_exist.store(true, Ordering::Relaxed);
                Err(unavailable("Cloud Storage confirmed other bytes than were sent."))
            }
        }
    }

    /// Decides whether the object that already has an upload's name is the result.
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
            Err(StorageError::Forbidden(_)) if upload.may_exist.load(Ordering::Relaxed) => {
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
            // If the account may not list, it may still be allowed to read each possible name.
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

    /// Creates a record, or replaces the given generation of it, in several tries.
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
    /// The metadata must differ from those of every other writer: after a lost response, they identify
    /// our own record.
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
            InsertRequest { name, content_type: OCTETS, blob: &nothing, metadata, if_generation };
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

    /// Deletes an object. Succeeds also if the object, or this generation of it, does not exist.
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
                self.client.send_via(via, deadline, limit, request).await.map_err(no_response)?;
            match response.status().as_u16() {
                // Google sends 204, other servers 200.
                200 | 204 | 404 | 412 => Ok(()),
                _ => Err(response_error(response, within(deadline, limit)).await),
            }
        })
        .await
    }

    /// Repeats a request while its error is temporary; from the second try on, over a new connection.
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
        object: &InsertRequest<'_>,
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
        let (name, generation) = (path_segment(object.name), object.if_generation.unwrap_or("0"));
        let query = format!("uploadType=multipart&name={name}&ifGenerationMatch={generation}");
        let url = format!("{}/upload/storage/v1/b/{}/o?{query}", self.endpoint, self.bucket);
        let response = self.client.send_via(via, deadline, limit, || {
            let body = Multipart::new(&resource, object.content_type, object.blob);
            Request::post(&url)
                .header(CONTENT_TYPE, format!("multipart/related; boundary={}", body.boundary))
                .body(body.boxed_unsync())
        });
        let response = response.await.map_err(no_response)?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => {
                let body = body(response, within(deadline, limit)).await;
                Object::parse(&body).map(Inserted::Confirmed).ok_or_else(unreadable_response)
            }
            StatusCode::PRECONDITION_FAILED => Ok(Inserted::Occupied),
            // A server responds so if the object to replace is gone.
            StatusCode::NOT_FOUND if object.if_generation.is_some() => Ok(Inserted::Occupied),
            _ => Err(response_error(response, within(deadline, limit)).await),
        }
    }

    /// An object's metadata and age; `None` if it does not exist.
    async fn stat(
        &self,
        name: &str,
        via: Via,
        deadline: Instant,
    ) -> Result<Option<(Object, Age)>, StorageError> {
        let Some((body, now)) = self.get(&self.object_url(name), via, deadline).await? else {
            return Ok(None);
        };
        let object = Object::parse(&body).ok_or_else(unreadable_response)?;
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
        let prefix = path_segment(&start);
        let url = format!("{}/storage/v1/b/{}/o?prefix={prefix}", self.endpoint, self.bucket);
        let Some((body, now)) = self.get(&url, via, deadline).await? else {
            return Ok(None);
        };
        let list: Value = serde_json::from_slice(&body).map_err(|_| unreadable_response())?;
        let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
        let objects = items.iter().filter_map(Object::read);
        let images = objects.filter(|object| object.name.starts_with(&start));
        let oldest = images.min_by_key(|object| object.updated);
        Ok(oldest.map(|object| {
            let age = Age::of(object.updated, now);
            object.image(age)
        }))
    }

    /// The body and the date of a 200; `None` for a 404.
    async fn get(
        &self,
        url: &str,
        via: Via,
        deadline: Instant,
    ) -> Result<Option<(Vec<u8>, Option<OffsetDateTime>)>, StorageError> {
        let limit = self.timing.record_try;
        let request = || Request::get(url).body(text(""));
        let response =
            self.client.send_via(via, deadline, limit, request).await.map_err(no_response)?;
        match response.status() {
            StatusCode::OK => {
                let now = server_time(&response);
                Ok(Some((body(response, within(deadline, limit)).await, now)))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(response_error(response, within(deadline, limit)).await),
        }
    }

    fn object_url(&self, name: &str) -> String {
        format!("{}/storage/v1/b/{}/o/{}", self.endpoint, self.bucket, path_segment(name))
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

    /// The lower bound; zero if it is negative.
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

fn unreadable_response() -> StorageError {
    unavailable("Cloud Storage's response broke off or cannot be read.")
}

/// The body of a response, as far as it could be read; empty if it is too long.
async fn body(response: Response<Incoming>, deadline: Instant) -> Vec<u8> {
    let (mut incoming, mut body) = (response.into_body(), Vec::new());
    while let Ok(Ok(Some(chunk))) = timeout_at(deadline, next_chunk(&mut incoming)).await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_RESPONSE_BYTES {
            return Vec::new();
        }
    }
    body
}

fn no_response(error: SendError) -> StorageError {
    match error {
        SendError::Unsent(error) => StorageError::Unsent(error),
        SendError::Deadline => unavailable("Cloud Storage did not answer in time."),
        SendError::Http(error) => StorageError::Unavailable(
            Kind::FileSave.because("Cloud Storage could not be reached.").caused_by(error),
        ),
    }
}

/// The error that a response other than success stands for ("HTTP status and error codes for JSON", "Retry strategy").
async fn response_error(response: Response<Incoming>, deadline: Instant) -> StorageError {
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

/// A `multipart/related` body of known length that sends a blob's chunks without copying them.
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

/// How long the test write may take, its retries included.
const PROBE_TIME: Duration = Duration::from_secs(15);

/// Percent-encodes an object name, slashes included, into one path segment.
fn path_segment(name: &str) -> impl Display {
    utf8_percent_encode(name, UNRESERVED)
}

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

const MAX_RESPONSE_BYTES: usize = 256 * 1024;

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
    fn only_the_same_bytes_count_as_our_own_upload() {
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
