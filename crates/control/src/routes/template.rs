//! Templates and tenants, in E2B's words.

use crate::{
    caller::Caller,
    error::Answer,
    extract::{Json, Parameters, Segments},
    templates::{Name, absent},
};
use api::{
    ErrorCode, Problem,
    error::ProblemBody,
    rest::{
        team::Team,
        template::{
            AliasResponse, Template, TemplateBuildInfo, TemplateUpdate, TemplateUpdated,
            TemplateWithBuilds,
        },
    },
};
use axum::Json as Body;
use http::StatusCode;
use serde::Deserialize;

/// List the tenant of the caller's key
#[utoipa::path(
    get, path = "/teams", operation_id = "listTeams", tag = "templates",
    responses((status = 200, body = Vec<Team>), (status = 401, body = ProblemBody)),
)]
pub(super) async fn teams(caller: Caller) -> Answer<Body<Vec<Team>>> {
    Ok(Body(vec![Team {
        team_id: caller.tenant().to_string(),
        name: caller.tenant_name(),
        api_key: format!("{}…", caller.key().prefix),
        is_default: caller.is_default_tenant(),
    }]))
}

/// List the templates that the caller may use
///
/// His own, then public ones.
#[utoipa::path(
    get, path = "/templates", operation_id = "listTemplates", tag = "templates",
    responses((status = 200, body = Vec<Template>), (status = 401, body = ProblemBody)),
)]
pub(super) async fn list(caller: Caller) -> Answer<Body<Vec<Template>>> {
    let templates = caller.templates();
    Ok(Body(
        templates
            .list()
            .iter()
            .map(|template| templates.row(template))
            .collect(),
    ))
}

/// Read a template with its builds
#[utoipa::path(
    get, path = "/templates/{templateID}", operation_id = "getTemplate", tag = "templates",
    params(("templateID" = String, Path)),
    responses((status = 200, body = TemplateWithBuilds), (status = 404, body = ProblemBody)),
)]
pub(super) async fn get_one(
    caller: Caller,
    Segments(id): Segments<String>,
) -> Answer<Body<TemplateWithBuilds>> {
    let templates = caller.templates();
    let template = templates.find(&id)?;
    Ok(Body(templates.with_builds(&template)))
}

/// Delete a template
///
/// Sandboxes that run go on. What it takes on disk is freed when nothing uses it any more.
#[utoipa::path(
    delete, path = "/templates/{templateID}", operation_id = "deleteTemplate", tag = "templates",
    params(("templateID" = String, Path)),
    responses((status = 204), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn delete_one(
    caller: Caller,
    Segments(id): Segments<String>,
) -> Answer<StatusCode> {
    caller.templates().delete(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn update(caller: Caller, id: &str, update: TemplateUpdate) -> Answer<Body<TemplateUpdated>> {
    let template = caller.templates().set_public(id, update.public).await?;
    Ok(Body(TemplateUpdated {
        names: vec![template.full_name()],
    }))
}

/// Change a template
#[utoipa::path(
    patch, path = "/templates/{templateID}", operation_id = "updateTemplateV1", tag = "templates",
    params(("templateID" = String, Path)), request_body = TemplateUpdate,
    responses((status = 200, body = TemplateUpdated), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn update_v1(
    caller: Caller,
    Segments(id): Segments<String>,
    Json(change, _): Json<TemplateUpdate>,
) -> Answer<Body<TemplateUpdated>> {
    update(caller, &id, change).await
}

/// Change a template
#[utoipa::path(
    patch, path = "/v2/templates/{templateID}", operation_id = "updateTemplate", tag = "templates",
    params(("templateID" = String, Path)), request_body = TemplateUpdate,
    responses((status = 200, body = TemplateUpdated), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn update_v2(
    caller: Caller,
    Segments(id): Segments<String>,
    Json(change, _): Json<TemplateUpdate>,
) -> Answer<Body<TemplateUpdated>> {
    update(caller, &id, change).await
}

/// Look a template's name up
///
/// 403 if somebody else has it.
#[utoipa::path(
    get, path = "/templates/aliases/{alias}", operation_id = "getAlias", tag = "templates",
    params(("alias" = String, Path)),
    responses((status = 200, body = AliasResponse), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody)),
)]
pub(super) async fn alias(
    caller: Caller,
    Segments(alias): Segments<String>,
) -> Answer<Body<AliasResponse>> {
    match caller.templates().name(&alias)? {
        Name::Visible(template) => Ok(Body(AliasResponse {
            template_id: template.id.to_string(),
            public: template.public,
        })),
        Name::Taken => Err(Problem::new(
            ErrorCode::PermissionDenied,
            "The name is taken by somebody else",
            "choose another name",
        )
        .into()),
        Name::Free => Err(absent(&alias).into()),
    }
}

/// Which part of a build's log to read.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(super) struct BuildQuery {
    /// How many lines to skip.
    #[param(value_type = Option<u32>)]
    logs_offset: Option<String>,
    /// How many lines at most: 1 to 100.
    #[param(value_type = Option<u32>)]
    limit: Option<String>,
}

/// Read how a build goes
#[utoipa::path(
    get, path = "/templates/{templateID}/builds/{buildID}/status",
    operation_id = "getBuildStatus", tag = "templates",
    params(("templateID" = String, Path), ("buildID" = String, Path), BuildQuery),
    responses((status = 200, body = TemplateBuildInfo), (status = 404, body = ProblemBody)),
)]
pub(super) async fn build_status(
    caller: Caller,
    Segments(ids): Segments<(String, String)>,
    Parameters(query): Parameters<BuildQuery>,
) -> Answer<Body<TemplateBuildInfo>> {
    let (template, build) = ids;
    let (offset, limit) = (query.logs_offset.as_deref(), query.limit.as_deref());
    Ok(Body(
        caller
            .templates()
            .build_info(&template, &build, offset, limit)?,
    ))
}
