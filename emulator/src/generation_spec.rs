//! What a generation must make.

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::image::ImageFormat;
use crate::models::Model;
use crate::response::Refusal;
use crate::rpc_error::invalid;

/// A request that the model accepts.
pub(crate) struct GenerationSpec {
    pub model: &'static Model,
    pub prompt: String,
    pub ratio: String,
    pub size: String,
    pub format: ImageFormat,
    pub count: usize,
    pub with_text: bool,
    pub with_image: bool,
    /// Imagen's `includeRaiReason`.
    pub with_reason: bool,
}

/// The prompt of a request of either family, as far as it has one.
pub(crate) fn prompt_of(request: &Value) -> String {
    if let Some(prompt) = request["instances"][0]["prompt"].as_str() {
        return prompt.to_owned();
    }
    let parts = list(&request["contents"]).iter().flat_map(|content| list(&content["parts"]));
    let texts: Vec<&str> = parts.filter_map(|part| part["text"].as_str()).collect();
    texts.join("\n")
}

/// A list, or one element in its place.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice)
}

pub(crate) fn output_format(options: &Value) -> Result<ImageFormat, Refusal> {
    within(options, "compressionQuality", 0.0..=100.0)?;
    match options["mimeType"].as_str().unwrap_or("image/png") {
        "image/png" => Ok(ImageFormat::Png),
        "image/jpeg" => Ok(ImageFormat::Jpeg),
        other => Err(invalid(&format!("Unsupported output mime type: {other}")).into()),
    }
}

/// The number of this name, which must be in the range.
pub(crate) fn within(
    fields: &Value,
    name: &str,
    range: RangeInclusive<f64>,
) -> Result<Option<f64>, Refusal> {
    let number = fields[name].as_f64();
    refuse_unless(number.is_none_or(|number| range.contains(&number)), || {
        format!("{name} must be in the range of {} to {}.", range.start(), range.end())
    })?;
    Ok(number)
}

pub(crate) fn refuse_unless(holds: bool, message: impl FnOnce() -> String) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(invalid(&message()).into()) }
}
