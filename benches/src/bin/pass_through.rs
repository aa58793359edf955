//! The baseline for CPU and latency: the smallest program that moves the same bytes. It knows the exact layout of the
//! upstream's response, so it parses no JSON. It checks nothing, fetches no token, and uploads each chunk as it
//! arrives. It runs on tokio's default runtime, with one thread for each core.
//!
//! `pass_through MODEL_URL STORAGE_URL IMAGE_BYTES` serves on the port that `PORT` names.

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
use iga_benches::{Args, HttpClient, PREDICT_PATH, RESPONSE_HEAD, UPLOAD_PATH, client};
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::net::TcpListener;

#[derive(Clone)]
struct PassThrough {
    client: HttpClient<Either<Full<Bytes>, DecodingBody>>,
    model: String,
    storage: String,
    image_bytes: usize,
    engine: &'static Simd,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut args = Args::new("pass_through MODEL_URL STORAGE_URL IMAGE_BYTES");
    let model: String = args.positional();
    let pass_through = PassThrough {
        client: client(&model),
        model: format!("{model}{PREDICT_PATH}"),
        storage: format!("{}{UPLOAD_PATH}?{QUERY}", args.positional::<String>()),
        image_bytes: args.positional(),
        engine: Box::leak(Box::new(Simd::standard(Default::default()))),
    };
    let router = Router::new()
        .route("/health", get(|| async { r#"{"status":"ok"}"# }))
        .route("/generate_image", post(generate_image))
        .with_state(pass_through);
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).expect("PORT");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    axum::serve(listener.tap_io(|stream| drop(stream.set_nodelay(true))), router).await
}

async fn generate_image(
    State(pass_through): State<PassThrough>,
) -> Result<&'static str, StatusCode> {
    let prompt = r#"{"instances":[{"prompt":"a lighthouse"}],"parameters":{"sampleCount":1}}"#;
    let prompt = Either::Left(Full::from(prompt));
    let response = pass_through.post(&pass_through.model, "application/json", prompt).await?;
    let upload = DecodingBody::new(response, pass_through.image_bytes, pass_through.engine);
    let upload = Either::Right(upload);
    let stored =
        pass_through.post(&pass_through.storage, "multipart/related; boundary=b", upload).await?;
    stored.collect().await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok(r#"{"image_url":"gs://benchmark/image.png"}"#)
}

impl PassThrough {
    async fn post(
        &self,
        url: &str,
        content_type: &str,
        body: Either<Full<Bytes>, DecodingBody>,
    ) -> Result<Incoming, StatusCode> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(url)
            .header(CONTENT_TYPE, content_type)
            .body(body)
            .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        let response = self.client.request(request).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
        if response.status().is_success() {
            Ok(response.into_body())
        } else {
            Err(StatusCode::BAD_GATEWAY)
        }
    }
}

/// The body of the upload: decodes the image from the model's response while the response arrives.
struct DecodingBody {
    response: Incoming,
    engine: &'static Simd,
    /// The remaining bytes before the image.
    skip: usize,
    /// The remaining base64 symbols of the image.
    symbols: usize,
    /// The symbols at the end of the last chunk that are not a group of four yet.
    pending: Bytes,
    next: Next,
    length: u64,
}

enum Next {
    Head,
    Image,
    End,
}

impl DecodingBody {
    fn new(response: Incoming, image_bytes: usize, engine: &'static Simd) -> DecodingBody {
        DecodingBody {
            response,
            engine,
            skip: RESPONSE_HEAD.len(),
            symbols: image_bytes.div_ceil(3) * 4,
            pending: Bytes::new(),
            next: Next::Head,
            length: (HEAD.len() + image_bytes + TAIL.len()) as u64,
        }
    }

    fn decode(&mut self, chunk: Bytes) -> Bytes {
        let mut input = chunk;
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

impl Body for DecodingBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let chunk = match self.next {
            Next::Head => {
                self.next = Next::Image;
                Bytes::from_static(HEAD.as_bytes())
            }
            Next::Image => match ready!(Pin::new(&mut self.response).poll_frame(cx)) {
                Some(frame) => {
                    let chunk = frame?.into_data().unwrap_or_default();
                    self.decode(chunk)
                }
                None => {
                    self.next = Next::End;
                    Bytes::from_static(TAIL.as_bytes())
                }
            },
            Next::End => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

const HEAD: &str = "--b\r\nContent-Type: application/json\r\n\r\n{\"name\":\"image.png\"}\r\n\
                    --b\r\nContent-Type: image/png\r\n\r\n";

const TAIL: &str = "\r\n--b--\r\n";

const QUERY: &str = "uploadType=multipart&name=image.png&ifGenerationMatch=0";
