//! What Cloud Storage permits, limits and shows; tests may change it while the emulator runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::options::{Options, Retention};

/// The same as in [`Options`], where each field is described.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageRules {
    pub withheld: Vec<String>,
    pub permission_before_precondition: bool,
    pub retention: Option<Retention>,
    pub mutation_interval_ms: Option<u64>,
    pub anonymous: bool,
    pub added_metadata: BTreeMap<String, String>,
    pub omit_zero_size: bool,
    pub omit_date: bool,
}

impl StorageRules {
    /// Whether the caller lacks a permission.
    pub(crate) fn withhold(&self, permission: &str) -> bool {
        self.withheld.iter().any(|withheld| withheld == permission)
    }
}

impl From<&Options> for StorageRules {
    fn from(options: &Options) -> Self {
        let interval = options.mutation_interval.map(|interval| interval.as_millis());
        Self {
            withheld: options.withheld.clone(),
            permission_before_precondition: options.permission_before_precondition,
            retention: options.retention,
            mutation_interval_ms: interval.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            anonymous: options.anonymous,
            added_metadata: options.added_metadata.clone(),
            omit_zero_size: options.omit_zero_size,
            omit_date: options.omit_date,
        }
    }
}
