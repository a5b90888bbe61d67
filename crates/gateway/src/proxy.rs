//! One request, to a server in a sandbox and back.

use crate::{
    GUEST_PORT,
    body::{Body, RequestBody},
    connection::Active,
    cors,
    door::Door,
    headers::{self, Arrival},
    host::Target,
    metrics::count,
    refusal::Refusal,
    sandbox::InFlight,
    tunnel,
    upstream::{ConnectError, Lease},
};
use api::{SandboxId, Secret, route::Route};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_LENGTH, HOST},
    request::Parts,
    uri::PathAndQuery,
};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    upgrade::{self, OnUpgrade},
};
use std::sync::{Arc, atomic::AtomicBool};
use subtle::ConstantTimeEq;

/// How often a request that a server certainly has not seen is sent again.
const MOST_TRIES: usize = 3;

/// The route to a sandbox that a request is for. One that is paused is woken for it, unless
/// `head` shows that the request would be refused; without it that is known already.
pub(crate) async fn find(
    door: &Door,
    target: &Target,
    head: Option<(&HeaderMap, &Uri)>,
) -> Result<(SandboxId, Route), Refusal> {
    let id: SandboxId = target.sandbox.parse().map_err(|_| not_found(target))?;
    let found = {
        let mut found = door.locate.locate(&id);
        // Most answers come from memory: no timer for those.
        match futures::future::poll_immediate(&mut found).await {
            Some(Some(route)) => Some(route),
            Some(None) => patiently(door, target, wake(door, target, &id, head)).await?,
            None => {
                let search = async {
                    match found.await {
                        Some(route) => Ok(Some(route)),
                        None => wake(door, target, &id, head).await,
                    }
                };
                patiently(door, target, search).await?
            }
        }
    };
    found
        .map(|route| (id, route))
        .ok_or_else(|| not_found(target))
}

fn not_found(target: &Target) -> Refusal {
    Refusal::NotFound {
        sandbox: target.sandbox.clone(),
    }
}

/// Waits as long as a request may wait for its sandbox; without a timer if the answer is there.
async fn patiently(
    door: &Door,
    target: &Target,
    search: impl Future<Output = Result<Option<Route>, Refusal>>,
) -> Result<Option<Route>, Refusal> {
    let mut search = std::pin::pin!(search);
    if let Some(answer) = futures::future::poll_immediate(&mut search).await {
        return answer;
    }
    tokio::time::timeout(door.limits.locate_timeout, search)
        .await
        .unwrap_or_else(|_| {
            Err(Refusal::LocateTimeout {
                sandbox: target.sandbox.clone(),
            })
        })
}

async fn wake(
    door: &Door,
    target: &Target,
    id: &SandboxId,
    head: Option<(&HeaderMap, &Uri)>,
) -> Result<Option<Route>, Refusal> {
    if let Some((headers, uri)) = head {
        if target.port == GUEST_PORT {
            if headers::is_guest_control(uri.path()) {
                return Ok(None);
            }
        } else if let Some(token) = door.locate.token_of_paused(id).await {
            check_token(headers, &token, || target.sandbox.clone())?;
        }
    }
    door.wakes.wake(id).await
}

/// Whether a sandbox runs now.
async fn is_there(door: &Door, id: &SandboxId) -> bool {
    let found = tokio::time::timeout(door.limits.locate_timeout, door.locate.locate(id));
    matches!(found.await, Ok(Some(_)))
}

/// Sends a request to a server in a sandbox and gives back what it answers.
pub(crate) async fn forward(
    door: &Arc<Door>,
    active: &Active,
    target: &Target,
    (id, route): (&SandboxId, &Route),
    host: HeaderValue,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let guest = target.port == GUEST_PORT;
    let sandbox = || target.sandbox.clone();
    if guest {
        if headers::is_guest_control(request.uri().path()) {
            return Err(Refusal::ControlRoute { sandbox: sandbox() });
        }
        if cors::is_preflight(&request) {
            return Ok(cors::allow_preflight(request.headers()));
        }
    } else if let Some(token) = &route.traffic_token {
        check_token(request.headers(), token, sandbox)?;
    }
    let Some(in_flight) = door.sandboxes.enter(id, route.address) else {
        return Err(Refusal::Busy { sandbox: sandbox() });
    };

    // The guest takes no upgrades; a tunnel to it would pass by the check of paths.
    let upgrade = (!guest && request.version() == Version::HTTP_11)
        .then(|| headers::upgrade_of(request.headers()))
        .flatten();
    let client = upgrade.is_some().then(|| upgrade::on(&mut request));
    let host = match &route.mask_request_host {
        Some(mask) if !guest => {
            HeaderValue::try_from(mask.replace("${PORT}", &target.port.to_string())).unwrap_or(host)
        }
        _ => host,
    };
    let arrival = Arrival {
        client: &active.0.forwarded_for,
        secure: active.0.secure,
        host,
        upgrade: upgrade.clone(),
    };
    headers::prepare_request(request.headers_mut(), arrival);

    let (mut parts, body) = request.into_parts();
    parts.uri = origin_form(parts.uri);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    let outgoing = Outgoing::new(parts, body);
    let (mut response, lease) = send(door, outgoing, in_flight, (id, target)).await?;

    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let accepted = switching
        .then(|| headers::upgrade_of(response.headers()))
        .flatten();
    match (client, accepted) {
        (Some(client), Some(protocol)) => {
            Ok(switch(door, active, client, response, protocol, lease))
        }
        _ if switching => {
            // Nobody asked for it: what follows is no HTTP.
            Err(Refusal::NoAnswer {
                sandbox: sandbox(),
                port: target.port,
            })
        }
        _ => {
            headers::remove_hop_by_hop(response.headers_mut());
            if guest {
                cors::allow_reading(response.headers_mut());
            }
            *response.version_mut() = Version::HTTP_11;
            Ok(response.map(|incoming| Body::relay(incoming, lease)))
        }
    }
}

