//! Options: what Cloud Storage permits, shows and limits.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use iga_emulator::{Emulator, Options, Retention, StorageRules};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::*;

fn without(permission: &str) -> Options {
    Options { withheld: vec![permission.to_owned()], ..unlimited() }
}

/// Creates an empty object.
async fn generation_of(setup: &Setup, name: &str) -> String {
    let (status, body) = send(setup.write_record(name, json!({}), Some("0"))).await;
    assert_eq!(status, 200, "{body}");
    body["generation"].as_str().expect("a generation").to_owned()
}

#[tokio::test]
async fn an_account_without_delete_can_create_only() {
    let setup = Setup::with(without("storage.objects.delete")).await;
    let generation = generation_of(&setup, "a").await;
    for request in [
        setup.write_record("a", json!({}), Some(&generation)),
        setup.write_record("a", json!({}), None),
        setup.delete("a"),
    ] {
        let (status, body) = send(request).await;
        assert_eq!((status, reason(&body)), (403, "forbidden"));
        assert!(message(&body).contains("does not have storage.objects.delete access"), "{body}");
    }
    assert_eq!(send(setup.write_record("a", json!({}), Some("0"))).await.0, 412);
    assert_eq!(send(setup.write_record("b", json!({}), None)).await.0, 200);
}

#[tokio::test]
async fn the_permission_can_come_before_the_precondition() {
    let options =
        Options { permission_before_precondition: true, ..without("storage.objects.delete") };
    let setup = Setup::with(options).await;
    generation_of(&setup, "a").await;
    let (status, body) = send(setup.write_record("a", json!({}), Some("0"))).await;
    assert_eq!(status, 403);
    assert!(message(&body).contains("storage.objects.delete"), "{body}");
}

#[tokio::test]
async fn an_account_without_get_or_create_is_refused_by_name() {
    let setup = Setup::with(without("storage.objects.get")).await;
    generation_of(&setup, "a").await;
    let (status, body) = send(setup.stat("a")).await;
    assert_eq!(status, 403);
    assert!(message(&body).contains("does not have storage.objects.get access"), "{body}");
    let setup = Setup::with(without("storage.objects.create")).await;
    let (status, body) = send(setup.write_record("a", json!({}), Some("0"))).await;
    assert_eq!(status, 403);
    assert!(message(&body).contains("does not have storage.objects.create access"), "{body}");
}

#[tokio::test]
async fn an_account_without_list_sees_403_for_a_missing_object() {
    let setup = Setup::with(without("storage.objects.list")).await;
    assert_eq!(send(setup.stat("a")).await.0, 403);
    generation_of(&setup, "a").await;
    assert_eq!(send(setup.stat("a")).await.0, 200);
}

#[tokio::test]
async fn retention_forbids_to_overwrite_and_to_delete() {
    for (retention, expected) in
        [(Retention::Policy, "retentionPolicyNotMet"), (Retention::Hold, "objectUnderActiveHold")]
    {
        let options = Options { retention: Some(retention), ..unlimited() };
        let setup = Setup::with(options).await;
        let generation = generation_of(&setup, "a").await;
        let overwrite = setup.write_record("a", json!({}), Some(&generation));
        for request in [overwrite, setup.delete("a")] {
            let (status, body) = send(request).await;
            assert_eq!((status, reason(&body)), (403, expected), "{body}");
        }
        assert!(setup.emulator.object(BUCKET, "a").is_some());
    }
}

#[tokio::test]
async fn the_limit_of_mutations_is_on_by_default() {
    let setup = Setup::with(Options::default()).await;
    let second = Some(1000);
    assert_eq!(setup.emulator.storage_rules().mutation_interval_ms, second);
}

#[tokio::test]
async fn one_name_takes_one_mutation_an_interval() {
    let interval = Duration::from_secs(3600);
    let options = Options { mutation_interval: Some(interval), ..unlimited() };
    let setup = Setup::with(Options { token_life: 9 * interval, ..options }).await;
    let generation = generation_of(&setup, "a").await;
    for request in [setup.write_record("a", json!({}), Some(&generation)), setup.delete("a")] {
        let (status, body) = send(request).await;
        assert_eq!((status, reason(&body)), (429, "rateLimitExceeded"), "{body}");
    }
    assert_eq!(send(setup.write_record("a", json!({}), Some("0"))).await.0, 412);
    generation_of(&setup, "b").await;

    tokio::time::pause();
    tokio::time::advance(interval).await;
    tokio::time::resume();
    assert_eq!(send(setup.delete("a")).await.0, 204);
    assert_eq!(send(setup.write_record("a", json!({}), Some("0"))).await.0, 429);
}

#[tokio::test]
async fn the_server_can_add_metadata_and_omit_a_zero_size() {
    let added = BTreeMap::from([("goog-added".to_owned(), "yes".to_owned())]);
    let options = Options { added_metadata: added, omit_zero_size: true, ..unlimited() };
    let setup = Setup::with(options).await;
    let (_, body) = send(setup.write_record("a", json!({"holder": "h"}), Some("0"))).await;
    assert_eq!(body["metadata"], json!({"goog-added": "yes", "holder": "h"}));
    assert_eq!(body["size"], Value::Null);
    let (_, body) = send(setup.create("b", b"abc")).await;
    assert_eq!((&body["size"], &body["metadata"]["goog-added"]), (&json!("3"), &json!("yes")));
}

