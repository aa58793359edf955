//! What happens in the service, for every open page: a stream of server-sent events.

use bytes::Bytes;
use http_body::{Body, Frame};
use serde_json::Value;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::watch;

/// Passes events on to the pages, and remembers which images were delivered.
#[derive(Default)]
pub struct Hub {
    pages: Mutex<Pages>,
    /// The workflow ids of the requests that got the URI of their image; empty for none.
    delivered: watch::Sender<Vec<String>>,
}

/// The open pages; `None` once closed.
struct Pages(Option<Vec<Sender<Bytes>>>);

impl Default for Pages {
    fn default() -> Pages {
        Pages(Some(Vec::new()))
    }
}

/// The body of a response that lasts until the page leaves or the hub is closed.
pub struct Events(Receiver<Bytes>);

impl Hub {
    /// Sends an event. A page that does not read is disconnected; its browser connects again.
    pub fn publish(&self, event: &Value) {
        let event = Bytes::from(format!("data: {event}\n\n"));
        if let Some(pages) = &mut self.pages().0 {
            pages.retain(|page| page.try_send(event.clone()).is_ok());
        }
    }

    /// The events from now on, `first` before them.
    pub fn subscribe(&self, first: &Value) -> Events {
        let (sender, receiver) = channel(QUEUED_EVENTS);
        let _ = sender.try_send(Bytes::from(format!("data: {first}\n\n")));
        if let Some(pages) = &mut self.pages().0 {
            pages.push(sender);
        }
        Events(receiver)
    }

    /// Ends every stream.
    pub fn close(&self) {
        self.pages().0 = None;
    }

    pub fn count_delivery(&self, workflow: String) {
        self.delivered.send_modify(|delivered| delivered.push(workflow));
    }

    /// How many images were delivered to requests of a workflow.
    pub fn delivered_to(&self, workflow: &str) -> usize {
        self.delivered.borrow().iter().filter(|delivered| *delivered == workflow).count()
    }

    pub fn deliveries(&self) -> watch::Receiver<Vec<String>> {
        self.delivered.subscribe()
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

const QUEUED_EVENTS: usize = 256;
