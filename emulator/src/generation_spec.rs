//! The parameters of a generation, checked as strictly as Google checks them.

use serde_json::Value;

use crate::image::ImageFormat;
use crate::models::{Family, Model};
use crate::response::Refusal;
use crate::rpc_error::{invalid, violation};

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

/// The prompt of a request of either family, as far as there is one.
pub(crate) fn prompt_of(request: &Value) -> String {
    let texts = request["contents"].as_array().into_iter().flatten();
    let texts = texts.flat_map(|content| content["parts"].as_array().into_iter().flatten());
    let texts: Vec<&str> = texts.filter_map(|part| part["text"].as_str()).collect();
    match request["instances"][0]["prompt"].as_str() {
        Some(prompt) => prompt.to_owned(),
        None => texts.join("\n"),
    }
}

/// Checks a `:predict` request.
pub(crate) fn imagen(model: &'static Model, request: &Value) -> Result<GenerationSpec, Refusal> {
    known_fields(request, IMAGEN_FIELDS)?;
    let instances = request["instances"].as_array().map_or(&[][..], Vec::as_slice);
    let [instance] = instances else {
        return Err(invalid("Invalid number of instances: exactly one is required.").into());
    };
    let prompt = instance["prompt"].as_str().filter(|prompt| !prompt.trim().is_empty());
    let prompt = prompt.ok_or_else(|| invalid("Text prompt is required and must not be empty."))?;
    let parameters = Fields { value: &request["parameters"], at: "parameters" };

    let ratio = parameters.text("aspectRatio")?.unwrap_or("1:1");
    refuse_unless(model.ratios.contains(&ratio), || format!("Invalid aspect ratio, {ratio}"))?;
    let count = parameters.number("sampleCount", 1.0..=model.max_samples())?.unwrap_or(1.0);
    let watermark = parameters.boolean("addWatermark")?.unwrap_or(model.watermarks_by_default());
    let seed = parameters.number("seed", 1.0..=f64::from(i32::MAX))?;
    refuse_unless(!(watermark && seed.is_some()), || {
        "Seed is not supported when watermark is enabled.".to_owned()
    })?;
    refuse_unless(
        parameters.text("negativePrompt")?.is_none() || model.takes_negative_prompt(),
        || "Negative prompt is not supported by this model.".to_owned(),
    )?;
    parameters.text("sampleImageSize")?.map_or(Ok(()), |size| {
        refuse_unless(model.sizes.contains(&size), || format!("Invalid sample image size, {size}"))
    })?;
    parameters.word("personGeneration", &["dont_allow", "allow_adult", "allow_all"])?;
    parameters.word("safetySetting", IMAGEN_SAFETY)?;
    parameters
        .word("language", &["auto", "en", "zh", "zh-cn", "zh-tw", "hi", "ja", "ko", "pt", "es"])?;
    parameters.boolean("enhancePrompt")?;
    parameters.boolean("includeSafetyAttributes")?;
    refuse_unless(parameters.text("storageUri")?.is_none(), || {
        "storageUri is not part of this emulator.".to_owned()
    })?;
    Ok(GenerationSpec {
        model,
        prompt: prompt.to_owned(),
        ratio: ratio.to_owned(),
        size: parameters.text("sampleImageSize")?.unwrap_or("1K").to_owned(),
        format: output_format(
            &request["parameters"]["outputOptions"],
            "parameters.output_options",
        )?,
        count: count as usize,
        with_text: false,
        with_image: true,
        with_reason: parameters.boolean("includeRaiReason")?.unwrap_or(false),
    })
}

