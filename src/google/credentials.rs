//! Application Default Credentials: where they come from, and the one credential in use.

use crate::config::{Credentials as Sources, Timing};
use crate::error::{Error, Kind};
use crate::google::credential_file::{CredentialFile, CredentialKind, DOWNLOAD_AGAIN};
use crate::google::http::full_file_table;
use crate::panic::unless_it_panics;
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
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::{Instant, timeout_at};

/// Application Default Credentials, built on first use.
///
/// A credential that failed is evicted and rebuilt for the next call, because the library remembers failures,
/// some of them for good.
pub struct CredentialStore {
    sources: Sources,
    timing: Timing,
    current: Mutex<Option<Arc<Credentials>>>,
    /// A token was received before, so the source exists.
    has_worked: AtomicBool,
}

/// The source of the credential in use.
pub enum CredentialSource {
    File(PathBuf, CredentialKind),
    MetadataServer,
}

/// The headers of an access token, and the credential to evict if they are refused.
pub struct Authorization {
    pub headers: HeaderMap,
    pub credential: Arc<Credentials>,
}

/// Evicts the cached credential unless it yielded a token, even if the library panics.
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
        let (current, has_worked) = Default::default();
        CredentialStore { sources, timing, current, has_worked }
    }

    /// Gets an access token, in one try, and keeps it for the next request.
    ///
    /// # Errors
    /// The error that a request without a token would get.
    pub async fn try_token(&self, deadline: Instant) -> Result<(), Error> {
        self.fetch_token(deadline).await.map(drop).map_err(|failure| failure.error)
    }

    /// The source of the credential.
    ///
    /// # Errors
    /// If the source is a file that cannot be used.
    pub fn credential_source(&self) -> Result<CredentialSource, Error> {
        match self.file() {
            Some(path) => {
                self.read(path).map(|file| CredentialSource::File(path.to_owned(), file.kind))
            }
            None => Ok(CredentialSource::MetadataServer),
        }
    }

    /// A warning for the log at the start. It asks no source for a token.
    pub fn hint(&self) -> Option<String> {
        match self.file() {
            Some(path) => {
                self.read(path).err().map(|error| format!("{error} ({})", error.causes()))
            }
            None if self.is_known() => None,
            None => Some(format!(
                "No credentials file found; only the metadata server is left. Looked at: {}.",
                self.looked_at()
            )),
        }
    }

    /// The headers of an access token, with retries while they can help.
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
        let result = {
            let headers = pin!(credential.headers(http::Extensions::new()));
            timeout_at(limit, unless_it_panics(headers)).await
        };
        let error = match result.map_err(|_| TokenFailure::timeout()) {
            Ok(Some(Ok(CacheableResource::New { data, .. }))) => {
                std::mem::forget(eviction);
                self.has_worked.store(true, Ordering::Relaxed);
                return Ok(Authorization { headers: data, credential });
            }
            Ok(Some(Err(error))) => TokenFailure::of(&error),
            Ok(Some(Ok(CacheableResource::NotModified)) | None) => TokenFailure::of_the_library(),
            Err(failure) => failure,
        };
        Err(self.failure(error))
    }

    /// The failure with its advice. A source that is known to exist may respond again soon; a metadata
    /// server whose name does not resolve is taken as absent, unless it is known.
    fn failure(&self, failure: TokenFailure) -> Failure {
        let passes = failure.is_transient && (self.is_known() || !failure.is_unknown_host);
        let advice = self.advice(&failure.text);
        let cause = ForOperator(format!("{failure}.{advice} Looked at: {}.", self.looked_at()));
        match passes {
            true => {
                let source = self.source_in_use();
                let text = format!("Service Unavailable: no access token from {source}.");
                Failure::later(Kind::VertexUnavailable.because(text).caused_by(cause))
            }
            false => Failure::never(self.no_credentials().caused_by(cause)),
        }
    }

    /// Advice on what to change, as a further sentence, if a file is in use.
    fn advice(&self, cause: &str) -> String {
        let read = self.file().and_then(|path| self.read(path).ok());
        read.map(|file| format!(" {}", file.kind.advice(cause))).unwrap_or_default()
    }

    /// Whether the source is known to exist: configured, promised by the platform, or used before.
    fn is_known(&self) -> bool {
        let Sources { file, metadata_host, has_metadata_server, .. } = &self.sources;
        file.is_some()
            || metadata_host.is_some()
            || *has_metadata_server
            || self.gcloud_file().is_some()
            || self.has_worked.load(Ordering::Relaxed)
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

    /// Forgets this credential, so that the next request builds a new one.
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
                let unusable =
                    ForOperator("the metadata server's address cannot be used".to_owned());
                builder.build().map_err(|_| self.no_credentials().caused_by(unusable))
            }
        }
    }

    fn build_from(&self, path: &Path) -> Result<Credentials, Error> {
        let CredentialFile { kind, json } = self.read(path)?;
        let built = match kind {
            CredentialKind::AuthorizedUser => user_account::Builder::new(json).build(),
            CredentialKind::ServiceAccount { .. } => service_account::Builder::new(json).build(),
            CredentialKind::Impersonated { .. } => impersonated::Builder::new(json).build(),
            CredentialKind::Federated { .. } => external_account::Builder::new(json).build(),
        };
        // The library's error may repeat the file.
        built.map_err(|_| self.unusable_file(path, "is not what Google's library expects"))
    }

    fn read(&self, path: &Path) -> Result<CredentialFile, Error> {
        let text = std::fs::read(path)
            .map_err(|error| self.unusable_file(path, &format!("cannot be read: {error}")))?;
        CredentialFile::parse(&text).map_err(|problem| self.unusable_file(path, &problem))
    }

    fn unusable_file(&self, path: &Path, problem: &str) -> Error {
        let problem = match self.sources.file {
            Some(_) => format!("the file that GOOGLE_APPLICATION_CREDENTIALS names {problem}"),
            None => {
                let problem = problem.replace(DOWNLOAD_AGAIN, "sign in again with gcloud");
                format!("gcloud's own file {problem}")
            }
        };
        let text = format!("No usable Google credentials: {problem}.");
        Kind::PermissionDenied.because(text).caused_by(ForOperator(path.display().to_string()))
    }

    /// The credentials file in use, if any.
    fn file(&self) -> Option<&Path> {
        self.sources.file.as_deref().or(self.gcloud_file())
    }

    fn gcloud_file(&self) -> Option<&Path> {
        self.sources.gcloud_file.as_deref().filter(|path| path.exists())
    }

    /// Names the sources, without paths and hosts, which are not for callers.
    fn no_credentials(&self) -> Error {
        let tried = match (&self.sources.file, self.gcloud_file()) {
            (Some(_), _) => "the file that GOOGLE_APPLICATION_CREDENTIALS names",
            (None, Some(_)) => "GOOGLE_APPLICATION_CREDENTIALS (not set); gcloud's own file",
            (None, None) => {
                "GOOGLE_APPLICATION_CREDENTIALS (not set); gcloud's own file (not there); the metadata server"
            }
        };
        Kind::PermissionDenied.because(format!("No usable Google credentials. Tried: {tried}."))
    }

    fn source_in_use(&self) -> &'static str {
        match (&self.sources.file, self.gcloud_file()) {
            (Some(_), _) => "the file that GOOGLE_APPLICATION_CREDENTIALS names",
            (None, Some(_)) => "gcloud's own file",
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

/// Text for operators only, in the log and the doctor: paths, hosts, pools, advice.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct ForOperator(String);

/// Why Google's library got no token.
///
/// The library's texts repeat what a token endpoint sends, and that may include what was sent to it.
/// Only fixed phrases, the HTTP status and words that look like error codes are taken from them.
#[derive(Debug)]
struct TokenFailure {
    text: String,
    is_transient: bool,
    is_unknown_host: bool,
}

impl TokenFailure {
    fn timeout() -> TokenFailure {
        let text = "no response in time".to_owned();
        TokenFailure { text, is_transient: true, is_unknown_host: false }
    }

    /// A panic, for example because no file can be opened for a moment.
    fn of_the_library() -> TokenFailure {
        let text = match full_file_table() {
            Some(error) => format!("Google's library failed: {error}"),
            None => "Google's library failed".to_owned(),
        };
        TokenFailure { text, is_transient: true, is_unknown_host: false }
    }

    fn of(error: &CredentialsError) -> TokenFailure {
        let chain =
            std::iter::successors(Some(error as &dyn std::error::Error), |cause| cause.source());
        let texts = chain.map(ToString::to_string).collect::<Vec<_>>().join(" ");
        TokenFailure::from_texts(&texts, error.is_transient())
    }

    fn from_texts(texts: &str, is_transient: bool) -> TokenFailure {
        let step = STEPS.iter().find(|step| texts.contains(**step));
        let status = http_status(texts).map(|status| format!("HTTP {status}"));
        let codes =
            ["error", "error_subtype", "status"].iter().filter_map(|name| code(texts, name));
        let reasons = REASONS.iter().filter(|(phrase, _)| texts.contains(phrase));
        let mut parts: Vec<String> = step.map(|step| (*step).to_owned()).into_iter().collect();
        parts.extend(status);
        parts.extend(codes);
        parts.extend(reasons.map(|(_, reason)| (*reason).to_owned()).take(1));
        if parts.is_empty() {
            parts.push("Google's library gives no reason that may be shown".to_owned());
        }
        let is_unknown_host = texts.contains(NO_SUCH_HOST);
        TokenFailure { text: parts.join(": "), is_transient, is_unknown_host }
    }
}

impl fmt::Display for TokenFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The status in reqwest's `HTTP status client error (403 Forbidden)`, or in gax's `reports a [403] error`.
fn http_status(texts: &str) -> Option<u16> {
    ["HTTP status client error (", "HTTP status server error (", "the HTTP transport reports a ["]
        .iter()
        .filter_map(|before| texts.split_once(before)?.1.get(..3)?.parse().ok())
        .find(|status| (100..600).contains(status))
}

/// The value of a field in an error's JSON, quoted or not, if it looks like an error code: short, words
/// of one case, no digits.
fn code(texts: &str, name: &str) -> Option<String> {
    let plain = texts.replace('\\', "");
    let field = format!("\"{name}\"");
    let values = plain.split(&field).skip(1).filter_map(|rest| {
        let value = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
        Some(value.split_once('"')?.0)
    });
    let is_word = |text: &&str| {
        let is_of_case = |fits: fn(&char) -> bool| text.chars().all(|c| c == '_' || fits(&c));
        (3..=MAX_CODE_CHARS).contains(&text.len())
            && (is_of_case(char::is_ascii_lowercase) || is_of_case(char::is_ascii_uppercase))
    };
    values.into_iter().find(is_word).map(str::to_owned)
}

const MAX_CODE_CHARS: usize = 40;

/// The steps of Google's library, in its own words.
const STEPS: &[&str] = &[
    "failed to exchange token",
    "failed to refresh user access token",
    "failed to fetch access token",
    "failed to resolve IMDSv2 token",
    "could not resolve AWS region",
    "could not resolve AWS role name",
    "could not resolve AWS credentials",
    "failed to fetch AWS credentials for subject token",
    "failed to fetch token",
    "failed to request subject token",
    "failed to read subject token",
    "failed to parse service account private key",
];

/// Phrases of the library and of the operating system, and what is shown in their place.
const REASONS: &[(&str, &str)] = &[
    (NO_SUCH_HOST, "the host's name cannot be resolved"),
    ("Connection refused", "connection refused"),
    ("Connection reset", "connection reset"),
    ("connection closed", "connection closed"),
    ("Network is unreachable", "network unreachable"),
    ("No route to host", "no route to the host"),
    ("invalid peer certificate", "the server's certificate is not trusted"),
    ("operation timed out", "timed out"),
    ("deadline has elapsed", "timed out"),
    ("No such file or directory", "no such file"),
    ("Permission denied (os error", "the file may not be read"),
    ("Too many open files", "Too many open files"),
    ("error decoding response body", "the response is not a token"),
    ("executables need to be explicitly allowed", "executables are not allowed"),
    ("command execution failed", "the program failed"),
    ("subject token is empty", "the token is empty"),
    ("subject token field", "the token has no such field"),
    ("builder error", "the URL cannot be used"),
    ("error sending request", "the request could not be sent"),
];

const NO_SUCH_HOST: &str = "failed to lookup address information";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::Again;

    #[test]
    fn a_source_that_is_known_to_exist_is_tried_again() {
        let store = CredentialStore::new(Sources::default(), Timing::DEFAULT);
        let failure = |is_transient, is_unknown_host| {
            let text = String::new();
            let failure = store.failure(TokenFailure { text, is_transient, is_unknown_host });
            (failure.error.kind, failure.again)
        };
        let (later, never) =
            ((Kind::VertexUnavailable, Again::Later), (Kind::PermissionDenied, Again::Never));
        assert_eq!(failure(true, true), never, "there is no metadata server");
        assert_eq!(failure(true, false), later, "the metadata server refuses, or is not up yet");
        assert_eq!(failure(false, false), never);
        store.has_worked.store(true, Ordering::Relaxed);
        assert_eq!(failure(true, true), later, "its name does not resolve for a moment");
        assert_eq!(failure(false, true), never);
    }

    #[test]
    fn only_status_and_codes_of_a_token_endpoints_response_are_kept() {
        for (texts, kept) in [
            (
                r#"failed to refresh user access token, body=<{"error": "invalid_grant", "error_description": "SECRET",
                    "error_subtype": "invalid_rapt"}> HTTP status client error (400 Bad Request) for url (http://u:SECRET@x)"#,
                "failed to refresh user access token: HTTP 400: invalid_grant: invalid_rapt",
            ),
            (
                r#"failed to fetch token the HTTP transport reports a [403] error: {"error": {"code": 403, "message":
                    "SECRET", "status": "PERMISSION_DENIED"}}"#,
                "failed to fetch token: HTTP 403: PERMISSION_DENIED",
            ),
            (
                r#"failed to fetch access token :b"{\"error\":\"invalid_client\",\"x\":\"SECRET\"}""#,
                "failed to fetch access token: invalid_client",
            ),
            (
                r#"failed to exchange token, body=<{"error": "secret-word"}>"#,
                "failed to exchange token",
            ),
            (
                r#"failed to exchange token, body=<{"error": "GOCSPX-a1_SECRET"}>"#,
                "failed to exchange token",
            ),
            (
                r#"{"error": "secret1"} SECRET"#,
                "Google's library gives no reason that may be shown",
            ),
            (
                "error sending request for url (http://SECRET): Connection refused (os error 111)",
                "connection refused",
            ),
            (
                "error sending request for url (http://SECRET): Too many open files (os error 24)",
                "Too many open files",
            ),
        ] {
            assert_eq!(TokenFailure::from_texts(texts, false).text, kept);
        }
    }
}
