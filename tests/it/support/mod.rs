//! Shared by the tests: a running service, the binary as a process, the caller in Python.

pub mod process;
pub mod python;
pub mod random;
pub mod service;
