//! Parsers of the settings: each returns the value, or says what is wrong with the text.

use super::locations::Entry;
use super::{LogFormat, Platform, RequestType};
use crate::google::credential_file::{CredentialFile, CredentialKind, Source};
use crate::google::{plain_url, proxy};
use crate::model::{MODELS, Model, RATIOS};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use url::Host;

/// `true` or `false`, or one of their synonyms, in any case.
pub fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(format!("must be true, false, 1, 0, yes or no, not {}", quoted(text))),
    }
}

/// A whole number in the range.
pub fn number<T>(text: &str, range: std::ops::RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!(
            "must be a whole number from {} to {}, not {}",
            range.start(),
            range.end(),
            quoted(text)
        )),
    }
}

/// Seconds, with decimals, up to an hour.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.001..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("must be a number of seconds, at most 3600, not {}", quoted(text))),
    }
}

/// Seconds; `None` for `off`.
pub fn seconds_or_off(text: &str) -> Result<Option<Duration>, String> {
    match text.eq_ignore_ascii_case("off") {
        true => Ok(None),
        false => seconds(text).map(Some).map_err(|problem| format!("{problem} (or off)")),
    }
}

pub fn log_format(text: &str) -> Result<LogFormat, String> {
    match text.to_ascii_lowercase().as_str() {
        "auto" => Ok(LogFormat::Auto),
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err(format!("must be auto, json or text, not {}", quoted(text))),
    }
}

pub fn request_type(text: &str) -> Result<RequestType, String> {
    match text {
        "dedicated" => Ok(RequestType::Dedicated),
        "shared" => Ok(RequestType::Shared),
        _ => Err(format!("must be dedicated or shared, not {}", quoted(text))),
    }
}

/// `key=value,…` within the limits of Google Cloud's labels.
pub fn labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        let (key, value) = (key.trim(), value.trim());
        let fits = |text: &str| {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
            text.len() <= MAX_LABEL_CHARS && text.chars().all(fits)
        };
        if !entry.contains('=')
            || !fits(key)
            || !fits(value)
            || !key.starts_with(|c: char| c.is_ascii_lowercase())
        {
            return Err(format!(
                "must be labels such as team=podcast,env=prod: lower-case letters, digits, _ and -, at most \
                 {MAX_LABEL_CHARS} characters each, not {}",
                quoted(entry)
            ));
        }
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("must not name the label {key} twice"));
        }
    }
    match labels.len() > MAX_LABELS {
        true => Err(format!("must hold at most {MAX_LABELS} labels")),
        false => Ok(labels),
    }
}

pub fn ip_address(text: &str) -> Result<Option<IpAddr>, String> {
    text.parse()
        .map(Some)
        .map_err(|_| format!("must be an IP address such as 0.0.0.0 or ::, not {}", quoted(text)))
}

pub fn project(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
    match text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => Err(format!("must be a project id such as my-project-123, not {}", quoted(text))),
    }
}

/// A location: letters, digits and hyphens only, because it becomes part of a host name.
pub fn location(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match !text.is_empty() && text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "must be a location such as us-central1, us, eu or global, not {}",
            quoted(text)
        )),
    }
}

pub fn model(text: &str) -> Result<Option<&'static Model>, String> {
    named_model(text).map(Some)
}

fn named_model(text: &str) -> Result<&'static Model, String> {
    Model::named(text).ok_or_else(|| {
        let current: Vec<_> =
            MODELS.iter().filter(|model| !model.retired).map(|model| model.id).collect();
        format!(
            "names no model: {}; an id begins with gemini-, imagen or imagegeneration, such as {}",
            quoted(text),
            current.join(", ")
        )
    })
}

/// `model` or `location/model`, separated by commas.
pub fn fallbacks(text: &str) -> Result<Vec<Entry>, String> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (at, id) = match entry.split_once('/') {
                Some(("publishers", _)) | None => (None, entry),
                Some((at, id)) => (Some(at), id),
            };
            Ok(Entry { location: at.map(location).transpose()?, model: named_model(id)? })
        })
        .collect()
}

