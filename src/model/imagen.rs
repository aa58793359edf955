//! Imagen's `:predict`: request body out, response in ("Imagen API reference").

use super::{
    ImageSize, Outcome, OutputMimeType, Params, PersonGeneration, elements, image_at, text,
};
use serde_json::{Value, json};

/// The request for one image.
pub fn body(prompt: &str, params: &Params) -> Value {
    let mut parameters = json!({
        "sampleCount": 1,
        "aspectRatio": params.aspect_ratio,
        "addWatermark": params.add_watermark,
        "includeRaiReason": true,
    });
    if let Some(text) = &params.negative_prompt {
        parameters["negativePrompt"] = json!(text);
    }
    if let Some(seed) = params.seed {
        parameters["seed"] = json!(seed);
        parameters["enhancePrompt"] = json!(false);
    }
    if let Some(size) = params.image_size.map(ImageSize::as_str) {
        parameters["sampleImageSize"] = json!(size);
    }
    if let Some(person_generation) = params.person_generation {
        parameters["personGeneration"] = json!(match person_generation {
            PersonGeneration::NoPeople => "dont_allow",
            PersonGeneration::Adults => "allow_adult",
            PersonGeneration::Everyone => "allow_all",
        });
    }
    if let Some(mime_type) = params.output_mime_type.map(OutputMimeType::as_str) {
        parameters["outputOptions"] = json!({"mimeType": mime_type});
    }
    json!({"instances": [{"prompt": prompt}], "parameters": parameters})
}

/// The first image, otherwise the given reasons. A response without predictions means that everything was
/// filtered.
pub fn outcome(skeleton: &Value) -> Outcome {
    if let Some(image) = best_so_far(skeleton) {
        return Outcome::Image(image);
    }
    if let Some(uri) = predictions(skeleton).find_map(|entry| text(&entry["gcsUri"])) {
        return Outcome::Empty(format!(
            "The model stored the image elsewhere ({uri}) instead of sending it."
        ));
    }
    let reasons: Vec<_> =
        predictions(skeleton).filter_map(|entry| text(&entry["raiFilteredReason"])).collect();
    if !reasons.is_empty() {
        return Outcome::Blocked(reasons.join(" "));
    }
    if predictions(skeleton).any(is_meant_as_image) {
        return Outcome::Empty(String::new());
    }
    match is_response(skeleton) {
        true => {
            Outcome::Blocked("The image was filtered out; the model gave no reason.".to_owned())
        }
        false => Outcome::Unknown,
    }
}

/// One image is requested, so the first one is chosen.
pub fn best_so_far(skeleton: &Value) -> Option<usize> {
    predictions(skeleton).find_map(|entry| image_at(&entry["bytesBase64Encoded"]))
}

fn predictions(skeleton: &Value) -> impl Iterator<Item = &Value> {
    elements(skeleton).iter().flat_map(|chunk| elements(&chunk["predictions"]))
}

/// Whether an entry stands for an image. An empty entry and the one with the safety attributes of the
/// prompt do not.
fn is_meant_as_image(entry: &Value) -> bool {
    entry.as_object().is_some_and(|members| {
        !members.is_empty()
            && !members.contains_key("safetyAttributes")
            && !members.contains_key("contentType")
    })
}

/// Whether this is a response to `:predict` and not that of another API.
fn is_response(skeleton: &Value) -> bool {
    let chunks = elements(skeleton);
    let is_documented = |chunk: &Value| {
        chunk.as_object().is_some_and(|members| {
            members.keys().all(|key| RESPONSE_KEYS.contains(&key.as_str()))
                && matches!(chunk["predictions"], Value::Null | Value::Array(_))
        })
    };
    !chunks.is_empty() && chunks.iter().all(is_documented)
}

/// The documented members of a response.
const RESPONSE_KEYS: [&str; 8] = [
    "predictions",
    "deployedModelId",
    "model",
    "modelDisplayName",
    "modelVersionId",
    "modelVersion",
    "metadata",
    "positivePromptSafetyAttributes",
];

#[cfg(test)]
mod tests {
    use super::super::tests::square;
    use super::*;

    fn outcome(response: &str) -> Outcome {
        super::outcome(&serde_json::from_str(response).unwrap())
    }

