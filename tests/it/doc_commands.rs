//! The blocks of code in the README, CONTRIBUTING and docs/ work: JSON has the contract's fields, the commands of
//! `iga`, `iga-local`, curl and the examples run, and all others name files, options and services that exist.

use crate::support::process::{self, Process};
use crate::support::python::python;
use crate::support::service::{BUCKET, CURRENT, client, emulator, only_image};
use iga::error::Kind;
use iga_emulator::Emulator;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A fenced block of a page.
#[derive(Debug)]
struct Block {
    page: String,
    line: usize,
    language: String,
    text: String,
}

/// The blocks of every page of the repository's root and of docs/.
fn blocks() -> Vec<Block> {
    let folders = [ROOT.to_owned(), format!("{ROOT}/docs")];
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let mut pages: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    pages.iter().flat_map(|path| blocks_of(path)).collect()
}

fn blocks_of(path: &Path) -> Vec<Block> {
    let page = path.strip_prefix(ROOT).unwrap().display().to_string();
    let text = fs::read_to_string(path).unwrap();
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                let (page, language) = (page.clone(), language.to_owned());
                open = Some(Block { page, line: number + 1, language, text: String::new() });
            }
            (Some(_), Some("")) => found.extend(open.take()),
            (Some(block), _) => block.text.extend([line, "\n"]),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{page}: a block has no end");
    found
}

fn blocks_in(language: &str) -> Vec<Block> {
    blocks().into_iter().filter(|block| block.language == language).collect()
}

/// The lines of a shell block, without comments; a line that ends with a backslash goes on in the next.
fn shell_lines(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let without_comment = |line: &str| line.split(" #").next().unwrap().trim_end().to_owned();
    joined.lines().map(without_comment).filter(|line| !line.is_empty()).collect()
}

#[test]
fn every_block_names_its_language() {
    let known = ["console", "json", "mermaid", "python", "sh"];
    for Block { page, line, language, .. } in blocks() {
        assert!(known.contains(&language.as_str()), "{page}:{line}: {language:?}");
    }
}

#[test]
fn every_response_of_the_pages_has_the_fields_of_the_contract() {
    let blocks = blocks_in("json");
    assert!(!blocks.is_empty());
    for Block { page, line, text, .. } in blocks {
        let body: Value =
            serde_json::from_str(&text).unwrap_or_else(|it| panic!("{page}:{line}: {it}"));
        let fields: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
        match body["error_code"].as_str() {
            Some(code) => {
                assert_eq!(
                    BTreeSet::from_iter(fields),
                    BTreeSet::from(["error_code", "message", "details"])
                );
                let mut rows = Kind::ALL.iter().map(|kind| kind.row());
                assert!(
                    rows.any(|row| row.code == code && row.message == body["message"]),
                    "{page}:{line}"
                );
            }
            None => {
                let expected = BTreeSet::from(["image_url", "model_version", "prompt_used"]);
                assert_eq!(BTreeSet::from_iter(fields), expected, "{page}:{line}");
                assert!(body["image_url"].as_str().unwrap().starts_with("gs://"), "{page}:{line}");
            }
        }
    }
}

#[tokio::test]
#[ignore = "needs Node with the packages mermaid and jsdom"]
async fn every_diagram_parses() {
    let (wrong, blocks) = ("stateDiagram-v2\n    A -> B", blocks_in("mermaid"));
    assert!(blocks.len() >= 6, "{}", blocks.len());
    let diagrams: Vec<&str> =
        blocks.iter().map(|block| block.text.as_str()).chain([wrong]).collect();
    let mut command = Command::new("node");
    command.args(["--input-type=module", "--eval", include_str!("support/diagrams.mjs")]);
    command.current_dir(std::env::var_os("IGA_TEST_NODE_MODULES").unwrap_or(".".into()));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let input = serde_json::to_vec(&diagrams).unwrap();
    child.stdin.take().unwrap().write_all(&input).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let problems: Vec<String> = serde_json::from_slice(&output.stdout).unwrap();
    let (last, problems) = problems.split_last().unwrap();
    assert!(!last.is_empty(), "it finds no error");
    for (problem, Block { page, line, .. }) in problems.iter().zip(&blocks) {
        assert_eq!(problem, "", "{page}:{line}");
    }
}

// ---- Commands, recorded by stand-ins

