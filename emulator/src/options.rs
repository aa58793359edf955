//! How an emulator is set up.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug)]
pub struct Options {
    pub addr: SocketAddr,
    /// Objects become files `DIRECTORY/BUCKET/OBJECT-NAME`; without it they stay in memory.
    pub directory: Option<PathBuf>,
    /// The buckets that exist.
    pub buckets: Vec<String>,
    /// How long a generation takes.
    pub latency: Duration,
    /// Retired models that respond as if they were still served.
    pub revive: Vec<String>,
    /// The divisor of the sides of images; 1 gives Google's sizes.
    pub shrunk: u32,
    /// Pads images to this many bytes.
    pub image_bytes: Option<usize>,
    /// The lifetime of an access token.
    pub token_life: Duration,
    /// Cloud Storage permissions that the caller lacks, such as `storage.objects.create`.
    pub withheld: Vec<String>,
    /// Refuse to create an object over an existing one with 403, for lack of
    /// `storage.objects.delete`, and not with 412, for its precondition. Cloud Storage may do either.
    pub permission_before_precondition: bool,
    /// The protection that forbids every overwrite and delete, whatever permissions the caller has.
    pub retention: Option<Retention>,
    /// The shortest time between two changes of one object; an earlier one is refused with 429.
    /// `None` is no limit. The default is Cloud Storage's second.
    pub mutation_interval: Option<Duration>,
    /// Cloud Storage accepts requests without credentials.
    pub anonymous: bool,
    /// Added to the custom metadata of every object.
    pub added_metadata: BTreeMap<String, String>,
    /// Leave out `size` of an empty object.
    pub omit_zero_size: bool,
    /// Leave out the header `Date`.
    pub omit_date: bool,
    /// How far the emulator's clock is ahead of this machine's; `Date` and the objects' times show
    /// it.
    pub clock_offset_ms: i64,
    /// Bytes a second that each connection receives; `None` is unlimited.
    pub receiving_rate: Option<u64>,
    /// Bytes a second that each connection sends; `None` is unlimited.
    pub sending_rate: Option<u64>,
    /// A file to which every request and response is appended, without `Authorization` and with
    /// long texts cut. The default is the environment variable `EMULATOR_JOURNAL`, so that one
    /// switch serves all emulators of a test run.
    pub journal: Option<PathBuf>,
}

/// What protects objects from being overwritten and deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retention {
    /// The bucket's retention policy.
    Policy,
    /// A temporary hold on each object.
    Hold,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            addr: (Ipv4Addr::LOCALHOST, 0).into(),
            directory: None,
            buckets: Vec::new(),
            latency: Duration::ZERO,
            revive: Vec::new(),
            shrunk: 1,
            image_bytes: None,
            token_life: Duration::from_secs(3600),
            withheld: Vec::new(),
            permission_before_precondition: false,
            retention: None,
            mutation_interval: Some(Duration::from_secs(1)),
            anonymous: false,
            added_metadata: BTreeMap::new(),
            omit_zero_size: false,
            omit_date: false,
            clock_offset_ms: 0,
            receiving_rate: None,
            sending_rate: None,
            journal: std::env::var_os("EMULATOR_JOURNAL").map(PathBuf::from),
        }
    }
}
