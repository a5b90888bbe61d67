//! Parts of requests, bounded, and refused with our own error body.

pub(crate) use api::rest::query::number;

use crate::{
    error::{ApiError, invalid, shorten},
    plane::Plane,
};
use api::{ErrorCode, Problem};
use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
};
use bytes::Bytes;
use http::request::Parts;
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use std::{sync::Arc, time::Duration};

/// How long a caller may take to send a body.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads a body of bounded size in bounded time, however it is sent.
async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(PATIENCE, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(invalid(format!("The request body is larger than {limit} bytes")).into())
        }
        Ok(Err(_)) => Err(invalid("The request body was cut off").into()),
        Err(_) => Err(ApiError::from(Problem::new(
            ErrorCode::DeadlineExceeded,
            "The request body did not arrive in time",
            "send it again",
        ))),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| invalid(format!("Invalid request body: {}", shorten_long(&error))).into())
}

fn shorten_long(error: &serde_json::Error) -> String {
    error
        .to_string()
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect()
}

/// A JSON body, with its bytes.
pub(crate) struct Json<T>(pub(crate) T, pub(crate) Bytes);

impl<T: DeserializeOwned> FromRequest<Arc<Plane>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, plane: &Arc<Plane>) -> Result<Self, ApiError> {
        let body = read(request.into_body(), plane.limits.body).await?;
        Ok(Self(parse(&body)?, body))
    }
}

/// A JSON body that may be absent.
pub(crate) struct OptionalJson<T>(pub(crate) T);

impl<T: DeserializeOwned + Default> FromRequest<Arc<Plane>> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, plane: &Arc<Plane>) -> Result<Self, ApiError> {
        let body = read(request.into_body(), plane.limits.body).await?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(T::default()));
        }
        Ok(Self(parse(&body)?))
    }
}

/// The query.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Plane>> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Plane>) -> Result<Self, ApiError> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(query)) => Ok(Self(query)),
            Err(error) => {
                Err(invalid(format!("Invalid query: {}", shorten(&error.body_text()))).into())
            }
        }
    }
}

/// The variable segments of the path: routed as they were sent, then percent-decoded.
pub(crate) struct Segments<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Plane>> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, plane: &Arc<Plane>) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, plane).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(_) => Err(invalid("The path is not valid UTF-8").into()),
        }
    }
}
