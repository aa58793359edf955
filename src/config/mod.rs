//! Every environment variable: name, default, meaning. Nothing else in the crate reads the environment, or `.env`.

pub mod parse;
pub mod settings;

use crate::model::Model;
use settings::{Preset, Setting};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

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
    /// Asked in this order once the configured model turns out to be gone.
    pub fallbacks: Vec<Target>,
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
    pub log_format: LogFormat,
    pub max_connections: usize,
    pub platform: Platform,
    pub timing: Timing,
    /// What the operator should know, though nothing is wrong.
    pub warnings: Vec<String>,
}

/// Times that are no settings; tests choose their own.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// The first wait before a call is tried again.
    pub first_retry_wait: Duration,
    /// One try to get an access token.
    pub token_try: Duration,
    /// One try of a small request to Cloud Storage.
    pub record_try: Duration,
    /// One try to upload an image.
    pub upload_try: Duration,
    /// An equal request without a key that comes sooner than this after the first is a variant, not a retry.
    pub variant_age: Duration,
    /// How long a lease lasts without being renewed: a retry after a crash waits at most this long.
    pub lease_life: Duration,
}

impl Timing {
    pub const DEFAULT: Timing = Timing {
        first_retry_wait: Duration::from_secs(1),
        token_try: Duration::from_secs(10),
        record_try: Duration::from_secs(10),
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

/// Where Application Default Credentials are looked for, in this order.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// `GOOGLE_APPLICATION_CREDENTIALS`
    pub file: Option<PathBuf>,
    /// Where `gcloud auth application-default login` leaves its file, whether or not it is there.
    pub gcloud_file: Option<PathBuf>,
    /// `host` or `host:port` of a metadata server other than Google's.
    pub metadata_host: Option<String>,
    /// The platform has a metadata server, for certain.
    pub has_metadata_server: bool,
}

/// What a log line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    Json,
    Text,
}

/// What the process runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    CloudRun,
    Lambda,
    Plain,
}

/// Everything that is wrong with the settings, for a person to mend in one go.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

/// What is wrong with one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub setting: &'static Setting,
    /// The variable that is set, or the first of those that may be.
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
    /// Reads every setting through `variable`, which is `std::env::var` in the binaries and a map in tests.
    ///
    /// # Errors
    /// All problems at once. Values of variables that may hold secrets are never repeated.
    pub fn from_vars(variable: impl Fn(&str) -> Option<String>) -> Result<Config, Problems> {
        match Config::read(&variable) {
            (config, problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(Problems(problems)),
        }
    }

    /// The same, for whoever can do with a part: a setting with a problem has any value.
    pub fn read(variable: Variables) -> (Config, Vec<Problem>) {
        let mut read = Reader { variable, problems: Vec::new() };
        let platform = platform(variable);
        let location = read.parse(&settings::LOCATION, parse::location);
        let model = read.parse(&settings::MODEL, parse::model).unwrap_or(&crate::model::MODELS[0]);
        let config = Config {
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
            fallbacks: read.parse(&settings::FALLBACKS, |text| parse::fallbacks(text, &location)),
            model: Target { model, location: location.clone() },
            bucket: read.parse(&settings::BUCKET, parse::bucket),
            prefix: read.parse(&settings::PREFIX, parse::prefix),
            default_aspect_ratio: read.parse(&settings::DEFAULT_RATIO, parse::ratio),
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
                .unwrap_or(platform == Platform::Lambda),
            answer_within: read.parse(&settings::ANSWER_WITHIN, parse::seconds_or_off),
            vertex_endpoint: read.optional(&settings::VERTEX_ENDPOINT, parse::endpoint),
            storage_endpoint: read
                .optional(&settings::STORAGE_ENDPOINT, parse::endpoint)
                .unwrap_or_else(|| GOOGLES_STORAGE.to_owned()),
            log_format: LogFormat::Auto,
            max_connections: 2048,
            platform,
            timing: Timing::DEFAULT,
            warnings: warnings(variable),
        };
        if !read.has_problem(&settings::DEFAULT_RATIO) && !read.has_problem(&settings::MODEL) {
            read.problems.extend(check_default_ratio(&config).err());
        }
        (config, read.problems)
    }
}

/// Where a service with these settings answers on this machine. No other setting is looked at.
///
/// # Errors
/// A sentence, where the port or the host is no such thing.
pub fn own_address(variable: Variables) -> Result<SocketAddr, String> {
    let mut read = Reader { variable, problems: Vec::new() };
    let (host, port) = (read.host(), read.port());
    match read.problems.into_iter().next() {
        None => Ok(reachable(SocketAddr::new(host, port))),
        Some(problem) => Err(problem.text),
    }
}

/// Where one connects to, to reach a listener of this machine.
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

    /// The value that is set, else the table's. After a problem the value is arbitrary.
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
        parse(text.trim()).unwrap_or_else(|problem| {
            let text = format!("{name} {problem}.");
            self.problems.push(Problem { setting, name, text });
            T::default()
        })
    }

    /// The first variable of the setting that is set.
    fn find(&self, setting: &Setting) -> Option<(&'static str, String)> {
        let values = setting.names.iter().filter_map(|name| Some((*name, (self.variable)(name)?)));
        values.into_iter().find(|(_, text)| setting.may_be_empty || !text.trim().is_empty())
    }

    fn has_problem(&self, setting: &Setting) -> bool {
        self.problems.iter().any(|problem| problem.setting == setting)
    }
}

