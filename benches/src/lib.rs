//! What the programs of the harness agree on: the answer with its one picture, and their arguments.

use bytes::Bytes;
use hyper::body::Body;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::process::exit;

/// The service's own, for every program here but the floor: what is measured is the moving of bytes.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What stands before the picture in the upstream's answer ("Imagen API", response body).
pub const ANSWER_HEAD: &str = r#"{"predictions":[{"mimeType":"image/png","bytesBase64Encoded":""#;

/// What stands after it.
pub const ANSWER_TAIL: &str = r#""}]}"#;

/// The path of the model that is asked; nothing depends on it but the programs' agreement.
pub const PREDICT_PATH: &str = "/v1/projects/benchmark/locations/us-central1/publishers/google/models/imagen-4.0-generate-001:predict";

pub const UPLOAD_PATH: &str = "/upload/storage/v1/b/benchmark/o";

/// A client that sends at once what it is given.
pub fn client<B>() -> Client<HttpConnector, B>
where
    B: Body<Data = Bytes> + Send,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// Bytes that begin like a PNG and do not compress.
pub fn picture(len: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let noise = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    });
    b"\x89PNG\r\n\x1a\n".iter().copied().chain(noise).take(len).collect()
}

/// The arguments of a program, in order; it ends with its usage where they are wrong.
pub struct Args {
    usage: &'static str,
    rest: std::iter::Skip<std::env::Args>,
}

impl Args {
    pub fn new(usage: &'static str) -> Args {
        Args { usage, rest: std::env::args().skip(1) }
    }

    pub fn text(&mut self) -> String {
        self.rest.next().unwrap_or_else(|| self.explain())
    }

    pub fn number(&mut self) -> usize {
        self.text().parse().unwrap_or_else(|_| self.explain())
    }

    pub fn number_or(&mut self, default: usize) -> usize {
        self.rest.next().map_or(default, |text| text.parse().unwrap_or_else(|_| self.explain()))
    }

    /// All that are left.
    pub fn rest(self) -> impl Iterator<Item = String> {
        self.rest
    }

    fn explain(&self) -> ! {
        eprintln!("usage: {}", self.usage);
        exit(2)
    }
}
