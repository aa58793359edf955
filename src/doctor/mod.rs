//! `iga doctor`: checks all that an image needs, in the order in which it is needed, and says how to remedy it.
//!
//! Its verdict is what a generation would meet. Nothing is paid for, nothing is left behind, and no secret is shown.

use crate::app::App;
use crate::config::{self, Config, Platform, Problem, Target, Variables};
use crate::error::Error;
use crate::google::credentials::CredentialSource;
use crate::google::storage::{Access, CREATE_PERMISSION, Metadata, Storage, Written};
use crate::google::vertex::ProbeError;
use crate::health;
use crate::model::{MODELS, Model};
use remedy::Deployment;
use std::cmp::Ordering;
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::time::Instant;

pub mod remedy;

/// Prints a line for every finding, and under it the command that mends it; whether nothing failed.
pub fn run(variable: Variables) -> bool {
    let env_file = config::load_env_file();
    let (mut config, problems) = Config::read(variable);
    config.timing.first_retry_wait = FIRST_RETRY_WAIT;
    let deployment =
        Deployment { platform: config.platform, service: config::service_name(variable) };
    let mut doctor = Doctor {
        config,
        problems,
        deployment,
        member: "serviceAccount:ACCOUNT".to_owned(),
        healthy: true,
    };
    if let Err(problem) = env_file {
        doctor.fail("settings", &problem, None);
    }
    doctor.settings();
    let app = App::new(doctor.config.clone());
    match app.client.http.build() {
        Ok(()) => {
            doctor.ok("tls", "CA certificates were found");
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(tokio) => {
                    tokio.block_on(doctor.examine(&app));
                    // A name that is still being looked up is nobody's any more.
                    tokio.shutdown_background();
                }
                Err(error) => doctor.fail("runtime", &error.to_string(), None),
            }
        }
        Err(error) => {
            doctor.fail(
                "tls",
                &error.to_string(),
                Some("sudo apt-get install ca-certificates".to_owned()),
            );
            doctor.skip(
                &["identity", "clock", "token", "model", "bucket"],
                "no TLS connection can be made",
            );
        }
    }
    doctor.port(config::port_name(variable));
    doctor.healthy
}

struct Doctor {
    /// A setting with a problem has any value.
    config: Config,
    problems: Vec<Problem>,
    deployment: Deployment,
    /// Whom roles are to be given to.
    member: String,
    healthy: bool,
}

/// What asking for a model came to.
type Answer = Result<(), (ProbeError, Error)>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
    Skip,
}

