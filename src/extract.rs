//! Extracts the images from a model's response while it arrives.
//!
//! A push parser: it takes the JSON text in the chunks that the network delivers, decodes each image's
//! base64 as it arrives and leaves a reference to the image (`"#0"`, `"#1"`, …) in a small JSON
//! *skeleton*. The JSON text, the base64 text and the image are never in memory together.
//!
//! ```text
//! {"parts":[{"inlineData":{"mimeType":"image/png","data":"iVBORw0KGgo…"}}]}
//!                                                        └─ decoded ─┘
//! {"parts":[{"inlineData":{"mimeType":null,"data":"#0"}}]}
//! ```
//!
//! Reading is lenient. The skeleton holds only the values of `READ_KEYS`; all other values are
//! skipped, whatever their type, length or depth. Values that do not fit into the skeleton are
//! dropped without an error. An image is a string under one of `IMAGE_KEYS`; an unusable image
//! leaves an empty string. The response is complete when its root value is.
//!
//! Models send drafts before the final image. When another image begins, only the best of the earlier
//! ones is kept (the family decides which), so at most two are in memory at any time.

use crate::image::{Blob, BlobWriter, Format};
use base64::Engine as _;
use base64::engine::general_purpose::GeneralPurposeConfig;
use base64::engine::{DecodePaddingMode, Simd};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::sync::LazyLock;

/// The prefix of an image's number in the skeleton.
pub const REFERENCE: char = '#';

/// Limits of what is kept of one response; the rest is dropped.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The approximate memory of the skeleton. Beyond it, only values that lead to an image are added.
    pub skeleton_bytes: usize,
    /// Bytes of one image.
    pub image_bytes: usize,
    /// The number of images.
    pub images: usize,
}

impl Limits {
    pub const DEFAULT: Limits =
        Limits { skeleton_bytes: 1 << 20, image_bytes: 64 << 20, images: 256 };
}

/// Why a response cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtractError {
    #[error("The response is not valid JSON.")]
    InvalidJson,
    #[error("The response ended early.")]
    Truncated,
}

/// Why a string under an image key is not a usable image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("The image data from Vertex AI was empty or inaccessible.")]
    Empty,
    #[error("The model sent an image that is not valid base64.")]
    NotBase64,
    #[error("The model sent {0} bytes that are not an image of a known type.")]
    UnknownFormat(usize),
    #[error("The model sent an image of more than {0} bytes.")]
    TooLarge(usize),
    #[error("The model sent more than {0} images.")]
    TooMany(usize),
}

/// The parser. Feed it until it [is complete](ImageExtractor::is_complete), then [`finish`](ImageExtractor::finish).
pub struct ImageExtractor {
    limits: Limits,
    best_so_far: fn(&Value) -> Option<usize>,
    state: State,
    expected: Expected,
    /// The objects and arrays that are open, outermost first.
    open: Vec<Frame>,
    /// The text of the key, string or scalar being read.
    text: Vec<u8>,
    root: Value,
    skeleton_bytes: usize,
    images: Vec<Option<Blob>>,
    unusable: Option<Unusable>,
}

/// A complete response: the JSON without its images, and those images that were kept.
#[derive(Debug)]
pub struct Extracted {
    pub skeleton: Value,
    pub images: Vec<Option<Blob>>,
    /// The problem of the last unusable image.
    pub unusable: Option<Unusable>,
}

enum State {
    Structure,
    /// A key or a string that is read.
    Text {
        escaped: bool,
    },
    /// A number, `true`, `false` or `null`.
    Scalar,
    Skipped(Skip),
    Image(Box<Base64>),
    ImageEscape(Box<Base64>, Escape),
    Complete,
}

/// What may come next between tokens.
#[derive(Clone, Copy)]
enum Expected {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
}

/// A value that is not read.
struct Skip {
    /// The objects and arrays that are open in it.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The value that the skeleton gets in its place.
    value: Value,
}

/// An open object or array of the skeleton.
struct Frame {
    value: Value,
    /// The key of the object's next value.
    key: Option<String>,
    /// Whether the next value is read.
    reads: bool,
    /// Whether every key is read, as in an error.
    reads_all: bool,
    holds_image: bool,
    /// The array's last element was added beyond the limit: the next one replaces it.
    replaces_last: bool,
}

impl ImageExtractor {
    /// `best_so_far` takes the skeleton so far and returns the number of the image to keep.
    pub fn new(limits: Limits, best_so_far: fn(&Value) -> Option<usize>) -> ImageExtractor {
        ImageExtractor {
            limits,
            best_so_far,
            state: State::Structure,
            expected: Expected::Value,
            open: Vec::new(),
            text: Vec::new(),
            root: Value::Null,
            skeleton_bytes: 0,
            images: Vec::new(),
            unusable: None,
        }
    }

    /// Reads the next chunk of the response, up to the end of its root value.
    ///
    /// # Errors
    /// If the text is not JSON.
    pub fn feed(&mut self, mut input: &[u8]) -> Result<(), ExtractError> {
        while !input.is_empty() && !self.is_complete() {
            let state = std::mem::replace(&mut self.state, State::Structure);
            (self.state, input) = match state {
                State::Structure => self.structure(input)?,
                State::Text { escaped } => self.text(input, escaped),
                State::Scalar => self.scalar(input)?,
                State::Skipped(skip) => self.skipped(skip, input),
                State::Image(base64) => self.image(base64, input),
                State::ImageEscape(base64, escape) => self.image_escape(base64, escape, input),
                State::Complete => (State::Complete, input),
            };
        }
        Ok(())
    }

    /// Whether the root value has ended.
    pub fn is_complete(&self) -> bool {
        matches!(self.state, State::Complete)
    }

