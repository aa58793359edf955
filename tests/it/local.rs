//! `iga-local` as a tool: what it prints, and which errors name what.

use crate::support::local::{Playground, iga_local};
use crate::support::service::{BUCKET, client, emulator_with};
use iga_emulator::Options;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

/// The exit code, standard output and standard error.
async fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

async fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let folder = TempDir::new().unwrap();
    output(iga_local(folder.path()).args(arguments)).await
}

#[tokio::test]
async fn it_has_a_name_of_its_own() {
    let (code, text, _) = run(&["-V"]).await;
    assert_eq!((code, text), (Some(0), format!("iga-local {}\n", env!("CARGO_PKG_VERSION"))));
}

#[tokio::test]
async fn what_it_does_not_know_is_named() {
    for (arguments, words) in [
        (&["paint"][..], "unrecognized subcommand 'paint'"),
        (&["serve", "now"], "unexpected argument 'now'"),
        (&["serve", "--fast"], "unexpected argument '--fast'"),
        (&["serve", "--latency-ms", "soon"], "invalid value 'soon' for '--latency-ms"),
    ] {
        let (code, _, text) = run(arguments).await;
        assert!(code == Some(2) && text.contains(words), "{arguments:?}: {text}");
    }
}

#[tokio::test]
async fn options_that_exclude_each_other_are_refused() {
    for (arguments, words) in [
        (&["emulator", "--google"][..], "'--google' cannot be used with 'emulator'"),
        (&["--google", "emulator"], "'--google' cannot be used with 'emulator'"),
        (&["--google", "serve", "--open"], "'--google' cannot be used with '--open'"),
        (
            &["serve", "--google", "--emulator", "http://x"],
            "cannot be used with '--emulator <URL>'",
        ),
        (&["serve", "--open", "--emulator", "http://x"], "cannot be used with"),
    ] {
        let (code, _, text) = run(arguments).await;
        assert!(code == Some(2) && text.contains(words), "{arguments:?}: {text}");
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_named() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    for command in [&["serve"][..], &["emulator"], &["invoke"]] {
        for dir in ["/proc/nope", "file", "file/below"] {
            let mut local = iga_local(folder.path());
            let (code, text, problem) = output(local.args(command).args(["--dir", dir])).await;
            let named = format!("The folder {dir} (--dir) cannot be used for images: ");
            assert!(code == Some(1) && problem.starts_with(&named), "{command:?} {dir}: {problem}");
            assert!(text.is_empty() && !problem.contains("port"), "{text}{problem}");
        }
    }
}

#[tokio::test]
async fn a_bucket_folder_that_is_a_file_is_named() {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("images")).unwrap();
    std::fs::write(folder.path().join("images").join(BUCKET_FOLDER), "").unwrap();
    let (code, _, problem) = output(iga_local(folder.path()).arg("serve")).await;
    let named = format!("cannot create images/{BUCKET_FOLDER}");
    assert!(code == Some(1) && problem.contains(&named), "{problem}");
}

const BUCKET_FOLDER: &str = "iga-images";

#[tokio::test]
async fn it_says_where_to_try_it_once_it_listens() {
    let playground = Playground::start(&["--latency-ms", "0"], &[]).await;
    let address = playground.url.strip_prefix("http://").unwrap();
    assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{address}");
    let (_, line) = playground.announcement.split_once("Try").unwrap();
    let command = line.trim();
    assert!(command.starts_with(&format!("curl {}/generate_image ", playground.url)), "{command}");
    let health = client().get(format!("{}/health", playground.url)).send().await.unwrap();
    assert_eq!(health.status(), 200);

    // The next one finds the port taken and says nothing else.
    let folder = TempDir::new().unwrap();
    let port = address.rsplit_once(':').unwrap().1;
    let mut second = iga_local(folder.path());
    let (code, text, problem) = output(second.arg("serve").env("IGA_PORT", port)).await;
    assert_eq!((code, text.as_str()), (Some(1), ""));
    assert!(problem.contains(&format!("IGA cannot listen on {address}")), "{problem}");
    assert!(problem.contains("set IGA_PORT to use another"), "{problem}");
}

