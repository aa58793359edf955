//! Extracts the images from a model's response while it arrives.
//!
//! A push parser: fed the JSON text in whatever chunks the network delivers, it decodes each image's
//! base64 as it comes and leaves a reference to it (`"#0"`, `"#1"`, …) in a small JSON *skeleton*, which
//! serde reads at the end. The JSON text, the base64 text and the image are never in memory together.
//!
//! ```text
//! {"parts":[{"inlineData":{"mimeType":"image/png","data":"iVBORw0KGgo…"}}]}
//!                                                        └─ decoded ─┘
//! {"parts":[{"inlineData":{"mimeType":"image/png","data":"#0"}}]}
//! ```
//!
//! An image is the string under one of the keys `IMAGE_KEYS`, wherever it stands. Models send drafts
//! before the final image, so when another image begins, only the best of the earlier ones is kept (the family
//! decides which): at most two are held at any time.

use crate::image::{Blob, BlobWriter};
use base64::Engine as _;
use base64::engine::general_purpose::GeneralPurposeConfig;
use base64::engine::{DecodePaddingMode, Simd};
use std::sync::LazyLock;

/// The prefix of an image's number in the skeleton.
pub const REFERENCE: char = '#';

/// The limits of one response.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub skeleton_bytes: usize,
    pub image_bytes: usize,
    pub images: usize,
}

impl Limits {
    pub const DEFAULT: Limits =
        Limits { skeleton_bytes: 1 << 20, image_bytes: 64 << 20, images: 256 };

    fn check_image(self, len: usize) -> Result<(), ExtractError> {
        if len > self.image_bytes {
            Err(ExtractError::ImageTooLarge(self.image_bytes))
        } else {
            Ok(())
        }
    }
}

/// Why a response cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtractError {
    #[error("The response holds more than {0} bytes beside its images.")]
    SkeletonTooLarge(usize),
    #[error("The response holds an image of more than {0} bytes.")]
    ImageTooLarge(usize),
    #[error("The response holds more than {0} images.")]
    TooManyImages(usize),
    #[error("An image in the response is not valid base64.")]
    InvalidBase64,
    #[error("The response is not valid JSON.")]
    InvalidJson,
    #[error("The response ended early.")]
    Truncated,
}

/// The parser. Feed it, then [`finish`](ImageExtractor::finish).
pub struct ImageExtractor {
    limits: Limits,
    best_so_far: fn(&[u8]) -> Option<usize>,
    state: State,
    skeleton: Vec<u8>,
    /// What closes each object and array that is open.
    closers: Vec<u8>,
    /// The last string read outside images, as long as it can still be a key of interest.
    last_string: Vec<u8>,
    after_colon: bool,
    images: Vec<Option<Blob>>,
}

enum State {
    Structure,
    Text {
        escaped: bool,
    },
    /// A long string that is not read.
    Dropped {
        escaped: bool,
    },
    Image(Box<Base64>),
    ImageEscape(Box<Base64>, Escape),
}

/// A whole response: the JSON without its images, and those images that were kept.
#[derive(Debug)]
pub struct Extracted {
    pub skeleton: Vec<u8>,
    pub images: Vec<Option<Blob>>,
}

impl ImageExtractor {
    /// `best_so_far` reads a response's skeleton and names the image worth keeping in it.
    pub fn new(limits: Limits, best_so_far: fn(&[u8]) -> Option<usize>) -> ImageExtractor {
        ImageExtractor {
            limits,
            best_so_far,
            state: State::Structure,
            skeleton: Vec::new(),
            closers: Vec::new(),
            last_string: Vec::new(),
            after_colon: false,
            images: Vec::new(),
        }
    }

    /// Reads the next chunk of the response.
    pub fn feed(&mut self, mut input: &[u8]) -> Result<(), ExtractError> {
        while !input.is_empty() {
            let state = std::mem::replace(&mut self.state, State::Structure);
            (self.state, input) = match state {
                State::Structure => self.structure(input)?,
                State::Text { escaped } => self.text(input, escaped)?,
                State::Dropped { escaped } => self.dropped(input, escaped),
                State::Image(base64) => self.image(base64, input)?,
                State::ImageEscape(base64, escape) => image_escape(base64, escape, input)?,
            };
        }
        Ok(())
    }

