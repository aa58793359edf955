//! Chromium without a window, driven over WebDriver (w3.org/TR/webdriver2).

use crate::support::service::client;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Client;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A browser with one page.
pub struct Browser {
    _driver: Child,
    address: String,
    session: String,
    http: Client,
}

impl Browser {
    /// Starts the driver and opens a page.
    pub async fn open(url: &str) -> Browser {
        // The driver listens on a free port of IPv4 that must be free for IPv6 too; another may be quicker.
        let (driver, port) = loop {
            if let Some(started) = start_driver().await {
                break started;
            }
        };
        let address = format!("127.0.0.1:{port}");
        let mut browser =
            Browser { _driver: driver, address, session: String::new(), http: client() };
        let options = json!({"args": ARGUMENTS});
        let logs = json!({"browser": "ALL", "performance": "ALL"});
        let capabilities = json!({
            "goog:chromeOptions": options,
            "goog:loggingPrefs": logs,
            "timeouts": {"script": 120_000},
        });
        let session =
            browser.call("session", json!({"capabilities": {"alwaysMatch": capabilities}})).await;
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        browser.command("url", json!({"url": url})).await;
        browser
    }

    /// The value of a JavaScript expression.
    pub async fn value(&self, expression: &str) -> Value {
        let script = format!("return {expression}");
        self.command("execute/sync", json!({"script": script, "args": []})).await
    }

    pub async fn text(&self, expression: &str) -> String {
        self.value(expression).await.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a JavaScript expression is true.
    pub async fn until(&self, expression: &str) {
        let script = format!(
            "const done = arguments[0]; const look = () => ({expression}) ? done() : setTimeout(look, 20); look();"
        );
        self.command("execute/async", json!({"script": script, "args": []})).await;
    }

    /// Runs JavaScript.
    pub async fn run(&self, script: &str) {
        self.command("execute/sync", json!({"script": script, "args": []})).await;
    }

    /// Presses keys one after the other, where the focus is; special ones as WebDriver codes them.
    pub async fn press(&self, keys: &str) {
        let press = |key: char| {
            [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]
        };
        let actions: Vec<_> = keys.chars().flat_map(press).collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.command("actions", json!({"actions": [keyboard]})).await;
    }

    /// What the page wrote to the console, and the URLs that it asked for.
    pub async fn logs(&self) -> (Vec<String>, Vec<String>) {
        let console = self.command("se/log", json!({"type": "browser"})).await;
        let console = console.as_array().unwrap().iter();
        let console = console.map(|entry| entry["message"].as_str().unwrap().to_owned());
        let traffic = self.command("se/log", json!({"type": "performance"})).await;
        let traffic = traffic.as_array().unwrap().iter().filter_map(|entry| {
            let message: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let message = &message["message"];
            let is_request = message["method"] == "Network.requestWillBeSent";
            is_request.then(|| message["params"]["request"]["url"].as_str().unwrap().to_owned())
        });
        (console.collect(), traffic.collect())
    }

    /// The page's top as a PNG.
    pub async fn screenshot(&self, width: u32, height: u32) -> Vec<u8> {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
        let image = self.devtools("Page.captureScreenshot", json!({})).await;
        BASE64_STANDARD.decode(image["data"].as_str().unwrap()).unwrap()
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.command("goog/cdp/execute", body).await
    }

    async fn command(&self, name: &str, body: Value) -> Value {
        self.call(&format!("session/{}/{name}", self.session), body).await
    }

    async fn call(&self, path: &str, body: Value) -> Value {
        let request = self.http.post(format!("http://{}/{path}", self.address));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let response = request.send().await.unwrap();
        let is_success = response.status().is_success();
        let mut response: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        assert!(is_success, "{path} {body}: {response}");
        response["value"].take()
    }
}

/// Starts the driver that `IGA_TEST_CHROMEDRIVER` names, otherwise the one on the path, on a free port; `None` if
/// another program took the port.
async fn start_driver() -> Option<(Child, String)> {
    let program =
        std::env::var_os("IGA_TEST_CHROMEDRIVER").unwrap_or(OsString::from("chromedriver"));
    let mut driver = Command::new(program)
        .arg("--port=0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("chromedriver can be started");
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let mut output = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Some((driver, port.trim_end_matches('.').to_owned()));
        }
        output += &line;
    }
    assert!(output.contains("port not available"), "{output}");
    None
}

impl Drop for Browser {
    /// Ends the browser; the driver, when it is killed, would leave it running.
    fn drop(&mut self) {
        let Ok(mut stream) = TcpStream::connect(&self.address) else { return };
        let head = format!(
            "DELETE /session/{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.session, self.address
        );
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.read(&mut [0; 512]);
    }
}

pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";

/// Without a sandbox, because root has none. No name leads anywhere, so the browser can reach this machine only.
const ARGUMENTS: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=1280,900",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];
