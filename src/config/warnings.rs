//! Settings that work, but probably not as their operator expects.

use super::settings::{self, SETTINGS};
use super::{Config, Target, Variables};
use crate::model::Model;
use std::fmt;

/// A hint for the operator, before the first request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// A sentence that begins with the name of a variable.
    pub text: String,
    /// The change that removes the cause, if one variable is enough.
    pub fix: Option<Fix>,
}

/// A change to one variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fix {
    Unset(String),
    Set(&'static str, String),
}

impl Warning {
    fn new(text: String) -> Warning {
        Warning { text, fix: None }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// All warnings about values; `left_out` are the fallbacks without an allowed location.
pub fn find(config: &Config, variable: Variables, left_out: &[&Model]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    warnings.extend(variable(IMAGE_DIR).map(|_| deprecated()));
    let port = variable(PORT).filter(|text| is_service_link(text));
    warnings.extend(port.map(|_| service_link()));
    warnings.extend(unknown_models(config));
    if config.model.location.is_empty() {
        return warnings;
    }
    warnings.extend(not_served(config));
    if !left_out.is_empty() {
        warnings.push(fallbacks_left_out(config, left_out));
    }
    warnings.extend(ratio_not_taken(config));
    warnings
}

fn deprecated() -> Warning {
    Warning {
        text: format!(
            "{IMAGE_DIR} is deprecated and has no effect: images go to Cloud Storage only."
        ),
        fix: Some(Fix::Unset(IMAGE_DIR.to_owned())),
    }
}

fn service_link() -> Warning {
    Warning::new(format!(
        "{PORT} is ignored: its value is the address of a Kubernetes service named iga. Set PORT, or \
         enableServiceLinks to false."
    ))
}

fn unknown_models(config: &Config) -> Vec<Warning> {
    let configured = std::iter::once((settings::MODEL.names[0], &config.model));
    let fallbacks = config.fallbacks.iter().map(|target| (settings::FALLBACKS.names[0], target));
    let mut ids = Vec::new();
    let mut warnings = Vec::new();
    for (name, Target { model, .. }) in configured.chain(fallbacks) {
        if model.is_in_the_table() || ids.contains(&model.id) {
            continue;
        }
        ids.push(model.id);
        warnings.push(Warning::new(format!(
            "{name} names {}, which this version of IGA does not know; Vertex AI decides what it takes.",
            model.id
        )));
    }
    warnings
}

/// IGA asks the configured model in the configured location even if the table lacks that location.
fn not_served(config: &Config) -> Option<Warning> {
    let (model, location) = (config.model.model, &config.model.location);
    (!model.may_be_served_in(location)).then(|| {
        Warning::new(format!(
            "{} names {}, which is not known to be served in {location}, only in {}.",
            settings::MODEL.names[0],
            model.id,
            model.served_in()
        ))
    })
}

fn fallbacks_left_out(config: &Config, left_out: &[&Model]) -> Warning {
    let name = settings::FALLBACKS.names[0];
    let ids: Vec<_> = left_out.iter().map(|model| model.id).collect();
    let elsewhere: Vec<_> = left_out.iter().map(|model| format!("global/{}", model.id)).collect();
    let kept: Vec<_> = config
        .fallbacks
        .iter()
        .map(|target| format!("{}/{}", target.location, target.model.id))
        .collect();
    let text = format!(
        "{name} has no allowed location for {}: not served in {}, and left out. Add {} to the list to let \
         prompts go to global.",
        ids.join(", "),
        config.prompt_locations().join(", "),
        elsewhere.join(",")
    );
    let fix = (!kept.is_empty()).then(|| Fix::Set(name, kept.join(",")));
    Warning { text, fix }
}

fn ratio_not_taken(config: &Config) -> Vec<Warning> {
    let ratio = config.default_aspect_ratio.as_str();
    let unable = config.fallbacks.iter().filter(|target| !target.model.may_take_ratio(ratio));
    unable
        .map(|target| {
            Warning::new(format!(
                "{} is {ratio}, which the fallback {} cannot take; requests without a ratio skip it.",
                settings::DEFAULT_RATIO.names[0],
                target.model.id
            ))
        })
        .collect()
}

/// A warning for every variable that looks like a setting and is not one: a misspelt name.
pub fn unknown_variables(names: impl IntoIterator<Item = String>) -> Vec<Warning> {
    let mut names: Vec<_> = names.into_iter().filter(|name| name.starts_with("IGA_")).collect();
    names.sort();
    let links: Vec<_> =
        names.iter().filter_map(|name| name.strip_suffix("_SERVICE_HOST")).collect();
    let is_link = |name: &str| {
        let rest = links.iter().filter_map(|service| name.strip_prefix(service));
        rest.into_iter().any(|rest| rest.starts_with("_SERVICE_") || rest.starts_with("_PORT"))
    };
    let is_known = |name: &str| {
        SETTINGS.iter().any(|setting| setting.names.contains(&name)) || OTHERS.contains(&name)
    };
    let unknown = names.iter().filter(|name| !is_known(name) && !is_link(name));
    unknown
        .map(|name| Warning {
            text: format!("{name} is not a setting of IGA and has no effect; is it misspelt?"),
            fix: Some(Fix::Unset(name.clone())),
        })
        .collect()
}

/// Kubernetes sets `IGA_PORT` to such an address in every pod of a namespace with a service named iga.
pub fn is_service_link(text: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme))
}

const IMAGE_DIR: &str = settings::IMAGE_DIR.names[0];
const PORT: &str = settings::PORT.names[1];

/// Read by docker-compose.yml, which shares its `.env` with IGA.
const OTHERS: &[&str] = &["IGA_USER", "IGA_CREDENTIALS_FILE"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_setting_gives_a_warning_and_a_foreign_variable_does_not() {
        let names = |names: &[&str]| -> Vec<String> {
            let warnings = unknown_variables(names.iter().map(|name| (*name).to_owned()));
            warnings.into_iter().map(|w| w.text.split(' ').next().unwrap().to_owned()).collect()
        };
        assert_eq!(
            names(&["IGA_MAX_GENERATION", "HOME", "GCP_X", "IGA_HOST", "IGA_", "IGA_USER"]),
            ["IGA_", "IGA_MAX_GENERATION"]
        );
        let service = [
            "IGA_PORT",
            "IGA_PORT_80_TCP",
            "IGA_PORT_80_TCP_ADDR",
            "IGA_SERVICE_HOST",
            "IGA_SERVICE_PORT",
            "IGA_SERVICE_PORT_HTTP",
            "IGA_LOCAL_PORT",
            "IGA_LOCAL_PORT_5008_TCP_PROTO",
            "IGA_LOCAL_SERVICE_HOST",
        ];
        assert!(names(&service).is_empty(), "{:?}", names(&service));
        assert_eq!(names(&["IGA_LOCAL_PORT"]), ["IGA_LOCAL_PORT"]);
    }
}
