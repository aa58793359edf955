//! The emulator seen from outside, through a plain HTTP client.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use reqwest::{Client, RequestBuilder, Response};

use super::objects::{crc32c, md5_hash};
use super::*;

const FLASH: &str = "gemini-3.1-flash-image";
const BANANA: &str = "gemini-nano-banana-2.1";
const BUCKET: &str = "pictures";

/// An emulator, a client, and a token that opens it.
struct Setup {
    emulator: Emulator,
    client: Client,
    token: String,
}

impl Setup {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = Options { buckets: vec![BUCKET.to_owned()], ..options };
        let emulator = Emulator::start(options).await.expect("a free port");
        let client =
            Client::builder().no_proxy().build().expect("a client without TLS roots in use");
        let mut setup = Self { emulator, client, token: String::new() };
        setup.token = setup.fresh_token().await;
        setup
    }

    async fn fresh_token(&self) -> String {
        let path = "/computeMetadata/v1/instance/service-accounts/default/token";
        let response = self
            .client
            .get(self.emulator.url() + path)
            .header("metadata-flavor", "Google")
            .send()
            .await;
        json_of(response.expect("an answer")).await["access_token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.emulator.url() + path).bearer_auth(&self.token)
    }

    fn model(&self, location: &str, model: &str, verb: &str, body: &Value) -> RequestBuilder {
        let path =
            format!("/v1/projects/p1/locations/{location}/publishers/google/models/{model}:{verb}");
        self.request(Method::POST, &path).body(body.to_string())
    }

    fn gemini(&self, model: &str, prompt: &str, config: Value) -> RequestBuilder {
        let contents = json!([{"role": "user", "parts": [{"text": prompt}]}]);
        self.model(
            "global",
            model,
            "generateContent",
            &json!({"contents": contents, "generationConfig": config}),
        )
    }

    fn imagen(&self, prompt: &str, parameters: Value) -> RequestBuilder {
        let body = json!({"instances": [{"prompt": prompt}], "parameters": parameters});
        self.model("us-central1", "imagegeneration@006", "predict", &body)
    }

    /// A media upload, refused where the object exists.
    fn create(&self, name: &str, bytes: &'static [u8]) -> RequestBuilder {
        let path = format!(
            "/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}&ifGenerationMatch=0"
        );
        self.request(Method::POST, &path).header("content-type", "image/png").body(bytes)
    }

    async fn session(&self, name: &str) -> String {
        let path = format!("/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&name={name}");
        let response = self
            .request(Method::POST, &path)
            .header("x-upload-content-type", "image/png")
            .body("{}");
        let response = response.send().await.expect("an answer");
        response.headers()["location"].to_str().expect("an address").to_owned()
    }

    fn chunk(&self, session: &str, range: &str, bytes: Vec<u8>) -> RequestBuilder {
        self.client.put(session).header("content-range", range).body(bytes)
    }
}

async fn json_of(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.expect("a whole body")).expect("JSON")
}

async fn send(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.bytes().await.expect("a whole body");
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn message(body: &Value) -> &str {
    body["error"]["message"].as_str().unwrap_or_default()
}

/// Width and height of a PNG in base64.
fn png_size(data: &Value) -> (u32, u32) {
    let png = STANDARD.decode(data.as_str().expect("base64")).expect("base64");
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().expect("four bytes"));
    (number(16), number(20))
}

#[tokio::test]
async fn gemini_answers_with_draft_text_and_picture() {
    let setup = Setup::new().await;
    let config = json!({"imageConfig": {"aspectRatio": "16:9"}});
    let (status, body) = send(setup.gemini(FLASH, "a red fox", config)).await;
    assert_eq!(status, 200);
    let parts = body["candidates"][0]["content"]["parts"].as_array().expect("parts");
    assert_eq!(parts[0]["thought"], true);
    assert!(parts[1]["text"].is_string());
    assert_eq!(png_size(&parts[2]["inlineData"]["data"]), (1376, 768));
    assert_eq!(setup.emulator.counters().paid_generations_by_model[FLASH], 1);
}

