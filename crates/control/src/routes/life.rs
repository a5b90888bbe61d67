//! How long sandboxes live, and what they may reach.

use crate::{
    caller::Caller,
    error::{Answer, invalid},
    extract::{Json, OptionalJson, Segments},
    sandboxes::request::{check_egress, check_timeout},
};
use api::{
    error::ProblemBody,
    rest::{
        DEFAULT_TIMEOUT_V1, DEFAULT_TIMEOUT_V2,
        network::NetworkUpdate,
        sandbox::{ConnectRequest, RefreshRequest, Sandbox, TimeoutRequest},
    },
};
use axum::Json as Body;
use http::StatusCode;
use jiff::Timestamp;
use std::time::Duration;

/// The most that a refresh adds.
const REFRESH_MOST: Duration = Duration::from_secs(3600);

/// Set when a sandbox's time is up
///
/// So many seconds from now, sooner or later than before; 0 acts at once.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/timeout", operation_id = "setTimeout", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = TimeoutRequest,
    responses((status = 204), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn set_timeout(
    caller: Caller,
    Segments(id): Segments<String>,
    Json(request, _): Json<TimeoutRequest>,
) -> Answer<StatusCode> {
    let sandboxes = caller.sandboxes();
    let timeout = check_timeout(request.timeout, sandboxes.timeout_max())?;
    sandboxes
        .set_timeout(&id, timeout, Timestamp::now())
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn connect(
    caller: Caller,
    id: &str,
    request: ConnectRequest,
    default: Option<i64>,
) -> Answer<(StatusCode, Body<Sandbox>)> {
    let sandboxes = caller.sandboxes();
    let timeout = request
        .timeout
        .or(default)
        .ok_or_else(|| invalid("timeout is required"))?;
    let timeout = check_timeout(timeout, sandboxes.timeout_max())?;
    let connected = sandboxes.connect(id, timeout, Timestamp::now()).await?;
    let status = match connected.resumed {
        true => StatusCode::CREATED,
        false => StatusCode::OK,
    };
    Ok((status, Body(sandboxes.sandbox(&connected.status))))
}

/// Connect to a sandbox
///
/// Lets it live at least `timeout` seconds from now, resumes it if it is paused, and gives its
/// token again.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/connect", operation_id = "connectSandboxV1",
    tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = ConnectRequest,
    responses((status = 200, body = Sandbox, description = "it ran"),
        (status = 201, body = Sandbox, description = "it was paused and runs again"),
        (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn connect_v1(
    caller: Caller,
    Segments(id): Segments<String>,
    OptionalJson(request): OptionalJson<ConnectRequest>,
) -> Answer<(StatusCode, Body<Sandbox>)> {
    connect(caller, &id, request, None).await
}

/// Connect to a sandbox
///
/// Lets it live at least `timeout` seconds (300 if absent) from now, resumes it if it is paused,
/// and gives its token again.
#[utoipa::path(
    post, path = "/v2/sandboxes/{sandboxID}/connect", operation_id = "connectSandbox",
    tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = ConnectRequest,
    responses((status = 200, body = Sandbox, description = "it ran"),
        (status = 201, body = Sandbox, description = "it was paused and runs again"),
        (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn connect_v2(
    caller: Caller,
    Segments(id): Segments<String>,
    OptionalJson(request): OptionalJson<ConnectRequest>,
) -> Answer<(StatusCode, Body<Sandbox>)> {
    connect(caller, &id, request, Some(DEFAULT_TIMEOUT_V2)).await
}

/// Let a sandbox live a little longer
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/refreshes", operation_id = "refreshSandbox",
    tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = RefreshRequest,
    responses((status = 204), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn refresh(
    caller: Caller,
    Segments(id): Segments<String>,
    OptionalJson(request): OptionalJson<RefreshRequest>,
) -> Answer<StatusCode> {
    let sandboxes = caller.sandboxes();
    let most = sandboxes.timeout_max().min(REFRESH_MOST);
    let duration = check_timeout(request.duration.unwrap_or(DEFAULT_TIMEOUT_V1), most)?;
    sandboxes.refresh(&id, duration, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Replace what a sandbox may reach
///
/// What the request leaves out is cleared: an empty object allows everything that is public.
#[utoipa::path(
    put, path = "/sandboxes/{sandboxID}/network", operation_id = "setNetwork", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = NetworkUpdate,
    responses((status = 204), (status = "4XX", body = ProblemBody),
        (status = 501, body = ProblemBody)),
)]
pub(super) async fn set_network(
    caller: Caller,
    Segments(id): Segments<String>,
    OptionalJson(request): OptionalJson<NetworkUpdate>,
) -> Answer<StatusCode> {
    let sandboxes = caller.sandboxes();
    // First whose it is: what is refused then says nothing about others' sandboxes.
    sandboxes.find(&id).await?;
    let denied = check_egress(&request.egress)?;
    let internet = request.allow_internet_access.unwrap_or(true) && !denied;
    sandboxes.set_internet(&id, internet).await?;
    Ok(StatusCode::NO_CONTENT)
}
