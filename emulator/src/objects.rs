//! The objects of Cloud Storage: as files that a person can open, or in memory.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::clock::rfc3339;
use crate::options::{Options, Retention};
use crate::preconditions::{FailedCondition, Preconditions};
use crate::storage_rules::StorageRules;

/// An object with its metadata as the JSON API shows it.
#[derive(Clone, Debug)]
pub struct StoredObject {
    pub bucket: String,
    pub name: String,
    pub metadata: Value,
    pub bytes: Bytes,
}

/// An object about to be stored.
pub(crate) struct NewObject {
    pub bucket: String,
    pub name: String,
    pub content_type: String,
    /// The metadata that the client sent; only the fields that a client may set are stored.
    pub fields: Map<String, Value>,
    pub bytes: Bytes,
    /// How many objects it was composed of.
    pub components: Option<usize>,
}

#[derive(Clone)]
pub(crate) struct Bucket {
    pub name: String,
    pub metageneration: i64,
    /// What the client has set.
    pub settings: Map<String, Value>,
}

/// The time of an event: by the clock of the responses, and by the clock that measures intervals.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub time: OffsetDateTime,
    pub instant: Instant,
}

/// Why an object was not stored, read, changed or deleted.
#[derive(Debug)]
pub(crate) enum StoreError {
    Precondition(FailedCondition),
    NoSuchObject,
    /// The caller lacks this permission.
    Forbidden(&'static str),
    Retained(Retention),
    /// The last change of the object was too short a time ago.
    TooManyMutations,
    Io(io::Error),
}

/// Every bucket with its objects.
pub(crate) struct Objects {
    directory: Option<PathBuf>,
    addr: SocketAddr,
    rules: Mutex<StorageRules>,
    live: Mutex<LiveObjects>,
}

#[derive(Default)]
struct LiveObjects {
    buckets: Vec<Bucket>,
    objects: BTreeMap<Key, Entry>,
    last_generation: i64,
    /// When each name was last created, overwritten, changed or deleted.
    last_mutations: HashMap<Key, Instant>,
}

/// Bucket and name.
type Key = (String, String);

struct Entry {
    metadata: Value,
    generation: i64,
    metageneration: i64,
    content: Content,
}

enum Content {
    Memory(Bytes),
    File(PathBuf),
}

impl Objects {
    pub fn open(options: &Options, addr: SocketAddr) -> io::Result<Self> {
        let objects = Self {
            directory: options.directory.clone(),
            addr,
            rules: Mutex::new(options.into()),
            live: Mutex::default(),
        };
        for bucket in &options.buckets {
            objects.create_bucket(bucket, Map::new())?;
        }
        Ok(objects)
    }

    /// Makes a bucket; one that exists stays as it is.
    pub fn create_bucket(&self, bucket: &str, settings: Map<String, Value>) -> io::Result<()> {
        if !is_bucket_name(bucket) {
            let problem = format!("not a legal bucket name: {bucket:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        if let Some(directory) = &self.directory {
            let folder = directory.join(bucket);
            fs::create_dir_all(&folder).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot create {}: {error}", folder.display()))
            })?;
        }
        let mut live = self.lock();
        if live.bucket(bucket).is_none() {
            live.buckets.push(Bucket { name: bucket.to_owned(), metageneration: 1, settings });
        }
        Ok(())
    }

    /// Removes a bucket; false if it has objects.
    pub fn delete_bucket(&self, bucket: &str) -> bool {
        let mut live = self.lock();
        let is_empty = live.objects.keys().all(|(in_bucket, _)| in_bucket != bucket);
        if is_empty {
            live.buckets.retain(|known| known.name != bucket);
        }
        is_empty
    }

    pub fn buckets(&self) -> Vec<Bucket> {
        self.lock().buckets.clone()
    }

    pub fn has_bucket(&self, bucket: &str) -> bool {
        self.bucket(bucket).is_some()
    }

    pub fn bucket(&self, bucket: &str) -> Option<Bucket> {
        self.lock().bucket(bucket).cloned()
    }

    /// Changes the settings of a bucket that exists; `null` removes one.
    pub fn patch_bucket(
        &self,
        bucket: &str,
        settings: Map<String, Value>,
        conditions: &Preconditions,
    ) -> Result<Bucket, StoreError> {
        let mut live = self.lock();
        let found = live.buckets.iter_mut().find(|known| known.name == bucket);
        let found = found.ok_or(StoreError::NoSuchObject)?;
        conditions.check(0, found.metageneration).map_err(StoreError::Precondition)?;
        for (name, value) in &settings {
            merge(found.settings.entry(name).or_insert(Value::Null), value);
        }
        found.settings.retain(|_, value| !value.is_null());
        found.metageneration += 1;
        Ok(found.clone())
    }

