//! The models: one table, and the two protocols they speak. Pure: no client, no await.
//!
//! Ids change every few months; a change is a row of [`MODELS`]. What each model takes follows
//! Google's model pages and API reference ("Imagen API", "Generate and edit images with Gemini").

pub mod gemini;
pub mod imagen;

use crate::error::{Error, Kind};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use time::Date;
use time::Month::{self, August, July, June, March, May, September};

/// A model: a row of the table, or one that only the settings name.
#[derive(Debug, PartialEq, Eq)]
pub struct Model {
    pub id: &'static str,
    pub family: Family,
    /// Vertex AI responds with 404 in every location.
    pub retired: bool,
    /// The day on which Google retired it, or the earliest day on which Google may.
    pub retires: Option<Date>,
    /// `None` for a model that is not in the table: Vertex AI decides what it takes.
    limits: Option<ParamLimits>,
    /// Empty if that is not known.
    served_in: &'static [&'static str],
}

/// The parameters that a model of the table takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ParamLimits {
    ratios: &'static [&'static str],
    sizes: &'static [ImageSize],
    seed: bool,
    negative_prompt: bool,
}

/// The protocol a model speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `:predict`
    Imagen,
    /// `:generateContent`
    Gemini,
}

/// The parameters of a request. Each value is valid in itself; [`Model::check`] tells whether a
/// given model takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    pub aspect_ratio: String,
    pub add_watermark: bool,
    pub negative_prompt: Option<String>,
    pub seed: Option<u32>,
    pub image_size: Option<ImageSize>,
    pub person_generation: Option<PersonGeneration>,
    pub output_mime_type: Option<OutputMimeType>,
}

/// The values of `image_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageSize {
    Px512,
    OneK,
    TwoK,
    FourK,
}

/// The values of `person_generation`: the people that an image may show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PersonGeneration {
    NoPeople,
    Adults,
    Everyone,
}

/// The values of `output_mime_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputMimeType {
    Png,
    Jpeg,
}

/// The meaning of a model's complete response.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The number of the image that [`crate::extract`] extracted.
    Image(usize),
    /// A safety filter stopped the prompt or the image; the text is the model's.
    Blocked(String),
    /// No usable image; the model's text may be empty.
    Empty(String),
    /// Not a response of this API.
    Unknown,
}