/// Writes an executable script.
fn write_program(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/bash\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

const RECORD: &str = r#"{ printf '%s\x1f' "$NAME" "$@"; echo; } >>"$LOG""#;
const PROGRAMS: &[&str] = &[
    "bash",
    "cargo",
    "curl",
    "docker",
    "gcloud",
    "git",
    "iga",
    "node",
    "pip",
    "python",
    "sam",
    "sed",
    "sha256sum",
    "sort",
    "wc",
];

/// The words of each command that a shell block runs. A program without a stand-in fails the block.
fn recorded(block: &Block) -> Vec<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    fs::write(&log, "").unwrap();
    let repository = folder.path().join("repository");
    for name in PROGRAMS {
        write_program(&folder.path().join("bin"), name, &format!("NAME={name}; {RECORD}"));
    }
    for name in ["scripts", "examples", "benches"] {
        for file in fs::read_dir(format!("{ROOT}/{name}")).unwrap() {
            let file = file.unwrap();
            if file.metadata().unwrap().permissions().mode() & 0o111 != 0 && file.path().is_file() {
                let path = format!("{name}/{}", file.file_name().display());
                write_program(&repository, &path, &format!("NAME={path}; {RECORD}"));
            }
        }
    }
    symlink(format!("{ROOT}/events"), repository.join("events")).unwrap();
    let mut command = std::process::Command::new("/bin/bash");
    command.args(["-euc", &block.text]).current_dir(&repository).env_clear();
    command.env("PATH", folder.path().join("bin")).env("LOG", &log).env("HOME", folder.path());
    command.envs([("PROJECT", "a-project"), ("REGION", "us-central1"), ("BUCKET", "a-bucket")]);
    command.envs([("URL", "https://iga.example"), ("PROMPT", "a fox")]);
    command.envs([
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_SESSION_TOKEN", "x"),
    ]);
    let output = command.output().unwrap();
    let (page, line) = (&block.page, block.line);
    assert!(output.status.success(), "{page}:{line}: {}", String::from_utf8_lossy(&output.stderr));
    let log = fs::read_to_string(&log).unwrap();
    let words = |line: &str| line.split('\x1f').map(str::to_owned).collect::<Vec<_>>();
    log.lines().map(|line| words(line.trim_end_matches('\x1f'))).collect()
}

