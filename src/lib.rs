//! IGA, the Image Generation Agent: a prompt in, an image made by Vertex AI, stored in Cloud Storage, its
//! `gs://` URI out.
//!
//! # Layout
//!
//! ```text
//! runtime ── router ── handler ── request ── flight ── generate ── vertex ── lift ── image ── storage
//!  (where     (routes,   (the one   (JSON →    (one paid   (the story   (call,    (base64   (type,   (put once,
//!   we run)    limits)    handler)   valid)     run per     in one       stream)   out of    size)    confirmed)
//!                                              request)    function)              JSON)
//! beside it:  app (the parts put together)   lease (who pays, between instances)   auth (one credential, one
//!             way out)   client (connections)   answer (JSON out)   retry   id
//! leaves:     config   error   telemetry     model/{mod,imagen,gemini}, identity (pure: no client, no await)
//! commands:   health (asks the running service)   doctor (checks all that an image needs), with mend (its commands)
//! offline:    the crate `iga-emulator`, in emulator/ (feature `local`)
//! ```
//!
//! Arrows go left to right, never back. The emulator is reached through the settings that name Google's
//! hosts: offline is another URL, never another branch.

pub mod app;
pub mod budget;
pub mod config;
pub mod doctor;
pub mod error;
pub mod extract;
pub mod flight;
pub mod generate;
pub mod google;
pub mod handler;
pub mod headers;
pub mod health;
pub mod id;
pub mod image;
pub mod lease;
pub mod model;
pub mod request;
pub mod response;
pub mod retry;
pub mod router;
pub mod runtime;
pub mod server;
pub mod targets;
pub mod telemetry;
