//! One credential for both of Google's services, and the one way a request leaves the house.

use crate::client::{Body, Client};
use crate::config::{CREDENTIAL_TYPES, Credentials as Sources, Timing};
use crate::error::{Error, Kind};
use crate::retry::{self, Failure, within};
use google_cloud_auth::credentials::{
    CacheableResource, Credentials, external_account, impersonated, mds, service_account, user_account,
};
use google_cloud_auth::errors::CredentialsError;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Application Default Credentials, built on first use.
///
/// A credential that failed is dropped and built anew for the next call: the library remembers its
/// failures, some of them for good.
pub struct Auth {
    pub client: Client,
    sources: Sources,
    timing: Timing,
    current: Mutex<Option<Arc<Credentials>>>,
}

/// Why a request got no answer.
#[derive(Debug)]
pub enum SendError {
    /// Nothing was sent, said in the caller's words: no client, no access token, no valid request.
    Unsent(Error),
    Http(legacy::Error),
    /// The deadline passed first.
    Deadline,
}

/// The headers of one credential, which can be named as stale.
struct Authorization {
    headers: HeaderMap,
    credential: Arc<Credentials>,
}

/// Drops a credential that did not prove good, were it by a panic of its library.
struct Doubt<'a> {
    auth: &'a Auth,
    credential: &'a Arc<Credentials>,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        self.auth.forget(self.credential);
    }
}

impl Auth {
    pub fn new(sources: Sources, timing: Timing) -> Auth {
        Auth { client: Client::default(), sources, timing, current: Mutex::new(None) }
    }

    /// Sends the request that `build` makes with an access token, once more with a new token after a 401.
    ///
    /// An answer must begin before `deadline`, and within `limit` of the sending.
    pub async fn send(
        &self,
        deadline: Instant,
        limit: Duration,
        build: impl Fn() -> http::Result<Request<Body>>,
    ) -> Result<Response<Incoming>, SendError> {
        // Before the credentials: where no client can be built, their library panics.
        self.client.build().map_err(unsent)?;
        let authorization = self.authorization(deadline).await.map_err(SendError::Unsent)?;
        let response = self.send_once(within(deadline, limit), build(), &authorization).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        tracing::info!("access token refused, asking for another");
        self.forget(&authorization.credential);
        let authorization = self.authorization(deadline).await.map_err(SendError::Unsent)?;
        self.send_once(within(deadline, limit), build(), &authorization).await
    }

    async fn send_once(
        &self,
        deadline: Instant,
        request: http::Result<Request<Body>>,
        authorization: &Authorization,
    ) -> Result<Response<Incoming>, SendError> {
        let mut request = request.map_err(unsent)?;
        request.headers_mut().extend(authorization.headers.clone());
        match timeout_at(deadline, self.client.request(request).map_err(unsent)?).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(SendError::Http(error)),
            Err(_) => Err(SendError::Deadline),
        }
    }

    /// What is known about the sources without asking any: a hint for the log at start, if one is due.
    pub fn hint(&self) -> Option<String> {
        (!self.is_configured()).then(|| {
            format!("No credentials file found; only the metadata server is left. Looked at: {}.", self.looked_at())
        })
    }

    async fn authorization(&self, deadline: Instant) -> Result<Authorization, Error> {
        retry::until(deadline, self.timing.first_retry_wait, |_| self.ask(deadline)).await
    }

    async fn ask(&self, deadline: Instant) -> Result<Authorization, Failure> {
        let credential = self.credential().map_err(Failure::never)?;
        let limit = within(deadline, self.timing.token_try);
        let doubt = Doubt { auth: self, credential: &credential };
        let error = match timeout_at(limit, credential.headers(http::Extensions::new())).await {
            Ok(Ok(CacheableResource::New { data, .. })) => {
                std::mem::forget(doubt);
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
        let caused = |failure: Error| match error {
            Some(cause) => failure.caused_by(cause),
            None => failure,
        };
        match (transient, self.is_configured()) {
            (true, true) => Failure::later(caused(
                Kind::VertexUnavailable
                    .because(format!("Service Unavailable: no access token from {}.", self.source_in_use())),
            )),
            (true, false) | (false, _) => Failure::never(caused(self.no_credentials())),
        }
    }

    /// Whether a source is known to be there, rather than only looked for.
    fn is_configured(&self) -> bool {
        let Sources { file, metadata_host, has_metadata_server, .. } = &self.sources;
        file.is_some() || metadata_host.is_some() || *has_metadata_server || self.gcloud_file().is_some()
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

    fn forget(&self, stale: &Arc<Credentials>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|credential| Arc::ptr_eq(credential, stale)) {
            *current = None;
        }
    }

    fn build(&self) -> Result<Credentials, Error> {
        match self.sources.file.as_deref().or(self.gcloud_file()) {
            Some(path) => self.build_from(path),
            None => {
                let builder = mds::Builder::default();
                let builder = match &self.sources.metadata_host {
                    Some(host) => builder.with_endpoint(format!("http://{host}")),
                    None => builder,
                };
                builder.build().map_err(|error| self.no_credentials().caused_by(error))
            }
        }
    }

    fn build_from(&self, path: &Path) -> Result<Credentials, Error> {
        let unusable = |what: String| {
            Kind::PermissionDenied.because(format!("No usable Google credentials: {} {what}.", path.display()))
        };
        let text = std::fs::read(path).map_err(|error| unusable("cannot be read".to_owned()).caused_by(error))?;
        let json: serde_json::Value = serde_json::from_slice(&text).map_err(|_| unusable("is not JSON".to_owned()))?;
        let built = match json["type"].as_str() {
            Some("authorized_user") => user_account::Builder::new(json).build(),
            Some("service_account") => service_account::Builder::new(json).build(),
            Some("impersonated_service_account") => impersonated::Builder::new(json).build(),
            Some("external_account") => external_account::Builder::new(json).build(),
            _ => return Err(unusable(format!("is none of {}", CREDENTIAL_TYPES.join(", ")))),
        };
        built.map_err(|error| unusable("is not complete".to_owned()).caused_by(error))
    }

    fn gcloud_file(&self) -> Option<&Path> {
        self.sources.gcloud_file.as_deref().filter(|path| path.exists())
    }

    fn no_credentials(&self) -> Error {
        Kind::PermissionDenied.because(format!("No usable Google credentials. Tried: {}.", self.looked_at()))
    }

    fn source_in_use(&self) -> &'static str {
        match (&self.sources.file, self.gcloud_file()) {
            (Some(_), _) => "the source that GOOGLE_APPLICATION_CREDENTIALS names",
            (None, Some(_)) => "the source that gcloud's own file names",
            (None, None) => "the metadata server",
        }
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
        let metadata = self.sources.metadata_host.as_deref().unwrap_or("metadata.google.internal");
        format!("{file}; {gcloud}; the metadata server at {metadata}")
    }
}

fn unsent(cause: impl std::error::Error + Send + Sync + 'static) -> SendError {
    SendError::Unsent(Kind::Internal.because("The request could not be sent.").caused_by(cause))
}
