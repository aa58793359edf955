//! The real router over real sockets, against the emulator of Google's services.

mod bad_input;
mod connections;
mod contract;
mod cpoa;
mod credentials;
mod deployment;
mod docs;
mod doctor;
mod flights;
mod health;
mod lambda;
mod load;
mod locations;
mod matrix;
mod models;
mod openapi;
mod process;
mod queue;
mod random;
mod retries;
mod secrets;
mod settings;
mod simulation;
mod storage;
mod support;
mod third_party;
