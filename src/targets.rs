//! Which model is asked, and where: the configured one, else the first fallback that is served.

use crate::config::Target;
use crate::error::{Error, Kind};
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Targets {
    /// The configured model, then its fallbacks. Never empty.
    list: Vec<Target>,
    /// The first of `list` that is not known to be gone.
    current: AtomicUsize,
}

impl Targets {
    pub fn new(list: Vec<Target>) -> Targets {
        Targets { list, current: AtomicUsize::new(0) }
    }

    /// Calls `ask` for one target after the other, until one is not gone.
    pub async fn ask<'a, T, F>(&'a self, ask: impl Fn(&'a Target) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut place = self.current.load(Ordering::Relaxed);
        loop {
            let target = &self.list[place];
            let gone = match ask(target).await {
                Err(error) if error.kind == Kind::ModelNotFound => error,
                result => return result,
            };
            place += 1;
            let Some(next) = self.list.get(place) else {
                return Err(gone);
            };
            // The request that finds out first logs it.
            if self.current.fetch_max(place, Ordering::Relaxed) < place {
                tracing::warn!(
                    model = target.model.id,
                    location = target.location,
                    fallback = next.model.id,
                    fallback_location = next.location,
                    "model {} is not served in {}; using {} in {} from now on",
                    target.model.id,
                    target.location,
                    next.model.id,
                    next.location
                );
            }
        }
    }

    pub fn list(&self) -> &[Target] {
        &self.list
    }
}
