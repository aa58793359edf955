//! The server: accepts connections, sends bodies as they are to be delivered, and breaks
//! connections.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response as HttpResponse};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::response::{Cut, Delivery, Ending, HandlerResult, Refusal};

/// Bytes a second of each connection; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bandwidth {
    pub receiving: Option<u64>,
    pub sending: Option<u64>,
}

/// Accepts connections until the task is aborted, which also closes the open ones.
pub(crate) async fn serve<H, F>(listener: TcpListener, bandwidth: Bandwidth, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = HandlerResult> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let socket = Socket::new(stream, bandwidth);
        connections.spawn(serve_connection(socket, handler.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve_connection<H, F>(socket: Socket, handler: H)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = HandlerResult>,
{
    let abort = socket.abort.clone();
    let service = service_fn(|request| respond(handler(request), abort.clone()));
    // An error here is a connection that broke, often because a fault broke it.
    let _ = http1::Builder::new()
        .auto_date_header(false)
        .serve_connection(TokioIo::new(socket), service)
        .await;
}

/// Turns the handler's result into an HTTP response, or breaks the connection.
async fn respond(
    result: impl Future<Output = HandlerResult>,
    abort: Abort,
) -> io::Result<HttpResponse<ResponseBody>> {
    let response = match result.await {
        Ok(response) => response,
        Err(Refusal::Response(response)) => *response,
        Err(Refusal::Abort(Ending::Stall)) => std::future::pending().await,
        Err(Refusal::Abort(ending)) => {
            abort.request(ending);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    };
    let mut http = HttpResponse::new(ResponseBody::new(response.body, response.delivery, abort));
    *http.status_mut() = response.status;
    *http.headers_mut() = response.headers;
    Ok(http)
}

/// The unsent rest of a response's body.
struct ResponseBody {
    left: Bytes,
    /// Bytes of `Content-Length` that are still due.
    declared: Option<u64>,
    chunk_bytes: usize,
    chunk_delay: Duration,
    pause: Option<Pin<Box<Sleep>>>,
    cut: Option<Cut>,
    abort: Abort,
}

impl ResponseBody {
    fn new(body: Bytes, delivery: Delivery, abort: Abort) -> Self {
        let closes_early = (delivery.excess_length > 0).then(|| Cut::after_body(Ending::Close));
        let declared = body.len() as u64 + delivery.excess_length;
        Self {
            declared: delivery.chunk_bytes.is_none().then_some(declared),
            chunk_bytes: delivery.chunk_bytes.unwrap_or(body.len()).max(1),
            chunk_delay: Duration::from_millis(delivery.chunk_delay_ms),
            pause: None,
            cut: delivery.cut.or(closes_early),
            left: body,
            abort,
        }
    }

    /// The next chunk; shorter if the cut comes first, empty if no more may be sent.
    fn next_chunk(&mut self) -> Bytes {
        let allowed = self.cut.map_or(u64::MAX, |cut| cut.after);
        let allowed = usize::try_from(allowed).unwrap_or(usize::MAX);
        let size = self.chunk_bytes.min(self.left.len()).min(allowed);
        if let Some(cut) = &mut self.cut {
            cut.after -= size as u64;
        }
        self.left.split_to(size)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let chunk = self.next_chunk();
        if !chunk.is_empty() {
            if !self.chunk_delay.is_zero() {
                self.pause = Some(Box::pin(sleep(self.chunk_delay)));
            }
            self.declared = self.declared.map(|bytes| bytes - chunk.len() as u64);
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        match self.cut {
            None => Poll::Ready(None),
            Some(cut) => {
                // The socket breaks once what was written has left; this body is not polled again.
                self.abort.request(cut.ending);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && self.cut.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.declared.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Whether and how a connection is to break; shared by its socket and its responses.
#[derive(Clone, Default)]
struct Abort(Arc<AtomicU8>);

impl Abort {
    const CLOSE: u8 = 1;
    const RESET: u8 = 2;

    fn request(&self, ending: Ending) {
        match ending {
            Ending::Close => self.0.store(Self::CLOSE, Ordering::Relaxed),
            Ending::Reset => self.0.store(Self::RESET, Ordering::Relaxed),
            Ending::Stall => {}
        }
    }

    fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    fn is_reset(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::RESET
    }
}

/// A TCP connection with a bandwidth, which breaks on request once all that was written has left.
struct Socket {
    stream: TcpStream,
    abort: Abort,
    receiving: Option<Throttle>,
    sending: Option<Throttle>,
}

impl Socket {
    fn new(stream: TcpStream, bandwidth: Bandwidth) -> Self {
        Self {
            stream,
            abort: Abort::default(),
            receiving: bandwidth.receiving.map(Throttle::new),
            sending: bandwidth.sending.map(Throttle::new),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.abort.is_reset() {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(throttle) = &mut this.receiving else {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        };
        let size = ready!(throttle.poll_allowance(cx)).min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(size));
        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        throttle.spend(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(throttle) = &mut this.sending else {
            return Pin::new(&mut this.stream).poll_write(cx, buf);
        };
        let size = ready!(throttle.poll_allowance(cx)).min(buf.len());
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, &buf[..size]))?;
        throttle.spend(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.sending.is_none() {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        let first = bufs.iter().find(|buf| !buf.is_empty());
        self.poll_write(cx, first.map_or(&[][..], |buf| buf))
    }

    fn is_write_vectored(&self) -> bool {
        self.sending.is_none()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.abort.is_requested() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.abort.is_requested() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Spreads bytes over time.
struct Throttle {
    bytes_per_second: u64,
    free_at: Pin<Box<Sleep>>,
}

impl Throttle {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            free_at: Box::pin(sleep_until(Instant::now())),
        }
    }

    /// Waits until the bytes sent so far are due. Returns how many bytes may follow at once.
    fn poll_allowance(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        ready!(self.free_at.as_mut().poll(cx));
        let share = self.bytes_per_second / ALLOWANCES_PER_SECOND;
        Poll::Ready(usize::try_from(share).unwrap_or(usize::MAX).max(1))
    }

    fn spend(&mut self, bytes: usize) {
        let time = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let from = self.free_at.deadline().max(Instant::now());
        self.free_at.as_mut().reset(from + time);
    }
}

const ALLOWANCES_PER_SECOND: u64 = 50;