/// The name of a bucket, by the rules of "Bucket naming" as far as they concern its form.
pub fn bucket(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let rule = if text.contains('/') {
        "must be a bucket's name alone (no gs://, no slash)".to_owned()
    } else if !text.chars().all(fits) {
        "must consist of lower-case letters, digits, -, _ and .".to_owned()
    } else if !(3..=MAX_BUCKET_CHARS).contains(&text.len()) {
        format!("must have 3 to {MAX_BUCKET_CHARS} characters, as a bucket's name has")
    } else if text.split('.').any(|part| part.len() > MAX_BUCKET_PART_CHARS) {
        format!("must have at most {MAX_BUCKET_PART_CHARS} characters, or so many between its dots")
    } else if !ends(text.chars().next()) || !ends(text.chars().last()) {
        "must begin and end with a letter or a digit".to_owned()
    } else {
        return Ok(text.to_owned());
    };
    Err(format!("{rule}, not {}", quoted(text)))
}

/// A prefix without a leading slash and with one trailing slash. Refuses characters that a URI or a
/// shell would change.
pub fn prefix(text: &str) -> Result<String, String> {
    let inner = text.trim_matches('/');
    if text.contains("gs:/") {
        return Err("must be a folder in the bucket alone, without gs:// and the bucket".to_owned());
    }
    if inner.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(format!("must not hold . or .. as a folder, as {} does", quoted(text)));
    }
    let unfit = |c: char| c.is_control() || c.is_whitespace() || UNFIT_FOR_A_PREFIX.contains(c);
    if inner.len() > MAX_PREFIX_BYTES || inner.contains(unfit) {
        return Err(format!(
            "must be at most {MAX_PREFIX_BYTES} bytes without blanks, quotes, # and control characters"
        ));
    }
    Ok(if inner.is_empty() { String::new() } else { format!("{inner}/") })
}

/// A ratio that a model of the table takes; with `any_model`, any ratio, because the settings name a
/// model that is not in the table.
pub fn ratio(text: &str, any_model: bool) -> Result<String, String> {
    match RATIOS.contains(&text) || any_model && is_ratio(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("must be one of {}, not {}", RATIOS.join(", "), quoted(text))),
    }
}

/// Whether a text is two numbers with a colon between them.
pub fn is_ratio(text: &str) -> bool {
    let fits = |side: &str| {
        (1..=4).contains(&side.len()) && side.bytes().all(|byte| byte.is_ascii_digit())
    };
    text.split_once(':').is_some_and(|(width, height)| fits(width) && fits(height))
}

/// Scheme, host and port. Never quotes the text, which may hold a password.
pub fn endpoint(text: &str) -> Result<String, String> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = plain_url(&with_scheme)
        .ok_or_else(|| "must be a URL such as http://localhost:4443".to_owned())?;
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err("must be a plain URL without user, password, query or fragment".to_owned());
    }
    match (url.scheme(), url.host()) {
        ("https", Some(_)) => {}
        ("http", Some(host)) if is_near(&host) => {}
        ("http", Some(_)) => {
            return Err(format!("must use https for this host; plain http is for {NEAR_HOSTS}"));
        }
        _ => return Err("must be an http or https URL".to_owned()),
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// The host of a metadata server. It must be near, because it sends tokens over plain http. Never
/// quotes the text.
pub fn metadata_host(text: &str) -> Result<String, String> {
    let refusal = || {
        format!(
            "must be host or host:port, an IPv6 address in brackets; the host must be {NEAR_HOSTS}"
        )
    };
    let url = plain_url(&format!("http://{text}")).ok_or_else(refusal)?;
    let plain = url.path() == "/"
        && !text.contains(['/', '@', '?', '#'])
        && url.host().is_some_and(|host| is_near(&host));
    if plain { Ok(text.to_owned()) } else { Err(refusal()) }
}

/// Whether plain http to this host stays on this machine or in a network around it.
fn is_near(host: &Host<&str>) -> bool {
    let near = |address: &Ipv4Addr| {
        address.is_loopback() || address.is_private() || address.is_link_local()
    };
    match host {
        Host::Ipv4(address) => near(address),
        Host::Ipv6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => near(&mapped),
            None => {
                address.is_loopback()
                    || address.is_unique_local()
                    || address.is_unicast_link_local()
            }
        },
        Host::Domain(name) => {
            let name = name.trim_end_matches('.');
            let is_single_label = !name.is_empty() && !name.contains('.');
            is_single_label || NEAR_DOMAINS.iter().any(|domain| name.ends_with(domain))
        }
    }
}