#[tokio::test]
async fn a_host_of_another_machine_is_warned_of_and_named() {
    let folder = TempDir::new().unwrap();
    // No machine has this address (RFC 5737).
    let mut command = iga_local(folder.path());
    let (code, text, problem) = output(command.arg("serve").env("IGA_HOST", "192.0.2.1")).await;
    assert_eq!(code, Some(1));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let warning = lines.iter().find(|line| line["severity"] == "WARNING").expect(&text);
    let message = warning["message"].as_str().unwrap();
    assert!(message.contains("IGA_HOST is 192.0.2.1: other machines can use"), "{message}");
    assert!(problem.contains("192.0.2.1:0") && problem.contains("set IGA_HOST"), "{problem}");
}

#[tokio::test]
async fn an_event_may_come_on_standard_input() {
    let folder = TempDir::new().unwrap();
    let mut command = iga_local(folder.path());
    command.args(["invoke", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut input = process.stdin.take().unwrap();
    input.write_all(br#"{"prompt": "a fox from standard input"}"#).await.unwrap();
    drop(input);
    let output = process.wait_with_output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.starts_with("Event     standard input\n"), "{text}");
    assert!(text.contains(r#""prompt_used": "a fox from standard input""#), "{text}");
    let path = text.lines().find_map(|line| line.strip_prefix("Image     ")).unwrap();
    assert!(Path::new(path).is_file(), "{path}");
}

#[tokio::test]
async fn a_second_instance_ends_with_the_process_that_started_it() {
    let (emulator, folder) = (emulator_with(Options::default()).await, TempDir::new().unwrap());
    let mut command = iga_local(folder.path());
    command.args(["serve", "--until-stdin-ends", "--emulator", &emulator.url()]);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    while !lines.next_line().await.unwrap().expect("it listens").contains("listening") {}
    drop(process.stdin.take());
    assert!(process.wait().await.unwrap().success());
}

#[tokio::test]
async fn the_playground_opens_in_the_browser() {
    let folder = TempDir::new().unwrap();
    let opened = folder.path().join("opened");
    // Linux opens a URL with xdg-open, macOS with open.
    for name in ["xdg-open", "open"] {
        let program = folder.path().join(name);
        let partial = opened.with_extension("partial");
        let script = format!(
            "#!/bin/sh\nprintf %s \"$1\" >{0}\nmv {0} {1}\n",
            partial.display(),
            opened.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let playground = Playground::start(&["--open"], &[("PATH", &path)]).await;
    crate::support::service::eventually(|| opened.exists()).await;
    assert_eq!(std::fs::read_to_string(&opened).unwrap(), format!("{}/", playground.url));
}

/// Runs `iga-local --google invoke`, or a program that runs it, against an emulator whose model takes a while.
async fn slow_invocation(program: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let latency = Duration::from_millis(2500);
    let emulator = emulator_with(Options { latency, ..Options::default() }).await;
    let folder = TempDir::new().unwrap();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder.path()).kill_on_drop(true).stdin(Stdio::null());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.envs([
        ("STORAGE_EMULATOR_HOST", emulator.url()),
        ("IGA_VERTEXAI_ENDPOINT", emulator.url()),
        ("GCE_METADATA_HOST", emulator.host()),
    ]);
    command.envs([
        ("GCS_BUCKET_NAME", BUCKET),
        ("GCP_PROJECT_ID", "test-project"),
        ("GCP_LOCATION", "us-central1"),
    ]);
    output(&mut command).await
}

#[tokio::test]
async fn progress_is_not_shown_without_a_terminal() {
    let arguments = ["--google", "invoke"];
    let (code, text, problem) = slow_invocation(IGA_LOCAL, &arguments).await;
    assert_eq!((code, problem.as_str()), (Some(0), ""), "{text}");
    assert!(text.contains("Response  200") && !text.contains("Generating"), "{text}");
}

/// `script` of util-linux gives the program a terminal.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn progress_is_shown_on_a_terminal() {
    let command = format!("{IGA_LOCAL} --google invoke");
    let arguments = ["--quiet", "--return", "--command", &command, "/dev/null"];
    let (code, text, _) = slow_invocation("script", &arguments).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("\rGenerating an image: 1 s") && text.contains("Response  200"),
        "{text:?}"
    );
}

const IGA_LOCAL: &str = env!("CARGO_BIN_EXE_iga-local");
