//! `iga doctor`: checks everything that a generation needs, in order, and prints a fix for each failure.
//!
//! It generates no image, leaves no object behind and prints no secret.

use crate::app::App;
use crate::config::warnings::{Fix, unknown_variables};
use crate::config::{self, Config, Platform, Problem, Target, Variables};
use crate::error::Error;
use crate::google::credentials::CredentialSource;
use crate::google::proxy;
use crate::google::storage::{Access, CREATE_PERMISSION, Metadata, Storage, Written};
use crate::google::vertex::ProbeError;
use crate::health;
use crate::model::{MODELS, Model};
use remedy::Deployment;
use report::{Finding, Report};
use std::cmp::Ordering;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use time::{Date, OffsetDateTime};
use tokio::time::Instant;

pub mod remedy;
mod report;

pub use report::OutputFormat;

/// Runs all checks and prints their findings, each with its fix. Returns true if no check failed.
pub fn run(variable: Variables, format: OutputFormat) -> bool {
    let mut report = Report::new(format);
    let env_file = config::load_env_file();
    report.add(env_file.err().map(|problem| Finding::fail("settings", problem)));
    let mut doctor = Doctor::new(variable);
    // SAFETY: the doctor has started no thread yet.
    unsafe { proxy::exempt_token_sources(&doctor.config.credentials) };
    report.add(doctor.settings());
    let app = App::new(doctor.config.clone());
    match app.client.http.build() {
        Ok(()) => {
            report.add([Finding::ok("tls", "CA certificates were found")]);
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(tokio) => {
                    tokio.block_on(doctor.google(&app, &mut report));
                    // Do not wait for DNS lookups still running on blocking threads.
                    tokio.shutdown_background();
                }
                Err(error) => report.add([Finding::fail("runtime", error.to_string())]),
            }
        }
        Err(error) => {
            let remedy = "sudo apt-get install ca-certificates".to_owned();
            report.add([Finding::fail("tls", error.to_string()).remedy(remedy)]);
            let subjects = ["identity", "clock", "token", "model", "bucket"];
            report.add(skip(&subjects, "no TLS connection can be made"));
        }
    }
    report.add([doctor.port(config::port_name(variable))]);
    report.finish()
}

struct Doctor {
    /// The fields of settings with a problem hold arbitrary values.
    config: Config,
    problems: Vec<Problem>,
    deployment: Deployment,
    /// The member that roles must be granted to.
    member: String,
    is_storage_reached: bool,
}

/// Whether a model can be used.
type Probed = Result<(), (ProbeError, Error)>;

impl Doctor {
    fn new(variable: Variables) -> Doctor {
        let (mut config, problems) = Config::read(variable);
        config.warnings.extend(unknown_variables(config::environment_names()));
        config.timing.first_retry_wait = FIRST_RETRY_WAIT;
        let deployment =
            Deployment { platform: config.platform, service: config::service_name(variable) };
        let member = "serviceAccount:ACCOUNT".to_owned();
        Doctor { config, problems, deployment, member, is_storage_reached: true }
    }

    /// Requires valid settings of these names; otherwise returns the finding that `subject` was not
    /// checked.
    fn require(&self, subject: &'static str, names: &[&str]) -> Result<(), Finding> {
        let problem =
            self.problems.iter().find(|problem| names.iter().any(|name| problem.is_about(name)));
        match problem {
            None => Ok(()),
            Some(problem) => {
                Err(Finding::skip(subject, format!("{} needs attention", problem.name)))
            }
        }
    }

