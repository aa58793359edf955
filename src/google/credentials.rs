//! Application Default Credentials: where they come from, and the one credential in use.

use crate::config::{Credentials as Sources, Timing};
use crate::error::{Error, Kind};
use crate::google::credential_file::CredentialKind;
use crate::retry::{self, Failure, within};
use crate::telemetry::metrics;
use google_cloud_auth::credentials::{
    CacheableResource, Credentials, external_account, impersonated, mds, service_account,
    user_account,
};
use google_cloud_auth::errors::CredentialsError;
use http::HeaderMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::{Instant, timeout_at};

/// Application Default Credentials, built on first use.
///
/// A credential that failed is evicted and built anew for the next call: the library remembers its
/// failures, some of them for good.
pub struct CredentialStore {
    sources: Sources,
    timing: Timing,
    current: Mutex<Option<Arc<Credentials>>>,
}

/// Where the credential in use comes from.
pub enum CredentialSource {
    File(PathBuf, CredentialKind),
    MetadataServer,
}

/// The headers of one credential, which can be named as stale.
pub struct Authorization {
    pub headers: HeaderMap,
    pub credential: Arc<Credentials>,
}

/// Drops a credential that did not prove good, were it by a panic of its library.
struct EvictOnDrop<'a> {
    store: &'a CredentialStore,
    credential: &'a Arc<Credentials>,
}

impl Drop for EvictOnDrop<'_> {
    fn drop(&mut self) {
        self.store.evict(self.credential);
    }
}

impl CredentialStore {
    pub fn new(sources: Sources, timing: Timing) -> CredentialStore {
        CredentialStore { sources, timing, current: Mutex::new(None) }
    }

    /// Gets an access token, in one try, and keeps it for what is sent next.
    ///
    /// # Errors
    /// Why there is none, in the words of a request that fails for it.
    pub async fn try_token(&self, deadline: Instant) -> Result<(), Error> {
        self.fetch_token(deadline).await.map(drop).map_err(|failure| failure.error)
    }

    /// Where the credential comes from.
    ///
    /// # Errors
    /// Where that is a file which cannot be one.
    pub fn credential_source(&self) -> Result<CredentialSource, Error> {
        match self.file() {
            Some(path) => self
                .read(path)
                .map(|(identity, _)| CredentialSource::File(path.to_owned(), identity)),
            None => Ok(CredentialSource::MetadataServer),
        }
    }

    /// What is known about the sources without asking any: a hint for the log at start, if one is due.
    pub fn hint(&self) -> Option<String> {
        (!self.is_configured()).then(|| {
            format!(
                "No credentials file found; only the metadata server is left. Looked at: {}.",
                self.looked_at()
            )
        })
    }

    /// The headers of an access token, tried again while that can help.
    pub async fn authorization(&self, deadline: Instant) -> Result<Authorization, Error> {
        let start = Instant::now();
        let fetched =
            retry::until(deadline, self.timing.first_retry_wait, |_| self.fetch_token(deadline))
                .await;
        metrics::token_fetched(start.elapsed());
        fetched
    }

    async fn fetch_token(&self, deadline: Instant) -> Result<Authorization, Failure> {
        let credential = self.credential().map_err(Failure::never)?;
        let limit = within(deadline, self.timing.token_try);
        let eviction = EvictOnDrop { store: self, credential: &credential };
        let error = match timeout_at(limit, credential.headers(http::Extensions::new())).await {
            Ok(Ok(CacheableResource::New { data, .. })) => {
                std::mem::forget(eviction);
                return Ok(Authorization { headers: data, credential });
            }
            Ok(Ok(CacheableResource::NotModified)) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        Err(self.failure(error))
    }

    /// A source that was configured and cannot answer now may answer soon; a source that was only
    /// guessed at is most likely not there.
    fn failure(&self, error: Option<CredentialsError>) -> Failure {
        let transient = error.as_ref().is_none_or(CredentialsError::is_transient);
        let cause = error.map(|error| Cause::of(&error));
        let advice = self.advice(cause.as_ref().map_or("", |cause| &cause.0));
        let caused = |failure: Error| match cause {
            Some(cause) => failure.caused_by(cause),
            None => failure,
        };
        match (transient, self.is_configured()) {
            (true, true) => {
                let source = self.source_in_use();
                let text = format!("Service Unavailable: no access token from {source}.{advice}");
                Failure::later(caused(Kind::VertexUnavailable.because(text)))
            }
            (true, false) | (false, _) => Failure::never(caused(self.no_credentials(&advice))),
        }
    }

    /// What to change, as a further sentence, where the file in use tells.
    fn advice(&self, cause: &str) -> String {
        let read = self.file().and_then(|path| self.read(path).ok());
        read.map(|(identity, _)| format!(" {}", identity.advice(cause))).unwrap_or_default()
    }

    /// Whether a source is known to be there, rather than only looked for.
    fn is_configured(&self) -> bool {
        let Sources { file, metadata_host, has_metadata_server, .. } = &self.sources;
        file.is_some()
            || metadata_host.is_some()
            || *has_metadata_server
            || self.gcloud_file().is_some()
    }

    fn credential(&self) -> Result<Arc<Credentials>, Error> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(credential) = &*current {
            return Ok(Arc::clone(credential));
        }
        let credential = Arc::new(self.build()?);
        *current = Some(Arc::clone(&credential));
        Ok(credential)
    }

