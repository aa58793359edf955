//! A push queue in front, as Cloud Tasks is one: it delivers at least once, and every task is paid once.

use crate::support::service::{Answer, CURRENT, HOUR, PROMPT, Service, answer, client, emulator};
use iga_emulator::{Action, Emulator, Fault, Stage};
use reqwest::Client;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// A queue that sends its tasks to instances of the service, now to one, now to another.
struct Queue {
    instances: Vec<Service>,
    next: AtomicUsize,
    http: Client,
    /// `--max-concurrent-dispatches`
    dispatches: Semaphore,
    /// `--max-attempts`
    max_attempts: usize,
    /// A request without an answer by then has failed.
    dispatch_deadline: Duration,
}

impl Queue {
    async fn of(emulator: &Emulator, dispatch_deadline: Duration) -> Arc<Queue> {
        let instances = vec![
            Service::on(emulator.clone(), CURRENT).await,
            Service::on(emulator.clone(), CURRENT).await,
        ];
        let (next, http, dispatches) = (AtomicUsize::new(0), client(), Semaphore::new(8));
        Arc::new(Queue { instances, next, http, dispatches, max_attempts: 100, dispatch_deadline })
    }

    /// Delivers a task until an attempt is answered with 2xx; all attempts, None being a deadline that passed.
    async fn deliver(&self, task: &str, prompt: &str) -> Vec<Option<Answer>> {
        let mut attempts: Vec<Option<Answer>> = Vec::new();
        while attempts.len() < self.max_attempts {
            let _turn = self.dispatches.acquire().await.unwrap();
            let instance =
                &self.instances[self.next.fetch_add(1, Ordering::Relaxed) % self.instances.len()];
            let request = self.http.post(format!("{}/generate_image", instance.url));
            let request = request
                .header("content-type", "application/json")
                .header("x-cloudtasks-queuename", "images");
            let request = request.header("x-cloudtasks-taskname", task);
            let request = request.header("x-cloudtasks-taskretrycount", attempts.len());
            let request = request.body(json!({"prompt": prompt}).to_string());
            attempts.push(timeout(self.dispatch_deadline, answer(request)).await.ok());
            if statuses(&attempts).last().is_some_and(|status| (200..300).contains(status)) {
                break;
            }
        }
        attempts
    }
}

/// 0 where no answer came in time.
fn statuses(attempts: &[Option<Answer>]) -> Vec<u16> {
    attempts.iter().map(|answer| answer.as_ref().map_or(0, |answer| answer.status)).collect()
}

fn image(attempts: &[Option<Answer>]) -> String {
    let last = attempts.last().unwrap().as_ref().expect("the last attempt is answered");
    last.is_image().text("image_url").to_owned()
}

fn images(emulator: &Emulator) -> usize {
    emulator.objects().into_iter().filter(|object| !object.name.contains("/.iga/")).count()
}

#[tokio::test]
async fn a_task_that_fails_is_delivered_again_and_paid_once() {
    let tries_of_one_delivery = 3;
    let saving = |part: &str| Fault::new(Stage::UploadStart, Action::status(503)).matching(part);
    let lost = |part: &str| Fault::new(Stage::UploadEnd, Action::Reset).matching(part);
    for (fault, expected) in [
        (
            Fault::new(Stage::Model, Action::status(429)).times(tries_of_one_delivery),
            vec![429, 200],
        ),
        (
            Fault::new(Stage::Model, Action::status(503)).times(tries_of_one_delivery),
            vec![503, 200],
        ),
        (
            Fault::new(Stage::Token, Action::status(503)).times(tries_of_one_delivery),
            vec![503, 200],
        ),
        (saving("/.iga/").times(tries_of_one_delivery), vec![500, 200]),
        (lost("/iga_req_"), vec![200]),
        (lost("/.iga/"), vec![200]),
    ] {
        let emulator = emulator().await;
        let queue = Queue::of(&emulator, HOUR).await;
        emulator.script(fault.clone());
        let first = queue.deliver("task", PROMPT).await;
        assert_eq!(statuses(&first), expected, "{fault:?}");
        let again = queue.deliver("task", PROMPT).await;
        assert_eq!(image(&again), image(&first), "{fault:?}");
        assert_eq!((emulator.counters().paid_generations, images(&emulator)), (1, 1), "{fault:?}");
    }
}

