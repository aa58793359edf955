//! The emulator seen from outside, through a plain HTTP client.

mod docs;
mod faults;
mod options;
mod recorder;
mod responses;
mod storage;
mod support;
mod tokens;
mod uploads;
mod vertex;
