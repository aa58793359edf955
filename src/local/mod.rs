//! What runs on a developer's machine instead of Google's services.

pub mod emulator;
pub mod picture;