#[tokio::test]
async fn nano_banana_answers_with_the_picture_only() {
    let setup = Setup::new().await;
    let (_, body) =
        send(setup.gemini(BANANA, "a red fox", json!({"responseModalities": ["IMAGE"]}))).await;
    assert_eq!(body["candidates"][0]["content"]["parts"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn imagen_is_retired_unless_revived() {
    let setup = Setup::new().await;
    let (status, body) = send(setup.imagen("a fox", json!({"sampleCount": 1}))).await;
    assert_eq!(status, 404);
    assert!(
        message(&body).contains("imagegeneration@006 model has reached its end of life"),
        "{body}"
    );
    assert_eq!(setup.emulator.counters().paid_generations, 0);

    let setup = Setup::with(Options {
        revive: vec!["imagegeneration@006".to_owned()],
        ..Options::default()
    })
    .await;
    let parameters = json!({"sampleCount": 2.0, "aspectRatio": "9:16", "addWatermark": true});
    let (status, body) = send(setup.imagen("a fox", parameters)).await;
    assert_eq!((status, body["predictions"].as_array().map(Vec::len)), (200, Some(2)));
    assert_eq!(png_size(&body["predictions"][1]["bytesBase64Encoded"]), (768, 1408));
}

#[tokio::test]
async fn gemini_refuses_what_google_refuses() {
    let setup = Setup::new().await;
    let cases = [
        (
            FLASH,
            json!({"imageConfig": {"ratio": "1:1"}}),
            "Unknown name \"ratio\" at 'generation_config.image_config'",
        ),
        (
            FLASH,
            json!({"negativePrompt": "cats"}),
            "Unknown name \"negativePrompt\" at 'generation_config'",
        ),
        (FLASH, json!({"imageConfig": {"aspectRatio": "7:5"}}), "Aspect ratio is not enabled"),
        (
            "gemini-3-pro-image",
            json!({"imageConfig": {"aspectRatio": "8:1"}}),
            "Aspect ratio is not enabled",
        ),
        (BANANA, json!({"imageConfig": {"imageSize": "512"}}), "Image size 512"),
        (FLASH, json!({"imageConfig": {"imageSize": "2k"}}), "Image size 2k"),
        ("gemini-2.5-flash-image", json!({"imageConfig": {"imageSize": "1K"}}), "Image size 1K"),
        (
            "gemini-3.1-flash-lite-image",
            json!({"imageConfig": {"imageSize": "2K"}}),
            "Image size 2K",
        ),
        (BANANA, json!({"seed": 7}), "seed is not supported"),
        (BANANA, json!({"temperature": 1.0}), "temperature is not supported"),
        (BANANA, json!({"candidateCount": 2}), "candidateCount"),
        (BANANA, json!({"thinkingConfig": {"thinkingBudget": 5}}), "Thinking budget"),
        (
            "gemini-2.5-flash-image",
            json!({"thinkingConfig": {"thinkingLevel": "HIGH"}}),
            "Thinking level",
        ),
        (
            FLASH,
            json!({"seed": "7"}),
            "Invalid value at 'generation_config.seed' (TYPE_INT32), \"7\"",
        ),
        (
            FLASH,
            json!({"imageConfig": {"personGeneration": "dont_allow"}}),
            "image_config.person_generation",
        ),
        (FLASH, json!({"responseModalities": ["VIDEO"]}), "response modalities"),
    ];
    for (model, config, expected) in cases {
        let (status, body) = send(setup.gemini(model, "a fox", config.clone())).await;
        assert_eq!(status, 400, "{model} {config}");
        assert!(message(&body).contains(expected), "{model} {config}: {body}");
    }
    let (status, body) = send(setup.gemini(FLASH, "", json!({}))).await;
    assert_eq!((status, message(&body).contains("empty text parameter")), (400, true));
    let no_role = json!({"contents": [{"parts": [{"text": "a fox"}]}]});
    let (status, body) = send(setup.model("global", FLASH, "generateContent", &no_role)).await;
    assert_eq!((status, message(&body)), (400, "Please use a valid role: user, model."));
    let (status, _) = send(setup.model("us-central1", FLASH, "generateContent", &no_role)).await;
    assert_eq!(status, 404, "served in `global` only");
    let (status, _) = send(setup.model("global", FLASH, "predict", &no_role)).await;
    assert_eq!(status, 400, "the other family's verb");
    assert_eq!(setup.emulator.counters().paid_generations, 0);
}

#[tokio::test]
async fn imagen_refuses_what_google_refuses() {
    let setup = Setup::with(Options {
        revive: vec!["imagegeneration@006".to_owned()],
        ..Options::default()
    })
    .await;
    let cases = [
        (json!({"seed": 5}), "Seed is not supported when watermark is enabled."),
        (json!({"aspectRatio": "4:5"}), "Invalid aspect ratio, 4:5"),
        (json!({"personGeneration": "ALLOW_NONE"}), "personGeneration"),
        (json!({"sampleCount": 5}), "sampleCount"),
        (
            json!({"safetyFilterLevel": "block_few"}),
            "Unknown name \"safetyFilterLevel\" at 'parameters'",
        ),
    ];
    for (parameters, expected) in cases {
        let (status, body) = send(setup.imagen("a fox", parameters.clone())).await;
        assert_eq!(status, 400, "{parameters}");
        assert!(message(&body).contains(expected), "{parameters}: {body}");
    }
    let fine = json!({"seed": 5, "addWatermark": false, "personGeneration": "ALLOW_ADULT", "negativePrompt": "cats"});
    assert_eq!(send(setup.imagen("a fox", fine)).await.0, 200);
}

#[tokio::test]
async fn magic_prompts_choose_the_outcome() {
    let setup = Setup::with(Options {
        revive: vec!["imagegeneration@006".to_owned()],
        ..Options::default()
    })
    .await;
    for (word, status) in [("[quota]", 429), ("[overloaded]", 503), ("[denied]", 403)] {
        assert_eq!(send(setup.gemini(FLASH, word, json!({}))).await.0, status, "{word}");
        assert_eq!(send(setup.imagen(word, json!({}))).await.0, status, "{word}");
    }
    let (status, body) = send(setup.gemini(FLASH, "a [blocked] fox", json!({}))).await;
    assert_eq!(
        (status, &body["promptFeedback"]["blockReason"]),
        (200, &json!("PROHIBITED_CONTENT"))
    );
    for (word, reason) in
        [("[filtered]", "IMAGE_SAFETY"), ("[empty]", "NO_IMAGE"), ("[refuse]", "STOP")]
    {
        let (status, body) = send(setup.gemini(BANANA, word, json!({}))).await;
        assert_eq!((status, &body["candidates"][0]["finishReason"]), (200, &json!(reason)));
    }
    assert_eq!(send(setup.imagen("[blocked]", json!({}))).await.0, 400);
    assert_eq!(send(setup.imagen("[filtered]", json!({}))).await, (200, json!({})));
    let (_, body) = send(setup.imagen("[filtered]", json!({"includeRaiReason": true}))).await;
    assert!(body["predictions"][0]["raiFilteredReason"].is_string());
    assert_eq!(setup.emulator.counters().paid_generations, 0);
}

#[tokio::test]
async fn only_living_tokens_open_the_services() {
    let mut setup = Setup::new().await;
    let reason = |body: &Value| {
        body["error"]["details"][0]["reason"].as_str().unwrap_or_default().to_owned()
    };
    setup.emulator.expire_tokens();
    let (status, body) = send(setup.gemini(FLASH, "a fox", json!({}))).await;
    assert_eq!((status, reason(&body).as_str()), (401, "ACCESS_TOKEN_EXPIRED"));
    assert_eq!(send(setup.create("a.png", b"abc")).await.0, 401);
    setup.token = setup.fresh_token().await;
    assert_eq!(send(setup.gemini(FLASH, "a fox", json!({}))).await.0, 200);

    let path = "/v1/projects/p1/locations/global/publishers/google/models/x:generateContent";
    let (_, body) = send(setup.client.post(setup.emulator.url() + path)).await;
    assert_eq!(reason(&body), "CREDENTIALS_MISSING");
    let (_, body) =
        send(setup.client.post(setup.emulator.url() + path).bearer_auth("made-up")).await;
    assert_eq!(reason(&body), "ACCESS_TOKEN_TYPE_UNSUPPORTED");
    let counters = setup.emulator.counters();
    assert_eq!((counters.token_fetches, counters.unauthorized), (2, 4));
}

#[tokio::test]
async fn every_token_endpoint_hands_out_tokens() {
    let mut setup = Setup::new().await;
    let url = setup.emulator.url();
    let form = |path: &str, body: &'static str| {
        let request = setup.client.post(format!("{url}{path}"));
        request.header("content-type", "application/x-www-form-urlencoded").body(body)
    };
    let refresh = "grant_type=refresh_token&client_id=c&client_secret=s&refresh_token=r";
    let (status, body) = send(form("/token", refresh)).await;
    assert_eq!((status, body["token_type"].as_str()), (200, Some("Bearer")));
    assert_eq!(send(form("/token", "grant_type=refresh_token&client_id=c")).await.0, 400);
    let sts = "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&audience=a&subject_token=t\
               &requested_token_type=urn:x&subject_token_type=urn:y";
    let (status, body) = send(form("/v1/token", sts)).await;
    assert_eq!(status, 200);
    setup.token = body["access_token"].as_str().expect("a token").to_owned();
    let path = "/v1/projects/-/serviceAccounts/sa@p1.iam.gserviceaccount.com:generateAccessToken";
    let scope = json!({"scope": ["https://www.googleapis.com/auth/cloud-platform"]}).to_string();
    let (status, body) = send(setup.request(Method::POST, path).body(scope)).await;
    assert_eq!((status, body["accessToken"].is_string()), (200, true));
}

#[tokio::test]
async fn the_metadata_server_wants_its_header() {
    let setup = Setup::new().await;
    let path = "/computeMetadata/v1/project/project-id";
    assert_eq!(send(setup.request(Method::GET, path)).await.0, 403);
    let response =
        setup.request(Method::GET, path).header("metadata-flavor", "Google").send().await;
    assert_eq!(response.expect("an answer").text().await.expect("text"), "iga-local");
}

#[tokio::test]
async fn objects_are_files_and_can_be_read_back() {
    let directory = std::env::temp_dir().join(format!("iga-emulator-{}", std::process::id()));
    let setup =
        Setup::with(Options { directory: Some(directory.clone()), ..Options::default() }).await;
    let (status, body) = send(setup.create("images%2Ffox.png", b"hello world")).await;
    assert_eq!((status, &body["crc32c"], &body["size"]), (200, &json!("yZRlqg=="), &json!("11")));
    assert_eq!(
        std::fs::read(directory.join(BUCKET).join("images/fox.png")).expect("a file"),
        b"hello world"
    );

    let escaping = "%2F%2Fx%2F..%2F..%2F..%2Fy.png";
    assert_eq!(send(setup.create(escaping, b"abc")).await.0, 200);
    assert!(setup.emulator.object(BUCKET, "//x/../../../y.png").is_some());
    assert_eq!(
        std::fs::read_dir(&directory).expect("a folder").count(),
        1,
        "nothing beside the bucket"
    );

    let path = format!("/storage/v1/b/{BUCKET}/o/images%2Ffox.png");
    let media = setup
        .request(Method::GET, &format!("{path}?alt=media"))
        .header("range", "bytes=6-")
        .send()
        .await;
    let media = media.expect("an answer");
    assert_eq!(media.status(), 206);
    assert_eq!(media.headers()["content-range"], "bytes 6-10/11");
    assert_eq!(media.headers()["x-goog-hash"], "crc32c=yZRlqg==,md5=XrY7u+Ae7tCTyyK7j1rNww==");
    assert_eq!(media.text().await.expect("text"), "world");
    let list = format!("/storage/v1/b/{BUCKET}/o?prefix=images/");
    assert_eq!(
        send(setup.request(Method::GET, &list)).await.1["items"].as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(
        send(setup.request(Method::DELETE, &format!("{path}?ifGenerationMatch=1"))).await.0,
        412
    );
    assert_eq!(send(setup.request(Method::DELETE, &path)).await.0, 204);
    let (status, body) = send(setup.request(Method::GET, &path)).await;
    assert_eq!((status, message(&body)), (404, "No such object: pictures/images/fox.png"));
    std::fs::remove_dir_all(directory).expect("made by this test");
}

#[tokio::test]
async fn one_of_many_creators_wins() {
    let setup = Setup::new().await;
    let (first, second, third) = tokio::join!(
        send(setup.create("a.png", b"first")),
        send(setup.create("a.png", b"second")),
        send(setup.create("a.png", b"third")),
    );
    let mut statuses = [first.0, second.0, third.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412, 412]);
    let counters = setup.emulator.counters();
    assert_eq!(
        (counters.uploads_started, counters.uploads_completed, counters.uploads_refused),
        (3, 1, 2)
    );
}

#[tokio::test]
async fn multipart_is_parsed_strictly() {
    let setup = Setup::new().await;
    let path = format!("/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart");
    let upload = |body: String| {
        let request = setup.request(Method::POST, &path);
        request.header("content-type", "multipart/related; boundary=XYZ").body(body)
    };
    let metadata = json!({"name": "m.png", "crc32c": "yZRlqg==", "metadata": {"model": "m"}});
    let whole = format!(
        "--XYZ\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{metadata}\r\n\
         --XYZ\r\nContent-Type: image/png\r\n\r\nhello world\r\n--XYZ--\r\n"
    );
    let (status, body) = send(upload(whole.clone())).await;
    assert_eq!(
        (status, &body["contentType"], &body["metadata"]["model"]),
        (200, &json!("image/png"), &json!("m"))
    );
    assert_eq!(setup.emulator.object(BUCKET, "m.png").expect("it is there").bytes, "hello world");
    let recorded = setup.emulator.requests().pop().expect("requests");
    assert_eq!(recorded.body, metadata.to_string(), "the metadata is kept, the media is not");
    for broken in [
        whole.replace("--XYZ--", "--XYZ"),
        whole.replace("\r\n", "\n"),
        whole.replace("/json", "/xml"),
    ] {
        assert_eq!(send(upload(broken)).await.0, 400);
    }
    let (status, body) = send(upload(whole.replace("hello", "hallo"))).await;
    assert_eq!((status, &body["error"]["errors"][0]["reason"]), (400, &json!("invalid")));
    assert_eq!(setup.emulator.objects().len(), 1);
}

#[tokio::test]
async fn checksums_in_the_header_are_checked() {
    let setup = Setup::new().await;
    let wrong = setup.create("a.png", b"hello world").header("x-goog-hash", "crc32c=AAAAAA==");
    assert_eq!(send(wrong).await.0, 400);
    let right = format!("crc32c={},md5={}", crc32c(b"hello world"), md5_hash(b"hello world"));
    assert_eq!(
        send(setup.create("a.png", b"hello world").header("x-goog-hash", right)).await.0,
        200
    );
}

#[tokio::test]
async fn resumable_uploads_go_chunk_by_chunk() {
    const UNIT: usize = 256 * 1024;
    let setup = Setup::new().await;
    let session = setup.session("big.png").await;
    assert_eq!(
        send(setup.chunk(&session, "bytes 0-99/*", vec![1; 100])).await.0,
        400,
        "not a whole unit"
    );
    let first =
        setup.chunk(&session, "bytes 0-262143/*", vec![1; UNIT]).send().await.expect("an answer");
    assert_eq!(
        (first.status().as_u16(), &first.headers()["range"]),
        (308, &HeaderValue::from_static("bytes=0-262143"))
    );
    let status = setup.chunk(&session, "bytes */*", Vec::new()).send().await.expect("an answer");
    assert_eq!(status.headers()["range"], "bytes=0-262143");
    let (code, body) = send(setup.chunk(&session, "bytes 262144-262153/262154", vec![2; 10])).await;
    assert_eq!(
        (code, &body["size"], &body["contentType"]),
        (200, &json!("262154"), &json!("image/png"))
    );
    let (code, again) = send(setup.chunk(&session, "bytes */262154", Vec::new())).await;
    assert_eq!((code, again["generation"].clone()), (200, body["generation"].clone()));

    let session = setup.session("cancelled.png").await;
    assert_eq!(setup.client.delete(&session).send().await.expect("an answer").status(), 499);
    assert_eq!(send(setup.chunk(&session, "bytes 0-9/10", vec![2; 10])).await.0, 410);
}

#[tokio::test]
async fn a_broken_chunk_is_kept_in_whole_units() {
    const UNIT: usize = 256 * 1024;
    let setup = Setup::new().await;
    let session = setup.session("big.png").await;
    let fault =
        Fault::new(Stage::UploadBody, Action::status(503)).after(UNIT as u64 + 5).matching("big");
    setup.emulator.script(fault);
    let both = setup.chunk(&session, "bytes 0-524287/524288", vec![1; 2 * UNIT]);
    assert_eq!(send(both).await.0, 503);
    let status =
        setup.chunk(&session, "bytes */524288", Vec::new()).send().await.expect("an answer");
    assert_eq!(
        (status.status().as_u16(), &status.headers()["range"]),
        (308, &HeaderValue::from_static("bytes=0-262143"))
    );
    assert_eq!(
        send(setup.chunk(&session, "bytes 262144-524287/524288", vec![1; UNIT])).await.0,
        200
    );
}

#[tokio::test]
async fn faults_hit_their_stage_and_then_pass() {
    let setup = Setup::new().await;
    setup
        .emulator
        .script(Fault::new(Stage::Model, Action::status(429).header("retry-after", "7")).times(2));
    for _ in 0..2 {
        let response = setup.gemini(FLASH, "a fox", json!({})).send().await.expect("an answer");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (429, &HeaderValue::from_static("7"))
        );
    }
    assert_eq!(send(setup.gemini(FLASH, "a fox", json!({}))).await.0, 200);
    let counters = setup.emulator.counters();
    assert_eq!((counters.model_calls, counters.paid_generations), (3, 1));

    setup
        .emulator
        .script(Fault::new(Stage::Answer, Action::answer_with(200, "application/json", "{}")));
    assert_eq!(send(setup.gemini(FLASH, "a fox", json!({}))).await, (200, json!({})));
    assert_eq!(setup.emulator.counters().paid_generations, 2);
}

#[tokio::test]
async fn connections_break_where_the_fault_says() {
    let setup = Setup::new().await;
    for (action, reset) in [(Action::Reset, true), (Action::Truncate, false)] {
        setup.emulator.script(Fault::new(Stage::Answer, action.clone()));
        assert!(
            setup.gemini(FLASH, "a fox", json!({})).send().await.is_err(),
            "{action:?}: not one byte"
        );

        setup.emulator.script(Fault::new(Stage::Answer, action).after(100_000));
        let mut response =
            setup.gemini(FLASH, "a fox", json!({})).send().await.expect("the head of an answer");
        let mut received = 0;
        let error = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => received += chunk.len(),
                Ok(None) => panic!("the answer did not break off"),
                Err(error) => break error,
            }
        };
        assert_eq!(received, 100_000);
        assert_eq!(format!("{error:?}").contains("ConnectionReset"), reset, "{error:?}");
    }
    assert_eq!(setup.emulator.counters().paid_generations, 4);
}

