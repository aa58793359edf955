//! Flights on one instance and on two: which request pays, which one joins, and what a failure leaves behind.

use crate::support::service::{
    self, BUCKET, CURRENT, HOUR, PROMPT, Response, Service, config, emulator, emulator_that_limits,
    emulator_with, eventually, fetch, reached,
};
use iga_emulator::{Action, Counters, Fault, Options, Stage};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinHandle;

const SHARED: &[(&str, &str)] = &[
    ("IGA_VERTEXAI_IMAGE_MODEL_ID", "gemini-3.1-flash-image"),
    ("IGA_VERTEXAI_LOCATION", "global"),
    ("IGA_SHARED_RETRIES", "yes"),
];

/// Two instances that share only the emulator; each treats an equal request as a retry.
async fn two(settings: &[(&str, &str)]) -> (Service, Service) {
    let one = that_joins(settings).await;
    let other = Service::that_joins(one.emulator.clone(), settings).await;
    (one, other)
}

async fn that_joins(settings: &[(&str, &str)]) -> Service {
    Service::that_joins(emulator().await, &[CURRENT, settings].concat()).await
}

fn send(service: &Service, key: Option<&str>, body: Value) -> JoinHandle<Response> {
    let mut request =
        service.request().header("content-type", "application/json").body(body.to_string());
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    tokio::spawn(fetch(request))
}

fn prompt() -> Value {
    json!({"prompt": PROMPT})
}

async fn with_key(service: &Service, key: &str) -> Response {
    send(service, Some(key), prompt()).await.unwrap()
}

/// Waits until the model has been called `calls` times.
async fn model_called(service: &Service, calls: u64) {
    reached(&service.emulator, |counters| counters.model_calls >= calls).await;
}

fn delay_model(service: &Service, ms: u64) {
    service.fault(Stage::Model, Action::Delay { ms });
}

fn records(service: &Service) -> Vec<Value> {
    service::records(&service.emulator)
}

fn images(service: &Service) -> usize {
    service::images(&service.emulator).len()
}

fn are_receipts(service: &Service, count: usize) -> bool {
    let records = records(service);
    records.len() == count && records.iter().all(|record| record["object"].is_string())
}

fn are_released(service: &Service, count: usize) -> bool {
    let records = records(service);
    records.len() == count && records.iter().all(|record| record["released"].is_string())
}

#[tokio::test]
async fn the_same_key_gets_the_same_image_from_any_instance_at_any_time() {
    let (one, other) = two(CURRENT).await;
    let first = with_key(&one, "k").await;
    first.is_image();
    one.emulator.advance_clock(Duration::from_secs(86_400));
    for service in [&one, &other] {
        assert_eq!(with_key(service, "k").await.body, first.body);
    }
    assert_eq!((one.emulator.counters().paid_generations, images(&one)), (1, 1));
    assert_ne!(with_key(&other, "another").await.body, first.body);
}

#[tokio::test]
async fn a_key_reused_for_another_request_is_422_on_every_instance() {
    let (one, other) = two(CURRENT).await;
    with_key(&one, "k").await.is_image();
    for service in [&one, &other] {
        for body in
            [json!({"prompt": "something else"}), json!({"prompt": PROMPT, "aspect_ratio": "16:9"})]
        {
            let refused = send(service, Some("k"), body).await.unwrap();
            refused.is_error(422, "IGA_IDEMPOTENCY_KEY_REUSED");
            assert_eq!(
                refused.text("message"),
                "Idempotency key was already used with a different request."
            );
        }
    }
    assert_eq!(one.emulator.counters().paid_generations, 1);
}

#[tokio::test]
async fn a_key_still_serves_its_own_request_while_another_is_refused() {
    let (one, other) = two(CURRENT).await;
    let first = with_key(&one, "k").await;
    // The other instance does not know yet which request owns the key.
    other.fault(Stage::Read, Action::Delay { ms: 500 });
    let wrong = send(&other, Some("k"), json!({"prompt": "something else"}));
    reached(&other.emulator, |counters| counters.metadata_gets > 0).await;
    assert_eq!(with_key(&other, "k").await.is_image().body, first.body);
    wrong.await.unwrap().is_error(422, "IGA_IDEMPOTENCY_KEY_REUSED");
}

#[tokio::test]
async fn every_key_header_means_the_same() {
    let service = Service::current().await;
    let first = with_key(&service, "k").await;
    for header in ["x-idempotency-key", "x-cloudtasks-taskname"] {
        let request =
            service.request().header("content-type", "application/json").header(header, "k");
        assert_eq!(fetch(request.body(prompt().to_string())).await.body, first.body);
    }
    assert_eq!(service.emulator.counters().paid_generations, 1);
}

