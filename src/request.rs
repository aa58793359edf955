//! The body's JSON, parsed into a request that cannot be invalid.

use crate::budget::Reservation;
use crate::config::{Config, Target, parse};
use crate::error::{Error, Kind};
use crate::id::sha256_hex;
use crate::model::{ImageSize, MODELS, OutputMimeType, Params, PersonGeneration, RATIOS, listed};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock, Weak};

/// A caller's request, with the defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateRequest {
    /// The prompt as received.
    pub prompt: Prompt,
    /// In hex; logs and metadata show it instead of the prompt.
    pub prompt_sha256: String,
    pub params: Params,
    /// The fields that have defaults, as sent.
    pub sent_aspect_ratio: Option<String>,
    pub sent_add_watermark: Option<bool>,
    /// The model of `model_id_override`; such a request never falls back.
    pub target: Option<Target>,
}

impl GenerateRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// The contract's 400 rows; `details` name the field and what is allowed.
    pub fn parse(body: &[u8], defaults: &Config) -> Result<GenerateRequest, Error> {
        let body = RequestBody::parse(body)?;
        let Some(prompt) = body.prompt.text().filter(|prompt| !prompt.trim().is_empty()) else {
            return Err(prompt_missing());
        };
        let any_model = defaults.targets().any(|target| !target.model.is_in_the_table());
        let sent_aspect_ratio = body.aspect_ratio.one_of("aspect_ratio", RATIOS, |word| {
            let fits = RATIOS.contains(&word) || any_model && parse::is_ratio(word);
            fits.then(|| word.to_owned())
        })?;
        let sent_add_watermark = body.add_watermark.bool("add_watermark")?;
        let params = Params {
            aspect_ratio: sent_aspect_ratio
                .clone()
                .unwrap_or_else(|| defaults.default_aspect_ratio.clone()),
            add_watermark: sent_add_watermark.unwrap_or(defaults.add_watermark),
            negative_prompt: body
                .negative_prompt
                .string("negative_prompt")?
                .filter(|text| !text.trim().is_empty()),
            seed: body.seed.seed()?,
            image_size: body.image_size.one_of(
                "image_size",
                &ImageSize::ALL.map(ImageSize::as_str),
                |word| ImageSize::ALL.into_iter().find(|size| size.as_str() == word),
            )?,
            person_generation: body.person_generation.one_of(
                "person_generation",
                &["dont_allow", "allow_adult", "allow_all"],
                PersonGeneration::parse,
            )?,
            output_mime_type: body.output_mime_type.one_of(
                "output_mime_type",
                &OutputMimeType::ALL.map(OutputMimeType::as_str),
                |word| OutputMimeType::ALL.into_iter().find(|mime_type| mime_type.as_str() == word),
            )?,
        };
        let target = body.model_id_override.target(defaults)?;
        if let Some(target) = &target {
            target.model.check(&params)?;
        }
        let prompt_sha256 = sha256_hex(&[prompt.as_bytes()]);
        Ok(GenerateRequest {
            prompt: prompt.into(),
            prompt_sha256,
            params,
            sent_aspect_ratio,
            sent_add_watermark,
            target,
        })
    }

    /// A text that is equal for equal requests and for no others: the version of this list of fields, a
    /// colon, and the SHA-256 of the fields as sent. It does not include the settings' defaults: the same
    /// body must stay the same request when a default changes.
    pub fn fingerprint(&self) -> String {
        let params = &self.params;
        let person_generation = params.person_generation.map(|persons| match persons {
            PersonGeneration::NoPeople => "dont_allow",
            PersonGeneration::Adults => "allow_adult",
            PersonGeneration::Everyone => "allow_all",
        });
        let fields = serde_json::json!([
            self.prompt_sha256,
            self.target.as_ref().map(|target| target.model.id),
            self.sent_aspect_ratio,
            self.sent_add_watermark,
            params.negative_prompt,
            params.seed,
            params.image_size.map(ImageSize::as_str),
            person_generation,
            params.output_mime_type.map(OutputMimeType::as_str),
        ]);
        let digest = sha256_hex(&[fields.to_string().as_bytes()]);
        format!("{FINGERPRINT_VERSION}:{digest}")
    }
}

