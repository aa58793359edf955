//! The README's tables say what the code does.

use iga::config::Timing;
use iga::config::settings::{Preset, SETTINGS, Setting};
use iga::error::Kind;

const README: &str = include_str!("../../README.md");
const MANIFEST: &str = include_str!("../../Cargo.toml");
const TELEMETRY: &str = include_str!("../../src/telemetry/metrics.rs");

#[track_caller]
fn has(row: &str) {
    assert!(README.contains(row), "the README lacks:\n{row}");
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
    let table = SETTINGS.iter().map(row).collect::<String>();
    has(&format!("\n{head}{table}\n"));
}

#[test]
fn every_error_is_in_the_table() {
    for kind in Kind::ALL {
        let row = kind.row();
        has(&format!("| {} | `{}` | `{}` |\n", row.status, row.code, row.message));
    }
}

#[test]
fn every_metric_is_in_the_table() {
    let names: Vec<_> = TELEMETRY
        .split("metric_name = \"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(names.len() >= 10, "{names:?}");
    for name in names {
        has(&format!("| `{name}` | "));
    }
}

#[test]
fn the_times_in_the_text_are_the_codes() {
    let lease_life = Timing::DEFAULT.lease_life.as_secs();
    has(&format!("at least {} ms after that one began", Timing::DEFAULT.variant_age.as_millis()));
    has(&format!("A lease that is not renewed ends after {lease_life} s by Cloud Storage's clock"));
    has(&format!("3, and 1 for every {} s of generation", lease_life / 3));
    let reliability = include_str!("../../docs/reliability.md");
    assert!(reliability.contains(&format!("its lease ends after {lease_life} s,")));
}

#[test]
fn every_dependency_has_its_reason() {
    for table in ["\n[dependencies]\n", "\n[target.'cfg(target_env = \"musl\")'.dependencies]\n"] {
        let shipped =
            MANIFEST.split(table).nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap();
        for name in shipped.lines().filter_map(|line| Some(line.split_once(" = ")?.0)) {
            has(&format!("`{name}`"));
        }
    }
}
