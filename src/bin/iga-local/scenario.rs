//! The faults that the playground can cause, each for one request, and what came of it.

use crate::cloud::BUCKET;
use crate::hub::Hub;
use crate::instance::Instance;
use hyper::Request;
use iga::app::App;
use iga::google::http::{Via, text};
use iga_emulator::{Action, Emulator, Fault, OperationKind, Stage, StorageOperation};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// The model takes so long that the page gives up and asks again.
    CallerGivesUp,
    /// The model refuses for lack of quota, twice.
    Quota,
    /// The page sends a prompt that the model blocks.
    Blocked,
    /// Cloud Storage fails from the moment at which the image is paid.
    StorageDown,
    /// A second instance is killed while the model makes the image.
    KilledWhileGenerating,
    /// A second instance is killed when the image is stored and its caller waits.
    KilledBeforeAnswering,
}

/// The request that the scenario is about.
#[derive(Deserialize)]
pub struct Start {
    pub scenario: Scenario,
    /// The body of the request, and its headers.
    pub body: serde_json::Value,
    pub workflow: String,
    pub key: String,
}

/// One scenario under way.
pub struct Run {
    workflow: String,
    prompt: String,
    /// What was recorded before it began.
    generations: usize,
    operations: usize,
    task: Option<AbortHandle>,
}

/// What the emulator and the service's log recorded of a scenario.
#[derive(Serialize)]
pub struct Outcome {
    model_calls: usize,
    paid: usize,
    stored: usize,
    delivered: usize,
    /// Requests that Cloud Storage refused with 503.
    storage_refusals: usize,
}

/// What a scenario acts on.
pub struct Services<'a> {
    pub emulator: &'a Emulator,
    pub app: &'a App,
    pub hub: &'a Arc<Hub>,
}

impl Run {
    /// Prepares the fault. Once it returns, the page sends its request.
    ///
    /// # Errors
    /// A sentence, if the fault could not be caused.
    pub async fn begin(start: &Start, on: Services<'_>) -> Result<Run, String> {
        on.emulator.clear_faults();
        let run = Run::prepare(start, &on).await;
        if run.is_err() {
            on.emulator.clear_faults();
        }
        run
    }

    async fn prepare(start: &Start, on: &Services<'_>) -> Result<Run, String> {
        let prompt = start.body["prompt"].as_str().ok_or("The body has no prompt.")?.to_owned();
        let mut run = Run {
            workflow: start.workflow.clone(),
            generations: on.emulator.generations().len(),
            operations: on.emulator.operations().len(),
            task: None,
            prompt: prompt.clone(),
        };
        match start.scenario {
            Scenario::CallerGivesUp => {
                let slow = Fault::new(Stage::Response, Action::Delay { ms: SLOW_MS });
                on.emulator.script(slow.prompt(prompt));
            }
            Scenario::Quota => {
                let refused = Fault::new(Stage::Model, Action::status(429));
                on.emulator.script(refused.prompt(prompt).times(2));
            }
            Scenario::Blocked => {}
            Scenario::StorageDown => {
                // The image itself is refused from the start, so that its upload cannot come first.
                let refused = Fault::new(Stage::UploadStart, Action::status(503)).always();
                on.emulator.script(refused.matching(IMAGES));
                let task = fail_storage(on.emulator.clone(), Arc::clone(on.hub), &run);
                run.task = Some(tokio::spawn(task).abort_handle());
            }
            Scenario::KilledWhileGenerating => {
                let slow = Fault::new(Stage::Response, Action::Delay { ms: SLOW_MS });
                on.emulator.script(slow.prompt(prompt));
                run.kill_instance(start, on, false).await?;
            }
            Scenario::KilledBeforeAnswering => {
                // The object is stored; the instance never learns it.
                let silent = Fault::new(Stage::UploadEnd, Action::Stall);
                on.emulator.script(silent.matching(IMAGES));
                run.kill_instance(start, on, true).await?;
            }
        }
        Ok(run)
    }

