//! Imagen's `:predict`: request body out, response in ("Imagen API reference").

use super::{ImageSize, Outcome, OutputMimeType, Params, PersonGeneration, image_at};
use serde::Deserialize;
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
            PersonGeneration::Nobody => "dont_allow",
            PersonGeneration::Adults => "allow_adult",
            PersonGeneration::Everybody => "allow_all",
        });
    }
    if let Some(mime_type) = params.output_mime_type.map(OutputMimeType::as_str) {
        parameters["outputOptions"] = json!({"mimeType": mime_type});
    }
    json!({"instances": [{"prompt": prompt}], "parameters": parameters})
}

/// The first image, otherwise the given reasons, otherwise a block without a reason: a response without
/// predictions means that everything was filtered.
pub fn outcome(skeleton: &[u8]) -> Result<Outcome, serde_json::Error> {
    let response: Response = serde_json::from_slice(skeleton)?;
    if let Some(image) = response.image() {
        return Ok(Outcome::Image(image));
    }
    let predictions = response.predictions.unwrap_or_default();
    if let Some(uri) = predictions.iter().find_map(|p| p.gcs_uri.as_ref()) {
        return Ok(Outcome::Empty(format!(
            "The model stored the image elsewhere ({uri}) instead of sending it."
        )));
    }
    if predictions.iter().any(|p| p.bytes_base64_encoded.is_some()) {
        return Ok(Outcome::Empty(super::NO_BYTES.to_owned()));
    }
    let reasons: Vec<_> = predictions.into_iter().filter_map(|p| p.rai_filtered_reason).collect();
    Ok(Outcome::Blocked(match reasons.is_empty() {
        true => "The image was filtered out; the model gave no reason.".to_owned(),
        false => reasons.join(" "),
    }))
}

/// One image is requested, so the first one is chosen.
pub fn best_so_far(skeleton: &[u8]) -> Option<usize> {
    serde_json::from_slice::<Response>(skeleton).ok()?.image()
}

#[derive(Deserialize)]
struct Response {
    predictions: Option<Vec<Prediction>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Prediction {
    bytes_base64_encoded: Option<String>,
    gcs_uri: Option<String>,
    rai_filtered_reason: Option<String>,
}

impl Response {
    fn image(&self) -> Option<usize> {
        self.predictions.iter().flatten().find_map(|p| image_at(p.bytes_base64_encoded.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::square;
    use super::*;

    fn outcome(response: &str) -> Outcome {
        super::outcome(response.as_bytes()).unwrap()
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
            person_generation: Some(PersonGeneration::Nobody),
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
    fn everything_filtered_is_blocked_in_all_three_shapes_and_with_a_reason() {
        for response in [
            "{}",
            r#"{"predictions": []}"#,
            r#"{"deployedModelId": "1"}"#,
            r#"{"predictions": null}"#,
        ] {
            assert!(matches!(outcome(response), Outcome::Blocked(_)), "{response}");
        }
        let reason = r#"{"predictions": [{"raiFilteredReason": "Unable to show. Support codes: 39322892"}]}"#;
        assert_eq!(
            outcome(reason),
            Outcome::Blocked("Unable to show. Support codes: 39322892".to_owned())
        );
    }

    #[test]
    fn an_image_stored_elsewhere_is_not_an_image() {
        let response = r#"{"predictions": [{"mimeType": "image/jpeg", "gcsUri": "gs://b/x.jpg"}]}"#;
        assert!(matches!(outcome(response), Outcome::Empty(text) if text.contains("gs://b/x.jpg")));
    }
}
