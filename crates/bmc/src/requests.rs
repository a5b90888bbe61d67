//! Requests and their answers.

use crate::{
    Fault, Point,
    rack::{Rack, Session},
    resources::{self, RESETS},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderValue, IF_MATCH, LOCATION},
};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// No request is longer, in bytes.
const LONGEST: usize = 64 << 10;

pub(crate) type Shared = Arc<Mutex<Rack>>;
type Answer = Response<Full<Bytes>>;

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut")]
pub(crate) struct Cut;

pub(crate) fn lock(shared: &Shared) -> MutexGuard<'_, Rack> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers a request, as far as faults allow.
pub(crate) async fn answer(shared: Shared, request: Request<Incoming>) -> Result<Answer, Cut> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, LONGEST).collect().await;
    let body = body.map_err(|_| Cut)?.to_bytes();
    let path = head.uri.path().to_owned();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let faults = faults(&lock(&shared), &parts);
    for fault in &faults {
        match fault {
            Fault::Slow(long) => tokio::time::sleep(*long).await,
            Fault::Cut => return Err(Cut),
            Fault::Status(code) => {
                let code = StatusCode::from_u16(*code).map_err(|_| Cut)?;
                return Ok(refuse(code, "out of order"));
            }
            _ => {}
        }
    }
    let point = match (&head.method, parts.as_slice()) {
        (&Method::POST, ["redfish", "v1", "SessionService", ..]) => Some(Point::Session),
        (&Method::GET, ["redfish", "v1", "Systems", ..]) => Some(Point::Read),
        (&Method::POST, ["redfish", "v1", "Systems", ..]) => Some(Point::BeforeReset),
        _ => None,
    };
    if point.is_some_and(|point| lock(&shared).reaches(point)) {
        std::future::pending::<()>().await;
    }
    let answer = respond(
        &mut lock(&shared),
        &head.method,
        &parts,
        &head.headers,
        &body,
    );
    let done = point == Some(Point::BeforeReset) && answer.status().is_success();
    if done && lock(&shared).reaches(Point::AfterReset) {
        std::future::pending::<()>().await;
    }
    if done && faults.contains(&Fault::CutAfter) {
        return Err(Cut);
    }
    Ok(answer)
}

/// What is wrong with the controller, and with the machine that a path is about.
fn faults(rack: &Rack, parts: &[&str]) -> Vec<Fault> {
    let name = match parts {
        ["redfish", "v1", "Systems" | "Chassis", name, ..] => Some(*name),
        _ => None,
    };
    let machine = name.and_then(|name| rack.machine(name));
    let own = machine.map_or(&[][..], |one| one.faults.as_slice());
    rack.faults.iter().chain(own).copied().collect()
}

fn respond(
    rack: &mut Rack,
    method: &Method,
    parts: &[&str],
    headers: &HeaderMap,
    body: &[u8],
) -> Answer {
    // What anybody may see (DSP0266, 13.3.1).
    match (method, parts) {
        (&Method::GET, ["redfish"]) => return show(&resources::versions()),
        (&Method::GET, ["redfish", "v1"]) => return show(&resources::service_root()),
        (&Method::GET, ["redfish", "v1", "odata"]) => {
            return show(&resources::service_document());
        }
        (&Method::GET, ["redfish", "v1", "$metadata"]) => {
            return send(StatusCode::OK, "application/xml", resources::metadata());
        }
        (&Method::POST, ["redfish", "v1", "SessionService", "Sessions"]) => {
            return log_in(rack, body);
        }
        _ => {}
    }
    if !knows(rack, headers) {
        return refuse(StatusCode::UNAUTHORIZED, "nobody knows who asks");
    }
    let Some(parts) = parts.strip_prefix(&["redfish", "v1"]) else {
        return refuse(StatusCode::NOT_FOUND, "there is nothing");
    };
    match (method, parts) {
        (&Method::POST, ["Systems", name, "Actions", "ComputerSystem.Reset"]) => {
            reset(rack, name, headers, body)
        }
        (&Method::DELETE, ["SessionService", "Sessions", id]) => {
            let known = id
                .parse()
                .ok()
                .and_then(|id: u64| rack.sessions.remove(&id));
            match known {
                Some(_) => empty(),
                None => refuse(StatusCode::NOT_FOUND, "there is no such session"),
            }
        }
        (&Method::GET | &Method::HEAD, parts) => match resources::find(rack, parts) {
            Some(value) => show(&value),
            None => refuse(StatusCode::NOT_FOUND, "there is nothing"),
        },
        _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "this cannot be done"),
    }
}

