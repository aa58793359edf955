//! Cloud Storage, except uploads.

use std::time::Duration;

use http::Method;
use iga_emulator::Options;
use serde_json::json;
use time::OffsetDateTime;

use crate::support::*;

#[tokio::test]
async fn objects_are_files_and_can_be_read_back() {
    let directory = std::env::temp_dir().join(format!("iga-emulator-{}", std::process::id()));
    let setup = Setup::with(Options { directory: Some(directory.clone()), ..unlimited() }).await;
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
    let media = media.expect("a response");
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
    assert_eq!((status, message(&body)), (404, "No such object: emulated-images/images/fox.png"));
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
async fn the_clock_can_be_moved() {
    let setup = Setup::new().await;
    setup.emulator.advance_clock(Duration::from_secs(10 * 365 * 86_400));
    let response = setup.create("a.png", b"abc").send().await.expect("a response");
    let date = response.headers()["date"].to_str().expect("text").to_owned();
    let created = json_of(response).await["timeCreated"].as_str().expect("a time").to_owned();
    let year: i32 = created[..4].parse().expect("a year");
    assert!(year > OffsetDateTime::now_utc().year() + 8, "{created}");
    assert!(date.contains(&created[..4]) && date.ends_with(" GMT"), "{date}");
}

#[tokio::test]
async fn metadata_can_be_patched() {
    let setup = Setup::new().await;
    send(setup.write_record("a", json!({"one": "1", "two": "2"}), None)).await;
    let patch = json!({"contentType": "image/png", "metadata": {"one": null, "three": "3"}});
    let request = setup.request(Method::PATCH, &(object_path("a") + "?ifMetagenerationMatch=1"));
    let (status, body) = send(request.body(patch.to_string())).await;
    assert_eq!((status, &body["metageneration"]), (200, &json!("2")));
    assert_eq!(body["metadata"], json!({"two": "2", "three": "3"}));
    assert_eq!(body["contentType"], "image/png");
    let again = setup.request(Method::PATCH, &(object_path("a") + "?ifMetagenerationMatch=1"));
    assert_eq!(send(again.body("{}")).await.0, 412);
}

#[tokio::test]
async fn objects_can_be_copied_rewritten_and_composed() {
    let setup = Setup::new().await;
    send(setup.create("a", b"hello ")).await;
    send(setup.create("b", b"world")).await;
    let from = object_path("a");
    for verb in ["copyTo", "rewriteTo"] {
        let path = format!("{from}/{verb}/b/{BUCKET}/o/copy?ifSourceGenerationMatch=1");
        assert_eq!(send(setup.request(Method::POST, &path)).await.0, 412);
        let path = format!("{from}/{verb}/b/{BUCKET}/o/{verb}%2Fcopy");
        let (status, body) = send(setup.request(Method::POST, &path)).await;
        assert_eq!((status, &body["kind"] == "storage#object"), (200, verb == "copyTo"));
        let copy = setup.emulator.object(BUCKET, &format!("{verb}/copy")).expect("it is there");
        assert_eq!(
            (&copy.bytes[..], &copy.metadata["contentType"]),
            (&b"hello "[..], &json!("image/png"))
        );
    }
    let sources = json!({"sourceObjects": [{"name": "a"}, {"name": "b"}]}).to_string();
    let compose = setup.request(Method::POST, &(object_path("c") + "/compose")).body(sources);
    let (_, composed) = send(compose).await;
    assert_eq!((&composed["size"], &composed["componentCount"]), (&json!("11"), &json!(2)));
    assert!(composed["md5Hash"].is_null(), "a composite object has none");
    assert_eq!(setup.emulator.object(BUCKET, "c").expect("it is there").bytes, "hello world");
}

#[tokio::test]
async fn lists_have_folders_pages_and_fields() {
    let setup = Setup::new().await;
    for name in ["a.png", "b%2F1.png", "b%2F2.png"] {
        send(setup.create(name, b"abc")).await;
    }
    let list =
        |query: &str| setup.request(Method::GET, &format!("/storage/v1/b/{BUCKET}/o?{query}"));
    let (_, body) = send(list("delimiter=/&fields=items(name,size),prefixes")).await;
    assert_eq!(body, json!({"items": [{"name": "a.png", "size": "3"}], "prefixes": ["b/"]}));
    let (_, body) = send(list("maxResults=2&fields=items/name,nextPageToken")).await;
    assert_eq!(body["items"], json!([{"name": "a.png"}, {"name": "b/1.png"}]));
    let token = body["nextPageToken"].as_str().expect("more pages");
    let (_, body) = send(list(&format!("maxResults=2&fields=items/name&pageToken={token}"))).await;
    assert_eq!(body, json!({"items": [{"name": "b/2.png"}]}));
    assert_eq!(send(list("maxResults=many")).await.0, 400);
}

#[tokio::test]
async fn buckets_can_be_listed_made_and_deleted() {
    let setup = Setup::new().await;
    let make = |name: &str| {
        let body = json!({"name": name}).to_string();
        setup.request(Method::POST, "/storage/v1/b?project=p1").body(body)
    };
    assert_eq!(send(make("another-one")).await.0, 200);
    assert_eq!(send(make("another-one")).await.0, 409);
    assert_eq!(send(make("Not A Bucket")).await.0, 400);
    let (_, body) =
        send(setup.request(Method::GET, "/storage/v1/b?project=p1&fields=items/name")).await;
    assert_eq!(body["items"], json!([{"name": BUCKET}, {"name": "another-one"}]));
    send(setup.create("a", b"abc")).await;
    for (bucket, expected) in [("another-one", 204), ("another-one", 404), (BUCKET, 409)] {
        let delete = setup.request(Method::DELETE, &format!("/storage/v1/b/{bucket}"));
        assert_eq!(send(delete).await.0, expected, "{bucket}");
    }
    let short = setup.request(Method::GET, &format!("/b/{BUCKET}"));
    assert_eq!(send(short).await.1["name"], BUCKET, "as the client for Node.js asks");
    let policy = format!("/storage/v1/b/{BUCKET}/iam");
    assert_eq!(send(setup.request(Method::GET, &policy)).await.1["kind"], "storage#policy");
    let (status, body) =
        send(setup.request(Method::POST, &format!("/storage/v1/b/{BUCKET}/lock"))).await;
    assert_eq!((status, reason(&body)), (501, "notImplemented"), "an error in JSON");
    let (status, body) =
        send(setup.request(Method::GET, "/storage/v1/projects/p1/serviceAccount")).await;
    assert_eq!((status, reason(&body)), (501, "notImplemented"), "an error in JSON");
}

#[tokio::test]
async fn buckets_can_be_patched() {
    let setup = Setup::new().await;
    let path = format!("/storage/v1/b/{BUCKET}");
    let patch = |query: &str, body: serde_json::Value| {
        send(setup.request(Method::PATCH, &format!("{path}{query}")).body(body.to_string()))
    };
    let (status, body) = patch("", json!({"labels": {"a": "1", "b": "2"}})).await;
    assert_eq!((status, &body["labels"]), (200, &json!({"a": "1", "b": "2"})));
    let (_, body) = patch("?ifMetagenerationMatch=2", json!({"labels": {"a": null}})).await;
    assert_eq!((&body["labels"], &body["metageneration"]), (&json!({"b": "2"}), &json!("3")));
    assert_eq!(patch("?ifMetagenerationMatch=2", json!({"labels": null})).await.0, 412);
    let (status, body) = patch("", json!({"versioning": {"enabled": true}})).await;
    assert_eq!((status, reason(&body)), (501, "notImplemented"), "it would have an effect");
    let (_, body) = send(setup.request(Method::GET, &path)).await;
    assert_eq!((&body["labels"], &body["versioning"]), (&json!({"b": "2"}), &json!(null)));
}

#[tokio::test]
async fn a_batch_carries_several_requests() {
    let setup = Setup::new().await;
    send(setup.create("a", b"abc")).await;
    let part = |id: u8, request: &str| {
        format!(
            "--XYZ\r\nContent-Type: application/http\r\nContent-ID: <b+{id}>\r\n\r\n\
             {request} HTTP/1.1\r\n\r\n\r\n"
        )
    };
    let path = object_path("a");
    let body = part(1, &format!("GET {path}"))
        + &part(2, &format!("DELETE {path}"))
        + &part(3, &format!("GET {path}"))
        + "--XYZ--";
    let request = setup.request(Method::POST, "/batch/storage/v1").body(body);
    let request = request.header("content-type", "multipart/mixed; boundary=\"XYZ\"");
    let text = request.send().await.expect("a response").text().await.expect("a body");
    let statuses: Vec<&str> = text.lines().filter(|line| line.starts_with("HTTP/1.1 ")).collect();
    let expected = ["HTTP/1.1 200 OK", "HTTP/1.1 204 No Content", "HTTP/1.1 404 Not Found"];
    assert_eq!(statuses, expected, "{text}");
    assert!(text.contains("Content-ID: <response-b+3>"), "{text}");
    let empty = setup.request(Method::POST, "/batch/storage/v1").body("");
    assert_eq!(send(empty).await.0, 400);
}
