//! Sends requests to Google's services, with the credential that all of them share.

use crate::config::{Credentials as Sources, Timing};
use crate::error::{Error, Kind};
use crate::google::credentials::{Authorization, CredentialStore};
use crate::google::http::{Body, HttpClient, NoClient, Via, text};
use crate::retry::within;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The HTTP client and the credential of one process.
pub struct Client {
    pub http: HttpClient,
    pub credentials: CredentialStore,
}

/// Why a request got no response.
#[derive(Debug)]
pub enum SendError {
    /// Nothing was sent: no client, no access token, or no valid request.
    Unsent(Error),
    Http(legacy::Error),
    /// The deadline passed first.
    Deadline,
}

impl Client {
    /// A client that connects and fetches tokens on first use.
    pub fn new(sources: Sources, timing: Timing) -> Client {
        Client { http: HttpClient::default(), credentials: CredentialStore::new(sources, timing) }
    }

    /// Sends the request that `build` makes, with an access token; after a 401, once more with a new one.
    ///
    /// `build` runs right before the request is sent. The response must begin before `deadline`, and within
    /// `limit` of the sending.
    pub async fn send<E: Into<SendError>>(
        &self,
        deadline: Instant,
        limit: Duration,
        build: impl Fn() -> Result<Request<Body>, E>,
    ) -> Result<Response<Incoming>, SendError> {
        self.send_via(Via::Pool, deadline, limit, build).await
    }

    /// Like [`send`](Client::send), on the connection that `via` asks for.
    pub async fn send_via<E: Into<SendError>>(
        &self,
        via: Via,
        deadline: Instant,
        limit: Duration,
        build: impl Fn() -> Result<Request<Body>, E>,
    ) -> Result<Response<Incoming>, SendError> {
        // The credentials library panics where no HTTP client can be built, so build ours first.
        self.http.build()?;
        let authorization =
            self.credentials.authorization(deadline).await.map_err(SendError::Unsent)?;
        let request = signed(build().map_err(Into::into)?, &authorization);
        let response = self.send_unsigned(via, within(deadline, limit), Ok(request)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        tracing::info!("access token refused, asking for another");
        self.credentials.evict(&authorization.credential);
        let authorization =
            self.credentials.authorization(deadline).await.map_err(SendError::Unsent)?;
        let request = signed(build().map_err(Into::into)?, &authorization);
        self.send_unsigned(via, within(deadline, limit), Ok(request)).await
    }

    /// Sends a request without an `Authorization` header of its own.
    pub async fn send_unsigned(
        &self,
        via: Via,
        deadline: Instant,
        request: http::Result<Request<Body>>,
    ) -> Result<Response<Incoming>, SendError> {
        let request = request.map_err(unsent)?;
        match timeout_at(deadline, self.http.request(request, via)?).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(SendError::Http(error)),
            Err(_) => Err(SendError::Deadline),
        }
    }

    /// The service account of the metadata server, if one responds.
    pub async fn metadata_email(&self, deadline: Instant) -> Option<String> {
        let host = self.credentials.metadata_host();
        let url =
            format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/email");
        let request = Request::get(url).header("metadata-flavor", "Google").body(text(""));
        let response = self
            .send_unsigned(Via::Pool, deadline, request)
            .await
            .ok()
            .filter(|response| response.status().is_success())?;
        let email =
            timeout_at(deadline, Limited::new(response.into_body(), MAX_EMAIL_BYTES).collect())
                .await
                .ok()?;
        let text = String::from_utf8(email.ok()?.to_bytes().into()).ok()?;
        text.contains('@').then(|| text.trim().to_owned())
    }
}

const MAX_EMAIL_BYTES: usize = 1024;

fn signed(mut request: Request<Body>, authorization: &Authorization) -> Request<Body> {
    request.headers_mut().extend(authorization.headers.clone());
    request
}

impl From<http::Error> for SendError {
    fn from(error: http::Error) -> SendError {
        unsent(error)
    }
}

impl From<NoClient> for SendError {
    fn from(problem: NoClient) -> SendError {
        match problem {
            NoClient::Certificates(_) => unsent(problem),
            NoClient::Files(_) => {
                let error = Kind::Overloaded.because("This instance has too many files open.");
                SendError::Unsent(error.caused_by(problem))
            }
        }
    }
}

fn unsent(cause: impl std::error::Error + Send + Sync + 'static) -> SendError {
    SendError::Unsent(Kind::Internal.because("The request could not be sent.").caused_by(cause))
}
