//! Runs one of the targets under libFuzzer: `fuzz/run TARGET`.

#![no_main]

mod targets;

use std::sync::LazyLock;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("IGA_FUZZ_TARGET").unwrap_or_default();
    let found = targets::TARGETS.iter().find(|(target, _)| *target == name);
    let names: Vec<_> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    found.unwrap_or_else(|| panic!("IGA_FUZZ_TARGET must be one of {names:?}")).1
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| TARGET(input));
