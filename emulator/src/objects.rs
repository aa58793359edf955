//! The objects of Cloud Storage: as files a person can open, or in memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{fs, io};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::{lock, rfc3339};

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
    /// What the uploader said about it; only fields that one may set are kept.
    pub fields: Map<String, Value>,
    pub bytes: Bytes,
}

/// Why an object was not stored, read or deleted.
#[derive(Debug)]
pub(crate) enum Unmet {
    Precondition(Failed),
    NoSuchObject,
    Io(io::Error),
}

/// Conditions under which a request is carried out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Preconditions {
    generation_match: Option<i64>,
    generation_not_match: Option<i64>,
    metageneration_match: Option<i64>,
    metageneration_not_match: Option<i64>,
}

/// Which kind of condition did not hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Failed {
    Match,
    NotMatch,
}

impl Preconditions {
    /// Reads them from a query; the error is the parameter that is not a number.
    pub fn from_query(query: &BTreeMap<String, String>) -> Result<Self, &'static str> {
        let number = |name: &'static str| match query.get(name) {
            Some(text) => text.parse().map(Some).map_err(|_| name),
            None => Ok(None),
        };
        Ok(Self {
            generation_match: number("ifGenerationMatch")?,
            generation_not_match: number("ifGenerationNotMatch")?,
            metageneration_match: number("ifMetagenerationMatch")?,
            metageneration_not_match: number("ifMetagenerationNotMatch")?,
        })
    }

    /// `generation` is the live object's, 0 where there is none.
    fn check(&self, generation: i64) -> Result<(), Failed> {
        // Nothing here changes metadata in place.
        let metageneration = i64::from(generation != 0);
        let differs = |wanted: Option<i64>, is: i64| wanted.is_some_and(|wanted| wanted != is);
        let equals = |unwanted: Option<i64>, is: i64| unwanted == Some(is);
        if differs(self.generation_match, generation)
            || differs(self.metageneration_match, metageneration)
        {
            return Err(Failed::Match);
        }
        if equals(self.generation_not_match, generation)
            || equals(self.metageneration_not_match, metageneration)
        {
            return Err(Failed::NotMatch);
        }
        Ok(())
    }
}

/// Every bucket with its objects.
pub(crate) struct Objects {
    directory: Option<PathBuf>,
    buckets: Vec<String>,
    addr: SocketAddr,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    objects: BTreeMap<(String, String), Kept>,
    last_generation: i64,
}

struct Kept {
    metadata: Value,
    generation: i64,
    content: Content,
}

enum Content {
    Memory(Bytes),
    File(PathBuf),
}

impl Objects {
    pub fn open(
        directory: Option<PathBuf>,
        buckets: &[String],
        addr: SocketAddr,
    ) -> io::Result<Self> {
        if let Some(illegal) = buckets.iter().find(|name| !is_bucket_name(name)) {
            let problem = format!("not a legal bucket name: {illegal:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        for directory in directory.iter() {
            for bucket in buckets {
                fs::create_dir_all(directory.join(bucket))?;
            }
        }
        Ok(Self { directory, buckets: buckets.to_vec(), addr, live: Mutex::default() })
    }

    pub fn has_bucket(&self, bucket: &str) -> bool {
        self.buckets.iter().any(|known| known == bucket)
    }

    pub fn count(&self) -> u64 {
        lock(&self.live).objects.len() as u64
    }

    pub fn all(&self) -> Vec<StoredObject> {
        let live = lock(&self.live);
        live.objects.iter().filter_map(|(key, kept)| stored(key, kept).ok()).collect()
    }

    /// The metadata of a bucket's objects, by name.
    pub fn list(&self, bucket: &str, prefix: &str) -> Vec<Value> {
        let live = lock(&self.live);
        let wanted = live
            .objects
            .iter()
            .filter(|((in_bucket, name), _)| in_bucket == bucket && name.starts_with(prefix));
        wanted.map(|(_, kept)| kept.metadata.clone()).collect()
    }

    pub fn find(&self, bucket: &str, name: &str) -> Option<StoredObject> {
        self.read(bucket, name, None, &Preconditions::default()).ok()
    }

    /// Reads a live object; `generation` asks for that one and no other.
    pub fn read(
        &self,
        bucket: &str,
        name: &str,
        generation: Option<i64>,
        conditions: &Preconditions,
    ) -> Result<StoredObject, Unmet> {
        let key = (bucket.to_owned(), name.to_owned());
        let live = lock(&self.live);
        let kept = live.existing(&key, generation, conditions)?;
        stored(&key, kept).map_err(Unmet::Io)
    }

    pub fn delete(
        &self,
        bucket: &str,
        name: &str,
        generation: Option<i64>,
        conditions: &Preconditions,
    ) -> Result<(), Unmet> {
        let key = (bucket.to_owned(), name.to_owned());
        let mut live = lock(&self.live);
        live.existing(&key, generation, conditions)?;
        match live.objects.remove(&key).map(|kept| kept.content) {
            Some(Content::File(path)) => fs::remove_file(path).map_err(Unmet::Io),
            Some(Content::Memory(_)) | None => Ok(()),
        }
    }

    /// Whether an upload could go ahead now.
    pub fn check(&self, bucket: &str, name: &str, conditions: &Preconditions) -> Result<(), Unmet> {
        let key = (bucket.to_owned(), name.to_owned());
        lock(&self.live).check(&key, conditions)
    }

    /// Stores an object, whole or not at all; of rivals with `ifGenerationMatch=0` one wins.
    pub fn put(
        &self,
        new: NewObject,
        conditions: &Preconditions,
        now: OffsetDateTime,
    ) -> Result<Value, Unmet> {
        let partial =
            self.directory.as_deref().map(|directory| write_partial(directory, &new.bytes));
        let partial = partial.transpose().map_err(Unmet::Io)?;
        let key = (new.bucket.clone(), new.name.clone());
        let mut live = lock(&self.live);
        if let Err(unmet) = live.check(&key, conditions) {
            partial.map(fs::remove_file).transpose().map_err(Unmet::Io)?;
            return Err(unmet);
        }
        let content = match (&self.directory, partial) {
            (Some(directory), Some(partial)) => Content::File(
                settle(&directory.join(&new.bucket), &new.name, &partial).map_err(Unmet::Io)?,
            ),
            _ => Content::Memory(new.bytes.clone()),
        };
        let generation = live.next_generation(now);
        let metadata = self.resource(&new, generation, now);
        live.objects.insert(key, Kept { metadata: metadata.clone(), generation, content });
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
        resource
    }
}

impl Live {
    fn check(&self, key: &(String, String), conditions: &Preconditions) -> Result<(), Unmet> {
        let generation = self.objects.get(key).map_or(0, |kept| kept.generation);
        conditions.check(generation).map_err(Unmet::Precondition)
    }

