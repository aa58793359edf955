pub mod config;
pub mod error;
pub mod image;
pub mod lift;
pub mod model;
