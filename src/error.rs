//! Every error that a caller can get, and its row of the contract's table.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// An error that a caller gets.
///
/// `Display` is the response's `details`: no host, no token, no backtrace. The cause, if any, is in
/// `source`; the router logs it once.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{details}")]
pub struct Error {
    pub kind: Kind,
    details: String,
    /// When to try again, if the upstream says so.
    pub retry_after: Option<Duration>,
    source: Option<SharedError>,
}

/// One row of the contract's error table: how a [`Kind`] appears to callers, in metrics and in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub status: u16,
    pub code: &'static str,
    pub message: &'static str,
    /// The `status` tag of the request metrics.
    pub tag: &'static str,
    /// The `error_type` tag of the Vertex AI metrics.
    pub error_type: &'static str,
    /// How the summary line of the request is logged.
    pub severity: Severity,
}

/// How serious an error is for an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The request was wrong.
    Info,
    /// Google failed, or too many requests came at once.
    Warning,
    /// An operator must act: a permission, a setting, a paid image that was lost, a bug.
    Error,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident => $status:literal, $code:literal, $message:literal, $tag:literal, $error_type:literal, $severity:ident;)*) => {
        /// The kinds of errors: one variant for each case that a caller or an operator must tell apart.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// Every kind, in the order of the table.
            pub const ALL: &[Kind] = &[$(Kind::$kind),*];

            /// The kind's row of the table.
            pub const fn row(self) -> Row {
                match self {
                    $(Kind::$kind => Row {
                        status: $status,
                        code: $code,
                        message: $message,
                        tag: $tag,
                        error_type: $error_type,
                        severity: Severity::$severity,
                    },)*
                }
            }
        }
    };
}

kinds! {
    PromptMissing         => 400, "IGA_BAD_REQUEST_PROMPT_MISSING",    "Prompt is required for image generation.",                    "validation_error_prompt_missing",         "api_error",         Info;
    MalformedJson         => 400, "IGA_MALFORMED_JSON",                "Request body is not valid JSON.",                             "validation_error_malformed_json",         "api_error",         Info;
    InvalidPayload        => 400, "IGA_INVALID_PAYLOAD",               "Request body must be a JSON object.",                         "validation_error_invalid_payload",        "api_error",         Info;
    InvalidHost           => 400, "IGA_INVALID_HOST",                  "Host header is missing or invalid.",                         "validation_error_invalid_host",        "api_error",         Info;
    InvalidIdempotencyKey => 400, "IGA_INVALID_IDEMPOTENCY_KEY",       "Idempotency key is invalid.",                                 "validation_error_invalid_idempotency_key", "api_error",         Info;
    IdempotencyKeyReused  => 422, "IGA_IDEMPOTENCY_KEY_REUSED",        "Idempotency key was already used with a different request.",  "validation_error_idempotency_key_reused", "api_error",         Info;
    SafetyBlocked         => 400, "IGA_VERTEXAI_PROMPT_BLOCKED_SAFETY", "Prompt blocked by safety filters.",                           "vertexai_error_safety_blocked",           "safety_blocked",    Info;
    /// Vertex AI refused an argument.
    InvalidArgument       => 400, "IGA_VERTEXAI_INVALID_ARGUMENT",     "Invalid argument provided to Vertex AI.",                     "vertexai_error_invalid_argument",         "invalid_argument",  Info;
    /// IGA itself refused a parameter that the model cannot take; nothing was sent.
    UnsupportedParameter  => 400, "IGA_VERTEXAI_INVALID_ARGUMENT",     "Invalid argument provided to Vertex AI.",                     "validation_error_unsupported_parameter",  "api_error",         Info;
    PermissionDenied      => 403, "IGA_VERTEXAI_PERMISSION_DENIED",    "Permission denied for Vertex AI operation.",                  "vertexai_error_permission_denied",        "permission_denied", Error;
    NotFound              => 404, "IGA_NOT_FOUND",                     "No such endpoint.",                                           "validation_error_not_found",              "api_error",         Info;
    MethodNotAllowed      => 405, "IGA_METHOD_NOT_ALLOWED",            "Method not allowed.",                                         "validation_error_method_not_allowed",     "api_error",         Info;
    PayloadTooLarge       => 413, "IGA_PAYLOAD_TOO_LARGE",             "Request body is too large.",                                  "validation_error_payload_too_large",      "api_error",         Info;
    UnsupportedMediaType  => 415, "IGA_UNSUPPORTED_MEDIA_TYPE",        "Content-Type must be application/json.",                      "validation_error_unsupported_media_type", "api_error",         Info;
    ResourceExhausted     => 429, "IGA_VERTEXAI_RESOURCE_EXHAUSTED",   "Vertex AI resource exhausted (e.g., quota exceeded).",        "vertexai_error_resource_exhausted",       "resource_exhausted", Warning;
    /// Vertex AI failed, or its response makes no sense.
    VertexApi             => 500, "IGA_VERTEXAI_API_ERROR",            "An error occurred with the Vertex AI service.",               "vertexai_error_api",                      "api_error",         Warning;
    /// The project or the location does not exist.
    PlaceNotFound         => 500, "IGA_VERTEXAI_API_ERROR",            "An error occurred with the Vertex AI service.",               "vertexai_error_api",                      "not_found",         Error;
    /// Vertex AI does not know the model in that location; nothing was paid.
    ModelNotFound         => 500, "IGA_VERTEXAI_API_ERROR",            "An error occurred with the Vertex AI service.",               "vertexai_error_api",                      "not_found",         Error;
    VertexUnavailable     => 503, "IGA_VERTEXAI_API_ERROR",            "An error occurred with the Vertex AI service.",               "vertexai_error_api",                      "unavailable",       Warning;
    EmptyImage            => 500, "IGA_VERTEXAI_EMPTY_IMAGE_BYTES",    "Image generation produced an empty image.",                   "vertexai_error_empty_image",              "empty_image",       Warning;
    FileSave              => 500, "IGA_FILE_SAVE_ERROR",               "Could not save generated image.",                             "gcs_upload_error",                        "api_error",         Error;
    Internal              => 500, "IGA_INTERNAL_SERVER_ERROR",         "IGA encountered an unexpected error.",                        "internal_error",                          "api_error",         Error;
    Overloaded            => 503, "IGA_OVERLOADED",                    "IGA is at capacity.",                                         "overloaded",                              "api_error",         Warning;
}