    pub fn count(&self) -> u64 {
        self.lock().objects.len() as u64
    }

    pub fn all(&self) -> Vec<StoredObject> {
        let live = self.lock();
        live.objects.iter().filter_map(|(key, entry)| stored(key, entry).ok()).collect()
    }

    /// The metadata of a bucket's objects, by name.
    pub fn list(&self, bucket: &str, prefix: &str) -> Vec<Value> {
        let live = self.lock();
        let wanted = live
            .objects
            .iter()
            .filter(|((in_bucket, name), _)| in_bucket == bucket && name.starts_with(prefix));
        wanted.map(|(_, entry)| entry.metadata.clone()).collect()
    }

    pub fn find(&self, bucket: &str, name: &str) -> Option<StoredObject> {
        self.read(bucket, name, None, &Preconditions::default()).ok()
    }

    /// The live object's metadata.
    pub fn metadata(&self, bucket: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&key(bucket, name)).map(|entry| entry.metadata.clone())
    }

    /// Reads the live object; with `generation`, only if it is that one.
    pub fn read(
        &self,
        bucket: &str,
        name: &str,
        generation: Option<i64>,
        conditions: &Preconditions,
    ) -> Result<StoredObject, StoreError> {
        let key = key(bucket, name);
        let live = self.lock();
        let entry = live.existing(&key, generation, conditions)?;
        stored(&key, entry).map_err(StoreError::Io)
    }

    pub fn delete(
        &self,
        bucket: &str,
        name: &str,
        generation: Option<i64>,
        conditions: &Preconditions,
        at: Moment,
    ) -> Result<(), StoreError> {
        let key = key(bucket, name);
        let (rules, mut live) = (self.rules(), self.lock());
        live.existing(&key, generation, conditions)?;
        rules.check_retention()?;
        rules.count_mutation(&mut live, &key, at.instant)?;
        match live.objects.remove(&key).map(|entry| entry.content) {
            Some(Content::File(path)) => fs::remove_file(path).map_err(StoreError::Io),
            Some(Content::Memory(_)) | None => Ok(()),
        }
    }

    /// Changes the metadata that a client may set; `null` removes a field.
    pub fn patch(
        &self,
        bucket: &str,
        name: &str,
        fields: &Map<String, Value>,
        conditions: &Preconditions,
        at: Moment,
    ) -> Result<Value, StoreError> {
        let key = key(bucket, name);
        let (rules, mut live) = (self.rules(), self.lock());
        live.existing(&key, None, conditions)?;
        rules.count_mutation(&mut live, &key, at.instant)?;
        let entry = live.objects.get_mut(&key).ok_or(StoreError::NoSuchObject)?;
        entry.metageneration += 1;
        for field in SETTABLE.iter().chain(&["contentType"]) {
            match fields.get(*field) {
                Some(value) => merge(&mut entry.metadata[*field], value),
                None => continue,
            }
        }
        if let Some(metadata) = entry.metadata.as_object_mut() {
            metadata.retain(|_, value| !value.is_null());
        }
        entry.metadata["metageneration"] = entry.metageneration.to_string().into();
        entry.metadata["updated"] = rfc3339(at.time).into();
        Ok(entry.metadata.clone())
    }

    /// Whether an upload would be accepted now.
    pub fn check(
        &self,
        bucket: &str,
        name: &str,
        conditions: &Preconditions,
    ) -> Result<(), StoreError> {
        self.rules().check_write(&self.lock(), &key(bucket, name), conditions)
    }

    /// Stores an object, whole or not at all; of several with `ifGenerationMatch=0` one wins.
    pub fn put(
        &self,
        new: NewObject,
        conditions: &Preconditions,
        at: Moment,
    ) -> Result<Value, StoreError> {
        let partial =
            self.directory.as_deref().map(|directory| write_partial(directory, &new.bytes));
        let partial = partial.transpose().map_err(StoreError::Io)?;
        let key = key(&new.bucket, &new.name);
        let (rules, mut live) = (self.rules(), self.lock());
        let accepted = rules
            .check_write(&live, &key, conditions)
            .and_then(|()| rules.count_mutation(&mut live, &key, at.instant));
        if let Err(error) = accepted {
            partial.map(fs::remove_file).transpose().map_err(StoreError::Io)?;
            return Err(error);
        }
        let content = match (&self.directory, partial) {
            (Some(directory), Some(partial)) => {
                let bucket = directory.join(&new.bucket);
                let path = move_into_place(&bucket, &new.name, &partial);
                Content::File(path.map_err(StoreError::Io)?)
            }
            _ => Content::Memory(new.bytes.clone()),
        };
        let generation = live.next_generation(at.time);
        let metadata = self.resource(&new, generation, at.time);
        let entry = Entry { metadata: metadata.clone(), generation, metageneration: 1, content };
        live.objects.insert(key, entry);
        Ok(metadata)
    }

    fn resource(&self, new: &NewObject, generation: i64, now: OffsetDateTime) -> Value {
        let (bucket, name, addr) = (&new.bucket, &new.name, self.addr);
        let path =
            format!("storage/v1/b/{bucket}/o/{}", utf8_percent_encode(name, NON_ALPHANUMERIC));
        let mut resource = json!({
            "kind": "storage#object",
            "id": format!("{bucket}/{name}/{generation}"),
            "selfLink": format!("http://{addr}/{path}"),
            "mediaLink": format!("http://{addr}/download/{path}?generation={generation}&alt=media"),
            "name": name,
            "bucket": bucket,
            "generation": generation.to_string(),
            "metageneration": "1",
            "contentType": new.content_type,
            "storageClass": "STANDARD",
            "size": new.bytes.len().to_string(),
            "md5Hash": md5_hash(&new.bytes),
            "crc32c": crc32c(&new.bytes),
            "etag": STANDARD.encode(generation.to_be_bytes()),
            "timeCreated": rfc3339(now),
            "updated": rfc3339(now),
            "timeStorageClassUpdated": rfc3339(now),
        });
        for field in SETTABLE {
            if let Some(value) = new.fields.get(*field) {
                resource[*field] = value.clone();
            }
        }
        if let (Some(components), Some(fields)) = (new.components, resource.as_object_mut()) {
            fields.remove("md5Hash");
            fields.insert("componentCount".to_owned(), components.into());
        }
        self.rules().show(&mut resource, new.bytes.is_empty());
        resource
    }

    pub fn rules(&self) -> StorageRules {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_rules(&self, rules: StorageRules) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    fn lock(&self) -> MutexGuard<'_, LiveObjects> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageRules {
    /// Whether an upload may create or overwrite the object.
    fn check_write(
        &self,
        live: &LiveObjects,
        key: &Key,
        conditions: &Preconditions,
    ) -> Result<(), StoreError> {
        let Some(entry) = live.objects.get(key) else {
            return conditions.check(0, 0).map_err(StoreError::Precondition);
        };
        let permitted =
            if self.withhold(DELETE) { Err(StoreError::Forbidden(DELETE)) } else { Ok(()) };
        let met = conditions.check(entry.generation, entry.metageneration);
        let met = met.map_err(StoreError::Precondition);
        if self.permission_before_precondition {
            permitted.and(met)?
        } else {
            met.and(permitted)?
        }
        self.check_retention()
    }

    fn check_retention(&self) -> Result<(), StoreError> {
        self.retention.map_or(Ok(()), |retention| Err(StoreError::Retained(retention)))
    }

    /// Refuses a change too short a time after the last one.
    fn count_mutation(
        &self,
        live: &mut LiveObjects,
        key: &Key,
        now: Instant,
    ) -> Result<(), StoreError> {
        let Some(interval) = self.mutation_interval_ms.map(Duration::from_millis) else {
            return Ok(());
        };
        let last = live.last_mutations.get(key);
        if last.is_some_and(|last| now.saturating_duration_since(*last) < interval) {
            return Err(StoreError::TooManyMutations);
        }
        live.last_mutations.insert(key.clone(), now);
        Ok(())
    }

    fn show(&self, resource: &mut Value, is_empty: bool) {
        for (key, value) in &self.added_metadata {
            resource["metadata"][key] = value.as_str().into();
        }
        if let (true, true, Some(fields)) =
            (is_empty, self.omit_zero_size, resource.as_object_mut())
        {
            fields.remove("size");
        }
    }
}

