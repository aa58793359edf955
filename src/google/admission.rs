//! Whether a request may pay for an image now: only while the bucket is known to take objects.
//!
//! ```text
//! Unknown ──a write is confirmed──► Proven ──an upload fails──► Failing
//!                                      ▲                           │
//!                                      └─────an image is stored────┘
//! ```
//!
//! While the state is unknown, the first request tries a write and all others wait for its result.
//! While uploads fail, requests are refused before anything is paid, except for one at a time: if its
//! own write succeeds, it may pay.

use crate::error::{Error, Kind};
use crate::google::storage::Storage;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

/// What this process knows about uploads into the bucket.
#[derive(Default)]
pub struct Uploads {
    state: Mutex<UploadState>,
    /// The write under way, for whose result all requests wait.
    probe: Mutex<Option<ProbeResult>>,
}

/// `None` until the write has ended.
type ProbeResult = watch::Receiver<Option<Result<(), Error>>>;

#[derive(Default)]
enum UploadState {
    #[default]
    Unknown,
    Proven,
    Failing {
        error: Error,
        /// One request tests whether uploads succeed again.
        on_trial: bool,
    },
}

/// The permission to pay for one image; held until the image is stored.
pub struct Admission {
    storage: Arc<Storage>,
    is_trial: bool,
}

impl Uploads {
    pub(super) async fn admit(
        storage: &Arc<Storage>,
        deadline: Instant,
    ) -> Result<Admission, Error> {
        let mut admission = Admission { storage: Arc::clone(storage), is_trial: false };
        match &mut *storage.uploads().state() {
            UploadState::Proven => return Ok(admission),
            UploadState::Unknown => {}
            UploadState::Failing { error, on_trial: true } => return Err(uploads_fail(error)),
            UploadState::Failing { on_trial, .. } => {
                *on_trial = true;
                admission.is_trial = true;
            }
        }
        let result = Uploads::shared_probe(storage);
        match timeout_at(deadline, result).await {
            Ok(result) => result.map(|()| admission),
            Err(_) => Err(Kind::FileSave.because("Cloud Storage did not answer in time.")),
        }
    }

    /// Waits for the write that is under way, or begins one. The write runs in a task of its own, so
    /// that its result does not depend on the request that began it.
    async fn shared_probe(storage: &Arc<Storage>) -> Result<(), Error> {
        let mut result = {
            let mut probe = lock(&storage.uploads().probe);
            match probe.as_ref().filter(|result| result.has_changed().is_ok()) {
                Some(under_way) => under_way.clone(),
                None => {
                    let (report, result) = watch::channel(None);
                    *probe = Some(result.clone());
                    let storage = Arc::clone(storage);
                    let task = async move {
                        let result = storage.probe().await;
                        if result.is_ok() {
                            storage.uploads().record_written();
                        }
                        *lock(&storage.uploads().probe) = None;
                        report.send_replace(Some(result));
                    };
                    tokio::spawn(task.in_current_span());
                    result
                }
            }
        };
        match result.wait_for(Option::is_some).await {
            Ok(result) => result.clone().expect("it was waited for"),
            Err(_) => Err(Kind::Internal.because("The attempt to write ended unexpectedly.")),
        }
    }

    /// Notes that a small object was written. This proves the bucket, unless uploads fail.
    pub(super) fn record_written(&self) {
        let mut state = self.state();
        if matches!(*state, UploadState::Unknown) {
            *state = UploadState::Proven;
        }
    }

    pub(super) fn image_stored(&self) {
        let before = std::mem::replace(&mut *self.state(), UploadState::Proven);
        if matches!(before, UploadState::Failing { .. }) {
            tracing::info!("Cloud Storage takes images again");
        }
    }

    pub(super) fn failed(&self, error: &Error) {
        let mut state = self.state();
        let on_trial = matches!(*state, UploadState::Failing { on_trial: true, .. });
        if !matches!(*state, UploadState::Failing { .. }) {
            tracing::error!(
                causes = error.causes(),
                "uploads fail, so new requests are refused unpaid until one succeeds: {error}"
            );
        }
        *state = UploadState::Failing { error: error.clone(), on_trial };
    }

    fn state(&self) -> MutexGuard<'_, UploadState> {
        lock(&self.state)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if !self.is_trial {
            return;
        }
        if let UploadState::Failing { on_trial, .. } = &mut *self.storage.uploads().state() {
            *on_trial = false;
        }
    }
}

fn uploads_fail(error: &Error) -> Error {
    Kind::FileSave.because(format!("Uploads fail at the moment, so nothing was paid: {error}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