/// Checks a `:generateContent` request.
pub(crate) fn gemini(model: &'static Model, request: &Value) -> Result<GenerationSpec, Refusal> {
    known_fields(request, GEMINI_FIELDS)?;
    let prompt = gemini_prompt(&request["contents"])?;
    let config = Fields { value: &request["generationConfig"], at: "generation_config" };
    let image =
        Fields { value: &config.value["imageConfig"], at: "generation_config.image_config" };
    let thinking =
        Fields { value: &config.value["thinkingConfig"], at: "generation_config.thinking_config" };

    sampling(model, &config)?;
    let ratio = image.text("aspectRatio")?.unwrap_or("1:1");
    refuse_unless(model.ratios.contains(&ratio), || {
        "Aspect ratio is not enabled for this model".to_owned()
    })?;
    let size = image.text("imageSize")?;
    refuse_unless(size.is_none_or(|size| model.sizes.contains(&size)), || {
        format!("Image size {} is not enabled for this model", size.unwrap_or_default())
    })?;
    image.constant("personGeneration", &["ALLOW_ALL", "ALLOW_ADULT", "ALLOW_NONE"])?;
    image.constant("prominentPeople", &["ALLOW_PROMINENT_PEOPLE", "BLOCK_PROMINENT_PEOPLE"])?;
    let level = thinking.constant("thinkingLevel", &["LOW", "MINIMAL", "MEDIUM", "HIGH"])?;
    refuse_unless(level.is_none_or(|level| model.thinking.contains(&level)), || {
        format!("Thinking level {} is not supported by this model.", level.unwrap_or_default())
    })?;
    let budget = thinking.number("thinkingBudget", -1.0..=f64::from(i32::MAX))?;
    refuse_unless(budget.is_none() || model.family == Family::Gemini3, || {
        "Thinking budget is not supported by this model.".to_owned()
    })?;
    safety_settings(&request["safetySettings"])?;
    labels(&request["labels"])?;
    let modalities = modalities(&config)?;
    let output = &image.value["imageOutputOptions"];
    Ok(GenerationSpec {
        model,
        prompt,
        ratio: ratio.to_owned(),
        size: size.unwrap_or("1K").to_owned(),
        format: output_format(output, "generation_config.image_config.image_output_options")?,
        count: 1,
        with_text: modalities.contains(&"TEXT"),
        with_image: modalities.contains(&"IMAGE"),
        with_reason: true,
    })
}

fn gemini_prompt(contents: &Value) -> Result<String, Refusal> {
    let contents =
        contents.as_array().filter(|contents| !contents.is_empty()).ok_or_else(|| {
            invalid("Unable to submit request because at least one contents field is required.")
        })?;
    let mut prompt = Vec::new();
    for (index, content) in contents.iter().enumerate() {
        only_known(content, &format!("contents[{index}]"), &["role", "parts"])?;
        refuse_unless(matches!(content["role"].as_str(), Some("user" | "model")), || {
            "Please use a valid role: user, model.".to_owned()
        })?;
        let parts =
            content["parts"].as_array().filter(|parts| !parts.is_empty()).ok_or_else(|| {
                invalid(
                    "Unable to submit request because it must include at least one parts field.",
                )
            })?;
        for (part_index, part) in parts.iter().enumerate() {
            only_known(part, &format!("contents[{index}].parts[{part_index}]"), PART_FIELDS)?;
            prompt.extend(part["text"].as_str());
        }
    }
    let prompt = prompt.join("\n");
    refuse_unless(!prompt.is_empty(), || {
        "Unable to submit request because it has an empty text parameter. \
         Add a value to the parameter and try again."
            .to_owned()
    })?;
    Ok(prompt)
}

/// Checks the sampling parameters, which the newest family no longer accepts.
fn sampling(model: &Model, config: &Fields) -> Result<(), Refusal> {
    let given = [
        ("seed", config.number("seed", f64::from(i32::MIN)..=f64::from(i32::MAX))?),
        ("temperature", config.fraction("temperature", 0.0..=2.0)?),
        ("topP", config.fraction("topP", 0.0..=1.0)?),
        ("topK", config.fraction("topK", 0.0..=1000.0)?),
    ];
    let sampled = given.iter().find(|(_, value)| value.is_some());
    if let (Some((name, _)), Family::NanoBanana) = (sampled, model.family) {
        return Err(invalid(&format!("{name} is not supported by this model.")).into());
    }
    let most = if model.family == Family::Gemini25 { 8.0 } else { 1.0 };
    config.number("candidateCount", 1.0..=most)?;
    Ok(())
}

fn modalities<'a>(config: &Fields<'a>) -> Result<Vec<&'a str>, Refusal> {
    let Some(listed) =
        config.value["responseModalities"].as_array().filter(|listed| !listed.is_empty())
    else {
        return Ok(vec!["TEXT", "IMAGE"]);
    };
    let mut modalities = Vec::new();
    for modality in listed {
        match modality.as_str() {
            Some(known @ ("TEXT" | "IMAGE")) => modalities.push(known),
            _ => {
                let message = format!(
                    "The model does not support the requested response modalities: {modality}"
                );
                return Err(invalid(&message).into());
            }
        }
    }
    Ok(modalities)
}