/// Loads `.env` from the working directory into the environment, if there is one; what is set stays.
///
/// # Errors
/// A sentence that says what is wrong with the file.
pub fn load_env_file() -> Result<(), String> {
    match dotenvy::from_path(".env") {
        Ok(()) => Ok(()),
        Err(error) if error.not_found() => Ok(()),
        Err(error) => Err(format!("IGA cannot start: the file .env cannot be read: {error}")),
    }
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

/// What the platform calls this service or function.
pub fn service_name(variable: Variables) -> Option<String> {
    variable("K_SERVICE").or_else(|| variable("AWS_LAMBDA_FUNCTION_NAME"))
}

/// The variable that sets the port: the one that is set, else IGA's own.
pub fn port_name(variable: Variables) -> &'static str {
    let read = Reader { variable, problems: Vec::new() };
    read.find(&settings::PORT).map_or("IGA_PORT", |(name, _)| name)
}

fn warnings(variable: Variables) -> Vec<String> {
    let deprecated = variable("IGA_GENERATED_IMAGE_DIR").map(|_| {
        "IGA_GENERATED_IMAGE_DIR is deprecated and has no effect: images go to Cloud Storage only.".to_owned()
    });
    deprecated.into_iter().collect()
}

/// A default that the configured model cannot take would fail every request that names no ratio.
fn check_default_ratio(config: &Config) -> Result<(), Problem> {
    let model = config.model.model;
    if model.retired || model.ratios().contains(&config.default_aspect_ratio.as_str()) {
        return Ok(());
    }
    let setting = &settings::DEFAULT_RATIO;
    let name = setting.names[0];
    let text = format!(
        "{name} is {:?}, which {} cannot take; it takes {}.",
        config.default_aspect_ratio,
        model.id,
        model.ratios().join(", ")
    );
    Err(Problem { setting, name, text })
}

const GCLOUD_FILE: &str = ".config/gcloud/application_default_credentials.json";

/// Where Cloud Storage is, unless a setting says otherwise.
pub const GOOGLES_STORAGE: &str = "https://storage.googleapis.com";

#[cfg(test)]
mod tests {
    use super::*;
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
    fn the_defaults_are_the_contracts() {
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
            [("global", "gemini-nano-banana-2.1"), ("global", "gemini-3.1-flash-image")]
        );
        assert_eq!(
            (config.prefix.as_str(), config.default_aspect_ratio.as_str()),
            ("images/iga/", "1:1")
        );
        assert!(config.add_watermark && !config.shared_retries && config.warnings.is_empty());
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
    fn the_own_address_needs_no_other_setting_and_is_one_to_connect_to() {
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
    fn switches_take_all_their_words_in_any_case() {
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
    }

    #[test]
    fn plain_http_reaches_this_machine_and_single_labels_only() {
        for (text, endpoint) in [
            ("http://127.0.0.1:9023/", "http://127.0.0.1:9023"),
            ("localhost:9023", "http://localhost:9023"),
            ("http://[::1]:1", "http://[::1]:1"),
            ("http://emulator:4443", "http://emulator:4443"),
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
            "http://10.0.0.1",
            "ftp://localhost",
            "http://",
            "https://u:p@x.com",
        ] {
            assert!(
                problem("STORAGE_EMULATOR_HOST", text).starts_with("STORAGE_EMULATOR_HOST must"),
                "{text}"
            );
        }
        for text in ["127.0.0.1:80", "metadata", "metadata.google.internal", "169.254.169.254"] {
            assert!(with(&[("GCE_METADATA_HOST", text)]).credentials.metadata_host.is_some());
        }
        for text in ["evil.example.com", "a/b", "http://x"] {
            assert!(
                problem("GCE_METADATA_HOST", text).starts_with("GCE_METADATA_HOST must"),
                "{text}"
            );
        }
    }

    #[test]
    fn buckets_models_ratios_and_fallbacks_are_checked() {
        assert!(problem("GCS_BUCKET_NAME", "gs://my-bucket").contains("no gs://"));
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
        assert!(problem("IGA_VERTEXAI_FALLBACK_MODELS", "global/none").contains("names no model"));
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
        assert_eq!(with(&[("K_SERVICE", "iga")]).platform, Platform::CloudRun);
    }

    #[test]
    fn the_deprecated_directory_is_one_warning() {
        assert_eq!(
            with(&[("IGA_GENERATED_IMAGE_DIR", "/shared_audio/iga_images")]).warnings.len(),
            1
        );
    }

    #[test]
    fn a_credentials_file_must_be_one_and_is_never_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let good = file("good.json", r#"{"type": "service_account"}"#);
        assert!(with(&[("GOOGLE_APPLICATION_CREDENTIALS", &good)]).credentials.file.is_some());
        for (name, text, word) in [
            ("text", "-----BEGIN SECRET", "not JSON"),
            ("none", "{}", "without a type"),
            ("other", r#"{"type": "weird", "private_key": "SECRET"}"#, "of type \"weird\""),
        ] {
            let problem = problem("GOOGLE_APPLICATION_CREDENTIALS", &file(name, text));
            assert!(problem.contains(word) && !problem.contains("SECRET"), "{problem}");
        }
        assert!(
            problem("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
                .contains("cannot be read")
        );
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
                format!(r#"{{"type": "external_account", "credential_source": {source}}}"#),
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