    /// The bytes of image held now.
    pub fn held_bytes(&self) -> usize {
        let open = match &self.state {
            State::Image(base64) | State::ImageEscape(base64, _) => base64.bytes.written(),
            State::Structure | State::Text { .. } | State::Dropped { .. } => 0,
        };
        open + self.images.iter().flatten().map(Blob::len).sum::<usize>()
    }

    /// Ends the response. Whether the skeleton is whole JSON is for serde to say.
    pub fn finish(self) -> Result<Extracted, ExtractError> {
        match self.state {
            State::Structure if self.closers.is_empty() => {
                Ok(Extracted { skeleton: self.skeleton, images: self.images })
            }
            _ => Err(ExtractError::Truncated),
        }
    }

    fn structure<'a>(&mut self, input: &'a [u8]) -> Result<(State, &'a [u8]), ExtractError> {
        let end = memchr::memchr(b'"', input).unwrap_or(input.len());
        for &byte in &input[..end] {
            self.token(byte)?;
        }
        self.keep(&input[..end])?;
        match input.get(end) {
            Some(_) => Ok((self.string_begins()?, &input[end + 1..])),
            None => Ok((State::Structure, &[])),
        }
    }

    fn token(&mut self, byte: u8) -> Result<(), ExtractError> {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return Ok(()),
            b'{' => self.closers.push(b'}'),
            b'[' => self.closers.push(b']'),
            b'}' | b']' if self.closers.pop() != Some(byte) => {
                return Err(ExtractError::InvalidJson);
            }
            _ => {}
        }
        self.after_colon = byte == b':';
        Ok(())
    }

    fn string_begins(&mut self) -> Result<State, ExtractError> {
        let key = if self.after_colon { self.key() } else { None };
        self.last_string.clear();
        match key.as_deref() {
            Some(key) if IMAGE_KEYS.contains(&key) => {
                if self.images.len() == self.limits.images {
                    return Err(ExtractError::TooManyImages(self.limits.images));
                }
                self.drop_superseded();
                self.keep(b"\"")?;
                Ok(State::Image(Box::default()))
            }
            Some(key) if DROPPED_KEYS.contains(&key) => {
                self.keep(b"\"")?;
                Ok(State::Dropped { escaped: false })
            }
            _ => {
                self.keep(b"\"")?;
                Ok(State::Text { escaped: false })
            }
        }
    }

    /// The last string, with its escapes resolved.
    fn key(&self) -> Option<String> {
        let quoted = [b"\"", &self.last_string[..], b"\""].concat();
        serde_json::from_slice(&quoted).ok()
    }

    fn text<'a>(
        &mut self,
        input: &'a [u8],
        escaped: bool,
    ) -> Result<(State, &'a [u8]), ExtractError> {
        let (run, state, rest) = string_run(input, escaped);
        let room = (MAX_KEY_BYTES + 1).saturating_sub(self.last_string.len());
        self.last_string.extend_from_slice(&run[..run.len().min(room)]);
        self.keep(run)?;
        match state {
            Run::Open { escaped } => Ok((State::Text { escaped }, rest)),
            Run::Closed => {
                self.string_ends()?;
                Ok((State::Structure, rest))
            }
        }
    }

    fn dropped<'a>(&mut self, input: &'a [u8], escaped: bool) -> (State, &'a [u8]) {
        let (_, state, rest) = string_run(input, escaped);
        match state {
            Run::Open { escaped } => (State::Dropped { escaped }, rest),
            Run::Closed => {
                self.skeleton.push(b'"');
                self.after_colon = false;
                (State::Structure, rest)
            }
        }
    }

    fn string_ends(&mut self) -> Result<(), ExtractError> {
        self.after_colon = false;
        self.keep(b"\"")
    }

    fn image<'a>(
        &mut self,
        mut base64: Box<Base64>,
        input: &'a [u8],
    ) -> Result<(State, &'a [u8]), ExtractError> {
        let end = memchr::memchr2(b'"', b'\\', input).unwrap_or(input.len());
        base64.push(&input[..end])?;
        self.limits.check_image(base64.bytes.written())?;
        match input.get(end) {
            None => Ok((State::Image(base64), &[])),
            Some(b'\\') => Ok((State::ImageEscape(base64, Escape::default()), &input[end + 1..])),
            Some(_) => {
                let reference = format!("{REFERENCE}{}", self.images.len());
                let image = base64.finish()?;
                self.limits.check_image(image.len())?;
                self.images.push(Some(image));
                self.keep(reference.as_bytes())?;
                self.string_ends()?;
                Ok((State::Structure, &input[end + 1..]))
            }
        }
    }

    /// Another image begins: of those before it only the best so far can still be chosen.
    fn drop_superseded(&mut self) {
        if self.images.iter().flatten().count() == 0 {
            return;
        }
        let mut response_so_far = self.skeleton.clone();
        response_so_far.extend_from_slice(b"\"\"");
        response_so_far.extend(self.closers.iter().rev());
        let best = (self.best_so_far)(&response_so_far);
        for (number, image) in self.images.iter_mut().enumerate() {
            if Some(number) != best {
                *image = None;
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), ExtractError> {
        self.skeleton.extend_from_slice(bytes);
        match self.skeleton.len() > self.limits.skeleton_bytes {
            true => Err(ExtractError::SkeletonTooLarge(self.limits.skeleton_bytes)),
            false => Ok(()),
        }
    }
}

enum Run {
    Open { escaped: bool },
    Closed,
}

/// Splits off what belongs to the string up to its next landmark: its end, or a backslash with what
/// that escapes.
fn string_run(input: &[u8], escaped: bool) -> (&[u8], Run, &[u8]) {
    if escaped {
        return (&input[..1], Run::Open { escaped: false }, &input[1..]);
    }
    match memchr::memchr2(b'"', b'\\', input) {
        None => (input, Run::Open { escaped: false }, &[]),
        Some(end) if input[end] == b'\\' => {
            (&input[..=end], Run::Open { escaped: true }, &input[end + 1..])
        }
        Some(end) => (&input[..end], Run::Closed, &input[end + 1..]),
    }
}

/// A JSON escape inside an image's base64; its first character after the backslash, then hex digits.
#[derive(Default)]
struct Escape {
    hex_digits: Option<u32>,
    value: u32,
}

fn image_escape(
    mut base64: Box<Base64>,
    mut escape: Escape,
    input: &[u8],
) -> Result<(State, &[u8]), ExtractError> {
    let (byte, rest) = (input[0], &input[1..]);
    let resolved = match (escape.hex_digits, byte) {
        (None, b'u') => {
            escape.hex_digits = Some(0);
            None
        }
        (None, b'/') => Some(b'/'),
        (None, b'n' | b'r' | b't') => Some(b' '),
        (None, b'"' | b'\\' | b'b' | b'f') => return Err(ExtractError::InvalidBase64),
        (None, _) => return Err(ExtractError::InvalidJson),
        (Some(digits), _) => {
            let digit = char::from(byte).to_digit(16).ok_or(ExtractError::InvalidJson)?;
            escape.value = escape.value * 16 + digit;
            escape.hex_digits = Some(digits + 1);
            (digits == 3).then(|| ascii_of_base64(escape.value)).transpose()?
        }
    };
    let Some(byte) = resolved else {
        return Ok((State::ImageEscape(base64, escape), rest));
    };
    base64.push(&[byte])?;
    Ok((State::Image(base64), rest))
}

fn ascii_of_base64(value: u32) -> Result<u8, ExtractError> {
    match u8::try_from(value) {
        Ok(b'\n' | b'\r' | b'\t') => Ok(b' '),
        Ok(byte) if byte.is_ascii_graphic() || byte == b' ' => Ok(byte),
        _ => Err(ExtractError::InvalidBase64),
    }
}

/// Decodes base64 that arrives in chunks: standard or url-safe alphabet, padding optional, spaces ignored.
#[derive(Default)]
struct Base64 {
    bytes: BlobWriter,
    /// Symbols that do not make up four yet.
    pending: [u8; 4],
    pending_len: usize,
    padding: usize,
}

impl Base64 {
    fn push(&mut self, run: &[u8]) -> Result<(), ExtractError> {
        let mut rest = run;
        while let (true, Some((&byte, after))) =
            (self.pending_len > 0 || self.padding > 0, rest.split_first())
        {
            self.symbol(byte)?;
            rest = after;
        }
        for &byte in self.push_quads(rest) {
            self.symbol(byte)?;
        }
        Ok(())
    }

    /// Decodes whole groups of four symbols, many at a time, and returns the rest.
    fn push_quads<'a>(&mut self, mut run: &'a [u8]) -> &'a [u8] {
        loop {
            let room = self.bytes.room();
            let symbols = (run.len() / 4).min(room.len() / 3) * 4;
            // The slow path handles padding and everything else.
            let symbols = if run[..symbols].ends_with(b"=") { symbols - 4 } else { symbols };
            match SIMD.decode_slice(&run[..symbols], room) {
                Ok(decoded) if symbols > 0 => self.bytes.fill(decoded),
                _ => return run,
            }
            run = &run[symbols..];
        }
    }

    fn symbol(&mut self, byte: u8) -> Result<(), ExtractError> {
        match byte {
            b' ' => Ok(()),
            b'=' => {
                self.padding += 1;
                Ok(())
            }
            _ if byte < b' ' => Err(ExtractError::InvalidJson),
            _ if self.padding > 0 => Err(ExtractError::InvalidBase64),
            b'-' => self.standard_symbol(b'+'),
            b'_' => self.standard_symbol(b'/'),
            _ => self.standard_symbol(byte),
        }
    }

    fn standard_symbol(&mut self, byte: u8) -> Result<(), ExtractError> {
        self.pending[self.pending_len] = byte;
        self.pending_len += 1;
        if self.pending_len == 4 {
            self.decode_pending()?;
        }
        Ok(())
    }

    fn decode_pending(&mut self) -> Result<(), ExtractError> {
        let symbols = &self.pending[..self.pending_len];
        let decoded = SIMD
            .decode_slice(symbols, self.bytes.room())
            .map_err(|_| ExtractError::InvalidBase64)?;
        self.bytes.fill(decoded);
        self.pending_len = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<Blob, ExtractError> {
        match (self.pending_len, self.padding) {
            (0, 0) => {}
            (2, 0 | 2) | (3, 0 | 1) => self.decode_pending()?,
            _ => return Err(ExtractError::InvalidBase64),
        }
        Ok(self.bytes.finish())
    }
}

