//! The settings, from the environment and `.env`. Only proxies and terminal colours are read from the environment elsewhere.

pub mod locations;
pub mod parse;
pub mod settings;
pub mod warnings;

use crate::model::{MODELS, Model};
use settings::{Preset, SETTINGS, Setting};
use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use warnings::{Warning, is_service_link, unknown_variables};

/// The environment, or a map that stands for it.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The settings of one process, valid as a whole.
#[derive(Debug, Clone)]
pub struct Config {
    pub host: IpAddr,
    pub port: u16,
    pub debug: bool,
    pub credentials: Credentials,
    pub project_id: String,
    pub model: Target,
    /// Asked in this order when the configured model is gone.
    pub fallbacks: Vec<Target>,
    pub fallback_when_busy: bool,
    /// Sent with every generation; they appear on the bill.
    pub labels: BTreeMap<String, String>,
    pub request_type: Option<RequestType>,
    pub bucket: String,
    /// Empty, or ending in a slash.
    pub prefix: String,
    pub default_aspect_ratio: String,
    pub add_watermark: bool,
    pub generation_deadline: Duration,
    pub transfer_budget_bytes: usize,
    pub max_generations: usize,
    pub retry_window: Option<Duration>,
    pub shared_retries: bool,
    pub answer_within: Option<Duration>,
    /// Replaces Google's hosts for Vertex AI, whatever the location.
    pub vertex_endpoint: Option<String>,
    pub storage_endpoint: String,
    pub platform: Platform,
    pub log_format: LogFormat,
    pub max_connections: usize,
    pub timing: Timing,
    /// Hints for the operator, logged at the start.
    pub warnings: Vec<Warning>,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, otherwise JSON.
    #[default]
    Auto,
    Json,
    Text,
}

/// Which throughput a generation uses ("Provisioned Throughput: use").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestType {
    Dedicated,
    Shared,
}

impl RequestType {
    /// The value of the header `X-Vertex-AI-LLM-Request-Type`.
    pub fn as_str(self) -> &'static str {
        match self {
            RequestType::Dedicated => "dedicated",
            RequestType::Shared => "shared",
        }
    }
}

/// Durations that are not settings; tests set their own.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// The first wait before a call is tried again.
    pub first_retry_wait: Duration,
    /// The limit of one try to get an access token.
    pub token_try: Duration,
    /// The limit of one try of a small request to Cloud Storage.
    pub record_try: Duration,
    /// The least time between two writes of one record: Cloud Storage accepts about one mutation of
    /// an object per second.
    pub record_spacing: Duration,
    /// How long giving back a lease may be tried.
    pub release: Duration,
    /// The limit of one try to upload an image.
    pub upload_try: Duration,
    /// A second equal request without a key within this time asks for another image; after it, the
    /// request is a retry.
    pub variant_age: Duration,
    /// How long a lease lasts without being renewed: a retry after a crash waits at most this long.
    pub lease_life: Duration,
}

impl Timing {
    pub const DEFAULT: Timing = Timing {
        first_retry_wait: Duration::from_secs(1),
        token_try: Duration::from_secs(10),
        record_try: Duration::from_secs(2),
        record_spacing: Duration::from_secs(1),
        release: Duration::from_secs(5),
        upload_try: Duration::from_secs(60),
        variant_age: Duration::from_millis(400),
        lease_life: Duration::from_secs(12),
    };
}

/// A model and where to ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub model: &'static Model,
    pub location: String,
}

/// Where to look for Application Default Credentials, in this order.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// `GOOGLE_APPLICATION_CREDENTIALS`
    pub file: Option<PathBuf>,
    /// The path of the file of `gcloud auth application-default login`, which need not exist.
    pub gcloud_file: Option<PathBuf>,
    /// `host` or `host:port` of a metadata server other than Google's.
    pub metadata_host: Option<String>,
    /// The platform is known to have a metadata server.
    pub has_metadata_server: bool,
}

/// The platform that the process runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    CloudRun,
    Lambda,
    Plain,
}

/// Everything that is wrong with the settings, so that an operator can fix all of it at once.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

/// A setting that is missing or invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub setting: &'static Setting,
    /// The variable that is set, otherwise the first name of the setting.
    pub name: &'static str,
    /// A sentence that begins with the name.
    pub text: String,
}

impl Problem {
    /// Whether this variable is one of the setting's.
    pub fn is_about(&self, name: &str) -> bool {
        self.setting.names.contains(&name)
    }

    /// Whether IGA cannot run without a value.
    pub fn is_about_a_required_setting(&self) -> bool {
        self.setting.preset == Preset::Required
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let things = if self.0.len() == 1 { "setting needs" } else { "settings need" };
        write!(f, "IGA cannot start: {} {things} attention.", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  - {}", problem.text))
    }
}

impl std::error::Error for Problems {}

impl Config {
    /// Reads every setting from the environment.
    ///
    /// # Errors
    /// All problems at once. Values of variables that may hold secrets are never repeated.
    pub fn from_env() -> Result<Config, Problems> {
        let mut config = Config::from_vars(|name| std::env::var(name).ok())?;
        config.warnings.extend(unknown_variables(environment_names()));
        Ok(config)
    }

