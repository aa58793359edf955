//! The log lines in each situation of the runbook, and the filters that read them: metrics and alerts of monitoring/ and
//! template.yaml, and the queries of docs/operations.md.

use crate::support::process::{Process, post};
use crate::support::service::{CURRENT, PROMPT, Response, emulator, emulator_with, fetch, reached};
use iga::error::Kind;
use iga_emulator::{Action, Emulator, Fault, Options, Stage};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The log lines of each situation.
type Log = BTreeMap<&'static str, Vec<Value>>;

/// Each situation: status, outcome and severity of its summary line, and the filters that match one of its lines,
/// without those of `IN_HEALTH`.
const SITUATIONS: &[(&str, u64, &str, &str, &[&str])] = &[
    ("success", 200, "success", "INFO", &[]),
    ("caller leaves", 499, "caller_left", "INFO", &["iga_undelivered_images"]),
    (
        "quota",
        429,
        "vertexai_error_resource_exhausted",
        "WARNING",
        &["iga_model_errors", "Failed", "Quota"],
    ),
    ("model unavailable", 503, "vertexai_error_api", "WARNING", &["iga_model_errors", "Failed"]),
    ("empty image", 500, "vertexai_error_empty_image", "WARNING", &["iga_model_errors", "Failed"]),
    ("blocked", 400, "vertexai_error_safety_blocked", "INFO", &["iga_model_errors"]),
    (
        "permission denied",
        403,
        "vertexai_error_permission_denied",
        "ERROR",
        &["iga_model_errors", "error", "Failed", "Errors"],
    ),
    ("bucket missing", 500, "gcs_upload_error", "ERROR", &["error", "Failed", "Errors"]),
    ("upload refused", 500, "gcs_upload_error", "ERROR", &["error", "Failed", "Errors"]),
    (
        "lost image",
        500,
        "gcs_upload_error",
        "ERROR",
        &[
            "iga_upload_failures",
            "iga_lost_images",
            "lost-image",
            "error",
            "Failed",
            "Errors",
            "Lost",
        ],
    ),
    ("fallback", 200, "success", "INFO", &["iga_model_errors", "fallback", "Fallback"]),
    (
        "no model left",
        500,
        "vertexai_error_api",
        "ERROR",
        &["iga_model_errors", "error", "Failed", "Errors"],
    ),
    ("overloaded", 503, "overloaded", "WARNING", &["Failed"]),
    ("no prompt", 400, "validation_error_prompt_missing", "INFO", &[]),
    ("no JSON", 400, "validation_error_malformed_json", "INFO", &[]),
    ("unsupported parameter", 400, "validation_error_unsupported_parameter", "INFO", &[]),
];

/// Filters that also match the lines of a healthy service.
const IN_HEALTH: &[&str] =
    &["iga_requests", "iga_model_ms", "iga_upload_ms", "Succeeded", "ModelTime"];

// ---- Situations

async fn log() -> Log {
    let (shared, left, full, unstored, lost, models) = tokio::join!(
        prompts(),
        caller_leaves(),
        overloaded(),
        uploads_refused(),
        lost_image(),
        retired_models()
    );
    [shared, left, full, unstored, lost, models].into_iter().flatten().collect()
}

async fn start(emulator: &Emulator, settings: &[(&str, &str)]) -> Process {
    Process::start(emulator, &[CURRENT, &[("IGA_DEBUG_MODE", "False")], settings].concat()).await
}

async fn ask(process: &Process, prompt: &str) -> Response {
    fetch(post(process, &json!({"prompt": prompt}))).await
}

async fn lines(process: Process) -> Vec<Value> {
    process.signal("TERM");
    process.end().await.1
}

