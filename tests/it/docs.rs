//! The README and the pages of docs/ match the code, and their links work. `IGA_WRITE_DOCS=1` writes the tables of settings
//! and errors.

use iga::config::Timing;
use iga::config::settings::{Preset, SETTINGS, Setting};
use iga::error::Kind;
use iga::telemetry::metrics;
use std::path::{Path, PathBuf};

const DEPENDENCIES: &str = include_str!("../../docs/dependencies.md");
const OPERATIONS: &str = include_str!("../../docs/operations.md");
const RELIABILITY: &str = include_str!("../../docs/reliability.md");
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

/// Compares the table that begins with `head` with a page's, or writes it there.
fn table(page: &str, head: &str, rows: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = read(&path);
    let head = format!("\n{head}\n{}|\n", "|---".repeat(head.matches('|').count() - 1));
    let (before, rest) = text.split_once(&head).unwrap_or_else(|| panic!("{page} lacks {head}"));
    let (found, after) = rest.split_once("\n\n").expect("the table has an end");
    if std::env::var_os("IGA_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{head}{rows}\n{after}")).unwrap();
        return;
    }
    assert_eq!(format!("{found}\n"), rows, "{page} differs");
}

#[test]
fn every_setting_is_in_the_table_and_no_other() {
    let rows = SETTINGS.iter().map(|setting| row(setting)).collect::<String>();
    table("docs/settings.md", "| variable | default | meaning |", &rows);
}

#[test]
fn every_error_is_in_the_table_and_no_other() {
    let mut rows: Vec<String> = Vec::new();
    for row in Kind::ALL.iter().map(|kind| kind.row()) {
        let row = format!("| {} | `{}` | `{}` |\n", row.status, row.code, row.message);
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    table("docs/api.md", "| status | error_code | message |", &rows.concat());
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

#[test]
fn every_relative_link_has_its_file_and_heading() {
    let mut checked = 0;
    for page in pages() {
        let text = read(&page);
        let targets = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for target in targets.filter(|target| !target.contains("://")) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked =
                if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            assert!(linked.exists(), "{page:?}: {target}");
            let exists = anchor.is_empty() || anchors(&read(&linked)).iter().any(|at| at == anchor);
            assert!(exists, "{page:?}: {target}");
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} links were found");
}

#[test]
fn every_column_has_a_head() {
    let mut checked = 0;
    for page in pages() {
        let text = read(&page);
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines
            .windows(2)
            .filter(|pair| pair[1].starts_with("|---") || pair[1].starts_with("| ---"))
        {
            let heads = pair[0].trim_matches('|').split('|');
            assert!(heads.into_iter().all(|head| !head.trim().is_empty()), "{page:?}: {}", pair[0]);
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} tables were found");
}

/// The README's promises, up to each first full stop, are in the page that states them exactly.
#[test]
fn the_readme_promises_what_the_page_on_reliability_does() {
    let readme = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    assert!(readme.lines().count() <= 150);
    let section =
        readme.split("\n## What it promises\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let promises: Vec<&str> =
        section.split("- **").skip(1).map(|rest| rest.split("**").next().unwrap()).collect();
    assert!(promises.len() >= 4, "{promises:?}");
    for promise in promises {
        has(RELIABILITY, &format!("- **{promise}**"));
    }
}

/// Every Markdown page of the repository's root and of docs/.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = [root.to_owned(), root.join("docs")].map(|folder| folder.read_dir().unwrap());
    let paths = files.into_iter().flatten().map(|file| file.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// The anchors that GitHub gives to the headings of a page.
fn anchors(page: &str) -> Vec<String> {
    let outside_of_code = page.split("```").step_by(2).flat_map(str::lines);
    let headings = outside_of_code.filter_map(|line| line.strip_prefix('#'));
    let headings = headings.filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let is_kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    let anchor = |heading: &str| heading.to_lowercase().chars().filter(is_kept).collect::<String>();
    headings.map(|heading| anchor(heading).replace(' ', "-")).collect()
}