#[tokio::test]
async fn many_requests_with_one_key_on_two_instances_pay_once() {
    let (one, other) = two(CURRENT).await;
    delay_model(&one, 100);
    let requests: Vec<_> = (0..10)
        .map(|i| send(if i % 2 == 0 { &one } else { &other }, Some("k"), prompt()))
        .collect();
    let mut urls = Vec::new();
    for request in requests {
        urls.push(request.await.unwrap().is_image().text("image_url").to_owned());
    }
    urls.dedup();
    assert_eq!((urls.len(), one.emulator.counters().paid_generations, images(&one)), (1, 1, 1));
}

#[tokio::test]
async fn a_retry_without_a_key_joins_the_running_generation() {
    let service = that_joins(&[]).await;
    delay_model(&service, 900);
    let first = send(&service, None, prompt());
    model_called(&service, 1).await;
    let retry = send(&service, None, prompt()).await.unwrap();
    assert_eq!(retry.is_image().body, first.await.unwrap().body);
    assert_eq!(service.emulator.counters().paid_generations, 1);
}

#[tokio::test]
async fn a_caller_that_left_gets_its_image_when_it_returns() {
    let service = that_joins(&[]).await;
    delay_model(&service, 500);
    let first = send(&service, None, prompt());
    model_called(&service, 1).await;
    first.abort();
    service.prompt().await.is_image();
    // The generation has completed, and the retry window is still open.
    service.prompt().await.is_image();
    assert_eq!((service.emulator.counters().paid_generations, images(&service)), (1, 1));
}

#[tokio::test]
async fn requests_fired_together_are_variants() {
    let one = Service::with(SHARED).await;
    delay_model(&one, 300);
    let requests: Vec<_> = (0..3).map(|_| send(&one, None, prompt())).collect();
    let mut urls = Vec::new();
    for request in requests {
        urls.push(request.await.unwrap().is_image().text("image_url").to_owned());
    }
    urls.sort();
    urls.dedup();
    assert_eq!((urls.len(), one.emulator.counters().paid_generations), (3, 3));
}

#[tokio::test]
async fn joining_can_be_switched_off() {
    let service = that_joins(&[("IGA_RETRY_WINDOW_SECONDS", "off")]).await;
    delay_model(&service, 900);
    let first = send(&service, None, prompt());
    model_called(&service, 1).await;
    let second = service.prompt().await;
    assert_ne!(second.is_image().body, first.await.unwrap().body);
}

#[tokio::test]
async fn a_different_request_never_joins() {
    let service = that_joins(&[]).await;
    let first = service.prompt().await;
    for body in
        [json!({"prompt": format!("{PROMPT}!")}), json!({"prompt": PROMPT, "aspect_ratio": "16:9"})]
    {
        assert_ne!(service.post(body).await.is_image().body["image_url"], first.body["image_url"]);
    }
}

#[tokio::test]
async fn a_failure_is_shared_with_waiting_callers_and_not_remembered() {
    let service = Service::current().await;
    delay_model(&service, 700);
    service.fault(Stage::Response, Action::status(500));
    let first = send(&service, Some("k"), prompt());
    model_called(&service, 1).await;
    let joined = send(&service, Some("k"), prompt());
    for request in [first, joined] {
        request.await.unwrap().is_error(500, "IGA_VERTEXAI_API_ERROR");
    }
    eventually(|| are_released(&service, 1)).await;
    with_key(&service, "k").await.is_image();
}

#[tokio::test]
async fn without_cloud_storage_nothing_is_paid() {
    let service = Service::current().await;
    service
        .emulator
        .script(Fault::new(Stage::UploadStart, Action::status(503)).matching("/.iga/").always());
    with_key(&service, "k").await.is_error(500, "IGA_FILE_SAVE_ERROR");
    assert_eq!(service.emulator.counters().model_calls, 0);
}

#[tokio::test]
async fn a_response_waits_while_its_paid_image_cannot_be_stored() {
    for key in [None, Some("k")] {
        let service = that_joins(&[]).await;
        // The fault hits all tries of the first upload and ends after them.
        service.emulator.script(
            Fault::new(Stage::UploadStart, Action::status(503)).matching("/iga_req_").times(3),
        );
        // The image is paid, so the response waits until it is stored.
        send(&service, key, prompt()).await.unwrap().is_image();
        assert_eq!(
            (service.emulator.counters().paid_generations, images(&service)),
            (1, 1),
            "{key:?}"
        );
    }
}

