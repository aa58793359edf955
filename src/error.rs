//! Every failure a caller can see, and its line of the contract.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What went wrong, in the words the caller gets as `details`.
///
/// `Display` is the `details` string: no host, no token, no backtrace. The cause, where there is
/// one, is in `source` and is logged once, by the router.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{details}")]
pub struct Error {
    pub kind: Kind,
    details: String,
    /// When to try again, where the upstream said so.
    pub retry_after: Option<Duration>,
    source: Option<Cause>,
}

/// The lines of the contract's error table, one variant a line that a caller or operator tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    PromptMissing,
    MalformedJson,
    InvalidPayload,
    InvalidIdempotencyKey,
    IdempotencyKeyReused,
    SafetyBlocked,
    /// Vertex AI refused an argument.
    InvalidArgument,
    /// A parameter known here to be one the model cannot take; nothing was sent.
    UnsupportedParameter,
    PermissionDenied,
    NotFound,
    MethodNotAllowed,
    PayloadTooLarge,
    UnsupportedMediaType,
    ResourceExhausted,
    VertexApi,
    /// Vertex AI does not know the model in that location; nothing was paid.
    ModelNotFound,
    VertexUnavailable,
    EmptyImage,
    FileSave,
    Internal,
    Overloaded,
}

/// One line of the contract: what a [`Kind`] looks like to a caller and to the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub status: u16,
    pub code: &'static str,
    pub message: &'static str,
    /// The `status` tag of the request metrics.
    pub tag: &'static str,
}

impl Kind {
    pub const ALL: [Kind; 21] = [
        Kind::PromptMissing,
        Kind::MalformedJson,
        Kind::InvalidPayload,
        Kind::InvalidIdempotencyKey,
        Kind::IdempotencyKeyReused,
        Kind::SafetyBlocked,
        Kind::InvalidArgument,
        Kind::UnsupportedParameter,
        Kind::PermissionDenied,
        Kind::NotFound,
        Kind::MethodNotAllowed,
        Kind::PayloadTooLarge,
        Kind::UnsupportedMediaType,
        Kind::ResourceExhausted,
        Kind::VertexApi,
        Kind::ModelNotFound,
        Kind::VertexUnavailable,
        Kind::EmptyImage,
        Kind::FileSave,
        Kind::Internal,
        Kind::Overloaded,
    ];

    pub const fn row(self) -> Row {
        match self {
            Kind::PromptMissing => Row {
                status: 400,
                code: "IGA_BAD_REQUEST_PROMPT_MISSING",
                message: "Prompt is required for image generation.",
                tag: "validation_error_prompt_missing",
            },
            Kind::MalformedJson => Row {
                status: 400,
                code: "IGA_MALFORMED_JSON",
                message: "Request body is not valid JSON.",
                tag: "validation_error_malformed_json",
            },
            Kind::InvalidPayload => Row {
                status: 400,
                code: "IGA_INVALID_PAYLOAD",
                message: "Request body must be a JSON object.",
                tag: "validation_error_invalid_payload",
            },
            Kind::InvalidIdempotencyKey => Row {
                status: 400,
                code: "IGA_INVALID_IDEMPOTENCY_KEY",
                message: "Idempotency key is invalid.",
                tag: "validation_error_invalid_idempotency_key",
            },
            Kind::IdempotencyKeyReused => Row {
                status: 422,
                code: "IGA_IDEMPOTENCY_KEY_REUSED",
                message: "Idempotency key was already used with a different request.",
                tag: "validation_error_idempotency_key_reused",
            },
            Kind::SafetyBlocked => Row {
                status: 400,
                code: "IGA_VERTEXAI_PROMPT_BLOCKED_SAFETY",
                message: "Prompt blocked by safety filters.",
                tag: "vertexai_error_safety_blocked",
            },
            Kind::InvalidArgument => Row {
                status: 400,
                code: "IGA_VERTEXAI_INVALID_ARGUMENT",
                message: "Invalid argument provided to Vertex AI.",
                tag: "vertexai_error_invalid_argument",
            },
            Kind::UnsupportedParameter => Row {
                status: 400,
                code: "IGA_VERTEXAI_INVALID_ARGUMENT",
                message: "Invalid argument provided to Vertex AI.",
                tag: "validation_error_unsupported_parameter",
            },
            Kind::PermissionDenied => Row {
                status: 403,
                code: "IGA_VERTEXAI_PERMISSION_DENIED",
                message: "Permission denied for Vertex AI operation.",
                tag: "vertexai_error_permission_denied",
            },
            Kind::NotFound => Row {
                status: 404,
                code: "IGA_NOT_FOUND",
                message: "No such endpoint.",
                tag: "validation_error_not_found",
            },
            Kind::MethodNotAllowed => Row {
                status: 405,
                code: "IGA_METHOD_NOT_ALLOWED",
                message: "Method not allowed.",
                tag: "validation_error_method_not_allowed",
            },
            Kind::PayloadTooLarge => Row {
                status: 413,
                code: "IGA_PAYLOAD_TOO_LARGE",
                message: "Request body is too large.",
                tag: "validation_error_payload_too_large",
            },
            Kind::UnsupportedMediaType => Row {
                status: 415,
                code: "IGA_UNSUPPORTED_MEDIA_TYPE",
                message: "Content-Type must be application/json.",
                tag: "validation_error_unsupported_media_type",
            },
            Kind::ResourceExhausted => Row {
                status: 429,
                code: "IGA_VERTEXAI_RESOURCE_EXHAUSTED",
                message: "Vertex AI resource exhausted (e.g., quota exceeded).",
                tag: "vertexai_error_resource_exhausted",
            },
            Kind::VertexApi | Kind::ModelNotFound => Row {
                status: 500,
                code: "IGA_VERTEXAI_API_ERROR",
                message: "An error occurred with the Vertex AI service.",
                tag: "vertexai_error_api",
            },
            Kind::VertexUnavailable => Row {
                status: 503,
                code: "IGA_VERTEXAI_API_ERROR",
                message: "An error occurred with the Vertex AI service.",
                tag: "vertexai_error_api",
            },
            Kind::EmptyImage => Row {
                status: 500,
                code: "IGA_VERTEXAI_EMPTY_IMAGE_BYTES",
                message: "Image generation produced an empty image.",
                tag: "vertexai_error_empty_image",
            },
            Kind::FileSave => Row {
                status: 500,
                code: "IGA_FILE_SAVE_ERROR",
                message: "Could not save generated image.",
                tag: "gcs_upload_error",
            },
            Kind::Internal => Row {
                status: 500,
                code: "IGA_INTERNAL_SERVER_ERROR",
                message: "IGA encountered an unexpected error.",
                tag: "internal_error",
            },
            Kind::Overloaded => Row {
                status: 503,
                code: "IGA_OVERLOADED",
                message: "IGA is at capacity.",
                tag: "overloaded",
            },
        }
    }

