//! What E2B has no words for.

use crate::{
    caller::{Admin, Caller},
    error::{Answer, invalid, not_found, shorten},
    extract::{Json, OptionalJson, Parameters, Segments},
    keys,
};
use api::{
    Problem,
    error::ProblemBody,
    node::{BuildEvent, NodeDescription, SandboxState, SandboxStatus},
    rest::v1::{
        BuildLine, CreatedKey, GarbageQuery, Key, NewKey, NewTemplate, NodeGarbage, SandboxesQuery,
        Template, TemplateLine,
    },
};
use axum::{
    Json as Body,
    body::Body as HttpBody,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{StatusCode, header};
use std::{convert::Infallible, sync::Arc};

/// Whether the control plane serves
#[utoipa::path(
    get, path = "/health", operation_id = "health", tag = "v1", security(()),
    responses((status = 204)),
)]
pub(super) async fn health() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// List the nodes (admin keys only)
#[utoipa::path(
    get, path = "/v1/nodes", operation_id = "listNodes", tag = "v1",
    responses((status = 200, body = Vec<Object>, description = "what each node said last"),
        (status = 403, body = ProblemBody)),
)]
pub(super) async fn nodes(Admin(plane): Admin) -> Answer<Body<Vec<NodeDescription>>> {
    plane.nodes.refresh().await;
    Ok(Body(plane.nodes.descriptions()))
}

/// Remove what nothing needs from the nodes' disks (admin keys only)
///
/// With `dryRun=true` nothing is removed: the answer says what would be, and why the rest is kept.
#[utoipa::path(
    post, path = "/v1/gc", operation_id = "collectGarbage", tag = "v1",
    params(GarbageQuery),
    responses((status = 200, body = Vec<NodeGarbage>), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn collect_garbage(
    Admin(plane): Admin,
    Parameters(query): Parameters<GarbageQuery>,
) -> Answer<Body<Vec<NodeGarbage>>> {
    let dry_run = match query.dry_run.as_deref() {
        None | Some("" | "false") => false,
        Some("true") => true,
        Some(other) => {
            let other = shorten(other);
            return Err(invalid(format!("dryRun is `{other}`: expected true or false")).into());
        }
    };
    Ok(Body(plane.collect_garbage(dry_run).await?))
}

/// List the keys of all tenants (admin keys only)
#[utoipa::path(
    get, path = "/v1/keys", operation_id = "listKeys", tag = "v1",
    responses((status = 200, body = Vec<Key>), (status = 403, body = ProblemBody)),
)]
pub(super) async fn keys(Admin(plane): Admin) -> Answer<Body<Vec<Key>>> {
    Ok(Body(
        plane
            .catalogue
            .keys()
            .iter()
            .map(|key| keys::show(key))
            .collect(),
    ))
}