#[test]
fn every_command_of_the_pages_names_things_that_exist() {
    let blocks = blocks_in("sh");
    assert!(blocks.len() >= 20, "only {} blocks were found", blocks.len());
    let mut problems = Vec::new();
    for block in blocks {
        let commands = recorded(&block);
        assert!(!commands.is_empty(), "{block:?}");
        for words in commands {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            problems.extend(
                problem(&words).map(|it| format!("{}:{}: {words:?}: {it}", block.page, block.line)),
            );
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The first thing that a command names and that does not exist.
fn problem(words: &[&str]) -> Option<String> {
    let (program, arguments) = words.split_first().unwrap();
    match (*program, arguments) {
        ("cargo", ["run", ..]) => None,
        ("cargo", _) => cargo_problem(arguments),
        ("bash", [script]) => missing(script),
        ("python", [script, ..]) => missing(script),
        ("pip", ["install", "-r", file]) => missing(file),
        ("docker", _) => compose_problem(arguments),
        ("sam", [verb, rest @ ..]) => sam_problem(verb, rest),
        ("curl", _) => {
            let url = arguments.iter().find(|word| word.ends_with("generate_image"));
            url.is_none().then(|| "no URL of the service".to_owned())
        }
        (script, _) if script.contains('/') => {
            let text = fs::read_to_string(format!("{ROOT}/{script}")).unwrap();
            let options = arguments.iter().filter(|word| word.starts_with("--"));
            options
                .into_iter()
                .find(|option| !text.contains(*option))
                .map(|it| format!("no option {it}"))
        }
        _ => None,
    }
}

fn missing(path: &str) -> Option<String> {
    (!Path::new(ROOT).join(path).is_file()).then(|| format!("{path} does not exist"))
}

fn cargo_problem(arguments: &[&str]) -> Option<String> {
    let manifest = fs::read_to_string(format!("{ROOT}/Cargo.toml")).unwrap();
    let own = arguments.split(|word| *word == "--").next().unwrap();
    let mut words = own[1..].iter().copied();
    if !["build", "clippy", "doc", "fmt", "test"].contains(&own[0]) {
        return Some("an unknown command of cargo".to_owned());
    }
    while let Some(word) = words.next() {
        let exists = match word {
            "--all"
            | "--all-targets"
            | "--locked"
            | "--no-default-features"
            | "--open"
            | "--release"
            | "--workspace" => true,
            "--package" | "--bin" => {
                words.next().is_some_and(|name| manifest.contains(&format!("name = \"{name}\"\n")))
            }
            "--test" => {
                words.next().is_some_and(|name| Path::new(ROOT).join("tests").join(name).is_dir())
            }
            // A filter of tests.
            name => Path::new(ROOT).join(format!("tests/it/{name}.rs")).is_file(),
        };
        if !exists {
            return Some(format!("{word} names nothing"));
        }
    }
    None
}

fn yaml(name: &str) -> serde_norway::Value {
    serde_norway::from_str(&fs::read_to_string(format!("{ROOT}/{name}")).unwrap()).unwrap()
}

fn compose_problem(arguments: &[&str]) -> Option<String> {
    let compose = yaml("docker-compose.yml");
    let services = compose["services"].as_mapping().unwrap();
    let has_profile = |name: &str| {
        let mut profiles =
            services.iter().filter_map(|(_, it)| it["profiles"].as_sequence()).flatten();
        profiles.any(|profile| profile == name)
    };
    let mut words = arguments.iter().skip(1);
    while let Some(word) = words.next() {
        let exists = match *word {
            "--profile" => words.next().is_some_and(|name| has_profile(name)),
            "up" | "cp" | "-d" | "." => true,
            name => services.contains_key(name.split(':').next().unwrap()),
        };
        if !exists {
            return Some(format!("{word} names nothing"));
        }
    }
    None
}

fn sam_problem(verb: &str, arguments: &[&str]) -> Option<String> {
    if !["build", "deploy", "delete"].contains(&verb) {
        return Some("an unknown command of sam".to_owned());
    }
    let template = yaml("template.yaml");
    let names = arguments
        .iter()
        .filter(|word| !word.starts_with("--"))
        .map(|word| word.split('=').next().unwrap());
    names
        .into_iter()
        .find(|name| template["Parameters"][*name].is_null())
        .map(|it| format!("no parameter {it}"))
}

// ---- Commands that run

/// A folder like a clone, with programs that run what the tests have built.
struct Clone {
    folder: tempfile::TempDir,
}

impl Clone {
    fn new() -> Clone {
        let folder = tempfile::tempdir().unwrap();
        for name in ["events", "examples"] {
            symlink(format!("{ROOT}/{name}"), folder.path().join(name)).unwrap();
        }
        let bin = folder.path().join("bin");
        let python = python();
        // `cargo run` runs the default binary. Ports are free ones.
        let cargo = format!(
            "[ \"$1\" = run ] || exit 9; shift; [ \"${{1-}}\" != -- ] || shift\n\
             words=(); for word; do [ \"${{before-}}\" = --port ] && word=0; words+=(\"$word\"); before=$word; done\n\
             exec '{}' \"${{words[@]}}\"",
            env!("CARGO_BIN_EXE_iga-local")
        );
        write_program(&bin, "cargo", &cargo);
        write_program(&bin, "iga", &format!("exec '{}' \"$@\"", env!("CARGO_BIN_EXE_iga")));
        write_program(&bin, "python", &format!("exec '{}' \"$@\"", python.display()));
        // `--open` opens a browser with it.
        write_program(&bin, "xdg-open", "exit 0");
        Clone { folder }
    }

    /// A command line with the settings of the emulator.
    fn command(&self, line: &str, emulator: &Emulator, settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new("/bin/bash");
        let theirs = process::command(emulator, settings);
        command.args(["-euc", line]).current_dir(self.folder.path()).env_clear();
        command.envs(theirs.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.folder.path().join("bin").display()));
        command
            .env("HOME", self.folder.path())
            .envs([("NO_PROXY", "127.0.0.1"), ("BROWSER", "true")]);
        command.env("GCE_METADATA_IP", emulator.host());
        command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        command
    }
}

/// How a line of the pages is run.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// It ends by itself.
    ToItsEnd,
    /// It serves until it is stopped.
    UntilStopped,
    /// Its words are checked only.
    NotRun,
}

fn way(line: &str) -> Way {
    let runs = ["cargo run", "examples/", "http://localhost:5007"];
    let is_run = line.starts_with("iga ") || runs.iter().any(|part| line.contains(part));
    match line.contains("cargo run") && (line.contains(" serve") || line.contains(" emulator")) {
        _ if !is_run => Way::NotRun,
        true => Way::UntilStopped,
        false => Way::ToItsEnd,
    }
}

#[tokio::test]
#[ignore = "needs Python with the packages requests and google-auth, and curl"]
async fn the_commands_of_the_pages_run() {
    let clone = Clone::new();
    let (mut ended, mut stopped) = (0, 0);
    for block in blocks_in("sh") {
        for line in shell_lines(&block.text) {
            let place = format!("{}:{}: {line}", block.page, block.line);
            match way(&line) {
                Way::NotRun => {}
                Way::ToItsEnd => {
                    run_to_its_end(&clone, &line, &place).await;
                    ended += 1;
                }
                Way::UntilStopped => {
                    run_until_stopped(&clone, &line, &place).await;
                    stopped += 1;
                }
            }
        }
    }
    assert!(ended >= 8 && stopped >= 3, "{ended} {stopped}");
}

/// Runs a command beside a service that stands for the one at localhost:5007 and for that on Cloud Run.
async fn run_to_its_end(clone: &Clone, line: &str, place: &str) {
    let emulator = emulator().await;
    let process = Process::start(&emulator, CURRENT).await;
    let port = process.url.rsplit(':').next().unwrap();
    let line = line.replace("http://localhost:5007", &process.url);
    let line = line.replace("https://your-service.run.app", &process.url);
    let calls_the_service = line.contains("examples/generate_image") || line.contains(&process.url);
    let url = [
        ("IGA_URL", process.url.as_str()),
        ("PORT", if line.contains("health") { port } else { "0" }),
    ];
    let mut command = clone.command(&line, &emulator, &[CURRENT, &url].concat());
    let output = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{place}\n{stdout}{stderr}");
    if calls_the_service {
        let uri = format!("gs://{BUCKET}/{}", only_image(&emulator).name);
        assert!(stdout.contains(&uri), "{place}\n{stdout}{stderr}");
    } else if line == "cargo run" || line.contains(" invoke") {
        assert!(stdout.contains("gs://"), "{place}\n{stdout}{stderr}");
    }
}

async fn run_until_stopped(clone: &Clone, line: &str, place: &str) {
    let emulator = emulator().await;
    let settings = &[CURRENT, &[("PORT", "0"), ("IGA_LOG_FORMAT", "json")]].concat();
    let mut command = clone.command(line, &emulator, settings);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let is_service = line.contains(" serve");
    let url = loop {
        let line = lines.next_line().await.unwrap().unwrap_or_else(|| panic!("{place}: it ended"));
        let log: Value = serde_json::from_str(&line).unwrap_or_default();
        match log["address"].as_str().filter(|_| log["message"] == "listening") {
            Some(address) => break format!("http://{address}/health"),
            None if !is_service && line.starts_with("http://") => {
                break format!("{line}/_emulator/counters");
            }
            None => {}
        }
    };
    let status = client().get(&url).send().await.unwrap().status();
    assert_eq!(status, 200, "{place}");
    let group = format!("-{}", child.id().unwrap());
    let stop = std::process::Command::new("kill").args(["-INT", "--", &group]).status();
    assert!(stop.unwrap().success(), "{place}");
    while lines.next_line().await.unwrap().is_some() {}
    child.wait().await.unwrap();
}

#[tokio::test]
#[ignore = "needs Python with the package requests"]
async fn the_python_of_the_pages_runs() {
    let blocks = blocks_in("python");
    assert!(!blocks.is_empty());
    for Block { page, line, text, .. } in blocks {
        let emulator = emulator().await;
        let process = Process::start(&emulator, CURRENT).await;
        let program = text.replace("http://localhost:5007", &process.url);
        let mut command = Command::new(python());
        command.args(["-c", &program]).env("NO_PROXY", "127.0.0.1").kill_on_drop(true);
        let output = command.output().await.unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let uri = format!("gs://{BUCKET}/{}", only_image(&emulator).name);
        assert_eq!(stdout.trim(), uri, "{page}:{line}: {stderr}");
    }
}