    /// The bytes of image held now.
    pub fn held_bytes(&self) -> usize {
        let open = match &self.state {
            State::Image(base64) | State::ImageEscape(base64, _) => base64.bytes.written(),
            State::Structure
            | State::Text { .. }
            | State::Scalar
            | State::Skipped(_)
            | State::Complete => 0,
        };
        open + self.images.iter().flatten().map(Blob::len).sum::<usize>()
    }

    /// The result.
    ///
    /// # Errors
    /// If the response is not complete.
    pub fn finish(mut self) -> Result<Extracted, ExtractError> {
        match self.state {
            State::Complete => {}
            State::Scalar if self.open.is_empty() => self.root = parse_scalar(&self.text)?,
            _ => return Err(ExtractError::Truncated),
        }
        Ok(Extracted { skeleton: self.root, images: self.images, unusable: self.unusable })
    }

    fn structure<'a>(&mut self, input: &'a [u8]) -> Result<(State, &'a [u8]), ExtractError> {
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        match input.iter().position(|byte| !is_space(byte)) {
            None => Ok((State::Structure, &[])),
            Some(start) => Ok((self.token(input[start])?, &input[start + 1..])),
        }
    }

    fn token(&mut self, byte: u8) -> Result<State, ExtractError> {
        let in_object = self.open.last().is_some_and(|frame| frame.value.is_object());
        match (self.expected, byte) {
            (Expected::Key | Expected::KeyOrEnd, b'"') => Ok(self.text_begins()),
            (Expected::KeyOrEnd, b'}') | (Expected::ValueOrEnd, b']') => Ok(self.container_ends()),
            (Expected::CommaOrEnd, b'}') if in_object => Ok(self.container_ends()),
            (Expected::CommaOrEnd, b']') if !in_object => Ok(self.container_ends()),
            (Expected::CommaOrEnd, b',') => {
                self.expected = if in_object { Expected::Key } else { Expected::Value };
                Ok(State::Structure)
            }
            (Expected::Colon, b':') => {
                self.expected = Expected::Value;
                Ok(State::Structure)
            }
            (Expected::Value | Expected::ValueOrEnd, _) => self.value_begins(byte),
            _ => Err(ExtractError::InvalidJson),
        }
    }

    fn value_begins(&mut self, byte: u8) -> Result<State, ExtractError> {
        let (reads, reads_all, key) = match self.open.last() {
            None => (true, false, None),
            Some(frame) => (frame.reads, frame.reads_all, frame.key.as_deref()),
        };
        match byte {
            b'"' if reads && !reads_all && key.is_some_and(|key| IMAGE_KEYS.contains(&key)) => {
                Ok(self.image_begins())
            }
            b'"' if reads => Ok(self.text_begins()),
            b'"' => Ok(State::Skipped(Skip::string(Value::Null))),
            b'{' | b'[' if reads && self.open.len() < MAX_DEPTH => {
                let reads_all = reads_all || key == Some(ERROR_KEY);
                let (value, expected) = match byte {
                    b'{' => (Value::Object(Map::new()), Expected::KeyOrEnd),
                    _ => (Value::Array(Vec::new()), Expected::ValueOrEnd),
                };
                self.expected = expected;
                self.open.push(Frame {
                    value,
                    key: None,
                    reads: true,
                    reads_all,
                    holds_image: false,
                    replaces_last: false,
                });
                Ok(State::Structure)
            }
            b'{' | b'[' => Ok(State::Skipped(Skip {
                depth: 1,
                in_string: false,
                escaped: false,
                value: Value::Null,
            })),
            b'}' | b']' | b',' | b':' => Err(ExtractError::InvalidJson),
            _ => {
                self.text.clear();
                self.text.push(byte);
                Ok(State::Scalar)
            }
        }
    }

    fn value_ends(&mut self, value: Value, holds_image: bool) -> State {
        self.skeleton_bytes += match &value {
            Value::Object(_) => OBJECT_BYTES,
            Value::String(text) => VALUE_BYTES + text.len(),
            _ => VALUE_BYTES,
        };
        let is_full = self.is_full();
        match self.open.last_mut() {
            None => {
                self.root = value;
                State::Complete
            }
            Some(frame) => {
                self.skeleton_bytes += frame.key.as_ref().map_or(0, String::len);
                frame.add(value, holds_image, is_full);
                self.expected = Expected::CommaOrEnd;
                State::Structure
            }
        }
    }

    fn container_ends(&mut self) -> State {
        match self.open.pop() {
            Some(frame) => self.value_ends(frame.value, frame.holds_image),
            None => State::Structure,
        }
    }

    fn text_begins(&mut self) -> State {
        self.text.clear();
        State::Text { escaped: false }
    }

    fn text<'a>(&mut self, input: &'a [u8], escaped: bool) -> (State, &'a [u8]) {
        let (run, state, rest) = string_run(input, escaped);
        let limit = if self.is_full() { MAX_TEXT_BYTES_WHEN_FULL } else { MAX_TEXT_BYTES };
        let room = limit.saturating_sub(self.text.len());
        self.text.extend_from_slice(&run[..run.len().min(room)]);
        match (state, self.expected) {
            (Run::Open { escaped }, _) => (State::Text { escaped }, rest),
            (Run::Closed, Expected::Key | Expected::KeyOrEnd) => {
                self.key_ends();
                (State::Structure, rest)
            }
            (Run::Closed, _) => {
                let text = unescape(&self.text, self.text.len() >= limit);
                (self.value_ends(Value::String(text), false), rest)
            }
        }
    }

    fn key_ends(&mut self) {
        self.expected = Expected::Colon;
        if let Some(frame) = self.open.last_mut() {
            let is_short = self.text.len() <= MAX_KEY_BYTES;
            let key = is_short.then(|| unescape(&self.text, false));
            let key = key.map(|key| if frame.reads_all { key } else { camel_case(&key).into() });
            let is_read = |key: &String| frame.reads_all || READ_KEYS.contains(&key.as_str());
            frame.reads = key.as_ref().is_some_and(is_read);
            frame.key = key;
        }
    }

    fn scalar<'a>(&mut self, input: &'a [u8]) -> Result<(State, &'a [u8]), ExtractError> {
        let ends =
            |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n') || b",:[]{}\"".contains(byte);
        let end = input.iter().position(ends).unwrap_or(input.len());
        let room = MAX_TEXT_BYTES.saturating_sub(self.text.len());
        self.text.extend_from_slice(&input[..end.min(room)]);
        if end == input.len() {
            return Ok((State::Scalar, &[]));
        }
        let value = parse_scalar(&self.text)?;
        Ok((self.value_ends(value, false), &input[end..]))
    }

    fn skipped<'a>(&mut self, mut skip: Skip, input: &'a [u8]) -> (State, &'a [u8]) {
        let rest = if skip.in_string {
            let (_, run, rest) = string_run(input, skip.escaped);
            (skip.in_string, skip.escaped) = match run {
                Run::Open { escaped } => (true, escaped),
                Run::Closed => (false, false),
            };
            rest
        } else {
            let Some(at) = input.iter().position(|byte| b"\"[]{}".contains(byte)) else {
                return (State::Skipped(skip), &[]);
            };
            match input[at] {
                b'"' => skip.in_string = true,
                b'{' | b'[' => skip.depth += 1,
                _ => skip.depth -= 1,
            }
            &input[at + 1..]
        };
        match skip.depth == 0 && !skip.in_string {
            true => (self.value_ends(skip.value, false), rest),
            false => (State::Skipped(skip), rest),
        }
    }

    fn image_begins(&mut self) -> State {
        if self.images.len() >= self.limits.images {
            return self.skip_unusable(Unusable::TooMany(self.limits.images));
        }
        self.drop_superseded();
        State::Image(Box::default())
    }

    fn image<'a>(&mut self, mut base64: Box<Base64>, input: &'a [u8]) -> (State, &'a [u8]) {
        let end = memchr::memchr2(b'"', b'\\', input).unwrap_or(input.len());
        if let Err(problem) = base64.push(&input[..end]).and_then(|()| self.check_length(&base64)) {
            return (self.skip_unusable(problem), &input[end..]);
        }
        match input.get(end) {
            None => (State::Image(base64), &[]),
            Some(b'\\') => (State::ImageEscape(base64, Escape::default()), &input[end + 1..]),
            Some(_) => match self.finish_image(*base64) {
                Ok(image) => {
                    let reference = format!("{REFERENCE}{}", self.images.len());
                    self.images.push(Some(image));
                    (self.value_ends(Value::String(reference), true), &input[end + 1..])
                }
                Err(problem) => (self.skip_unusable(problem), &input[end..]),
            },
        }
    }

    fn image_escape<'a>(
        &mut self,
        mut base64: Box<Base64>,
        mut escape: Escape,
        input: &'a [u8],
    ) -> (State, &'a [u8]) {
        match escape.push(input[0]) {
            Ok(None) => (State::ImageEscape(base64, escape), &input[1..]),
            Ok(Some(byte)) => match base64.push(&[byte]) {
                Ok(()) => (State::Image(base64), &input[1..]),
                Err(problem) => (self.skip_unusable(problem), &input[1..]),
            },
            // After `\u`, the byte may already end the string.
            Err(problem) if escape.hex_digits.is_some() => (self.skip_unusable(problem), input),
            Err(problem) => (self.skip_unusable(problem), &input[1..]),
        }
    }

    fn finish_image(&self, base64: Base64) -> Result<Blob, Unusable> {
        let image = base64.finish()?;
        match (image.len(), Format::of(&image)) {
            (0, _) => Err(Unusable::Empty),
            (len, _) if len > self.limits.image_bytes => {
                Err(Unusable::TooLarge(self.limits.image_bytes))
            }
            (len, None) => Err(Unusable::UnknownFormat(len)),
            (_, Some(_)) => Ok(image),
        }
    }

    fn check_length(&self, base64: &Base64) -> Result<(), Unusable> {
        match base64.bytes.written() > self.limits.image_bytes {
            true => Err(Unusable::TooLarge(self.limits.image_bytes)),
            false => Ok(()),
        }
    }

    /// Skips the rest of an image's string.
    fn skip_unusable(&mut self, problem: Unusable) -> State {
        self.unusable = Some(problem);
        State::Skipped(Skip::string(Value::String(String::new())))
    }

    /// Drops all images but the best so far, because another image begins. That one may be unusable, so it replaces
    /// none yet.
    fn drop_superseded(&mut self) {
        if self.images.iter().flatten().count() == 0 {
            return;
        }
        let (mut response_so_far, mut holds_image) = (Value::Null, false);
        for frame in self.open.iter().rev() {
            let (value, key) = (frame.value.clone(), frame.key.clone());
            let mut outer = Frame { value, key, ..*frame };
            outer.add(response_so_far, holds_image, false);
            (response_so_far, holds_image) = (outer.value, outer.holds_image);
        }
        let best = (self.best_so_far)(&response_so_far);
        for (number, image) in self.images.iter_mut().enumerate() {
            if Some(number) != best {
                *image = None;
            }
        }
    }

    fn is_full(&self) -> bool {
        self.skeleton_bytes > self.limits.skeleton_bytes
    }
}