/// Make a key (admin keys only)
///
/// The answer is the only place where the key itself is shown.
#[utoipa::path(
    post, path = "/v1/keys", operation_id = "createKey", tag = "v1",
    request_body = NewKey,
    responses((status = 201, body = CreatedKey), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn create_key(
    Admin(plane): Admin,
    caller: Caller,
    OptionalJson(request): OptionalJson<NewKey>,
) -> Answer<(StatusCode, Body<CreatedKey>)> {
    let created = keys::create(&plane, caller.tenant(), &request).await?;
    Ok((StatusCode::CREATED, Body(created)))
}

/// Delete a key (admin keys only)
#[utoipa::path(
    delete, path = "/v1/keys/{keyID}", operation_id = "deleteKey", tag = "v1",
    params(("keyID" = String, Path)),
    responses((status = 204), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn delete_key(
    Admin(plane): Admin,
    Segments(id): Segments<String>,
) -> Answer<StatusCode> {
    keys::delete(&plane, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List sandboxes in full, newest first
///
/// `state=ended` lists those that ended in the last day, with reason and time.
#[utoipa::path(
    get, path = "/v1/sandboxes", operation_id = "listSandboxesInFull", tag = "v1",
    params(SandboxesQuery),
    responses((status = 200, body = Vec<Object>), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn sandboxes(
    caller: Caller,
    Parameters(query): Parameters<SandboxesQuery>,
) -> Answer<Body<Vec<SandboxStatus>>> {
    let wanted = query.state.filter(|state| !state.is_empty());
    let wanted = wanted.unwrap_or_else(|| "running,paused".to_owned());
    let (mut running, mut paused, mut ended) = (false, false, false);
    for state in wanted.split(',') {
        match state.trim() {
            "running" => running = true,
            "paused" => paused = true,
            "ended" => ended = true,
            other => return Err(invalid(format!("Invalid state `{}`", shorten(other))).into()),
        }
    }
    let mut all = caller.sandboxes().all().await?;
    all.retain(|status| match status.state {
        SandboxState::Starting
        | SandboxState::Running
        | SandboxState::Pausing
        | SandboxState::Resuming => running,
        SandboxState::Paused => paused,
        SandboxState::Stopping { .. } | SandboxState::Ended { .. } => ended,
    });
    all.sort_by(|a, b| (b.started_at, &b.id).cmp(&(a.started_at, &a.id)));
    Ok(Body(all.into_iter().map(Arc::unwrap_or_clone).collect()))
}

/// Read a sandbox in full, also after its end
#[utoipa::path(
    get, path = "/v1/sandboxes/{sandboxID}", operation_id = "getSandboxInFull", tag = "v1",
    params(("sandboxID" = String, Path)),
    responses((status = 200, body = Object), (status = 404, body = ProblemBody)),
)]
pub(super) async fn sandbox(
    caller: Caller,
    Segments(id): Segments<String>,
) -> Answer<Body<SandboxStatus>> {
    Ok(Body(caller.sandboxes().find_any(&id).await?.status))
}

/// List templates in full
///
/// The caller's own, then public ones.
#[utoipa::path(
    get, path = "/v1/templates", operation_id = "listTemplatesInFull", tag = "v1",
    responses((status = 200, body = Vec<Template>), (status = 401, body = ProblemBody)),
)]
pub(super) async fn templates(caller: Caller) -> Answer<Body<Vec<Template>>> {
    let templates = caller.templates();
    Ok(Body(
        templates
            .list()
            .iter()
            .map(|template| templates.full(template))
            .collect(),
    ))
}

/// Build a template
///
/// Answers with newline-delimited JSON while it builds: `step`, `progress`, `log`, and last
/// `template` or `failed`. The build goes on when the caller goes away; several callers may ask
/// for the same. Sources that read the node's own files need an admin key.
#[utoipa::path(
    post, path = "/v1/templates", operation_id = "buildTemplate", tag = "v1",
    request_body = NewTemplate,
    responses(
        (status = 200, body = Object, content_type = "application/x-ndjson"),
        (status = "4XX", body = ProblemBody),
    ),
)]
pub(super) async fn build_template(
    caller: Caller,
    Json(request, _): Json<NewTemplate>,
) -> Answer<Response> {
    let templates = caller.templates();
    let begun = templates.build(request).await?;
    let lines = futures::stream::unfold(Some((begun, templates)), |state| async move {
        let (mut begun, templates) = state?;
        loop {
            let line = match begun.events.next().await {
                // Its own line says more, once everything is in the store.
                Ok(BuildEvent::Ready(_) | BuildEvent::Failed { .. }) => continue,
                Ok(event) => BuildLine::Event(event),
                Err(result) => {
                    let built = result.and_then(|()| {
                        let built = templates.find(begun.template.as_str());
                        built.map_err(|_| not_found("The template was deleted meanwhile"))
                    });
                    let line = match built {
                        Ok(template) => BuildLine::Template(TemplateLine::Template {
                            template: templates.full(&template),
                        }),
                        Err(problem) => BuildLine::Event(failed(problem)),
                    };
                    return Some((Ok::<Bytes, Infallible>(write(&line)), None));
                }
            };
            return Some((Ok(write(&line)), Some((begun, templates))));
        }
    });
    let body = HttpBody::from_stream(lines);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn failed(Problem { cause, remedy, .. }: Problem) -> BuildEvent {
    BuildEvent::Failed { cause, remedy }
}

fn write(line: &BuildLine) -> Bytes {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}