    fn settings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for problem in &self.problems {
            let remedy = match problem.name {
                "GOOGLE_APPLICATION_CREDENTIALS" => self.remedy_credentials(),
                name if problem.is_about_a_required_setting() => {
                    remedy::required(&self.deployment, name, &self.config.project_id)
                }
                name => self.deployment.unset(name),
            };
            findings.push(Finding::fail("settings", &problem.text).remedy(remedy));
        }
        for warning in &self.config.warnings {
            let remedy = warning.fix.as_ref().map(|fix| match fix {
                Fix::Unset(name) => self.deployment.unset(name),
                Fix::Set(name, value) => self.deployment.set(&[(name, value)]),
            });
            findings.push(Finding::warn("settings", &warning.text).remedy(remedy));
        }
        if self.problems.is_empty() {
            let Config { project_id, model, bucket, prefix, .. } = &self.config;
            let location = &model.location;
            findings.push(Finding::ok(
                "settings",
                format!(
                    "project {project_id}, location {location}, bucket {bucket}, prefix {prefix:?}"
                ),
            ));
            findings.extend(self.prompts());
        }
        findings
    }

    /// Where prompts may go, and whether they are logged.
    fn prompts(&self) -> Vec<Finding> {
        let locations = self.config.prompt_locations().join(", ");
        let mut findings =
            vec![Finding::ok("prompts", format!("may be sent to Vertex AI in {locations}"))];
        if self.config.debug {
            let text = "whole prompts are logged, because IGA_DEBUG_MODE is on";
            let remedy = self.deployment.set(&[("IGA_DEBUG_MODE", "False")]);
            findings.push(Finding::warn("prompts", text).remedy(remedy));
        }
        findings
    }

    fn remedy_credentials(&self) -> String {
        match self.config.platform {
            Platform::Plain => format!("unset GOOGLE_APPLICATION_CREDENTIALS; {}", remedy::SIGN_IN),
            Platform::CloudRun => self.deployment.unset("GOOGLE_APPLICATION_CREDENTIALS"),
            Platform::Lambda => remedy::identity(&self.deployment),
        }
    }

    /// The checks that need the network.
    async fn google(&mut self, app: &App, report: &mut Report) {
        let (source, finding) = match self.identity(app).await {
            Ok((source, finding)) => (Some(source), finding),
            Err(finding) => (None, finding),
        };
        report.add([finding]);
        report.add([self.clock(&app.storage).await]);
        let Some(source) = source else {
            return report.add(skip(&["token", "model", "bucket"], "there is no identity"));
        };
        if let Err(finding) = self.token(app, &source).await {
            report.add([finding]);
            return report.add(skip(&["model", "bucket"], "there is no access token"));
        }
        report.add([Finding::ok("token", "an access token was given out")]);
        report.add(self.models(app).await);
        report.add([self.bucket(&app.storage).await]);
    }

    /// The source of the credential. Also stores the member that roles must be granted to.
    async fn identity(&mut self, app: &App) -> Result<(CredentialSource, Finding), Finding> {
        self.require("identity", &["GOOGLE_APPLICATION_CREDENTIALS", "GCE_METADATA_HOST"])?;
        let source = app.client.credentials.credential_source().map_err(|error| {
            Finding::fail("identity", with_causes(&error)).remedy(self.remedy_credentials())
        })?;
        let finding = match &source {
            CredentialSource::File(path, kind) => {
                self.member = remedy::member(kind);
                Finding::ok("identity", format!("{kind} ({})", path.display()))
            }
            CredentialSource::MetadataServer => {
                match app.client.metadata_email(Instant::now() + EMAIL_LIMIT).await {
                    Some(email) => {
                        self.member = format!("serviceAccount:{email}");
                        Finding::ok(
                            "identity",
                            format!("service account {email} (metadata server)"),
                        )
                    }
                    None => Finding::warn(
                        "identity",
                        "no credentials file was found, and no metadata server names a service account",
                    ),
                }
            }
        };
        Ok((source, finding))
    }

    /// Checked before the token, because a wrong clock is a common reason for a refused token.
    async fn clock(&mut self, storage: &Storage) -> Finding {
        if let Err(finding) = self.require("clock", &["STORAGE_EMULATOR_HOST"]) {
            return finding;
        }
        let skew = match storage.time(check_deadline()).await {
            Ok(time) => OffsetDateTime::now_utc() - time,
            Err(error) => {
                self.is_storage_reached = false;
                return Finding::skip("clock", with_causes(&error));
            }
        };
        let seconds = skew.abs().whole_seconds();
        let side = if skew.is_positive() { "ahead of" } else { "behind" };
        let text = format!("{seconds} s {side} Cloud Storage's");
        let remedy = remedy::SET_CLOCK.to_owned();
        match seconds {
            0..=5 => Finding::ok("clock", "agrees with Cloud Storage's"),
            6..=30 => Finding::ok("clock", text),
            31..=300 => Finding::warn("clock", text).remedy(remedy),
            _ => Finding::fail("clock", format!("{text}; tokens are refused beyond 5 min"))
                .remedy(remedy),
        }
    }

    async fn token(&self, app: &App, source: &CredentialSource) -> Result<(), Finding> {
        let Err(error) = app.client.credentials.try_token(check_deadline()).await else {
            return Ok(());
        };
        let remedy = match source {
            CredentialSource::File(path, kind) => {
                let path = path.display().to_string();
                remedy::token(&self.deployment, kind, &path, &error.causes())
            }
            CredentialSource::MetadataServer => remedy::identity(&self.deployment),
        };
        Err(Finding::fail("token", with_causes(&error)).remedy(remedy))
    }

    /// Probes all models at once and judges them in the order of a generation: models that are gone
    /// are passed over, and the first other model makes the images.
    async fn models(&self, app: &App) -> Vec<Finding> {
        let needed = ["IGA_VERTEXAI_PROJECT_ID", "IGA_VERTEXAI_ENDPOINT"];
        if let Err(finding) = self.require("model", &needed) {
            return vec![finding];
        }
        let first =
            self.require("model", &["IGA_VERTEXAI_LOCATION", "IGA_VERTEXAI_IMAGE_MODEL_ID"]);
        let targets = self.targets(first.is_ok());
        let mut findings: Vec<_> = first.err().into_iter().collect();
        let mut probes = Vec::new();
        for target in targets {
            let generator = Arc::clone(&app.generator);
            probes.push(tokio::spawn(async move {
                let probed = generator.vertex.probe(&target, check_deadline()).await;
                (target, probed)
            }));
        }
        let mut results = Vec::new();
        for probe in probes {
            results.extend(probe.await);
        }
        let is_served =
            |(_, probed): &(Target, Probed)| !matches!(probed, Err((ProbeError::ModelGone, _)));
        let served = results.iter().position(is_served);
        for (index, (target, probed)) in results.iter().enumerate() {
            findings.push(match served.map(|served| (index.cmp(&served), &results[served].0)) {
                Some((Ordering::Less, next)) => self.passed_over(target, next),
                Some((Ordering::Equal, _)) | None => self.model(target, probed),
                Some((Ordering::Greater, _)) => self.fallback(target, probed),
            });
        }
        let asked = results.iter().map(|(target, _)| target);
        findings.extend(self.retiring(asked, OffsetDateTime::now_utc().date()));
        findings
    }

    /// Warns of models that Google may retire soon.
    fn retiring<'a>(&self, targets: impl Iterator<Item = &'a Target>, today: Date) -> Vec<Finding> {
        let mut findings = Vec::new();
        for target in targets.filter(|target| !target.model.retired) {
            let Some(day) = target.model.retires.filter(|day| (*day - today) <= NOTICE) else {
                continue;
            };
            let text = format!("{} may be retired by Google from {day} on", target.model.id);
            let is_first = *target == self.config.model;
            let remedy =
                is_first.then(|| remedy::use_model(&self.deployment, &self.other_model(target)));
            findings.push(Finding::warn("model", text).remedy(remedy));
        }
        findings
    }

    fn passed_over(&self, target: &Target, next: &Target) -> Finding {
        let text = format!(
            "{} is not served in {}: a 404 at every start, then {}",
            target.model.id, target.location, next.model.id
        );
        let is_first = *target == self.config.model;
        let remedy = is_first.then(|| remedy::use_model(&self.deployment, next));
        Finding::warn("model", text).remedy(remedy)
    }

    /// The model that makes the images.
    fn model(&self, target: &Target, probed: &Probed) -> Finding {
        let name = format!("{} in {}", target.model.id, target.location);
        let instead = || remedy::use_model(&self.deployment, &self.replacement_for(target));
        match probed {
            // Vertex AI may check the prompt before it looks up the model, so trust the table.
            Ok(()) if target.model.retired => {
                let text = format!("{name} answers, but Google has retired it");
                Finding::warn("model", text).remedy(instead())
            }
            Ok(()) => {
                Finding::ok("model", format!("{} answers in {}", target.model.id, target.location))
            }
            Err((probe_error, error)) => {
                let text = format!("{name}: {}", with_causes(error));
                let finding = match probe_error {
                    ProbeError::Busy => Finding::warn("model", text),
                    _ => Finding::fail("model", text),
                };
                finding.remedy(match probe_error {
                    ProbeError::ModelGone | ProbeError::NoSuchLocation => Some(instead()),
                    _ => self.remedy_access(*probe_error),
                })
            }
        }
    }

    /// A model that is used if the one before it is gone.
    fn fallback(&self, target: &Target, probed: &Probed) -> Finding {
        let Target { model, location } = target;
        let Err((probe_error, error)) = probed else {
            return Finding::ok("model", format!("fallback {} answers in {location}", model.id));
        };
        let remedy = match probe_error {
            ProbeError::ModelGone | ProbeError::NoSuchLocation => {
                let kept = self.config.fallbacks.iter().filter(|fallback| *fallback != target);
                let instead = self.replacement_for(target);
                let targets = kept.chain([&instead]);
                Some(remedy::use_fallbacks(&self.deployment, targets))
            }
            _ => self.remedy_access(*probe_error),
        };
        let text = format!("fallback {} in {location}: {}", model.id, with_causes(error));
        Finding::warn("model", text).remedy(remedy)
    }

    /// The configured model, if its settings are valid, and its fallbacks, each once.
    fn targets(&self, with_first: bool) -> Vec<Target> {
        let Config { model, fallbacks, .. } = &self.config;
        let first = with_first.then_some(model);
        let others = fallbacks.iter().filter(|fallback| !fallback.location.is_empty());
        let mut targets: Vec<Target> = Vec::new();
        for target in first.into_iter().chain(others) {
            if !targets.contains(target) {
                targets.push(target.clone());
            }
        }
        targets
    }

    /// Unsets the address of another server, or shows why Google's cannot be reached.
    fn remedy_connection(&self, setting: &str, test: &str) -> String {
        let is_set = match setting {
            "STORAGE_EMULATOR_HOST" => self.config.storage_endpoint != config::GOOGLES_STORAGE,
            _ => self.config.vertex_endpoint.is_some(),
        };
        match is_set {
            true => self.deployment.unset(setting),
            false => test.to_owned(),
        }
    }

    /// `None` unless the server sent no response to the first request.
    fn remedy_storage(&self) -> Option<String> {
        let remedy = || self.remedy_connection("STORAGE_EMULATOR_HOST", remedy::STORAGE_TEST);
        (!self.is_storage_reached).then(remedy)
    }

    /// `None` if only waiting helps.
    fn remedy_access(&self, probe_error: ProbeError) -> Option<String> {
        let project = &self.config.project_id;
        match probe_error {
            ProbeError::Permission => Some(remedy::project_role(project, &self.member)),
            ProbeError::ApiDisabled => Some(remedy::enable_api(project)),
            ProbeError::BillingDisabled => Some(remedy::link_billing(project)),
            ProbeError::Busy | ProbeError::NoQuota => Some(remedy::quota(project)),
            ProbeError::Unreachable => {
                Some(self.remedy_connection("IGA_VERTEXAI_ENDPOINT", remedy::VERTEX_TEST))
            }
            ProbeError::ModelGone | ProbeError::NoSuchLocation | ProbeError::Other => None,
        }
    }

    /// The same model in another location, otherwise [`other_model`](Doctor::other_model).
    fn replacement_for(&self, gone: &Target) -> Target {
        let is_elsewhere =
            |location: &&&str| **location != gone.location && gone.model.is_known_in(location);
        let allowed = self.allowed(gone);
        let same = |locations: &[&str]| {
            let location = locations.iter().find(is_elsewhere)?;
            Some(Target { model: gone.model, location: (*location).to_owned() })
        };
        same(&allowed)
            .or_else(|| self.other_model_in(gone, &allowed))
            .or_else(|| same(&["global"]))
            .unwrap_or_else(|| self.other_model(gone))
    }

    /// The cheapest current model that is not configured, if possible in a location that prompts may go to.
    fn other_model(&self, gone: &Target) -> Target {
        self.other_model_in(gone, &self.allowed(gone))
            .or_else(|| self.other_model_in(gone, &["global"]))
            .unwrap_or_else(|| Target { model: &MODELS[0], location: "global".to_owned() })
    }

    /// The locations that prompts may go to, and those that a region of the United States implies.
    fn allowed(&self, gone: &Target) -> Vec<&str> {
        let mut allowed = self.config.prompt_locations();
        if gone.location.starts_with("us-") {
            allowed.push("global");
        }
        allowed
    }

    fn other_model_in(&self, gone: &Target, locations: &[&str]) -> Option<Target> {
        let is_asked = |model: &Model| {
            model == gone.model || self.config.targets().any(|target| target.model == model)
        };
        // The table begins with the cheapest.
        let current = MODELS.iter().filter(|model| !model.retired && !is_asked(model));
        current.into_iter().find_map(|model| {
            let location = locations.iter().find(|location| model.is_known_in(location))?;
            Some(Target { model, location: (*location).to_owned() })
        })
    }

    /// Writes an object only if the account may delete it again; otherwise judges by the permissions.
    async fn bucket(&self, storage: &Storage) -> Finding {
        let needed = ["GCS_BUCKET_NAME", "STORAGE_EMULATOR_HOST", "IGA_GCS_IMAGE_PREFIX"];
        if let Err(finding) = self.require("bucket", &needed) {
            return finding;
        }
        let bucket = &self.config.bucket;
        let missing: Vec<_> = match storage.access(PERMISSIONS, check_deadline()).await {
            Err(error) => return Finding::fail("bucket", with_causes(&error)),
            Ok(Access::NoBucket(message)) => {
                return Finding::fail("bucket", format!("gs://{bucket}: {message}"))
                    .remedy(remedy::create_bucket(&self.config));
            }
            Ok(Access::Granted(granted)) => PERMISSIONS
                .iter()
                .copied()
                .filter(|permission| !granted.iter().any(|held| held == permission))
                .collect(),
            // Some emulators do not implement permissions.
            Ok(Access::Unknown(_)) if self.config.storage_endpoint != config::GOOGLES_STORAGE => {
                Vec::new()
            }
            Ok(Access::Unknown(error)) => {
                return Finding::fail("bucket", format!("gs://{bucket}: {}", with_causes(&error)))
                    .remedy(self.remedy_storage());
            }
        };
        match missing.is_empty() {
            true => self.round_trip(storage).await,
            false => self.missing_permissions(&missing),
        }
    }

    fn missing_permissions(&self, missing: &[&str]) -> Finding {
        let bucket = &self.config.bucket;
        let (lacks_create, shared) =
            (missing.contains(&CREATE_PERMISSION), self.config.shared_retries);
        let role = match lacks_create && (missing.len() == 1 || !shared) {
            true => "roles/storage.objectCreator",
            false => "roles/storage.objectUser",
        };
        let lacks = format!("gs://{bucket}: the account lacks {}", missing.join(", "));
        let finding = match (lacks_create, shared) {
            (true, _) => Finding::fail("bucket", lacks),
            (false, true) => Finding::fail(
                "bucket",
                format!(
                    "{lacks}, without which every request fails while IGA_SHARED_RETRIES is on"
                ),
            ),
            (false, false) => Finding::warn(
                "bucket",
                format!("{lacks}: images can be stored, but requests with an idempotency key fail"),
            ),
        };
        finding.remedy(remedy::bucket_role(bucket, &self.member, role))
    }

    async fn round_trip(&self, storage: &Storage) -> Finding {
        let Config { bucket, prefix, .. } = &self.config;
        let folder = format!("{prefix}.iga/");
        let mark = crate::id::random_hex::<8>();
        let name = format!("{folder}doctor-{mark}");
        let deadline = check_deadline();
        let metadata = Metadata::from([("doctor".to_owned(), mark)]);
        let created = storage.write_record(&name, None, &metadata, deadline).await;
        // Leases depend on this: only one of two writers may create a name.
        let other = Metadata::from([("doctor".to_owned(), "again".to_owned())]);
        let again = match created {
            Ok(_) => storage.write_record(&name, None, &other, deadline).await.ok(),
            Err(_) => None,
        };
        let read = storage.read_record(&name, deadline).await;
        // Delete always: the object may have been created although its response was lost.
        let deleted = storage.delete(&name, None, check_deadline()).await;
        let (created, read) = (created.map_err(Error::from), read.map_err(Error::from));
        let deleted = deleted.map_err(Error::from);
        let place = format!("gs://{bucket}/{folder}");
        match (created, read, deleted) {
            (Ok(_), _, Ok(())) if matches!(again, Some(Written::Confirmed(_))) => Finding::fail(
                "bucket",
                format!(
                    "{place}: this server ignores ifGenerationMatch, so two instances may pay for the same request"
                ),
            )
            .remedy(self.remedy_connection("STORAGE_EMULATOR_HOST", remedy::STORAGE_TEST)),
            (Ok(Written::Confirmed(_)), Ok(Some(_)), Ok(())) => {
                Finding::ok("bucket", format!("an object was created in {place}, read and deleted"))
            }
            (Ok(_), _, Err(error)) => Finding::fail(
                "bucket",
                format!(
                    "{place}: an object could not be deleted and is left behind: {}",
                    with_causes(&error)
                ),
            )
            .remedy(remedy::remove(bucket, &name)),
            (Err(error), _, _) => Finding::fail(
                "bucket",
                format!("{place}: no object could be created: {}", with_causes(&error)),
            )
            .remedy(self.remedy_storage()),
            (Ok(_), Err(error), Ok(())) => Finding::fail(
                "bucket",
                format!("{place}: an object could not be read: {}", with_causes(&error)),
            ),
            (Ok(_), Ok(_), Ok(())) => Finding::fail(
                "bucket",
                format!("{place}: an object was read back with other content than was written"),
            ),
        }
    }

    fn port(&self, variable: &str) -> Finding {
        if let Err(finding) = self.require("port", &["PORT", "IGA_HOST"]) {
            return finding;
        }
        if self.config.platform == Platform::Lambda {
            return Finding::ok("port", "none is needed under AWS Lambda");
        }
        let address = SocketAddr::new(self.config.host, self.config.port);
        let another = address.port().checked_add(1).unwrap_or(8080).max(1024);
        let another = self.deployment.set(&[(variable, &another.to_string())]);
        let error = match TcpListener::bind(address) {
            Ok(_) => return Finding::ok("port", format!("{address} is free")),
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::AddrInUse if health::ask(config::reachable(address)).is_ok() => Finding::ok(
                "port",
                format!("{address} is in use by a running service, which is healthy"),
            ),
            ErrorKind::AddrInUse => {
                Finding::fail("port", format!("{address} is in use by another process"))
                    .remedy(another)
            }
            ErrorKind::AddrNotAvailable => Finding::fail("port", format!("{address}: {error}"))
                .remedy(self.deployment.unset("IGA_HOST")),
            _ => Finding::fail("port", format!("{address}: {error}")).remedy(another),
        }
    }
}