#[tokio::test]
async fn shared_retries_join_across_instances() {
    let (one, other) = two(SHARED).await;
    delay_model(&one, 1500);
    let first = send(&one, None, prompt());
    model_called(&one, 1).await;
    let retry = send(&other, None, prompt()).await.unwrap();
    assert_eq!(retry.is_image().body, first.await.unwrap().body);
    assert_eq!((one.emulator.counters().paid_generations, images(&one)), (1, 1));

    one.emulator.advance_clock(Duration::from_secs(60));
    let later = Service::that_joins(one.emulator.clone(), SHARED).await.prompt().await;
    assert_ne!(later.is_image().body, retry.body, "after the window an equal request is a new one");
    assert_eq!(records(&one).len(), 1, "the record is used again");
}

/// Requests to Cloud Storage for objects since `before`: writes, refused writes, reads.
fn storage_operations(service: &Service, before: &Counters) -> [u64; 3] {
    let now = service.emulator.counters();
    [
        now.uploads_completed - before.uploads_completed,
        now.uploads_refused - before.uploads_refused,
        now.metadata_gets - before.metadata_gets,
    ]
}

#[tokio::test]
async fn coordination_costs_the_operations_that_the_docs_state() {
    let emulator = emulator().await;
    let mut config = config(&emulator, CURRENT);
    // A busy machine may take longer than a try, and another try would be counted.
    config.timing.record_try = HOUR;
    let one = Service::run(emulator, config.clone()).await;
    one.prompt().await.is_image();
    assert_eq!(
        storage_operations(&one, &Counters::default()),
        [2, 0, 0],
        "with the probe of the bucket"
    );
    let before = one.emulator.counters();
    one.post(json!({"prompt": "another"})).await.is_image();
    assert_eq!(storage_operations(&one, &before), [1, 0, 0], "without a key");
    let before = one.emulator.counters();
    with_key(&one, "k").await.is_image();
    let written = before.uploads_completed + 3;
    reached(&one.emulator, |counters| counters.uploads_completed >= written).await;
    assert_eq!(storage_operations(&one, &before), [3, 0, 0], "with a key");
    let before = one.emulator.counters();
    with_key(&Service::run(one.emulator.clone(), config).await, "k").await.is_image();
    assert_eq!(storage_operations(&one, &before), [0, 1, 2], "from the receipt");
}

#[tokio::test]
async fn without_sharing_an_unkeyed_request_leaves_no_record() {
    let service = Service::current().await;
    service.prompt().await.is_image();
    assert_eq!(records(&service).len(), 0);
}

#[tokio::test]
async fn the_lease_of_a_dead_holder_is_taken_over_by_exactly_one() {
    let (dead, one) = two(CURRENT).await;
    let other = Service::that_joins(dead.emulator.clone(), CURRENT).await;
    dead.fault(Stage::Model, Action::Stall);
    drop(send(&dead, Some("k"), prompt()));
    model_called(&dead, 1).await;
    let waiting: Vec<_> =
        [&one, &other, &one, &other].map(|service| send(service, Some("k"), prompt())).into();
    dead.emulator.advance_clock(HOUR + Duration::from_secs(2));
    let mut urls = Vec::new();
    for request in waiting {
        urls.push(request.await.unwrap().is_image().text("image_url").to_owned());
    }
    urls.dedup();
    assert_eq!((urls.len(), dead.emulator.counters().paid_generations, images(&dead)), (1, 1, 1));
}

#[tokio::test]
async fn a_holder_that_finishes_second_returns_the_first_image_and_keeps_no_other() {
    let (slow, quick) = two(CURRENT).await;
    delay_model(&slow, 1500);
    let slow_response = send(&slow, Some("k"), prompt());
    model_called(&slow, 1).await;
    slow.emulator.advance_clock(HOUR + Duration::from_secs(2));
    let first = with_key(&quick, "k").await;
    assert_eq!(slow_response.await.unwrap().body, first.is_image().body);
    assert_eq!((slow.emulator.counters().paid_generations, images(&slow)), (2, 1));
}

