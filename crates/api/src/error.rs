//! Errors as users see them: a code, the cause and the remedy.

use serde::{Deserialize, Serialize};

/// What went wrong, in a form that programs can branch on. Serialised in snake case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request is malformed or asks for something impossible (400).
    InvalidArgument,
    /// No key, or one that does not exist (401).
    Unauthenticated,
    /// The caller is known but may not do this (403).
    PermissionDenied,
    /// The thing does not exist, or is not the caller's (404).
    NotFound,
    /// The thing exists already, or is in a state that forbids the request (409).
    Conflict,
    /// The same idempotency key came with another body (422).
    IdempotencyRequestMismatch,
    /// The first request with this idempotency key is still under way (409).
    IdempotencyInProgress,
    /// A limit of the tenant was reached (429).
    LimitReached,
    /// What was asked for is not possible with this driver or on this machine (501).
    Unsupported,
    /// The machine has no room left: memory, slots, processes (503).
    OutOfCapacity,
    /// The disk is full (507).
    OutOfDisk,
    /// A part that is needed is not ready yet; the same request may succeed later (503).
    Unavailable,
    /// It took longer than its deadline (504).
    DeadlineExceeded,
    /// A fault of Atoll's own (500).
    Internal,
}

impl ErrorCode {
    /// The HTTP status that goes with the code.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::Conflict | Self::IdempotencyInProgress => 409,
            Self::IdempotencyRequestMismatch => 422,
            Self::LimitReached => 429,
            Self::Internal => 500,
            Self::Unsupported => 501,
            Self::OutOfCapacity | Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
            Self::OutOfDisk => 507,
        }
    }
}

/// An error that a user sees: what happened and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Problem {
    /// For programs.
    pub code: ErrorCode,
    /// What happened, in one sentence without a full stop.
    pub cause: String,
    /// What the reader can do about it; empty if nothing.
    pub remedy: String,
}

impl Problem {
    /// A problem with its cause and its remedy.
    pub fn new(code: ErrorCode, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            code,
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }

    /// The body that E2B's clients parse (`code`, `message`), with Atoll's own fields beside it.
    pub fn body(&self) -> ProblemBody {
        ProblemBody {
            code: self.code.status(),
            message: self.cause.clone(),
            error_code: Some(self.code),
            remedy: (!self.remedy.is_empty()).then(|| self.remedy.clone()),
        }
    }
}

/// The JSON body of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProblemBody {
    /// The HTTP status once more.
    pub code: u16,
    /// What happened.
    pub message: String,
    /// A stable word for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub error_code: Option<ErrorCode>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}
