//! Imagen's `:predict`, checked as strictly as Google checks it.

use serde_json::Value;

use crate::generation_spec::{GenerationSpec, output_format, refuse_unless, within};
use crate::models::Model;
use crate::proto_json::{Dialect, Field, Kind, message};
use crate::response::Refusal;
use crate::rpc_error::invalid;

pub(crate) fn read(model: &'static Model, request: &Value) -> Result<GenerationSpec, Refusal> {
    let request = message(request, REQUEST, "", Dialect::Exact)?;
    let instances = request["instances"].as_array().map_or(&[][..], Vec::as_slice);
    let [instance] = instances else {
        return Err(invalid("Invalid number of instances: exactly one is required.").into());
    };
    let prompt = instance["prompt"].as_str().filter(|prompt| !prompt.trim().is_empty());
    let prompt = prompt.ok_or_else(|| invalid("Text prompt is required and must not be empty."))?;
    let parameters = &request["parameters"];

    let ratio = parameters["aspectRatio"].as_str().unwrap_or("1:1");
    refuse_unless(model.ratios.contains(&ratio), || format!("Invalid aspect ratio, {ratio}"))?;
    let size = parameters["sampleImageSize"].as_str();
    refuse_unless(size.is_none_or(|size| model.sizes.contains(&size)), || {
        format!("Invalid sample image size, {}", size.unwrap_or_default())
    })?;
    let count = within(parameters, "sampleCount", 1.0..=model.max_samples())?.unwrap_or(1.0);
    check_seed(model, parameters)?;
    refuse_unless(parameters["negativePrompt"].is_null() || model.takes_negative_prompt(), || {
        "Negative prompt is not supported by this model.".to_owned()
    })?;
    for (name, words) in VOCABULARIES {
        check_word(parameters, name, words)?;
    }
    refuse_unless(parameters["storageUri"].is_null(), || {
        "storageUri is not part of this emulator.".to_owned()
    })?;
    Ok(GenerationSpec {
        model,
        prompt: prompt.to_owned(),
        ratio: ratio.to_owned(),
        size: size.unwrap_or("1K").to_owned(),
        format: output_format(&parameters["outputOptions"])?,
        count: count as usize,
        with_text: false,
        with_image: true,
        with_reason: parameters["includeRaiReason"].as_bool().unwrap_or(false),
    })
}

fn check_seed(model: &Model, parameters: &Value) -> Result<(), Refusal> {
    let watermark = parameters["addWatermark"].as_bool();
    let watermark = watermark.unwrap_or(model.watermarks_by_default());
    let seed = within(parameters, "seed", 1.0..=f64::from(i32::MAX))?;
    refuse_unless(!(watermark && seed.is_some()), || {
        "Seed is not supported when watermark is enabled.".to_owned()
    })
}

/// Requires a known word, in upper or lower case.
fn check_word(parameters: &Value, name: &str, words: &[&str]) -> Result<(), Refusal> {
    let Some(text) = parameters[name].as_str() else {
        return Ok(());
    };
    let is_known = words.iter().any(|word| word.eq_ignore_ascii_case(text));
    refuse_unless(is_known, || format!("Invalid value for {name}: {text}"))
}

const REQUEST: &[Field] = &[
    Field::list("instances", Kind::Message(&[Field::new("prompt", Kind::Text)])),
    Field::new("parameters", Kind::Message(PARAMETERS)),
    Field::new("labels", Kind::Any),
];

const PARAMETERS: &[Field] = &[
    Field::new("addWatermark", Kind::Bool),
    Field::new("aspectRatio", Kind::Text),
    Field::new("editConfig", Kind::Any),
    Field::new("enhancePrompt", Kind::Bool),
    Field::new("guidanceScale", Kind::Any),
    Field::new("includeRaiReason", Kind::Bool),
    Field::new("includeSafetyAttributes", Kind::Bool),
    Field::new("language", Kind::Text),
    Field::new("mode", Kind::Any),
    Field::new("negativePrompt", Kind::Text),
    Field::new("outputOptions", Kind::Message(OUTPUT_OPTIONS)),
    Field::new("personGeneration", Kind::Text),
    Field::new("safetySetting", Kind::Text),
    Field::new("sampleCount", Kind::Int32),
    Field::new("sampleImageSize", Kind::Text),
    Field::new("seed", Kind::Int32),
    Field::new("storageUri", Kind::Text),
    Field::new("upscaleConfig", Kind::Any),
];

const OUTPUT_OPTIONS: &[Field] =
    &[Field::new("mimeType", Kind::Text), Field::new("compressionQuality", Kind::Int32)];

const VOCABULARIES: &[(&str, &[&str])] = &[
    ("personGeneration", &["dont_allow", "allow_adult", "allow_all"]),
    ("safetySetting", SAFETY),
    ("language", &["auto", "en", "zh", "zh-cn", "zh-tw", "hi", "ja", "ko", "pt", "es"]),
];

const SAFETY: &[&str] = &[
    "block_low_and_above",
    "block_medium_and_above",
    "block_only_high",
    "block_none",
    "block_most",
    "block_some",
    "block_few",
    "block_fewest",
];