/// Raise it when the fields of the fingerprint, or how they are written, change.
const FINGERPRINT_VERSION: u32 = 2;

/// A prompt in shared memory, with the reservation of its request. `Debug` does not show its text.
#[derive(Clone)]
pub struct Prompt(Arc<SharedText>);

/// A prompt that others keep.
pub struct WeakPrompt(Weak<SharedText>);

struct SharedText {
    text: Box<str>,
    memory: OnceLock<Reservation>,
}

impl Prompt {
    /// Keeps `memory` reserved for as long as the prompt is in use.
    pub fn hold(&self, memory: Reservation) {
        // A second reservation would be given back at once.
        let _ = self.0.memory.set(memory);
    }

    pub fn downgrade(&self) -> WeakPrompt {
        WeakPrompt(Arc::downgrade(&self.0))
    }
}

impl WeakPrompt {
    /// `None` once it is no longer kept.
    pub fn upgrade(&self) -> Option<Prompt> {
        self.0.upgrade().map(Prompt)
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Prompt {
        Prompt(Arc::new(SharedText { text: text.into(), memory: OnceLock::new() }))
    }
}

impl Deref for Prompt {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.text
    }
}

impl PartialEq for Prompt {
    fn eq(&self, other: &Prompt) -> bool {
        **self == **other
    }
}

impl Eq for Prompt {}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a prompt of {} bytes", self.len())
    }
}

fn prompt_missing() -> Error {
    Kind::PromptMissing.because("Missing or empty 'prompt' in request body.")
}

/// The body as sent. Unknown fields are skipped without being held.
#[derive(Deserialize)]
struct RequestBody {
    #[serde(default)]
    prompt: FieldValue,
    #[serde(default)]
    aspect_ratio: FieldValue,
    #[serde(default)]
    add_watermark: FieldValue,
    #[serde(default)]
    model_id_override: FieldValue,
    #[serde(default)]
    negative_prompt: FieldValue,
    #[serde(default)]
    seed: FieldValue,
    #[serde(default)]
    image_size: FieldValue,
    #[serde(default)]
    person_generation: FieldValue,
    #[serde(default)]
    output_mime_type: FieldValue,
}

impl RequestBody {
    fn parse(body: &[u8]) -> Result<RequestBody, Error> {
        match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
            None => Err(prompt_missing()),
            Some(b'{') => serde_json::from_slice(body).map_err(malformed),
            Some(_) => match serde_json::from_slice::<IgnoredAny>(body) {
                Ok(_) => Err(Kind::InvalidPayload.because("The body is JSON, but not an object.")),
                Err(error) => Err(malformed(error)),
            },
        }
    }
}

fn malformed(error: serde_json::Error) -> Error {
    Kind::MalformedJson.because(format!("{error}."))
}

/// A field's value. A value that no field can use is not kept, only described.
#[derive(Debug, Default)]
enum FieldValue {
    #[default]
    Nothing,
    Text(String),
    Bool(bool),
    Whole(u64),
    Other(&'static str),
}

impl FieldValue {
    fn text(&self) -> Option<&str> {
        match self {
            FieldValue::Text(text) => Some(text),
            FieldValue::Nothing
            | FieldValue::Bool(_)
            | FieldValue::Whole(_)
            | FieldValue::Other(_) => None,
        }
    }

    fn bool(&self, field: &str) -> Result<Option<bool>, Error> {
        match self {
            FieldValue::Nothing => Ok(None),
            FieldValue::Bool(value) => Ok(Some(*value)),
            other => Err(other.refuse(field, "true, false")),
        }
    }