impl Model {
    /// The model of the table that has this id, bare or as `publishers/google/models/ID`.
    pub fn find(name: &str) -> Option<&'static Model> {
        let id = name.strip_prefix(PUBLISHER).unwrap_or(name);
        MODELS.iter().find(|model| model.id == id)
    }

    /// The model of this id, in the table or not, if the id's prefix tells its family.
    ///
    /// For the settings only: an id that is not in the table stays in memory until the process ends.
    pub fn named(name: &str) -> Option<&'static Model> {
        Model::find(name).or_else(|| {
            let id = name.strip_prefix(PUBLISHER).unwrap_or(name);
            let family = Family::of(id)?;
            Some(Box::leak(Box::new(Model {
                id: id.to_owned().leak(),
                family,
                retired: false,
                retires: None,
                limits: None,
                served_in: &[],
            })))
        })
    }

    pub fn is_in_the_table(&self) -> bool {
        self.limits.is_some()
    }

    /// The aspect ratios it takes, as far as they are known.
    pub fn ratios(&self) -> &'static [&'static str] {
        self.limits.map_or(RATIOS, |limits| limits.ratios)
    }

    /// Whether a request with this ratio may be sent to it.
    pub fn may_take_ratio(&self, ratio: &str) -> bool {
        self.known_limits().is_none_or(|limits| limits.ratios.contains(&ratio))
    }

    /// Whether it is served in a location, or not known not to be.
    pub fn may_be_served_in(&self, location: &str) -> bool {
        self.served_in.is_empty() || self.is_known_in(location)
    }

    /// Whether the table says that it is served in a location.
    pub fn is_known_in(&self, location: &str) -> bool {
        self.served_in.contains(&location)
    }

    /// Where it is served, in a few words; empty if that is not known.
    pub fn served_in(&self) -> String {
        location_list(self.served_in)
    }

    /// Refuses parameters that this model is known not to take; the error names the field and the
    /// allowed values.
    ///
    /// A retired model is not checked: its 404 costs nothing, and the fallback decides.
    pub fn check(&self, params: &Params) -> Result<(), Error> {
        let Some(limits) = self.known_limits() else {
            return Ok(());
        };
        let ratio = params.aspect_ratio.as_str();
        if !limits.ratios.contains(&ratio) {
            return Err(self.refuse("aspect_ratio", ratio, &limits.ratios.join(", ")));
        }
        if let Some(size) = params.image_size.filter(|size| !limits.sizes.contains(size)) {
            let allowed: Vec<_> = limits.sizes.iter().map(|size| size.as_str()).collect();
            return Err(self.refuse("image_size", size.as_str(), &listed(&allowed)));
        }
        if let Some(seed) = params.seed {
            self.check_seed(limits.seed, seed, params.add_watermark)?;
        }
        if params.negative_prompt.is_some() && !limits.negative_prompt {
            return Err(self.refuse(
                "negative_prompt",
                "a value",
                "nothing; say in the prompt what to leave out",
            ));
        }
        Ok(())
    }

    fn known_limits(&self) -> Option<ParamLimits> {
        self.limits.filter(|_| !self.retired)
    }

    fn check_seed(&self, takes_seed: bool, seed: u32, add_watermark: bool) -> Result<(), Error> {
        match self.family {
            _ if !takes_seed => Err(self.refuse("seed", "a value", "nothing")),
            Family::Imagen if add_watermark => Err(self.refuse(
                "seed",
                "a value together with the watermark",
                "a seed only with add_watermark false",
            )),
            Family::Imagen if seed == 0 => Err(self.refuse("seed", "0", "1 to 2147483647")),
            Family::Imagen | Family::Gemini => Ok(()),
        }
    }

    fn refuse(&self, field: &str, given: &str, allowed: &str) -> Error {
        Kind::UnsupportedParameter.because(format!(
            "Field '{field}': model {} does not take {given}; allowed: {allowed}.",
            self.id
        ))
    }

    /// Advice about a 404 for this model in `location`.
    pub fn not_served_hint(&self, location: &str) -> String {
        self.not_served_hint_after(location, &[(self.id, location)])
    }

    /// Like [`not_served_hint`](Model::not_served_hint), without proposing the pairs of model and
    /// location in `tried`.
    pub fn not_served_hint_after(&self, location: &str, tried: &[(&str, &str)]) -> String {
        let untried = |model: &&Model| {
            let is_untried = |location: &&&str| !tried.contains(&(model.id, **location));
            let left: Vec<_> = model.served_in.iter().filter(is_untried).copied().collect();
            (!left.is_empty()).then(|| format!("{} ({})", model.id, location_list(&left)))
        };
        let current: Vec<_> = MODELS
            .iter()
            .filter(|model| !model.retired)
            .filter_map(|model| untried(&model))
            .collect();
        let advice = match current.is_empty() {
            true => "no other model is known".to_owned(),
            false => format!("try {}", current.join(", ")),
        };
        format!("Model {} is retired, or not served in {location}; {advice}.", self.id)
    }
}

