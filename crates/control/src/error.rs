//! Errors on their way to the caller.

pub(crate) use api::rest::query::{invalid, shorten};

use api::{ErrorCode, Problem, error::ProblemBody};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode};
use store::StoreError;

/// Whether the same request may succeed if it is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// The status alone says it.
    Unsaid,
    /// Not without a change of the request.
    No,
    /// After so many seconds.
    After(u32),
}

/// A problem as an HTTP response: E2B's body and the headers that its clients retry by.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    problem: Problem,
    retry: Retry,
}

/// What a handler answers.
pub(crate) type Answer<T> = Result<T, ApiError>;

impl ApiError {
    /// The same problem, and when to try again.
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry = Retry::After(seconds);
        self
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        let retry = match problem.code {
            ErrorCode::OutOfCapacity
            | ErrorCode::Unavailable
            | ErrorCode::IdempotencyInProgress => Retry::After(1),
            // What became of the request is not known: only its sender can tell whether it may
            // happen twice.
            ErrorCode::DeadlineExceeded => Retry::No,
            _ => Retry::Unsaid,
        };
        Self { problem, retry }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Problem::from(error).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = self.problem.code.status();
        if code == 500 {
            tracing::error!(cause = %self.problem.cause, "a request failed");
        }
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.problem.body())).into_response();
        let headers = response.headers_mut();
        match self.retry {
            Retry::Unsaid => {}
            Retry::No => {
                headers.insert("should-retry", HeaderValue::from_static("false"));
            }
            Retry::After(seconds) => {
                headers.insert("should-retry", HeaderValue::from_static("true"));
                headers.insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
            }
        }
        response
    }
}

/// An error with a status for which there is no code of ours.
pub(crate) fn plain(status: StatusCode, message: &str) -> Response {
    let body = ProblemBody {
        code: status.as_u16(),
        message: message.to_owned(),
        error_code: None,
        remedy: None,
    };
    (status, Json(body)).into_response()
}

/// The thing does not exist, or is not the caller's.
pub(crate) fn not_found(cause: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::NotFound, cause, "")
}
