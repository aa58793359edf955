//! Cloud Storage: uploads overwrite nothing, are confirmed, and are retried; nothing is paid while they cannot work.

use crate::support::service::{
    BUCKET, CURRENT, PROMPT, Service, config, emulator, emulator_with, eventually, fetch, images,
    reached, records,
};
use iga_emulator::{Action, Emulator, Fault, Options, Recorded, Stage};
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn an_upload_overwrites_nothing_and_carries_its_checksum() {
    let service = Service::current().await;
    service.prompt().await.is_image();
    let upload = service
        .emulator
        .requests()
        .into_iter()
        .find(|request| request.path.starts_with("/upload/") && request.query.contains("iga_req_"))
        .unwrap();
    assert!(
        upload.query.contains("uploadType=multipart")
            && upload.query.contains("ifGenerationMatch=0"),
        "{upload:?}"
    );
    let resource: serde_json::Value = serde_json::from_slice(&upload.body).unwrap();
    assert_eq!(resource["crc32c"], service.only_object().metadata["crc32c"]);
    assert!(
        upload.headers.contains_key("content-length")
            && !upload.headers.contains_key("transfer-encoding")
    );
}

#[tokio::test]
async fn a_transient_storage_fault_is_retried_without_a_second_image() {
    for (stage, action) in [
        (Stage::UploadStart, Action::status(503)),
        (Stage::UploadStart, Action::status(429)),
        (Stage::UploadStart, Action::Reset),
        (Stage::UploadBody, Action::Reset),
        (Stage::UploadBody, Action::Truncate),
        (Stage::UploadEnd, Action::status(500)),
        (Stage::UploadEnd, Action::Reset),
        (Stage::UploadEnd, Action::Truncate),
        (Stage::UploadEnd, Action::WrongChecksum),
    ] {
        let service = Service::current().await;
        service.emulator.script(Fault::new(stage, action.clone()).matching("/iga_req_"));
        service.prompt().await.is_image();
        let counters = service.emulator.counters();
        assert_eq!(
            (counters.paid_generations, images(&service.emulator).len()),
            (1, 1),
            "{stage:?} {action:?}"
        );
        let lost_response = stage == Stage::UploadEnd;
        assert_eq!(
            counters.uploads_refused,
            u64::from(lost_response),
            "after a lost response the retry gets 412"
        );
    }
}

#[tokio::test]
async fn a_lasting_storage_fault_is_500() {
    for (action, words) in [
        (Action::status(503), ""),
        (Action::status(403), "storage.objects.create"),
        (Action::Reset, "could not be reached"),
        (
            Action::response_with(400, "text/plain", "no JSON"),
            "HTTP 400 from Cloud Storage: no JSON",
        ),
        (
            Action::response_with(
                403,
                "application/xml",
                "<Error><Code>AccessDenied</Code><Message>Denied.</Message></Error>",
            ),
            "HTTP 403 from Cloud Storage: Denied.",
        ),
    ] {
        let service = with_deadline("1").await;
        let fault = Fault::new(Stage::UploadStart, action).matching("/iga_req_");
        service.emulator.script(fault.always());
        let response = service.prompt().await;
        response.is_error(500, "IGA_FILE_SAVE_ERROR").details_have(words);
        assert_eq!(response.text("message"), "Could not save generated image.");
        let counters = service.emulator.counters();
        assert_eq!((counters.paid_generations, images(&service.emulator).len()), (1, 0));
    }
}

#[tokio::test]
async fn a_silent_cloud_storage_ends_with_the_deadline() {
    let service = with_deadline("0.5").await;
    service
        .emulator
        .script(Fault::new(Stage::UploadBody, Action::Stall).matching("/iga_req_").always());
    service
        .prompt()
        .await
        .is_error(500, "IGA_FILE_SAVE_ERROR")
        .details_have("did not answer in time");
    assert_eq!(images(&service.emulator).len(), 0);
}