    /// Reads every setting through `variable`, which stands for the environment.
    ///
    /// # Errors
    /// All problems at once. Values of variables that may hold secrets are never repeated.
    pub fn from_vars(variable: impl Fn(&str) -> Option<String>) -> Result<Config, Problems> {
        match Config::read(&variable) {
            (config, problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(Problems(problems)),
        }
    }

    /// Like `from_vars`, but returns the config even if some fields are invalid; those hold arbitrary values.
    pub fn read(variable: Variables) -> (Config, Vec<Problem>) {
        let mut read = Reader { variable, problems: Vec::new() };
        let platform = platform(variable);
        let location = read.parse(&settings::LOCATION, parse::location);
        let model = read.parse(&settings::MODEL, parse::model).unwrap_or(&MODELS[0]);
        let model = Target { model, location };
        let entries = read.parse(&settings::FALLBACKS, parse::fallbacks);
        let fallbacks = locations::resolve(&model, &entries);
        let any_model = !model.model.is_in_the_table()
            || entries.iter().any(|entry| !entry.model.is_in_the_table());
        let mut config = Config {
            host: read.host(),
            port: read.port(),
            debug: read.parse(&settings::DEBUG_MODE, parse::switch),
            credentials: Credentials {
                file: read.optional(&settings::CREDENTIALS_FILE, |path| {
                    parse::credentials_file(path, platform, variable("AWS_ACCESS_KEY_ID").is_some())
                }),
                gcloud_file: variable("HOME").map(|home| PathBuf::from(home).join(GCLOUD_FILE)),
                metadata_host: read.optional(&settings::METADATA_HOST, parse::metadata_host),
                has_metadata_server: platform == Platform::CloudRun,
            },
            project_id: read.parse(&settings::PROJECT_ID, parse::project),
            model,
            fallbacks: fallbacks.targets,
            fallback_when_busy: read.parse(&settings::FALLBACK_WHEN_BUSY, parse::switch),
            labels: read.parse(&settings::LABELS, parse::labels),
            request_type: read.optional(&settings::REQUEST_TYPE, parse::request_type),
            bucket: read.parse(&settings::BUCKET, parse::bucket),
            prefix: read.parse(&settings::PREFIX, parse::prefix),
            default_aspect_ratio: read
                .parse(&settings::DEFAULT_RATIO, |text| parse::ratio(text, any_model)),
            add_watermark: read.parse(&settings::ADD_WATERMARK, parse::switch),
            generation_deadline: read.parse(&settings::GENERATION_DEADLINE, parse::seconds),
            transfer_budget_bytes: read
                .parse(&settings::TRANSFER_BUDGET, |text| parse::number::<usize>(text, 1..=1 << 20))
                .saturating_mul(1 << 20),
            max_generations: read
                .parse(&settings::MAX_GENERATIONS, |text| parse::number(text, 1..=100_000)),
            retry_window: read.parse(&settings::RETRY_WINDOW, parse::seconds_or_off),
            shared_retries: read
                .optional(&settings::SHARED_RETRIES, parse::switch)
                .unwrap_or(matches!(platform, Platform::CloudRun | Platform::Lambda)),
            answer_within: read.parse(&settings::ANSWER_WITHIN, parse::seconds_or_off),
            vertex_endpoint: read.optional(&settings::VERTEX_ENDPOINT, parse::endpoint),
            storage_endpoint: read
                .optional(&settings::STORAGE_ENDPOINT, parse::endpoint)
                .unwrap_or_else(|| GOOGLES_STORAGE.to_owned()),
            platform,
            log_format: read.parse(&settings::LOG_FORMAT, parse::log_format),
            max_connections: read
                .parse(&settings::MAX_CONNECTIONS, |text| parse::number(text, 1..=1_000_000)),
            timing: Timing::DEFAULT,
            warnings: Vec::new(),
        };
        for proxy in settings::PROXIES {
            read.optional(proxy, parse::http_proxy);
        }
        let has_problem = |setting| read.has_problem(setting);
        if ![&settings::DEFAULT_RATIO, &settings::MODEL].into_iter().any(has_problem) {
            read.problems.extend(config.check_default_ratio().err());
        }
        config.warnings = warnings::find(&config, variable, &fallbacks.left_out);
        (config, read.problems)
    }

    /// The configured model and its fallbacks, in the order in which they are asked.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        std::iter::once(&self.model).chain(&self.fallbacks)
    }

    /// Every location that a prompt may be sent to, the configured one first.
    pub fn prompt_locations(&self) -> Vec<&str> {
        let mut locations = Vec::new();
        for location in self.targets().map(|target| target.location.as_str()) {
            if !locations.contains(&location) {
                locations.push(location);
            }
        }
        locations
    }

    /// The model that a caller means: one of the table, or one that the settings name.
    pub fn model_named(&self, name: &str) -> Option<&'static Model> {
        let named = || self.targets().find(|target| target.model.id == name);
        Model::find(name).or_else(|| named().map(|target| target.model))
    }

    /// The target for a model that a caller names; `None` if no location of the settings serves it.
    pub fn target_of(&self, model: &'static Model) -> Option<Target> {
        let named = |target: &&Target| target.model == model;
        let listed = self
            .targets()
            .filter(named)
            .find(|target| model.may_be_served_in(&target.location))
            .or_else(|| self.targets().find(named));
        if let Some(target) = listed {
            return Some(target.clone());
        }
        let mut locations = self.prompt_locations().into_iter();
        let location = locations.find(|location| model.may_be_served_in(location))?;
        Some(Target { model, location: location.to_owned() })
    }

    /// A default that no model of the list can take would fail every request without a ratio.
    fn check_default_ratio(&self) -> Result<(), Problem> {
        let ratio = self.default_aspect_ratio.as_str();
        let takes = |target: &Target| target.model.may_take_ratio(ratio);
        // A retired model makes no image; after it, the first fallback that can takes the request.
        let mut served = self.targets().filter(|target| !target.model.retired);
        let Some(first) = served.next().filter(|first| !takes(first)) else {
            return Ok(());
        };
        if self.model.model.retired && served.any(takes) {
            return Ok(());
        }
        let setting = &settings::DEFAULT_RATIO;
        let name = setting.names[0];
        let (id, ratios) = (first.model.id, first.model.ratios().join(", "));
        let text = format!("{name} is {ratio:?}, which {id} cannot take; it takes {ratios}.");
        Err(Problem { setting, name, text })
    }
}

