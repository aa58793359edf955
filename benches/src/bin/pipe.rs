//! The floor for CPU and latency: the least program that moves the same bytes. It knows the upstream's answer to
//! the byte, so it needs no JSON, checks nothing, asks for no token, and uploads each piece as it arrives.
//!
//! `pipe UPSTREAM PICTURE_BYTES` prints its address, then serves until it is killed.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use base64::Engine as _;
use base64::engine::Simd;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use iga_benches::{ANSWER_HEAD, Args, PREDICT_PATH, UPLOAD_PATH, client};
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::net::TcpListener;

#[derive(Clone)]
struct Pipe {
    client: Client<HttpConnector, Either<Full<Bytes>, Decoding>>,
    upstream: String,
    picture_bytes: usize,
    engine: &'static Simd,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut args = Args::new("pipe UPSTREAM PICTURE_BYTES");
    let pipe = Pipe {
        upstream: format!("http://{}", args.text()),
        picture_bytes: args.number(),
        client: client(),
        engine: Box::leak(Box::new(Simd::standard(Default::default()))),
    };
    let router = Router::new()
        .route("/health", get(|| async { r#"{"status":"ok"}"# }))
        .route("/generate_image", post(generate_image))
        .with_state(pipe);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    axum::serve(listener.tap_io(|stream| drop(stream.set_nodelay(true))), router).await
}

async fn generate_image(State(pipe): State<Pipe>) -> Result<&'static str, StatusCode> {
    let asked = Full::from(r#"{"instances":[{"prompt":"a pipe"}],"parameters":{"sampleCount":1}}"#);
    let answer = pipe.post(PREDICT_PATH, "application/json", Either::Left(asked)).await?;
    let upload = Decoding::new(answer, pipe.picture_bytes, pipe.engine);
    let path = format!("{UPLOAD_PATH}?uploadType=multipart&name=picture.png&ifGenerationMatch=0");
    let stored = pipe.post(&path, "multipart/related; boundary=b", Either::Right(upload)).await?;
    stored.collect().await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok(r#"{"image_url":"gs://benchmark/picture.png"}"#)
}

impl Pipe {
    async fn post(
        &self,
        path: &str,
        content_type: &str,
        body: Either<Full<Bytes>, Decoding>,
    ) -> Result<Incoming, StatusCode> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}{path}", self.upstream))
            .header(CONTENT_TYPE, content_type)
            .body(body)
            .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        let answer = self.client.request(request).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
        if answer.status().is_success() {
            Ok(answer.into_body())
        } else {
            Err(StatusCode::BAD_GATEWAY)
        }
    }
}

/// The upload's body, decoded out of the answer's while that arrives.
struct Decoding {
    answer: Incoming,
    engine: &'static Simd,
    /// Bytes of the answer before the picture that are still to come.
    skip: usize,
    /// Base64 symbols that are still to come.
    symbols: usize,
    pending: Bytes,
    next: Next,
    length: u64,
}

enum Next {
    Head,
    Picture,
    End,
}

impl Decoding {
    fn new(answer: Incoming, picture_bytes: usize, engine: &'static Simd) -> Decoding {
        Decoding {
            answer,
            engine,
            skip: ANSWER_HEAD.len(),
            symbols: picture_bytes.div_ceil(3) * 4,
            pending: Bytes::new(),
            next: Next::Head,
            length: (HEAD.len() + picture_bytes + TAIL.len()) as u64,
        }
    }

    fn decode(&mut self, piece: Bytes) -> Bytes {
        let mut input = piece;
        let skipped = self.skip.min(input.len());
        input.advance(skipped);
        self.skip -= skipped;
        input.truncate(self.symbols);
        self.symbols -= input.len();
        if !self.pending.is_empty() {
            input = BytesMut::from_iter(self.pending.iter().chain(&input)).freeze();
        }
        self.pending = input.split_off(input.len() / 4 * 4);
        let mut decoded = vec![0; input.len() / 4 * 3];
        let len = self.engine.decode_slice(&input, &mut decoded).unwrap_or(0);
        decoded.truncate(len);
        decoded.into()
    }
}

impl Body for Decoding {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let piece = match self.next {
            Next::Head => {
                self.next = Next::Picture;
                Bytes::from_static(HEAD.as_bytes())
            }
            Next::Picture => match ready!(Pin::new(&mut self.answer).poll_frame(cx)) {
                Some(frame) => {
                    let piece = frame?.into_data().unwrap_or_default();
                    self.decode(piece)
                }
                None => {
                    self.next = Next::End;
                    Bytes::from_static(TAIL.as_bytes())
                }
            },
            Next::End => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

const HEAD: &str = "--b\r\nContent-Type: application/json\r\n\r\n{\"name\":\"picture.png\"}\r\n\
                    --b\r\nContent-Type: image/png\r\n\r\n";

const TAIL: &str = "\r\n--b--\r\n";