#[tokio::test]
async fn nothing_is_paid_for_a_bucket_that_does_not_exist() {
    let emulator = Emulator::start(Options::default()).await.unwrap();
    let service = Service::on(emulator, CURRENT).await;
    for _ in 0..2 {
        let response = service.prompt().await;
        response
            .is_error(500, "IGA_FILE_SAVE_ERROR")
            .details_have(BUCKET)
            .details_have("does not exist");
    }
    assert_eq!(service.emulator.counters().model_calls, 0);
}

#[tokio::test]
async fn nothing_is_paid_for_a_bucket_that_accepts_no_objects() {
    let withheld = vec!["storage.objects.create".to_owned()];
    let emulator = emulator_with(Options { withheld, ..Options::default() }).await;
    let service = Service::on(emulator, CURRENT).await;
    service
        .prompt()
        .await
        .is_error(500, "IGA_FILE_SAVE_ERROR")
        .details_have("may not create objects in bucket");
    assert_eq!(service.emulator.counters().model_calls, 0);
}

/// The number of uploads of the probe object, which shows whether the bucket accepts objects.
fn probes(service: &Service) -> usize {
    let is_probe = |request: &Recorded| {
        request.path.starts_with("/upload/") && request.query.contains("writable")
    };
    service.emulator.requests().into_iter().filter(is_probe).count()
}

async fn with_deadline(seconds: &str) -> Service {
    let deadline = &[("IGA_GENERATION_DEADLINE_SECONDS", seconds)];
    Service::with(&[CURRENT, deadline].concat()).await
}

#[tokio::test]
async fn the_bucket_is_probed_once_per_process() {
    let service = Service::current().await;
    service.prompt().await.is_image();
    service.prompt().await.is_image();
    assert_eq!(probes(&service), 1);
    let next = Service::on(service.emulator.clone(), CURRENT).await;
    next.prompt().await.is_image();
    assert_eq!(probes(&service), 2, "412 also proves it");
}

#[tokio::test]
async fn the_permissions_that_cloud_storage_reports_do_not_matter() {
    for said in [Action::status(403), Action::response_with(200, "application/json", "{}")] {
        let service = Service::current().await;
        service.emulator.script(Fault::new(Stage::Permissions, said).always());
        service.prompt().await.is_image();
    }
}

#[tokio::test]
async fn a_probe_that_cannot_be_overwritten_is_not_a_refusal() {
    let withheld = vec!["storage.objects.delete".to_owned()];
    let options = Options { withheld, permission_before_precondition: true, ..Options::default() };
    let emulator = emulator_with(options).await;
    for probes_so_far in [1, 3] {
        let service = Service::on(emulator.clone(), CURRENT).await;
        service.prompt().await.is_image();
        assert_eq!(probes(&service), probes_so_far, "the second under a random name");
    }
}