fn output_format(options: &Value, at: &'static str) -> Result<ImageFormat, Refusal> {
    let options = Fields { value: options, at };
    options.number("compressionQuality", 0.0..=100.0)?;
    let mime_type = options.text("mimeType")?.unwrap_or("image/png");
    match mime_type {
        "image/png" => Ok(ImageFormat::Png),
        "image/jpeg" => Ok(ImageFormat::Jpeg),
        _ => Err(invalid(&format!("Unsupported output mime type: {mime_type}")).into()),
    }
}

fn safety_settings(settings: &Value) -> Result<(), Refusal> {
    for setting in settings.as_array().into_iter().flatten() {
        only_known(setting, "safety_settings", &["category", "threshold", "method"])?;
        let setting = Fields { value: setting, at: "safety_settings" };
        setting.constant("category", HARM_CATEGORIES)?;
        setting.constant("threshold", HARM_THRESHOLDS)?;
        setting.constant("method", &["SEVERITY", "PROBABILITY"])?;
    }
    Ok(())
}

fn labels(labels: &Value) -> Result<(), Refusal> {
    let Some(labels) = labels.as_object() else {
        return Ok(());
    };
    let legal = |text: &str| {
        let legal_char =
            |char: char| char.is_lowercase() || char.is_numeric() || char == '_' || char == '-';
        text.chars().count() <= 63 && text.chars().all(legal_char)
    };
    let all_legal =
        labels.iter().all(|(key, value)| legal(key) && value.as_str().is_some_and(legal));
    refuse_unless(labels.len() <= 64 && all_legal, || {
        "Invalid labels: keys and values must be lower case.".to_owned()
    })
}

/// The fields of one JSON object; values of a wrong type are refused in the words of Google's parser.
struct Fields<'a> {
    value: &'a Value,
    /// Its path in Google's notation.
    at: &'static str,
}

impl<'a> Fields<'a> {
    fn text(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        self.typed(name, "TYPE_STRING", Value::as_str)
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, Refusal> {
        self.typed(name, "TYPE_BOOL", Value::as_bool)
    }

    /// An integer, which may be written `1.0`.
    fn number(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>, Refusal> {
        let number = self.typed(name, "TYPE_INT32", |value| {
            value.as_f64().filter(|number| number.fract() == 0.0)
        })?;
        self.within(name, number, range)
    }

    fn fraction(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>, Refusal> {
        let number = self.typed(name, "TYPE_FLOAT", Value::as_f64)?;
        self.within(name, number, range)
    }

    fn within(
        &self,
        name: &str,
        number: Option<f64>,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>, Refusal> {
        refuse_unless(number.is_none_or(|number| range.contains(&number)), || {
            format!("{name} must be in the range of {} to {}.", range.start(), range.end())
        })?;
        Ok(number)
    }

    /// A value of an enum.
    fn constant(&self, name: &str, known: &[&str]) -> Result<Option<&'a str>, Refusal> {
        let is_known = |value: &'a Value| value.as_str().filter(|text| known.contains(text));
        self.typed(name, "type.googleapis.com/google.cloud.aiplatform.v1.Enum", is_known)
    }

    /// One of the words that Imagen knows, in upper or lower case.
    fn word(&self, name: &str, known: &[&str]) -> Result<(), Refusal> {
        let Some(text) = self.text(name)? else {
            return Ok(());
        };
        let is_known = known.iter().any(|word| word.eq_ignore_ascii_case(text));
        refuse_unless(is_known, || format!("Invalid value for {name}: {text}"))
    }

    fn typed<T>(
        &self,
        name: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let Some(value) = self.value.get(name).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => {
                let field = format!("{}.{}", self.at, snake(name));
                Err(violation(&field, &format!("Invalid value at '{field}' ({kind}), {value}"))
                    .into())
            }
        }
    }
}

/// Refuses the first field that is not in a schema: JSON pointer, Google's path, known names.
fn known_fields(request: &Value, schema: &[(&str, &str, &[&str])]) -> Result<(), Refusal> {
    for (pointer, at, known) in schema {
        let Some(value) = request.pointer(pointer) else {
            continue;
        };
        only_known(value, at, known)?;
    }
    Ok(())
}

fn only_known(value: &Value, at: &str, known: &[&str]) -> Result<(), Refusal> {
    let Some(object) = value.as_object() else {
        return Err(
            violation(at, &format!("Invalid value at '{at}': an object is expected.")).into()
        );
    };
    let Some(unknown) = object.keys().find(|name| !known.contains(&name.as_str())) else {
        return Ok(());
    };
    let place = if at.is_empty() { String::new() } else { format!(" at '{at}'") };
    let description = format!(
        "Invalid JSON payload received. Unknown name \"{unknown}\"{place}: Cannot find field."
    );
    Err(violation(at, &description).into())
}

fn refuse_unless(holds: bool, message: impl FnOnce() -> String) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(invalid(&message()).into()) }
}

