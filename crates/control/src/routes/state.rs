//! Pausing, resuming, forking, snapshots.

use crate::{
    caller::Caller,
    error::Answer,
    extract::{OptionalJson, Parameters, Segments},
    sandboxes::{not_paused, request::check_timeout},
};
use api::{
    error::ProblemBody,
    rest::{
        DEFAULT_TIMEOUT_V1, DEFAULT_TIMEOUT_V2, NEXT_TOKEN_HEADER,
        sandbox::Sandbox,
        state::{
            ForkRequest, ForkResult, PauseRequest, ResumeRequest, SnapshotInfo, SnapshotQuery,
            SnapshotRequest,
        },
    },
};
use axum::Json as Body;
use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::Timestamp;

/// Pause a sandbox
///
/// Its memory and disk are kept, and nothing else is held. 409 if it is paused already.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/pause", operation_id = "pauseSandbox", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = PauseRequest,
    responses((status = 204), (status = "4XX", body = ProblemBody),
        (status = 501, body = ProblemBody, description = "the node's driver cannot"),
        (status = 503, body = ProblemBody)),
)]
pub(super) async fn pause(
    caller: Caller,
    Segments(id): Segments<String>,
    OptionalJson(request): OptionalJson<PauseRequest>,
) -> Answer<StatusCode> {
    let memory = request.memory.unwrap_or(true);
    caller.sandboxes().pause(&id, memory).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Resume a paused sandbox
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/resume", operation_id = "resumeSandbox",
    tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = ResumeRequest,
    responses((status = 201, body = Sandbox), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn resume(
    caller: Caller,
    Segments(id): Segments<String>,
    OptionalJson(request): OptionalJson<ResumeRequest>,
) -> Answer<(StatusCode, Body<Sandbox>)> {
    let sandboxes = caller.sandboxes();
    let timeout = request.timeout.unwrap_or(DEFAULT_TIMEOUT_V1);
    let timeout = check_timeout(timeout, sandboxes.timeout_max())?;
    let connected = sandboxes.connect(&id, timeout, Timestamp::now()).await?;
    if !connected.resumed {
        return Err(not_paused(&connected.status).into());
    }
    Ok((
        StatusCode::CREATED,
        Body(sandboxes.sandbox(&connected.status)),
    ))
}

/// Fork a sandbox
///
/// It stands still for a moment and goes on; each child starts with its memory and disk, and with
/// a token of its own.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/fork", operation_id = "forkSandbox", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = ForkRequest,
    responses((status = 201, body = Vec<ForkResult>), (status = "4XX", body = ProblemBody),
        (status = 501, body = ProblemBody, description = "the node's driver cannot")),
)]
pub(super) async fn fork(
    caller: Caller,
    Segments(id): Segments<String>,
    OptionalJson(request): OptionalJson<ForkRequest>,
) -> Answer<(StatusCode, Body<Vec<ForkResult>>)> {
    let sandboxes = caller.sandboxes();
    let timeout = request.timeout.unwrap_or(DEFAULT_TIMEOUT_V2);
    let timeout = check_timeout(timeout, sandboxes.timeout_max())?;
    let results = sandboxes
        .fork(&id, request.count.unwrap_or(1), timeout)
        .await?;
    let results = results.into_iter().map(|result| match result {
        Ok(status) => ForkResult {
            sandbox: Some(sandboxes.sandbox(&status)),
            error: None,
        },
        Err(problem) => ForkResult {
            sandbox: None,
            error: Some(problem.body()),
        },
    });
    Ok((StatusCode::CREATED, Body(results.collect())))
}

/// Take a snapshot of a sandbox
///
/// The sandbox goes on. The answer's `snapshotID` may stand where a template's id is asked for.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/snapshots", operation_id = "snapshotSandbox",
    tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = SnapshotRequest,
    responses((status = 201, body = SnapshotInfo), (status = "4XX", body = ProblemBody),
        (status = 501, body = ProblemBody, description = "the node's driver cannot")),
)]
pub(super) async fn snapshot(
    caller: Caller,
    Segments(id): Segments<String>,
    OptionalJson(request): OptionalJson<SnapshotRequest>,
) -> Answer<(StatusCode, Body<SnapshotInfo>)> {
    let found = caller.sandboxes().find(&id).await?;
    let memory = request.memory.unwrap_or(true);
    let info = caller
        .templates()
        .snapshot(found, request.name, memory)
        .await?;
    Ok((StatusCode::CREATED, Body(info)))
}

/// List snapshots
#[utoipa::path(
    get, path = "/snapshots", operation_id = "listSnapshots", tag = "sandboxes",
    params(SnapshotQuery),
    responses((status = 200, body = Vec<SnapshotInfo>, headers(
        ("X-Next-Token" = String, description = "where the next page starts, if there is one"),
    )), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn list_snapshots(
    caller: Caller,
    Parameters(query): Parameters<SnapshotQuery>,
) -> Answer<(HeaderMap, Body<Vec<SnapshotInfo>>)> {
    let page = caller.templates().snapshots(&query)?;
    let mut headers = HeaderMap::new();
    let token = page.next_token.map(HeaderValue::try_from);
    if let Some(Ok(token)) = token {
        headers.insert(NEXT_TOKEN_HEADER, token);
    }
    Ok((headers, Body(page.snapshots)))
}