impl Frame {
    /// Adds the next value. A full skeleton keeps the values that lead to an image, the members of objects that
    /// are read, and the last element of each array.
    fn add(&mut self, value: Value, holds_image: bool, is_full: bool) {
        // A repeated key, or its other spelling, must not hide an image.
        let may_replace = holds_image || !self.holds_image;
        self.holds_image |= holds_image;
        let value = if self.reads { value } else { Value::Null };
        match (&mut self.value, self.key.take()) {
            (Value::Object(members), Some(key))
                if (self.reads || !is_full) && (may_replace || !members.contains_key(&key)) =>
            {
                members.insert(key, value);
            }
            (Value::Array(elements), _) => {
                if self.replaces_last {
                    elements.pop();
                }
                self.replaces_last = is_full && !holds_image;
                elements.push(value);
            }
            _ => {}
        }
    }
}

impl Skip {
    fn string(value: Value) -> Skip {
        Skip { depth: 0, in_string: true, escaped: false, value }
    }
}

/// Parses a number, `true`, `false` or `null`. A number that serde cannot represent becomes null.
fn parse_scalar(text: &[u8]) -> Result<Value, ExtractError> {
    match serde_json::from_slice(text) {
        Ok(value) => Ok(value),
        Err(_) if matches!(text, [b'-' | b'0'..=b'9', ..]) => Ok(Value::Null),
        Err(_) => Err(ExtractError::InvalidJson),
    }
}

