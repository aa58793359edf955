//! The HTTP client for all requests to Google: pools of connections, certificates, proxies, bounded buffers.

use crate::google::tls_reads::TlsReads;
use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::{self, Client as Pool, ResponseFuture};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use lambda_http::tower::{BoxError, Service, ServiceExt as _};
use rustls::crypto::CryptoProvider;
use rustls::{CipherSuite, ClientConfig};
use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// The HTTP client of one process, built on first use.
///
/// Reading the CA certificates dominates start-up, so the process calls [`build`](HttpClient::build) in the
/// background once it listens.
#[derive(Default)]
pub struct HttpClient {
    pools: OnceLock<Arc<Pools>>,
    building: Mutex<()>,
}

/// One pool that keeps connections, and one that opens a connection for each request.
struct Pools {
    connector: Connector,
    reusing: Mutex<Reusing>,
    fresh: Pool<Connector, Body>,
}

/// The pool that keeps connections, and what tells whether they are alive.
struct Reusing {
    pool: Pool<Connector, Body>,
    heartbeat: Heartbeat,
    is_beating: bool,
    /// When a request was last sent to each origin.
    last_requests: HashMap<String, Instant>,
}

/// The last moment at which this process is known to have run.
///
/// Both clocks are needed: one stands still while a virtual machine is paused, the other may be set.
struct Heartbeat(Instant, SystemTime);

/// The connection on which a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// An idle connection, or a new one where no connection is idle.
    Pool,
    /// A connection of its own: for a second try after a connection that fell silent.
    Fresh,
}

/// The body of a request: a small text, or an image in chunks.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Why the client cannot be built. Google's credentials library would panic there.
#[derive(Debug, thiserror::Error)]
pub enum NoClient {
    #[error(
        "IGA cannot start: this machine has no usable CA certificates, so no TLS connection can be trusted. Install \
         the package ca-certificates, or point SSL_CERT_FILE at a bundle."
    )]
    Certificates(#[source] rustls::Error),
    /// The table of open files is full, which may pass.
    #[error("the CA certificates cannot be read now: {0}")]
    Files(std::io::Error),
}

/// Why no file can be opened, if that is so: the process or the machine has too many.
pub fn full_file_table() -> Option<std::io::Error> {
    std::fs::File::open("/").err()
}

impl HttpClient {
    /// # Errors
    /// If the CA certificates are missing, or cannot be read because too many files are open.
    pub fn build(&self) -> Result<(), NoClient> {
        self.pools().map(|_| ())
    }

    /// Sends a request and returns once the head of its response has arrived. Redirects are not followed.
    pub fn request(&self, request: Request<Body>, via: Via) -> Result<ResponseFuture, NoClient> {
        let pools = self.pools()?;
        Ok(match via {
            Via::Pool => pools.reusing(request.uri()).request(request),
            Via::Fresh => pools.fresh.request(request),
        })
    }

    /// Opens a connection to the origin of each URL to which no connection can be idle, for the requests that
    /// follow. This saves the round trips of one handshake after the other.
    pub fn open_ahead<'a>(&self, urls: impl IntoIterator<Item = &'a str>) {
        // The request itself reports what prevents a connection.
        let Ok(pools) = self.pools() else { return };
        for uri in urls.into_iter().filter_map(|url| Uri::try_from(url).ok()) {
            if pools.note_request(&uri) {
                let connector = &pools.connector;
                connector.ahead.put(origin(&uri), tokio::spawn(connector.open(uri)));
            }
        }
    }

    /// Blocks for some milliseconds while another thread builds the client. A failure is not cached,
    /// because it may be temporary, such as a full file table.
    fn pools(&self) -> Result<&Arc<Pools>, NoClient> {
        if let Some(pools) = self.pools.get() {
            return Ok(pools);
        }
        let _building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        match self.pools.get() {
            Some(pools) => Ok(pools),
            None => {
                let pools = Arc::new(Pools::new().map_err(why_no_client)?);
                Ok(self.pools.get_or_init(|| pools))
            }
        }
    }
}