impl LiveObjects {
    fn bucket(&self, name: &str) -> Option<&Bucket> {
        self.buckets.iter().find(|known| known.name == name)
    }

    fn existing(
        &self,
        key: &Key,
        generation: Option<i64>,
        conditions: &Preconditions,
    ) -> Result<&Entry, StoreError> {
        let entry = self.objects.get(key).ok_or(StoreError::NoSuchObject)?;
        if generation.is_some_and(|wanted| wanted != entry.generation) {
            return Err(StoreError::NoSuchObject);
        }
        conditions
            .check(entry.generation, entry.metageneration)
            .map_err(StoreError::Precondition)?;
        Ok(entry)
    }

    /// Microseconds since 1970, but never the same twice.
    fn next_generation(&mut self, now: OffsetDateTime) -> i64 {
        let micros = i64::try_from(now.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX);
        self.last_generation = micros.max(self.last_generation + 1);
        self.last_generation
    }
}

fn key(bucket: &str, name: &str) -> Key {
    (bucket.to_owned(), name.to_owned())
}

/// Applies a JSON merge patch.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        merge(&mut target[key], value);
    }
    if let Some(fields) = target.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
}

pub(crate) fn crc32c(bytes: &[u8]) -> String {
    STANDARD.encode(::crc32c::crc32c(bytes).to_be_bytes())
}