/// The text of a raw JSON string. If it was cut, an incomplete escape at its end is removed. Invalid
/// escapes stay as they are.
fn unescape(raw: &[u8], is_cut: bool) -> String {
    let most_lost = if is_cut { "\\ud83d\\ude00".len().min(raw.len()) } else { 0 };
    (0..=most_lost)
        .find_map(|lost| {
            let quoted = [b"\"", &raw[..raw.len() - lost], b"\""].concat();
            serde_json::from_slice(&quoted).ok()
        })
        .unwrap_or_else(|| String::from_utf8_lossy(raw).into_owned())
}

/// A key in camel case, as the API's JSON has it; some gateways write snake case.
fn camel_case(key: &str) -> Cow<'_, str> {
    if !key.contains('_') {
        return Cow::Borrowed(key);
    }
    let mut words = key.split('_');
    let mut name = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        name.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        name.push_str(letters.as_str());
    }
    Cow::Owned(name)
}

/// Whether a string goes on after a run of its bytes.
enum Run {
    Open { escaped: bool },
    Closed,
}

/// Splits off a run of a string's bytes: up to its end, or up to and including the next backslash. If
/// `escaped`, the run is the escaped byte.
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

/// A JSON escape inside an image's base64, read byte by byte after the backslash.
#[derive(Default)]
struct Escape {
    hex_digits: Option<u32>,
    value: u32,
}

impl Escape {
    /// Reads the next byte. Returns the escaped character at the escape's last byte.
    fn push(&mut self, byte: u8) -> Result<Option<u8>, Unusable> {
        match (self.hex_digits, byte) {
            (None, b'u') => {
                self.hex_digits = Some(0);
                Ok(None)
            }
            (None, b'/') => Ok(Some(b'/')),
            (None, b'n' | b'r' | b't') => Ok(Some(b' ')),
            (None, _) => Err(Unusable::NotBase64),
            (Some(digits), _) => {
                let digit = char::from(byte).to_digit(16).ok_or(Unusable::NotBase64)?;
                self.value = self.value * 16 + digit;
                self.hex_digits = Some(digits + 1);
                (digits == 3).then(|| ascii_of_base64(self.value)).transpose()
            }
        }
    }
}

fn ascii_of_base64(value: u32) -> Result<u8, Unusable> {
    match u8::try_from(value) {
        Ok(b'\n' | b'\r' | b'\t') => Ok(b' '),
        Ok(byte) if byte.is_ascii_graphic() || byte == b' ' => Ok(byte),
        _ => Err(Unusable::NotBase64),
    }
}

/// Decodes base64 that arrives in chunks: standard or url-safe alphabet, padding optional, spaces ignored.
#[derive(Default)]
struct Base64 {
    bytes: BlobWriter,
    /// Symbols that are not a group of four yet.
    pending: [u8; 4],
    pending_len: usize,
    padding: usize,
}

