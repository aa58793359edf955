//! IGA, the Image Generation Agent: it takes a prompt, has Vertex AI make an image, stores the image in Cloud
//! Storage and returns its `gs://` URI.
//!
//! # The path of a request
//!
//! ```text
//! server, runtime ── router ── handler ── request ── flight ── generate ── google/vertex ── extract ── image ── google/storage
//! (sockets, Lambda)  (routes,   (the one   (JSON →    (one paid  (the steps  (calls the       (base64     (type,   (puts an object
//!                     summary)   handler)   valid)     run per    in one      model)           out of      size)    once, confirmed)
//!                                                      request)   function)                    JSON)
//! ```
//!
//! `response` turns results and errors into HTTP. `flight` asks `lease` which instance pays, and
//! `generate` asks `targets` which model is next.
//!
//! # The order of imports
//!
//! A module imports only from rows below its own; where two modules know each other, the row says so.
//!
//! ```text
//! main   doctor/{report, remedy} (checks what an image needs, and names the commands that fix it)
//! runtime   health (asks a running service)
//! server
//! router
//! handler
//! app (puts the parts together)
//! flight
//! lease
//! generate
//! targets   google/vertex
//! google/{storage, admission (whether uploads succeed; storage and it know each other)}
//! google/client (sends, with credentials)
//! google/{http (connections), credentials}
//! headers   request   response   retry   google/rpc_error
//! telemetry/{summary, metrics, trace, format, writer}
//! config/{settings (the table), parse, locations, warnings}   google/proxy (config and it know each other)
//! model/{imagen, gemini} (pure: no client, no await)   google/credential_file
//! extract
//! image
//! budget (memory for all images in transfer)
//! turns (how many images are in transfer at once)
//! error   id   panic
//! ```
//!
//! The emulator of Google's services is a crate of its own, `iga-emulator`, which does not depend on
//! this one. The settings that name Google's hosts lead to it: the code has no branch for it.

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
pub mod panic;
pub mod request;
pub mod response;
pub mod retry;
pub mod router;
pub mod runtime;
pub mod server;
pub mod targets;
pub mod telemetry;
pub mod turns;