/// `imageConfig` becomes `image_config`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for char in name.chars() {
        if char.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(char.to_ascii_lowercase());
    }
    snake
}

const IMAGEN_FIELDS: &[(&str, &str, &[&str])] = &[
    ("", "", &["instances", "parameters", "labels"]),
    ("/instances/0", "instances[0]", &["prompt"]),
    (
        "/parameters",
        "parameters",
        &[
            "addWatermark",
            "aspectRatio",
            "editConfig",
            "enhancePrompt",
            "guidanceScale",
            "includeRaiReason",
            "includeSafetyAttributes",
            "language",
            "mode",
            "negativePrompt",
            "outputOptions",
            "personGeneration",
            "safetySetting",
            "sampleCount",
            "sampleImageSize",
            "seed",
            "storageUri",
            "upscaleConfig",
        ],
    ),
    ("/parameters/outputOptions", "parameters.output_options", &["mimeType", "compressionQuality"]),
];

const GEMINI_FIELDS: &[(&str, &str, &[&str])] = &[
    (
        "",
        "",
        &[
            "cachedContent",
            "contents",
            "generationConfig",
            "labels",
            "modelArmorConfig",
            "outputConfig",
            "safetySettings",
            "systemInstruction",
            "toolConfig",
            "tools",
        ],
    ),
    ("/systemInstruction", "system_instruction", &["role", "parts"]),
    (
        "/generationConfig",
        "generation_config",
        &[
            "candidateCount",
            "frequencyPenalty",
            "imageConfig",
            "maxOutputTokens",
            "mediaResolution",
            "presencePenalty",
            "responseModalities",
            "responseFormat",
            "seed",
            "stopSequences",
            "temperature",
            "thinkingConfig",
            "topK",
            "topP",
        ],
    ),
    (
        "/generationConfig/imageConfig",
        "generation_config.image_config",
        &["aspectRatio", "imageOutputOptions", "imageSize", "personGeneration", "prominentPeople"],
    ),
    (
        "/generationConfig/imageConfig/imageOutputOptions",
        "generation_config.image_config.image_output_options",
        &["mimeType", "compressionQuality"],
    ),
    (
        "/generationConfig/thinkingConfig",
        "generation_config.thinking_config",
        &["includeThoughts", "thinkingBudget", "thinkingLevel"],
    ),
];

const PART_FIELDS: &[&str] =
    &["text", "inlineData", "fileData", "thought", "thoughtSignature", "mediaResolution"];

const IMAGEN_SAFETY: &[&str] = &[
    "block_low_and_above",
    "block_medium_and_above",
    "block_only_high",
    "block_none",
    "block_most",
    "block_some",
    "block_few",
    "block_fewest",
];

const HARM_CATEGORIES: &[&str] = &[
    "HARM_CATEGORY_HATE_SPEECH",
    "HARM_CATEGORY_DANGEROUS_CONTENT",
    "HARM_CATEGORY_HARASSMENT",
    "HARM_CATEGORY_SEXUALLY_EXPLICIT",
    "HARM_CATEGORY_JAILBREAK",
    "HARM_CATEGORY_IMAGE_HATE",
    "HARM_CATEGORY_IMAGE_DANGEROUS_CONTENT",
    "HARM_CATEGORY_IMAGE_HARASSMENT",
    "HARM_CATEGORY_IMAGE_SEXUALLY_EXPLICIT",
];

const HARM_THRESHOLDS: &[&str] =
    &["BLOCK_LOW_AND_ABOVE", "BLOCK_MEDIUM_AND_ABOVE", "BLOCK_ONLY_HIGH", "BLOCK_NONE", "OFF"];