#[tokio::test]
async fn stalled_answers_end_with_the_emulator() {
    let setup = Setup::new().await;
    setup.emulator.script(Fault::new(Stage::Answer, Action::Stall).after(10));
    let mut response =
        setup.gemini(FLASH, "a fox", json!({})).send().await.expect("the head of an answer");
    assert_eq!(response.chunk().await.expect("its beginning").expect("bytes").len(), 10);
    setup.emulator.stop();
    assert!(response.chunk().await.is_err());
}

#[tokio::test]
async fn an_upload_can_succeed_without_saying_so() {
    let setup = Setup::new().await;
    setup.emulator.script(Fault::new(Stage::UploadEnd, Action::Reset).matching("/.iga/"));
    assert_eq!(send(setup.create("fox.png", b"abc")).await.0, 200, "another name");
    assert!(
        setup.create(".iga%2Flease", b"abc").send().await.is_err(),
        "a bucket's name ends with a slash"
    );
    assert!(setup.emulator.object(BUCKET, ".iga/lease").is_some());
    setup.emulator.script(Fault::new(Stage::UploadEnd, Action::WrongChecksum));
    let (_, body) = send(setup.create("b.png", b"hello world")).await;
    assert_ne!(body["crc32c"], "yZRlqg==");

    setup.emulator.script(Fault::new(Stage::UploadStart, Action::status(503)));
    assert_eq!(send(setup.create("c.png", b"abc")).await.0, 503);
    setup.emulator.script(Fault::new(Stage::UploadBody, Action::Reset).after(1));
    assert!(setup.create("c.png", b"abc").send().await.is_err());
    assert!(setup.emulator.object(BUCKET, "c.png").is_none());
}

