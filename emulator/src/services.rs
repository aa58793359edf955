//! What the handlers share, and a request as they receive it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use http::{HeaderMap, Method, Request};
use percent_encoding::percent_decode_str;

use crate::body_reader::BodyReader;
use crate::clock::Clock;
use crate::faults::Faults;
use crate::journal::Journal;
use crate::objects::Objects;
use crate::options::Options;
use crate::recorder::{Counters, Recorder};
use crate::sessions::Sessions;
use crate::tokens::Tokens;

pub(crate) struct Services {
    pub options: Options,
    pub addr: SocketAddr,
    pub clock: Clock,
    pub faults: Faults,
    pub tokens: Tokens,
    pub objects: Objects,
    pub sessions: Sessions,
    pub recorder: Recorder,
    pub journal: Option<Journal>,
}

impl Services {
    pub fn new(options: Options, addr: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            addr,
            clock: Clock::with_offset(options.clock_offset_ms),
            faults: Faults::default(),
            tokens: Tokens::new(options.token_life),
            objects: Objects::open(&options, addr)?,
            sessions: Sessions::default(),
            recorder: Recorder::default(),
            journal: options.journal.as_deref().map(Journal::open).transpose()?,
            options,
        })
    }

    pub fn counters(&self) -> Counters {
        Counters { objects: self.objects.count(), ..self.recorder.counters() }
    }

    pub fn lacks(&self, permission: &str) -> bool {
        self.objects.rules().withhold(permission)
    }
}

/// A request whose body is still to be read.
pub(crate) struct Call {
    pub method: Method,
    /// Split at `/` and then decoded, so that an object's name is one segment.
    pub segments: Vec<String>,
    /// Decoded; faults are matched against it.
    pub path: String,
    pub query: BTreeMap<String, String>,
    /// The values of `permissions` in the query, which may occur several times.
    pub permissions: Vec<String>,
    pub headers: HeaderMap,
    pub body: BodyReader,
    /// Its number in the recorder.
    pub number: usize,
}

impl Call {
    pub fn new(request: Request<BodyReader>, number: usize) -> Self {
        let (parts, body) = request.into_parts();
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        let permissions =
            query.filter(|(name, _)| name == "permissions").map(|(_, value)| value.into_owned());
        Self {
            method: parts.method,
            segments: parts.uri.path().split('/').skip(1).map(decode).collect(),
            path: decode(parts.uri.path()),
            query: query.into_owned().collect(),
            permissions: permissions.collect(),
            headers: parts.headers,
            body,
            number,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}