    fn string(&self, field: &str) -> Result<Option<String>, Error> {
        match self {
            FieldValue::Nothing => Ok(None),
            FieldValue::Text(text) => Ok(Some(text.clone())),
            other => Err(other.refuse(field, "a string")),
        }
    }

    fn seed(&self) -> Result<Option<u32>, Error> {
        match self {
            FieldValue::Nothing => Ok(None),
            FieldValue::Whole(seed) if *seed <= MAX_SEED => Ok(Some(*seed as u32)),
            other => Err(other.refuse("seed", &format!("a whole number from 0 to {MAX_SEED}"))),
        }
    }

    /// The model that the caller names, and where it is asked.
    fn target(&self, settings: &Config) -> Result<Option<Target>, Error> {
        let all: Vec<_> = MODELS.iter().map(|model| model.id).collect();
        let find = |name: &str| settings.model_named(name);
        let Some(model) = self.one_of("model_id_override", &all, find)? else {
            return Ok(None);
        };
        settings.target_of(model).map(Some).ok_or_else(|| {
            let current = MODELS.iter().filter(|model| !model.retired);
            let served = current.filter(|model| settings.target_of(model).is_some());
            Kind::UnsupportedParameter.because(format!(
                "Field 'model_id_override': {} is not served in {}, where prompts may go; allowed: {}.",
                model.id,
                settings.prompt_locations().join(", "),
                listed(&served.map(|model| model.id).collect::<Vec<_>>())
            ))
        })
    }

    fn one_of<T>(
        &self,
        field: &str,
        allowed: &[&str],
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let value = match self {
            FieldValue::Nothing => return Ok(None),
            FieldValue::Text(word) => find(word),
            FieldValue::Bool(_) | FieldValue::Whole(_) | FieldValue::Other(_) => None,
        };
        value.map(Some).ok_or_else(|| self.refuse(field, &allowed.join(", ")))
    }