impl Kind {
    /// An error of this kind. Callers read `details`, which is cut and cleaned of control characters.
    pub fn because(self, details: impl AsRef<str>) -> Error {
        Error {
            kind: self,
            details: presentable(details.as_ref()),
            retry_after: None,
            source: None,
        }
    }
}

impl Error {
    /// Adds the cause, for the log.
    pub fn caused_by(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
        self.source = Some(SharedError(Arc::new(cause)));
        self
    }

    /// Sets when to try again.
    pub fn retry_after(mut self, wait: Duration) -> Error {
        self.retry_after = Some(wait);
        self
    }

    /// The value of `Retry-After`, in seconds, for each status after which the same request may succeed.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        let passes = matches!(self.kind.row().status, 429 | 503);
        passes.then(|| self.retry_after.unwrap_or_default().as_secs().max(1))
    }

    /// The causes, outermost first, in one line for the log; empty when there is no cause.
    ///
    /// Leaves out a cause that the text before it already ends with.
    pub fn causes(&self) -> String {
        let first = self.source.as_ref().map(|cause| &*cause.0 as &dyn std::error::Error);
        let chain = std::iter::successors(first, |cause| cause.source());
        let mut texts: Vec<String> = Vec::new();
        for text in chain.map(|cause| cause.to_string()) {
            if texts.last().is_none_or(|outer| !outer.ends_with(&text)) {
                texts.push(text);
            }
        }
        texts.join(": ")
    }
}

/// An error that callers waiting for the same generation share.
#[derive(Debug, Clone)]
struct SharedError(Arc<dyn std::error::Error + Send + Sync>);

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SharedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// The text in one line of at most [`MAX_DETAILS_BYTES`], without control characters.
fn presentable(details: &str) -> String {
    let spaced = details.replace(is_control, " ");
    let mut line = spaced.trim().to_owned();
    if line.len() > MAX_DETAILS_BYTES {
        line.truncate(line.floor_char_boundary(MAX_DETAILS_BYTES - ELLIPSIS.len()));
        line.push_str(ELLIPSIS);
    }
    line
}

/// Whether a character moves the cursor, ends a line or changes the direction of text: C0 and C1
/// controls, line and paragraph separators, and the Unicode bidirectional controls.
pub fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

pub const MAX_DETAILS_BYTES: usize = 1024;
const ELLIPSIS: &str = "…";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_message_and_a_status_of_its_class() {
        let rows = || Kind::ALL.iter().map(|kind| kind.row());
        for a in rows() {
            assert!((400..600).contains(&a.status) && a.code.starts_with("IGA_"));
            for b in rows() {
                assert!(a.code != b.code || a.message == b.message, "{} has two messages", a.code);
            }
        }
    }

    #[test]
    fn severity_follows_the_status() {
        for kind in Kind::ALL {
            let Row { status, severity, .. } = kind.row();
            let is_callers_fault = status < 500 && status != 429 && status != 403;
            assert_eq!(severity == Severity::Info, is_callers_fault, "{kind:?}");
        }
    }

    #[test]
    fn retry_after_stands_on_429_and_503_alone() {
        for kind in Kind::ALL {
            let seconds = kind.because("x").retry_after_seconds();
            assert_eq!(seconds, matches!(kind.row().status, 429 | 503).then_some(1));
        }
        let told = Kind::ResourceExhausted.because("x").retry_after(Duration::from_secs(7));
        assert_eq!(told.retry_after_seconds(), Some(7));
    }

    #[test]
    fn causes_are_listed_outermost_first_and_never_shown_to_the_caller() {
        let inner = std::io::Error::other("socket 10.0.0.7 closed");
        let error = Kind::VertexApi.because("no response").caused_by(inner);
        assert_eq!(error.to_string(), "no response");
        assert_eq!(error.causes(), "socket 10.0.0.7 closed");

        #[derive(Debug, thiserror::Error)]
        #[error("broken: {0}")]
        struct Repeats(#[source] std::io::Error);
        let error = Kind::VertexApi
            .because("no response")
            .caused_by(Repeats(std::io::Error::other("closed")));
        assert_eq!(error.causes(), "broken: closed");
    }

    #[test]
    fn a_long_text_from_upstream_is_cut_at_a_character() {
        for letter in ["é", "x", "🦊"] {
            let details = Kind::VertexApi.because(letter.repeat(5000)).to_string();
            assert!(details.len() <= MAX_DETAILS_BYTES && details.ends_with(&format!("{letter}…")));
        }
    }

    #[test]
    fn details_hold_no_control_character() {
        let details = "one\r\ntwo\u{1b}[31m\u{7f}\u{9b}\u{2028}\u{202e}\u{2067}\u{61c}\0 three\n";
        let details = Kind::VertexApi.because(details).to_string();
        assert!(!details.contains(is_control), "{details:?}");
        assert!(details.starts_with("one  two [31m") && details.ends_with(" three"), "{details:?}");
    }
}
