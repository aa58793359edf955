//! Shared by the programs of the harness: the model's response, the paths of its API, an HTTP client, arguments.

use bytes::Bytes;
use hyper::body::Body;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::process::exit;

/// The same allocator as in the service, so that a comparison shows what the programs do. The minimal server does not
/// use this library and has the standard allocator.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The model's response up to the image ("Imagen API", response body).
pub const RESPONSE_HEAD: &str = r#"{"predictions":[{"mimeType":"image/png","bytesBase64Encoded":""#;

/// The model's response after the image.
pub const RESPONSE_TAIL: &str = r#""}]}"#;

/// The path of the model that `load` and the pass-through call. IGA and the peers build their own.
pub const PREDICT_PATH: &str = "/v1/projects/benchmark/locations/us-central1/publishers/google/models/imagen-4.0-generate-001:predict";

pub const UPLOAD_PATH: &str = "/upload/storage/v1/b/benchmark/o";

/// An HTTP client with `TCP_NODELAY`.
pub fn client<B>() -> Client<HttpConnector, B>
where
    B: Body<Data = Bytes> + Send,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// Bytes that begin like a PNG and do not compress.
pub fn image(len: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let noise = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    });
    b"\x89PNG\r\n\x1a\n".iter().copied().chain(noise).take(len).collect()
}

/// Reads a program's arguments in order. A missing or wrong argument prints the usage and exits with code 2.
pub struct Args {
    usage: &'static str,
    rest: std::iter::Skip<std::env::Args>,
}

impl Args {
    pub fn new(usage: &'static str) -> Args {
        Args { usage, rest: std::env::args().skip(1) }
    }

    pub fn text(&mut self) -> String {
        self.rest.next().unwrap_or_else(|| self.exit_with_usage())
    }

    pub fn number(&mut self) -> usize {
        self.text().parse().unwrap_or_else(|_| self.exit_with_usage())
    }

    pub fn number_or(&mut self, default: usize) -> usize {
        self.rest
            .next()
            .map_or(default, |text| text.parse().unwrap_or_else(|_| self.exit_with_usage()))
    }

    /// The arguments that have not been read.
    pub fn rest(self) -> impl Iterator<Item = String> {
        self.rest
    }

    fn exit_with_usage(&self) -> ! {
        eprintln!("usage: {}", self.usage);
        exit(2)
    }
}
