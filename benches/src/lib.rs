//! Shared by the programs of the harness: the model's response, the paths of its API, an HTTP client, arguments.

use bytes::Bytes;
use hyper::body::Body;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use std::collections::VecDeque;
use std::fmt::Display;
use std::process::exit;
use std::str::FromStr;

/// The same allocator as in the service, so that a comparison shows what the programs do. The
/// minimal server does not use this library and has the standard allocator.
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

pub type HttpClient<B> = Client<HttpsConnector<HttpConnector>, B>;

/// An HTTP client for servers such as `url`, with `TCP_NODELAY` and IGA's TLS stack. It reads the CA
/// certificates only for an `https` URL: that takes milliseconds.
pub fn client<B>(url: &str) -> HttpClient<B>
where
    B: Body<Data = Bytes> + Send,
{
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    let builder = ClientConfig::builder();
    let builder = match url.starts_with("https:") {
        true => builder.try_with_platform_verifier().expect("this machine has CA certificates"),
        false => builder.with_root_certificates(RootCertStore::empty()),
    };
    let tls = builder.with_no_client_auth();
    Client::builder(TokioExecutor::new()).build(HttpsConnector::from((tcp, tls)))
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

/// Reads a program's arguments: first those by position, in order, then options such as `name=value`.
/// A missing or wrong argument prints the usage and exits with code 2.
pub struct Args {
    usage: &'static str,
    words: VecDeque<String>,
}

impl Args {
    pub fn new(usage: &'static str) -> Args {
        Args { usage, words: std::env::args().skip(1).collect() }
    }

    pub fn positional<T: FromStr>(&mut self) -> T {
        let word = self.words.pop_front().unwrap_or_else(|| self.exit_with_usage("too few words"));
        self.parse(&word)
    }

    pub fn option<T: FromStr>(&mut self, name: &str) -> Option<T> {
        let value_of = |word: &String| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        let (index, value) = self
            .words
            .iter()
            .enumerate()
            .find_map(|(index, word)| Some((index, value_of(word)?)))?;
        self.words.remove(index);
        Some(self.parse(&value))
    }

    /// The words that have not been read.
    pub fn rest(self) -> impl Iterator<Item = String> {
        self.words.into_iter()
    }

    /// Refuses words that have not been read.
    pub fn end(self) {
        if let Some(word) = self.words.front() {
            self.exit_with_usage(format!("unknown: {word}"));
        }
    }

    fn parse<T: FromStr>(&self, word: &str) -> T {
        word.parse().unwrap_or_else(|_| self.exit_with_usage(format!("not valid: {word}")))
    }

    fn exit_with_usage(&self, problem: impl Display) -> ! {
        eprintln!("{problem}\nusage: {}", self.usage);
        exit(2)
    }
}