/// One process; each request is a situation.
async fn prompts() -> Log {
    let emulator = emulator().await;
    let process = start(&emulator, &[]).await;
    let bodies = [
        ("success", json!({"prompt": PROMPT}).to_string()),
        ("quota", json!({"prompt": "[quota]"}).to_string()),
        ("model unavailable", json!({"prompt": "[overloaded]"}).to_string()),
        ("empty image", json!({"prompt": "[empty]"}).to_string()),
        ("blocked", json!({"prompt": "[blocked]"}).to_string()),
        ("permission denied", json!({"prompt": "[denied]"}).to_string()),
        ("no prompt", json!({"prompt": " "}).to_string()),
        ("no JSON", "{".to_owned()),
        ("unsupported parameter", json!({"prompt": PROMPT, "aspect_ratio": "7:5"}).to_string()),
    ];
    let mut ids = Vec::new();
    for (name, body) in bodies {
        let response = fetch(post(&process, &Value::Null).body(body)).await;
        ids.push((name, response.header("x-request-id").to_owned()));
    }
    let lines = lines(process).await;
    let of = |id: &str| lines.iter().filter(|line| line["request_id"] == *id).cloned().collect();
    ids.iter().map(|(name, id)| (*name, of(id))).collect()
}

async fn caller_leaves() -> Log {
    let emulator = slow_emulator().await;
    let process = start(&emulator, &[]).await;
    let asking = tokio::spawn(post(&process, &json!({"prompt": PROMPT})).send());
    reached(&emulator, |counters| counters.model_calls > 0).await;
    asking.abort();
    Log::from([("caller leaves", lines(process).await)])
}

async fn overloaded() -> Log {
    let emulator = slow_emulator().await;
    let process = start(&emulator, &[("IGA_MAX_GENERATIONS", "1")]).await;
    let first = tokio::spawn(fetch(post(&process, &json!({"prompt": PROMPT}))));
    reached(&emulator, |counters| counters.model_calls > 0).await;
    let id = ask(&process, "another").await.header("x-request-id").to_owned();
    first.await.unwrap().is_image();
    let lines = lines(process).await.into_iter();
    Log::from([("overloaded", lines.filter(|line| line["request_id"] == *id).collect())])
}

/// An emulator with a model slow enough for events during a generation.
async fn slow_emulator() -> Emulator {
    emulator_with(Options { latency: Duration::from_secs(3), ..Options::default() }).await
}

async fn uploads_refused() -> Log {
    let emulator = emulator().await;
    let missing = start(&emulator, &[("GCS_BUCKET_NAME", "missing-bucket")]).await;
    ask(&missing, PROMPT).await.is_error(500, "IGA_FILE_SAVE_ERROR");
    emulator.script(Fault::new(Stage::UploadStart, Action::status(403)).always());
    let refused = start(&emulator, &[]).await;
    ask(&refused, PROMPT).await.is_error(500, "IGA_FILE_SAVE_ERROR");
    assert_eq!(emulator.counters().paid_generations, 0);
    Log::from([("bucket missing", lines(missing).await), ("upload refused", lines(refused).await)])
}

/// Cloud Storage accepts records, but no image until the deadline.
async fn lost_image() -> Log {
    let emulator = emulator().await;
    emulator
        .script(Fault::new(Stage::UploadStart, Action::status(503)).matching("/iga_req_").always());
    let process = start(&emulator, &[("IGA_GENERATION_DEADLINE_SECONDS", "8")]).await;
    ask(&process, PROMPT).await.is_error(500, "IGA_FILE_SAVE_ERROR");
    assert_eq!(emulator.counters().paid_generations, 1);
    Log::from([("lost image", lines(process).await)])
}

async fn retired_models() -> Log {
    let emulator = emulator().await;
    let retired = ("IGA_VERTEXAI_IMAGE_MODEL_ID", "imagegeneration@006");
    let fallback = start(&emulator, &[retired]).await;
    ask(&fallback, PROMPT).await.is_image();
    let alone = start(&emulator, &[retired, ("IGA_VERTEXAI_FALLBACK_MODELS", "")]).await;
    ask(&alone, PROMPT).await.is_error(500, "IGA_VERTEXAI_API_ERROR");
    Log::from([("fallback", lines(fallback).await), ("no model left", lines(alone).await)])
}

// ---- Filters of the log

