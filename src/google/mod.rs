//! Google's services over HTTP: credentials, one client that sends, Vertex AI and Cloud Storage.

use url::Url;

pub mod admission;
pub mod client;
pub mod credential_file;
pub mod credentials;
pub mod http;
pub mod proxy;
pub mod rpc_error;
pub mod storage;
mod tls_reads;
pub mod vertex;

/// A URL of visible ASCII without percent signs. The library has no tables of international host names, and its
/// debug build panics at some.
pub(crate) fn plain_url(text: &str) -> Option<Url> {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'%';
    if text.bytes().all(is_plain) { Url::parse(text).ok() } else { None }
}