    fn refuse(&self, field: &str, allowed: &str) -> Error {
        let given = match self {
            FieldValue::Nothing => "nothing".to_owned(),
            FieldValue::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
            FieldValue::Bool(value) => value.to_string(),
            FieldValue::Whole(number) => format!("the number {number}"),
            FieldValue::Other(description) => (*description).to_owned(),
        };
        Kind::UnsupportedParameter
            .because(format!("Field '{field}': {given} is not allowed; allowed: {allowed}."))
    }
}

const MAX_SEED: u64 = i32::MAX as u64;
/// Beyond it, an `f64` does not hold every whole number.
const LARGEST_EXACT: f64 = 9_007_199_254_740_992.0;

impl<'de> Deserialize<'de> for FieldValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FieldValue, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = FieldValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_unit<E>(self) -> Result<FieldValue, E> {
                Ok(FieldValue::Nothing)
            }
            fn visit_bool<E>(self, value: bool) -> Result<FieldValue, E> {
                Ok(FieldValue::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<FieldValue, E> {
                Ok(FieldValue::Whole(value))
            }
            fn visit_i64<E>(self, _: i64) -> Result<FieldValue, E> {
                Ok(FieldValue::Other("a negative number"))
            }
            /// `7.0` is how protobuf's JSON writes a whole number.
            fn visit_f64<E>(self, value: f64) -> Result<FieldValue, E> {
                let is_whole = value.fract() == 0.0 && (0.0..=LARGEST_EXACT).contains(&value);
                Ok(match is_whole {
                    true => FieldValue::Whole(value as u64),
                    false if value < 0.0 => FieldValue::Other("a negative number"),
                    false => FieldValue::Other("a number with decimals"),
                })
            }
            fn visit_str<E>(self, value: &str) -> Result<FieldValue, E> {
                Ok(FieldValue::Text(value.to_owned()))
            }
            fn visit_string<E>(self, value: String) -> Result<FieldValue, E> {
                Ok(FieldValue::Text(value))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<FieldValue, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(FieldValue::Other("an array"))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<FieldValue, A::Error> {
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(FieldValue::Other("an object"))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config() -> Config {
        let vars = |name: &str| {
            let value = match name {
                "GCP_PROJECT_ID" | "GCS_BUCKET_NAME" => "my-project",
                "GCP_LOCATION" => "global",
                _ => return None,
            };
            Some(value.to_owned())
        };
        Config::from_vars(vars).unwrap()
    }

    fn parse(body: impl AsRef<[u8]>) -> Result<GenerateRequest, Error> {
        GenerateRequest::parse(body.as_ref(), &config())
    }

    fn error(body: impl AsRef<[u8]>) -> (Kind, String) {
        let error = parse(body).unwrap_err();
        (error.kind, error.to_string())
    }

    #[test]
    fn the_prompt_is_kept_exactly_and_the_defaults_fill_the_rest() {
        let prompt = "  a \"fox\"\0 \u{1f98a}\n ";
        let request = parse(json!({"prompt": prompt, "unknown": {"a": [1]}}).to_string()).unwrap();
        assert_eq!(&*request.prompt, prompt);
        assert_eq!(
            (request.params.aspect_ratio.as_str(), request.params.add_watermark),
            ("1:1", true)
        );
        assert_eq!((request.params.seed, request.target), (None, None));
    }

    #[test]
    fn every_field_is_read() {
        let body = json!({"prompt": "x", "aspect_ratio": "16:9", "add_watermark": false, "negative_prompt": "dogs",
            "seed": 7, "image_size": "2K", "person_generation": "ALLOW_ALL", "output_mime_type": "image/jpeg",
            "model_id_override": "imagen-3.0-generate-001"});
        let request = parse(body.to_string()).unwrap();
        let params = Params {
            aspect_ratio: "16:9".to_owned(),
            add_watermark: false,
            negative_prompt: Some("dogs".to_owned()),
            seed: Some(7),
            image_size: Some(ImageSize::TwoK),
            person_generation: Some(PersonGeneration::Everyone),
            output_mime_type: Some(OutputMimeType::Jpeg),
        };
        assert_eq!(
            (request.params, request.target.unwrap().model.id),
            (params, "imagen-3.0-generate-001")
        );
    }

    #[test]
    fn null_is_the_same_as_absent() {
        let body =
            json!({"prompt": "x", "seed": null, "aspect_ratio": null, "model_id_override": null});
        assert_eq!(parse(body.to_string()).unwrap(), parse(r#"{"prompt": "x"}"#).unwrap());
    }

    #[test]
    fn an_absent_empty_or_blank_prompt_is_missing() {
        for body in [
            "",
            " \n",
            "{}",
            r#"{"prompt": null}"#,
            r#"{"prompt": 7}"#,
            r#"{"prompt": ""}"#,
            r#"{"prompt": " \t\n"}"#,
            r#"{"prompt": ["x"]}"#,
            r#"{"prompt": {"prompt": "x"}}"#,
            r#"{"Prompt": "x"}"#,
        ] {
            let expected =
                (Kind::PromptMissing, "Missing or empty 'prompt' in request body.".to_owned());
            assert_eq!(error(body), expected, "{body}");
        }
    }

    #[test]
    fn malformed_json_is_located() {
        for body in [
            "{",
            "nonsense",
            r#"{"prompt": "x""#,
            r#"{"prompt": "x"} x"#,
            r#"["x""#,
            "\u{feff}{}",
            r#"{"prompt": "\ud800"}"#,
        ] {
            let (kind, details) = error(body);
            assert_eq!(kind, Kind::MalformedJson, "{body}");
            assert!(details.contains("line 1 column"), "{details}");
        }
        assert_eq!(error(b"{\"prompt\": \"\xff\"}").0, Kind::MalformedJson);
        assert_eq!(error(r#"{"prompt": "a", "prompt": "b"}"#).0, Kind::MalformedJson);
    }

    #[test]
    fn json_other_than_an_object_is_an_invalid_payload() {
        for body in [r#"["prompt"]"#, r#""prompt""#, "7", "null", "true"] {
            assert_eq!(error(body).0, Kind::InvalidPayload, "{body}");
        }
    }

    #[test]
    fn deep_nesting_is_skipped() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(format!(r#"{{"prompt": "x", "other": {deep}}}"#)).is_ok());
        let (kind, _) = error(format!(r#"{{"prompt": {deep}}}"#));
        assert_eq!(kind, Kind::PromptMissing);
    }

    #[test]
    fn an_invalid_field_is_named_with_the_allowed_values() {
        for (field, value, allowed) in [
            ("aspect_ratio", json!("4:7"), "16:9"),
            ("aspect_ratio", json!(1), "16:9"),
            ("add_watermark", json!("yes"), "true, false"),
            ("seed", json!(-1), "2147483647"),
            ("seed", json!(2147483648u64), "2147483647"),
            ("seed", json!(1.5), "whole number"),
            ("image_size", json!("8K"), "512, 1K, 2K, 4K"),
            ("person_generation", json!("some"), "allow_adult"),
            ("output_mime_type", json!("image/gif"), "image/png, image/jpeg"),
            ("model_id_override", json!("dall-e"), "gemini-nano-banana-2.1"),
            ("negative_prompt", json!({}), "a string"),
        ] {
            let mut body = json!({"prompt": "x"});
            body[field] = value;
            let (kind, details) = error(body.to_string());
            assert_eq!(kind, Kind::UnsupportedParameter);
            assert!(
                details.contains(&format!("'{field}'")) && details.contains(allowed),
                "{details}"
            );
        }
    }

    #[test]
    fn a_whole_number_may_have_a_zero_fraction() {
        for (text, seed) in
            [("7", 7), ("7.0", 7), ("7e0", 7), ("70.0e-1", 7), ("0.0", 0), ("-0.0", 0)]
        {
            let request = parse(format!(r#"{{"prompt": "x", "seed": {text}}}"#)).unwrap();
            assert_eq!(request.params.seed, Some(seed), "{text}");
        }
        for text in ["7.5", "-7.0", "2147483648.0", "1e300", "18446744073709551616"] {
            let (kind, _) = error(format!(r#"{{"prompt": "x", "seed": {text}}}"#));
            assert_eq!(kind, Kind::UnsupportedParameter, "{text}");
        }
    }

    #[test]
    fn the_fingerprint_tells_requests_apart() {
        let of = |body: &str| parse(body).unwrap().fingerprint();
        assert_eq!(
            of(r#"{"prompt": "x", "seed": 1}"#),
            of(r#"{"seed": 1.0, "prompt": "x", "other": 1, "aspect_ratio": null}"#)
        );
        for other in [
            r#"{"prompt": "x", "aspect_ratio": "1:1"}"#,
            r#"{"prompt": "x", "add_watermark": true}"#,
            r#"{"prompt": "x "}"#,
            r#"{"prompt": "x", "seed": 1}"#,
            r#"{"prompt": "x", "negative_prompt": "1"}"#,
            r#"{"prompt": "x", "model_id_override": "gemini-3-pro-image"}"#,
        ] {
            assert_ne!(of(other), of(r#"{"prompt": "x"}"#));
        }
    }

    #[test]
    fn the_fingerprint_does_not_depend_on_the_defaults() {
        let mut other = config();
        other.default_aspect_ratio = "16:9".to_owned();
        other.add_watermark = !other.add_watermark;
        let body = br#"{"prompt": "x", "seed": 7}"#;
        let of = |config: &Config| GenerateRequest::parse(body, config).unwrap().fingerprint();
        assert_eq!(of(&config()), of(&other));
        // All revisions of this service must compute the same.
        assert_eq!(
            of(&config()),
            "2:0d6921adb4baa90ba1c618b51e1a04592c4ae0535b24e5e5533090cef0260a0d"
        );
    }
}