pub(crate) fn md5_hash(bytes: &[u8]) -> String {
    STANDARD.encode(md5::compute(bytes).0)
}

fn stored((bucket, name): &Key, entry: &Entry) -> io::Result<StoredObject> {
    let bytes = match &entry.content {
        Content::Memory(bytes) => bytes.clone(),
        Content::File(path) => fs::read(path)?.into(),
    };
    Ok(StoredObject {
        bucket: bucket.clone(),
        name: name.clone(),
        metadata: entry.metadata.clone(),
        bytes,
    })
}

fn write_partial(directory: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let unique: u64 = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), bytes.len());
    let path = directory.join(format!(".partial-{unique:016x}"));
    fs::write(&path, bytes)?;
    Ok(path)
}

/// Moves a complete file to the path of its object.
fn move_into_place(bucket: &Path, name: &str, partial: &Path) -> io::Result<PathBuf> {
    if is_plain(name) {
        let path = bucket.join(name);
        let parent = path.parent().unwrap_or(bucket);
        // Fails if the objects `a` and `a/b` both exist: `a` would be a file and a folder.
        if fs::create_dir_all(parent).and_then(|()| fs::rename(partial, &path)).is_ok() {
            return Ok(path);
        }
    }
    let path = bucket.join(flat(name));
    fs::rename(partial, &path)?;
    Ok(path)
}

/// Whether a name is usable as a path below the bucket's folder.
fn is_plain(name: &str) -> bool {
    let plain_char = |char: char| !char.is_control() && !"\\%:*?\"<>|".contains(char);
    let plain_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.len() <= 200;
    name.chars().all(plain_char) && name.split('/').all(plain_segment)
}

/// One file name for any object name; it starts with `%`, which a plain name does not.
fn flat(name: &str) -> String {
    let encoded = utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
    if encoded.len() <= 200 { format!("%{encoded}") } else { format!("%%{:x}", md5::compute(name)) }
}

fn is_bucket_name(name: &str) -> bool {
    let legal =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    (3..=222).contains(&name.len())
        && name.bytes().all(legal)
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

const DELETE: &str = "storage.objects.delete";

/// The fields that a client may set, and `contentType`.
const SETTABLE: &[&str] = &[
    "cacheControl",
    "contentDisposition",
    "contentEncoding",
    "contentLanguage",
    "customTime",
    "metadata",
    "storageClass",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_google() {
        assert_eq!(crc32c(b"hello world"), "yZRlqg==");
        assert_eq!(md5_hash(b"hello world"), "XrY7u+Ae7tCTyyK7j1rNww==");
        assert_eq!(crc32c(b""), "AAAAAA==");
    }

    #[test]
    fn names_that_are_not_paths_become_one_file_name() {
        for name in [
            "//x/../y.png",
            "../../etc/passwd",
            "/absolute",
            "a/./b",
            "a//b",
            "a/",
            "per%2Fcent",
            "nul\0",
        ] {
            assert!(!is_plain(name), "{name:?}");
            assert!(!flat(name).contains('/'), "{name:?}");
        }
        assert!(is_plain("images/iga/iga_req_1a2b3c4d_5e6f7a8b.png"));
        assert!(is_plain("images/.iga/lease"));
        assert!(flat(&"é".repeat(500)).len() < 255);
    }

    #[test]
    fn generations_grow_within_a_microsecond() {
        let (mut live, now) = (LiveObjects::default(), OffsetDateTime::UNIX_EPOCH);
        let first = live.next_generation(now);
        assert!(live.next_generation(now) > first);
    }
}
