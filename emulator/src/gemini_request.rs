//! Gemini's `:generateContent`, checked as strictly as Google checks it.

use serde_json::Value;

use crate::generation_spec::{GenerationSpec, output_format, refuse_unless, within};
use crate::image::ImageFormat;
use crate::models::{Family, Model};
use crate::proto_json::{Dialect, Field, Kind, message};
use crate::response::Refusal;
use crate::rpc_error::invalid;

pub(crate) fn read(model: &'static Model, request: &Value) -> Result<GenerationSpec, Refusal> {
    let request = message(request, REQUEST, "", Dialect::Proto)?;
    let prompt = prompt(&request["contents"])?;
    let config = &request["generationConfig"];
    check_sampling(model, config)?;
    let image = ImageRequest::read(config)?;
    refuse_unless(model.ratios.contains(&image.ratio), || {
        "Aspect ratio is not enabled for this model".to_owned()
    })?;
    refuse_unless(image.size.is_none_or(|size| model.sizes.contains(&size)), || {
        format!("Image size {} is not enabled for this model", image.size.unwrap_or_default())
    })?;
    check_thinking(model, &config["thinkingConfig"])?;
    check_labels(&request["labels"])?;
    let modalities = modalities(&config["responseModalities"])?;
    Ok(GenerationSpec {
        model,
        prompt,
        ratio: image.ratio.to_owned(),
        size: image.size.unwrap_or("1K").to_owned(),
        format: image.format,
        count: 1,
        with_text: modalities.contains(&"TEXT"),
        with_image: modalities.contains(&"IMAGE"),
        with_reason: true,
    })
}

/// The emulator's count of a request's tokens: the words in its contents, plus one.
pub(crate) fn count_tokens(request: &Value) -> Result<usize, Refusal> {
    let request = message(request, COUNT_TOKENS_REQUEST, "", Dialect::Proto)?;
    Ok(prompt(&request["contents"])?.split_whitespace().count() + 1)
}

fn prompt(contents: &Value) -> Result<String, Refusal> {
    let contents = contents.as_array().filter(|contents| !contents.is_empty());
    let contents = contents.ok_or_else(|| {
        invalid("Unable to submit request because at least one contents field is required.")
    })?;
    let mut texts = Vec::new();
    for content in contents {
        refuse_unless(matches!(content["role"].as_str(), Some("user" | "model")), || {
            "Please use a valid role: user, model.".to_owned()
        })?;
        let parts = content["parts"].as_array().filter(|parts| !parts.is_empty());
        let parts = parts.ok_or_else(|| {
            invalid("Unable to submit request because it must include at least one parts field.")
        })?;
        texts.extend(parts.iter().filter_map(|part| part["text"].as_str()));
    }
    let prompt = texts.join("\n");
    refuse_unless(!prompt.is_empty(), || {
        "Unable to submit request because it has an empty text parameter. \
         Add a value to the parameter and try again."
            .to_owned()
    })?;
    Ok(prompt)
}

/// Checks the sampling parameters, which the newest family no longer accepts.
fn check_sampling(model: &Model, config: &Value) -> Result<(), Refusal> {
    let given = [
        ("seed", within(config, "seed", f64::from(i32::MIN)..=f64::from(i32::MAX))?),
        ("temperature", within(config, "temperature", 0.0..=2.0)?),
        ("topP", within(config, "topP", 0.0..=1.0)?),
        ("topK", within(config, "topK", 0.0..=1000.0)?),
    ];
    let sampled = given.iter().find(|(_, value)| value.is_some());
    if let (Some((name, _)), Family::NanoBanana) = (sampled, model.family) {
        return Err(invalid(&format!("{name} is not supported by this model.")).into());
    }
    let most = if model.family == Family::Gemini25 { 8.0 } else { 1.0 };
    within(config, "candidateCount", 1.0..=most)?;
    Ok(())
}

fn check_thinking(model: &Model, thinking: &Value) -> Result<(), Refusal> {
    let level = specified(&thinking["thinkingLevel"]);
    refuse_unless(level.is_none_or(|level| model.thinking.contains(&level)), || {
        format!("Thinking level {} is not supported by this model.", level.unwrap_or_default())
    })?;
    let budget = within(thinking, "thinkingBudget", -1.0..=f64::from(i32::MAX))?;
    refuse_unless(budget.is_none() || model.family == Family::Gemini3, || {
        "Thinking budget is not supported by this model.".to_owned()
    })
}

