//! The sockets: answers in pieces, and connections that break where a fault says so.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What a handler sends back.
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Sent chunked in small pieces, as the models do, instead of with a length.
    pub streamed: bool,
    pub broken: Option<Broken>,
}

/// Where the body of an answer breaks off.
#[derive(Clone, Copy)]
pub(crate) struct Broken {
    pub after: u64,
    pub ending: Ending,
}

/// How a connection ends before its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ending {
    Close,
    Reset,
    Stall,
}

/// Why a request gets no ordinary answer.
pub(crate) enum Refusal {
    Answer(Box<Answer>),
    /// Not one byte is answered.
    Break(Ending),
}

pub(crate) type Handled = Result<Answer, Refusal>;

impl Answer {
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers =
            HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Self { status, headers, body: body.into(), streamed: false, broken: None }
    }

    pub fn empty(status: StatusCode) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            streamed: false,
            broken: None,
        }
    }

    /// JSON with Google's indentation.
    pub fn json(status: StatusCode, value: &Value) -> Self {
        Self::new(status, "application/json; charset=UTF-8", format!("{value:#}\n"))
    }

    pub fn with(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        let value = HeaderValue::from_str(value.as_ref())
            .unwrap_or(HeaderValue::from_static("unprintable"));
        self.headers.insert(name, value);
        self
    }
}

impl From<Answer> for Refusal {
    fn from(answer: Answer) -> Self {
        Self::Answer(Box::new(answer))
    }
}

/// Accepts connections until the task is aborted, which also ends those that are open.
pub(crate) async fn serve<H, F>(listener: TcpListener, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Handled> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        connections.spawn(connection(stream, handler.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection<H, F>(stream: TcpStream, handler: H)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Handled>,
{
    let fate = Fate::default();
    let wire = Wire { stream, fate: fate.clone() };
    let service = service_fn(|request| respond(handler(request), fate.clone()));
    // An error here is a connection that broke: often because a fault said so.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(wire), service).await;
}

/// Turns what a handler says into a response, or into a connection that breaks.
async fn respond(
    handled: impl Future<Output = Handled>,
    fate: Fate,
) -> io::Result<Response<Pieces>> {
    let answer = match handled.await {
        Ok(answer) => answer,
        Err(Refusal::Answer(answer)) => *answer,
        Err(Refusal::Break(Ending::Stall)) => std::future::pending().await,
        Err(Refusal::Break(ending)) => {
            fate.seal(ending);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    };
    let mut response = Response::new(Pieces {
        left: answer.body,
        streamed: answer.streamed,
        broken: answer.broken,
        fate,
    });
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    Ok(response)
}

/// The body of an answer on its way out.
struct Pieces {
    left: Bytes,
    streamed: bool,
    broken: Option<Broken>,
    fate: Fate,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let limit = if self.streamed { PIECE_BYTES } else { self.left.len() };
        let allowed = self.broken.map_or(u64::MAX, |broken| broken.after);
        let size = limit.min(self.left.len()).min(usize::try_from(allowed).unwrap_or(usize::MAX));
        if let Some(broken) = self.broken.filter(|_| size == 0) {
            // The wire breaks when what was sent so far has left; nothing wakes this body again.
            self.fate.seal(broken.ending);
            return Poll::Pending;
        }
        if size == 0 {
            return Poll::Ready(None);
        }
        if let Some(broken) = &mut self.broken {
            broken.after -= size as u64;
        }
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(size)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && self.broken.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.streamed {
            SizeHint::default()
        } else {
            SizeHint::with_exact(self.left.len() as u64)
        }
    }
}

/// What is to become of a connection; shared by its socket and the answers sent over it.
#[derive(Clone, Default)]
struct Fate(Arc<AtomicU8>);

impl Fate {
    fn seal(&self, ending: Ending) {
        let sealed = match ending {
            Ending::Close => CLOSE,
            Ending::Reset => RESET,
            Ending::Stall => return,
        };
        self.0.store(sealed, Ordering::Relaxed);
    }

    fn is_sealed(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
}

/// A socket that breaks once its fate is sealed and all that was written has left.
struct Wire {
    stream: TcpStream,
    fate: Fate,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.fate.0.load(Ordering::Relaxed) == RESET {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.fate.is_sealed() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.fate.is_sealed() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The bytes of a request's body, read as far as somebody wants to know them.
pub(crate) struct Inflow {
    body: Incoming,
    pub read: bytes::BytesMut,
}

impl Inflow {
    pub fn new(body: Incoming) -> Self {
        Self { body, read: bytes::BytesMut::new() }
    }

    /// Reads a little more; false at the end. A peer that breaks off gets no answer.
    pub async fn more(&mut self) -> Result<bool, Refusal> {
        use http_body_util::BodyExt;
        let frame = match self.body.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return Err(Refusal::Break(Ending::Close)),
            None => return Ok(false),
        };
        if let Ok(mut data) = frame.into_data() {
            self.read.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        Ok(true)
    }

    pub async fn at_least(&mut self, bytes: u64) -> Result<(), Refusal> {
        while (self.read.len() as u64) < bytes && self.more().await? {}
        Ok(())
    }

    pub async fn all(&mut self) -> Result<Bytes, Refusal> {
        while self.more().await? {}
        Ok(self.read.split().freeze())
    }
}

const PIECE_BYTES: usize = 16 * 1024;
const CLOSE: u8 = 1;
const RESET: u8 = 2;
