//! Where prompts may go: only to locations that the settings name or imply.

use super::Target;
use crate::model::Model;

/// An entry of the fallback list, as the operator wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub location: Option<String>,
    pub model: &'static Model,
}

/// The targets of a fallback list, and the models that have no target.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    pub targets: Vec<Target>,
    /// The models that no allowed location serves.
    pub left_out: Vec<&'static Model>,
}

/// The targets to ask after `first`, in this order and each once.
///
/// If another allowed location serves the model of `first`, that target comes before other models.
pub fn resolve(first: &Target, entries: &[Entry]) -> Resolved {
    let mut resolved = Resolved::default();
    if entries.is_empty() {
        return resolved;
    }
    let mut asked = vec![first.clone()];
    let allowed = implied(&first.location);
    if !first.model.retired && !first.model.is_known_in(&first.location) {
        asked.extend(targets(first.model, &allowed));
    }
    for Entry { location, model } in entries {
        let found = match location {
            Some(location) => vec![Target { model, location: location.clone() }],
            None => targets(model, &allowed),
        };
        if found.is_empty() {
            resolved.left_out.push(model);
        }
        asked.extend(found);
    }
    for target in asked.into_iter().skip(1) {
        if target != *first && !resolved.targets.contains(&target) {
            resolved.targets.push(target);
        }
    }
    resolved
}

/// The configured location, and the locations that it implies.
pub fn implied(configured: &str) -> Vec<&str> {
    match configured {
        "" => vec![],
        region if region.starts_with("us-") => vec![region, "global"],
        region if region.starts_with("europe-") => vec![region, "eu"],
        other => vec![other],
    }
}

/// The model in the first allowed location that serves it. A model that is not in the table is asked
/// in all allowed locations.
fn targets(model: &'static Model, allowed: &[&str]) -> Vec<Target> {
    let served = allowed.iter().filter(|location| model.may_be_served_in(location));
    let at_most = if model.is_in_the_table() { 1 } else { allowed.len() };
    let target = |location: &&str| Target { model, location: (*location).to_owned() };
    served.take(at_most).map(target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "gemini-nano-banana-2.1,gemini-3.1-flash-image,gemini-2.5-flash-image";

    fn entries(list: &str) -> Vec<Entry> {
        crate::config::parse::fallbacks(list).unwrap()
    }

    /// The list after a model in a location, as `location/model`, and how many models are left out.
    fn resolved(location: &str, model: &str, list: &str) -> (Vec<String>, usize) {
        let first = Target { model: Model::named(model).unwrap(), location: location.to_owned() };
        let resolved = resolve(&first, &entries(list));
        let shown = |target: &Target| format!("{}/{}", target.location, target.model.id);
        (resolved.targets.iter().map(shown).collect(), resolved.left_out.len())
    }

    #[test]
    fn a_prompt_goes_only_where_the_configured_location_allows() {
        let global = ["global/gemini-nano-banana-2.1", "global/gemini-3.1-flash-image"];
        for (location, last, left_out) in [
            ("global", Some("global"), 0),
            ("us-central1", Some("us-central1"), 0),
            ("us-west4", Some("us-west4"), 0),
            ("us-west2", Some("global"), 0),
            ("us", None, 3),
            ("eu", None, 3),
            ("europe-west4", Some("europe-west4"), 2),
            ("europe-west8", Some("europe-west8"), 2),
            ("europe-west3", None, 3),
            ("northamerica-northeast1", None, 3),
            ("asia-northeast1", None, 3),
            ("australia-southeast1", None, 3),
            ("me-west1", None, 3),
        ] {
            let (targets, missing) = resolved(location, "imagegeneration@006", LIST);
            let mut expected = Vec::new();
            if location == "global" || location.starts_with("us-") {
                expected.extend(global.map(str::to_owned));
            }
            expected.extend(last.map(|at| format!("{at}/gemini-2.5-flash-image")));
            assert_eq!((targets, missing), (expected, left_out), "{location}");
        }
    }

    #[test]
    fn an_entry_with_a_location_is_asked_there() {
        for location in ["europe-west4", "eu", "us", "asia-east1", "us-central1", "global"] {
            let list = "global/gemini-3-pro-image,us-east1/gemini-2.5-flash-image";
            let expected = ["global/gemini-3-pro-image", "us-east1/gemini-2.5-flash-image"];
            assert_eq!(
                resolved(location, "imagegeneration@006", list),
                (expected.map(str::to_owned).to_vec(), 0),
                "{location}"
            );
        }
    }

    #[test]
    fn global_for_one_entry_is_not_global_for_another() {
        let list = "global/gemini-nano-banana-2.1,gemini-3.1-flash-image";
        let expected = (vec!["global/gemini-nano-banana-2.1".to_owned()], 1);
        assert_eq!(resolved("europe-west4", "imagegeneration@006", list), expected);
    }

    #[test]
    fn the_same_model_elsewhere_comes_before_another_model() {
        let first =
            |location: &str, model: &str, list: &str| resolved(location, model, list).0.remove(0);
        let list = "gemini-nano-banana-2.1,gemini-2.5-flash-image";
        assert_eq!(first("us-east1", "gemini-3-pro-image", list), "global/gemini-3-pro-image");
        assert_eq!(first("us-east1", "gemini-9-image", list), "global/gemini-9-image");
        assert_eq!(first("europe-west4", "gemini-9-image", list), "eu/gemini-9-image");
        assert_eq!(
            first("europe-west4", "gemini-3-pro-image", list),
            "europe-west4/gemini-2.5-flash-image"
        );
        assert_eq!(
            first("us-east1", "gemini-2.5-flash-image", list),
            "global/gemini-nano-banana-2.1"
        );
        assert_eq!(
            resolved("us-east1", "gemini-3-pro-image", ""),
            (vec![], 0),
            "no fallback at all"
        );
    }

    #[test]
    fn a_target_is_listed_once() {
        let list = "global/gemini-3-pro-image,gemini-3-pro-image,us-east1/gemini-3-pro-image";
        let expected = (vec!["global/gemini-3-pro-image".to_owned()], 0);
        assert_eq!(resolved("us-east1", "gemini-3-pro-image", list), expected);
    }

    #[test]
    fn a_retired_or_unknown_fallback_stays_in_the_allowed_locations() {
        let (targets, _) = resolved("us-east1", "gemini-3-pro-image", "imagen-4.0-generate-001");
        assert_eq!(targets[1], "us-east1/imagen-4.0-generate-001");
        assert_eq!(targets.len(), 2);
        let expected = ["europe-west4/gemini-9-image", "eu/gemini-9-image"].map(str::to_owned);
        assert_eq!(resolved("europe-west4", "imagegeneration@006", "gemini-9-image").0, expected);
        assert_eq!(
            resolved("asia-east1", "imagegeneration@006", "gemini-9-image").0,
            ["asia-east1/gemini-9-image"]
        );
    }
}
