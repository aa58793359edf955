//! The playground of `iga-local serve`: over HTTP, and in a real browser.
//!
//! `IGA_WRITE_DOCS=1 cargo test playground -- --ignored` writes the screenshot `docs/playground.png`.

use crate::support::browser::{Browser, ENTER, TAB};
use crate::support::local::Playground;
use crate::support::python::python;
use crate::support::service::client;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use std::path::Path;
use tokio::process::Command;

const SCREENSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/playground.png");

async fn json_of(request: RequestBuilder) -> Value {
    let response = request.send().await.unwrap();
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

async fn index(http: &Client, url: &str, accept: &str) -> (String, String) {
    let response = http.get(url).header("accept", accept).send().await.unwrap();
    assert_eq!(response.status(), 200);
    (header(&response, "content-type"), response.text().await.unwrap())
}

fn header(response: &Response, name: &str) -> String {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned()
}

#[tokio::test]
async fn a_browser_gets_the_page_and_a_program_the_description() {
    let playground = Playground::start(&["--latency-ms", "0"], &[]).await;
    let http = client();
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let (content_type, page) = index(&http, &playground.url, browser).await;
    assert_eq!(content_type, "text/html; charset=utf-8");
    assert!(page.starts_with("<!doctype html>") && !page.contains("http://www.google"), "{page}");
    for accept in ["*/*", "application/json", "text/html;q=0, */*"] {
        let (content_type, text) = index(&http, &playground.url, accept).await;
        assert_eq!(content_type, "application/json", "{accept}");
        let description: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(description["service"], "iga");
    }
}

#[tokio::test]
async fn the_page_may_run_its_own_script_only() {
    let playground = Playground::start(&["--latency-ms", "0"], &[]).await;
    let response = client().get(&playground.url).header("accept", "text/html").send().await;
    let policy = header(&response.unwrap(), "content-security-policy");
    for rule in ["default-src 'none'", "script-src 'sha256-", "connect-src 'self'"] {
        assert!(policy.contains(rule), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
}

#[tokio::test]
async fn other_sites_cannot_use_the_playground() {
    let playground = Playground::start(&["--latency-ms", "0"], &[]).await;
    let http = client();
    let fault = || {
        let body =
            json!({"scenario": "quota", "workflow": "w", "key": "k", "body": {"prompt": "p"}});
        let request = http.post(format!("{}/playground/faults", playground.url));
        request.body(body.to_string())
    };
    let json_fault = || fault().header("content-type", "application/json");
    let settings = || http.get(format!("{}/playground/settings", playground.url));
    let refused = [
        ("another origin", json_fault().header("origin", "http://example.com")),
        ("another port", json_fault().header("origin", "http://127.0.0.1:1")),
        ("another site", json_fault().header("sec-fetch-site", "cross-site")),
        ("another site of this machine", json_fault().header("sec-fetch-site", "same-site")),
        ("a form", fault().header("content-type", "text/plain")),
        ("no content type", fault()),
        ("another name for this address", json_fault().header("host", "example.com")),
        ("another name to read from", settings().header("host", "example.com:5007")),
        ("another site that reads", settings().header("sec-fetch-site", "cross-site")),
    ];
    for (case, request) in refused {
        assert_eq!(request.send().await.unwrap().status(), 403, "{case}");
    }
    let own =
        json_fault().header("origin", &playground.url).header("sec-fetch-site", "same-origin");
    assert_eq!(own.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn an_image_can_be_shown_and_a_record_cannot_be_read() {
    let playground = Playground::start(&["--latency-ms", "0"], &[]).await;
    let http = client();
    let request = http.post(format!("{}/generate_image", playground.url));
    let request = request
        .header("content-type", "application/json")
        .header("idempotency-key", "a-key")
        .body(json!({"prompt": "a red fox", "output_mime_type": "image/jpeg"}).to_string());
    let uri = json_of(request).await["image_url"].as_str().unwrap().to_owned();
    let images = json_of(http.get(format!("{}/playground/images", playground.url))).await;
    assert_eq!(images.as_array().unwrap().len(), 1);
    assert_eq!(images[0]["uri"], uri);
    let path =
        format!("{}/playground/images/{}", playground.url, images[0]["name"].as_str().unwrap());
    let image = http.get(&path).send().await.unwrap();
    assert_eq!(header(&image, "content-type"), "image/jpeg");
    assert_eq!(header(&image, "x-content-type-options"), "nosniff");
    assert!(image.bytes().await.unwrap().starts_with(&[0xff, 0xd8]));

    let objects = json_of(http.get(format!("{}/_emulator/objects", playground.emulator))).await;
    let names = objects.as_array().unwrap().iter().map(|object| object["name"].as_str().unwrap());
    let records: Vec<_> = names.filter(|name| name.contains(".iga/")).collect();
    assert!(!records.is_empty());
    for name in records {
        let record = http.get(format!("{}/playground/images/{name}", playground.url));
        assert_eq!(record.send().await.unwrap().status(), 404, "{name}");
    }
}

/// Remembers each change of a stage's state, and whether the image was there by then.
const WATCH_STAGES: &str = "
    window.changes = [];
    new MutationObserver(list => list.forEach(({target}) => changes.push([
        target.dataset.stage, target.dataset.state, Boolean(document.querySelector('#runs img')),
    ]))).observe(document.getElementById('runs'), {subtree: true, attributes: true, attributeFilter: ['data-state']});";

const HOSTILE: &str =
    r#"<img src=x onerror="document.title='taken'"> it's </script> "quoted" \ ünïcode"#;

async fn opened(playground: &Playground) -> Browser {
    let browser = Browser::open(&playground.url).await;
    browser.until("document.getElementById('ratio').options.length > 0").await;
    browser.until("document.getElementById('total-paid').textContent !== ''").await;
    browser
}

async fn focus(browser: &Browser) -> String {
    browser.text("document.activeElement.id").await
}

#[tokio::test]
#[ignore = "needs Chromium"]
async fn a_person_generates_an_image_with_the_keyboard() {
    let playground = Playground::start(&[], &[]).await;
    let browser = opened(&playground).await;
    browser.run(WATCH_STAGES).await;

    let mut order = Vec::new();
    for _ in 0..7 {
        browser.press(TAB).await;
        order.push(focus(&browser).await);
        if order.last().unwrap() == "prompt" {
            browser.run("document.getElementById('prompt').select()").await;
            browser.press(HOSTILE).await;
        }
    }
    assert_eq!(order, ["", "prompt", "model", "ratio", "size", "variants", "generate"]);
    browser.run("document.getElementById('ratio').value = '16:9'; document.getElementById('ratio').dispatchEvent(new Event('input', {bubbles: true}))").await;
    runs_as_shown(&browser).await;
    browser.press(ENTER).await;
    browser.until("document.querySelector('#runs img')?.naturalWidth > 0").await;
    browser.until("document.querySelector('#gallery img')?.naturalWidth > 0").await;

    let changes = browser.value("changes").await;
    let position = |stage: &str, state: &str| {
        let is_it = |change: &Value| change[0] == stage && change[1] == state;
        let place = changes.as_array().unwrap().iter().position(is_it);
        place.unwrap_or_else(|| panic!("{stage} is never {state}: {changes}"))
    };
    let all = ["token", "lease", "model", "upload"].map(|stage| position(stage, "done"));
    assert!(all.is_sorted(), "{changes}");
    let model = position("model", "running");
    assert_eq!(changes[model][2], false, "the stages are shown while the model works");
    let times = browser.text("document.querySelector('#runs .stages').innerText").await;
    assert_eq!(times.matches('✓').count(), 4, "{times}");
    assert_eq!(
        browser.text("document.getElementById('status').textContent").await,
        "The image is ready."
    );
    assert_eq!(focus(&browser).await, "generate");

    let alt = browser.text("document.querySelector('#runs img').alt").await;
    assert_eq!(alt, format!("Image for the prompt: {HOSTILE}"));
    let uri = browser.text("document.querySelector('#runs .uri').textContent").await;
    let stored = uri.strip_prefix("gs://").expect("a URI");
    assert!(playground.folder.path().join("images").join(stored).is_file(), "{uri}");
    assert_eq!(browser.text("document.querySelector('#gallery .uri').textContent").await, uri);
    assert_eq!(browser.value("document.querySelectorAll('img[src=x]').length").await, 0);
    assert_eq!(browser.text("document.title").await, "IGA playground");
    let unnamed = "[...document.querySelectorAll('button, a, select, textarea')].filter(one => \
                   !one.textContent.trim() && !one.labels?.length && !one.querySelector('img[alt]')).length";
    assert_eq!(browser.value(unnamed).await, 0, "every control has a name");
    shows_nothing_foreign(&browser, &playground, |_| false).await;
}

/// The code beside the form is correct: the shell reads the form's JSON from curl's arguments, and the
/// Python program gets an image.
async fn runs_as_shown(browser: &Browser) {
    let curl = browser.text("document.getElementById('curl').textContent").await;
    let script = format!("curl() {{ printf '%s\\n' \"$@\"; }}\n{curl}");
    let output = Command::new("sh").args(["-c", &script]).output().await.unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let body: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert_eq!(body, json!({"prompt": HOSTILE, "aspect_ratio": "16:9"}));

    let program = browser.text("document.getElementById('python').textContent").await;
    let mut command = Command::new(python());
    command.args(["-c", &program]).env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    let output = command.output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(text.starts_with("gs://iga-images/images/iga/"), "{program}\n{problem}");
}

/// The page asked nothing of another host and wrote no error, except for those that are expected.
async fn shows_nothing_foreign(
    browser: &Browser,
    playground: &Playground,
    is_expected: impl Fn(&str) -> bool,
) {
    let (console, urls) = browser.logs().await;
    let problems: Vec<_> = console.iter().filter(|message| !is_expected(message)).collect();
    assert!(problems.is_empty(), "{problems:?}");
    let is_foreign = |url: &&String| !url.starts_with(&playground.url) && !url.starts_with("data:");
    assert!(!urls.is_empty());
    assert_eq!(urls.iter().find(is_foreign), None);
}

#[tokio::test]
#[ignore = "needs Chromium"]
async fn each_fault_happens_and_is_counted() {
    let playground = Playground::start(&["--latency-ms", "300"], &[]).await;
    let browser = opened(&playground).await;
    let mut expected = [0, 0, 0];
    for (fault, counts, words) in [
        ("quota", [1, 1, 1], "refused two of 4 calls"),
        ("blocked", [0, 0, 0], "blocked the prompt"),
        ("caller_gives_up", [1, 1, 1], "joined the generation that the first one had begun"),
        ("storage_down", [1, 1, 1], "stored it once Cloud Storage responded"),
        (
            "killed_before_answering",
            [1, 1, 1],
            "names the image that the killed instance had stored",
        ),
        ("killed_while_generating", [2, 1, 1], "it is paid twice"),
    ] {
        browser.run(&format!("document.getElementById('cause-{fault}').focus()")).await;
        browser.press(ENTER).await;
        if fault.starts_with("killed") {
            let waits = "document.getElementById('timeline').textContent.includes('SIGKILL')";
            browser.until(waits).await;
            skip_the_lease(&playground).await;
        }
        browser.until("document.getElementById('sentence').dataset.state === 'done'").await;
        let sentence = browser.text("document.getElementById('sentence').textContent").await;
        let story = browser.text("document.getElementById('story').innerText").await;
        assert!(sentence.contains(words), "{fault}: {story}");
        assert_eq!(counts_of(&browser, "fault").await, counts, "{fault}: {story}");
        for (total, count) in expected.iter_mut().zip(counts) {
            *total += count;
        }
        if fault.starts_with("killed") {
            let pid = story.split_once("process ").unwrap().1;
            let pid = pid.split(|c: char| !c.is_ascii_digit()).next().unwrap();
            assert!(!pid.is_empty() && !Path::new("/proc").join(pid).exists(), "{story}");
        }
        if fault != "blocked" {
            browser.until("document.querySelector('#fault-run img')?.naturalWidth > 0").await;
        }
    }
    let totals = "['paid', 'stored', 'delivered'].map(name => document.getElementById(`total-${name}`).textContent).join()";
    let text = expected.map(|count| count.to_string()).join(",");
    browser.until(&format!("{totals} === '{text}'")).await;
    let counters =
        json_of(client().get(format!("{}/_emulator/counters", playground.emulator))).await;
    assert_eq!(counters["paid_generations"], expected[0]);
    // Chromium itself reports the response to the blocked prompt.
    let is_expected =
        |message: &str| message.contains("/generate_image") && message.contains("400");
    shows_nothing_foreign(&browser, &playground, is_expected).await;
}

/// Lets Cloud Storage's clock pass the life of the killed instance's lease.
async fn skip_the_lease(playground: &Playground) {
    let request = client().post(format!("{}/_emulator/clock", playground.emulator));
    let response = request.body(json!({"advance_ms": 13_000}).to_string()).send().await.unwrap();
    assert!(response.status().is_success());
}

async fn counts_of(browser: &Browser, group: &str) -> [u64; 3] {
    let mut counts = [0; 3];
    for (count, name) in counts.iter_mut().zip(["paid", "stored", "delivered"]) {
        let text =
            browser.text(&format!("document.getElementById('{group}-{name}').textContent")).await;
        *count = text.parse().unwrap();
    }
    counts
}

#[tokio::test]
#[ignore = "needs Chromium"]
async fn variants_are_separate_images() {
    let playground = Playground::start(&["--latency-ms", "300"], &[]).await;
    let browser = opened(&playground).await;
    browser.run("document.getElementById('variants').value = '3'; document.getElementById('generate').click()").await;
    browser.until("document.querySelectorAll('#runs img').length === 3").await;
    browser
        .until("[...document.querySelectorAll('#runs img')].every(image => image.naturalWidth > 0)")
        .await;
    let uris =
        "new Set([...document.querySelectorAll('#runs .uri')].map(uri => uri.textContent)).size";
    assert_eq!(browser.value(uris).await, 3);
}

#[tokio::test]
#[ignore = "needs Chromium"]
async fn the_screenshot_shows_the_page() {
    if std::env::var_os("IGA_WRITE_DOCS").is_some() {
        std::fs::write(SCREENSHOT, screenshot().await).unwrap();
    }
    let image = std::fs::read(SCREENSHOT).unwrap();
    assert!(image.starts_with(b"\x89PNG") && image.len() <= 300 * 1024, "{}", image.len());
}

/// The page after an image and a fault.
async fn screenshot() -> Vec<u8> {
    let playground = Playground::start(&[], &[]).await;
    let browser = opened(&playground).await;
    browser.run("document.getElementById('ratio').value = '16:9'; document.getElementById('generate').click()").await;
    browser.until("document.querySelector('#runs img')?.naturalWidth > 0").await;
    browser.run("document.getElementById('cause-caller_gives_up').click()").await;
    browser.until("document.querySelector('#fault-run img')?.naturalWidth > 0").await;
    browser.until("document.getElementById('sentence').dataset.state === 'done'").await;
    browser.run("document.activeElement.blur(); scrollTo(0, 0)").await;
    let bottom = "Math.ceil(document.getElementById('story').getBoundingClientRect().bottom)";
    let bottom = browser.value(bottom).await.as_u64().unwrap();
    browser.screenshot(1280, u32::try_from(bottom).unwrap() + 28).await
}