    pub fn evict(&self, stale: &Arc<Credentials>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|credential| Arc::ptr_eq(credential, stale)) {
            *current = None;
        }
    }

    fn build(&self) -> Result<Credentials, Error> {
        match self.file() {
            Some(path) => self.build_from(path),
            None => {
                let builder = mds::Builder::default();
                let builder = match &self.sources.metadata_host {
                    Some(host) => builder.with_endpoint(format!("http://{host}")),
                    None => builder,
                };
                builder.build().map_err(|error| self.no_credentials("").caused_by(error))
            }
        }
    }

    fn build_from(&self, path: &Path) -> Result<Credentials, Error> {
        let (identity, json) = self.read(path)?;
        let built = match identity {
            CredentialKind::AuthorizedUser => user_account::Builder::new(json).build(),
            CredentialKind::ServiceAccount { .. } => service_account::Builder::new(json).build(),
            CredentialKind::Impersonated { .. } => impersonated::Builder::new(json).build(),
            CredentialKind::Federated { .. } => external_account::Builder::new(json).build(),
        };
        built.map_err(|error| self.unusable(path, "is not complete").caused_by(error))
    }

    fn read(&self, path: &Path) -> Result<(CredentialKind, serde_json::Value), Error> {
        let text = std::fs::read(path)
            .map_err(|error| self.unusable(path, "cannot be read").caused_by(error))?;
        let json = serde_json::from_slice(&text).map_err(|_| self.unusable(path, "is not JSON"))?;
        match CredentialKind::from_file(&json) {
            Some(identity) => Ok((identity, json)),
            None => {
                Err(self
                    .unusable(path, &format!("is none of {}", CredentialKind::TYPES.join(", "))))
            }
        }
    }

    fn unusable(&self, path: &Path, what: &str) -> Error {
        let anew = match self.sources.file {
            Some(_) => "download or generate it anew",
            None => "sign in anew with gcloud client application-default login",
        };
        let path = path.display();
        Kind::PermissionDenied
            .because(format!("No usable Google credentials: {path} {what}; {anew}."))
    }

    /// The credentials file in use, if one is.
    fn file(&self) -> Option<&Path> {
        self.sources.file.as_deref().or(self.gcloud_file())
    }

    fn gcloud_file(&self) -> Option<&Path> {
        self.sources.gcloud_file.as_deref().filter(|path| path.exists())
    }

    fn no_credentials(&self, advice: &str) -> Error {
        Kind::PermissionDenied
            .because(format!("No usable Google credentials.{advice} Tried: {}.", self.looked_at()))
    }

    fn source_in_use(&self) -> &'static str {
        match (&self.sources.file, self.gcloud_file()) {
            (Some(_), _) => "the source that GOOGLE_APPLICATION_CREDENTIALS names",
            (None, Some(_)) => "the source that gcloud's own file names",
            (None, None) => "the metadata server",
        }
    }

    /// The metadata server, as `host` or `host:port`.
    pub fn metadata_host(&self) -> &str {
        self.sources.metadata_host.as_deref().unwrap_or(METADATA_HOST)
    }

    fn looked_at(&self) -> String {
        let file = match &self.sources.file {
            Some(path) => format!("GOOGLE_APPLICATION_CREDENTIALS ({})", path.display()),
            None => "GOOGLE_APPLICATION_CREDENTIALS (not set)".to_owned(),
        };
        let gcloud = match (&self.sources.gcloud_file, self.gcloud_file()) {
            (_, Some(path)) => path.display().to_string(),
            (Some(path), None) => format!("{} (not there)", path.display()),
            (None, None) => "gcloud's own file (HOME is not set)".to_owned(),
        };
        let metadata = self.metadata_host();
        format!("{file}; {gcloud}; the metadata server at {metadata}")
    }
}

const METADATA_HOST: &str = "metadata.google.internal";

/// What Google's library says of a failure: each step once, though the library repeats them, and without the
/// token of another cloud that it quotes when a field is missing beside it.
#[derive(Debug)]
struct Cause(String);

impl Cause {
    fn of(error: &CredentialsError) -> Cause {
        let chain =
            std::iter::successors(Some(error as &dyn std::error::Error), |cause| cause.source());
        let texts: Vec<_> = chain.map(|cause| cause.to_string().replace(MAY_SUCCEED, "")).collect();
        let mut steps: Vec<_> = texts
            .windows(2)
            .map(|pair| pair[0].strip_suffix(&pair[1]).unwrap_or(&pair[0]))
            .collect();
        steps.extend(texts.last().map(String::as_str));
        let mut steps: Vec<_> =
            steps.iter().map(|step| step.trim_end_matches([':', ' '])).collect();
        steps.dedup();
        let text = steps.join(": ");
        Cause(match text.split_once(", body=") {
            Some((before, _)) if before.contains("subject token field") => before.to_owned(),
            Some(_) | None => text,
        })
    }
}

const MAY_SUCCEED: &str = " but future attempts may succeed";

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}
