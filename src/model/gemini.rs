//! Gemini's `:generateContent`: request body out, response in ("Generate and edit images with Gemini").

use super::{
    ImageSize, Outcome, OutputMimeType, Params, PersonGeneration, elements, image_at, text,
};
use serde_json::{Value, json};

/// The request for one image and no text. `add_watermark` is not sent: these models always watermark.
pub fn body(prompt: &str, params: &Params) -> Value {
    let mut image_config = json!({"aspectRatio": params.aspect_ratio});
    if let Some(size) = params.image_size.map(ImageSize::as_str) {
        image_config["imageSize"] = json!(size);
    }
    if let Some(person_generation) = params.person_generation {
        image_config["personGeneration"] = json!(match person_generation {
            PersonGeneration::NoPeople => "ALLOW_NONE",
            PersonGeneration::Adults => "ALLOW_ADULT",
            PersonGeneration::Everyone => "ALLOW_ALL",
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

/// The final image; otherwise the last draft, unless something was filtered; otherwise the reasons why
/// there is no image.
pub fn outcome(skeleton: &Value) -> Outcome {
    let without_image = outcome_without_image(skeleton);
    let draft = match without_image {
        Outcome::Blocked(_) => None,
        _ => images(skeleton, true).last(),
    };
    images(skeleton, false).last().or(draft).map_or(without_image, Outcome::Image)
}

/// The last image that is not a draft, otherwise the last draft.
pub fn best_so_far(skeleton: &Value) -> Option<usize> {
    images(skeleton, false).last().or_else(|| images(skeleton, true).last())
}

fn candidates(skeleton: &Value) -> impl Iterator<Item = &Value> {
    elements(skeleton).iter().flat_map(|chunk| elements(&chunk["candidates"]))
}

fn parts(candidate: &Value) -> &[Value] {
    elements(&candidate["content"]["parts"])
}

/// Drafts carry `thought`, or no mark at all. A signature is not a mark: final images carry it too.
fn images(skeleton: &Value, drafts: bool) -> impl Iterator<Item = usize> {
    candidates(skeleton)
        .flat_map(parts)
        .filter(move |part| is_thought(part) == drafts)
        .filter_map(|part| image_at(&part["inlineData"]["data"]))
}

fn is_thought(part: &Value) -> bool {
    part["thought"] == true
}

/// Why there is no image: the texts of the prompt's feedback and of all candidates.
fn outcome_without_image(skeleton: &Value) -> Outcome {
    let mut is_blocked = false;
    let mut texts: Vec<String> = Vec::new();
    for chunk in elements(skeleton) {
        let feedback = &chunk["promptFeedback"];
        let reason = text(&feedback["blockReason"]).unwrap_or_default();
        let message = text(&feedback["blockReasonMessage"]).unwrap_or_default();
        is_blocked |= is_filter(reason) || !message.is_empty() || is_rated_blocked(feedback);
        is_blocked |= !reason.is_empty() && !reason.ends_with(UNSPECIFIED);
        texts.push(reason_and_text(reason, message));
    }
    for candidate in candidates(skeleton) {
        let reason = text(&candidate["finishReason"]).unwrap_or_default();
        is_blocked |= is_filter(reason) || is_rated_blocked(candidate);
        texts.push(reason_and_text(reason, &candidate_text(candidate)));
    }
    texts.retain(|text| !text.is_empty());
    texts.dedup();
    let chars_each = MAX_REFUSAL_CHARS / texts.len().max(1);
    let cut = |text: &String| text.chars().take(chars_each).collect::<String>();
    let words = texts.iter().map(cut).collect::<Vec<_>>().join(" ");
    if is_blocked {
        return Outcome::Blocked(words);
    }
    let uri =
        candidates(skeleton).flat_map(parts).find_map(|part| text(&part["fileData"]["fileUri"]));
    match uri {
        Some(uri) => Outcome::Empty(format!(
            "The model stored the image elsewhere ({uri}) instead of sending it. {words}"
        )),
        None if candidates(skeleton).next().is_none() => {
            Outcome::Empty(format!("The model sent no candidates. {words}").trim().to_owned())
        }
        None => Outcome::Empty(words),
    }
}

/// The candidate's message, otherwise its texts, without its thoughts.
fn candidate_text(candidate: &Value) -> String {
    let texts = || {
        let said = parts(candidate).iter().filter(|part| !is_thought(part));
        said.filter_map(|part| text(&part["text"])).collect::<Vec<_>>().join(" ")
    };
    text(&candidate["finishMessage"]).map_or_else(texts, str::to_owned)
}

/// Whether a safety rating says that it stopped the prompt or the image.
fn is_rated_blocked(value: &Value) -> bool {
    elements(&value["safetyRatings"]).iter().any(|rating| rating["blocked"] == true)
}

/// Whether a reason is a filter's. The same prompt would most likely be filtered, and paid, again.
fn is_filter(reason: &str) -> bool {
    !reason.ends_with(UNSPECIFIED) && FILTERS.iter().any(|filter| reason.contains(filter))
}

fn reason_and_text(reason: &str, text: &str) -> String {
    match (reason, text) {
        ("", text) => text.to_owned(),
        (reason, "") => reason.to_owned(),
        (reason, text) => format!("{reason}: {text}"),
    }
}

/// Words in the names of the reasons for a filter, with and without `IMAGE_`. New reasons use the same
/// words.
const FILTERS: [&str; 7] =
    ["SAFETY", "RECITATION", "BLOCK", "PROHIBITED", "SPII", "MODEL_ARMOR", "JAILBREAK"];

/// All candidates share the details of an error.
const MAX_REFUSAL_CHARS: usize = 900;

/// The end of an enum's name for "not set".
const UNSPECIFIED: &str = "UNSPECIFIED";

#[cfg(test)]
mod tests {
    use super::super::tests::square;
    use super::*;

    fn outcome(response: &str) -> Outcome {
        super::outcome(&serde_json::from_str(response).unwrap())
    }

    /// A response whose one candidate has these parts and ends for that reason.
    fn candidate(parts: &str, finish_reason: &str) -> String {
        format!(
            r#"{{"candidates": [{{"content": {{"parts": [{parts}]}}, "finishReason": "{finish_reason}"}}]}}"#
        )
    }

    const FILTER_REASONS: [&str; 10] = [
        "SAFETY",
        "RECITATION",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "MODEL_ARMOR",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "IMAGE_BLOCKLIST",
    ];
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
            person_generation: Some(PersonGeneration::NoPeople),
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
    fn drafts_alone_are_chosen_unless_something_was_filtered() {
        let unfinished = format!(r#"{{"candidates": [{{"content": {{"parts": [{DRAFT}]}}}}]}}"#);
        for response in [
            candidate(DRAFT, "STOP"),
            candidate(DRAFT, "MAX_TOKENS"),
            candidate(DRAFT, "SOMETHING_NEW"),
            unfinished.clone(),
        ] {
            assert_eq!(outcome(&response), Outcome::Image(0), "{response}");
        }
        let feedback = |reason: &str| {
            unfinished.replacen('{', &format!(r#"{{"promptFeedback": {reason},"#), 1)
        };
        for response in [
            candidate(DRAFT, "IMAGE_SAFETY"),
            feedback(r#"{"blockReason": "OTHER"}"#),
            feedback(r#"{"blockReasonMessage": "No."}"#),
            feedback(r#"{"safetyRatings": [{"blocked": true}]}"#),
            format!("[{unfinished}, {}]", candidate("", "IMAGE_SAFETY")),
        ] {
            assert!(matches!(outcome(&response), Outcome::Blocked(_)), "{response}");
        }
        let unspecified = feedback(r#"{"blockReason": "BLOCKED_REASON_UNSPECIFIED"}"#);
        assert_eq!(outcome(&unspecified), Outcome::Image(0));
    }

    #[test]
    fn values_of_other_types_than_documented_are_as_if_absent() {
        for odd in ["null", "5", "true", r#""x""#, "[]", "[[5]]", "{}", r#"{"x": {}}"#] {
            for response in [
                r#"{"candidates": [ODD, {"content": {"parts": [ODD, IMAGE, ODD]}}, ODD]}"#,
                r#"{"candidates": [{"content": {"parts": [IMAGE]}, "finishReason": ODD}], "promptFeedback": ODD}"#,
                r#"{"candidates": [{"content": {"parts": [{"text": ODD}, {"inlineData": ODD}, IMAGE]}}]}"#,
                r#"{"candidates": [{"content": ODD, "safetyRatings": ODD}, {"content": {"parts": IMAGE}}]}"#,
                r#"[ODD, {"candidates": {"content": {"parts": [IMAGE]}}}, {"candidates": ODD}]"#,
            ] {
                let response = response.replace("IMAGE", FIRST).replace("ODD", odd);
                assert_eq!(outcome(&response), Outcome::Image(0), "{response}");
            }
        }
    }

    #[test]
    fn a_long_text_leaves_room_for_the_other_candidates() {
        let long = "x".repeat(2000);
        let response = format!(
            r#"{{"candidates": [{{"finishReason": "STOP", "finishMessage": "{long}"}},
            {{"finishReason": "IMAGE_SAFETY", "finishMessage": "Filtered."}}]}}"#
        );
        let Outcome::Blocked(words) = outcome(&response) else { panic!("it is blocked") };
        assert!(words.len() <= 900 && words.ends_with(" IMAGE_SAFETY: Filtered."), "{words}");
    }

    #[test]
    fn all_candidates_say_why_and_thoughts_do_not() {
        let response = r#"{"candidates": [
            {"finishReason": "STOP", "content": {"parts": [{"text": "hm", "thought": true}, {"text": "No."}]}},
            {"finishReason": "IMAGE_SAFETY", "finishMessage": "Filtered."},
            {"finishReason": "IMAGE_SAFETY", "finishMessage": "Filtered."}]}"#;
        let words = "STOP: No. IMAGE_SAFETY: Filtered.";
        assert_eq!(outcome(response), Outcome::Blocked(words.to_owned()));
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
        for reason in FILTER_REASONS {
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
            assert!(matches!(outcome(response), Outcome::Empty(_)), "{response}");
        }
    }
}