#[tokio::test]
async fn the_clock_can_be_moved() {
    let setup = Setup::new().await;
    setup.emulator.advance_clock(Duration::from_secs(10 * 365 * 86_400));
    let response = setup.create("a.png", b"abc").send().await.expect("an answer");
    let date = response.headers()["date"].to_str().expect("text").to_owned();
    let created = json_of(response).await["timeCreated"].as_str().expect("a time").to_owned();
    let year: i32 = created[..4].parse().expect("a year");
    assert!(year > OffsetDateTime::now_utc().year() + 8, "{created}");
    assert!(date.contains(&created[..4]) && date.ends_with(" GMT"), "{date}");
}

#[tokio::test]
async fn other_processes_can_script_and_look() {
    let setup = Setup::new().await;
    let fault = r#"{"stage": "model", "matching": "banana", "times": null, "action": {"answer": {"status": 500}}}"#;
    assert_eq!(send(setup.request(Method::POST, "/_emulator/faults").body(fault)).await.0, 204);
    assert_eq!(send(setup.gemini(BANANA, "a fox", json!({}))).await.0, 500);
    assert_eq!(send(setup.request(Method::DELETE, "/_emulator/faults")).await.0, 204);
    assert_eq!(send(setup.gemini(BANANA, "a fox", json!({}))).await.0, 200);
    let (_, counters) = send(setup.request(Method::GET, "/_emulator/counters")).await;
    assert_eq!(counters, json!(setup.emulator.counters()));
    let nonsense = r#"{"stage": "model", "action": {"answer": {"status": 7}}}"#;
    assert_eq!(send(setup.request(Method::POST, "/_emulator/faults").body(nonsense)).await.0, 400);
    assert_eq!(send(setup.request(Method::GET, "/_emulator/objects")).await, (200, json!([])));
}

#[tokio::test]
async fn the_python_sdk_finds_its_publisher_model() {
    let setup = Setup::with(Options {
        revive: vec!["imagegeneration@006".to_owned()],
        ..Options::default()
    })
    .await;
    let path = "/v1/publishers/google/models/imagegeneration%40006";
    let (status, body) = send(setup.request(Method::GET, path)).await;
    assert_eq!(status, 200);
    assert!(body["publisherModelTemplate"].is_string());
    assert!(body["predictSchemata"]["instanceSchemaUri"].is_string());
}
