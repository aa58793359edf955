//! The models: one table, and the two protocols they speak. Pure: no client, no await.
//!
//! Ids change every few months; a change is a line in [`MODELS`]. What each model takes follows
//! Google's model pages and API reference ("Imagen API", "Generate and edit images with Gemini").

pub mod gemini;
pub mod imagen;

use crate::error::{Error, Kind};
use serde_json::Value;

/// One model of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Model {
    pub id: &'static str,
    pub family: Family,
    /// Vertex AI answers 404 for it everywhere.
    pub retired: bool,
    ratios: &'static [&'static str],
    sizes: &'static [ImageSize],
    seed: bool,
    negative_prompt: bool,
    /// Where it is served, for the hint of a 404.
    served_in: &'static str,
}

/// The protocol a model speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `:predict`
    Imagen,
    /// `:generateContent`
    Gemini,
}

/// What a request asks of the model, each value valid in itself; whether a given model takes it is
/// [`Model::check`]'s to say.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageSize {
    OneK,
    TwoK,
    FourK,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PersonGeneration {
    Nobody,
    Adults,
    Everybody,
}

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
    /// The model of that id, as the table or a full resource name writes it.
    pub fn find(id: &str) -> Option<&'static Model> {
        MODELS.iter().find(|model| model.id == id)
    }

    /// The aspect ratios it takes.
    pub fn ratios(&self) -> &'static [&'static str] {
        self.ratios
    }

    /// Refuses what this model is known not to take, naming the field and what is allowed.
    ///
    /// A retired model is not checked: its 404 costs nothing, and the fallback decides.
    pub fn check(&self, params: &Params) -> Result<(), Error> {
        if self.retired {
            return Ok(());
        }
        let ratio = params.aspect_ratio.as_str();
        if !self.ratios.contains(&ratio) {
            return Err(self.refuse("aspect_ratio", ratio, &self.ratios.join(", ")));
        }
        if let Some(size) = params.image_size.filter(|size| !self.sizes.contains(size)) {
            let allowed: Vec<_> = self.sizes.iter().map(|size| size.as_str()).collect();
            return Err(self.refuse("image_size", size.as_str(), &or_nothing(&allowed.join(", "))));
        }
        if let Some(seed) = params.seed {
            self.check_seed(seed, params.add_watermark)?;
        }
        if params.negative_prompt.is_some() && !self.negative_prompt {
            return Err(self.refuse(
                "negative_prompt",
                "a value",
                "nothing; say in the prompt what to leave out",
            ));
        }
        Ok(())
    }

    fn check_seed(&self, seed: u32, add_watermark: bool) -> Result<(), Error> {
        match self.family {
            _ if !self.seed => Err(self.refuse("seed", "a value", "nothing")),
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

    /// `location`, unless that is a region and the model is known to be served in `global` only.
    pub fn location_near<'a>(&self, location: &'a str) -> &'a str {
        if self.served_in == "global" && location.contains('-') { "global" } else { location }
    }

    /// What to do about a 404 for this model in `location`.
    pub fn not_served_hint(&self, location: &str) -> String {
        let current: Vec<_> = MODELS
            .iter()
            .filter(|m| !m.retired && m.id != self.id)
            .map(|m| format!("{} ({})", m.id, m.served_in))
            .collect();
        format!(
            "Model {} is retired, or not served in {location}; try {}.",
            self.id,
            current.join(", ")
        )
    }
}

impl Family {
    /// The last part of the URL.
    pub fn verb(self) -> &'static str {
        match self {
            Family::Imagen => "predict",
            Family::Gemini => "generateContent",
        }
    }

    /// The request body, JSON.
    pub fn body(self, prompt: &str, params: &Params) -> Vec<u8> {
        let body = match self {
            Family::Imagen => imagen::body(prompt, params),
            Family::Gemini => gemini::body(prompt, params),
        };
        body.to_string().into_bytes()
    }

    /// A request that no image can come of.
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

    /// Reads a response that has arrived this far and names the image to keep if no better one follows.
    pub fn best_so_far(self) -> fn(&Value) -> Option<usize> {
        match self {
            Family::Imagen => imagen::best_so_far,
            Family::Gemini => gemini::best_so_far,
        }
    }
}

impl ImageSize {
    pub const ALL: [ImageSize; 3] = [ImageSize::OneK, ImageSize::TwoK, ImageSize::FourK];

    pub fn as_str(self) -> &'static str {
        match self {
            ImageSize::OneK => "1K",
            ImageSize::TwoK => "2K",
            ImageSize::FourK => "4K",
        }
    }
}