fn check_token(
    headers: &HeaderMap,
    token: &Secret,
    sandbox: impl Fn() -> String,
) -> Result<(), Refusal> {
    let sent = headers
        .get(headers::TRAFFIC_TOKEN)
        .ok_or_else(|| Refusal::TokenMissing { sandbox: sandbox() })?;
    if bool::from(sent.as_bytes().ct_eq(token.expose().as_bytes())) {
        Ok(())
    } else {
        Err(Refusal::TokenWrong { sandbox: sandbox() })
    }
}

/// Path and query alone: what a server expects (RFC 9112, section 3.2.1).
fn origin_form(uri: Uri) -> Uri {
    if uri.scheme().is_none() && uri.authority().is_none() {
        return uri;
    }
    let path = uri
        .path_and_query()
        .cloned()
        .unwrap_or(PathAndQuery::from_static("/"));
    Uri::from(path)
}

/// A request that may have to be sent more than once.
struct Outgoing {
    request: Request<RequestBody>,
    body_sent: Option<Arc<AtomicBool>>,
    /// Whether sending it twice does no harm and is possible.
    repeatable: bool,
}

impl Outgoing {
    fn new(mut parts: Parts, body: Incoming) -> Self {
        let method = &parts.method;
        if body.is_end_stream() {
            let repeatable = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
            if repeatable {
                parts.headers.remove(CONTENT_LENGTH);
            }
            let request = Request::from_parts(parts, RequestBody::Empty);
            return Self {
                request,
                body_sent: None,
                repeatable,
            };
        }
        let sent = Arc::new(AtomicBool::new(false));
        let body = RequestBody::Stream {
            incoming: body,
            sent: sent.clone(),
        };
        let request = Request::from_parts(parts, body);
        Self {
            request,
            body_sent: Some(sent),
            repeatable: false,
        }
    }
}

/// A copy of a request without a body.
fn copy(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

async fn send(
    door: &Arc<Door>,
    outgoing: Outgoing,
    mut in_flight: InFlight,
    (id, target): (&SandboxId, &Target),
) -> Result<(Response<Incoming>, Lease), Refusal> {
    let Outgoing {
        mut request,
        body_sent,
        repeatable,
    } = outgoing;
    let (sandbox, port) = (|| target.sandbox.clone(), target.port);
    for attempt in 1..=MOST_TRIES {
        let fresh = attempt > 1;
        let mut lease = match Lease::take(door, in_flight, port, fresh).await {
            Ok(lease) => lease,
            Err((ConnectError::Closed(error), in_flight)) if !in_flight.0.has_ended() => {
                tracing::debug!(%error, sandbox = %in_flight.0.id, port, "cannot connect");
                return Err(Refusal::PortClosed {
                    sandbox: sandbox(),
                    port,
                });
            }
            Err(_) => {
                // Paused between its look-up and now: the request has not left yet.
                in_flight = again(door, target).await?;
                continue;
            }
        };
        lease.body_sent = body_sent.clone();
        // A server may close an idle connection just when it is used again.
        let spare = (repeatable && lease.doubtful).then(|| copy(&request));
        let unsent = match lease.send(request).await {
            Ok(response) => return Ok((response, lease)),
            Err(unsent) => unsent.or(spare),
        };
        in_flight = lease.close();
        match unsent {
            Some(unsent) => request = unsent,
            None if in_flight.0.has_ended() => return Err(not_found(target)),
            None => break,
        }
        if in_flight.0.has_ended() {
            in_flight = again(door, target).await?;
        }
    }
    // A server that dies with its sandbox may be noticed before the sandbox's end is.
    if !is_there(door, id).await {
        return Err(not_found(target));
    }
    Err(Refusal::NoAnswer {
        sandbox: sandbox(),
        port,
    })
}

/// Finds a sandbox once more for a request that it has not seen.
async fn again(door: &Arc<Door>, target: &Target) -> Result<InFlight, Refusal> {
    let (id, route) = find(door, target, None).await?;
    let entered = door.sandboxes.enter(&id, route.address);
    entered.ok_or_else(|| Refusal::Busy {
        sandbox: target.sandbox.clone(),
    })
}

/// Joins client and server once both have left HTTP.
fn switch(
    door: &Arc<Door>,
    active: &Active,
    client: OnUpgrade,
    mut response: Response<Incoming>,
    protocol: HeaderValue,
    lease: Lease,
) -> Response<Body> {
    use http::header::{CONNECTION, UPGRADE};
    let server = upgrade::on(&mut response);
    let headers = response.headers_mut();
    headers::remove_hop_by_hop(headers);
    headers.remove(HOST);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
    count(&door.registry.counters.tunnels);
    door.tasks
        .spawn(tunnel::run(client, server, lease, active.0.begin()));
    response.map(|_| Body::empty())
}