/// A condition on log entries.
struct Filter {
    name: String,
    condition: Condition,
    /// The paths of the fields that its labels and its value come from.
    extracted: Vec<String>,
}

fn yaml(path: &str) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_norway::from_str::<serde_norway::Value>(&text)
        .map(|value| json_of(&value))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Converts to JSON without the tags of CloudFormation.
fn json_of(value: &serde_norway::Value) -> Value {
    use serde_norway::Value as Yaml;
    match value {
        Yaml::Tagged(tagged) => json_of(&tagged.value),
        Yaml::Sequence(items) => items.iter().map(json_of).collect(),
        Yaml::Mapping(entries) => {
            let text = |key: &Yaml| key.as_str().unwrap().to_owned();
            entries.iter().map(|(key, value)| (text(key), json_of(value))).collect()
        }
        plain => serde_json::to_value(plain).unwrap(),
    }
}

/// The names, without `.yaml`, and the contents of the files in a directory of monitoring/.
fn monitoring(directory: &str) -> Vec<(String, Value)> {
    let files = std::fs::read_dir(format!("monitoring/{directory}")).unwrap();
    let mut found: Vec<_> = files
        .map(|file| file.unwrap().path())
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, yaml(path.to_str().unwrap()))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(!found.is_empty());
    found
}

fn filters() -> Vec<Filter> {
    let mut filters = Vec::new();
    for (name, metric) in monitoring("metrics") {
        assert_eq!(metric["name"], json!(name));
        let labels = metric["labelExtractors"].as_object().into_iter().flat_map(|map| map.values());
        let extractors = labels.chain([&metric["valueExtractor"]]).filter_map(Value::as_str);
        let path = |text: &str| {
            text.strip_prefix("EXTRACT(")
                .and_then(|rest| rest.strip_suffix(')'))
                .unwrap()
                .to_owned()
        };
        let extracted = extractors.map(path).collect();
        let condition = Condition::parse(metric["filter"].as_str().unwrap());
        filters.push(Filter { name, condition, extracted });
    }
    for (name, alert) in monitoring("alerts") {
        for condition in alert["conditions"].as_array().unwrap() {
            if let Some(filter) = condition["conditionMatchedLog"]["filter"].as_str() {
                let (name, condition) = (name.clone(), Condition::parse(filter));
                filters.push(Filter { name, condition, extracted: Vec::new() });
            }
        }
    }
    for resource in yaml("template.yaml")["Resources"].as_object().unwrap().values() {
        if resource["Type"] == "AWS::Logs::MetricFilter" {
            let filter = &resource["Properties"];
            let change = &filter["MetricTransformations"][0];
            let value = change["MetricValue"].as_str().unwrap();
            filters.push(Filter {
                name: change["MetricName"].as_str().unwrap().to_owned(),
                condition: Condition::parse_pattern(filter["FilterPattern"].as_str().unwrap()),
                extracted: value.starts_with('$').then(|| value.to_owned()).into_iter().collect(),
            });
        }
    }
    filters
}

/// The entry that Cloud Logging makes of a line. `$` is the line itself, as CloudWatch reads it.
fn entry(line: &Value) -> Value {
    let mut payload = line.as_object().unwrap().clone();
    let take = |name: &str, payload: &mut serde_json::Map<String, Value>| payload.remove(name);
    let severity = take("severity", &mut payload);
    let http_request = take("httpRequest", &mut payload);
    json!({
        "resource": {"type": "cloud_run_revision"},
        "severity": severity,
        "httpRequest": http_request,
        "jsonPayload": payload,
        "$": line,
    })
}

/// A field of an entry, or of the line itself if no part of the entry has that name, as in Logs Insights.
fn field<'a>(entry: &'a Value, path: &str) -> &'a Value {
    let first = path.split('.').next().unwrap();
    let start = if entry.get(first).is_some() && first != "severity" { entry } else { &entry["$"] };
    path.split('.').fold(start, |value, name| &value[name])
}

// ---- The part of the query languages that the filters use

/// A condition in Cloud Logging's query language, in which OR binds more tightly than AND.
#[derive(Debug)]
enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Compare { path: String, operator: String, value: String },
}

