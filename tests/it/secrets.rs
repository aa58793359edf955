//! No output holds a secret: secrets stand in every place that can hold one, and every step fails.

use crate::support::process::command;
use crate::support::service::{CURRENT, emulator};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use iga::config::settings::SETTINGS;
use iga_emulator::{Action, Emulator, Fault, Stage};
use serde_json::{Value, json};
use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::task::Poll;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

const SECRET: &str = "MaRk7erS3cret9Zq";
const ENOUGH_TIME: &[(&str, &str)] = &[("IGA_GENERATION_DEADLINE_SECONDS", "180")];
const KEY: &str = include_str!("test_key.pem");

/// Whether a text holds a secret: as text, in base64 at any offset, in hexadecimal, or as decimal bytes.
fn holds(text: &str, secret: &str) -> bool {
    let bytes = secret.as_bytes();
    let decimal = bytes.iter().map(u8::to_string).collect::<Vec<_>>();
    let mut forms = vec![
        secret.to_owned(),
        bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        decimal.join(", "),
        decimal.join(","),
    ];
    for offset in 0..3 {
        // The first and last characters of base64 depend on the neighbouring bytes.
        let padded = [vec![b'x'; offset], bytes.to_vec()].concat();
        let encoded = BASE64_STANDARD.encode(&padded[..padded.len() / 3 * 3]);
        forms.push(encoded[if offset == 0 { 0 } else { 4 }..].to_owned());
    }
    forms.iter().any(|form| text.contains(form.as_str()))
}

#[test]
fn the_search_finds_every_encoding() {
    assert!(!holds("nothing here", SECRET));
    for before in ["", "a", "ab", "abc"] {
        let base64 = BASE64_STANDARD.encode(format!("{before}{SECRET}yz"));
        let bytes = format!("{:?}", format!("{before}{SECRET}").as_bytes());
        for text in [format!("{before}{SECRET}"), base64, bytes] {
            assert!(holds(&text, SECRET), "{text}");
        }
    }
}

/// A server that refuses every request and echoes it, like a careless token endpoint.
fn echo(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || repeat(stream, status));
        }
    });
    address.to_string()
}