impl Family {
    /// The family by the id's prefix; `None` for an id that cannot be part of a URL's path.
    fn of(id: &str) -> Option<Family> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._@".contains(c);
        if id.len() > MAX_ID_CHARS || !id.chars().all(fits) {
            return None;
        }
        let begins = |prefix: &str| id.len() > prefix.len() && id.starts_with(prefix);
        if begins("gemini-") {
            Some(Family::Gemini)
        } else if begins("imagen") || begins("imagegeneration") {
            Some(Family::Imagen)
        } else {
            None
        }
    }

    /// The last part of the URL.
    pub fn verb(self) -> &'static str {
        match self {
            Family::Imagen => "predict",
            Family::Gemini => "generateContent",
        }
    }

    /// The request body, JSON, with the labels that a bill shows.
    pub fn body(self, prompt: &str, params: &Params, labels: &BTreeMap<String, String>) -> Vec<u8> {
        let mut body = match self {
            Family::Imagen => imagen::body(prompt, params),
            Family::Gemini => gemini::body(prompt, params),
        };
        if !labels.is_empty() {
            body["labels"] = json!(labels);
        }
        body.to_string().into_bytes()
    }

    /// The body of a request that cannot produce an image.
    pub fn body_without_prompt(self) -> &'static [u8] {
        match self {
            Family::Imagen => br#"{"instances": []}"#,
            Family::Gemini => br#"{"contents": []}"#,
        }
    }

    /// Reads a complete response whose images [`crate::extract`] has extracted.
    pub fn outcome(self, skeleton: &Value) -> Outcome {
        match self {
            Family::Imagen => imagen::outcome(skeleton),
            Family::Gemini => gemini::outcome(skeleton),
        }
    }

    /// A function that takes the skeleton so far and returns the number of the image to keep, unless a
    /// better one follows.
    pub fn best_so_far(self) -> fn(&Value) -> Option<usize> {
        match self {
            Family::Imagen => imagen::best_so_far,
            Family::Gemini => gemini::best_so_far,
        }
    }
}

impl ImageSize {
    pub const ALL: [ImageSize; 4] =
        [ImageSize::Px512, ImageSize::OneK, ImageSize::TwoK, ImageSize::FourK];

    pub fn as_str(self) -> &'static str {
        match self {
            ImageSize::Px512 => "512",
            ImageSize::OneK => "1K",
            ImageSize::TwoK => "2K",
            ImageSize::FourK => "4K",
        }
    }
}

impl PersonGeneration {
    /// Parses the words of both families, in any case.
    pub fn parse(word: &str) -> Option<PersonGeneration> {
        match word.to_ascii_lowercase().as_str() {
            "dont_allow" | "allow_none" => Some(PersonGeneration::NoPeople),
            "allow_adult" => Some(PersonGeneration::Adults),
            "allow_all" => Some(PersonGeneration::Everyone),
            _ => None,
        }
    }
}

impl OutputMimeType {
    pub const ALL: [OutputMimeType; 2] = [OutputMimeType::Png, OutputMimeType::Jpeg];

    pub fn as_str(self) -> &'static str {
        match self {
            OutputMimeType::Png => "image/png",
            OutputMimeType::Jpeg => "image/jpeg",
        }
    }
}

/// The allowed values, separated by commas, or "nothing".
pub fn listed(values: &[&str]) -> String {
    if values.is_empty() { "nothing".to_owned() } else { values.join(", ") }
}

/// The elements of an array. An object where an array is documented counts as its only element.
pub fn elements(value: &Value) -> &[Value] {
    match value {
        Value::Array(elements) => elements,
        Value::Object(_) => std::slice::from_ref(value),
        _ => &[],
    }
}

/// The number of the image that a reference left by [`crate::extract`] stands for.
fn image_at(reference: &Value) -> Option<usize> {
    reference.as_str()?.strip_prefix(crate::extract::REFERENCE)?.parse().ok()
}

/// A string that is not blank; any other value counts as absent.
fn text(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.trim().is_empty())
}

/// The names of a few locations; of many, the first name and how many more there are.
fn location_list(locations: &[&str]) -> String {
    match locations {
        [first, rest @ ..] if rest.len() > 2 => format!("{first} and {} more", rest.len()),
        _ => locations.join(", "),
    }
}

const PUBLISHER: &str = "publishers/google/models/";
const MAX_ID_CHARS: usize = 100;

