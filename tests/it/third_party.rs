//! The whole way with Cloud Storage played by `gcp-storage-emulator`, which knows nothing of this crate.

use crate::support::process::command;
use crate::support::service::{BUCKET, CURRENT, Service};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use iga_emulator::{Emulator, Options};
use reqwest::{Client, Response, Url};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// A Cloud Storage of another author, with one empty bucket; ends when dropped.
struct ThirdParty {
    process: Child,
    address: SocketAddr,
}

impl ThirdParty {
    /// Starts the program that `IGA_TEST_GCP_STORAGE_EMULATOR` names, else the one on the path.
    async fn start() -> ThirdParty {
        let program =
            std::env::var_os("IGA_TEST_GCP_STORAGE_EMULATOR").unwrap_or(OsString::from(PROGRAM));
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let process = Command::new(program)
            .args([
                "start",
                "--in-memory",
                "--quiet",
                "--host",
                &host,
                "--port",
                &port,
                "--default-bucket",
                BUCKET,
            ])
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let process = process.expect("gcp-storage-emulator can be started");
        ThirdParty { process, address }.listening().await
    }

    async fn listening(mut self) -> ThirdParty {
        let connected = async {
            while TcpStream::connect(self.address).await.is_err() {
                assert_eq!(self.process.try_wait().unwrap(), None, "{PROGRAM} ended");
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(60), connected).await.expect("it listens at last");
        self
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn get(&self, name: &str, query: &str) -> Response {
        let mut url = Url::parse(&self.url()).unwrap();
        url.path_segments_mut().unwrap().extend(["storage", "v1", "b", BUCKET, "o", name]);
        url.set_query(Some(query));
        let http = Client::builder().no_proxy().build().unwrap();
        http.get(url).send().await.unwrap().error_for_status().unwrap()
    }
}

#[tokio::test]
#[ignore = "needs gcp-storage-emulator"]
async fn another_cloud_storage_holds_what_the_model_sent() {
    let third_party = ThirdParty::start().await;
    let emulator = Emulator::start(Options::default()).await.unwrap();
    let url = third_party.url();
    let settings = [CURRENT, &[("STORAGE_EMULATOR_HOST", &url)]].concat();
    let service = Service::on(emulator, &settings).await;

    for (first_bytes, len, content_type, extension) in [
        (&b"\x89PNG\r\n\x1a\n"[..], 70, "image/png", ".png"),
        (b"\xff\xd8\xff\xe0", 5_000_003, "image/jpeg", ".jpg"),
    ] {
        let image = image(first_bytes, len);
        service.emulator.clear_faults();
        service.model_answers(200, model_answer(&image));
        // Each row its own prompt: an equal one soon afterwards would be taken for a retry.
        let answer = service.post(json!({"prompt": content_type})).await;
        let name =
            answer.is_image().text("image_url").strip_prefix(&format!("gs://{BUCKET}/")).unwrap();
        assert!(name.ends_with(extension), "{name}");

        let media = third_party.get(name, "alt=media").await;
        assert_eq!(media.headers()["content-type"], content_type);
        assert!(media.bytes().await.unwrap() == image, "the bytes are those that the model sent");

        let object = third_party.get(name, "").await.bytes().await.unwrap();
        let object: Value = serde_json::from_slice(&object).unwrap();
        assert_eq!((&object["name"], &object["contentType"]), (&json!(name), &json!(content_type)));
        assert_eq!(object["size"], image.len().to_string());
        assert_eq!(object["crc32c"], BASE64_STANDARD.encode(crc32c::crc32c(&image).to_be_bytes()));
        let metadata = &object["metadata"];
        assert_eq!(metadata["request_id"], answer.header("x-request-id"));
        assert_eq!(metadata["model"], "gemini-3.1-flash-image");
        assert_eq!(metadata["prompt_sha256"].as_str().unwrap().len(), 64);
    }
    assert!(service.emulator.objects().is_empty());
}

#[tokio::test]
#[ignore = "needs gcp-storage-emulator"]
async fn the_doctor_leaves_nothing_behind_in_another_cloud_storage() {
    let third_party = ThirdParty::start().await;
    let emulator = Emulator::start(Options::default()).await.unwrap();
    let url = third_party.url();
    let settings = [CURRENT, &[("STORAGE_EMULATOR_HOST", &url)]].concat();
    let output = command(&emulator, &settings).arg("doctor").output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // This emulator does not know preconditions, by which instances agree.
    assert!(text.contains("FAIL  bucket") && text.contains("ignores ifGenerationMatch"), "{text}");
    let all =
        Client::builder().no_proxy().build().unwrap().get(format!("{url}/storage/v1/b/{BUCKET}/o"));
    let all: Value =
        serde_json::from_slice(&all.send().await.unwrap().bytes().await.unwrap()).unwrap();
    assert!(all["items"].as_array().is_none_or(Vec::is_empty), "{all}");
}

/// Bytes of every value after the signature, line ends and dashes among them.
fn image(first_bytes: &[u8], len: usize) -> Vec<u8> {
    let rest = (0..len - first_bytes.len()).map(|n| (n * n / 7 + n) as u8);
    first_bytes.iter().copied().chain(rest).collect()
}

fn model_answer(image: &[u8]) -> String {
    let part =
        json!({"inlineData": {"mimeType": "image/png", "data": BASE64_STANDARD.encode(image)}});
    json!({"candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}]})
        .to_string()
}

const PROGRAM: &str = "gcp-storage-emulator";
