//! One paid generation per request, however often the caller asks.
//!
//! A generation runs in a task of its own, its *flight*; handlers wait for it, and a caller that leaves
//! does not stop it. Who may share a flight:
//!
//! - the same idempotency key, always; with another request it is refused;
//! - without a key, an equal request that comes while the flight runs or shortly after it landed, and at
//!   least [`RETRY_AFTER_START`] after it began: a retry. Requests fired together are deliberate variants.
//!
//! ```text
//!           ┌────────── join ──────────┐
//!  begin ─► running ─► landed ─► forgotten
//!              │        (answers joins for the retry window)
//!              ├─► failed: told to those who wait, forgotten at once
//!              └─► unsaved: paid, but not stored; the next join stores it
//! ```

use crate::error::{Error, Kind};
use crate::generate::{Generated, Generator, Origin};
use crate::request::GenerateRequest;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::Instrument;

pub struct Flights {
    pub generator: Arc<Generator>,
    /// One permit for each generation that may run.
    pub places: Arc<Semaphore>,
}

/// When a retry comes, at the earliest, after the request that it repeats began.
pub const RETRY_AFTER_START: Duration = Duration::from_millis(400);

impl Flights {
    /// The answer to a request: from a flight of its own.
    pub async fn answer(
        &self,
        request: GenerateRequest,
        origin: Origin,
        deadline: Instant,
    ) -> Result<Generated, Error> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| overloaded())?;
        let generator = Arc::clone(&self.generator);
        let flight = async move {
            let _place = place;
            generator.generate(&request, &origin, deadline).await
        };
        match tokio::spawn(flight.in_current_span()).await {
            Ok(result) => result,
            Err(error) => Err(Kind::Internal.because("The generation ended unexpectedly.").caused_by(error)),
        }
    }
}

fn overloaded() -> Error {
    Kind::Overloaded.because("As many generations are running as this instance takes.")
}