/// The address of a service with these settings, for a client on this machine. Reads the port and the host only.
///
/// # Errors
/// A sentence that says why the port or the host is not valid.
pub fn own_address(variable: Variables) -> Result<SocketAddr, String> {
    let mut read = Reader { variable, problems: Vec::new() };
    let (host, port) = (read.host(), read.port());
    match read.problems.into_iter().next() {
        None => Ok(reachable(SocketAddr::new(host, port))),
        Some(problem) => Err(problem.text),
    }
}

/// The address by which a client on this machine reaches a listener.
pub fn reachable(mut listener: SocketAddr) -> SocketAddr {
    match listener.ip() {
        IpAddr::V4(host) if host.is_unspecified() => listener.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(host) if host.is_unspecified() => listener.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    listener
}

/// Reads variables one by one and remembers what is wrong with them.
struct Reader<'a> {
    variable: Variables<'a>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn host(&mut self) -> IpAddr {
        self.parse(&settings::HOST, parse::ip_address).unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    fn port(&mut self) -> u16 {
        self.parse(&settings::PORT, |text| parse::number(text, 0..=u16::MAX))
    }

    /// The value that is set, otherwise the table's default. After a problem the value is arbitrary.
    fn parse<T: Default>(
        &mut self,
        setting: &'static Setting,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        match (self.find(setting), &setting.preset) {
            (Some((name, text)), _) => self.parsed(setting, name, &text, parse),
            (None, Preset::Value(text)) => self.parsed(setting, setting.names[0], text, parse),
            (None, Preset::Required) => {
                let names = setting.names.join(" or ");
                let text = format!("{names} is not set: {}.", setting.meaning);
                self.problems.push(Problem { setting, name: setting.names[0], text });
                T::default()
            }
            (None, Preset::Unset | Preset::ByPlatform(_)) => T::default(),
        }
    }

    /// The value, if one is set and valid.
    fn optional<T>(
        &mut self,
        setting: &'static Setting,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.parse(setting, |text| parse(text).map(Some))
    }

    fn parsed<T: Default>(
        &mut self,
        setting: &'static Setting,
        name: &'static str,
        text: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        let text = text.trim();
        let value = if is_quoted(text) { Err(QUOTED.to_owned()) } else { parse(text) };
        value.unwrap_or_else(|problem| {
            let text = format!("{name} {problem}.");
            self.problems.push(Problem { setting, name, text });
            T::default()
        })
    }

    /// The first variable of the setting that is set.
    fn find(&self, setting: &Setting) -> Option<(&'static str, String)> {
        let is_set = |text: &str| setting.may_be_empty || !text.trim().is_empty();
        let counts =
            |name: &str, text: &str| is_set(text) && !(name == IGA_PORT && is_service_link(text));
        let values = setting.names.iter().filter_map(|name| Some((*name, (self.variable)(name)?)));
        values.into_iter().find(|(name, text)| counts(name, text))
    }

    fn has_problem(&self, setting: &Setting) -> bool {
        self.problems.iter().any(|problem| problem.setting == setting)
    }
}

/// Loads `.env` from the working directory into the environment, if there is one; what is set stays.
///
/// # Errors
/// A sentence that says what is wrong with the file, by line and name: a line may hold a secret.
pub fn load_env_file() -> Result<(), String> {
    let problem = |text: String| Err(format!("IGA cannot start: the file .env {text}."));
    let text = match std::fs::read_to_string(".env") {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return problem(format!("cannot be read: {error}")),
    };
    env_file(&text)?;
    dotenvy::from_read(text.as_bytes()).or(problem("cannot be read".to_owned()))
}

/// The variables of a `.env` that can be loaded.
///
/// # Errors
/// As for [`load_env_file`].
pub fn env_file(text: &str) -> Result<Vec<(String, String)>, String> {
    let problem =
        |text: &str| Err(format!("IGA cannot start: the file .env cannot be read{text}."));
    // No variable of the environment can hold it.
    if let Some(end) = text.find('\0') {
        let number = text[..end].matches('\n').count() + 1;
        return problem(&format!(": line {number} has a zero byte"));
    }
    let text = text.trim_start_matches('\u{feff}');
    match dotenvy::from_read_iter(text.as_bytes()).collect() {
        Ok(variables) => Ok(variables),
        Err(dotenvy::Error::LineParse(line, _)) => problem(&format!(": {}", place_of(&line, text))),
        Err(_) => problem(""),
    }
}

/// Says which line is not `NAME=VALUE`: its number, and the setting's name if it has one.
fn place_of(line: &str, file: &str) -> String {
    let number = file.find(line).map_or(0, |start| file[..start].matches('\n').count()) + 1;
    let name =
        line.trim_start().trim_start_matches("export ").split('=').next().unwrap_or_default();
    let is_setting = |name: &str| SETTINGS.iter().any(|setting| setting.names.contains(&name));
    match name.trim() {
        name if is_setting(name) => format!("line {number}, {name}: its value is not valid"),
        _ => format!("line {number} is not NAME=VALUE"),
    }
}

/// The names of the environment's variables.
pub fn environment_names() -> impl Iterator<Item = String> {
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())
}

/// Whether a tool kept the quotes around a value. A value with a brace does not count: it is likely to
/// be credentials in place of their path, which has its own message.
fn is_quoted(text: &str) -> bool {
    (text.starts_with(['"', '\'']) || text.ends_with(['"', '\''])) && !text.contains('{')
}

