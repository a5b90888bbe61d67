//! What E2B's clients may ask for and no driver here can do: refused in words, never ignored.
//!
//! Each still looks first whether the sandbox or template is the caller's, so that a refusal tells
//! nothing about others'.

use crate::{
    caller::Caller,
    error::{Answer, ApiError},
    extract::Segments,
};
use api::{ErrorCode, Problem, error::ProblemBody};
use http::StatusCode;

fn cannot_build() -> ApiError {
    Problem::new(
        ErrorCode::Unsupported,
        "Building templates from steps is not supported",
        "build from an image, a folder or a tarball with `atoll template build`, or with \
         POST /v1/templates",
    )
    .into()
}

/// Begin a template built from steps (not supported yet)
#[utoipa::path(
    post, path = "/v3/templates", operation_id = "createTemplateFromSteps", tag = "templates",
    responses((status = 501, body = ProblemBody)),
)]
pub(super) async fn new_template(_caller: Caller) -> Answer<StatusCode> {
    Err(cannot_build())
}

/// Upload a file of a template built from steps (not supported yet)
#[utoipa::path(
    get, path = "/templates/{templateID}/files/{hash}", operation_id = "getTemplateFile",
    tag = "templates",
    params(("templateID" = String, Path), ("hash" = String, Path)),
    responses((status = 404, body = ProblemBody), (status = 501, body = ProblemBody)),
)]
pub(super) async fn template_file(
    caller: Caller,
    Segments(ids): Segments<(String, String)>,
) -> Answer<StatusCode> {
    caller.templates().find_own(&ids.0)?;
    Err(cannot_build())
}

/// Start a build from steps (not supported yet)
#[utoipa::path(
    post, path = "/v2/templates/{templateID}/builds/{buildID}", operation_id = "startBuild",
    tag = "templates",
    params(("templateID" = String, Path), ("buildID" = String, Path)),
    responses((status = 404, body = ProblemBody), (status = 501, body = ProblemBody)),
)]
pub(super) async fn start_build(
    caller: Caller,
    Segments(ids): Segments<(String, String)>,
) -> Answer<StatusCode> {
    caller.templates().find_own(&ids.0)?;
    Err(cannot_build())
}