impl Base64 {
    fn push(&mut self, run: &[u8]) -> Result<(), Unusable> {
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

    fn symbol(&mut self, byte: u8) -> Result<(), Unusable> {
        match byte {
            b' ' => Ok(()),
            b'=' => {
                self.padding += 1;
                Ok(())
            }
            _ if self.padding > 0 => Err(Unusable::NotBase64),
            b'-' => self.standard_symbol(b'+'),
            b'_' => self.standard_symbol(b'/'),
            _ => self.standard_symbol(byte),
        }
    }

    fn standard_symbol(&mut self, byte: u8) -> Result<(), Unusable> {
        self.pending[self.pending_len] = byte;
        self.pending_len += 1;
        if self.pending_len == 4 {
            self.decode_pending()?;
        }
        Ok(())
    }

    fn decode_pending(&mut self) -> Result<(), Unusable> {
        let symbols = &self.pending[..self.pending_len];
        let decoded =
            SIMD.decode_slice(symbols, self.bytes.room()).map_err(|_| Unusable::NotBase64)?;
        self.bytes.fill(decoded);
        self.pending_len = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<Blob, Unusable> {
        match (self.pending_len, self.padding) {
            (0, 0) => {}
            (2, 0 | 2) | (3, 0 | 1) => self.decode_pending()?,
            _ => return Err(Unusable::NotBase64),
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

/// The keys whose values are read. Other keys stay in the skeleton, with null.
const READ_KEYS: [&str; 26] = [
    "candidates",
    "content",
    "parts",
    "text",
    "thought",
    "inlineData",
    "data",
    "fileData",
    "fileUri",
    "finishReason",
    "finishMessage",
    "safetyRatings",
    "blocked",
    "category",
    "promptFeedback",
    "blockReason",
    "blockReasonMessage",
    "modelVersion",
    "predictions",
    "bytesBase64Encoded",
    "gcsUri",
    "raiFilteredReason",
    "contentType",
    "safetyAttributes",
    "model",
    ERROR_KEY,
];

/// An error envelope is read whole.
const ERROR_KEY: &str = "error";

/// No key that is read is longer, even with every character escaped.
const MAX_KEY_BYTES: usize = "bytesBase64Encoded".len() * "\\u0000".len();

/// No text that is shown to callers is longer.
const MAX_TEXT_BYTES: usize = 4096;
const MAX_TEXT_BYTES_WHEN_FULL: usize = 256;

/// An API error's details are the deepest values that are read.
const MAX_DEPTH: usize = 12;

/// The approximate memory of a value, without its text and members.
const VALUE_BYTES: usize = 64;
/// An object has room for eleven members from the first one on.
const OBJECT_BYTES: usize = 700;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Outcome};
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

    /// Bytes that begin like a GIF image, followed by `more`.
    fn gif(more: &[u8]) -> Vec<u8> {
        [b"GIF89a, and about twenty more", more].concat()
    }

    fn base64(bytes: &[u8]) -> String {
        base64::prelude::BASE64_STANDARD.encode(bytes)
    }

    #[test]
    fn the_image_is_decoded_and_a_reference_stands_in_its_place() {
        let text = format!(r#"{{"text": "a", "data": "{}", "b": "data"}}"#, base64(&gif(b"!")));
        let extracted = extract_whole(&text).unwrap();
        assert_eq!(extracted.skeleton, json!({"text": "a", "data": "#0", "b": null}));
        assert_eq!(image(&extracted, 0), gif(b"!"));
        assert_eq!(extracted.unusable, None);
    }

    #[test]
    fn only_a_string_under_an_image_key_that_is_read_is_extracted() {
        let data = base64(&gif(b""));
        for text in [
            r#"{"parts": ["data", "DATA"], "data": 5, "mydata": "DATA"}"#,
            r#"{"other": {"data": "DATA"}, "data": {"text": "DATA"}, "text": "data"}"#,
            r#"{"functionCall": {"args": [{"data": "DATA"}, {"data": "no base64!"}]}}"#,
            r#"{"error": {"data": "DATA"}}"#,
        ] {
            let extracted = extract_whole(&text.replace("DATA", &data)).unwrap();
            assert!(extracted.images.is_empty() && extracted.unusable.is_none(), "{text}");
        }
    }

    #[test]
    fn a_key_is_recognised_behind_escapes_white_space_and_underscores() {
        for key in ["d\\u0061ta", "bytes_base64_encoded", "bytesBase64Encoded"] {
            let text = format!("{{\"{key}\"\n : \r\t\"{}\"}}", base64(&gif(b"")));
            assert_eq!(image(&extract_whole(&text).unwrap(), 0), gif(b""));
        }
        let text = r#"{"inline_data": {"mime_type": "x"}, "finish_reason": "STOP", "_x__y_": 1}"#;
        let expected =
            json!({"inlineData": {"mimeType": null}, "finishReason": "STOP", "XY": null});
        assert_eq!(extract_whole(text).unwrap().skeleton, expected);
    }

    #[test]
    fn an_unusable_image_under_a_repeated_key_leaves_the_first() {
        let good = base64(&gif(b"the one"));
        for (family, text) in [
            (
                Family::Imagen,
                r#"{"predictions": [{"bytesBase64Encoded": "GOOD", "bytesBase64Encoded": "bad"}]}"#,
            ),
            (
                Family::Imagen,
                r#"{"predictions": [{"bytesBase64Encoded": "GOOD", "bytes_base64_encoded": "!"}]}"#,
            ),
            (
                Family::Gemini,
                r#"{"candidates": [{"content": {"parts": [{"inlineData": {"data": "GOOD"}, "inlineData": {"data": ""}}]}}]}"#,
            ),
            (
                Family::Gemini,
                r#"{"candidates": [{"content": {"parts": [{"inlineData": {"data": "GOOD"}}]}}], "candidates": [{"content":
                    {"parts": [{"inlineData": {"data": "x"}}]}}]}"#,
            ),
        ] {
            let mut extractor = ImageExtractor::new(Limits::DEFAULT, family.best_so_far());
            extractor.feed(text.replace("GOOD", &good).as_bytes()).unwrap();
            let extracted = extractor.finish().unwrap();
            assert_eq!(family.outcome(&extracted.skeleton), Outcome::Image(0), "{text}");
            assert_eq!(image(&extracted, 0), gif(b"the one"), "{text}");
        }
    }

    #[test]
    fn a_repeated_key_never_hides_an_image() {
        let data = base64(&gif(b""));
        for more in [r#""data": null"#, r#""data": """#, r#""data": {}"#, r#""data": "no!""#] {
            let text = format!(r#"{{"data": "{data}", {more}}}"#);
            assert_eq!(extract_whole(&text).unwrap().skeleton, json!({"data": "#0"}), "{text}");
        }
        let text = format!(r#"{{"inlineData": {{"data": "{data}"}}, "inline_data": null}}"#);
        assert_eq!(extract_whole(&text).unwrap().skeleton["inlineData"]["data"], "#0");
    }

    #[test]
    fn escapes_spaces_and_the_url_safe_alphabet_are_understood() {
        let bytes = gif(&[0xfb, 0xef, 0xbe, 0xff, 0xff, 0xff, 0x00]);
        let begin = base64(&gif(b"")[..27]);
        let bytes = [&bytes[..27], &bytes[29..]].concat();
        for text in
            ["++++////AA==", "----____AA", r"++++\/\/\/\/AA\u003d\u003D", r"++ ++\n////\r\n\tAA=="]
        {
            let extracted = extract_whole(&format!(r#"{{"data": "{begin}{text}"}}"#)).unwrap();
            assert_eq!(image(&extracted, 0), bytes, "{text}");
        }
    }

    #[test]
    fn an_image_that_cannot_be_used_leaves_an_empty_string() {
        let good = base64(&gif(b""));
        let too_short = base64(b"GIF89a");
        for (text, unusable) in [
            ("", Unusable::Empty),
            ("aGVsbG8=", Unusable::UnknownFormat(5)),
            (&too_short, Unusable::UnknownFormat(6)),
            ("A", Unusable::NotBase64),
            ("AAAAA", Unusable::NotBase64),
            ("AA=A", Unusable::NotBase64),
            ("AA===", Unusable::NotBase64),
            ("AAA==", Unusable::NotBase64),
            ("====", Unusable::NotBase64),
            ("AAAA=", Unusable::NotBase64),
            ("AA AA*", Unusable::NotBase64),
            (r"\u002b+-+__//A A=", Unusable::NotBase64),
            ("\u{e9}AAA", Unusable::NotBase64),
            (r"AA\u00e9A", Unusable::NotBase64),
            (r#"AA\"A"#, Unusable::NotBase64),
            ("AA\nAA", Unusable::NotBase64),
            ("AA\u{0}A", Unusable::NotBase64),
            (r"AA\xA", Unusable::NotBase64),
            (r"AA\u00zzA", Unusable::NotBase64),
            (r"AA\u00", Unusable::NotBase64),
        ] {
            let text =
                format!(r#"[{{"data": "{good}"}}, {{"data": "{text}"}}, {{"data": "{good}"}}]"#);
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            for chunks in [vec![text.as_bytes()], bytes] {
                let extracted = extract(&chunks, Limits::DEFAULT).unwrap();
                let expected = json!([{"data": "#0"}, {"data": ""}, {"data": "#1"}]);
                assert_eq!(extracted.skeleton, expected, "{text:?}");
                assert_eq!(extracted.unusable.as_ref(), Some(&unusable), "{text:?}");
            }
        }
    }

    #[test]
    fn text_that_is_not_json_is_refused() {
        for text in [
            "{]",
            "[}",
            "}",
            "<html>",
            "{,}",
            "{\"a\"}",
            "{\"a\" 1}",
            "{\"a\":}",
            "{1: 2}",
            "[1 2]",
            "[1,,2]",
            "{\"a\": 1 \"b\": 2}",
            "nulL ",
            "[tru]",
            "[\"a\" \"b\"]",
            "{\"a\": 1,}",
            "[1,]",
        ] {
            assert_eq!(extract_whole(text).unwrap_err(), ExtractError::InvalidJson, "{text}");
            assert!(serde_json::from_str::<Value>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn values_that_serde_refuses_are_ignored() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let image = base64(&gif(b""));
        for odd in [r#""\ud800""#, r#""\x""#, "\"a\nb\"", "1e999", "-1e999", &deep, r#"{"x": {{}"#]
        {
            for key in ["text", "other", "candidates"] {
                let text = format!(r#"{{"{key}": {odd}, "data": "{image}"}}"#);
                if odd.starts_with('{') && key != "other" {
                    continue;
                }
                let extracted = extract_whole(&text.replace("{{}", "{}}")).unwrap();
                assert_eq!(extracted.skeleton["data"], "#0", "{key} {}", &odd[..6.min(odd.len())]);
            }
        }
        let text = [b"{\"text\": \"a\xffb\", \"data\": \"", image.as_bytes(), b"\"}"].concat();
        let extracted = extract(&[&text], Limits::DEFAULT).unwrap();
        assert_eq!(extracted.skeleton, json!({"text": "a\u{fffd}b", "data": "#0"}));
    }

    #[test]
    fn a_response_is_complete_when_its_root_is_and_truncated_before() {
        let image = base64(&gif(b"")).replace('=', r"\u003d");
        let text = format!(r#"{{"data": "{image}", "b": ["\\"], "c": 12}}"#);
        for end in 0..text.len() {
            let error = extract(&[&text.as_bytes()[..end]], Limits::DEFAULT).unwrap_err();
            assert_eq!(error, ExtractError::Truncated, "{end}");
        }
        for after in ["", " \n", "}", "garbage", "\u{0}"] {
            assert_eq!(image_count(&format!("{text}{after}")), 1, "{after:?}");
        }
        assert_eq!(extract_whole("12").unwrap().skeleton, json!(12));
        assert_eq!(extract_whole(r#""a""#).unwrap().skeleton, json!("a"));
    }

    fn image_count(text: &str) -> usize {
        extract_whole(text).unwrap().images.len()
    }

    #[test]
    fn values_beyond_a_limit_are_dropped() {
        let small = base64(&gif(b""));
        let large = base64(&gif(&[0; 1000]));
        let limits = Limits { skeleton_bytes: 1 << 20, image_bytes: 1000, images: 3 };
        let all = [&small, &large, &small, "", &small, &small, &large];
        let elements: Vec<_> = all.iter().map(|data| json!({"data": data})).collect();
        let text = json!(elements).to_string();
        let extracted = extract(&[text.as_bytes()], limits).unwrap();
        let references: Vec<_> = elements
            .iter()
            .enumerate()
            .map(|(i, _)| extracted.skeleton[i]["data"].clone())
            .collect();
        assert_eq!(references, ["#0", "", "#1", "", "#2", "", ""]);
        assert_eq!(extracted.unusable, Some(Unusable::TooMany(3)));
        let extracted = extract(&[text.as_bytes()], Limits { images: 9, ..limits }).unwrap();
        assert_eq!(extracted.unusable, Some(Unusable::TooLarge(1000)));
        assert_eq!(extracted.skeleton[5]["data"], "#3");
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_escapes() {
        for unit in ["x", "é", "\u{1f600}", r"\n", r"\u00e9", r"\ud83d\ude00", "a\\\\", "a\\\"é"]
        {
            for begin in ["", "1", "12", "123"] {
                let text = format!(r#"{{"text": "{begin}{}"}}"#, unit.repeat(3 * MAX_TEXT_BYTES));
                let extracted = extract_whole(&text).unwrap();
                let unit: String = serde_json::from_str(&format!("\"{unit}\"")).unwrap();
                let text = extracted.skeleton["text"].as_str().unwrap();
                let whole = begin.to_owned() + &unit.repeat(MAX_TEXT_BYTES);
                assert!(whole.starts_with(text) && text.len() > MAX_TEXT_BYTES / 7, "{unit}");
            }
        }
    }

    /// The values in the skeleton, and the bytes of its texts.
    fn size(value: &Value) -> usize {
        match value {
            Value::Array(elements) => 1 + elements.iter().map(size).sum::<usize>(),
            Value::Object(members) => {
                1 + members.iter().map(|(key, value)| key.len() + size(value)).sum::<usize>()
            }
            Value::String(text) => 1 + text.len(),
            _ => 1,
        }
    }

    #[test]
    fn a_skeleton_is_bounded_and_keeps_the_images_and_the_reason() {
        let limits = Limits { skeleton_bytes: 10_000, ..Limits::DEFAULT };
        let part =
            format!(r#"{{"thought": true, "inlineData": {{"data": "{}"}}}}"#, base64(&gif(b"")));
        for many in [
            r#"{"text": "x"},"#.repeat(50_000),
            format!(r#"{{"text": "{}"}},"#, "y".repeat(10_000)).repeat(50),
            "{},".repeat(50_000),
            "5,".repeat(50_000),
            "[],".repeat(50_000),
            "[[[[[[{\"text\":[1,2,{}]}]]]]]],".repeat(20_000),
            format!("[{}0],", "5,".repeat(50_000)),
            (0..50_000).map(|n| format!(r#"{{"key{n}": {n}}},"#)).collect(),
            format!(
                "{{{}\"text\": 0}},",
                (0..50_000).map(|n| format!(r#""k{n}": 0,"#)).collect::<String>()
            ),
        ] {
            let text = format!(
                r#"{{"candidates": [{many} {{"content": {{"parts": [{many}{part},{many}{part}]}},
                    "finishReason": "STOP"}}, {many} {{"finishReason": "SAFETY"}}]}}"#
            );
            let extracted = extract(&[text.as_bytes()], limits).unwrap();
            assert!(size(&extracted.skeleton) < 20_000, "{}", size(&extracted.skeleton));
            let candidates = extracted.skeleton["candidates"].as_array().unwrap();
            assert_eq!(candidates.last().unwrap()["finishReason"], "SAFETY");
            let with_images = candidates.iter().find(|candidate| candidate["content"].is_object());
            let candidate = with_images.expect("it holds images");
            assert_eq!(candidate["finishReason"], "STOP");
            let drafts: Vec<_> = candidate["content"]["parts"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|part| part["thought"] == true)
                .map(|part| part["inlineData"]["data"].as_str().unwrap())
                .collect();
            assert_eq!(drafts, ["#0", "#1"]);
        }
    }

    #[test]
    fn drafts_are_dropped_when_the_next_image_begins() {
        let part =
            |flag: &str, data: &str| format!(r#"{{"inlineData": {{"data": "{data}"}}{flag}}}"#);
        let [a, b, c] = [b"a", b"b", b"c"].map(|more| base64(&gif(more)));
        let parts = [
            part(r#", "thought": true"#, &a),
            part("", &b),
            part(r#", "thought": true"#, &c),
            part("", "no base64!"),
        ];
        let response =
            format!(r#"{{"candidates": [{{"content": {{"parts": [{}]}}}}]}}"#, parts.join(","));
        let mut extractor = ImageExtractor::new(Limits::DEFAULT, crate::model::gemini::best_so_far);
        let mut most_held = 0;
        for byte in response.bytes() {
            extractor.feed(&[byte]).unwrap();
            most_held = most_held.max(extractor.held_bytes());
        }
        assert_eq!(most_held, 2 * gif(b"a").len());
        let extracted = extractor.finish().unwrap();
        let kept: Vec<_> = extracted.images.iter().map(Option::is_some).collect();
        assert_eq!(kept, [false, true, false]);
    }

    /// The result of a simple reader: it parses the whole text, keeps what is read, and decodes every image.
    fn read_simply(text: &str) -> (Value, Vec<Vec<u8>>) {
        fn walk(value: &mut Value, images: &mut Vec<Vec<u8>>) {
            match value {
                Value::Array(elements) => elements.iter_mut().for_each(|value| walk(value, images)),
                Value::Object(members) => members.iter_mut().for_each(|(key, value)| match value {
                    _ if !READ_KEYS.contains(&key.as_str()) => *value = Value::Null,
                    Value::String(text) if IMAGE_KEYS.contains(&key.as_str()) => {
                        let symbols: String = text
                            .chars()
                            .filter(|c| !" \n\r\t=".contains(*c))
                            .map(|c| match c {
                                '-' => '+',
                                '_' => '/',
                                c => c,
                            })
                            .collect();
                        let bytes =
                            base64::prelude::BASE64_STANDARD_NO_PAD.decode(symbols).unwrap();
                        text.clear();
                        if Format::of(&bytes.clone().into()).is_some() {
                            *text = format!("#{}", images.len());
                            images.push(bytes);
                        }
                    }
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

    /// Writes JSON text with the freedom that a server has: spaces, escapes, either alphabet, with or without padding.
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
        let bytes = prop_oneof![
            1 => prop::collection::vec(any::<u8>(), 0..300),
            3 => prop::collection::vec(any::<u8>(), 0..300).prop_map(|more| gif(&more)),
        ];
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
        let text = prop_oneof![
            1 => any::<String>(),
            1 => "[a-z\"\\\\/#0-9 ]{0,12}",
            3 => prop::sample::select(&READ_KEYS[..READ_KEYS.len() - 1]).prop_map(str::to_owned),
        ];
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(|b| json!(b)),
            any::<i32>().prop_map(|n| json!(n)),
            any::<f64>().prop_map(|n| json!(n)),
            text.clone().prop_map(|t| json!(t)),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            let key = text.clone().prop_filter("no image, no other spelling", |key| {
                !IMAGE_KEYS.contains(&key.as_str()) && !key.contains('_') && key.len() <= 18
            });
            let image_key = prop::sample::select(&IMAGE_KEYS[..]).prop_map(str::to_owned);
            let field = prop_oneof![
                3 => (key, inner.clone()),
                2 => (image_key, base64_text()),
                1 => (Just("data".to_owned()), any::<u32>().prop_map(|n| json!(n))),
                1 => (Just("thoughtSignature".to_owned()), text.clone().prop_map(|t| json!(t))),
            ];
            let object = prop::collection::vec(field, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect()));
            prop_oneof![object, prop::collection::vec(inner, 0..4).prop_map(Value::Array)]
        })
    }

    /// Responses with an image, and all places where another value may be.
    const GEMINI: &str = r#"{"promptFeedback": ODD, "x": ODD, "candidates": [ODD, {"finishReason": ODD, "x": ODD,
        "safetyRatings": ODD, "content": {"role": ODD, "parts": [ODD, {"text": ODD}, {"functionCall": ODD},
        {"inlineData": ODD}, {"inlineData": {"data": ODD}}, {"inlineData": {"mimeType": ODD, "data": "IMAGE"},
        "thoughtSignature": ODD, "thought": ODD, "x": ODD}, ODD]}, "finishMessage": ODD}, ODD, {"content": ODD}],
        "usageMetadata": ODD, "modelVersion": ODD, "error": ODD}"#;
    const IMAGEN: &str = r#"{"predictions": [ODD, {"raiFilteredReason": ODD}, {"mimeType": ODD,
        "safetyAttributes": ODD, "bytesBase64Encoded": "IMAGE", "prompt": ODD}, {"bytesBase64Encoded": ODD}, ODD],
        "deployedModelId": ODD, "metadata": ODD, "model": ODD, "x": ODD, "error": ODD}"#;

    /// A small deterministic source of choices.
    fn choices(mut seed: u64) -> impl FnMut(u32) -> u32 {
        move |n| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((seed >> 33) as u32) % n
        }
    }

    proptest! {
        #[test]
        fn any_document_in_any_chunks_gives_the_result_of_a_simple_reader(
            value in document(), seed in any::<u64>(), longest in 1u32..200,
        ) {
            let mut freedom = choices(seed);
            let mut text = String::new();
            write(&value, &mut freedom, &mut text);
            let (expected, images) = read_simply(&text);

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
            // An unusable image may have begun after it.
            prop_assert!(extracted.unusable.is_some() || extracted.images.last().is_none_or(|last| last.is_some()));
            prop_assert_eq!(extracted.skeleton, expected);
        }

        #[test]
        fn any_value_in_any_other_place_leaves_the_image_found(
            odd in document(), place in any::<prop::sample::Index>(), seed in any::<u64>(), cut in any::<prop::sample::Index>(),
        ) {
            for (family, template) in [
                (Family::Gemini, GEMINI),
                (Family::Imagen, IMAGEN),
            ] {
                let mut freedom = choices(seed);
                let mut odd_text = String::new();
                write(&odd, &mut freedom, &mut odd_text);
                let places: Vec<_> = template.match_indices("ODD").map(|(at, _)| at).collect();
                let chosen = places[place.index(places.len())];
                let whole = [&template[..chosen], &odd_text, &template[chosen + "ODD".len()..]].concat();
                let text = whole.replace("ODD", "null").replace("IMAGE", &base64(&gif(b"the one")));

                let mut extractor = ImageExtractor::new(Limits::DEFAULT, family.best_so_far());
                extractor.feed(text.as_bytes()).unwrap();
                prop_assert!(extractor.is_complete());
                let extracted = extractor.finish().unwrap();
                let Outcome::Image(number) = family.outcome(&extracted.skeleton) else {
                    panic!("no image in {text}");
                };
                let others = read_simply(&odd_text).1;
                let found = image(&extracted, number);
                prop_assert!(found == gif(b"the one") || others.contains(&found));

                let after = ["", "}", "\n", "x", "{}"][seed as usize % 5];
                let extended = format!("{text}{after}");
                prop_assert!(extract_whole(&extended).is_ok());
                let end = cut.index(text.len());
                let before = extract(&[&text.as_bytes()[..end]], Limits::DEFAULT);
                prop_assert_eq!(before.unwrap_err(), ExtractError::Truncated);
            }
        }

        #[test]
        fn garbage_is_refused_or_read_but_never_panics(text in "[\\[\\]{}:,\"\\\\dat=/uA0-9 \n#-]{0,60}", cut in 0usize..60) {
            let cut = cut.min(text.len());
            let _ = extract(&[&text.as_bytes()[..cut], &text.as_bytes()[cut..]], Limits::DEFAULT);
        }
    }
}