fn platform(variable: Variables) -> Platform {
    if variable("AWS_LAMBDA_RUNTIME_API").is_some() {
        Platform::Lambda
    } else if variable("K_SERVICE").is_some() {
        Platform::CloudRun
    } else {
        Platform::Plain
    }
}

/// The name of this service or function on its platform.
pub fn service_name(variable: Variables) -> Option<String> {
    variable("K_SERVICE").or_else(|| variable("AWS_LAMBDA_FUNCTION_NAME"))
}

/// The variable that sets the port, or IGA's own if none is set.
pub fn port_name(variable: Variables) -> &'static str {
    let read = Reader { variable, problems: Vec::new() };
    read.find(&settings::PORT).map_or("IGA_PORT", |(name, _)| name)
}

const QUOTED: &str = "must not be in quotes, which docker's --env-file keeps as part of the value";
const IGA_PORT: &str = settings::PORT.names[1];
const GCLOUD_FILE: &str = ".config/gcloud/application_default_credentials.json";

/// The address of Cloud Storage, unless a setting replaces it.
pub const GOOGLES_STORAGE: &str = "https://storage.googleapis.com";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::warnings::Fix;
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use std::collections::HashMap;

    const MINIMUM: &[(&str, &str)] = &[
        ("GCP_PROJECT_ID", "my-project"),
        ("GCP_LOCATION", "us-central1"),
        ("GCS_BUCKET_NAME", "my-bucket"),
    ];

    fn from(vars: &[(&str, &str)]) -> Result<Config, Problems> {
        let vars: HashMap<_, _> = vars.iter().copied().collect();
        Config::from_vars(|name| vars.get(name).map(|text| text.to_string()))
    }

    fn with(vars: &[(&str, &str)]) -> Config {
        from(&[MINIMUM, vars].concat()).unwrap()
    }

    fn problem(name: &str, value: &str) -> String {
        let problems = from(&[MINIMUM, &[(name, value)]].concat()).unwrap_err().0;
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.into_iter().next().unwrap().text
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = with(&[]);
        assert_eq!((config.host, config.port, config.debug), ([0, 0, 0, 0].into(), 5007, true));
        assert_eq!(
            (config.project_id.as_str(), config.bucket.as_str()),
            ("my-project", "my-bucket")
        );
        assert_eq!(
            (config.model.model.id, config.model.location.as_str()),
            ("imagegeneration@006", "us-central1")
        );
        let fallbacks: Vec<_> =
            config.fallbacks.iter().map(|t| (t.location.as_str(), t.model.id)).collect();
        assert_eq!(
            fallbacks,
            [
                ("global", "gemini-nano-banana-2.1"),
                ("global", "gemini-3.1-flash-image"),
                ("us-central1", "gemini-2.5-flash-image")
            ]
        );
        assert_eq!(
            (config.prefix.as_str(), config.default_aspect_ratio.as_str()),
            ("images/iga/", "1:1")
        );
        assert!(config.add_watermark && !config.shared_retries && config.warnings.is_empty());
        assert!(!config.fallback_when_busy && config.labels.is_empty());
        assert_eq!((config.request_type, config.log_format), (None, LogFormat::Auto));
        assert_eq!(config.max_connections, 2048);
        assert_eq!(config.generation_deadline, Duration::from_secs(180));
        assert_eq!((config.transfer_budget_bytes, config.max_generations), (128 << 20, 80));
        assert_eq!(
            (config.retry_window, config.answer_within),
            (Some(Duration::from_secs(5)), None)
        );
        assert_eq!(
            (config.vertex_endpoint, config.storage_endpoint.as_str()),
            (None, "https://storage.googleapis.com")
        );
    }

    #[test]
    fn the_first_name_that_is_set_wins_and_an_empty_one_does_not_count() {
        assert_eq!(with(&[("PORT", "8080"), ("IGA_PORT", "5008")]).port, 8080);
        assert_eq!(with(&[("PORT", ""), ("IGA_PORT", "5008")]).port, 5008);
        assert_eq!(with(&[("IGA_VERTEXAI_LOCATION", "global")]).model.location, "global");
        assert_eq!(with(&[("IGA_VERTEXAI_PROJECT_ID", "other")]).project_id, "other");
    }

    #[test]
    fn the_own_address_needs_only_host_and_port() {
        let own = |vars: &[(&str, &str)]| {
            let vars: HashMap<_, _> = vars.iter().copied().collect();
            own_address(&|name| vars.get(name).map(|text| text.to_string()))
                .map(|address| address.to_string())
        };
        assert_eq!(own(&[]).unwrap(), "127.0.0.1:5007");
        assert_eq!(
            own(&[("IGA_PORT", "1"), ("PORT", "8080"), ("IGA_HOST", "::")]).unwrap(),
            "[::1]:8080"
        );
        assert_eq!(own(&[("IGA_HOST", "10.0.0.7")]).unwrap(), "10.0.0.7:5007");
        assert!(
            own(&[("PORT", "x"), ("IGA_ADD_WATERMARK", "x")])
                .unwrap_err()
                .starts_with("PORT must be")
        );
    }

    #[test]
    fn a_switch_accepts_all_its_words_in_any_case() {
        for (text, value) in [
            ("true", true),
            ("FALSE", false),
            ("1", true),
            ("0", false),
            ("Yes", true),
            ("no", false),
        ] {
            assert_eq!(with(&[("IGA_DEBUG_MODE", text)]).debug, value);
        }
        assert!(problem("IGA_ADD_WATERMARK", "maybe").contains("IGA_ADD_WATERMARK must be true"));
    }

    #[test]
    fn every_problem_is_listed_at_once() {
        let error = from(&[
            ("PORT", "x"),
            ("IGA_GENERATION_DEADLINE_SECONDS", "0"),
            ("GCP_LOCATION", "US/evil.com#"),
        ]);
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("IGA cannot start: 5 settings need attention."), "{text}");
        for part in [
            "PORT must be",
            "IGA_VERTEXAI_PROJECT_ID or GCP_PROJECT_ID is not set",
            "GCP_LOCATION must be",
            "GCS_BUCKET_NAME is not set",
            "DEADLINE_SECONDS must be",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn the_prefix_is_normalised_or_refused() {
        for (text, prefix) in [("", ""), ("/", ""), ("a", "a/"), ("/a/b//", "a/b/"), ("//x", "x/")]
        {
            assert_eq!(with(&[("IGA_GCS_IMAGE_PREFIX", text)]).prefix, prefix);
        }
        assert!(problem("IGA_GCS_IMAGE_PREFIX", "/../x//").contains("must not hold . or .."));
        assert!(problem("IGA_GCS_IMAGE_PREFIX", "a\nb\u{7}").contains("control characters"));
        assert!(problem("IGA_GCS_IMAGE_PREFIX", &"x".repeat(901)).contains("at most 900"));
        for text in
            ["gs://my-bucket/images", "a b/", "a\tb", "a\u{a0}b", "x#1", "it's", "a`b", "a\"b"]
        {
            let problem = problem("IGA_GCS_IMAGE_PREFIX", text);
            assert!(problem.starts_with("IGA_GCS_IMAGE_PREFIX must"), "{problem}");
        }
    }

    #[test]
    fn plain_http_is_accepted_for_near_hosts_only() {
        for (text, endpoint) in [
            ("http://127.0.0.1:9023/", "http://127.0.0.1:9023"),
            ("localhost:9023", "http://localhost:9023"),
            ("http://[::1]:1", "http://[::1]:1"),
            ("http://emulator:4443", "http://emulator:4443"),
            ("http://10.0.0.1", "http://10.0.0.1"),
            ("http://172.17.0.1:4443", "http://172.17.0.1:4443"),
            ("http://192.168.1.9", "http://192.168.1.9"),
            ("http://169.254.1.1", "http://169.254.1.1"),
            ("http://[fd20:ce::254]", "http://[fd20:ce::254]"),
            ("http://[fe80::1]:80", "http://[fe80::1]"),
            ("http://[::ffff:10.0.0.1]", "http://[::ffff:a00:1]"),
            ("host.docker.internal:4443", "http://host.docker.internal:4443"),
            ("http://printer.local", "http://printer.local"),
            ("http://gcs.emulators.localhost", "http://gcs.emulators.localhost"),
            ("http://gcs.corp.internal.:1", "http://gcs.corp.internal.:1"),
            ("https://storage.example.com", "https://storage.example.com"),
        ] {
            assert_eq!(with(&[("STORAGE_EMULATOR_HOST", text)]).storage_endpoint, endpoint);
            assert_eq!(
                with(&[("IGA_VERTEXAI_ENDPOINT", text)]).vertex_endpoint.as_deref(),
                Some(endpoint)
            );
        }
        for text in [
            "http://storage.googleapis.com",
            "http://172.32.0.1",
            "http://100.64.0.1",
            "http://0.0.0.0:1",
            "http://[2001:db8::1]",
            "http://[::ffff:8.8.8.8]",
            "http://host.docker.internal.evil.com",
            "ftp://localhost",
            "http://",
            "http://Ü-HOST.local",
        ] {
            let problem = problem("STORAGE_EMULATOR_HOST", text);
            assert!(problem.starts_with("STORAGE_EMULATOR_HOST must"), "{text}: {problem}");
        }
    }

    #[test]
    fn a_metadata_server_is_near_and_has_no_path() {
        for text in [
            "127.0.0.1:80",
            "metadata",
            "metadata.google.internal",
            "metadata.google.internal.:80",
            "169.254.169.254",
            "[fd20:ce::254]",
            "[fd20:ce::254]:80",
            "[::1]:8080",
            "192.168.0.1:8080",
        ] {
            assert!(with(&[("GCE_METADATA_HOST", text)]).credentials.metadata_host.is_some());
        }
        for text in [
            "evil.example.com",
            "a/b",
            "a/",
            "http://x",
            "x?y",
            "u:p@x",
            "fd20:ce::254",
            "8.8.8.8",
            "[2001:db8::1]",
            "Ü-HOST.local",
        ] {
            let problem = problem("GCE_METADATA_HOST", text);
            assert!(problem.starts_with("GCE_METADATA_HOST must be host"), "{text}: {problem}");
        }
    }

    #[test]
    fn a_value_that_may_hold_a_password_is_never_quoted() {
        for name in ["STORAGE_EMULATOR_HOST", "IGA_VERTEXAI_ENDPOINT", "GCE_METADATA_HOST"] {
            for text in [
                "http://user:SECRET@[bad",
                "https://user:SECRET@x.com",
                "https://SECRET@x.com",
                "https://x.com/?key=SECRET",
                "https://x.com/#SECRET",
                "ftp://SECRET",
                "http://SECRET.example.com",
                "\"https://SECRET\"",
            ] {
                let problem = problem(name, text);
                assert!(!problem.to_lowercase().contains("secret"), "{name} {text}: {problem}");
            }
        }
        let long = format!("{}SECRET", "x".repeat(100));
        assert!(!problem("GCS_BUCKET_NAME", &format!("{long}/")).contains("SECRET"));
    }

    #[test]
    fn a_value_in_quotes_is_refused() {
        for (name, text) in [
            ("GCS_BUCKET_NAME", "\"my-bucket\""),
            ("IGA_GCS_IMAGE_PREFIX", "\"\""),
            ("IGA_PORT", "'5007'"),
            ("IGA_DEBUG_MODE", "\"False"),
            ("IGA_VERTEXAI_FALLBACK_MODELS", "''"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "\"/key.json\""),
        ] {
            let problem = problem(name, text);
            assert_eq!(problem, format!("{name} {QUOTED}."));
        }
    }

    #[test]
    fn the_address_of_a_kubernetes_service_is_not_a_port() {
        for text in ["tcp://10.96.0.7:5007", "udp://10.96.0.7:53"] {
            let config = with(&[("IGA_PORT", text)]);
            assert_eq!((config.port, config.warnings.len()), (5007, 1));
            assert!(config.warnings[0].text.starts_with("IGA_PORT is ignored"));
            assert_eq!(with(&[("IGA_PORT", text), ("PORT", "8080")]).port, 8080);
        }
        assert!(problem("PORT", "tcp://10.96.0.7:5007").starts_with("PORT must be"));
        assert!(problem("IGA_PORT", "http://10.96.0.7").starts_with("IGA_PORT must be"));
    }

    #[test]
    fn labels_follow_the_rules_of_google_cloud() {
        let labels = |text: &str| with(&[("IGA_VERTEXAI_LABELS", text)]).labels;
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            labels(" team=podcast, env=prod ,"),
            BTreeMap::from([pair("team", "podcast"), pair("env", "prod")])
        );
        assert_eq!(labels("flag="), BTreeMap::from([pair("flag", "")]));
        let many = (0..65).map(|i| format!("k{i}=v,")).collect::<String>();
        let long = format!("k={}", "v".repeat(64));
        for text in
            ["team", "Team=x", "team=X", "1=x", "=x", "a=b=c", "a b=c", "a=1,a=2", &many, &long]
        {
            let problem = problem("IGA_VERTEXAI_LABELS", text);
            assert!(problem.starts_with("IGA_VERTEXAI_LABELS must"), "{text}: {problem}");
        }
    }

    #[test]
    fn a_word_that_is_not_allowed_is_refused() {
        assert_eq!(with(&[("IGA_LOG_FORMAT", "JSON")]).log_format, LogFormat::Json);
        assert_eq!(with(&[("IGA_LOG_FORMAT", "text")]).log_format, LogFormat::Text);
        assert_eq!(
            with(&[("IGA_VERTEXAI_REQUEST_TYPE", "dedicated")]).request_type,
            Some(RequestType::Dedicated)
        );
        assert!(problem("IGA_LOG_FORMAT", "yaml").contains("auto, json or text"));
        assert!(problem("IGA_VERTEXAI_REQUEST_TYPE", "Shared").contains("dedicated or shared"));
        for text in ["0", "-1", "1e3", "many"] {
            assert!(problem("IGA_MAX_CONNECTIONS", text).contains("whole number from 1"), "{text}");
        }
    }

    #[test]
    fn a_model_that_is_not_in_the_table_is_accepted_with_a_warning() {
        let config = with(&[
            ("IGA_VERTEXAI_IMAGE_MODEL_ID", "publishers/google/models/gemini-9-image"),
            ("IGA_VERTEXAI_FALLBACK_MODELS", "eu/publishers/google/models/imagen-9,gemini-9-image"),
            ("IGA_DEFAULT_ASPECT_RATIO", "5:2"),
        ]);
        let targets: Vec<_> =
            config.targets().map(|target| (target.location.as_str(), target.model.id)).collect();
        assert_eq!(
            targets,
            [("us-central1", "gemini-9-image"), ("global", "gemini-9-image"), ("eu", "imagen-9"),]
        );
        let texts: Vec<_> = config.warnings.iter().map(|warning| warning.text.as_str()).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].starts_with("IGA_VERTEXAI_IMAGE_MODEL_ID names gemini-9-image, which"));
        assert!(texts[1].starts_with("IGA_VERTEXAI_FALLBACK_MODELS names imagen-9, which"));
        let known = config.model_named("imagen-9").unwrap();
        assert_eq!(config.target_of(known).unwrap().location, "eu");
        assert_eq!(config.model_named("gemini-10-image"), None);
    }

    #[test]
    fn a_fallback_without_an_allowed_location_gives_a_warning_with_a_fix() {
        let in_europe =
            |vars: &[(&str, &str)]| with(&[&[("GCP_LOCATION", "europe-west4")], vars].concat());
        let config = in_europe(&[]);
        assert_eq!(config.prompt_locations(), ["europe-west4"]);
        let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
        for part in [
            "IGA_VERTEXAI_FALLBACK_MODELS has no allowed location for gemini-nano-banana-2.1, gemini-3.1-flash-image",
            "not served in europe-west4",
            "Add global/gemini-nano-banana-2.1,global/gemini-3.1-flash-image to the list",
        ] {
            assert!(warning.text.contains(part), "{warning}");
        }
        let fix = Fix::Set(
            "IGA_VERTEXAI_FALLBACK_MODELS",
            "europe-west4/gemini-2.5-flash-image".to_owned(),
        );
        assert_eq!(warning.fix, Some(fix));
        let list = ("IGA_VERTEXAI_FALLBACK_MODELS", "global/gemini-3-pro-image");
        assert_eq!(in_europe(&[list]).prompt_locations(), ["europe-west4", "global"]);
        assert!(in_europe(&[list]).warnings.is_empty());
        let model = ("IGA_VERTEXAI_IMAGE_MODEL_ID", "gemini-3-pro-image");
        let off = ("IGA_VERTEXAI_FALLBACK_MODELS", "");
        let [warning] = &in_europe(&[model, off]).warnings[..] else { panic!() };
        assert!(warning.text.contains("not known to be served in europe-west4, only in global"));
    }

    #[test]
    fn a_callers_model_is_asked_only_where_the_settings_name_a_location() {
        let at = |vars: &[(&str, &str)], id: &str| {
            let target = with(vars).target_of(Model::find(id).unwrap());
            target.map_or("none".to_owned(), |target| target.location)
        };
        let off = ("IGA_VERTEXAI_FALLBACK_MODELS", "");
        let europe = ("GCP_LOCATION", "europe-west4");
        let global = ("IGA_VERTEXAI_FALLBACK_MODELS", "global/gemini-nano-banana-2.1");
        assert_eq!(at(&[], "gemini-3-pro-image"), "global");
        assert_eq!(at(&[], "gemini-2.5-flash-image"), "us-central1");
        assert_eq!(at(&[off], "gemini-3-pro-image"), "none");
        assert_eq!(at(&[europe], "gemini-3-pro-image"), "none");
        assert_eq!(at(&[europe, off], "gemini-2.5-flash-image"), "europe-west4");
        assert_eq!(at(&[europe, global], "gemini-3-pro-image"), "global");
        assert_eq!(at(&[europe], "imagen-4.0-generate-001"), "europe-west4");
    }

    #[test]
    fn a_default_ratio_is_checked_against_every_model_of_the_list() {
        let ratio = ("IGA_DEFAULT_ASPECT_RATIO", "8:1");
        let config = with(&[ratio]);
        let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
        assert!(warning.text.contains("the fallback gemini-2.5-flash-image cannot take"));
        let list =
            ("IGA_VERTEXAI_FALLBACK_MODELS", "gemini-2.5-flash-image,global/gemini-3-pro-image");
        let error = from(&[MINIMUM, &[ratio, list]].concat()).unwrap_err().to_string();
        assert!(error.contains("gemini-2.5-flash-image cannot take; it takes 1:1"), "{error}");
        let none = ("IGA_VERTEXAI_FALLBACK_MODELS", "imagen-3.0-generate-001");
        assert!(with(&[ratio, none]).warnings.is_empty(), "only retired models: nothing is known");
    }

    #[test]
    fn every_variable_that_is_read_is_a_setting_or_one_of_the_platform() {
        let asked = std::cell::RefCell::new(std::collections::BTreeSet::new());
        let _ = Config::from_vars(|name| {
            asked.borrow_mut().insert(name.to_owned());
            None
        });
        let of_the_table: Vec<_> = SETTINGS.iter().flat_map(|setting| setting.names).collect();
        let mut asked = asked.into_inner();
        for name in of_the_table.iter().filter(|name| !settings::NO_PROXY.names.contains(*name)) {
            assert!(asked.remove(**name), "{name} is in the table, but not read");
        }
        let others =
            ["AWS_ACCESS_KEY_ID", "AWS_LAMBDA_RUNTIME_API", "HOME", "K_SERVICE"].map(str::to_owned);
        assert!(asked.iter().all(|name| others.contains(name)), "{asked:?}");
    }

    #[test]
    fn a_bad_line_of_the_env_file_is_reported_by_number_and_name_only() {
        let file = "A=b\nIGA_PORT=\"5007\nSECRET SECRET\n";
        assert_eq!(
            place_of("IGA_PORT=\"5007\nSECRET SECRET\n", file),
            "line 2, IGA_PORT: its value is not valid"
        );
        assert_eq!(place_of("SECRET SECRET", file), "line 3 is not NAME=VALUE");
        assert_eq!(place_of("MIIEvQIBADANBg=", "x\nMIIEvQIBADANBg=\n"), "line 2 is not NAME=VALUE");
        let exported = place_of("export GCS_BUCKET_NAME=\"x", "export GCS_BUCKET_NAME=\"x");
        assert_eq!(exported, "line 1, GCS_BUCKET_NAME: its value is not valid");
    }

    #[test]
    fn buckets_models_ratios_and_fallbacks_are_checked() {
        let (long, long_part) = ("ab.".repeat(75), format!("a.{}", "b".repeat(64)));
        for (name, rule) in [
            ("gs://my-bucket", "a bucket's name alone (no gs://, no slash)"),
            ("my-bucket/images", "a bucket's name alone (no gs://, no slash)"),
            ("My-bucket", "consist of lower-case letters, digits, -, _ and ."),
            ("my bucket", "consist of lower-case letters, digits, -, _ and ."),
            ("ab", "3 to 222 characters"),
            (long.as_str(), "3 to 222 characters"),
            (long_part.as_str(), "at most 63 characters, or so many between its dots"),
            ("-my-bucket", "begin and end with a letter or a digit"),
            ("my-bucket.", "begin and end with a letter or a digit"),
        ] {
            assert!(problem("GCS_BUCKET_NAME", name).contains(rule), "{name}");
        }
        let longest = format!("{}.{}", "a".repeat(63), "b".repeat(63));
        for name in ["abc", "my_bucket-1.example.com", &longest] {
            assert_eq!(with(&[("GCS_BUCKET_NAME", name)]).bucket, name);
        }
        assert!(
            problem("IGA_VERTEXAI_IMAGE_MODEL_ID", "dall-e").contains("gemini-nano-banana-2.1")
        );
        assert!(problem("IGA_DEFAULT_ASPECT_RATIO", "4:7").contains("16:9"));
        let served = [
            ("IGA_VERTEXAI_IMAGE_MODEL_ID", "gemini-3-pro-image"),
            ("IGA_DEFAULT_ASPECT_RATIO", "8:1"),
        ];
        assert!(
            from(&[MINIMUM, &served].concat()).unwrap_err().to_string().contains("cannot take")
        );
        assert!(with(&[("IGA_VERTEXAI_FALLBACK_MODELS", "")]).fallbacks.is_empty());
        let here = with(&[(
            "IGA_VERTEXAI_FALLBACK_MODELS",
            " gemini-2.5-flash-image , eu/gemini-3.1-flash-image",
        )])
        .fallbacks;
        assert_eq!([here[0].location.as_str(), here[1].location.as_str()], ["us-central1", "eu"]);
        for list in [
            "global/none",
            "dall-e",
            "projects/p/locations/l/publishers/google/models/gemini-9",
            "US/gemini-9",
        ] {
            let problem = problem("IGA_VERTEXAI_FALLBACK_MODELS", list);
            assert!(
                problem.contains("names no model") || problem.contains("must be a location"),
                "{problem}"
            );
        }
    }

    #[test]
    fn seconds_may_be_off_and_have_decimals() {
        assert_eq!(with(&[("IGA_RETRY_WINDOW_SECONDS", "OFF")]).retry_window, None);
        assert_eq!(
            with(&[("IGA_ANSWER_WITHIN_SECONDS", "0.5")]).answer_within,
            Some(Duration::from_millis(500))
        );
        for text in ["-1", "inf", "NaN", "4000", "x"] {
            assert!(
                problem("IGA_ANSWER_WITHIN_SECONDS", text).contains("number of seconds"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_platform_decides_about_shared_retries() {
        let lambda = with(&[("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001")]);
        assert!(lambda.platform == Platform::Lambda && lambda.shared_retries);
        assert!(
            !with(&[("AWS_LAMBDA_RUNTIME_API", "x"), ("IGA_SHARED_RETRIES", "no")]).shared_retries
        );
        let cloud_run = with(&[("K_SERVICE", "iga")]);
        assert!(cloud_run.platform == Platform::CloudRun && cloud_run.shared_retries);
        assert!(!with(&[("K_SERVICE", "iga"), ("IGA_SHARED_RETRIES", "0")]).shared_retries);
    }

    #[test]
    fn the_deprecated_directory_gives_one_warning() {
        assert_eq!(
            with(&[("IGA_GENERATED_IMAGE_DIR", "/shared_audio/iga_images")]).warnings.len(),
            1
        );
    }

    #[test]
    fn an_unusable_credentials_file_is_refused_and_never_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let good = file(
            "good.json",
            r#"{"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}"#,
        );
        assert!(with(&[("GOOGLE_APPLICATION_CREDENTIALS", &good)]).credentials.file.is_some());
        for (name, text, word) in [
            ("text", "-----BEGIN SECRET", "not JSON"),
            ("none", "{}", "has no type"),
            ("other", r#"{"type": "weird", "private_key": "SECRET"}"#, "of an unknown type"),
        ] {
            let problem = problem("GOOGLE_APPLICATION_CREDENTIALS", &file(name, text));
            assert!(problem.contains(word) && !problem.contains("SECRET"), "{problem}");
        }
        let problem = |value| problem("GOOGLE_APPLICATION_CREDENTIALS", value);
        let missing = problem("/nowhere/SECRET");
        assert!(missing.contains("cannot be read") && !missing.contains("SECRET"), "{missing}");
        let base64 =
            BASE64_STANDARD.encode(r#"{"type": "service_account", "private_key": "SECRET"}"#);
        for value in [
            r#"{"private_key": "SECRET"}"#,
            r#"{"type": "service_account"}"#,
            "-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----",
            &base64,
            &base64[..70],
            base64.trim_end_matches('='),
        ] {
            let text = "GOOGLE_APPLICATION_CREDENTIALS is not a path; it looks like the credentials themselves.";
            assert_eq!(problem(value), text);
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_refused_and_never_quoted() {
        for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"] {
            for value in ["socks5://u:SECRET@p:1", "https://u:SECRET@p", "http://u:SECRET@[p"] {
                let problem = problem(name, value);
                assert!(problem.starts_with(name) && !problem.contains("SECRET"), "{problem}");
            }
            with(&[(name, "http://u:p@proxy:3128")]);
        }
    }

    #[test]
    fn a_federation_file_for_another_cloud_is_refused_where_that_is_certain() {
        const AWS: &str = r#"{"environment_id": "aws1"}"#;
        const EC2: &str =
            r#"{"environment_id": "aws1", "imdsv2_session_token_url": "http://169.254.169.254/x"}"#;
        const AZURE: &str = r#"{"url": "http://169.254.169.254/metadata/identity/oauth2/token"}"#;
        let (lambda, cloud_run) = (("AWS_LAMBDA_RUNTIME_API", "x"), ("K_SERVICE", "iga"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("federation.json");
        let path = path.to_str().unwrap();
        for (source, platform, words) in [
            (AZURE, lambda, Some("made for Azure, but this is AWS Lambda; make one with gcloud")),
            (EC2, lambda, Some("without --enable-imdsv2")),
            (AWS, lambda, None),
            (AZURE, cloud_run, Some("Cloud Run, which has an identity of its own; unset")),
            (AWS, cloud_run, Some("made for AWS, but this is Cloud Run")),
            (AWS, ("IGA_HOST", "::"), None),
        ] {
            std::fs::write(
                path,
                format!(
                    r#"{{"type": "external_account", "audience": "a", "subject_token_type": "t", "token_url": "u",
                        "credential_source": {source}}}"#
                ),
            )
            .unwrap();
            let result =
                from(&[MINIMUM, &[platform, ("GOOGLE_APPLICATION_CREDENTIALS", path)]].concat());
            match (result, words) {
                (result, None) => assert!(result.is_ok(), "{source}: {result:?}"),
                (result, Some(words)) => {
                    let text = result.unwrap_err().to_string();
                    assert!(text.contains(words) && text.contains(path), "{text}");
                }
            }
        }
        let with_keys =
            [cloud_run, ("AWS_ACCESS_KEY_ID", "x"), ("GOOGLE_APPLICATION_CREDENTIALS", path)];
        assert!(from(&[MINIMUM, &with_keys].concat()).is_ok());
    }
}
