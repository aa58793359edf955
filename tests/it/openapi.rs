//! `openapi.yaml` matches the code: fields, allowed values, headers, limits, error codes.

use crate::support::service::{BUCKET, Service};
use iga::error::Kind;
use iga::model::{ImageSize, OutputMimeType, RATIOS};
use serde_norway::Value;
use std::collections::BTreeSet;
use tokio::process::Command;

fn document() -> Value {
    serde_norway::from_str(include_str!("../../openapi.yaml")).expect("it is YAML")
}

/// The value at a path of keys, separated by spaces.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split(' ').fold(value, |value, key| {
        value.get(key).unwrap_or_else(|| panic!("{key} of the path {path} is missing"))
    })
}

fn texts(value: &Value) -> BTreeSet<String> {
    let items = value.as_sequence().expect("a list");
    items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn set<'a>(items: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    items.into_iter().map(str::to_owned).collect()
}

/// Status, code and message of every example of an error response.
fn examples(document: &Value) -> BTreeSet<(u16, String, String)> {
    let mut found = BTreeSet::new();
    let responses = at(document, "paths /generate_image post responses");
    for (status, response) in responses.as_mapping().expect("an object") {
        let Some(examples) = response.get("content").map(|it| at(it, "application/json examples"))
        else {
            continue;
        };
        for (_, example) in examples.as_mapping().expect("an object") {
            let text = |name: &str| example["value"][name].as_str().map(str::to_owned);
            let status = status.as_str().and_then(|status| status.parse().ok());
            if let (Some(status), Some(code), Some(message)) =
                (status, text("error_code"), text("message"))
            {
                found.insert((status, code, message));
            }
        }
    }
    found
}

#[test]
fn every_error_has_its_code_and_an_example() {
    let document = document();
    let codes = set(Kind::ALL.iter().map(|kind| kind.row().code));
    assert_eq!(texts(at(&document, "components schemas ErrorCode enum")), codes);
    let rows = Kind::ALL.iter().map(|kind| kind.row());
    // A wrong path or method is not an error of this operation.
    let of_the_operation = rows.filter(|row| !matches!(row.status, 404 | 405));
    let rows: BTreeSet<_> = of_the_operation
        .map(|row| (row.status, row.code.to_owned(), row.message.to_owned()))
        .collect();
    assert_eq!(examples(&document), rows);
}

#[test]
fn allowed_values_match_the_code() {
    let document = document();
    let fields = at(&document, "components schemas GenerateRequest properties");
    let allowed = |field: &str, schema: &str| {
        let either = at(fields, &format!("{field} oneOf")).as_sequence().expect("a list");
        assert_eq!(at(&either[0], "$ref"), &format!("#/components/schemas/{schema}"));
        texts(at(&document, &format!("components schemas {schema} enum")))
    };
    assert_eq!(allowed("aspect_ratio", "AspectRatio"), set(RATIOS.iter().copied()));
    assert_eq!(allowed("image_size", "ImageSize"), set(ImageSize::ALL.map(ImageSize::as_str)));
    assert_eq!(
        allowed("output_mime_type", "OutputMimeType"),
        set(OutputMimeType::ALL.map(OutputMimeType::as_str))
    );
    assert_eq!(
        allowed("person_generation", "PersonGeneration"),
        set(["dont_allow", "allow_adult", "allow_all"])
    );
}

#[test]
fn the_version_matches_the_package() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(at(&document(), "info version").as_str(), Some(version));
}

/// Without `positive_data_acceptance`: a schema cannot say which model takes which parameter.
#[tokio::test]
#[ignore = "needs Schemathesis"]
async fn the_service_keeps_to_the_document() {
    let service = Service::start().await;
    let program = std::env::var_os("IGA_TEST_SCHEMATHESIS").unwrap_or("st".into());
    let output = Command::new(program)
        .args(["run", "openapi.yaml", "--url", &service.url])
        .args(["--exclude-checks", "positive_data_acceptance", "--suppress-health-check", "all"])
        .args(["--generation-deterministic", "--max-examples", "60"])
        .envs([("NO_PROXY", "127.0.0.1"), ("NO_COLOR", "1")])
        .output()
        .await
        .expect("Schemathesis can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
#[ignore = "needs Python with openapi-python-client"]
async fn a_client_generated_from_the_document_gets_an_image_and_a_typed_error() {
    let python = std::env::var_os("IGA_TEST_OPENAPI_PYTHON").unwrap_or("python3".into());
    let directory = tempfile::tempdir().unwrap();
    // Formatting the client would need another program.
    let options = directory.path().join("options.yaml");
    std::fs::write(&options, "post_hooks: []\n").unwrap();
    let run = async |command: &mut Command| {
        let output = command.kill_on_drop(true).output().await.expect("Python can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let mut generator = Command::new(&python);
    generator.args(["-m", "openapi_python_client", "generate", "--path", "openapi.yaml"]);
    generator.args(["--fail-on-warning", "--meta", "none", "--config"]).arg(options);
    run(generator.arg("--output-path").arg(directory.path().join("iga_client"))).await;
    let service = Service::current().await;
    let mut caller = Command::new(&python);
    caller.env("PYTHONPATH", directory.path()).env("NO_PROXY", "127.0.0.1");
    let printed = run(caller.args(["tests/it/support/generated_client.py", &service.url])).await;
    assert_eq!(printed.trim(), format!("gs://{BUCKET}/{}", service.only_object().name));
}
