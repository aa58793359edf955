//! Uploads to Cloud Storage.

use http::{HeaderValue, Method};
use iga_emulator::{Action, Fault, Stage};
use serde_json::json;

use crate::support::*;

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
    assert_eq!(recorded.body, metadata.to_string(), "the metadata is entry, the media is not");
    for malformed in [
        whole.replace("--XYZ--", "--XYZ"),
        whole.replace("\r\n", "\n"),
        whole.replace("/json", "/xml"),
    ] {
        assert_eq!(send(upload(malformed)).await.0, 400);
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
    let right = "crc32c=yZRlqg==,md5=XrY7u+Ae7tCTyyK7j1rNww==";
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
        setup.chunk(&session, "bytes 0-262143/*", vec![1; UNIT]).send().await.expect("a response");
    assert_eq!(
        (first.status().as_u16(), &first.headers()["range"]),
        (308, &HeaderValue::from_static("bytes=0-262143"))
    );
    let status = setup.chunk(&session, "bytes */*", Vec::new()).send().await.expect("a response");
    assert_eq!(status.headers()["range"], "bytes=0-262143");
    let (code, body) = send(setup.chunk(&session, "bytes 262144-262153/262154", vec![2; 10])).await;
    assert_eq!(
        (code, &body["size"], &body["contentType"]),
        (200, &json!("262154"), &json!("image/png"))
    );
    let (code, again) = send(setup.chunk(&session, "bytes */262154", Vec::new())).await;
    assert_eq!((code, again["generation"].clone()), (200, body["generation"].clone()));

    let session = setup.session("cancelled.png").await;
    assert_eq!(setup.client.delete(&session).send().await.expect("a response").status(), 499);
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
        setup.chunk(&session, "bytes */524288", Vec::new()).send().await.expect("a response");
    assert_eq!(
        (status.status().as_u16(), &status.headers()["range"]),
        (308, &HeaderValue::from_static("bytes=0-262143"))
    );
    assert_eq!(
        send(setup.chunk(&session, "bytes 262144-524287/524288", vec![1; UNIT])).await.0,
        200
    );
}
