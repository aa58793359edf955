//! The README and the pages of docs/ match the code, and their links work.

use iga::config::Timing;
use iga::config::settings::{Preset, SETTINGS, Setting};
use iga::error::Kind;
use iga::telemetry::metrics;

const API: &str = include_str!("../../docs/api.md");
const DEPENDENCIES: &str = include_str!("../../docs/dependencies.md");
const OPERATIONS: &str = include_str!("../../docs/operations.md");
const RELIABILITY: &str = include_str!("../../docs/reliability.md");
const SETTINGS_PAGE: &str = include_str!("../../docs/settings.md");
const MANIFEST: &str = include_str!("../../Cargo.toml");

#[track_caller]
fn has(page: &str, row: &str) {
    assert!(page.contains(row), "the page lacks:\n{row}");
}

fn row(setting: &Setting) -> String {
    let names =
        setting.names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", then ");
    let preset = match setting.preset {
        Preset::Required => "required".to_owned(),
        Preset::Unset => "–".to_owned(),
        Preset::Value(text) => format!("`{text}`"),
        Preset::ByPlatform(text) => text.to_owned(),
    };
    format!("| {names} | {preset} | {} |\n", setting.meaning)
}

#[test]
fn every_setting_is_in_the_table_and_no_other() {
    let head = "| variable | default | meaning |\n|---|---|---|\n";
    let table = SETTINGS.iter().map(|setting| row(setting)).collect::<String>();
    has(SETTINGS_PAGE, &format!("\n{head}{table}\n"));
}

#[test]
fn every_error_is_in_the_table() {
    for kind in Kind::ALL {
        let row = kind.row();
        has(API, &format!("| {} | `{}` | `{}` |\n", row.status, row.code, row.message));
    }
}

#[test]
fn every_metric_is_in_the_table() {
    for name in metrics::ALL {
        has(OPERATIONS, &format!("| `{name}` | "));
    }
}

#[test]
fn the_times_in_the_text_match_the_code() {
    let lease_life = Timing::DEFAULT.lease_life.as_secs();
    has(
        RELIABILITY,
        &format!("at least {} ms after that one began", Timing::DEFAULT.variant_age.as_millis()),
    );
    has(
        RELIABILITY,
        &format!("A lease that is not renewed ends after {lease_life} s by Cloud Storage's clock"),
    );
    has(RELIABILITY, &format!("3, and 1 for every {} s of generation", lease_life / 3));
    has(RELIABILITY, &format!("its lease ends after {lease_life} s,"));
}

#[test]
fn every_dependency_has_its_reason() {
    for table in ["\n[dependencies]\n", "\n[target.'cfg(target_env = \"musl\")'.dependencies]\n"] {
        let shipped =
            MANIFEST.split(table).nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap();
        for name in shipped.lines().filter_map(|line| Some(line.split_once(" = ")?.0)) {
            has(DEPENDENCIES, &format!("`{name}`"));
        }
    }
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let page = include_str!("../../docs/threat-model.md");
    let named: Vec<_> = page.split('`').filter_map(|text| text.split_once("::")).collect();
    assert!(named.len() >= 20, "{named:?}");
    for (module, test) in named {
        let path = format!("{}/tests/it/{module}.rs", env!("CARGO_MANIFEST_DIR"));
        let source = std::fs::read_to_string(&path).expect(&path);
        let exists = test == "*" || source.contains(&format!("fn {test}("));
        assert!(exists, "{module}::{test}");
    }
}