#[tokio::test]
async fn concurrent_callers_share_one_probe() {
    let emulator = emulator().await;
    let mut config = config(&emulator, CURRENT);
    config.timing.record_try = Duration::from_millis(200);
    let service = Service::run(emulator, config).await;
    let silence = Fault::new(Stage::UploadStart, Action::Stall).matching("writable");
    service.emulator.script(silence.times(3));
    let callers: Vec<_> = (0..10)
        .map(|number| {
            let request = service.request().header("content-type", "application/json");
            let body = json!({"prompt": format!("Image {number}")}).to_string();
            tokio::spawn(fetch(request.body(body)))
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().is_error(500, "IGA_FILE_SAVE_ERROR");
    }
    assert_eq!((probes(&service), service.emulator.counters().model_calls), (3, 0));
    service.prompt().await.is_image();
}

#[tokio::test]
async fn an_outage_costs_only_the_generations_under_way() {
    let service = with_deadline("3").await;
    let outage = Fault::new(Stage::UploadStart, Action::status(503)).matching("/iga_req_");
    service.emulator.script(outage.always());
    service.prompt().await.is_error(500, "IGA_FILE_SAVE_ERROR");
    // One request at a time tries; its image waits for the end of the outage, and all others are refused unpaid.
    let trial = {
        let request = service.request().header("content-type", "application/json");
        tokio::spawn(fetch(request.body(json!({"prompt": "trial"}).to_string())))
    };
    reached(&service.emulator, |counters| counters.paid_generations == 2).await;
    for number in 0..5 {
        let refused = service.post(json!({"prompt": format!("Image {number}")})).await;
        refused.is_error(500, "IGA_FILE_SAVE_ERROR").details_have("nothing was paid");
    }
    assert_eq!(service.emulator.counters().paid_generations, 2);
    service.emulator.clear_faults();
    trial.await.unwrap().is_image();
    service.post(json!({"prompt": "again"})).await.is_image();
}

#[tokio::test]
async fn a_lost_upload_response_is_recognised_without_read_permission() {
    for (withheld, first) in [
        (vec!["storage.objects.get", "storage.objects.delete", "storage.objects.list"], true),
        (vec!["storage.objects.get", "storage.objects.list"], false),
    ] {
        let options = Options {
            withheld: withheld.iter().map(|permission| (*permission).to_owned()).collect(),
            permission_before_precondition: first,
            ..Options::default()
        };
        let service = Service::on(emulator_with(options).await, CURRENT).await;
        let lost = Fault::new(Stage::UploadEnd, Action::Reset).matching("/iga_req_");
        service.emulator.script(lost);
        service.prompt().await.is_image();
        assert_eq!(images(&service.emulator).len(), 1);
    }
}

#[tokio::test]
async fn a_server_that_omits_or_adds_fields_is_understood() {
    let added_metadata = [("added-by".to_owned(), "the server".to_owned())].into();
    let options = Options { omit_zero_size: true, added_metadata, ..Options::default() };
    let service = Service::on(emulator_with(options).await, CURRENT).await;
    service.emulator.script(Fault::new(Stage::UploadEnd, Action::Reset).matching("/.iga/key/"));
    let send = || {
        let request = service.request().header("content-type", "application/json");
        let body = json!({"prompt": PROMPT}).to_string();
        fetch(request.header("idempotency-key", "k").body(body))
    };
    let first = send().await;
    let is_receipt = |record: &Value| record["object"].is_string();
    eventually(|| records(&service.emulator).iter().any(is_receipt)).await;
    let other = Service::on(service.emulator.clone(), CURRENT).await;
    let request = other.request().header("content-type", "application/json");
    let body = json!({"prompt": PROMPT}).to_string();
    let again = fetch(request.header("idempotency-key", "k").body(body)).await;
    assert_eq!(again.body, first.is_image().body);
    assert_eq!(service.emulator.counters().paid_generations, 1);
}

#[tokio::test]
async fn the_prefix_may_be_the_root() {
    for (prefix, start) in [("", "iga_req_"), ("/a+b/ü//", "a+b/ü/iga_req_")] {
        let service = Service::with(&[CURRENT, &[("IGA_GCS_IMAGE_PREFIX", prefix)]].concat()).await;
        let response = service.prompt().await;
        let object = service.only_object();
        assert!(object.name.starts_with(start), "{}", object.name);
        assert_eq!(response.text("image_url"), format!("gs://{BUCKET}/{}", object.name));
    }
}

#[tokio::test]
async fn a_lost_upload_response_is_recognised_under_any_prefix() {
    let service =
        Service::with(&[CURRENT, &[("IGA_GCS_IMAGE_PREFIX", "a+b/ü?&%/x")]].concat()).await;
    service.emulator.script(Fault::new(Stage::UploadEnd, Action::Reset).matching("/iga_req_"));
    service.prompt().await.is_image();
    assert_eq!(images(&service.emulator).len(), 1);
}