#[tokio::test]
async fn a_lease_whose_response_was_lost_is_recognised_as_our_own() {
    for action in [Action::Reset, Action::status(503), Action::Truncate] {
        let service = Service::current().await;
        service.emulator.script(Fault::new(Stage::UploadEnd, action).matching("/.iga/").times(2));
        with_key(&service, "k").await.is_image();
        eventually(|| are_receipts(&service, 1)).await;
        let receipt = &records(&service)[0];
        assert_eq!(receipt["model"], "gemini-3.1-flash-image");
        assert!(!receipt.to_string().contains("fox"), "no prompt in the record");
        assert_eq!((service.emulator.counters().paid_generations, images(&service)), (1, 1));
    }
}

#[tokio::test]
async fn a_lease_is_kept_while_its_image_cannot_be_stored() {
    let emulator = emulator().await;
    let mut config = config(&emulator, CURRENT);
    config.timing.lease_life = Duration::from_millis(900);
    let service = Service::run(emulator, config).await;
    service
        .emulator
        .script(Fault::new(Stage::UploadStart, Action::status(403)).matching("/iga_req_").always());
    let waiting = send(&service, Some("k"), prompt());
    eventually(|| records(&service).iter().any(|record| record["renewal"].is_string())).await;
    service.emulator.clear_faults();
    // A joining caller makes the upload start at once, and both get the image.
    let joined = with_key(&service, "k").await;
    assert_eq!(waiting.await.unwrap().body, joined.is_image().body);
    assert_eq!((service.emulator.counters().paid_generations, images(&service)), (1, 1));
}

#[tokio::test]
async fn a_lease_whose_write_may_have_succeeded_is_released() {
    let service = Service::current().await;
    service.emulator.script(Fault::new(Stage::UploadEnd, Action::Reset).matching("/.iga/"));
    service
        .emulator
        .script(Fault::new(Stage::Read, Action::status(503)).matching("/.iga/").times(2));
    with_key(&service, "k").await.is_error(500, "IGA_FILE_SAVE_ERROR");
    assert_eq!(service.emulator.counters().model_calls, 0);
    eventually(|| are_released(&service, 1)).await;
    with_key(&service, "k").await.is_image();
}

#[tokio::test]
async fn answer_within_responds_before_the_image_is_ready() {
    let service = that_joins(&[("IGA_ANSWER_WITHIN_SECONDS", "0.1")]).await;
    delay_model(&service, 1000);
    let early = service.prompt().await;
    early
        .is_error(503, "IGA_VERTEXAI_API_ERROR")
        .details_have("Service Unavailable: the image is not ready yet");
    assert_eq!(early.header("retry-after"), "1");
    let mut tries = 0;
    while service.prompt().await.status == 503 {
        tries += 1;
        assert!(tries < 100);
    }
    assert_eq!((service.emulator.counters().paid_generations, images(&service)), (1, 1));
}

#[tokio::test]
async fn a_full_instance_still_accepts_joins() {
    let service = that_joins(&[("IGA_MAX_GENERATIONS", "1")]).await;
    delay_model(&service, 900);
    let first = send(&service, None, prompt());
    model_called(&service, 1).await;
    service.post(json!({"prompt": "another"})).await.is_error(503, "IGA_OVERLOADED");
    assert_eq!(service.prompt().await.is_image().body, first.await.unwrap().body);
    service.post(json!({"prompt": "another"})).await.is_image();
}

#[tokio::test]
async fn a_stored_image_is_delivered_even_if_its_receipt_fails() {
    for action in [Action::Stall, Action::status(503), Action::status(403)] {
        let (one, other) = two(CURRENT).await;
        let receipt = Fault::new(Stage::UploadStart, action.clone()).matching("/.iga/key/");
        one.emulator.script(receipt.with_metadata("object").always());
        let first = with_key(&one, "k").await;
        first.is_image();
        // The lease names the image, so the other instance finds it once the lease has expired.
        one.emulator.advance_clock(HOUR + Duration::from_secs(2));
        assert_eq!(with_key(&other, "k").await.body, first.body, "{action:?}");
        assert_eq!((one.emulator.counters().paid_generations, images(&one)), (1, 1));
    }
}

#[tokio::test]
async fn a_renewal_without_a_response_is_retried_and_pays_nothing() {
    let emulator = emulator().await;
    let mut one_config = config(&emulator, CURRENT);
    one_config.timing.lease_life = Duration::from_millis(1500);
    one_config.timing.record_try = Duration::from_millis(150);
    let one = Service::run(emulator.clone(), one_config).await;
    let renewal = Fault::new(Stage::UploadEnd, Action::Stall).matching("/.iga/key/");
    emulator.script(renewal.with_metadata("renewal").times(2));
    delay_model(&one, 2500);
    with_key(&one, "k").await.is_image();
    eventually(|| are_receipts(&one, 1)).await;
    assert_eq!((emulator.counters().paid_generations, images(&one)), (1, 1));
}