#[tokio::test]
async fn date_can_be_left_out_and_the_clock_be_wrong() {
    let setup = Setup::with(Options { omit_date: true, ..unlimited() }).await;
    let response = setup.stat("a").send().await.expect("a response");
    assert!(!response.headers().contains_key("date"));

    let setup =
        Setup::with(Options { clock_offset_ms: -50 * 365 * 86_400_000, ..unlimited() }).await;
    let response = setup.stat("a").send().await.expect("a response");
    let date = response.headers()["date"].to_str().expect("text").to_owned();
    assert!(date.contains(" 19"), "{date}");
}

#[tokio::test]
async fn storage_can_accept_requests_without_credentials() {
    let setup = Setup::with(Options { anonymous: true, ..unlimited() }).await;
    let url = setup.emulator.url() + &object_path("a");
    assert_eq!(send(setup.client.get(&url)).await.0, 404);
    assert_eq!(send(setup.client.get(&url).bearer_auth("made-up")).await.0, 401);
    let setup = Setup::new().await;
    let url = setup.emulator.url() + &object_path("a");
    assert_eq!(send(setup.client.get(&url)).await.0, 401);
}

#[tokio::test]
async fn images_have_the_size_asked_for() {
    let options = Options { image_bytes: Some(3_000_000), shrunk: 16, ..unlimited() };
    let setup = Setup::with(options).await;
    let (_, body) = send(setup.gemini(BANANA, "a fox", json!({}))).await;
    let image = image_of(&body);
    assert_eq!(image.len(), 3_000_000);
    assert_eq!(png_size(&body["candidates"][0]["content"]["parts"][0]["inlineData"]["data"]).0, 64);
}

/// In virtual time, which moves on only where the emulator waits to spread bytes.
#[tokio::test(start_paused = true)]
async fn connections_have_a_bandwidth() {
    const BYTES: usize = 400_000;
    let rate = Some(100_000);
    for (receiving_rate, sending_rate, seconds) in
        [(None, None, 0), (rate, None, 4), (None, rate, 4)]
    {
        let options = Options { receiving_rate, sending_rate, ..unlimited() };
        let setup = Setup::with(options).await;
        let start = Instant::now();
        let path = format!("/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=a");
        let upload = setup.request(Method::POST, &path).body(vec![0; BYTES]);
        assert_eq!(send(upload).await.0, 200);
        let download = setup.request(Method::GET, &(object_path("a") + "?alt=media"));
        let content = download.send().await.expect("a response").bytes().await.expect("a body");
        assert_eq!((content.len(), start.elapsed().as_secs()), (BYTES, seconds));
    }
}

#[tokio::test]
async fn a_start_that_fails_says_what_is_wrong() {
    let running = Setup::new().await;
    let addr = running.emulator.host().parse().expect("an address");
    let file = std::env::current_exe().expect("this test");
    let buckets = vec![BUCKET.to_owned()];
    for (options, expected) in [
        (Options { addr, ..unlimited() }, format!("cannot listen on {addr}: ")),
        (
            Options { directory: Some(file.clone()), buckets, ..unlimited() },
            format!("cannot create {}", file.join(BUCKET).display()),
        ),
        (
            Options { buckets: vec!["No Bucket".to_owned()], ..unlimited() },
            "not a legal bucket name: \"No Bucket\"".to_owned(),
        ),
    ] {
        let error = Emulator::start(options).await.err().expect("it cannot start").to_string();
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[tokio::test]
async fn rights_can_be_revoked_and_given_back() {
    let setup = Setup::new().await;
    let generation = generation_of(&setup, "a").await;
    let revoked = StorageRules {
        withheld: vec!["storage.objects.create".to_owned()],
        omit_date: true,
        ..StorageRules::default()
    };
    setup.emulator.set_storage_rules(revoked.clone());
    let response = setup.write_record("b", json!({}), Some("0")).send().await.expect("a response");
    assert_eq!(response.status(), 403);
    assert!(!response.headers().contains_key("date"));
    let (_, shown) = send(setup.request(Method::GET, "/_emulator/storage_rules")).await;
    assert_eq!(shown, json!(revoked));

    let put = |rules: Value| {
        setup.request(Method::PUT, "/_emulator/storage_rules").body(rules.to_string())
    };
    assert_eq!(send(put(json!({"retention": "policy"}))).await.0, 204);
    assert_eq!(send(setup.write_record("b", json!({}), Some("0"))).await.0, 200);
    assert_eq!(send(setup.write_record("a", json!({}), Some(&generation))).await.0, 403);
    assert_eq!(send(put(json!({"retained": "policy"}))).await.0, 400);
    assert_eq!(send(put(json!({}))).await.0, 204);
    assert_eq!(send(setup.write_record("a", json!({}), Some(&generation))).await.0, 200);
}