#[tokio::test]
async fn a_task_whose_deadline_passes_finds_its_image_at_the_next_delivery() {
    let emulator = emulator().await;
    let queue = Queue::of(&emulator, Duration::from_millis(400)).await;
    emulator.script(Fault::new(Stage::Model, Action::Delay { ms: 1500 }));
    let attempts = queue.deliver("task", PROMPT).await;
    assert_eq!(statuses(&attempts)[0], 0);
    image(&attempts);
    // Not even under way is there another.
    assert_eq!((emulator.counters().model_calls, images(&emulator)), (1, 1));
}

#[tokio::test]
async fn a_task_that_can_never_succeed_ends_with_its_attempts() {
    let emulator = emulator().await;
    let mut queue = Queue::of(&emulator, HOUR).await;
    Arc::get_mut(&mut queue).unwrap().max_attempts = 3;
    let attempts = queue.deliver("task", "[blocked]").await;
    assert_eq!(
        (statuses(&attempts), emulator.counters().paid_generations),
        (vec![400, 400, 400], 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_worked_off_whatever_fails_and_each_task_is_paid_once() {
    const TASKS: u64 = 60;
    const REFUSED: [u32; 2] = [20, 12];
    let emulator = emulator().await;
    for fault in [
        Fault::new(Stage::Model, Action::Delay { ms: 900 }).times(4),
        Fault::new(Stage::Model, Action::status(429)).times(REFUSED[0]),
        Fault::new(Stage::Model, Action::status(503)).times(REFUSED[1]),
        Fault::new(Stage::Token, Action::status(503)).times(2),
        Fault::new(Stage::UploadStart, Action::status(503)).times(12),
        Fault::new(Stage::UploadEnd, Action::Reset).times(6),
        Fault::new(Stage::UploadEnd, Action::status(503)).times(6),
    ] {
        emulator.script(fault);
    }
    let queue = Queue::of(&emulator, Duration::from_millis(600)).await;
    let tasks: Vec<_> = (0..TASKS)
        .map(|number| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move {
                let (task, prompt) = (format!("task-{number}"), prompt(number));
                let deliver = || queue.deliver(&task, &prompt);
                match number % 4 {
                    0 => Vec::from(<[_; 2]>::from(tokio::join!(deliver(), deliver()))),
                    1 => vec![deliver().await, deliver().await],
                    _ => vec![deliver().await],
                }
            })
        })
        .collect();
    let (mut attempts, mut deliveries) = (0, 0);
    for (number, task) in (0..).zip(tasks) {
        let delivered = task.await.unwrap();
        let first = image(&delivered[0]);
        assert!(
            delivered.iter().all(|delivery| image(delivery) == first),
            "task {number}: {delivered:?}"
        );
        deliveries += delivered.len();
        attempts += delivered.iter().map(Vec::len).sum::<usize>();
    }
    println!("{TASKS} tasks, {deliveries} deliveries, {attempts} attempts");
    assert!(attempts > deliveries, "nothing failed");
    let requests = emulator.requests();
    for number in 0..TASKS {
        let of_the_task = |body: &[u8]| String::from_utf8_lossy(body).contains(&prompt(number));
        let paid =
            requests.iter().filter(|request| request.paid && of_the_task(&request.body)).count();
        assert_eq!(paid, 1, "task {number}");
    }
    let refused = u64::from(REFUSED.iter().sum::<u32>());
    assert_eq!(emulator.counters().model_calls, TASKS + refused, "and none is still under way");
    assert_eq!(images(&emulator) as u64, TASKS);
}

fn prompt(number: u64) -> String {
    format!("Image {number} of many")
}