fn modalities(listed: &Value) -> Result<Vec<&str>, Refusal> {
    let listed: Vec<&str> = listed.as_array().into_iter().flatten().filter_map(specified).collect();
    if let Some(other) = listed.iter().find(|modality| !matches!(**modality, "TEXT" | "IMAGE")) {
        let message =
            format!("The model does not support the requested response modalities: \"{other}\"");
        return Err(invalid(&message).into());
    }
    Ok(if listed.is_empty() { vec!["TEXT", "IMAGE"] } else { listed })
}

fn check_labels(labels: &Value) -> Result<(), Refusal> {
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

/// The image that a request describes, in `imageConfig` or in the newer `responseFormat`.
struct ImageRequest<'a> {
    ratio: &'a str,
    size: Option<&'a str>,
    format: ImageFormat,
}

impl<'a> ImageRequest<'a> {
    fn read(config: &'a Value) -> Result<Self, Refusal> {
        let older = &config["imageConfig"];
        let formats = config["responseFormat"].as_array().map_or(&[][..], Vec::as_slice);
        for format in formats {
            let is_other = format.get("audio").or(format.get("video")).is_some();
            refuse_unless(!is_other, || {
                "The model does not support the requested response format.".to_owned()
            })?;
        }
        let newer = formats.iter().find_map(|format| format.get("image"));
        match newer {
            Some(_) if !older.is_null() => {
                Err(invalid("Only one of image_config and response_format.image can be set.")
                    .into())
            }
            Some(newer) => Self::from_response_format(newer),
            None => Self::from_image_config(older),
        }
    }

    fn from_image_config(image: &'a Value) -> Result<Self, Refusal> {
        Ok(Self {
            ratio: image["aspectRatio"].as_str().unwrap_or("1:1"),
            size: image["imageSize"].as_str(),
            format: output_format(&image["imageOutputOptions"])?,
        })
    }

