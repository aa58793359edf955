//! Shared by the tests: a running service, the binaries as processes, the caller in Python, a browser.

pub mod browser;
pub mod local;
pub mod process;
pub mod python;
pub mod random;
pub mod service;