    #[test]
    fn the_plain_request_is_what_the_api_documents() {
        assert_eq!(
            body("a red fox", &square()),
            json!({"instances": [{"prompt": "a red fox"}],
                   "parameters": {"sampleCount": 1, "aspectRatio": "1:1", "addWatermark": true, "includeRaiReason": true}})
        );
    }

    #[test]
    fn every_parameter_has_its_name_on_the_wire() {
        let params = Params {
            aspect_ratio: "16:9".to_owned(),
            add_watermark: false,
            negative_prompt: Some("dogs".to_owned()),
            seed: Some(7),
            image_size: Some(ImageSize::TwoK),
            person_generation: Some(PersonGeneration::NoPeople),
            output_mime_type: Some(OutputMimeType::Jpeg),
        };
        assert_eq!(
            body("x", &params)["parameters"],
            json!({"sampleCount": 1, "aspectRatio": "16:9", "addWatermark": false, "includeRaiReason": true,
                   "negativePrompt": "dogs", "seed": 7, "enhancePrompt": false, "sampleImageSize": "2K",
                   "personGeneration": "dont_allow", "outputOptions": {"mimeType": "image/jpeg"}})
        );
    }

    #[test]
    fn an_image_is_found_beside_a_reason_and_in_any_field_order() {
        let response = r##"{"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": "#0", "prompt": "vivid"},
                        {"raiFilteredReason": "filtered out 2"}], "deployedModelId": "1"}"##;
        assert_eq!(outcome(response), Outcome::Image(0));
    }

    #[test]
    fn the_positive_prompt_entry_is_not_an_image() {
        let response = r##"{"predictions": [{"contentType": "Positive Prompt", "safetyAttributes": {"scores": [0.1, 1]}},
                        {"bytesBase64Encoded": "#0"}]}"##;
        assert_eq!(outcome(response), Outcome::Image(0));
    }

    #[test]
    fn everything_filtered_is_blocked_in_every_shape() {
        for response in [
            "{}",
            "[{}]",
            r#"{"predictions": []}"#,
            r#"{"predictions": [null, {}, 5]}"#,
            r#"{"predictions": [{"contentType": "Positive Prompt", "safetyAttributes": null}]}"#,
            r#"{"deployedModelId": "1"}"#,
            r#"{"metadata": null, "model": 5, "modelVersionId": "1"}"#,
            r#"{"predictions": null}"#,
        ] {
            assert!(matches!(outcome(response), Outcome::Blocked(_)), "{response}");
        }
        let reasons = r#"{"predictions": [{"raiFilteredReason": "Unable to show."}, {"mimeType": null},
            {"raiFilteredReason": 5}, {"raiFilteredReason": "Support codes: 39322892"}]}"#;
        assert_eq!(
            outcome(reasons),
            Outcome::Blocked("Unable to show. Support codes: 39322892".to_owned())
        );
    }

    #[test]
    fn an_entry_without_its_image_is_empty_and_another_response_is_unknown() {
        for response in [
            r#"{"predictions": [{"bytesBase64Encoded": ""}]}"#,
            r#"{"predictions": [{"bytesBase64Encoded": 5}]}"#,
            r#"{"predictions": [{"mimeType": "image/png"}, {}]}"#,
        ] {
            assert_eq!(outcome(response), Outcome::Empty(String::new()), "{response}");
        }
        for response in [
            r#"{"candidates": []}"#,
            r#"{"predictions": "none"}"#,
            r#"{"deployedModelId": "1", "other": null}"#,
            "[]",
            "[5]",
            "null",
            "5",
            r#""text""#,
        ] {
            assert_eq!(outcome(response), Outcome::Unknown, "{response}");
        }
    }

    #[test]
    fn the_first_usable_image_is_chosen() {
        let response = r##"[{"predictions": [null, {"bytesBase64Encoded": ""}, {"bytesBase64Encoded": 5}]},
            {"predictions": [{"bytesBase64Encoded": "#1"}, {"bytesBase64Encoded": "#2"}]}]"##;
        assert_eq!(outcome(response), Outcome::Image(1));
    }

    #[test]
    fn an_image_stored_elsewhere_is_not_an_image() {
        let response = r#"{"predictions": [{"mimeType": "image/jpeg", "gcsUri": "gs://b/x.jpg"}]}"#;
        assert!(matches!(outcome(response), Outcome::Empty(text) if text.contains("gs://b/x.jpg")));
    }
}
