//! The HTTP client for all that goes out: one pool of connections, one way to trust.

use reqwest::Client;
use reqwest::redirect::Policy;
use std::sync::OnceLock;
use std::time::Duration;

/// Built when it is first wanted. Reading the CA certificates takes longer than all else that a start does,
/// so whoever starts a process lets this go on beside it.
#[derive(Default)]
pub struct LazyClient(OnceLock<Result<Client, ClientError>>);

/// The HTTP client cannot be built. All else about it being fixed, the machine lacks what TLS needs;
/// Google's credentials library would panic there.
#[derive(Debug, thiserror::Error)]
#[error(
    "IGA cannot start: this machine has no usable CA certificates, so no TLS connection can be trusted. Install \
     the package ca-certificates, or point SSL_CERT_FILE at a bundle."
)]
pub struct ClientError(#[source] reqwest::Error);

impl LazyClient {
    /// The client; whoever comes while it is being built waits for it, for some milliseconds.
    ///
    /// # Errors
    /// Where the machine lacks what TLS needs.
    pub fn client(&self) -> Result<&Client, &ClientError> {
        self.0.get_or_init(|| build().map_err(ClientError)).as_ref()
    }
}

fn build() -> Result<Client, reqwest::Error> {
    // One provider for all TLS of the process; a second client, as in tests, finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .build()
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that a frozen instance wakes up with is most likely dead.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(20);