fn skip(subjects: &[&'static str], because: &str) -> Vec<Finding> {
    subjects.iter().map(|subject| Finding::skip(subject, because)).collect()
}

/// The deadline of a check that begins now.
fn check_deadline() -> Instant {
    Instant::now() + CHECK_LIMIT
}

/// An error and its causes; only operators read them.
fn with_causes(error: &Error) -> String {
    match error.causes() {
        causes if causes.is_empty() => error.to_string(),
        causes => format!("{error} ({causes})"),
    }
}

/// Without `list`, Cloud Storage returns 403 instead of 404 for a missing object.
const PERMISSIONS: &[&str] =
    &[CREATE_PERMISSION, "storage.objects.get", "storage.objects.delete", "storage.objects.list"];
/// The doctor warns this long before Google may retire a model.
const NOTICE: time::Duration = time::Duration::days(60);
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// The metadata server is either near or absent.
const EMAIL_LIMIT: Duration = Duration::from_secs(3);
/// Shorter than a service's, because an operator is waiting.
const FIRST_RETRY_WAIT: Duration = Duration::from_millis(400);

#[cfg(test)]
mod tests {
    use super::*;

    fn doctor(location: &str, model: &str) -> Doctor {
        let variables = [
            ("GCP_PROJECT_ID", "p"),
            ("GCP_LOCATION", location),
            ("GCS_BUCKET_NAME", "bucket"),
            ("IGA_VERTEXAI_IMAGE_MODEL_ID", model),
            ("IGA_VERTEXAI_FALLBACK_MODELS", ""),
        ];
        let find = |name: &str| {
            let value = variables.iter().find(|(set, _)| *set == name);
            value.map(|(_, value)| (*value).to_owned())
        };
        Doctor::new(&find)
    }

    #[test]
    fn a_model_that_may_be_retired_within_60_days_gives_a_warning_with_the_cheapest_other() {
        let doctor = doctor("global", "gemini-3-pro-image");
        let target = &doctor.config.model;
        let day = target.model.retires.expect("it has a date");
        let warnings = |today| doctor.retiring([target].into_iter(), today);
        assert!(warnings(day - time::Duration::days(61)).is_empty());
        let warnings = warnings(day - time::Duration::days(60));
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].text.starts_with("gemini-3-pro-image may be retired by Google from 20")
        );
        let cheapest = MODELS[0].id;
        let remedy =
            format!("export IGA_VERTEXAI_IMAGE_MODEL_ID={cheapest} IGA_VERTEXAI_LOCATION=global");
        assert_eq!(warnings[0].remedy.as_deref(), Some(remedy.as_str()));
    }

    #[test]
    fn a_proposed_model_is_in_an_allowed_location_if_one_serves_it() {
        for (location, model, id, proposed) in [
            ("us-central1", "gemini-3.1-flash-image", "gemini-3.1-flash-image", "global"),
            ("us-central1", "imagegeneration@006", "gemini-nano-banana-2.1", "global"),
            ("europe-west4", "imagegeneration@006", "gemini-2.5-flash-image", "europe-west4"),
            ("europe-west4", "gemini-3-pro-image", "gemini-2.5-flash-image", "europe-west4"),
            ("mars", "gemini-3.1-flash-image", "gemini-3.1-flash-image", "global"),
        ] {
            let doctor = doctor(location, model);
            let target = doctor.replacement_for(&doctor.config.model);
            let found = (target.model.id, target.location.as_str());
            assert_eq!(found, (id, proposed), "{location} {model}");
        }
    }
}
