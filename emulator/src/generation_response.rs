//! The response of a model that made an image.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::drawing::Drawing;
use crate::generation_spec::GenerationSpec;
use crate::image::{ImageFormat, ImageSpec};
use crate::models::{Family, pixels};

/// The images of a response.
#[derive(Clone, Copy)]
pub(crate) struct Rendering {
    /// The divisor of the sides.
    pub shrunk: u32,
    pub image: ImageSpec,
}

impl GenerationSpec {
    /// The body of the 200, with its images.
    pub fn response(&self, created: &str, rendering: Rendering) -> Value {
        match self.model.family {
            Family::Imagen => self.predictions(rendering),
            Family::Gemini25 | Family::Gemini3 | Family::NanoBanana => {
                self.candidates(created, rendering)
            }
        }
    }

    /// The image in base64.
    pub fn image(&self, rendering: Rendering) -> String {
        self.draw(self.model.id, rendering)
    }

    pub fn prompt_tokens(&self) -> usize {
        self.prompt.split_whitespace().count() + 1
    }

    fn predictions(&self, rendering: Rendering) -> Value {
        let mime_type = self.format(rendering).mime_type();
        let one = |number: usize| {
            let data = self.draw(&format!("{} #{number}", self.model.id), rendering);
            json!({"bytesBase64Encoded": data, "mimeType": mime_type})
        };
        json!({"predictions": (1..=self.count).map(one).collect::<Vec<_>>()})
    }

    fn candidates(&self, created: &str, rendering: Rendering) -> Value {
        let image_tokens = if self.with_image { 1120 } else { 0 };
        let (thoughts, prompt_tokens) = (210, self.prompt_tokens());
        json!({
            "candidates": [{
                "index": 0,
                "content": {"role": "model", "parts": self.parts(rendering)},
                "finishReason": "STOP",
                "safetyRatings": [{}],
            }],
            "usageMetadata": {
                "promptTokenCount": prompt_tokens,
                "candidatesTokenCount": image_tokens + 8,
                "thoughtsTokenCount": thoughts,
                "totalTokenCount": prompt_tokens + image_tokens + 8 + thoughts,
                "trafficType": "ON_DEMAND",
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt_tokens}],
                "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": image_tokens}],
            },
            "modelVersion": self.model.id,
            "createTime": created,
            "responseId": RESPONSE_ID,
        })
    }

    fn parts(&self, rendering: Rendering) -> Vec<Value> {
        let family = self.model.family;
        let blob = |data: String| {
            let mime_type = self.format(rendering).mime_type();
            json!({"inlineData": {"data": data, "mimeType": mime_type}})
        };
        let mut parts = Vec::new();
        if family == Family::Gemini3 && self.with_image {
            let smaller = Rendering { shrunk: 4 * rendering.shrunk, ..rendering };
            let mut draft = blob(self.draw("draft: not the image to keep", smaller));
            draft["thought"] = true.into();
            parts.push(draft);
        }
        if self.with_text && (family != Family::NanoBanana || !self.with_image) {
            parts.push(json!({"text": format!("Here is your image: {}", self.prompt)}));
        }
        if self.with_image {
            parts.push(blob(self.image(rendering)));
        }
        if let (Some(last), true) = (parts.last_mut(), family != Family::Gemini25) {
            last["thoughtSignature"] = STANDARD.encode("a thought of the emulator").into();
        }
        parts
    }

    fn draw(&self, label: &str, rendering: Rendering) -> String {
        let (width, height) = pixels(self.model.family, &self.ratio, &self.size);
        let side = |pixels: u32| (pixels / rendering.shrunk).max(1);
        let drawing = Drawing::new(&self.prompt, label, side(width), side(height));
        let bytes = rendering.image.bytes.unwrap_or_default();
        self.format(rendering).encode_base64(&drawing, bytes)
    }

    fn format(&self, rendering: Rendering) -> ImageFormat {
        rendering.image.format.unwrap_or(self.format)
    }
}

/// The parts of a response as the events of a stream; the last one has what belongs to the whole.
pub(crate) fn events(mut whole: Value) -> Vec<Value> {
    let parts = whole["candidates"][0]["content"]["parts"].take();
    let Value::Array(mut parts) = parts else {
        return vec![whole];
    };
    let last = parts.pop();
    let common = json!({
        "modelVersion": whole["modelVersion"],
        "createTime": whole["createTime"],
        "responseId": whole["responseId"],
    });
    let event = |part: Value| {
        let mut event = common.clone();
        event["candidates"] = json!([{"content": {"role": "model", "parts": [part]}}]);
        event
    };
    let mut events: Vec<Value> = parts.into_iter().map(event).collect();
    whole["candidates"][0]["content"]["parts"] = Value::from_iter(last);
    events.push(whole);
    events
}

pub(crate) const RESPONSE_ID: &str = "emulated-response";