#[tokio::test]
async fn a_holder_that_lost_its_lease_does_not_pay() {
    let emulator = emulator().await;
    let mut config = config(&emulator, CURRENT);
    config.timing.lease_life = Duration::from_millis(600);
    config.timing.record_try = Duration::from_millis(500);
    let one = Service::run(emulator.clone(), config).await;
    // The model is busy at first. Before the next call, the lease expires because no renewal gets a response, and
    // another instance pays.
    let renewal = Fault::new(Stage::UploadStart, Action::Stall).matching("/.iga/key/");
    emulator.script(renewal.with_metadata("renewal").always());
    let busy = Action::status(429).header("retry-after", "5");
    one.fault(Stage::Model, busy);
    let waiting = send(&one, Some("k"), prompt());
    model_called(&one, 1).await;
    let other = Service::on(emulator.clone(), CURRENT).await;
    emulator.advance_clock(HOUR + Duration::from_secs(2));
    let first = with_key(&other, "k").await;
    emulator.clear_faults();
    assert_eq!(waiting.await.unwrap().body, first.is_image().body);
    assert_eq!((emulator.counters().paid_generations, images(&one)), (1, 1));
}

#[tokio::test]
async fn a_receipt_counts_only_while_its_image_exists() {
    let (one, other) = two(CURRENT).await;
    let first = with_key(&one, "k").await;
    eventually(|| are_receipts(&one, 1)).await;
    let name = first.text("image_url").strip_prefix(&format!("gs://{BUCKET}/")).unwrap();
    one.emulator.script(Fault::new(Stage::Stat, Action::status(404)).matching(name).always());
    let second = with_key(&other, "k").await;
    assert_ne!(second.is_image().body, first.body);
    assert_eq!(one.emulator.counters().paid_generations, 2);
}

#[tokio::test]
async fn a_request_of_uncertain_age_on_another_instance_is_a_retry() {
    for omit_date in [false, true] {
        let options = Options { omit_date, ..Options::default() };
        let emulator = emulator_with(options).await;
        let instance = async || {
            let mut config = config(&emulator, SHARED);
            config.timing.variant_age = iga::config::Timing::DEFAULT.variant_age;
            Service::run(emulator.clone(), config).await
        };
        let (one, other) = (instance().await, instance().await);
        delay_model(&one, 1500);
        let first = send(&one, None, prompt());
        model_called(&one, 1).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let retry = other.prompt().await;
        assert_eq!(retry.is_image().body, first.await.unwrap().body, "{omit_date}");
        assert_eq!(emulator.counters().paid_generations, 1);
    }
}

#[tokio::test]
async fn the_retry_of_a_variant_gets_the_image_that_no_caller_received() {
    tokio::join!(retry_of_a_variant(false), retry_of_a_variant(true));
}