/// Every aspect ratio that a model of the table takes.
pub const RATIOS: &[&str] = RATIOS_14;

const RATIOS_1: &[&str] = &["1:1"];
const RATIOS_2: &[&str] = &["1:1", "9:16"];
const RATIOS_5: &[&str] = &["1:1", "3:4", "4:3", "9:16", "16:9"];
const RATIOS_10: &[&str] =
    &["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9"];
const RATIOS_14: &[&str] = &[
    "1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9", "1:4", "4:1", "1:8",
    "8:1",
];

const NO_SIZE: &[ImageSize] = &[];
const ONE_K: &[ImageSize] = &[ImageSize::OneK];
const UP_TO_2K: &[ImageSize] = &[ImageSize::OneK, ImageSize::TwoK];
const UP_TO_4K: &[ImageSize] = &[ImageSize::OneK, ImageSize::TwoK, ImageSize::FourK];
const FROM_512: &[ImageSize] = &ImageSize::ALL;

const GLOBAL: &[&str] = &["global"];
/// "Gemini 2.5 Flash Image", section on regions.
const MANY_REGIONS: &[&str] = &[
    "global",
    "us-central1",
    "us-east1",
    "us-east4",
    "us-east5",
    "us-south1",
    "us-west1",
    "us-west4",
    "europe-central2",
    "europe-north1",
    "europe-southwest1",
    "europe-west1",
    "europe-west4",
    "europe-west8",
];

const fn day(year: i32, month: Month, day: u8) -> Option<Date> {
    match Date::from_calendar_date(year, month, day) {
        Ok(date) => Some(date),
        Err(_) => panic!("the table holds days of the calendar only"),
    }
}

const fn imagen(
    id: &'static str,
    retires: Option<Date>,
    ratios: &'static [&'static str],
    sizes: &'static [ImageSize],
    negative_prompt: bool,
) -> Model {
    let limits = Some(ParamLimits { ratios, sizes, seed: true, negative_prompt });
    Model { id, family: Family::Imagen, retired: true, retires, limits, served_in: &[] }
}

const fn gemini(
    id: &'static str,
    retires: Option<Date>,
    ratios: &'static [&'static str],
    sizes: &'static [ImageSize],
    seed: bool,
    served_in: &'static [&'static str],
) -> Model {
    let limits = Some(ParamLimits { ratios, sizes, seed, negative_prompt: false });
    Model { id, family: Family::Gemini, retired: false, retires, limits, served_in }
}

const fn retired(
    id: &'static str,
    retires: Option<Date>,
    ratios: &'static [&'static str],
    sizes: &'static [ImageSize],
) -> Model {
    Model { retired: true, ..gemini(id, retires, ratios, sizes, true, &[]) }
}