fn why_no_client(error: rustls::Error) -> NoClient {
    full_file_table().map_or(NoClient::Certificates(error), NoClient::Files)
}

/// A body that is sent at once.
pub fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

/// The next chunk of a body; `None` at its end.
///
/// # Errors
/// If the connection broke.
pub async fn next_chunk(body: &mut Incoming) -> hyper::Result<Option<Bytes>> {
    while let Some(frame) = body.frame().await {
        if let Ok(chunk) = frame?.into_data() {
            return Ok(Some(chunk));
        }
    }
    Ok(None)
}

impl Pools {
    fn new() -> Result<Pools, rustls::Error> {
        let connector = Connector::new()?;
        let fresh = pool().pool_max_idle_per_host(0).build(connector.clone());
        let reusing = Reusing {
            pool: pool().build(connector.clone()),
            heartbeat: Heartbeat::now(),
            is_beating: false,
            last_requests: HashMap::new(),
        };
        Ok(Pools { connector, reusing: Mutex::new(reusing), fresh })
    }

    /// The pool whose connections are alive, for a request to this URL.
    fn reusing(self: &Arc<Pools>, uri: &Uri) -> Pool<Connector, Body> {
        self.note_request(uri);
        let mut reusing = self.lock();
        if !reusing.is_beating {
            reusing.is_beating = true;
            tokio::spawn(Arc::clone(self).keep_beating());
        }
        reusing.pool.clone()
    }

    /// Remembers that a request to this URL is sent now. Returns true if no connection to its origin can be idle.
    fn note_request(&self, uri: &Uri) -> bool {
        self.beat();
        let last = self.lock().last_requests.insert(origin(uri), Instant::now());
        last.is_none_or(|last| last.elapsed() > POOL_IDLE_TIMEOUT)
    }

    /// Beats while a connection may be idle.
    async fn keep_beating(self: Arc<Pools>) {
        loop {
            sleep(HEARTBEAT).await;
            self.beat();
            let mut reusing = self.lock();
            reusing.last_requests.retain(|_, last| last.elapsed() <= POOL_IDLE_TIMEOUT);
            if reusing.last_requests.is_empty() {
                reusing.is_beating = false;
                return;
            }
        }
    }

    /// Drops all idle connections if this process was frozen: the other side may have closed them unnoticed, and
    /// a model call that breaks on one cannot be repeated.
    fn beat(&self) {
        let mut reusing = self.lock();
        let now = Heartbeat::now();
        if reusing.heartbeat.is_late(&now) {
            reusing.pool = pool().build(self.connector.clone());
            reusing.last_requests.clear();
            self.connector.ahead.lock().clear();
        }
        reusing.heartbeat = now;
    }

    fn lock(&self) -> MutexGuard<'_, Reusing> {
        self.reusing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pool() -> legacy::Builder {
    let mut builder = Pool::builder(TokioExecutor::new());
    builder
        .http1_max_buf_size(BUFFER_BYTES)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .pool_timer(TokioTimer::new());
    builder
}

impl Heartbeat {
    fn now() -> Heartbeat {
        Heartbeat(Instant::now(), SystemTime::now())
    }

    fn is_late(&self, now: &Heartbeat) -> bool {
        let monotonic = now.0.saturating_duration_since(self.0);
        let wall = now.1.duration_since(self.1).unwrap_or_default();
        monotonic.max(wall) > FROZEN
    }
}

/// The cryptography of all TLS connections. It prefers AES with 128 bits, which takes less CPU than with 256.
pub fn tls_provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        !matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    provider
}

/// Opens connections: directly, or for https through the proxy of the environment (`HTTPS_PROXY`, `ALL_PROXY`,
/// `NO_PROXY`).
#[derive(Clone)]
struct Connector {
    tcp: HttpConnector,
    tls: Arc<ClientConfig>,
    proxies: Arc<Matcher>,
    ahead: Arc<Ahead>,
}

/// Connections that were opened before their request, by origin.
#[derive(Default)]
struct Ahead(Mutex<HashMap<String, (Instant, Opening)>>);

