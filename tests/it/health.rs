//! `iga health` and the other words of the command line.

use crate::support::process::{Process, command};
use crate::support::service::emulator;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Output};

/// Runs `iga` with these words and only `PORT` in its environment.
fn iga(words: &[&str], port: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iga"));
    command
        .args(words)
        .env_clear()
        .env("PORT", port)
        .current_dir(std::env::temp_dir())
        .output()
        .unwrap()
}

fn code_and_stderr(output: &Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn port_of(listener: &TcpListener) -> String {
    listener.local_addr().unwrap().port().to_string()
}

#[tokio::test]
async fn a_running_service_is_healthy_without_any_other_setting() {
    let emulator = emulator().await;
    let process = Process::start(&emulator, &[]).await;
    let port = process.url.rsplit(':').next().unwrap();
    assert_eq!(code_and_stderr(&iga(&["health"], port)), (Some(0), String::new()));
    let with_settings = command(&emulator, &[("PORT", port)]).arg("health").output().await.unwrap();
    assert_eq!(code_and_stderr(&with_settings), (Some(0), String::new()));
}

#[test]
fn a_port_without_a_listener_is_unhealthy() {
    let port = "1";
    let (code, text) = code_and_stderr(&iga(&["health"], port));
    assert_eq!(code, Some(1));
    assert!(
        text.starts_with(&format!("No response from http://127.0.0.1:{port}/health: ")),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn a_response_other_than_200_is_unhealthy() {
    for (response, words) in [
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"),
        ("SSH-2.0-x\r\n", "SSH-2.0"),
        ("", "\"\""),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = port_of(&listener);
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            // Read first, because closing a socket with unread bytes resets the connection.
            let _ = std::io::Read::read(&mut socket, &mut [0; 1024]);
            socket.write_all(response.as_bytes()).unwrap();
        });
        let (code, text) = code_and_stderr(&iga(&["health"], &port));
        assert!(
            code == Some(1) && text.contains(words) && text.contains("instead of 200"),
            "{text}"
        );
        server.join().unwrap();
    }
}

#[test]
fn a_silent_listener_is_unhealthy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, text) = code_and_stderr(&iga(&["health"], &port_of(&listener)));
    assert!(code == Some(1) && text.contains("nothing arrived within"), "{text}");
}

#[test]
fn an_invalid_port_is_unhealthy_with_code_1() {
    let (code, text) = code_and_stderr(&iga(&["health"], "eighty"));
    assert!(code == Some(1) && text.starts_with("PORT must be a whole number"), "{text}");
}

#[test]
fn help_and_version_are_printed_and_other_words_are_refused() {
    for words in [["--help"], ["-h"]] {
        let output = iga(&words, "");
        assert!(output.status.success() && output.stdout.starts_with(b"Usage: iga"));
    }
    for words in [["--version"], ["-V"]] {
        assert_eq!(
            iga(&words, "").stdout,
            format!("iga {}\n", env!("CARGO_PKG_VERSION")).as_bytes()
        );
    }
    for words in [&["serve"][..], &["health", "now"], &["--port=1"], &[""]] {
        let (code, text) = code_and_stderr(&iga(words, ""));
        assert!(code == Some(2) && text.starts_with("Usage: iga"), "{text}");
    }
}