impl Doctor {
    fn say(&mut self, verdict: Verdict, subject: &str, text: &str, remedy: Option<String>) {
        let word = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
            Verdict::Skip => "skip",
        };
        self.healthy &= verdict != Verdict::Fail;
        let mut lines = format!("{word:<5} {subject:<9} {}\n", in_one_line(text));
        if let Some(command) = remedy {
            lines += &format!("{:16}{command}\n", "");
        }
        // Whoever has closed the pipe does not want to read it.
        let _ = std::io::stdout().write_all(lines.as_bytes());
    }

    fn ok(&mut self, subject: &str, text: &str) {
        self.say(Verdict::Ok, subject, text, None);
    }

    fn fail(&mut self, subject: &str, text: &str, remedy: Option<String>) {
        self.say(Verdict::Fail, subject, text, remedy);
    }

    fn skip(&mut self, subjects: &[&str], because: &str) {
        for subject in subjects {
            self.say(Verdict::Skip, subject, &format!("not checked: {because}"), None);
        }
    }

    /// Whether these settings are valid; else their check is skipped.
    fn is_sound(&mut self, subject: &str, names: &[&str]) -> bool {
        let problem =
            self.problems.iter().find(|problem| names.iter().any(|name| problem.is_about(name)));
        let Some(name) = problem.map(|problem| problem.name) else {
            return true;
        };
        self.skip(&[subject], &format!("{name} needs attention"));
        false
    }

    fn settings(&mut self) {
        for problem in self.problems.clone() {
            let remedy = match problem.name {
                "GOOGLE_APPLICATION_CREDENTIALS" => self.remedy_credentials(),
                name if problem.is_about_a_required_setting() => {
                    remedy::required(&self.deployment, name, &self.config.project_id)
                }
                name => self.deployment.unset(name),
            };
            self.fail("settings", &problem.text, Some(remedy));
        }
        for warning in std::mem::take(&mut self.config.warnings) {
            let name = warning.split(' ').next().unwrap_or_default();
            self.say(Verdict::Warn, "settings", &warning, Some(self.deployment.unset(name)));
        }
        if self.problems.is_empty() {
            let Config { project_id, model, bucket, prefix, .. } = &self.config;
            let text = format!(
                "project {project_id}, location {}, bucket {bucket}, prefix {prefix:?}",
                model.location
            );
            self.ok("settings", &text);
        }
    }

    fn remedy_credentials(&self) -> String {
        match self.config.platform {
            Platform::Plain => format!("unset GOOGLE_APPLICATION_CREDENTIALS; {}", remedy::SIGN_IN),
            Platform::CloudRun => self.deployment.unset("GOOGLE_APPLICATION_CREDENTIALS"),
            Platform::Lambda => remedy::identity(&self.deployment),
        }
    }

    async fn examine(&mut self, app: &App) {
        let identity = self.identity(app).await;
        self.clock(&app.storage).await;
        let Some(identity) = identity else {
            self.skip(&["token", "model", "bucket"], "there is no identity");
            return;
        };
        if !self.token(app, &identity).await {
            self.skip(&["model", "bucket"], "there is no access token");
            return;
        }
        self.models(app).await;
        self.bucket(&app.storage).await;
    }

    async fn identity(&mut self, app: &App) -> Option<CredentialSource> {
        if !self.is_sound("identity", &["GOOGLE_APPLICATION_CREDENTIALS", "GCE_METADATA_HOST"]) {
            return None;
        }
        match app.client.credentials.credential_source() {
            Ok(CredentialSource::File(path, identity)) => {
                self.ok("identity", &format!("{identity} ({})", path.display()));
                self.member = remedy::member(&identity);
                Some(CredentialSource::File(path, identity))
            }
            Ok(CredentialSource::MetadataServer) => {
                match app.client.metadata_email(Instant::now() + EMAIL_LIMIT).await {
                    Some(email) => {
                        self.ok("identity", &format!("service account {email} (metadata server)"));
                        self.member = format!("serviceAccount:{email}");
                    }
                    None => {
                        let text = "no credentials file, and no metadata server says whose tokens it gives out";
                        self.say(Verdict::Warn, "identity", text, None);
                    }
                }
                Some(CredentialSource::MetadataServer)
            }
            Err(error) => {
                self.fail("identity", &said(&error), Some(self.remedy_credentials()));
                None
            }
        }
    }

    /// Before the token, because a wrong clock is why many a token is refused.
    async fn clock(&mut self, storage: &Storage) {
        if !self.is_sound("clock", &["STORAGE_EMULATOR_HOST"]) {
            return;
        }
        let skew = match storage.time(soon()).await {
            Ok(time) => OffsetDateTime::now_utc() - time,
            Err(error) => return self.skip(&["clock"], &said(&error)),
        };
        let (seconds, side) =
            (skew.abs().whole_seconds(), if skew.is_positive() { "ahead of" } else { "behind" });
        let text = format!("{seconds} s {side} Cloud Storage's");
        let remedy = Some(remedy::SET_CLOCK.to_owned());
        match seconds {
            0..=5 => self.ok("clock", "agrees with Cloud Storage's"),
            6..=30 => self.ok("clock", &text),
            31..=300 => self.say(Verdict::Warn, "clock", &text, remedy),
            _ => self.fail("clock", &format!("{text}; tokens are refused beyond 5 min"), remedy),
        }
    }

    async fn token(&mut self, app: &App, identity: &CredentialSource) -> bool {
        let Err(error) = app.client.credentials.try_token(soon()).await else {
            self.ok("token", "an access token was given out");
            return true;
        };
        let remedy = match identity {
            CredentialSource::File(path, identity) => remedy::token(
                &self.deployment,
                identity,
                &path.display().to_string(),
                &error.causes(),
            ),
            CredentialSource::MetadataServer => remedy::identity(&self.deployment),
        };
        self.fail("token", &said(&error), Some(remedy));
        false
    }

    /// Goes down the models as a generation does: past those that are gone, to the first that is not.
    async fn models(&mut self, app: &App) {
        if !self.is_sound("model", &["IGA_VERTEXAI_PROJECT_ID", "IGA_VERTEXAI_ENDPOINT"]) {
            return;
        }
        let mut probes = Vec::new();
        for target in self.targets() {
            let generator = Arc::clone(&app.generator);
            probes.push(tokio::spawn(async move {
                let answer = generator.vertex.probe(&target, soon()).await;
                (target, answer)
            }));
        }
        let mut answers = Vec::new();
        for probe in probes {
            answers.extend(probe.await);
        }
        let served = answers
            .iter()
            .position(|(_, answer)| !matches!(answer, Err((ProbeError::ModelGone, _))));
        for (place, (target, answer)) in answers.iter().enumerate() {
            match served.map(|served| (place.cmp(&served), &answers[served].0)) {
                Some((Ordering::Less, next)) => self.passed_over(target, next),
                Some((Ordering::Equal, _)) | None => self.model(target, answer),
                Some((Ordering::Greater, _)) => self.fallback(target, answer),
            }
        }
    }

    fn passed_over(&mut self, target: &Target, next: &Target) {
        let (id, location, next_id) = (target.model.id, &target.location, next.model.id);
        let text =
            format!("{id} is not served in {location}: a 404 at every start, then {next_id}");
        let remedy =
            (*target == self.config.model).then(|| remedy::use_model(&self.deployment, next));
        self.say(Verdict::Warn, "model", &text, remedy);
    }

    /// The model that images come from.
    fn model(&mut self, target: &Target, answer: &Answer) {
        let name = format!("{} in {}", target.model.id, target.location);
        let instead = || remedy::use_model(&self.deployment, &self.instead_of(target));
        match answer {
            // Should Vertex AI look at the prompt before the model, the table knows better.
            Ok(()) if target.model.retired => {
                let text =
                    format!("{name} does not say that it is gone, but Google has retired it");
                self.say(Verdict::Warn, "model", &text, Some(instead()));
            }
            Ok(()) => {
                self.ok("model", &format!("{} answers in {}", target.model.id, target.location))
            }
            Err((probe_error, error)) => {
                let verdict =
                    if *probe_error == ProbeError::Busy { Verdict::Warn } else { Verdict::Fail };
                let remedy = match probe_error {
                    ProbeError::ModelGone | ProbeError::NoSuchLocation => Some(instead()),
                    _ => self.remedy_access(*probe_error),
                };
                self.say(verdict, "model", &format!("{name}: {}", said(error)), remedy);
            }
        }
    }

    /// A model that is asked once the one before it is gone.
    fn fallback(&mut self, target: &Target, answer: &Answer) {
        let name = format!("fallback {} in {}", target.model.id, target.location);
        let Err((probe_error, error)) = answer else {
            return self.ok(
                "model",
                &format!("fallback {} answers in {}", target.model.id, target.location),
            );
        };
        let remedy = match probe_error {
            ProbeError::ModelGone | ProbeError::NoSuchLocation => {
                let kept = self.config.fallbacks.iter().filter(|fallback| *fallback != target);
                Some(remedy::use_fallbacks(
                    &self.deployment,
                    kept.chain([&self.instead_of(target)]),
                ))
            }
            _ => self.remedy_access(*probe_error),
        };
        self.say(Verdict::Warn, "model", &format!("{name}: {}", said(error)), remedy);
    }

    /// The configured model and its fallbacks, each once, as far as their settings are valid.
    fn targets(&mut self) -> Vec<Target> {
        let mut targets = Vec::new();
        if self.is_sound("model", &["IGA_VERTEXAI_LOCATION", "IGA_VERTEXAI_IMAGE_MODEL_ID"]) {
            targets.push(self.config.model.clone());
        }
        for fallback in
            self.config.fallbacks.iter().filter(|fallback| !fallback.location.is_empty())
        {
            if !targets.contains(fallback) {
                targets.push(fallback.clone());
            }
        }
        targets
    }

    /// None where only waiting helps.
    fn remedy_access(&self, probe_error: ProbeError) -> Option<String> {
        let project = &self.config.project_id;
        match probe_error {
            ProbeError::Permission => Some(remedy::project_role(project, &self.member)),
            ProbeError::ApiDisabled => Some(remedy::enable_api(project)),
            ProbeError::BillingDisabled => Some(remedy::link_billing(project)),
            ProbeError::Busy | ProbeError::NoQuota => Some(remedy::quota(project)),
            ProbeError::ModelGone | ProbeError::NoSuchLocation | ProbeError::Other => None,
        }
    }

    /// The same model in another place, else one that is not retired and, if possible, not among those asked.
    fn instead_of(&self, gone: &Target) -> Target {
        let location = "global".to_owned();
        if !gone.model.retired && gone.location != location {
            return Target { model: gone.model, location };
        }
        let Config { model, fallbacks, .. } = &self.config;
        let is_asked = |other: &Model| {
            model.model == other || fallbacks.iter().any(|target| target.model == other)
        };
        let current = || MODELS.iter().filter(|model| !model.retired);
        let model = current()
            .find(|model| !is_asked(model))
            .or_else(|| current().next())
            .unwrap_or(&MODELS[0]);
        Target { model, location }
    }

    /// An object is made only where it can be taken away again; else the permissions speak, by which a
    /// generation goes as well.
    async fn bucket(&mut self, storage: &Storage) {
        if !self.is_sound(
            "bucket",
            &["GCS_BUCKET_NAME", "STORAGE_EMULATOR_HOST", "IGA_GCS_IMAGE_PREFIX"],
        ) {
            return;
        }
        let access = match storage.access(PERMISSIONS, soon()).await {
            Ok(access) => access,
            Err(error) => return self.fail("bucket", &said(&error), None),
        };
        let bucket = self.config.bucket.clone();
        let missing: Vec<_> = match access {
            Access::NoBucket(message) => {
                let remedy = remedy::create_bucket(&self.config);
                return self.fail("bucket", &format!("gs://{bucket}: {message}"), Some(remedy));
            }
            Access::Granted(granted) => PERMISSIONS
                .iter()
                .copied()
                .filter(|permission| !granted.iter().any(|held| held == permission))
                .collect(),
            // Some emulators have no permissions to tell of.
            Access::Unknown(_) if self.config.storage_endpoint != config::GOOGLES_STORAGE => {
                Vec::new()
            }
            Access::Unknown(error) => {
                return self.fail("bucket", &format!("gs://{bucket}: {}", said(&error)), None);
            }
        };
        if missing.is_empty() {
            return self.round_trip(storage).await;
        }
        let (lacks_create, shared) =
            (missing.contains(&CREATE_PERMISSION), self.config.shared_retries);
        let role = match lacks_create && (missing.len() == 1 || !shared) {
            true => "roles/storage.objectCreator",
            false => "roles/storage.objectUser",
        };
        let remedy = remedy::bucket_role(&bucket, &self.member, role);
        let lacks = format!("gs://{bucket}: the account lacks {}", missing.join(", "));
        match (lacks_create, shared) {
            (true, _) => self.fail("bucket", &lacks, Some(remedy)),
            (false, true) => {
                let text = format!(
                    "{lacks}, without which no request is answered while IGA_SHARED_RETRIES is on"
                );
                self.fail("bucket", &text, Some(remedy));
            }
            (false, false) => {
                let text = format!(
                    "{lacks}: images can be stored, but requests with an idempotency key fail"
                );
                self.say(Verdict::Warn, "bucket", &text, Some(remedy));
            }
        }
    }

    async fn round_trip(&mut self, storage: &Storage) {
        let (bucket, folder) = (self.config.bucket.clone(), format!("{}.iga/", self.config.prefix));
        let mark = crate::id::random_hex::<8>();
        let name = format!("{folder}doctor-{mark}");
        let deadline = soon();
        let created = storage
            .write_record(&name, None, &Metadata::from([("doctor".to_owned(), mark)]), deadline)
            .await;
        let read = storage.read_record(&name, deadline).await;
        // Whatever came before: it may have been created and its answer lost.
        let deleted = storage.delete(&name, None, soon()).await;
        let (created, read) = (created.map_err(Error::from), read.map_err(Error::from));
        let deleted = deleted.map(drop).map_err(Error::from);
        let place = format!("gs://{bucket}/{folder}");
        match (created, read, deleted) {
            (Ok(Written::Confirmed(_)), Ok(Some(_)), Ok(())) => {
                self.ok("bucket", &format!("an object was created in {place}, read and deleted"));
            }
            (Ok(_), _, Err(error)) => {
                let text = format!(
                    "{place}: an object could not be deleted and is left behind: {}",
                    said(&error)
                );
                self.fail("bucket", &text, Some(remedy::remove(&bucket, &name)));
            }
            (Err(error), _, _) => {
                self.fail(
                    "bucket",
                    &format!("{place}: no object could be created: {}", said(&error)),
                    None,
                );
            }
            (Ok(_), Err(error), Ok(())) => {
                self.fail(
                    "bucket",
                    &format!("{place}: an object could not be read: {}", said(&error)),
                    None,
                );
            }
            (Ok(_), Ok(_), Ok(())) => {
                self.fail("bucket", &format!("{place}: an object was not what was written"), None)
            }
        }
    }

    fn port(&mut self, variable: &str) {
        if !self.is_sound("port", &["PORT", "IGA_HOST"]) {
            return;
        }
        if self.config.platform == Platform::Lambda {
            return self.ok("port", "none is needed under AWS Lambda");
        }
        let address = SocketAddr::new(self.config.host, self.config.port);
        let another = address.port().checked_add(1).unwrap_or(8080).max(1024);
        let another = self.deployment.set(&[(variable, &another.to_string())]);
        match TcpListener::bind(address).map_err(|error| (error.kind(), error)) {
            Ok(_) => self.ok("port", &format!("{address} is free")),
            Err((ErrorKind::AddrInUse, _)) => match health::ask(config::reachable(address)) {
                Ok(()) => self.ok(
                    "port",
                    &format!("{address} is in use by a running service, which is healthy"),
                ),
                Err(_) => self.fail(
                    "port",
                    &format!("{address} is in use by another process"),
                    Some(another),
                ),
            },
            Err((ErrorKind::AddrNotAvailable, error)) => {
                self.fail(
                    "port",
                    &format!("{address}: {error}"),
                    Some(self.deployment.unset("IGA_HOST")),
                );
            }
            Err((_, error)) => self.fail("port", &format!("{address}: {error}"), Some(another)),
        }
    }
}

/// When a check must be over.
fn soon() -> Instant {
    Instant::now() + CHECK_LIMIT
}

/// An error with its causes, which are for the operator.
fn said(error: &Error) -> String {
    match error.causes() {
        causes if causes.is_empty() => error.to_string(),
        causes => format!("{error} ({causes})"),
    }
}

/// Upstream texts have line breaks, and no end at times.
fn in_one_line(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() > MAX_LINE_BYTES {
        line.truncate(line.floor_char_boundary(MAX_LINE_BYTES));
        line.push('…');
    }
    line
}

/// Without the last of them an object that is gone may be called forbidden.
const PERMISSIONS: &[&str] =
    &[CREATE_PERMISSION, "storage.objects.get", "storage.objects.delete", "storage.objects.list"];
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// For a name that is nice to know, of a server that is near or not there.
const EMAIL_LIMIT: Duration = Duration::from_secs(3);
/// Somebody is waiting.
const FIRST_RETRY_WAIT: Duration = Duration::from_millis(200);
const MAX_LINE_BYTES: usize = 700;
