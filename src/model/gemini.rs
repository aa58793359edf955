//! Gemini's `:generateContent`: request body out, response in ("Generate and edit images with Gemini").

use super::{ImageSize, Outcome, OutputMimeType, Params, PersonGeneration, image_at};
use serde::Deserialize;
use serde_json::{Value, json};

/// The request for one image and no text. `add_watermark` is not sent: these models always watermark.
pub fn body(prompt: &str, params: &Params) -> Value {
    let mut image_config = json!({"aspectRatio": params.aspect_ratio});
    if let Some(size) = params.image_size.map(ImageSize::as_str) {
        image_config["imageSize"] = json!(size);
    }
    if let Some(person_generation) = params.person_generation {
        image_config["personGeneration"] = json!(match person_generation {
            PersonGeneration::Nobody => "ALLOW_NONE",
            PersonGeneration::Adults => "ALLOW_ADULT",
            PersonGeneration::Everybody => "ALLOW_ALL",
        });
    }
    if let Some(mime_type) = params.output_mime_type.map(OutputMimeType::as_str) {
        image_config["imageOutputOptions"] = json!({"mimeType": mime_type});
    }
    let mut generation_config =
        json!({"responseModalities": ["IMAGE"], "imageConfig": image_config});
    if let Some(seed) = params.seed {
        generation_config["seed"] = json!(seed);
    }
    json!({"contents": [{"role": "user", "parts": [{"text": prompt}]}], "generationConfig": generation_config})
}

/// The final image, otherwise the reason why there is none.
pub fn outcome(skeleton: &[u8]) -> Result<Outcome, serde_json::Error> {
    let response: Response = serde_json::from_slice(skeleton)?;
    if let Some(image) = response.final_image().or_else(|| response.draft_of_a_finished_response())
    {
        return Ok(Outcome::Image(image));
    }
    Ok(response.refusal())
}