static SIMD: LazyLock<Simd> = LazyLock::new(|| {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true);
    Simd::standard(config)
});

/// The keys whose strings are images: Imagen's and Gemini's.
const IMAGE_KEYS: [&str; 2] = ["bytesBase64Encoded", "data"];

/// The keys whose strings may be long and are never read.
const DROPPED_KEYS: [&str; 1] = ["thoughtSignature"];

/// A longer string is not a key of interest, even with every character escaped.
const MAX_KEY_BYTES: usize = "bytesBase64Encoded".len() * "\\u0000".len();

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn extract(chunks: &[&[u8]], limits: Limits) -> Result<Extracted, ExtractError> {
        let mut extractor = ImageExtractor::new(limits, |_| None);
        for chunk in chunks {
            extractor.feed(chunk)?;
        }
        extractor.finish()
    }

    fn extract_whole(text: &str) -> Result<Extracted, ExtractError> {
        extract(&[text.as_bytes()], Limits::DEFAULT)
    }

    fn image(extracted: &Extracted, number: usize) -> Vec<u8> {
        extracted.images[number].as_ref().expect("kept").to_vec()
    }

    #[test]
    fn the_image_is_decoded_and_a_reference_stands_in_its_place() {
        let extracted = extract_whole(r#"{"a": 1, "data": "aGVsbG8=", "b": "data"}"#).unwrap();
        assert_eq!(extracted.skeleton, br##"{"a": 1, "data": "#0", "b": "data"}"##);
        assert_eq!(image(&extracted, 0), b"hello");
    }

    #[test]
    fn only_a_string_under_an_image_key_is_extracted() {
        let text = r#"{"x": ["data", "aGVsbG8="], "data": 5, "mydata": "aGVsbG8=", "y": {"data": {"z": "aGVsbG8="}}}"#;
        let extracted = extract_whole(text).unwrap();
        assert_eq!(extracted.skeleton, text.as_bytes());
        assert!(extracted.images.is_empty());
    }

    #[test]
    fn a_key_is_recognised_behind_escapes_and_white_space() {
        let extracted = extract_whole("{\"d\\u0061ta\"\n : \r\t\"aGVsbG8\"}").unwrap();
        assert_eq!(image(&extracted, 0), b"hello");
    }

    #[test]
    fn signatures_are_dropped_however_long() {
        let signature = "x\\\"y".repeat(1 << 20);
        let extracted =
            extract_whole(&format!(r#"{{"thoughtSignature": "{signature}", "a": "b"}}"#)).unwrap();
        assert_eq!(extracted.skeleton, br#"{"thoughtSignature": "", "a": "b"}"#);
    }

    #[test]
    fn escapes_spaces_and_the_url_safe_alphabet_are_understood() {
        let bytes = [0xfb, 0xef, 0xbe, 0xff, 0xff, 0xff, 0x00];
        for text in [
            "++++////AA==",
            "----____AA",
            r"++++\/\/\/\/AA\u003d\u003D",
            r"++ ++\n////\r\n\tAA==",
            r"\u002b+-+__//A A=",
        ] {
            let extracted = extract_whole(&format!(r#"{{"data": "{text}"}}"#));
            match text.ends_with("A A=") {
                true => assert_eq!(extracted.unwrap_err(), ExtractError::InvalidBase64, "{text}"),
                false => assert_eq!(image(&extracted.unwrap(), 0), bytes, "{text}"),
            }
        }
    }

    #[test]
    fn what_is_not_base64_or_not_json_is_refused() {
        for text in [
            "A",
            "AAAAA",
            "AA=A",
            "AA===",
            "AAA==",
            "====",
            "AAAA=",
            "AA AA*",
            "\u{e9}AAA",
            r"AA\u00e9A",
            r#"AA\"A"#,
        ] {
            let error = extract_whole(&format!(r#"{{"data": "{text}"}}"#)).unwrap_err();
            assert_eq!(error, ExtractError::InvalidBase64, "{text}");
        }
        for text in ["AA\nAA", "AA\u{0}A", r"AA\xA", r"AA\u00zzA"] {
            let error = extract_whole(&format!(r#"{{"data": "{text}"}}"#)).unwrap_err();
            assert_eq!(error, ExtractError::InvalidJson, "{text:?}");
        }
        assert_eq!(extract_whole("{]").unwrap_err(), ExtractError::InvalidJson);
    }

    #[test]
    fn a_response_that_stops_anywhere_is_truncated() {
        let text = r#"{"data": "aGVs\u003d", "b": ["\\"]}"#;
        for end in 1..text.len() {
            let error = extract(&[&text.as_bytes()[..end]], Limits::DEFAULT).unwrap_err();
            assert!(
                matches!(error, ExtractError::Truncated | ExtractError::InvalidBase64),
                "{end}"
            );
        }
    }

    #[test]
    fn all_limits_are_kept() {
        let limits = Limits { skeleton_bytes: 20, image_bytes: 9, images: 1 };
        let response = |image: &str| format!(r#"{{"data": "{image}"}}"#);
        assert!(extract(&[response("AAAAAAAAAAAA").as_bytes()], limits).is_ok());
        let too_large = extract(&[response("AAAAAAAAAAAAAA").as_bytes()], limits).unwrap_err();
        assert_eq!(too_large, ExtractError::ImageTooLarge(9));
        let too_long = extract(&[br#"{"text": "a long text"}"#], limits).unwrap_err();
        assert_eq!(too_long, ExtractError::SkeletonTooLarge(20));
        let too_many = extract(&[br#"{"data":"","data":""}"#], limits).unwrap_err();
        assert_eq!(too_many, ExtractError::TooManyImages(1));
    }

    #[test]
    fn drafts_are_dropped_when_the_next_image_begins() {
        let part =
            |flag: &str, data: &str| format!(r#"{{"inlineData": {{"data": "{data}"}}{flag}}}"#);
        let parts = [
            part(r#", "thought": true"#, "AAAA"),
            part("", "BBBB"),
            part(r#", "thought": true"#, "CCCC"),
        ];
        let response =
            format!(r#"{{"candidates": [{{"content": {{"parts": [{}]}}}}]}}"#, parts.join(","));
        let mut extractor = ImageExtractor::new(Limits::DEFAULT, crate::model::gemini::best_so_far);
        let mut most_held = 0;
        for byte in response.bytes() {
            extractor.feed(&[byte]).unwrap();
            most_held = most_held.max(extractor.held_bytes());
        }
        assert_eq!(most_held, 6);
        let extracted = extractor.finish().unwrap();
        let kept: Vec<_> = extracted.images.iter().map(Option::is_some).collect();
        assert_eq!(kept, [false, true, true]);
    }

    /// What a plain reader makes of the same text: parse it all, then decode every image.
    fn plainly(text: &str) -> (Value, Vec<Vec<u8>>) {
        fn walk(value: &mut Value, images: &mut Vec<Vec<u8>>) {
            match value {
                Value::Array(items) => items.iter_mut().for_each(|item| walk(item, images)),
                Value::Object(map) => map.iter_mut().for_each(|(key, value)| match value {
                    Value::String(text) if key == "data" || key == "bytesBase64Encoded" => {
                        let symbols: String = text
                            .chars()
                            .filter(|c| !" \n\r\t=".contains(*c))
                            .map(|c| match c {
                                '-' => '+',
                                '_' => '/',
                                c => c,
                            })
                            .collect();
                        images
                            .push(base64::prelude::BASE64_STANDARD_NO_PAD.decode(symbols).unwrap());
                        *text = format!("#{}", images.len() - 1);
                    }
                    Value::String(text) if key == "thoughtSignature" => text.clear(),
                    other => walk(other, images),
                }),
                _ => {}
            }
        }
        let mut value: Value = serde_json::from_str(text).unwrap();
        let mut images = Vec::new();
        walk(&mut value, &mut images);
        (value, images)
    }

    /// Writes JSON text with the freedom a server has: spaces, escapes, either alphabet, with or without padding.
    fn write(value: &Value, freedom: &mut impl FnMut(u32) -> u32, out: &mut String) {
        fn space(freedom: &mut impl FnMut(u32) -> u32, out: &mut String) {
            out.push_str(["", "", " ", "\n  ", "\t\r"][freedom(5) as usize]);
        }
        fn string(text: &str, freedom: &mut impl FnMut(u32) -> u32, out: &mut String) {
            out.push('"');
            for c in text.chars() {
                match (c, freedom(8)) {
                    ('/', 0..4) => out.push_str("\\/"),
                    (c, 0) if c.is_ascii() => out.push_str(&format!("\\u{:04x}", c as u32)),
                    (c, 1) if c.is_ascii() => out.push_str(&format!("\\u{:04X}", c as u32)),
                    ('"' | '\\', _) => out.extend(['\\', c]),
                    (c, _) if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
                    (c, _) => out.push(c),
                }
            }
            out.push('"');
        }
        space(freedom, out);
        match value {
            Value::Array(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    out.push_str(if i > 0 { "," } else { "" });
                    write(item, freedom, out);
                }
                out.push(']');
            }
            Value::Object(map) => {
                out.push('{');
                for (i, (key, item)) in map.iter().enumerate() {
                    out.push_str(if i > 0 { "," } else { "" });
                    space(freedom, out);
                    string(key, freedom, out);
                    space(freedom, out);
                    out.push(':');
                    write(item, freedom, out);
                }
                out.push('}');
            }
            Value::String(text) => string(text, freedom, out),
            other => out.push_str(&other.to_string()),
        }
        space(freedom, out);
    }

    fn base64_text() -> impl Strategy<Value = Value> {
        let bytes = prop::collection::vec(any::<u8>(), 0..300);
        (bytes, 0..4u8, any::<prop::sample::Index>()).prop_map(|(bytes, style, place)| {
            let mut text = match style {
                0 => base64::prelude::BASE64_STANDARD.encode(&bytes),
                1 => base64::prelude::BASE64_URL_SAFE.encode(&bytes),
                2 => base64::prelude::BASE64_STANDARD_NO_PAD.encode(&bytes),
                _ => base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(&bytes),
            };
            if place.index(4) == 0 {
                text.insert(
                    place.index(text.len() + 1),
                    [' ', '\n', '\r', '\t'][place.index(97) % 4],
                );
            }
            json!(text)
        })
    }

    fn document() -> impl Strategy<Value = Value> {
        let text = prop_oneof![any::<String>(), "[a-z\"\\\\/#0-9 ]{0,12}", Just("data".to_owned())];
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(|b| json!(b)),
            any::<i32>().prop_map(|n| json!(n)),
            text.clone().prop_map(|t| json!(t)),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            let field = prop_oneof![
                3 => (text.clone(), inner.clone()).prop_filter("no image", |(key, _)| key != "data"),
                2 => (prop_oneof![Just("data".to_owned()), Just("bytesBase64Encoded".to_owned())], base64_text()),
                1 => (Just("data".to_owned()), any::<u32>().prop_map(|n| json!(n))),
                1 => (Just("thoughtSignature".to_owned()), text.clone().prop_map(|t| json!(t))),
            ];
            let object =
                prop::collection::vec(field, 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect()));
            prop_oneof![object, prop::collection::vec(inner, 0..4).prop_map(Value::Array)]
        })
    }

    /// A small deterministic source of choices.
    fn choices(mut seed: u64) -> impl FnMut(u32) -> u32 {
        move |n| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((seed >> 33) as u32) % n
        }
    }

    proptest! {
        #[test]
        fn any_document_in_any_chunks_is_read_as_a_plain_reader_reads_it(
            value in document(), seed in any::<u64>(), longest in 1u32..200,
        ) {
            let mut freedom = choices(seed);
            let mut text = String::new();
            write(&value, &mut freedom, &mut text);
            let (expected, images) = plainly(&text);

            let mut extractor = ImageExtractor::new(Limits::DEFAULT, |_| None);
            let mut compared = 0;
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at((1 + freedom(longest) as usize).min(rest.len()));
                extractor.feed(chunk).unwrap();
                for (number, image) in extractor.images.iter().enumerate().skip(compared) {
                    if let Some(image) = image {
                        prop_assert_eq!(&image.to_vec(), &images[number]);
                        prop_assert_eq!(image.crc32c(), crc32c::crc32c(&images[number]));
                    }
                }
                compared = extractor.images.len();
                rest = after;
            }
            let extracted = extractor.finish().unwrap();
            prop_assert_eq!(compared, images.len());
            prop_assert!(extracted.images.last().is_none_or(|last| last.is_some()));
            prop_assert_eq!(serde_json::from_slice::<Value>(&extracted.skeleton).unwrap(), expected);
        }

        #[test]
        fn garbage_is_refused_or_read_but_never_panics(text in "[\\[\\]{}:,\"\\\\dat=/uA0-9 \n#-]{0,60}", cut in 0usize..60) {
            let cut = cut.min(text.len());
            let _ = extract(&[&text.as_bytes()[..cut], &text.as_bytes()[cut..]], Limits::DEFAULT);
        }
    }
}