    /// Has a second instance begin the request, and kills it when the image is paid or stored.
    async fn kill_instance(
        &self,
        start: &Start,
        on: &Services<'_>,
        is_stored: bool,
    ) -> Result<(), String> {
        let instance = Instance::start(&on.emulator.url(), Arc::clone(on.hub)).await?;
        let pid = instance.pid;
        self.note(on.hub, &format!("A second instance, process {pid}, takes the request."));
        let request = Request::post(format!("{}/generate_image", instance.url))
            .header("content-type", "application/json")
            .header("idempotency-key", &start.key)
            .header("x-workflow-id", &start.workflow)
            .body(text(start.body.to_string()));
        let response = on.app.client.send_unsigned(Via::Fresh, Instant::now() + WITHIN, request);
        let happened = on.emulator.reached(|_| match is_stored {
            false => self.paid(on.emulator) > 0,
            true => self.stored(on.emulator) > 0,
        });
        tokio::select! {
            result = timeout(WITHIN, happened) => {
                result.map_err(|_| "The second instance does not generate.")?;
            }
            _ = response => return Err("The second instance responded too early.".to_owned()),
        }
        instance.kill().await?;
        self.note(on.hub, &format!("SIGKILL: process {pid} has ended. Its caller asks again."));
        Ok(())
    }

    fn note(&self, hub: &Hub, message: &str) {
        hub.publish(&json!({"type": "note", "workflow": self.workflow, "message": message}));
    }

    pub fn is_of(&self, workflow: &str) -> bool {
        self.workflow == workflow
    }

    /// What has been recorded so far. Ends the fault.
    pub fn end(self, emulator: &Emulator, hub: &Hub) -> Outcome {
        self.abort();
        emulator.clear_faults();
        let generations = emulator.generations();
        let of_prompt =
            generations[self.generations..].iter().filter(|one| one.prompt == self.prompt);
        Outcome {
            model_calls: of_prompt.count(),
            paid: self.paid(emulator),
            stored: self.stored(emulator),
            delivered: hub.delivered_to(&self.workflow),
            storage_refusals: self.refusals(emulator),
        }
    }

    pub fn abort(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }

    fn paid(&self, emulator: &Emulator) -> usize {
        let generations = emulator.generations();
        let paid = generations[self.generations..].iter().filter(|one| one.paid);
        paid.filter(|one| one.prompt == self.prompt).count()
    }

    fn stored(&self, emulator: &Emulator) -> usize {
        let operations = emulator.operations();
        let ours = operations[self.operations..].iter().filter(|operation| {
            operation.metadata.get("workflow_id").is_some_and(|id| *id == self.workflow)
        });
        images(ours).len()
    }

    fn refusals(&self, emulator: &Emulator) -> usize {
        let operations = emulator.operations();
        let refused = operations[self.operations..].iter();
        refused.filter(|operation| operation.status == Some(503)).count()
    }
}

/// The names of the images that were stored.
pub fn images<'a>(operations: impl Iterator<Item = &'a StorageOperation>) -> BTreeSet<&'a str> {
    let is_image = |operation: &&StorageOperation| {
        operation.kind == OperationKind::Insert
            && operation.applied
            && operation.bucket == BUCKET
            && !operation.object.contains(RECORDS)
    };
    operations.filter(is_image).map(|operation| operation.object.as_str()).collect()
}

/// Once the image is paid, lets all of Cloud Storage fail for a while.
fn fail_storage(
    emulator: Emulator,
    hub: Arc<Hub>,
    run: &Run,
) -> impl Future<Output = ()> + Send + use<> {
    let (workflow, paid) = (run.workflow.clone(), emulator.counters().paid_generations);
    let note = move |message: &str| {
        hub.publish(&json!({"type": "note", "workflow": workflow, "message": message}));
    };
    async move {
        emulator.reached(|counters| counters.paid_generations > paid).await;
        note("Cloud Storage refuses every request with 503.");
        for stage in [Stage::UploadStart, Stage::Read, Stage::List, Stage::Delete] {
            emulator.script(Fault::new(stage, Action::status(503)).always());
        }
        sleep(DOWN).await;
        emulator.clear_faults();
        note("Cloud Storage responds again.");
    }
}

/// Longer than the page waits before it gives up.
const SLOW_MS: u64 = 5000;
const DOWN: Duration = Duration::from_secs(5);
const WITHIN: Duration = Duration::from_secs(60);

/// In the name of every image, but not of a record.
const IMAGES: &str = "/iga_req_";

/// In the name of every record.
pub const RECORDS: &str = ".iga/";
