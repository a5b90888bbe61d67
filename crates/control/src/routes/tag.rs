//! Tags of templates.

use crate::{
    caller::Caller,
    error::Answer,
    extract::{Json, Segments},
};
use api::{
    error::ProblemBody,
    rest::{
        listing::microseconds,
        template::{AssignTags, AssignedTags, DeleteTags, TemplateTag},
    },
};
use axum::Json as Body;
use http::StatusCode;

/// Give tags to a build
#[utoipa::path(
    post, path = "/templates/tags", operation_id = "assignTags", tag = "templates",
    request_body = AssignTags,
    responses((status = 201, body = AssignedTags), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn assign(
    caller: Caller,
    Json(request, _): Json<AssignTags>,
) -> Answer<(StatusCode, Body<AssignedTags>)> {
    let build = caller
        .templates()
        .assign(&request.target, &request.tags)
        .await?;
    let answer = AssignedTags {
        tags: request.tags,
        build_id: build.to_string(),
    };
    Ok((StatusCode::CREATED, Body(answer)))
}

/// Take tags from a template
#[utoipa::path(
    delete, path = "/templates/tags", operation_id = "deleteTags", tag = "templates",
    request_body = DeleteTags,
    responses((status = 204), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn unassign(
    caller: Caller,
    Json(request, _): Json<DeleteTags>,
) -> Answer<StatusCode> {
    caller
        .templates()
        .unassign(&request.name, &request.tags)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the tags of a template
#[utoipa::path(
    get, path = "/templates/{templateID}/tags", operation_id = "listTags", tag = "templates",
    params(("templateID" = String, Path)),
    responses((status = 200, body = Vec<TemplateTag>), (status = 404, body = ProblemBody)),
)]
pub(super) async fn list(
    caller: Caller,
    Segments(id): Segments<String>,
) -> Answer<Body<Vec<TemplateTag>>> {
    let template = caller.templates().find(&id)?;
    let tags = template.tags.iter().map(|(tag, named)| TemplateTag {
        tag: tag.clone(),
        build_id: named.build.to_string(),
        created_at: microseconds(named.assigned_at),
    });
    Ok(Body(tags.collect()))
}
