//! The service on a socket: connections are bounded in number, in time and in memory.

use crate::app::App;
use crate::config::Config;
use crate::router::{RemoteIp, router};
use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lambda_http::tower::Service;
use std::future::Future;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Listens with a queue that takes a burst of connections.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves on a socket until `stop`, then finishes the requests under way.
///
/// New requests get a 503 until the last flight has ended: no client sees a refused connection.
pub async fn serve(app: Arc<App>, listener: TcpListener, stop: impl Future<Output = ()>) {
    let router = router(Arc::clone(&app));
    serve_router(app, router, listener, stop).await;
}

/// Like [`serve`], with `router` in place of the service's own, which it contains.
pub async fn serve_router(
    app: Arc<App>,
    router: Router,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) {
    let connections = Connections::new(router, &app.config);
    let finished = async {
        stop.await;
        tracing::info!("stopping: finishing what is under way");
        app.flights.stop(Instant::now() + FINISH_WITHIN).await;
    };
    tokio::select! {
        () = finished => {}
        never = connections.accept(&listener) => match never {},
    }
    drop(listener);
    connections.close().await;
}

/// The open connections.
struct Connections {
    router: Router,
    /// One permit for each connection that may be open.
    permits: Arc<Semaphore>,
    /// Told when a connection has ended, so its file is free.
    ended: Arc<Notify>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Connections {
    fn new(router: Router, config: &Config) -> Connections {
        Connections {
            router,
            permits: Arc::new(Semaphore::new(max_connections(config))),
            ended: Arc::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    /// Accepts connections for as long as it is polled; those beyond the limit wait in the listen queue.
    async fn accept(&self, listener: &TcpListener) -> std::convert::Infallible {
        let mut last_warning: Option<Instant> = None;
        loop {
            let permit = Arc::clone(&self.permits).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let (router, closing) = (self.router.clone(), self.closing.clone());
                    let ended = Arc::clone(&self.ended);
                    self.tasks.spawn(async move {
                        connection(stream, peer.ip(), router, closing).await;
                        drop(permit);
                        ended.notify_one();
                    });
                }
                // The peer left before it was accepted.
                Err(error) if is_about_the_peer(error.kind()) => {}
                Err(error) => {
                    if last_warning.is_none_or(|at| at.elapsed() >= ACCEPT_AGAIN) {
                        tracing::warn!("no connection can be accepted: {error}");
                        last_warning = Some(Instant::now());
                    }
                    let _ = timeout(ACCEPT_AGAIN, self.ended.notified()).await;
                }
            }
        }
    }

    /// Lets responses that are ready go out, then closes.
    async fn close(self) {
        self.closing.cancel();
        self.tasks.close();
        if timeout(CLOSE_WITHIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(open = self.tasks.len(), "stopped with connections open");
        }
    }
}

/// Serves one connection. A client that has not sent its first header within [`FIRST_HEADER`] is disconnected;
/// later headers and idle connections have [`KEEP_ALIVE`].
async fn connection(stream: TcpStream, peer: IpAddr, router: Router, closing: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let is_used = AtomicBool::new(false);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        is_used.store(true, Ordering::Relaxed);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(RemoteIp(peer));
        router.clone().call(request)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(KEEP_ALIVE)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut first_header = pin!(sleep(FIRST_HEADER));
    let mut is_waiting = true;
    let mut is_closing = false;
    loop {
        tokio::select! {
            // An error is the client's: it left, or did not send valid HTTP.
            _ = connection.as_mut() => return,
            () = &mut first_header, if is_waiting => {
                if !is_used.load(Ordering::Relaxed) {
                    return;
                }
                is_waiting = false;
            }
            () = closing.cancelled(), if !is_closing => {
                connection.as_mut().graceful_shutdown();
                is_closing = true;
            }
        }
    }
}

/// The maximum of the settings, or fewer if the process may not open enough files.
fn max_connections(config: &Config) -> usize {
    let files = rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    config.max_connections.min(files_for_connections(files, config.max_generations))
}

/// The files that generations do not need; at least half of all, because not every connection generates.
fn files_for_connections(files: usize, max_generations: usize) -> usize {
    let reserved =
        FILES_PER_GENERATION.saturating_mul(max_generations).saturating_add(FILES_BESIDE);
    (files - reserved.min(files / 2)).max(1)
}

fn is_about_the_peer(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}

/// The connections of a generation: to the model, for the upload, and for the record.
const FILES_PER_GENERATION: usize = 3;
const FILES_BESIDE: usize = 64;

/// The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// How long a client may take for its first header.
const FIRST_HEADER: Duration = Duration::from_secs(20);

/// How long a connection may be idle: longer than the 60 s of a load balancer, which closes first.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// The longest header, and the most that is read ahead of the handler.
const BUFFER_BYTES: usize = 64 * 1024;

/// The pause after a failure to accept, unless a connection ends first: while the file table is full, every
/// attempt fails at once. Warnings are as far apart.
const ACCEPT_AGAIN: Duration = Duration::from_millis(500);

/// Cloud Run kills the process 10 s after SIGTERM. Flights may go on for this long, the rest is
/// cancelled within a second, and the responses have the time that is left then.
const FINISH_WITHIN: Duration = Duration::from_millis(7500);
const CLOSE_WITHIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_keep_their_files_and_callers_at_least_half() {
        for (files, max_generations, expected) in [
            (1 << 20, 80, (1 << 20) - 304),
            (1024, 80, 720),
            (608, 80, 304),
            (320, 80, 160),
            (256, 80, 128),
            (1024, 340, 512),
            (1024, 1000, 512),
            (1024, usize::MAX, 512),
            (64, 1, 32),
            (3, 1, 2),
            (1, 1, 1),
            (0, 1, 1),
        ] {
            let found = files_for_connections(files, max_generations);
            assert_eq!(found, expected, "{files} files, {max_generations} generations");
        }
    }
}