    fn from_response_format(image: &'a Value) -> Result<Self, Refusal> {
        refuse_unless(image["delivery"] != "URI", || {
            "delivery URI is not part of this emulator.".to_owned()
        })?;
        let look_up = |name: &str, table: &[(&str, &'static str)]| {
            let row = table.iter().find(|(value, _)| image[name] == *value);
            row.map(|(_, meaning)| *meaning)
        };
        let is_jpeg = image["mimeType"] == "IMAGE_JPEG";
        Ok(Self {
            ratio: look_up("aspectRatio", RATIOS).unwrap_or("1:1"),
            size: look_up("imageSize", SIZES),
            format: if is_jpeg { ImageFormat::Jpeg } else { ImageFormat::Png },
        })
    }
}

/// An enum's value, unless it is the value for "unspecified".
fn specified(value: &Value) -> Option<&str> {
    value.as_str().filter(|name| !name.ends_with("_UNSPECIFIED"))
}

const REQUEST: &[Field] = &[
    Field::new("cachedContent", Kind::Text),
    Field::list("contents", Kind::Message(CONTENT)),
    Field::new("continuationToken", Kind::Text),
    Field::new("generationConfig", Kind::Message(GENERATION_CONFIG)),
    Field::new("labels", Kind::Any),
    Field::new("modelArmorConfig", Kind::Any),
    Field::new("outputConfig", Kind::Any),
    Field::list("safetySettings", Kind::Message(SAFETY_SETTING)),
    Field::new("systemInstruction", Kind::Message(CONTENT)),
    Field::new("toolConfig", Kind::Any),
    Field::list("tools", Kind::Any),
];

const COUNT_TOKENS_REQUEST: &[Field] = &[
    Field::list("contents", Kind::Message(CONTENT)),
    Field::new("generationConfig", Kind::Message(GENERATION_CONFIG)),
    Field::list("instances", Kind::Any),
    Field::new("model", Kind::Text),
    Field::new("systemInstruction", Kind::Message(CONTENT)),
    Field::list("tools", Kind::Any),
];

const CONTENT: &[Field] =
    &[Field::new("role", Kind::Text), Field::list("parts", Kind::Message(PART))];

const PART: &[Field] = &[
    Field::new("audioTranscription", Kind::Any),
    Field::new("codeExecutionResult", Kind::Any),
    Field::new("executableCode", Kind::Any),
    Field::new("fileData", Kind::Any),
    Field::new("functionCall", Kind::Any),
    Field::new("functionResponse", Kind::Any),
    Field::new("inlineData", Kind::Any),
    Field::new("mediaResolution", Kind::Any),
    Field::new("speechMetadata", Kind::Any),
    Field::new("text", Kind::Text),
    Field::new("thought", Kind::Bool),
    Field::new("thoughtSignature", Kind::Text),
    Field::new("videoMetadata", Kind::Any),
];

const GENERATION_CONFIG: &[Field] = &[
    Field::new("audioTimestamp", Kind::Bool),
    Field::new("audioTranscriptionConfig", Kind::Any),
    Field::new("candidateCount", Kind::Int32),
    Field::new("enableAffectiveDialog", Kind::Bool),
    Field::new("frequencyPenalty", Kind::Float),
    Field::new("imageConfig", Kind::Message(IMAGE_CONFIG)),
    Field::new("logprobs", Kind::Int32),
    Field::new("maxOutputTokens", Kind::Int32),
    Field::new("mediaResolution", Kind::Enum(MEDIA_RESOLUTIONS)),
    Field::new("presencePenalty", Kind::Float),
    Field::list("responseFormat", Kind::Message(RESPONSE_FORMAT)),
    Field::new("responseJsonSchema", Kind::Any),
    Field::new("responseLogprobs", Kind::Bool),
    Field::new("responseMimeType", Kind::Text),
    Field::list("responseModalities", Kind::Enum(MODALITIES)),
    Field::new("responseSchema", Kind::Any),
    Field::new("routingConfig", Kind::Any),
    Field::new("seed", Kind::Int32),
    Field::new("speechConfig", Kind::Any),
    Field::list("stopSequences", Kind::Text),
    Field::new("temperature", Kind::Float),
    Field::new("thinkingConfig", Kind::Message(THINKING_CONFIG)),
    Field::new("topK", Kind::Float),
    Field::new("topP", Kind::Float),
    Field::new("translationConfig", Kind::Any),
];

const IMAGE_CONFIG: &[Field] = &[
    Field::new("aspectRatio", Kind::Text),
    Field::new("imageOutputOptions", Kind::Message(OUTPUT_OPTIONS)),
    Field::new("imageSize", Kind::Text),
    Field::new("personGeneration", Kind::Enum(PERSON_GENERATIONS)),
    Field::new("prominentPeople", Kind::Enum(PROMINENT_PEOPLE)),
];

const OUTPUT_OPTIONS: &[Field] =
    &[Field::new("mimeType", Kind::Text), Field::new("compressionQuality", Kind::Int32)];

const RESPONSE_FORMAT: &[Field] = &[
    Field::new("audio", Kind::Any),
    Field::new("image", Kind::Message(IMAGE_RESPONSE_FORMAT)),
    Field::new("text", Kind::Any),
    Field::new("video", Kind::Any),
];

const IMAGE_RESPONSE_FORMAT: &[Field] = &[
    Field::new("aspectRatio", Kind::Enum(RATIO_NAMES)),
    Field::new("delivery", Kind::Enum(&["DELIVERY_UNSPECIFIED", "INLINE", "URI"])),
    Field::new("imageSize", Kind::Enum(SIZE_NAMES)),
    Field::new("mimeType", Kind::Enum(&["MIME_TYPE_UNSPECIFIED", "IMAGE_JPEG"])),
];

const THINKING_CONFIG: &[Field] = &[
    Field::new("includeThoughts", Kind::Bool),
    Field::new("thinkingBudget", Kind::Int32),
    Field::new("thinkingLevel", Kind::Enum(THINKING_LEVELS)),
];

const SAFETY_SETTING: &[Field] = &[
    Field::new("category", Kind::Enum(HARM_CATEGORIES)),
    Field::new("threshold", Kind::Enum(HARM_THRESHOLDS)),
    Field::new("method", Kind::Enum(&["HARM_BLOCK_METHOD_UNSPECIFIED", "SEVERITY", "PROBABILITY"])),
];

// The enums are in the order of the API's discovery document.

const MODALITIES: &[&str] = &["MODALITY_UNSPECIFIED", "TEXT", "IMAGE", "AUDIO", "VIDEO"];

const THINKING_LEVELS: &[&str] =
    &["THINKING_LEVEL_UNSPECIFIED", "LOW", "MEDIUM", "HIGH", "MINIMAL"];

const PERSON_GENERATIONS: &[&str] =
    &["PERSON_GENERATION_UNSPECIFIED", "ALLOW_ALL", "ALLOW_ADULT", "ALLOW_NONE"];

const PROMINENT_PEOPLE: &[&str] =
    &["PROMINENT_PEOPLE_UNSPECIFIED", "ALLOW_PROMINENT_PEOPLE", "BLOCK_PROMINENT_PEOPLE"];

const MEDIA_RESOLUTIONS: &[&str] = &[
    "MEDIA_RESOLUTION_UNSPECIFIED",
    "MEDIA_RESOLUTION_LOW",
    "MEDIA_RESOLUTION_MEDIUM",
    "MEDIA_RESOLUTION_HIGH",
];

const HARM_CATEGORIES: &[&str] = &[
    "HARM_CATEGORY_UNSPECIFIED",
    "HARM_CATEGORY_HATE_SPEECH",
    "HARM_CATEGORY_DANGEROUS_CONTENT",
    "HARM_CATEGORY_HARASSMENT",
    "HARM_CATEGORY_SEXUALLY_EXPLICIT",
    "HARM_CATEGORY_CIVIC_INTEGRITY",
    "HARM_CATEGORY_IMAGE_HATE",
    "HARM_CATEGORY_IMAGE_DANGEROUS_CONTENT",
    "HARM_CATEGORY_IMAGE_HARASSMENT",
    "HARM_CATEGORY_IMAGE_SEXUALLY_EXPLICIT",
    "HARM_CATEGORY_JAILBREAK",
];

const HARM_THRESHOLDS: &[&str] = &[
    "HARM_BLOCK_THRESHOLD_UNSPECIFIED",
    "BLOCK_LOW_AND_ABOVE",
    "BLOCK_MEDIUM_AND_ABOVE",
    "BLOCK_ONLY_HIGH",
    "BLOCK_NONE",
    "OFF",
];

const RATIO_NAMES: &[&str] = &[
    "ASPECT_RATIO_UNSPECIFIED",
    "ASPECT_RATIO_ONE_BY_ONE",
    "ASPECT_RATIO_TWO_BY_THREE",
    "ASPECT_RATIO_THREE_BY_TWO",
    "ASPECT_RATIO_THREE_BY_FOUR",
    "ASPECT_RATIO_FOUR_BY_THREE",
    "ASPECT_RATIO_FOUR_BY_FIVE",
    "ASPECT_RATIO_FIVE_BY_FOUR",
    "ASPECT_RATIO_NINE_BY_SIXTEEN",
    "ASPECT_RATIO_SIXTEEN_BY_NINE",
    "ASPECT_RATIO_TWENTY_ONE_BY_NINE",
    "ASPECT_RATIO_ONE_BY_EIGHT",
    "ASPECT_RATIO_EIGHT_BY_ONE",
    "ASPECT_RATIO_ONE_BY_FOUR",
    "ASPECT_RATIO_FOUR_BY_ONE",
];

const RATIOS: &[(&str, &str)] = &[
    ("ASPECT_RATIO_ONE_BY_ONE", "1:1"),
    ("ASPECT_RATIO_TWO_BY_THREE", "2:3"),
    ("ASPECT_RATIO_THREE_BY_TWO", "3:2"),
    ("ASPECT_RATIO_THREE_BY_FOUR", "3:4"),
    ("ASPECT_RATIO_FOUR_BY_THREE", "4:3"),
    ("ASPECT_RATIO_FOUR_BY_FIVE", "4:5"),
    ("ASPECT_RATIO_FIVE_BY_FOUR", "5:4"),
    ("ASPECT_RATIO_NINE_BY_SIXTEEN", "9:16"),
    ("ASPECT_RATIO_SIXTEEN_BY_NINE", "16:9"),
    ("ASPECT_RATIO_TWENTY_ONE_BY_NINE", "21:9"),
    ("ASPECT_RATIO_ONE_BY_EIGHT", "1:8"),
    ("ASPECT_RATIO_EIGHT_BY_ONE", "8:1"),
    ("ASPECT_RATIO_ONE_BY_FOUR", "1:4"),
    ("ASPECT_RATIO_FOUR_BY_ONE", "4:1"),
];

const SIZE_NAMES: &[&str] = &[
    "IMAGE_SIZE_UNSPECIFIED",
    "IMAGE_SIZE_FIVE_TWELVE",
    "IMAGE_SIZE_ONE_K",
    "IMAGE_SIZE_TWO_K",
    "IMAGE_SIZE_FOUR_K",
];

const SIZES: &[(&str, &str)] = &[
    ("IMAGE_SIZE_FIVE_TWELVE", "512"),
    ("IMAGE_SIZE_ONE_K", "1K"),
    ("IMAGE_SIZE_TWO_K", "2K"),
    ("IMAGE_SIZE_FOUR_K", "4K"),
];
