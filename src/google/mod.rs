//! Google's services over HTTP: credentials, one client that sends, Vertex AI and Cloud Storage.

pub mod admission;
pub mod client;
pub mod credential_file;
pub mod credentials;
pub mod http;
pub mod proxy;
pub mod rpc_error;
pub mod storage;
pub mod vertex;