/// The last image that is not a draft, else the last draft.
pub fn best_so_far(skeleton: &[u8]) -> Option<usize> {
    let response: Response = serde_json::from_slice(skeleton).ok()?;
    response.final_image().or_else(|| response.images().last())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    candidates: Option<Vec<Candidate>>,
    prompt_feedback: Option<PromptFeedback>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate {
    content: Option<Content>,
    finish_reason: Option<String>,
    finish_message: Option<String>,
}

#[derive(Deserialize)]
struct Content {
    parts: Option<Vec<Part>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    text: Option<String>,
    thought: Option<bool>,
    inline_data: Option<InlineData>,
    file_data: Option<FileData>,
}

#[derive(Deserialize)]
struct InlineData {
    data: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileData {
    file_uri: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PromptFeedback {
    block_reason: Option<String>,
    block_reason_message: Option<String>,
}

impl Response {
    fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.candidates.iter().flatten()
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.candidates().flat_map(Candidate::parts)
    }

    fn images(&self) -> impl Iterator<Item = usize> {
        self.parts().filter_map(Part::image)
    }

    /// Drafts carry `thought`, or nothing at all: the last unflagged image is the final one. A
    /// signature says nothing, final images carry it too.
    fn final_image(&self) -> Option<usize> {
        self.parts().filter(|part| part.thought != Some(true)).filter_map(Part::image).last()
    }

    /// Rarely every image is flagged; after a normal end the last draft equals the final image.
    fn draft_of_a_finished_response(&self) -> Option<usize> {
        let finished = self.candidates().filter(|c| c.finish_reason.as_deref() == Some("STOP"));
        finished.flat_map(Candidate::parts).filter_map(Part::image).last()
    }

    fn refusal(&self) -> Outcome {
        if let Some(reason) =
            self.prompt_feedback.as_ref().and_then(|feedback| feedback.block_reason.as_deref())
        {
            let message = self
                .prompt_feedback
                .as_ref()
                .and_then(|feedback| feedback.block_reason_message.as_deref());
            return Outcome::Blocked(reason_and_text(reason, message.unwrap_or_default()));
        }
        let Some(candidate) = self.candidates().next() else {
            return Outcome::Empty("The model sent no candidates.".to_owned());
        };
        candidate.refusal()
    }
}

impl Candidate {
    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.content.iter().flat_map(|content| content.parts.iter().flatten())
    }

    fn refusal(&self) -> Outcome {
        let reason = self.finish_reason.as_deref().unwrap_or_default();
        let words = match &self.finish_message {
            Some(message) => message.clone(),
            None => {
                self.parts().filter_map(|part| part.text.as_deref()).collect::<Vec<_>>().join(" ")
            }
        };
        if BLOCKED.contains(&reason) {
            return Outcome::Blocked(reason_and_text(reason, &words));
        }
        if let Some(uri) = self.parts().find_map(|p| p.file_data.as_ref()?.file_uri.as_deref()) {
            return Outcome::Empty(format!(
                "The model stored the image elsewhere ({uri}) instead of sending it."
            ));
        }
        match (reason, words.as_str()) {
            ("", "") => Outcome::Empty(super::NO_BYTES.to_owned()),
            _ => Outcome::Empty(reason_and_text(reason, &words)),
        }
    }
}

impl Part {
    fn image(&self) -> Option<usize> {
        image_at(self.inline_data.as_ref()?.data.as_deref())
    }
}

fn reason_and_text(reason: &str, text: &str) -> String {
    match (reason, text) {
        ("", text) => text.to_owned(),
        (reason, "") => reason.to_owned(),
        (reason, text) => format!("{reason}: {text}"),
    }
}

/// The finish reasons that mean a filter. The same prompt would most likely be filtered, and paid, again.
const BLOCKED: &[&str] = &[
    "SAFETY",
    "RECITATION",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "MODEL_ARMOR",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
];

#[cfg(test)]
mod tests {
    use super::super::tests::square;
    use super::*;

    fn outcome(response: &str) -> Outcome {
        super::outcome(response.as_bytes()).unwrap()
    }

    /// A response whose one candidate has these parts and ends for that reason.
    fn candidate(parts: &str, finish_reason: &str) -> String {
        format!(
            r#"{{"candidates": [{{"content": {{"parts": [{parts}]}}, "finishReason": "{finish_reason}"}}]}}"#
        )
    }

    const TEXT: &str = r#"{"text": "Here it is."}"#;
    const FIRST: &str =
        r##"{"inlineData": {"mimeType": "image/png", "data": "#0"}, "thoughtSignature": "Cp"}"##;
    const SECOND: &str = r##"{"inlineData": {"data": "#1"}}"##;
    const DRAFT: &str = r##"{"inlineData": {"data": "#0"}, "thought": true}"##;
    const DRAFT_AFTER: &str = r##"{"thought": true, "inlineData": {"data": "#1"}}"##;

    #[test]
    fn the_plain_request_is_what_every_current_model_accepts() {
        assert_eq!(
            body("a red fox", &square()),
            json!({"contents": [{"role": "user", "parts": [{"text": "a red fox"}]}],
                   "generationConfig": {"responseModalities": ["IMAGE"], "imageConfig": {"aspectRatio": "1:1"}}})
        );
    }

    #[test]
    fn every_parameter_has_its_name_on_the_wire() {
        let params = Params {
            seed: Some(7),
            image_size: Some(ImageSize::FourK),
            person_generation: Some(PersonGeneration::Nobody),
            output_mime_type: Some(OutputMimeType::Jpeg),
            ..square()
        };
        assert_eq!(
            body("x", &params)["generationConfig"],
            json!({"responseModalities": ["IMAGE"], "seed": 7,
                   "imageConfig": {"aspectRatio": "1:1", "imageSize": "4K", "personGeneration": "ALLOW_NONE",
                                   "imageOutputOptions": {"mimeType": "image/jpeg"}}})
        );
    }

    #[test]
    fn the_last_image_that_is_not_a_draft_is_chosen() {
        for (parts, chosen) in [
            (format!("{TEXT},{FIRST}"), 0),
            (FIRST.to_owned(), 0),
            (format!("{DRAFT},{TEXT},{SECOND}"), 1),
            (format!("{FIRST},{SECOND}"), 1),
            (format!("{FIRST},{DRAFT_AFTER}"), 0),
            (format!("{DRAFT},{DRAFT_AFTER}"), 1),
        ] {
            assert_eq!(outcome(&candidate(&parts, "STOP")), Outcome::Image(chosen), "{parts}");
        }
    }

    #[test]
    fn a_draft_alone_is_not_chosen_when_the_response_was_filtered() {
        assert!(matches!(outcome(&candidate(DRAFT, "IMAGE_SAFETY")), Outcome::Blocked(_)));
    }

    #[test]
    fn a_usable_image_is_taken_whatever_the_finish_reason() {
        assert_eq!(outcome(&candidate(FIRST, "MAX_TOKENS")), Outcome::Image(0));
    }

    #[test]
    fn a_blocked_prompt_carries_its_reason_and_text() {
        let response = r#"{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT", "blockReasonMessage": "Not allowed."}}"#;
        assert_eq!(
            outcome(response),
            Outcome::Blocked("PROHIBITED_CONTENT: Not allowed.".to_owned())
        );
    }

    #[test]
    fn every_filtering_finish_reason_is_a_block_in_every_shape_of_emptiness() {
        for reason in BLOCKED {
            for content in [
                "",
                r#""content": {},"#,
                r#""content": {"role": "model"},"#,
                r#""content": {"parts": null},"#,
            ] {
                let response = format!(
                    r#"{{"candidates": [{{{content} "finishReason": "{reason}", "finishMessage": "Support code: 15236754",
                        "safetyRatings": [{{}}]}}]}}"#
                );
                let expected = Outcome::Blocked(format!("{reason}: Support code: 15236754"));
                assert_eq!(outcome(&response), expected, "{response}");
            }
        }
    }

    #[test]
    fn a_response_without_an_image_says_why() {
        for reason in [
            "IMAGE_OTHER",
            "OTHER",
            "MALFORMED_RESPONSE",
            "NO_IMAGE",
            "MAX_TOKENS",
            "SOMETHING_NEW",
        ] {
            assert_eq!(outcome(&candidate("", reason)), Outcome::Empty(reason.to_owned()));
        }
        let refused = outcome(&candidate(r#"{"text": "I can't"},{"text": "draw that."}"#, "STOP"));
        assert_eq!(refused, Outcome::Empty("STOP: I can't draw that.".to_owned()));
        let elsewhere = outcome(&candidate(r#"{"fileData": {"fileUri": "gs://b/x.png"}}"#, "STOP"));
        assert!(matches!(elsewhere, Outcome::Empty(text) if text.contains("gs://b/x.png")));
    }

    #[test]
    fn an_empty_response_is_empty() {
        for response in [
            "{}",
            r#"{"candidates": []}"#,
            r#"{"candidates": [{"content": {}}]}"#,
            r#"{"candidates": null}"#,
        ] {
            assert!(
                matches!(outcome(response), Outcome::Empty(text) if !text.is_empty()),
                "{response}"
            );
        }
    }
}