    fn existing(
        &self,
        key: &(String, String),
        generation: Option<i64>,
        conditions: &Preconditions,
    ) -> Result<&Kept, Unmet> {
        let kept = self.objects.get(key).ok_or(Unmet::NoSuchObject)?;
        if generation.is_some_and(|wanted| wanted != kept.generation) {
            return Err(Unmet::NoSuchObject);
        }
        conditions.check(kept.generation).map_err(Unmet::Precondition)?;
        Ok(kept)
    }

    /// Microseconds since 1970, but never the same twice.
    fn next_generation(&mut self, now: OffsetDateTime) -> i64 {
        let micros = i64::try_from(now.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX);
        self.last_generation = micros.max(self.last_generation + 1);
        self.last_generation
    }
}

pub(crate) fn crc32c(bytes: &[u8]) -> String {
    STANDARD.encode(::crc32c::crc32c(bytes).to_be_bytes())
}

pub(crate) fn md5_hash(bytes: &[u8]) -> String {
    STANDARD.encode(md5::compute(bytes).0)
}

fn stored((bucket, name): &(String, String), kept: &Kept) -> io::Result<StoredObject> {
    let bytes = match &kept.content {
        Content::Memory(bytes) => bytes.clone(),
        Content::File(path) => fs::read(path)?.into(),
    };
    Ok(StoredObject {
        bucket: bucket.clone(),
        name: name.clone(),
        metadata: kept.metadata.clone(),
        bytes,
    })
}

fn write_partial(directory: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let unique: u64 = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), bytes.len());
    let path = directory.join(format!(".partial-{unique:016x}"));
    fs::write(&path, bytes)?;
    Ok(path)
}

/// Moves a complete file to where its object belongs.
fn settle(bucket: &Path, name: &str, partial: &Path) -> io::Result<PathBuf> {
    if is_plain(name) {
        let path = bucket.join(name);
        let parent = path.parent().unwrap_or(bucket);
        // Fails where an object `a` and another `a/b` would need one name for a file and a folder.
        if fs::create_dir_all(parent).and_then(|()| fs::rename(partial, &path)).is_ok() {
            return Ok(path);
        }
    }
    let path = bucket.join(flat(name));
    fs::rename(partial, &path)?;
    Ok(path)
}

/// Whether a name can be a path below the bucket's folder as it is.
fn is_plain(name: &str) -> bool {
    let plain_char = |char: char| !char.is_control() && !"\\%:*?\"<>|".contains(char);
    let plain_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.len() <= 200;
    name.chars().all(plain_char) && name.split('/').all(plain_segment)
}

/// A single file name for any object name; starts with `%` as no plain one does.
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
    fn checksums_are_google_s() {
        assert_eq!(crc32c(b"hello world"), "yZRlqg==");
        assert_eq!(md5_hash(b"hello world"), "XrY7u+Ae7tCTyyK7j1rNww==");
        assert_eq!(crc32c(b""), "AAAAAA==");
    }

    #[test]
    fn names_that_are_no_paths_become_one_file_name() {
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
        let (mut live, now) = (Live::default(), OffsetDateTime::UNIX_EPOCH);
        let first = live.next_generation(now);
        assert!(live.next_generation(now) > first);
    }
}