/// Two variants, of which one caller leaves and tries again, on the same instance or `elsewhere`.
async fn retry_of_a_variant(elsewhere: bool) {
    let emulator = emulator().await;
    let mut config = config(&emulator, SHARED);
    // The variants begin within this time even on a busy machine.
    config.timing.variant_age = Duration::from_secs(1);
    let one = Service::run(emulator.clone(), config.clone()).await;
    let other = Service::run(emulator.clone(), config).await;
    // Fetch tokens and open connections first, so that the variants arrive together.
    for service in [&one, &other] {
        service.post(json!({"prompt": "another"})).await.is_image();
    }
    delay_model(&one, 4000);
    delay_model(&one, 4000);
    let calls = emulator.counters().model_calls;
    let stays = send(&one, None, prompt());
    let leaves = send(&one, None, prompt());
    model_called(&one, calls + 2).await;
    leaves.abort();
    let is_owed = |record: &Value| record["owed"] == "yes";
    eventually(|| records(&one).iter().any(is_owed)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let retry = if elsewhere { other.prompt().await } else { one.prompt().await };
    let stayed = stays.await.unwrap();
    assert_ne!(retry.is_image().body, stayed.is_image().body, "{elsewhere}");
    assert_eq!(emulator.counters().model_calls, calls + 2);
}

#[tokio::test]
async fn a_lease_is_released_in_spite_of_two_failures() {
    for action in [Action::status(503), Action::status(429), Action::Reset] {
        let service = Service::current().await;
        let release = Fault::new(Stage::UploadStart, action).matching("/.iga/key/");
        service.emulator.script(release.with_metadata("released").times(2));
        service.fault(Stage::Model, Action::status(500));
        with_key(&service, "k").await.is_error(500, "IGA_VERTEXAI_API_ERROR");
        eventually(|| are_released(&service, 1)).await;
        with_key(&service, "k").await.is_image();
    }
}

#[tokio::test]
async fn one_mutation_per_second_and_object_is_enough() {
    let mutation_interval = Some(Duration::from_millis(300));
    let emulator = emulator_that_limits(Options { mutation_interval, ..Options::default() }).await;
    let mut config = config(&emulator, CURRENT);
    config.timing.record_spacing = Duration::from_millis(320);
    let service = Service::run(emulator, config).await;
    service.fault(Stage::Model, Action::status(500));
    with_key(&service, "k").await.is_error(500, "IGA_VERTEXAI_API_ERROR");
    eventually(|| are_released(&service, 1)).await;
    with_key(&service, "other").await.is_image();
    eventually(|| records(&service).iter().any(|record| record["object"].is_string())).await;
    assert_eq!(service.emulator.counters().uploads_refused, 0);
}

#[tokio::test]
async fn an_account_without_read_or_overwrite_keeps_the_documented_promises() {
    let (get, delete) = ("storage.objects.get", "storage.objects.delete");
    for (withheld, key_again) in [(vec![get], 500), (vec![delete], 200), (vec![get, delete], 500)] {
        let withheld = withheld.into_iter().map(str::to_owned).collect();
        let emulator = emulator_with(Options { withheld, ..Options::default() }).await;
        let one = Service::on(emulator.clone(), CURRENT).await;
        let first = with_key(&one, "k").await;
        first.is_image();
        emulator.advance_clock(HOUR + Duration::from_secs(2));
        let other = Service::on(emulator.clone(), CURRENT).await;
        let again = with_key(&other, "k").await;
        assert_eq!(again.status, key_again, "{again:?}");
        match key_again {
            200 => assert_eq!(again.body, first.body),
            _ => drop(again.details_have("storage.objects.get")),
        }
        let shared = Service::on(emulator.clone(), SHARED).await;
        shared.prompt().await.is_image();
        assert_eq!(emulator.counters().paid_generations, 2);
    }
}

/// Stops while Cloud Storage is silent, and while the request waits for another instance.
#[tokio::test]
async fn a_stop_signal_keeps_stored_images_and_releases_unfinished_leases() {
    let receipt_hangs = async {
        let emulator = emulator().await;
        let config = config(&emulator, CURRENT);
        let (service, stop) = Service::run_until_stopped(emulator, config).await;
        let receipt = Fault::new(Stage::UploadStart, Action::Stall).matching("/.iga/key/");
        service.emulator.script(receipt.with_metadata("object").always());
        with_key(&service, "k").await.is_image();
        stop.now().await;
        let records = records(&service);
        assert!(records.len() == 1 && records[0]["life_ms"].is_string(), "{records:?}");
    };
    let lease_hangs = async {
        let emulator = emulator().await;
        let mut config = config(&emulator, CURRENT);
        config.timing.record_try = Duration::from_secs(60);
        let (service, stop) = Service::run_until_stopped(emulator, config).await;
        service.emulator.script(Fault::new(Stage::UploadEnd, Action::Stall).matching("/.iga/key/"));
        let waiting = send(&service, Some("k"), prompt());
        reached(&service.emulator, |counters| counters.uploads_completed > 0).await;
        stop.now().await;
        waiting.await.unwrap().is_error(503, "IGA_OVERLOADED");
        assert!(are_released(&service, 1), "{:?}", records(&service));
    };
    let other_is_waited_for = async {
        let holder = Service::current().await;
        holder.fault(Stage::Model, Action::Stall);
        let _held = send(&holder, Some("k"), prompt());
        model_called(&holder, 1).await;
        let config = config(&holder.emulator, CURRENT);
        let (service, stop) = Service::run_until_stopped(holder.emulator.clone(), config).await;
        let before = records(&holder);
        let waiting = send(&service, Some("k"), prompt());
        reached(&service.emulator, |counters| counters.metadata_gets > 1).await;
        stop.now().await;
        waiting.await.unwrap().is_error(503, "IGA_OVERLOADED");
        assert_eq!(records(&holder), before);
    };
    tokio::join!(receipt_hangs, lease_hangs, other_is_waited_for);
}