    /// The failure of this kind that the caller reads about in `details`.
    pub fn because(self, details: impl Into<String>) -> Error {
        Error { kind: self, details: shortened(details.into()), retry_after: None, source: None }
    }
}

impl Error {
    /// Names what caused the failure, for the log.
    pub fn caused_by(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
        self.source = Some(Cause(Arc::new(cause)));
        self
    }

    pub fn retry_after(mut self, wait: Duration) -> Error {
        self.retry_after = Some(wait);
        self
    }

    /// `Retry-After` for the caller: all who may come back with the same request are told when.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        let passes = matches!(self.kind.row().status, 429 | 503);
        passes.then(|| self.retry_after.unwrap_or_default().as_secs().max(1))
    }

    /// The causes, outermost first, in one line for the log; empty when there is none. A cause that
    /// the text before it has named already is left out.
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

/// A foreign error that several waiting callers can share.
#[derive(Debug, Clone)]
struct Cause(Arc<dyn std::error::Error + Send + Sync>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Upstream texts can be pages long; a caller's log line should not be.
fn shortened(mut details: String) -> String {
    if details.len() > MAX_DETAILS_BYTES {
        details.truncate(details.floor_char_boundary(MAX_DETAILS_BYTES));
        details.push('…');
    }
    details
}

const MAX_DETAILS_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_message_and_a_status_of_its_class() {
        for a in Kind::ALL.map(Kind::row) {
            assert!((400..600).contains(&a.status) && a.code.starts_with("IGA_"));
            for b in Kind::ALL.map(Kind::row) {
                assert!(a.code != b.code || a.message == b.message, "{} has two messages", a.code);
            }
        }
    }

    #[test]
    fn who_may_come_back_is_told_when() {
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
        let error = Kind::VertexApi.because("no answer").caused_by(inner);
        assert_eq!(error.to_string(), "no answer");
        assert_eq!(error.causes(), "socket 10.0.0.7 closed");

        #[derive(Debug, thiserror::Error)]
        #[error("broken: {0}")]
        struct Repeats(#[source] std::io::Error);
        let error = Kind::VertexApi
            .because("no answer")
            .caused_by(Repeats(std::io::Error::other("closed")));
        assert_eq!(error.causes(), "broken: closed");
    }

    #[test]
    fn a_long_text_from_upstream_is_cut_at_a_character() {
        let details = Kind::VertexApi.because("é".repeat(5000)).to_string();
        assert!(details.len() <= MAX_DETAILS_BYTES + '…'.len_utf8());
    }
}