impl PersonGeneration {
    /// Both families' words, in any case.
    pub fn parse(word: &str) -> Option<PersonGeneration> {
        match word.to_ascii_lowercase().as_str() {
            "dont_allow" | "allow_none" => Some(PersonGeneration::Nobody),
            "allow_adult" => Some(PersonGeneration::Adults),
            "allow_all" => Some(PersonGeneration::Everybody),
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

fn or_nothing(list: &str) -> String {
    if list.is_empty() { "nothing".to_owned() } else { list.to_owned() }
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

/// A string that says something; any other value is as if absent.
fn text(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.trim().is_empty())
}

/// Every aspect ratio that some model takes.
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
const UP_TO_4K: &[ImageSize] = &ImageSize::ALL;

const fn imagen(
    id: &'static str,
    ratios: &'static [&'static str],
    sizes: &'static [ImageSize],
    negative_prompt: bool,
) -> Model {
    let (family, served_in) = (Family::Imagen, "nowhere");
    Model { id, family, retired: true, ratios, sizes, seed: true, negative_prompt, served_in }
}

const fn gemini(
    id: &'static str,
    ratios: &'static [&'static str],
    sizes: &'static [ImageSize],
    seed: bool,
    served_in: &'static str,
) -> Model {
    Model {
        id,
        family: Family::Gemini,
        retired: false,
        ratios,
        sizes,
        seed,
        negative_prompt: false,
        served_in,
    }
}

const fn retired(model: Model) -> Model {
    Model { retired: true, ..model }
}

/// The table. Current models first; the rest are answered with 404 and a fallback.
pub static MODELS: &[Model] = &[
    gemini("gemini-nano-banana-2.1", RATIOS_14, UP_TO_4K, false, "global"),
    gemini("gemini-3.1-flash-image", RATIOS_14, UP_TO_4K, true, "global"),
    gemini("gemini-3-pro-image", RATIOS_10, UP_TO_4K, true, "global"),
    gemini("gemini-3.1-flash-lite-image", RATIOS_14, ONE_K, true, "global"),
    gemini("gemini-2.5-flash-image", RATIOS_10, NO_SIZE, true, "global and many regions"),
    retired(gemini("gemini-3.1-flash-image-preview", RATIOS_14, UP_TO_4K, true, "nowhere")),
    retired(gemini("gemini-3-pro-image-preview", RATIOS_10, UP_TO_4K, true, "nowhere")),
    retired(gemini("gemini-2.5-flash-image-preview", RATIOS_10, NO_SIZE, true, "nowhere")),
    imagen("imagen-4.0-generate-001", RATIOS_5, UP_TO_2K, false),
    imagen("imagen-4.0-ultra-generate-001", RATIOS_5, UP_TO_2K, false),
    imagen("imagen-4.0-fast-generate-001", RATIOS_5, NO_SIZE, false),
    imagen("imagen-3.0-generate-002", RATIOS_5, NO_SIZE, false),
    imagen("imagen-3.0-generate-001", RATIOS_5, NO_SIZE, true),
    imagen("imagen-3.0-fast-generate-001", RATIOS_5, NO_SIZE, true),
    imagen("imagegeneration@006", RATIOS_5, NO_SIZE, true),
    imagen("imagegeneration@005", RATIOS_2, NO_SIZE, false),
    imagen("imagegeneration@002", RATIOS_1, NO_SIZE, false),
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
    fn a_retired_model_is_asked_whatever_the_parameters() {
        let params = Params { aspect_ratio: "8:1".to_owned(), seed: Some(1), ..square() };
        assert!(Model::find("imagegeneration@006").unwrap().check(&params).is_ok());
    }

    #[test]
    fn a_seed_on_imagen_needs_the_watermark_off() {
        let served = Model { retired: false, ..imagen("imagen-test", RATIOS_5, NO_SIZE, true) };
        let seeded = |seed, add_watermark| Params { seed: Some(seed), add_watermark, ..square() };
        assert!(
            served.check(&seeded(7, true)).unwrap_err().to_string().contains("add_watermark false")
        );
        assert!(served.check(&seeded(0, false)).is_err());
        assert!(served.check(&seeded(7, false)).is_ok());
    }

    #[test]
    fn the_hint_of_a_404_names_served_models_and_where() {
        let hint = Model::find("imagegeneration@006").unwrap().not_served_hint("us-central1");
        assert!(
            hint.contains(
                "retired, or not served in us-central1; try gemini-nano-banana-2.1 (global)"
            ),
            "{hint}"
        );
        assert!(!hint.contains("imagen"), "{hint}");
    }
}