/// The table ("Model versions and lifecycle", "Deprecations"). Current models first, the cheapest one
/// at the top; Vertex AI responds to all others with 404.
#[rustfmt::skip]
pub static MODELS: &[Model] = &[
    gemini("gemini-nano-banana-2.1", None, RATIOS_14, UP_TO_4K, false, GLOBAL),
    gemini("gemini-3.1-flash-lite-image", day(2027, June, 28), RATIOS_14, ONE_K, true, GLOBAL),
    gemini("gemini-2.5-flash-image", day(2027, March, 15), RATIOS_10, NO_SIZE, true, MANY_REGIONS),
    gemini("gemini-3.1-flash-image", day(2027, May, 28), RATIOS_14, FROM_512, true, GLOBAL),
    gemini("gemini-3-pro-image", day(2027, May, 28), RATIOS_10, UP_TO_4K, true, GLOBAL),
    retired("gemini-3.1-flash-image-preview", day(2026, July, 19), RATIOS_14, UP_TO_4K),
    retired("gemini-3-pro-image-preview", day(2026, July, 19), RATIOS_10, UP_TO_4K),
    retired("gemini-2.5-flash-image-preview", day(2026, March, 19), RATIOS_10, NO_SIZE),
    imagen("imagen-4.0-generate-001", day(2026, August, 17), RATIOS_5, UP_TO_2K, false),
    imagen("imagen-4.0-ultra-generate-001", day(2026, August, 17), RATIOS_5, UP_TO_2K, false),
    imagen("imagen-4.0-fast-generate-001", day(2026, August, 17), RATIOS_5, NO_SIZE, false),
    imagen("imagen-3.0-generate-002", day(2026, August, 17), RATIOS_5, NO_SIZE, false),
    imagen("imagen-3.0-generate-001", day(2026, August, 17), RATIOS_5, NO_SIZE, true),
    imagen("imagen-3.0-fast-generate-001", day(2026, August, 17), RATIOS_5, NO_SIZE, true),
    imagen("imagegeneration@006", day(2025, September, 24), RATIOS_5, NO_SIZE, true),
    imagen("imagegeneration@005", day(2025, September, 24), RATIOS_2, NO_SIZE, false),
    imagen("imagegeneration@002", day(2025, September, 24), RATIOS_1, NO_SIZE, false),
];

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn square() -> Params {
        Params {
            aspect_ratio: "1:1".to_owned(),
            add_watermark: true,
            negative_prompt: None,
            seed: None,
            image_size: None,
            person_generation: None,
            output_mime_type: None,
        }
    }

    fn refusal(id: &str, params: Params) -> String {
        let error = Model::find(id).unwrap().check(&params).unwrap_err();
        assert_eq!(error.kind, Kind::UnsupportedParameter);
        error.to_string()
    }

    #[test]
    fn every_id_is_listed_once() {
        for model in MODELS {
            assert_eq!(
                MODELS.iter().filter(|other| other.id == model.id).count(),
                1,
                "{}",
                model.id
            );
        }
    }

    #[test]
    fn a_ratio_the_model_cannot_take_is_named_with_the_allowed_ones() {
        let params = Params { aspect_ratio: "8:1".to_owned(), ..square() };
        let text = refusal("gemini-3-pro-image", params);
        assert!(
            text.contains("'aspect_ratio'") && text.contains("8:1") && text.contains("21:9"),
            "{text}"
        );
    }

    #[test]
    fn sizes_seeds_and_negative_prompts_are_refused_where_the_table_says() {
        let sized = Params { image_size: Some(ImageSize::TwoK), ..square() };
        assert!(refusal("gemini-3.1-flash-lite-image", sized.clone()).contains("allowed: 1K"));
        assert!(refusal("gemini-2.5-flash-image", sized).contains("allowed: nothing"));
        let seeded = Params { seed: Some(7), ..square() };
        assert!(refusal("gemini-nano-banana-2.1", seeded.clone()).contains("'seed'"));
        assert!(Model::find("gemini-3.1-flash-image").unwrap().check(&seeded).is_ok());
        let negative = Params { negative_prompt: Some("dogs".to_owned()), ..square() };
        assert!(refusal("gemini-3.1-flash-image", negative).contains("'negative_prompt'"));
    }

    #[test]
    fn the_parameters_of_a_retired_model_are_not_checked() {
        let params = Params { aspect_ratio: "8:1".to_owned(), seed: Some(1), ..square() };
        assert!(Model::find("imagegeneration@006").unwrap().check(&params).is_ok());
    }

    #[test]
    fn a_seed_on_imagen_needs_the_watermark_off() {
        let served =
            Model { retired: false, ..imagen("imagen-test", None, RATIOS_5, NO_SIZE, true) };
        let seeded = |seed, add_watermark| Params { seed: Some(seed), add_watermark, ..square() };
        assert!(
            served.check(&seeded(7, true)).unwrap_err().to_string().contains("add_watermark false")
        );
        assert!(served.check(&seeded(0, false)).is_err());
        assert!(served.check(&seeded(7, false)).is_ok());
    }

    #[test]
    fn one_model_only_accepts_512_pixels() {
        let small = Params { image_size: Some(ImageSize::Px512), ..square() };
        let taking = MODELS.iter().filter(|model| !model.retired && model.check(&small).is_ok());
        assert_eq!(taking.map(|model| model.id).collect::<Vec<_>>(), ["gemini-3.1-flash-image"]);
    }

    #[test]
    fn every_retired_model_has_its_day_and_no_current_one_is_past() {
        for model in MODELS.iter().filter(|model| model.retired) {
            assert!(model.retires.is_some() && model.served_in.is_empty(), "{}", model.id);
        }
        for model in MODELS.iter().filter(|model| !model.retired) {
            assert!(model.retires.is_none_or(|day| day.year() >= 2027), "{}", model.id);
            assert!(model.may_be_served_in("global") && !model.may_be_served_in("asia-east1"));
        }
    }

    #[test]
    fn an_id_that_is_not_in_the_table_is_a_model_if_its_prefix_names_the_family() {
        for (name, id, family) in [
            ("gemini-9-image", "gemini-9-image", Family::Gemini),
            ("publishers/google/models/gemini-9-image", "gemini-9-image", Family::Gemini),
            ("imagen-5.0-generate-001", "imagen-5.0-generate-001", Family::Imagen),
            ("imagegeneration@007", "imagegeneration@007", Family::Imagen),
        ] {
            let model = Model::named(name).unwrap();
            assert_eq!((model.id, model.family, model.is_in_the_table()), (id, family, false));
            let params = Params { aspect_ratio: "5:2".to_owned(), seed: Some(1), ..square() };
            assert!(model.check(&params).is_ok() && model.may_be_served_in("mars-east1"));
        }
        let known = Model::named("publishers/google/models/gemini-3-pro-image").unwrap();
        assert_eq!(Model::find("gemini-3-pro-image"), Some(known));
        for name in [
            "",
            "dall-e",
            "gemini-",
            "imagen",
            "gemini-x/../y",
            "gemini-X",
            "gemini-x:predict",
            "publishers/x/models/gemini-9",
        ] {
            assert_eq!(Model::named(name), None, "{name}");
        }
    }

    #[test]
    fn labels_are_sent_by_both_families_and_only_if_there_are_any() {
        let labels = BTreeMap::from([("team".to_owned(), "podcast".to_owned())]);
        for family in [Family::Gemini, Family::Imagen] {
            let body = |labels| {
                let body = family.body("x", &square(), labels);
                serde_json::from_slice::<serde_json::Value>(&body).unwrap()["labels"].clone()
            };
            assert_eq!(body(&labels), json!({"team": "podcast"}));
            assert_eq!(body(&BTreeMap::new()), json!(null));
        }
    }

    #[test]
    fn the_hint_of_a_404_names_served_models_and_where_but_not_what_was_tried() {
        let hint = Model::find("imagegeneration@006").unwrap().not_served_hint("us-central1");
        assert!(
            hint.contains(
                "retired, or not served in us-central1; try gemini-nano-banana-2.1 (global)"
            ),
            "{hint}"
        );
        assert!(!hint.contains("imagen"), "{hint}");
        let current = Model::find("gemini-3.1-flash-image").unwrap();
        assert!(current.not_served_hint("us-central1").contains("gemini-3.1-flash-image (global)"));
        assert!(!current.not_served_hint("global").contains("gemini-3.1-flash-image (global)"));
        let tried = [("gemini-nano-banana-2.1", "global"), ("gemini-2.5-flash-image", "global")];
        let hint = current.not_served_hint_after("us-central1", &tried);
        assert!(!hint.contains("gemini-nano-banana-2.1"), "{hint}");
        assert!(hint.contains("gemini-2.5-flash-image (us-central1 and 12 more)"), "{hint}");
    }
}
