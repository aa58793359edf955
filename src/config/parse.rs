//! How the text of each setting is read: a value, or what is wrong with it.

use super::{Platform, Target};
use crate::google::credential_file::{CredentialKind, Source};
use crate::model::{Model, RATIOS};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use url::Url;

pub fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(format!("must be true, false, 1, 0, yes or no, not {text:?}")),
    }
}

pub fn number<T>(text: &str, range: std::ops::RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!(
            "must be a whole number from {} to {}, not {text:?}",
            range.start(),
            range.end()
        )),
    }
}

pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.001..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("must be a number of seconds, at most 3600, not {text:?}")),
    }
}

pub fn seconds_or_off(text: &str) -> Result<Option<Duration>, String> {
    match text.eq_ignore_ascii_case("off") {
        true => Ok(None),
        false => seconds(text).map(Some).map_err(|problem| format!("{problem} (or off)")),
    }
}

pub fn ip_address(text: &str) -> Result<Option<IpAddr>, String> {
    text.parse()
        .map(Some)
        .map_err(|_| format!("must be an IP address such as 0.0.0.0 or ::, not {text:?}"))
}

pub fn project(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
    match text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => Err(format!("must be a project id such as my-project-123, not {text:?}")),
    }
}

/// The location becomes part of a host name, so nothing else may stand in it.
pub fn location(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match !text.is_empty() && text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => {
            Err(format!("must be a location such as us-central1, us, eu or global, not {text:?}"))
        }
    }
}

pub fn model(text: &str) -> Result<Option<&'static Model>, String> {
    Model::find(text).map(Some).ok_or_else(|| {
        let known: Vec<_> = crate::model::MODELS.iter().map(|model| model.id).collect();
        format!("names no model that IGA knows: {text:?}; it knows {}", known.join(", "))
    })
}

pub fn fallbacks(text: &str, configured: &str) -> Result<Vec<Target>, String> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (at, id) = entry.split_once('/').unwrap_or((configured, entry));
            let model = model(id)?.expect("model() finds one or fails");
            Ok(Target { model, location: self::location(at)? })
        })
        .collect()
}

pub fn bucket(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let length = (3..=222).contains(&text.len());
    match length && text.chars().all(fits) && ends(text.chars().next()) && ends(text.chars().last())
    {
        true => Ok(text.to_owned()),
        false => Err(format!("must be a bucket's name alone (no gs://, no slash), not {text:?}")),
    }
}

/// No leading slash, one trailing slash; no segment that a tool would take for a way up.
pub fn prefix(text: &str) -> Result<String, String> {
    let inner = text.trim_matches('/');
    if inner.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(format!("must not hold . or .. as a folder, as {text:?} does"));
    }
    if inner.len() > MAX_PREFIX_BYTES || inner.chars().any(char::is_control) {
        return Err(format!("must be at most {MAX_PREFIX_BYTES} bytes without control characters"));
    }
    Ok(if inner.is_empty() { String::new() } else { format!("{inner}/") })
}

pub fn ratio(text: &str) -> Result<String, String> {
    match RATIOS.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("must be one of {}, not {text:?}", RATIOS.join(", "))),
    }
}

/// Scheme, host and port; plain http only to this machine or to a neighbour such as a compose service.
pub fn endpoint(text: &str) -> Result<String, String> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&with_scheme)
        .map_err(|_| format!("must be a URL such as http://localhost:4443, not {text:?}"))?;
    let host = url.host_str().unwrap_or_default();
    match url.scheme() {
        "https" if !host.is_empty() => {}
        "http" if is_loopback(host) || is_single_label(host) => {}
        "http" => {
            return Err(format!(
                "must use https to reach {host:?}; plain http is for this machine and single-label names"
            ));
        }
        _ => return Err(format!("must be an http or https URL, not {text:?}")),
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err("must be a plain URL without user, password or query".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Tokens come from there over plain http: this machine, a neighbour, or Google's own addresses.
pub fn metadata_host(text: &str) -> Result<String, String> {
    let url = Url::parse(&format!("http://{text}")).ok();
    let host = url.as_ref().filter(|url| url.path() == "/").and_then(Url::host_str);
    match host {
        Some(host)
            if is_loopback(host)
                || is_single_label(host)
                || GOOGLES_METADATA_HOSTS.contains(&host) =>
        {
            Ok(text.to_owned())
        }
        _ => Err(format!(
            "must be host or host:port on this machine or a single-label name, not {text:?}"
        )),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn is_single_label(host: &str) -> bool {
    !host.is_empty() && !host.contains(['.', ':', '['])
}

/// Only whether the file can be one, and be one for this platform; what is in it is never repeated.
pub fn credentials_file(
    path: &str,
    platform: Platform,
    has_aws_keys: bool,
) -> Result<PathBuf, String> {
    let text = std::fs::read(path)
        .map_err(|error| format!("names a file that cannot be read ({path}): {error}"))?;
    let json: serde_json::Value = serde_json::from_slice(&text).map_err(|_| {
        format!("names a file that is not JSON ({path}); download or generate it anew")
    })?;
    match (CredentialKind::from_file(&json), json["type"].as_str()) {
        (Some(identity), _) => match misplaced(&identity, platform, has_aws_keys) {
            Some(problem) => Err(format!("names a file {problem} ({path})")),
            None => Ok(path.into()),
        },
        (None, Some(kind)) => Err(format!(
            "names a file of type {kind:?} ({path}); IGA knows {}",
            CredentialKind::TYPES.join(", ")
        )),
        (None, None) => Err(format!(
            "names a JSON file without a type ({path}); it is no Google credentials file"
        )),
    }
}

/// What is wrong with a federation file on a platform where it can work by no means. Lambda has no metadata
/// server; on Cloud Run, Google's own has the address that AWS's and Azure's have there.
fn misplaced(
    identity: &CredentialKind,
    platform: Platform,
    has_aws_keys: bool,
) -> Option<&'static str> {
    let CredentialKind::Federated { source, .. } = identity else {
        return None;
    };
    match (platform, source) {
        (Platform::Lambda, Source::Azure) => Some(
            "made for Azure, but this is AWS Lambda; make one with gcloud iam workload-identity-pools \
             create-cred-config … --aws",
        ),
        (Platform::Lambda, Source::Aws { only_on_ec2: true }) => Some(
            "made for EC2, but this is AWS Lambda; make it with gcloud iam workload-identity-pools \
             create-cred-config … --aws, without --enable-imdsv2",
        ),
        (Platform::CloudRun, Source::Azure) => Some(
            "made for Azure, but this is Cloud Run, which has an identity of its own; unset the variable",
        ),
        (Platform::CloudRun, Source::Aws { .. }) if !has_aws_keys => Some(
            "made for AWS, but this is Cloud Run, which has an identity of its own; unset the variable",
        ),
        (Platform::Lambda | Platform::CloudRun | Platform::Plain, _) => None,
    }
}

const GOOGLES_METADATA_HOSTS: &[&str] = &["metadata.google.internal", "169.254.169.254"];

/// An object's name may have 1024 bytes; the rest is room for the name itself.
const MAX_PREFIX_BYTES: usize = 900;
