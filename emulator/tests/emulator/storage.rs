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