pub fn http_proxy(text: &str) -> Result<(), String> {
    proxy::check(text)
}

/// The path of a file that a credential can be built from, on this platform.
///
/// # Errors
/// What is wrong. Nothing of the file is repeated, and the path only if it leads to a file.
pub fn credentials_file(
    path: &str,
    platform: Platform,
    has_aws_keys: bool,
) -> Result<PathBuf, String> {
    if is_credentials(path) {
        return Err(NOT_A_PATH.to_owned());
    }
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(_) if is_base64_of_credentials(path) => return Err(NOT_A_PATH.to_owned()),
        Err(error) => return Err(format!("names a file that cannot be read: {error}")),
    };
    let problem = match CredentialFile::parse(&text) {
        Ok(file) => misplaced(&file.kind, platform, has_aws_keys).map(str::to_owned),
        Err(problem) => Some(problem),
    };
    match problem {
        Some(problem) => Err(format!("names a file that {problem} ({path})")),
        None => Ok(path.into()),
    }
}

/// Whether a text is the content of a credentials file, or a key, instead of a path.
fn is_credentials(text: &str) -> bool {
    text.trim_start_matches(['"', '\'']).trim_start().starts_with('{')
        || text.contains("-----BEGIN")
        || text.contains("private_key")
}

fn is_base64_of_credentials(text: &str) -> bool {
    let text: String = text.split_whitespace().collect();
    // Decode the first characters only: the end may be cut off or padded.
    let head = text.get(..16).unwrap_or_default().replace('-', "+").replace('_', "/");
    let decoded = BASE64_STANDARD.decode(head).unwrap_or_default();
    is_credentials(String::from_utf8_lossy(&decoded).trim_start())
}

const NOT_A_PATH: &str = "is not a path; it looks like the credentials themselves";

/// What is wrong with a federation file that cannot work on this platform, if anything. Lambda has no
/// metadata server; on Cloud Run, Google's metadata server has the address of AWS's and Azure's.
fn misplaced(
    kind: &CredentialKind,
    platform: Platform,
    has_aws_keys: bool,
) -> Option<&'static str> {
    let CredentialKind::Federated { source, .. } = kind else {
        return None;
    };
    match (platform, source) {
        (Platform::Lambda, Source::Azure) => Some(
            "is made for Azure, but this is AWS Lambda; make one with gcloud iam workload-identity-pools \
             create-cred-config … --aws",
        ),
        (Platform::Lambda, Source::Aws { only_on_ec2: true }) => Some(
            "is made for EC2, but this is AWS Lambda; make it with gcloud iam workload-identity-pools \
             create-cred-config … --aws, without --enable-imdsv2",
        ),
        (Platform::CloudRun, Source::Azure) => Some(
            "is made for Azure, but this is Cloud Run, which has an identity of its own; unset the variable",
        ),
        (Platform::CloudRun, Source::Aws { .. }) if !has_aws_keys => Some(
            "is made for AWS, but this is Cloud Run, which has an identity of its own; unset the variable",
        ),
        (Platform::Lambda | Platform::CloudRun | Platform::Plain, _) => None,
    }
}

/// The start of a value in quotes, for a message; a placeholder if the value may be a secret.
fn quoted(text: &str) -> String {
    if is_credentials(text) || is_base64_of_credentials(text) || text.contains(['@', '=']) {
        return "what is set (not shown: it may hold a secret)".to_owned();
    }
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

const NEAR_DOMAINS: &[&str] = &[".local", ".internal", ".localhost"];
const NEAR_HOSTS: &str = "this machine, private and link-local addresses, names without a dot, and names under \
                          .local, .internal or .localhost";

const MAX_SHOWN_CHARS: usize = 60;
const MAX_BUCKET_CHARS: usize = 222;
const MAX_BUCKET_PART_CHARS: usize = 63;
const MAX_LABELS: usize = 64;
const MAX_LABEL_CHARS: usize = 63;

/// Cloud Storage limits an object's name to 1024 bytes; the rest is for the part after the prefix.
const MAX_PREFIX_BYTES: usize = 900;
const UNFIT_FOR_A_PREFIX: &str = "\"'`#\u{201c}\u{201d}\u{2018}\u{2019}";
