//! Cloud Storage: put once, confirmed whole, tried again while that can help.

use crate::support::service::{BUCKET, CURRENT, Service, emulator_with};
use iga_emulator::{Action, Emulator, Fault, Options, Stage};

#[tokio::test]
async fn the_object_is_created_only_where_nothing_is_and_checked_by_the_server() {
    let service = Service::current().await;
    service.prompt().await.is_image();
    let upload = service
        .emulator
        .requests()
        .into_iter()
        .find(|request| request.path.starts_with("/upload/"))
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
async fn trouble_that_passes_costs_tries_and_no_second_image() {
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
        service.emulator.script(Fault::new(stage, action.clone()));
        service.prompt().await.is_image();
        let counters = service.emulator.counters();
        assert_eq!((counters.paid_generations, counters.objects), (1, 1), "{stage:?} {action:?}");
        let lost_answer = stage == Stage::UploadEnd;
        assert_eq!(
            counters.uploads_refused,
            u64::from(lost_answer),
            "a lost answer is met again as 412"
        );
    }
}

#[tokio::test]
async fn trouble_that_stays_is_the_contracts_row() {
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
        let service = Service::current().await;
        service.emulator.script(Fault::new(Stage::UploadStart, action).always());
        let answer = service.prompt().await;
        answer.is_error(500, "IGA_FILE_SAVE_ERROR").details_have(words);
        assert_eq!(answer.text("message"), "Could not save generated image.");
        let counters = service.emulator.counters();
        assert_eq!((counters.paid_generations, counters.objects), (1, 0));
    }
}

#[tokio::test]
async fn a_silent_storage_ends_with_the_deadline() {
    let service =
        Service::with(&[CURRENT, &[("IGA_GENERATION_DEADLINE_SECONDS", "0.5")]].concat()).await;
    service.emulator.script(Fault::new(Stage::UploadBody, Action::Stall).always());
    service
        .prompt()
        .await
        .is_error(500, "IGA_FILE_SAVE_ERROR")
        .details_have("did not answer in time");
    assert_eq!(service.emulator.counters().objects, 0);
}

#[tokio::test]
async fn nothing_is_paid_for_a_bucket_that_does_not_exist() {
    let emulator = Emulator::start(Options::default()).await.unwrap();
    let service = Service::on(emulator, CURRENT).await;
    for _ in 0..2 {
        let answer = service.prompt().await;
        answer
            .is_error(500, "IGA_FILE_SAVE_ERROR")
            .details_have(BUCKET)
            .details_have("does not exist");
    }
    assert_eq!(service.emulator.counters().model_calls, 0);
}

#[tokio::test]
async fn nothing_is_paid_for_a_bucket_that_takes_no_objects() {
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

#[tokio::test]
async fn the_bucket_is_asked_about_once_in_a_process() {
    let service = Service::current().await;
    service.prompt().await.is_image();
    service.prompt().await.is_image();
    let asked = service
        .emulator
        .requests()
        .into_iter()
        .filter(|request| request.path.ends_with("/iam/testPermissions"));
    assert_eq!(asked.count(), 1);
}

#[tokio::test]
async fn the_prefix_may_be_the_root() {
    for (prefix, start) in [("", "iga_req_"), ("/a+b/ü//", "a+b/ü/iga_req_")] {
        let service = Service::with(&[CURRENT, &[("IGA_GCS_IMAGE_PREFIX", prefix)]].concat()).await;
        let answer = service.prompt().await;
        let object = service.only_object();
        assert!(object.name.starts_with(start), "{}", object.name);
        assert_eq!(answer.text("image_url"), format!("gs://{BUCKET}/{}", object.name));
    }
}

#[tokio::test]
async fn a_lost_answer_is_recognised_under_any_prefix() {
    let service =
        Service::with(&[CURRENT, &[("IGA_GCS_IMAGE_PREFIX", "a+b/ü?&%/x")]].concat()).await;
    service.emulator.script(Fault::new(Stage::UploadEnd, Action::Reset));
    service.prompt().await.is_image();
    assert_eq!(service.emulator.counters().objects, 1);
}