type Opening = JoinHandle<Result<Connection, BoxError>>;

impl Ahead {
    fn put(&self, origin: String, opening: Opening) {
        self.lock().insert(origin, (Instant::now(), opening));
    }

    /// The connection to this origin, unless it has been idle for long.
    fn take(&self, origin: &str) -> Option<Opening> {
        let (since, opening) = self.lock().remove(origin)?;
        (since.elapsed() < AHEAD_TIME).then_some(opening)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Instant, Opening)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn origin(uri: &Uri) -> String {
    format!(
        "{}://{}",
        uri.scheme_str().unwrap_or_default(),
        uri.authority().map_or("", Authority::as_str)
    )
}

type Connection = MaybeHttpsStream<TokioIo<TlsReads>>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

impl Connector {
    fn new() -> Result<Connector, rustls::Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // A model can take a minute; NATs and firewalls in between drop idle connections sooner.
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        let tls = ClientConfig::builder().try_with_platform_verifier()?.with_no_client_auth();
        let (proxies, ahead) = (Arc::new(Matcher::from_env()), Arc::default());
        Ok(Connector { tcp, tls: Arc::new(tls), proxies, ahead })
    }

    fn open(&self, target: Uri) -> Connecting<Connection> {
        let (tcp, tls) = (self.tcp.clone(), Arc::clone(&self.tls));
        let is_tls = target.scheme() == Some(&Scheme::HTTPS);
        let reads =
            move |tcp: TokioIo<TcpStream>| TokioIo::new(TlsReads::new(tcp.into_inner(), is_tls));
        let proxy = is_tls.then(|| self.proxies.intercept(&target)).flatten();
        let connecting: Connecting<Connection> = match proxy {
            None => Box::pin(HttpsConnector::from((tcp.map_response(reads), tls)).call(target)),
            Some(proxy) => {
                let tunnel = Tunnel::new(proxy.uri().clone(), tcp);
                let tunnel = match proxy.basic_auth() {
                    Some(auth) => tunnel.with_auth(auth.clone()),
                    None => tunnel,
                };
                Box::pin(HttpsConnector::from((tunnel.map_response(reads), tls)).call(target))
            }
        };
        Box::pin(async move { timeout(CONNECT_TIMEOUT, connecting).await? })
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = BoxError;
    type Future = Connecting<Connection>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Connecting<Connection> {
        let Some(opening) = self.ahead.take(&origin(&target)) else { return self.open(target) };
        let connector = self.clone();
        Box::pin(async move {
            match opening.await {
                Ok(Ok(connection)) => Ok(connection),
                Ok(Err(_)) | Err(_) => connector.open(target).await,
            }
        })
    }
}

/// The bytes that one connection reads at once, and the most that it buffers while its body is not read.
pub const BUFFER_BYTES: usize = 32 * 1024;

/// TCP, the proxy and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Shorter than the idle limits of Google's servers and of the usual NATs.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// A connection opened ahead whose request has not followed by then is not used.
const AHEAD_TIME: Duration = Duration::from_secs(10);

const HEARTBEAT: Duration = Duration::from_secs(5);

/// A process that has not run for this long was frozen, not only busy.
const FROZEN: Duration = Duration::from_secs(20);

const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_did_not_run_for_a_while_was_frozen() {
        let last = Heartbeat::now();
        let later = |monotonic: Duration, wall: Duration| {
            last.is_late(&Heartbeat(last.0 + monotonic, last.1 + wall))
        };
        assert!(!later(FROZEN, FROZEN));
        let more = FROZEN + Duration::from_millis(1);
        assert!(later(more, Duration::ZERO), "only the control group was frozen");
        assert!(later(Duration::ZERO, more), "the virtual machine was paused");
        assert!(!last.is_late(&Heartbeat(last.0, last.1 - more)), "the clock was set back");
    }

    #[test]
    fn tls_prefers_the_cheaper_cipher() {
        let suites = tls_provider().cipher_suites;
        assert_eq!(suites[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(suites.len(), rustls::crypto::ring::default_provider().cipher_suites.len());
    }
}
