//! Vertex AI's image models, Cloud Storage and their access tokens, on a loopback port.
//!
//! The emulator follows Google's published wire formats and shares no type with the clients that
//! are tested against it. It is strict: it refuses what Google refuses, in Google's words. Faults
//! can be scripted, from Rust and over HTTP, and everything that happens is recorded.
//!
//! # How it is started
//!
//! In a test, [`Emulator::start`] listens on a free port and stops when its last handle is dropped:
//!
//! ```
//! use iga_emulator::{Action, Emulator, Fault, Options, Stage};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let buckets = vec!["my-bucket".to_owned()];
//! let emulator = Emulator::start(Options { buckets, ..Options::default() }).await?;
//! // The next two generations fail, unpaid.
//! emulator.script(Fault::new(Stage::Model, Action::status(503)).times(2));
//! // Clients use it through the variables that name Google's hosts.
//! println!("STORAGE_EMULATOR_HOST={}", emulator.url());
//! println!("GCE_METADATA_HOST={}", emulator.host());
//! assert_eq!(emulator.counters().paid_generations, 0);
//! # Ok(())
//! # }
//! ```
//!
//! On its own, `iga-local emulator` starts it and prints its address. [`Options`] holds the
//! buckets, the latency of the models, permissions that the caller lacks, retention, the limit of
//! mutations per object, bandwidth, and more.
//!
//! # What it serves
//!
//! - **Vertex AI**, `v1` and `v1beta1`: `:generateContent` and `:streamGenerateContent` for Gemini,
//!   `:predict` for Imagen, each model with its own parameters, locations and retirement;
//!   `:countTokens`; the list and the lookup of publisher models. Gemini's requests follow
//!   ProtoJSON: `snake_case` names, numbers in strings, enums by number, one element for a list.
//!   Unknown fields are refused.
//! - **Cloud Storage's JSON API**: media, multipart and resumable uploads; metadata, content and
//!   ranges; list with prefix, delimiter, range, glob, pages and `fields`; patch, copy, rewrite,
//!   compose and delete; buckets get, list, insert, patch and delete; batches; `getIamPolicy`,
//!   `testIamPermissions`; preconditions and checksums; about one change of an object a second.
//! - **Access tokens**: the metadata server, `/token` (OAuth), `/v1/token` (STS) and
//!   `:generateAccessToken`; **ID tokens**, whose signature does not verify: the metadata server.
//!
//! A generation counts as paid from the moment at which the model begins, whether or not the client
//! waits.
//!
//! # Prompts that choose the outcome
//!
//! For tests by hand, one of these words in a prompt chooses the outcome: `[blocked]` (the
//! prompt), `[filtered]` (the image), `[empty]` (no image, no reason), `[refuse]` (text instead of
//! an image), `[quota]` (429), `[overloaded]` (503), `[denied]` (403). Faults can do everything
//! else.
//!
//! # Faults
//!
//! `POST /_emulator/faults` adds a [`Fault`], `DELETE /_emulator/faults` removes all. The first
//! fault in the list that matches a request acts on it; once it has acted `times` times it is
//! removed. A fault consists of:
//!
//! | field | meaning | default |
//! |---|---|---|
//! | `stage` | the operation and its moment | required |
//! | `matching` | part of `BUCKET/OBJECT-NAME`, or of the path | any |
//! | `prefix`, `suffix` | of the object's name, or of the path | any |
//! | `prompt` | part of the prompt | any |
//! | `write` | `create` or `overwrite`, for uploads | any |
//! | `metadata`, `without_metadata` | keys that the object's custom metadata has, lacks | none |
//! | `skip` | matching requests that pass first | 0 |
//! | `times` | requests that it then acts on; `null` for all | 1 |
//! | `after` | bytes let through first | 0 |
//! | `action` | what happens | required |
//!
//! | `stage` | acts |
//! |---|---|
//! | `token` | when a token has been issued |
//! | `model` | before the model begins: nothing is paid |
//! | `response` | when the image is made and paid |
//! | `upload_start`, `upload_body`, `upload_end` | before an upload is read; after `after` bytes of it; when the object is stored |
//! | `stat`, `download`, `read` | when metadata, content, or either has been read |
//! | `list`, `permissions` | when objects are listed; when `testIamPermissions` responds |
//! | `delete`, `delete_end` | before, and after the object is deleted |
//!
//! | `action` | does |
//! |---|---|
//! | `{"response": {…}}` | sends a [`ScriptedResponse`] |
//! | `{"delay": {"ms": 500}}` | waits, then goes on |
//! | `"stall"` | never responds |
//! | `"reset"` | breaks the connection with a TCP RST |
//! | `"truncate"` | closes the connection |
//! | `"wrong_checksum"` | reports another `crc32c` for the stored object |
//!
//! At the stages that end an operation, `stall`, `reset` and `truncate` come after the operation
//! was applied, and the client cannot know that it was. With `after` the response begins and breaks
//! off.
//!
//! Two generations get 429 with a header, with the body that Google sends with this status:
//!
//! ```json
//! {"stage": "model", "times": 2, "action": {"response": {"status": 429, "headers": {"retry-after": "7"}}}}
//! ```
//!
//! The third overwrite of a record is applied, and its response is lost:
//!
//! ```json
//! {"stage": "upload_end", "prefix": "images/.iga/", "write": "overwrite", "skip": 2, "action": "reset"}
//! ```
//!
//! Every overwrite is refused, and every upload of an object with the metadata key `image`:
//!
//! ```json
//! {"stage": "upload_start", "write": "overwrite", "times": null, "action": {"response": {"status": 403}}}
//! {"stage": "upload_start", "metadata": ["image"], "times": null, "action": {"response": {"status": 403}}}
//! ```
//!
//! A GET of metadata never gets a response. Two deletes get no response either: the first is not
//! applied, the second is:
//!
//! ```json
//! {"stage": "stat", "times": null, "action": "stall"}
//! {"stage": "delete", "action": "stall"}
//! {"stage": "delete_end", "action": "stall"}
//! ```
//!
//! `testIamPermissions` names no permission:
//!
//! ```json
//! {"stage": "permissions", "times": null, "action": {"response": {"body": {}}}}
//! ```
//!
//! The ordinary response with a WebP image of 8 MiB, in chunks of 64 KiB with 10 ms between them:
//!
//! ```json
//! {"stage": "response", "action": {"response": {
//!   "image": {"format": "webp", "bytes": 8388608},
//!   "delivery": {"chunk_bytes": 65536, "chunk_delay_ms": 10}}}}
//! ```
//!
//! A custom response; `$IMAGE` becomes the image in base64:
//!
//! ```json
//! {"stage": "response", "prompt": "fox", "action": {"response": {"body": {
//!   "candidates": [{"content": {"parts": [
//!     {"inlineData": {"mimeType": "image/png", "data": "$IMAGE"}},
//!     {"inlineData": {"data": ""}}]}}]}}}}
//! ```
//!
//! The JSON arrives whole, then the connection resets before the last chunk; or `Content-Length` is
//! one too large:
//!
//! ```json
//! {"stage": "response", "action": {"response": {"delivery": {"chunk_bytes": 1000, "cut": {"ending": "reset"}}}}}
//! {"stage": "response", "action": {"response": {"delivery": {"excess_length": 1}}}}
//! ```
//!
//! What Cloud Storage permits can change too: `PUT /_emulator/storage_rules`, or
//! [`Emulator::set_storage_rules`], with [`StorageRules`] such as `{"withheld":
//! ["storage.objects.delete"], "retention": "policy"}`.
//!
//! # What was recorded
//!
//! [`Emulator::counters`], [`Emulator::generations`] (prompt, location, model, labels, paid or
//! not), [`Emulator::operations`] (every request to Cloud Storage with its preconditions and
//! outcome) and [`Emulator::requests`]; from another process `GET /_emulator/counters`,
//! `/_emulator/generations`, `/_emulator/operations`, `/_emulator/requests` and
//! `/_emulator/objects`.
//!
//! With [`Options::journal`] or `EMULATOR_JOURNAL=FILE` every request is appended to a file with
//! its response, one JSON object a line, without `Authorization`. A response that a fault made is
//! marked as `scripted`. A check against Google's schemas can read that file.
//!
//! `POST /_emulator/expire_tokens` makes all tokens invalid; `POST /_emulator/clock` with
//! `{"advance_ms": 60000}` moves the clock behind `Date` and the objects' times.
//!
//! # What it does not do
//!
//! It verifies no signature, knows no IAM policy beyond the permissions that [`Options`] withholds,
//! and keeps one version of an object. It has no XML or gRPC API, no ACLs, no notifications and no
//! signed URLs. Of Vertex AI it has image models only: it draws a landscape with the prompt on it,
//! edits no image, and measures neither safety nor quota. Image types other than PNG and JPEG come
//! as a small swatch.

mod batch;
mod body_reader;
mod clock;
mod control;
mod copies;
mod drawing;
mod emulator;
mod faults;
mod gemini_request;
mod generation_response;
mod generation_spec;
mod http;
mod image;
mod imagen_request;
mod journal;
mod listing;
mod magic_prompts;
mod metadata_server;
mod models;
mod objects;
mod options;
mod partial_response;
mod preconditions;
mod proto_json;
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
mod storage_rules;
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
pub use storage_rules::StorageRules;