impl Condition {
    fn parse(text: &str) -> Condition {
        let tokens = tokens(text);
        let mut rest = tokens.as_slice();
        let condition = Condition::all(&mut rest);
        assert!(rest.is_empty(), "{text}: {rest:?} cannot be parsed");
        condition
    }

    /// Parses a filter pattern of CloudWatch Logs for JSON.
    fn parse_pattern(text: &str) -> Condition {
        let inner = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap();
        let same =
            inner.replace("&&", " AND ").replace("||", " OR ").replace(" IS TRUE", " = true");
        let same = same.replace(" = \"*\"", ":*");
        assert!(!same.contains(" OR ") || !same.contains(" AND ") || same.contains('('));
        Condition::parse(&same)
    }

    /// Parses a `filter` of CloudWatch Logs Insights.
    fn parse_insights(text: &str) -> Condition {
        let inner =
            text.strip_prefix("filter ").unwrap_or_else(|| panic!("{text} is not a filter"));
        let inner = inner.replace(" and ", " AND ").replace(" or ", " OR ");
        Condition::parse(&inner.replace("ispresent(", "PRESENT ("))
    }

    fn all(rest: &mut &[String]) -> Condition {
        let mut parts = vec![Condition::any(rest)];
        while rest.first().is_some_and(|token| token == "AND") {
            *rest = &rest[1..];
            parts.push(Condition::any(rest));
        }
        Condition::All(parts)
    }

    fn any(rest: &mut &[String]) -> Condition {
        let mut parts = vec![Condition::one(rest)];
        while rest.first().is_some_and(|token| token == "OR") {
            *rest = &rest[1..];
            parts.push(Condition::one(rest));
        }
        Condition::Any(parts)
    }

    fn one(rest: &mut &[String]) -> Condition {
        let texts: Vec<&str> = rest.iter().take(4).map(String::as_str).collect();
        match texts[..] {
            ["(", ..] => {
                *rest = &rest[1..];
                let inner = Condition::all(rest);
                assert_eq!(rest.first().map(String::as_str), Some(")"));
                *rest = &rest[1..];
                inner
            }
            ["PRESENT", "(", path, ")"] => {
                let path = path.to_owned();
                *rest = &rest[4..];
                Condition::Compare { path, operator: ":".to_owned(), value: "*".to_owned() }
            }
            [path, operator, value, ..] => {
                let value = value.trim_matches('"').to_owned();
                let compare =
                    Condition::Compare { path: path.into(), operator: operator.into(), value };
                *rest = &rest[3..];
                compare
            }
            _ => panic!("{texts:?} is not a comparison"),
        }
    }

    fn matches(&self, entry: &Value) -> bool {
        match self {
            Condition::All(parts) => parts.iter().all(|part| part.matches(entry)),
            Condition::Any(parts) => parts.iter().any(|part| part.matches(entry)),
            Condition::Compare { path, operator, value } => {
                compare(field(entry, path), operator, value, path.ends_with("severity"))
            }
        }
    }
}

fn compare(found: &Value, operator: &str, value: &str, is_severity: bool) -> bool {
    let text = match found {
        Value::Null => return false,
        Value::String(text) => text.to_lowercase(),
        other => other.to_string(),
    };
    let value = value.to_lowercase();
    let rank = |text: &str| match is_severity {
        true => ["debug", "info", "warning", "error"]
            .iter()
            .position(|name| *name == text)
            .map(|at| at as f64),
        false => text.parse::<f64>().ok(),
    };
    let order = rank(&text).zip(rank(&value)).and_then(|(a, b)| a.partial_cmp(&b));
    match operator {
        "=" => order.map_or(text == value, |order| order.is_eq()),
        ":" => value == "*" || text.contains(&value),
        ">=" => order.is_some_and(|order| order.is_ge()),
        ">" => order.is_some_and(|order| order.is_gt()),
        other => panic!("{other} is not an operator of these filters"),
    }
}

fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '(' | ')' | ':' | '*' => 1,
            '"' => rest[1..].find('"').expect("a closing quote") + 2,
            '=' | '>' | '<' | '!' => rest.find(|c| !"=<>!~".contains(c)).unwrap(),
            _ => {
                let is_name = |c: char| c.is_alphanumeric() || "_.$-".contains(c);
                rest.find(|c| !is_name(c)).unwrap_or(rest.len()).max(1)
            }
        };
        tokens.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    tokens
}

#[test]
fn the_evaluator_follows_the_query_languages() {
    let entry =
        entry(&json!({"severity": "WARNING", "a": "Fox", "n": 12, "p": true, "tags": {"t": "x"}}));
    for (filter, expected) in [
        (r#"jsonPayload.a="fox" AND severity>=WARNING"#, true),
        (r#"jsonPayload.a="fox" AND severity>=ERROR"#, false),
        (r#"jsonPayload.a="x" AND jsonPayload.n>=12 OR jsonPayload.p=true"#, false),
        (r#"jsonPayload.n>12 OR jsonPayload.tags.t="x""#, true),
        (r#"jsonPayload.a:"ox" AND jsonPayload.b:*"#, false),
        (r#"jsonPayload.severity="WARNING""#, false),
    ] {
        assert_eq!(Condition::parse(filter).matches(&entry), expected, "{filter}");
    }
    assert!(Condition::parse_pattern(r#"{ ($.p IS TRUE) && ($.n > 3) }"#).matches(&entry));
    assert!(!Condition::parse_pattern(r#"{ $.p = "x" }"#).matches(&entry));
    let filter = r#"filter severity = "WARNING" and ispresent(tags.t)"#;
    assert!(Condition::parse_insights(filter).matches(&entry));
}

// ---- Tests

#[tokio::test]
async fn every_situation_has_its_line_severity_and_filters() {
    let log = log().await;
    assert_eq!(log.len(), SITUATIONS.len());
    let filters = filters();
    for (name, status, outcome, severity, _) in SITUATIONS {
        let lines = &log[name];
        let summaries: Vec<_> = lines.iter().filter(|line| line["outcome"].is_string()).collect();
        assert_eq!(summaries.len(), 1, "{name}: {lines:#?}");
        let found =
            json!([summaries[0]["status"], summaries[0]["outcome"], summaries[0]["severity"]]);
        assert_eq!(found, json!([status, outcome, severity]), "{name}: {lines:#?}");
    }
    let matching = |name: &str| -> BTreeSet<&str> {
        let lines: Vec<_> = log[name].iter().map(entry).collect();
        let hits =
            filters.iter().filter(|filter| lines.iter().any(|line| filter.condition.matches(line)));
        hits.map(|filter| filter.name.as_str()).filter(|name| !IN_HEALTH.contains(name)).collect()
    };
    for (name, .., expected) in SITUATIONS {
        assert_eq!(
            matching(name),
            BTreeSet::from_iter(expected.iter().copied()),
            "{name}: {:#?}",
            log[name]
        );
    }
    // Every filter matches a line, and each line that it matches has the fields that it extracts.
    for filter in &filters {
        let entries: Vec<_> = log.values().flatten().map(entry).collect();
        let matched: Vec<_> =
            entries.iter().filter(|entry| filter.condition.matches(entry)).collect();
        assert!(!matched.is_empty(), "{} matches no line", filter.name);
        for path in &filter.extracted {
            let missing = matched.iter().find(|entry| field(entry, path).is_null());
            assert!(missing.is_none(), "{}: {path} is not in {missing:#?}", filter.name);
        }
    }
    queries_find_their_lines(&log);
}

/// Every query of the runbook finds the lines of its situation, and none of a healthy service.
fn queries_find_their_lines(log: &Log) {
    let health: Vec<_> = log["success"].iter().map(entry).collect();
    let others: Vec<_> = log.values().flatten().map(entry).collect();
    for (row, logging, insights) in alert_rows() {
        for condition in [Condition::parse(&logging), Condition::parse_insights(&insights)] {
            assert!(others.iter().any(|line| condition.matches(line)), "{row}: {condition:?}");
            let is_of_health = row.contains("slow");
            let matches_health = health.iter().any(|line| condition.matches(line));
            assert_eq!(matches_health, is_of_health, "{row}: {condition:?}");
        }
    }
}

const PAGE: &str = include_str!("../../docs/operations.md");

/// The rows of the page's table of queries: alert, query for Cloud Logging, query for Logs Insights.
fn alert_rows() -> Vec<(String, String, String)> {
    let rows = rows_under("\n| lines of the alert |").map(|row| {
        let queries: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        assert_eq!(queries.len(), 2, "{row}");
        (title(row), queries[0].to_owned(), queries[1].to_owned())
    });
    let rows: Vec<_> = rows.collect();
    let titles: Vec<_> = rows.iter().map(|(title, ..)| title.clone()).collect();
    assert_eq!(titles, rows_under("\n| alert |").map(title).collect::<Vec<_>>());
    rows
}

fn rows_under(head: &str) -> impl Iterator<Item = &'static str> {
    let table = PAGE.split(head).nth(1).unwrap().split("\n\n").next().unwrap();
    table.lines().skip(2)
}

fn title(row: &str) -> String {
    row.trim_start_matches("| ").split(" | ").next().unwrap().to_owned()
}

#[test]
fn every_alert_and_every_error_code_is_in_the_runbook() {
    let rows = alert_rows();
    for (_, alert) in monitoring("alerts") {
        let title = alert["displayName"].as_str().unwrap();
        assert!(rows.iter().any(|(row, ..)| row == title), "{title}");
    }
    let alarms = yaml("template.yaml")["Resources"].clone();
    for alarm in alarms.as_object().unwrap().values() {
        if alarm["Type"] == "AWS::CloudWatch::Alarm" {
            let title = alarm["Properties"]["AlarmDescription"].as_str().unwrap();
            assert!(rows.iter().any(|(row, ..)| row == title), "{title}");
        }
    }
    for kind in Kind::ALL {
        let code = kind.row().code;
        assert!(PAGE.contains(&format!("\n| `{code}` | ")), "{code}");
    }
}

#[test]
fn alerts_and_charts_name_metrics_and_outcomes_that_exist() {
    let metrics: Vec<_> = monitoring("metrics").into_iter().map(|(name, _)| name).collect();
    let outcomes = || Kind::ALL.iter().map(|kind| kind.row().tag).chain(["success", "caller_left"]);
    let files = [monitoring("alerts"), monitoring("dashboards")].concat();
    let mut asked = BTreeSet::new();
    for (name, file) in files {
        let text = file.to_string().replace("\\\"", "\"");
        for start in ["logging.googleapis.com/user/", "logging_googleapis_com:user_"] {
            for rest in text.split(start).skip(1) {
                let metric = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                assert!(metrics.iter().any(|known| known == metric), "{name}: {metric}");
                asked.insert(metric.to_owned());
            }
        }
        for rest in text.split("outcome=\"").skip(1) {
            let outcome = rest.split('"').next().unwrap();
            assert!(outcomes().any(|known| known == outcome), "{name}: {outcome}");
        }
        for rest in text.split("outcome!~\"").skip(1) {
            for pattern in rest.split('"').next().unwrap().split('|') {
                let known =
                    outcomes().any(|outcome| outcome.starts_with(pattern.trim_end_matches(".*")));
                assert!(known, "{name}: {pattern}");
            }
        }
    }
    assert!(asked.into_iter().eq(metrics), "an alert or a chart uses each metric");
    // The threshold of the alert on instances follows from service.yaml.
    let most = yaml("service.yaml")["spec"]["template"]["metadata"]["annotations"]
        ["autoscaling.knative.dev/maxScale"]
        .as_str()
        .unwrap()
        .parse::<u64>()
        .unwrap();
    let capacity = yaml("monitoring/alerts/capacity.yaml");
    assert_eq!(capacity["conditions"][1]["conditionThreshold"]["thresholdValue"], json!(most - 1));
}