fn repeat(mut stream: TcpStream, status: &str) -> std::io::Result<()> {
    let mut received = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&received).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
            });
            if body.len() >= length.unwrap_or(0) {
                break;
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            count => received.extend_from_slice(&chunk[..count]),
        }
    }
    let echoed = String::from_utf8_lossy(&received);
    let body = json!({"error": SECRET, "error_subtype": echoed, "error_description": echoed,
        "status": SECRET, "message": echoed})
    .to_string();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Echo: {SECRET}");
    write!(stream, "{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// All outputs with these settings: of the doctor, of the service, to its caller, and in the bucket.
async fn outputs(emulator: &Emulator, folder: &Path, settings: &[(&str, &str)]) -> String {
    let iga = |words: &[&str]| {
        let mut command = command(emulator, settings);
        command.args(words).current_dir(folder).env("HOME", folder);
        command
    };
    let (mut doctor, mut doctor_json) = (iga(&["doctor"]), iga(&["doctor", "--json"]));
    let (text, json, mut all) =
        tokio::join!(doctor.output(), doctor_json.output(), served(iga(&[])));
    for output in [text.unwrap(), json.unwrap()] {
        all += &String::from_utf8_lossy(&[output.stdout, output.stderr].concat());
    }
    for object in emulator.objects() {
        all += &format!("{object:?}");
    }
    all
}

/// The output of the service and the responses to its caller.
async fn served(mut service: Command) -> String {
    let mut all = String::new();
    let mut service = service.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(service.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        all += &line;
        let line: Value = serde_json::from_str(&line).unwrap_or_default();
        if line["message"] == "listening" {
            all += &ask(&format!("http://{}", line["address"].as_str().unwrap())).await;
            let pid = service.id().unwrap().to_string();
            std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        }
    }
    let mut stderr = service.stderr.take().unwrap();
    stderr.read_to_string(&mut all).await.unwrap();
    service.wait().await.unwrap();
    all
}

/// Sends requests with secrets in every header that may hold one, in the query, and at the end of the prompt.
async fn ask(url: &str) -> String {
    let prompt = format!("{} {SECRET}", "A red fox in fresh snow, ".repeat(4));
    let mut received = String::new();
    for path in
        ["/generate_image", &format!("/generate_image?key={SECRET}"), &format!("/?token={SECRET}")]
    {
        let request = crate::support::service::client()
            .post(format!("{url}{path}"))
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {SECRET}"))
            .header("proxy-authorization", format!("Basic {SECRET}"))
            .header("cookie", format!("session={SECRET}"))
            .header("x-api-key", SECRET)
            .header("idempotency-key", SECRET)
            .body(json!({"prompt": prompt, "api_key": SECRET}).to_string());
        let response = request.send().await.unwrap();
        received += &format!("{:?}", response.headers());
        let body = response.text().await.unwrap();
        // A response contains the caller's own prompt by contract.
        received += &body.replace(&serde_json::to_string(&prompt).unwrap(), "");
    }
    received
}

/// Waits for all of them at once: they mostly wait between tries.
async fn all(cases: impl IntoIterator<Item = impl Future<Output = ()>>) {
    let mut open: Vec<_> = cases.into_iter().map(Box::pin).collect();
    poll_fn(|context| {
        open.retain_mut(|case| case.as_mut().poll(context).is_pending());
        if open.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Asserts that no output holds the secret, a token, or a line of the private key.
async fn assert_no_secret(
    what: &str,
    emulator: &Emulator,
    folder: &Path,
    settings: &[(&str, &str)],
) -> String {
    // The deadline leaves time for one retry.
    let usual = [("IGA_DEBUG_MODE", "False"), ("IGA_GENERATION_DEADLINE_SECONDS", "3")];
    let text = outputs(emulator, folder, &[CURRENT, &usual, settings].concat()).await;
    let lines = KEY.lines().filter(|line| !line.starts_with('-'));
    for secret in lines.chain([SECRET, "ya29."]) {
        // A library may print any part of a key, so search for the middle of a line.
        let middle = &secret[secret.len().min(32) / 4..secret.len().min(32)];
        assert!(
            !holds(&text, if secret.len() > 32 { middle } else { secret }),
            "{what}: {secret} in:\n{text}"
        );
    }
    text
}

/// Like `assert_no_secret`, with a credentials file.
async fn assert_no_secret_with_file(
    what: &str,
    emulator: &Emulator,
    file: &str,
    settings: &[(&str, &str)],
) -> String {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("credentials.json");
    std::fs::write(&path, file).unwrap();
    let path = [("GOOGLE_APPLICATION_CREDENTIALS", path.to_str().unwrap())];
    assert_no_secret(what, emulator, folder.path(), &[settings, &path].concat()).await
}

fn account(private_key: &str) -> Value {
    json!({"type": "service_account", "project_id": SECRET, "private_key_id": SECRET, "private_key": private_key,
        "client_email": "iga@test-project.iam.gserviceaccount.com", "token_uri": format!("http://x:{SECRET}@127.0.0.1:1/")})
}

fn user(token_uri: &str) -> Value {
    json!({"type": "authorized_user", "client_id": SECRET, "client_secret": SECRET, "refresh_token": SECRET,
        "account": SECRET, "token_uri": token_uri})
}

fn federated(token_url: &str, source: &Value) -> Value {
    json!({"type": "external_account", "audience": "//iam.googleapis.com/POOL/providers/p",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": token_url,
        "client_id": SECRET, "client_secret": SECRET, "credential_source": source})
}

#[tokio::test]
async fn a_healthy_service_shows_no_secret() {
    let (emulator, folder) = (emulator().await, TempDir::new().unwrap());
    let text = assert_no_secret("healthy", &emulator, folder.path(), ENOUGH_TIME).await;
    assert!(text.contains("\"image_url\""), "it made an image:\n{text}");
}

#[tokio::test]
async fn a_private_key_is_never_shown() {
    let emulator = emulator().await;
    let first = KEY.lines().nth(1).unwrap();
    let unusable = [
        ("literal line breaks", KEY.replace('\n', "\\n")),
        ("blanks", KEY.replace('\n', " ")),
        ("cut off", KEY[..KEY.len() / 2].to_owned()),
        ("encrypted", KEY.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY")),
        ("another type", KEY.replace("PRIVATE KEY", "RSA PRIVATE KEY")),
        ("damaged", KEY.replace(first, &format!("{SECRET}{}", &first[SECRET.len()..]))),
        ("not base64", KEY.replace(first, &format!("!!{SECRET}"))),
    ];
    all(unusable.map(async |(what, key)| {
        let text =
            assert_no_secret_with_file(what, &emulator, &account(&key).to_string(), &[]).await;
        assert!(text.contains("has a private_key") && text.contains("IGA cannot start"), "{text}");
    }))
    .await;
    assert_no_secret_with_file("good", &emulator, &account(KEY).to_string(), &[]).await;
    assert_no_secret_with_file("not JSON", &emulator, KEY, &[]).await;
    assert_no_secret_with_file("cut off JSON", &emulator, &account(KEY).to_string()[..900], &[])
        .await;
}

#[tokio::test]
async fn credentials_in_place_of_a_path_are_not_shown() {
    let (emulator, folder) = (emulator().await, TempDir::new().unwrap());
    let json = account(KEY).to_string();
    let base64 = BASE64_STANDARD.encode(&json);
    for value in [json.as_str(), &base64, &base64[..200], KEY, SECRET, &format!("/{SECRET}")] {
        let settings = [("GOOGLE_APPLICATION_CREDENTIALS", value)];
        assert_no_secret("in place of a path", &emulator, folder.path(), &settings).await;
    }
}

/// All at the same time, because each waits for its retries.
#[tokio::test]
async fn nothing_of_a_token_response_is_shown() {
    tokio::join!(
        credentials_that_a_token_endpoint_echoes_are_not_shown(),
        an_invalid_token_response_is_not_shown(),
        a_panic_of_the_credentials_library_shows_no_secret_and_is_503(),
    );
}

async fn credentials_that_a_token_endpoint_echoes_are_not_shown() {
    let emulator = emulator().await;
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let token = write("token", SECRET);
    let odd = write("odd.json", &json!({"other": SECRET}).to_string());
    let broken = write("broken.json", &format!("{{\"token\": {SECRET}"));
    let program =
        write("program", &format!("#!/bin/sh\necho {SECRET} | tee /dev/stderr\nexit 1\n"));
    let mut mode = std::fs::metadata(&program).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let echo = echo("400 Bad Request");
    let url = format!("http://{echo}/token");
    let with_user = format!("http://user:{SECRET}@{echo}/token");
    let json_format = json!({"type": "json", "subject_token_field_name": "token"});
    let imds = json!({"environment_id": "aws1", "url": url, "region_url": url, "imdsv2_session_token_url": url});
    let impersonation = format!("{url}/serviceAccounts/a@b:generateAccessToken");
    let impersonating = |mut file: Value| {
        file["service_account_impersonation_url"] = json!(impersonation);
        file
    };
    let good_sts = format!("{}/v1/token", emulator.url());
    let good_user = user(&format!("{}/token", emulator.url()));
    let impersonated = |source: &Value| {
        impersonating(json!({"type": "impersonated_service_account", "source_credentials": source}))
    };
    let files = [
        user(&url),
        user(&with_user),
        user(&format!("http://user:{SECRET}@[bad")),
        impersonated(&good_user),
        impersonated(&user(&url)),
        federated(&url, &json!({"file": token})),
        impersonating(federated(&good_sts, &json!({"file": token}))),
        federated(&url, &json!({"file": odd, "format": json_format})),
        federated(&url, &json!({"file": broken, "format": json_format})),
        federated(&url, &json!({"url": url, "headers": {"authorization": SECRET}})),
        federated(&url, &json!({"url": with_user, "headers": {"bad header": SECRET}})),
        federated(&url, &json!({"executable": {"command": format!("{program} {SECRET}")}})),
        federated(
            &url,
            &json!({"environment_id": SECRET, "regional_cred_verification_url": format!("http://{SECRET}")}),
        ),
        federated(&url, &imds),
        federated(&url, &json!({"nothing": SECRET})),
    ];
    all(files.iter().map(async |file| {
        let aws = match file["credential_source"] == imds {
            true => &[][..],
            false => &[
                ("AWS_REGION", "eu-west-1"),
                ("AWS_ACCESS_KEY_ID", SECRET),
                ("AWS_SECRET_ACCESS_KEY", SECRET),
                ("AWS_SESSION_TOKEN", SECRET),
            ],
        };
        let allowed = [("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")];
        let text = assert_no_secret_with_file(
            &file.to_string(),
            &emulator,
            &file.to_string(),
            &[aws, &allowed].concat(),
        )
        .await;
        let fails = ["No usable Google credentials", "no access token from the file"];
        assert!(fails.iter().any(|words| text.contains(words)), "{file}:\n{text}");
    }))
    .await;
}

async fn an_invalid_token_response_is_not_shown() {
    let responses = [
        (200, json!({"access_token": [SECRET], "token_type": SECRET})),
        (200, json!(SECRET)),
        (403, json!({"error": {"status": SECRET, "message": SECRET}})),
        (404, json!({"error": "invalid_grant", "error_description": SECRET})),
    ];
    all(responses.map(async |(status, body)| {
        let (emulator, folder) = (emulator().await, TempDir::new().unwrap());
        let response = Action::response_with(status, "application/json", body.to_string());
        emulator.script(Fault::new(Stage::Token, response).always());
        assert_no_secret("token response", &emulator, folder.path(), &[]).await;
    }))
    .await;
}

async fn a_panic_of_the_credentials_library_shows_no_secret_and_is_503() {
    let emulator = emulator().await;
    // The library panics on a token that has expired.
    let body = json!({"accessToken": SECRET, "expireTime": "2001-01-01T00:00:00Z"}).to_string();
    let expired = Action::response_with(200, "application/json", body);
    let fault = Fault::new(Stage::Token, expired).matching(":generateAccessToken");
    emulator.script(fault.always());
    let file = json!({"type": "impersonated_service_account",
        "source_credentials": user(&format!("{}/token", emulator.url())),
        "service_account_impersonation_url": format!("{}/v1/projects/-/serviceAccounts/a@b:generateAccessToken", emulator.url())});
    let text = assert_no_secret_with_file("panic", &emulator, &file.to_string(), &[]).await;
    for words in
        ["message withheld", "Google's library failed", "Service Unavailable: no access token"]
    {
        assert!(text.contains(words), "{words}:\n{text}");
    }
}

#[tokio::test]
async fn a_refused_token_is_not_shown() {
    let stages = [Stage::Model, Stage::UploadStart, Stage::Read, Stage::Delete];
    let refusals = stages.into_iter().flat_map(|stage| [(stage, 401), (stage, 403)]);
    all(refusals.map(async |(stage, status)| {
        let (emulator, folder) = (emulator().await, TempDir::new().unwrap());
        emulator.script(Fault::new(stage, Action::status(status)).always());
        assert_no_secret("refused", &emulator, folder.path(), &[]).await;
    }))
    .await;
}

#[tokio::test]
async fn no_variable_is_shown_that_may_hold_a_secret() {
    let (emulator, folder) = (emulator().await, TempDir::new().unwrap());
    let names: Vec<_> = SETTINGS.iter().flat_map(|setting| setting.names).copied().collect();
    for value in
        [format!("http://user:{SECRET}@[bad"), format!("{{\"private_key\": \"{SECRET}\"}}")]
    {
        let mut settings: Vec<_> = names.iter().map(|name| (*name, value.as_str())).collect();
        settings.push(("IGA_TYPO", &value));
        let text = assert_no_secret("settings", &emulator, folder.path(), &settings).await;
        assert!(text.contains("IGA cannot start"), "{text}");
    }
    let url = format!("http://user:{SECRET}@127.0.0.1:1");
    for name in ["STORAGE_EMULATOR_HOST", "IGA_VERTEXAI_ENDPOINT", "GCE_METADATA_HOST"] {
        let text = assert_no_secret(name, &emulator, folder.path(), &[(name, &url)]).await;
        assert!(text.contains("IGA cannot start"), "{text}");
    }
}

#[tokio::test]
async fn no_line_of_the_env_file_is_shown() {
    let (emulator, folder) = (emulator().await, TempDir::new().unwrap());
    for line in [
        format!("DB_PASSWORD={SECRET} and more"),
        format!("DB_PASSWORD=\"{SECRET}"),
        SECRET.to_owned(),
        format!("{SECRET}="),
        format!("IGA_PORT = '{SECRET}"),
        format!("DB_PASSWORD={SECRET}\0"),
    ] {
        std::fs::write(folder.path().join(".env"), format!("A=b\n{line}\n")).unwrap();
        let text = assert_no_secret(&line, &emulator, folder.path(), &[]).await;
        let is_refused = text.contains("the file .env cannot be read: line 2 has a zero byte");
        assert_eq!(is_refused, line.contains('\0'), "{text}");
    }
}

#[tokio::test]
async fn the_password_of_a_proxy_is_not_shown() {
    all(["407 Proxy Authentication Required", "502 Bad Gateway"].map(async |status| {
        let (emulator, folder) = (emulator().await, TempDir::new().unwrap());
        let proxy = format!("http://user:{SECRET}@{}", echo(status));
        let settings = [
            ("HTTPS_PROXY", proxy.as_str()),
            ("HTTP_PROXY", &proxy),
            ("IGA_VERTEXAI_ENDPOINT", "https://vertex.example.com"),
        ];
        let text = assert_no_secret(status, &emulator, folder.path(), &settings).await;
        assert!(text.contains("tunnel"), "the proxy was asked:\n{text}");
    }))
    .await;
}

#[tokio::test]
async fn token_sources_are_not_asked_through_a_proxy() {
    let emulator = emulator().await;
    let folder = TempDir::new().unwrap();
    let proxy = format!("http://{}", echo("200 OK"));
    let settings =
        [("HTTP_PROXY", proxy.as_str()), ("ALL_PROXY", &proxy), ("NO_PROXY", "example.com")];
    let settings = [ENOUGH_TIME, &settings].concat();
    let text = assert_no_secret("metadata server", &emulator, folder.path(), &settings).await;
    assert!(text.contains("\"image_url\"") && emulator.counters().token_fetches > 0, "{text}");
}
