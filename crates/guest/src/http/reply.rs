//! Answers of the plain HTTP routes.

use super::body::ReplyBody;
use api::envd::files::HttpError;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

/// An answer.
pub type Reply = Response<ReplyBody>;

/// Why a plain HTTP request failed: its status and the text of its body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The HTTP status.
    pub status: StatusCode,
    /// What happened.
    pub message: String,
}

impl Failure {
    /// A failure with its status and text.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 401.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// The answer.
    pub fn reply(self) -> Reply {
        let code = self.status.as_u16();
        let mut reply = json(&HttpError {
            code,
            message: self.message,
        });
        *reply.status_mut() = self.status;
        reply
    }
}

/// 200 with JSON.
pub fn json(body: &impl Serialize) -> Reply {
    // Cannot fail: our types have no maps with other keys than strings.
    let text = serde_json::to_vec(body).unwrap_or_default();
    let mut reply = Response::new(ReplyBody::Full(text.into()));
    let content_type = HeaderValue::from_static("application/json");
    reply
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    reply
}

/// A status without a body.
pub fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(ReplyBody::Full(bytes::Bytes::new()));
    *reply.status_mut() = status;
    reply
}