fn log_in(rack: &mut Rack, body: &[u8]) -> Answer {
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    let (user, password) = (&asked["UserName"], &asked["Password"]);
    if *user != rack.user.as_str() || *password != rack.password.as_str() {
        return refuse(StatusCode::UNAUTHORIZED, "name or password are wrong");
    }
    rack.made_sessions += 1;
    let id = rack.made_sessions;
    let session = Session {
        token: format!("token-{id}-{}", rack.now.as_nanos()),
        user: rack.user.clone(),
    };
    let token = session.token.clone();
    rack.sessions.insert(id, session);
    let shown = resources::session(rack, &id.to_string()).unwrap_or_default();
    let mut answer = show(&shown);
    *answer.status_mut() = StatusCode::CREATED;
    let location = format!("/redfish/v1/SessionService/Sessions/{id}");
    for (name, value) in [("x-auth-token", token), (LOCATION.as_str(), location)] {
        if let (Ok(name), Ok(value)) = (
            hyper::header::HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(&value),
        ) {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}

/// Whether a request says who asks: with a session's token, or with name and password.
fn knows(rack: &Rack, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(token) = text("x-auth-token") {
        return rack.sessions.values().any(|one| one.token == token);
    }
    let pair = text(AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Basic "));
    let expected = STANDARD.encode(format!("{}:{}", rack.user, rack.password));
    rack.basic && pair == Some(expected.as_str())
}

fn reset(rack: &mut Rack, name: &str, headers: &HeaderMap, body: &[u8]) -> Answer {
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(how) = asked["ResetType"]
        .as_str()
        .filter(|how| RESETS.contains(how))
    else {
        return refuse(StatusCode::BAD_REQUEST, "there is no such reset");
    };
    let Some(machine) = rack.machine(name) else {
        return refuse(StatusCode::NOT_FOUND, "there is no such system");
    };
    let tag = headers.get(IF_MATCH).and_then(|value| value.to_str().ok());
    match tag {
        None if machine.has(Fault::WantsTag) => {
            return refuse(StatusCode::PRECONDITION_REQUIRED, "If-Match is missing");
        }
        Some(tag) if tag != resources::tag(machine) => {
            return refuse(StatusCode::PRECONDITION_FAILED, "it has changed");
        }
        _ => {}
    }
    rack.reset(name, how);
    empty()
}

fn show(value: &Value) -> Answer {
    let mut answer = send(StatusCode::OK, "application/json", value.to_string());
    let tag = value["@odata.etag"].as_str();
    if let Some(Ok(tag)) = tag.map(HeaderValue::from_str) {
        answer.headers_mut().insert(ETAG, tag);
    }
    let sessions = value["@odata.type"] == "#SessionCollection.SessionCollection";
    let allow = if sessions {
        "GET, HEAD, POST"
    } else {
        "GET, HEAD"
    };
    let headers = answer.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allow));
    answer
}

fn refuse(status: StatusCode, message: &str) -> Answer {
    let body = json!({ "error": { "code": "Base.1.18.GeneralError", "message": message } });
    send(status, "application/json", body.to_string())
}

fn empty() -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
        .headers_mut()
        .insert("odata-version", HeaderValue::from_static("4.0"));
    answer
}

fn send(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert("odata-version", HeaderValue::from_static("4.0"));
    headers.insert("cache-control", HeaderValue::from_static("no-cache"));
    answer
}
