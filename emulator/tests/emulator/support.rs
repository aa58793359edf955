//! An emulator with a plain HTTP client.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use iga_emulator::{Emulator, Options};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const FLASH: &str = "gemini-3.1-flash-image";
pub const BANANA: &str = "gemini-nano-banana-2.1";
pub const BUCKET: &str = "emulated-images";

/// An emulator, a client, and a valid token.
pub struct Setup {
    pub emulator: Emulator,
    pub client: Client,
    pub token: String,
}

impl Setup {
    pub async fn new() -> Self {
        Self::with(unlimited()).await
    }

    pub async fn with(options: Options) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = Options { buckets: vec![BUCKET.to_owned()], ..options };
        let emulator = Emulator::start(options).await.expect("a free port");
        let client = Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            // Tells these requests, of which many are wrong on purpose, from others in a journal.
            .user_agent("emulator-tests")
            .build()
            .expect("a client without TLS roots in use");
        let mut setup = Self { emulator, client, token: String::new() };
        setup.token = setup.fresh_token().await;
        setup
    }

    pub async fn fresh_token(&self) -> String {
        let path = "/computeMetadata/v1/instance/service-accounts/default/token";
        let response = self
            .client
            .get(self.emulator.url() + path)
            .header("metadata-flavor", "Google")
            .send()
            .await;
        json_of(response.expect("a response")).await["access_token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.emulator.url() + path).bearer_auth(&self.token)
    }

    pub fn model(&self, location: &str, model: &str, verb: &str, body: &Value) -> RequestBuilder {
        let path =
            format!("/v1/projects/p1/locations/{location}/publishers/google/models/{model}:{verb}");
        self.request(Method::POST, &path).body(body.to_string())
    }

    pub fn gemini(&self, model: &str, prompt: &str, config: Value) -> RequestBuilder {
        let contents = json!([{"role": "user", "parts": [{"text": prompt}]}]);
        self.model(
            "global",
            model,
            "generateContent",
            &json!({"contents": contents, "generationConfig": config}),
        )
    }

    pub fn imagen(&self, prompt: &str, parameters: Value) -> RequestBuilder {
        let body = json!({"instances": [{"prompt": prompt}], "parameters": parameters});
        self.model("us-central1", "imagegeneration@006", "predict", &body)
    }

    /// A media upload, refused where the object exists.
    pub fn create(&self, name: &str, bytes: &'static [u8]) -> RequestBuilder {
        let path = format!(
            "/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}&ifGenerationMatch=0"
        );
        self.request(Method::POST, &path).header("content-type", "image/png").body(bytes)
    }

    /// A multipart upload of an object that is all metadata; `if_generation` is a precondition.
    pub fn write_record(
        &self,
        name: &str,
        metadata: Value,
        if_generation: Option<&str>,
    ) -> RequestBuilder {
        let mut path = format!("/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart");
        path += &if_generation.map_or(String::new(), |at| format!("&ifGenerationMatch={at}"));
        let metadata = json!({"name": name, "metadata": metadata});
        let body = format!(
            "--XYZ\r\nContent-Type: application/json\r\n\r\n{metadata}\r\n\
             --XYZ\r\nContent-Type: text/plain\r\n\r\n\r\n--XYZ--\r\n"
        );
        let request = self.request(Method::POST, &path).body(body);
        request.header("content-type", "multipart/related; boundary=XYZ")
    }

    pub fn stat(&self, name: &str) -> RequestBuilder {
        self.request(Method::GET, &object_path(name))
    }

    pub fn delete(&self, name: &str) -> RequestBuilder {
        self.request(Method::DELETE, &object_path(name))
    }

    /// Sends a request and returns all that arrives until the connection ends, head included.
    pub async fn raw(&self, path: &str, body: &Value) -> (Vec<u8>, std::io::Result<usize>) {
        let (host, token, body) = (self.emulator.host(), &self.token, body.to_string());
        let mut stream = TcpStream::connect(&host).await.expect("the emulator listens");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nUser-Agent: emulator-tests\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.expect("the emulator reads");
        let mut received = Vec::new();
        let end = stream.read_to_end(&mut received).await;
        (received, end)
    }

    pub async fn session(&self, name: &str) -> String {
        let path = format!("/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&name={name}");
        let response = self
            .request(Method::POST, &path)
            .header("x-upload-content-type", "image/png")
            .body("{}");
        let response = response.send().await.expect("a response");
        response.headers()["location"].to_str().expect("an address").to_owned()
    }

    pub fn chunk(&self, session: &str, range: &str, bytes: Vec<u8>) -> RequestBuilder {
        self.client.put(session).header("content-range", range).body(bytes)
    }
}

/// The default options without the limit of changes of an object.
pub fn unlimited() -> Options {
    Options { mutation_interval: None, ..Options::default() }
}

pub async fn json_of(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.expect("a whole body")).expect("JSON")
}

pub async fn send(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("a response");
    let status = response.status().as_u16();
    let body = response.bytes().await.expect("a whole body");
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

pub fn object_path(name: &str) -> String {
    format!("/storage/v1/b/{BUCKET}/o/{}", name.replace('/', "%2F"))
}

/// The reason in Cloud Storage's error.
pub fn reason(body: &Value) -> &str {
    body["error"]["errors"][0]["reason"].as_str().unwrap_or_default()
}

pub fn message(body: &Value) -> &str {
    body["error"]["message"].as_str().unwrap_or_default()
}

/// The first image of a Gemini response.
pub fn image_of(body: &Value) -> Vec<u8> {
    let data = &body["candidates"][0]["content"]["parts"][0]["inlineData"]["data"];
    STANDARD.decode(data.as_str().expect("a blob")).expect("base64")
}

/// Width and height of a PNG in base64.
pub fn png_size(data: &Value) -> (u32, u32) {
    let png = STANDARD.decode(data.as_str().expect("base64")).expect("base64");
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().expect("four bytes"));
    (number(16), number(20))
}
