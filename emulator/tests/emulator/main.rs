//! The emulator seen from outside, through a plain HTTP client.

mod faults;
mod storage;
mod support;
mod tokens;
mod uploads;
mod vertex;
