//! Google's services on a loopback port: Vertex AI, Cloud Storage, the metadata server.
//!
//! It is written from Google's wire formats alone and shares no type with the clients that it
//! fakes. It is strict: what Google refuses is refused here, in Google's words.
//!
//! **Served.** Vertex AI: `:generateContent` and `:predict` with each model's own limits, locations
//! and retirement, and the publisher model lookup. Cloud Storage's JSON API: media, multipart and
//! resumable uploads, metadata, (ranged) media, list, delete; with preconditions and checksums. Tokens:
//! the metadata server, `/token` (OAuth), `/v1/token` (STS), `:generateAccessToken`.
//!
//! **Magic prompts.** A prompt that contains one of these is answered as its name says: `[blocked]`
//! (the prompt), `[filtered]` (the picture), `[empty]` (no picture, no reason), `[refuse]` (text
//! instead of a picture), `[quota]` (429), `[overloaded]` (503), `[denied]` (403).
//!
//! **Faults.** [`Fault`] names a [`Stage`] (`token`, `model`, `response`, `read`, `upload_start`,
//! `upload_body`, `upload_end`, `delete`), what it is restricted to, how often it hits, and an
//! [`Action`]: `response`, `delay`, `stall`, `reset`, `truncate`, `wrong_checksum`.
//!
//! **From another process.** `POST /_emulator/faults` (a [`Fault`] as JSON), `DELETE /_emulator/faults`,
//! `GET /_emulator/counters`, `GET /_emulator/objects`, `POST /_emulator/expire_tokens`,
//! `POST /_emulator/clock` (`{"advance_ms": 60000}`).
//!
//! **Not the real thing.** Signatures are not verified, listings have
//! no pages, and there are no object versions. A generation counts as paid from the moment at which
//! the model starts on it, whether or not the caller waits.

mod body_reader;
mod clock;
mod control;
mod copies;
mod drawing;
mod emulator;
mod faults;
mod generation_response;
mod generation_spec;
mod http;
mod image;
mod listing;
mod magic_prompts;
mod metadata_server;
mod models;
mod objects;
mod options;
mod partial_response;
mod preconditions;
mod recorder;
mod response;
mod resumable;
mod router;
mod rpc_error;
mod services;
mod sessions;
mod single_request_upload;
mod storage;
mod storage_access;
mod storage_error;
mod token_endpoints;
mod tokens;
mod upload;
mod upload_spec;
mod vertex;

pub use emulator::Emulator;
pub use faults::{Action, Fault, ScriptedResponse, Stage, Write};
pub use image::{ImageFormat, ImageSpec};
pub use objects::StoredObject;
pub use options::{Options, Retention};
pub use recorder::{Counters, Generation, OperationKind, Recorded, StorageOperation};
pub use response::{Cut, Delivery, Ending};
