//! Creating, listing, reading and killing sandboxes.

use crate::error::invalid;
use crate::{
    caller::Caller,
    error::Answer,
    extract::{Json, Parameters, Segments},
    sandboxes::{request::Family, show::listed},
};
use api::{
    error::ProblemBody,
    rest::{
        IDEMPOTENCY_KEY_HEADER, NEXT_TOKEN_HEADER, TOTAL_RUNNING_HEADER,
        listing::Selection,
        sandbox::{ListQuery, ListedSandbox, NewSandbox, Sandbox, SandboxDetail},
    },
};
use axum::Json as Body;
use http::{HeaderMap, HeaderValue, StatusCode};

async fn create(
    caller: Caller,
    headers: &HeaderMap,
    Json(request, body): Json<NewSandbox>,
    family: Family,
) -> Answer<(StatusCode, Body<Sandbox>)> {
    let key = match headers.get(IDEMPOTENCY_KEY_HEADER) {
        None => None,
        Some(value) => Some(
            value
                .to_str()
                .map_err(|_| invalid("Idempotency-Key has characters beyond ASCII"))?,
        ),
    };
    let sandbox = caller
        .sandboxes()
        .create(request, family, &body, key)
        .await?;
    Ok((StatusCode::CREATED, Body(sandbox)))
}

/// Create a sandbox
///
/// Answers when its guest serves. `secure` decides whether a token opens it.
#[utoipa::path(
    post, path = "/sandboxes", operation_id = "createSandboxV1", tag = "sandboxes",
    params(("Idempotency-Key" = Option<String>, Header,
        description = "makes the request repeatable for an hour: `[a-z0-9-]{1,255}`")),
    request_body = NewSandbox,
    responses((status = 201, body = Sandbox), (status = "4XX", body = ProblemBody),
        (status = "5XX", body = ProblemBody)),
)]
pub(super) async fn create_v1(
    caller: Caller,
    headers: HeaderMap,
    body: Json<NewSandbox>,
) -> Answer<(StatusCode, Body<Sandbox>)> {
    create(caller, &headers, body, Family::V1).await
}

/// Create a sandbox that a token opens
///
/// Answers when its guest serves.
#[utoipa::path(
    post, path = "/v2/sandboxes", operation_id = "createSandbox", tag = "sandboxes",
    params(("Idempotency-Key" = Option<String>, Header,
        description = "makes the request repeatable for an hour: `[a-z0-9-]{1,255}`")),
    request_body = NewSandbox,
    responses((status = 201, body = Sandbox), (status = "4XX", body = ProblemBody),
        (status = "5XX", body = ProblemBody)),
)]
pub(super) async fn create_v2(
    caller: Caller,
    headers: HeaderMap,
    body: Json<NewSandbox>,
) -> Answer<(StatusCode, Body<Sandbox>)> {
    create(caller, &headers, body, Family::V2).await
}

type Listed = (HeaderMap, Body<Vec<ListedSandbox>>);

async fn list(caller: Caller, mut query: ListQuery) -> Answer<Listed> {
    if let Some(template) = query
        .template
        .take()
        .filter(|template| !template.is_empty())
    {
        // A name of a template that has been renamed or deleted may still be a sandbox's alias.
        let name = template.rsplit('/').next().unwrap_or_default();
        query.template = Some(name.to_owned());
    }
    let selection = Selection::parse(&query)?;
    let all = caller.sandboxes().all().await?;
    let listing = selection.apply(&all);
    let mut headers = HeaderMap::new();
    headers.insert(TOTAL_RUNNING_HEADER, HeaderValue::from(listing.running));
    if let Some(token) = listing
        .next_token
        .and_then(|token| HeaderValue::try_from(token).ok())
    {
        headers.insert(NEXT_TOKEN_HEADER, token);
    }
    Ok((
        headers,
        Body(listing.page.into_iter().map(listed).collect()),
    ))
}

/// List running and paused sandboxes
#[utoipa::path(
    get, path = "/v2/sandboxes", operation_id = "listSandboxes", tag = "sandboxes",
    params(ListQuery),
    responses((status = 200, body = Vec<ListedSandbox>, headers(
        ("X-Next-Token" = String, description = "where the next page starts, if there is one"),
        ("X-Total-Running" = u32, description = "how many of all that match run"),
    )), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn list_v2(
    caller: Caller,
    Parameters(query): Parameters<ListQuery>,
) -> Answer<Listed> {
    list(caller, query).await
}

/// List running sandboxes
#[utoipa::path(
    get, path = "/sandboxes", operation_id = "listSandboxesV1", tag = "sandboxes",
    params(ListQuery),
    responses((status = 200, body = Vec<ListedSandbox>), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn list_v1(
    caller: Caller,
    Parameters(mut query): Parameters<ListQuery>,
) -> Answer<Listed> {
    query.state.get_or_insert_with(|| "running".to_owned());
    list(caller, query).await
}

/// Read a sandbox
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}", operation_id = "getSandbox", tag = "sandboxes",
    params(("sandboxID" = String, Path)),
    responses((status = 200, body = SandboxDetail), (status = 404, body = ProblemBody)),
)]
pub(super) async fn get_one(
    caller: Caller,
    Segments(id): Segments<String>,
) -> Answer<Body<SandboxDetail>> {
    let sandboxes = caller.sandboxes();
    let found = sandboxes.find(&id).await?;
    Ok(Body(sandboxes.detail(&found.status)))
}

/// Kill a sandbox
#[utoipa::path(
    delete, path = "/sandboxes/{sandboxID}", operation_id = "killSandbox", tag = "sandboxes",
    params(("sandboxID" = String, Path)),
    responses((status = 204), (status = 404, body = ProblemBody)),
)]
pub(super) async fn delete_one(
    caller: Caller,
    Segments(id): Segments<String>,
) -> Answer<StatusCode> {
    caller.sandboxes().kill(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
