//! The Redfish driver against services with faults that real ones have.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at what it did not expect"
)]

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use fleet::{
    config::{PowerEntry, SecretSource},
    power::{PowerDriver, PowerError, Reading, Switch, drivers::RedfishDriver},
};
use serde_json::{Value, json};
use sha2::Digest;
use std::sync::{Arc, Mutex};

/// A management controller.
#[derive(Debug, Default)]
struct Service {
    on: bool,
    sessions: bool,
    token: u32,
    expired: bool,
    wants_tag: bool,
    status: Option<u16>,
    systems: usize,
    allowed: Option<Vec<&'static str>>,
    resets: Vec<String>,
    logins: u32,
}

type Shared = Arc<Mutex<Service>>;

fn admitted(service: &Service, headers: &HeaderMap) -> bool {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let token = format!("token-{}", service.token);
    let by_token = value("X-Auth-Token") == Some(token.as_str()) && !service.expired;
    // admin:password
    let basic = value("authorization") == Some("Basic YWRtaW46cGFzc3dvcmQ=");
    by_token || (basic && !service.sessions)
}

async fn login(State(shared): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut service = shared.lock().unwrap();
    if !service.sessions {
        return StatusCode::NOT_FOUND.into_response();
    }
    service.logins += 1;
    if body["Password"] != "password" {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    service.token += 1;
    service.expired = false;
    let token = format!("token-{}", service.token);
    (StatusCode::CREATED, [("X-Auth-Token", token)]).into_response()
}

async fn systems(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let service = shared.lock().unwrap();
    if !admitted(&service, &headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let members: Vec<Value> = (1..=service.systems)
        .map(|at| json!({ "@odata.id": format!("/redfish/v1/Systems/{at}") }))
        .collect();
    Json(json!({ "Members": members })).into_response()
}

async fn system(
    State(shared): State<Shared>,
    Path(_): Path<String>,
    headers: HeaderMap,
) -> Response {
    let service = shared.lock().unwrap();
    if !admitted(&service, &headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if let Some(status) = service.status {
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    let mut reset = json!({ "target": "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset" });
    if let Some(allowed) = &service.allowed {
        reset["ResetType@Redfish.AllowableValues"] = json!(allowed);
    }
    let body = json!({
        "PowerState": if service.on { "On" } else { "Off" },
        "Actions": { "#ComputerSystem.Reset": reset },
    });
    ([("ETag", "W/\"7\"")], Json(body)).into_response()
}

async fn reset(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let mut service = shared.lock().unwrap();
    if !admitted(&service, &headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if service.wants_tag && headers.get("if-match").is_none_or(|tag| tag != "W/\"7\"") {
        return StatusCode::PRECONDITION_REQUIRED.into_response();
    }
    let how = body["ResetType"].as_str().unwrap().to_owned();
    service.on = how.ends_with("On");
    service.resets.push(how);
    StatusCode::NO_CONTENT.into_response()
}

fn router(shared: &Shared) -> Router {
    Router::new()
        .route("/redfish/v1/SessionService/Sessions", post(login))
        .route("/redfish/v1/Systems", get(systems))
        .route("/redfish/v1/Systems/{id}", get(system))
        .route(
            "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset",
            post(reset),
        )
        .with_state(shared.clone())
}

struct Bench {
    shared: Shared,
    driver: RedfishDriver,
    _folder: tempfile::TempDir,
    _server: tokio::task::JoinSet<()>,
}

fn entry(folder: &tempfile::TempDir, address: String, password: &str) -> PowerEntry {
    let path = folder.path().join("password");
    std::fs::write(&path, password).unwrap();
    PowerEntry::Redfish {
        address,
        system: None,
        user: "admin".into(),
        password: SecretSource::File(path),
        certificate_sha256: None,
        timeout: None,
    }
}

async fn bench(service: Service, password: &str) -> Bench {
    let shared: Shared = Arc::new(Mutex::new(service));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let mut server = tokio::task::JoinSet::new();
    let app = router(&shared);
    server.spawn(async move { axum::serve(listener, app).await.unwrap() });
    let folder = tempfile::tempdir().unwrap();
    let driver = RedfishDriver::open(&entry(&folder, address, password)).unwrap();
    Bench {
        shared,
        driver,
        _folder: folder,
        _server: server,
    }
}

fn one() -> Service {
    Service {
        systems: 1,
        ..Service::default()
    }
}

#[tokio::test]
async fn a_system_is_switched_with_basic_authentication() {
    let bench = bench(one(), "password").await;
    assert_eq!(bench.driver.read().await, Ok(Reading::Off));
    for switch in [Switch::On, Switch::Off, Switch::ForceOff] {
        bench.driver.switch(switch).await.unwrap();
    }
    let resets = bench.shared.lock().unwrap().resets.clone();
    assert_eq!(resets, ["On", "GracefulShutdown", "ForceOff"]);
}

#[tokio::test]
async fn a_session_is_kept_and_made_anew_when_it_has_ended() {
    let service = Service {
        sessions: true,
        ..one()
    };
    let bench = bench(service, "password").await;
    for _ in 0..3 {
        bench.driver.read().await.unwrap();
    }
    assert_eq!(bench.shared.lock().unwrap().logins, 1);
    bench.shared.lock().unwrap().expired = true;
    bench.driver.switch(Switch::On).await.unwrap();
    assert_eq!(bench.shared.lock().unwrap().logins, 2);
}

#[tokio::test]
async fn a_wrong_password_is_said_to_be_wrong() {
    for sessions in [true, false] {
        let service = Service { sessions, ..one() };
        let bench = bench(service, "hunter2").await;
        assert_eq!(bench.driver.read().await, Err(PowerError::Denied));
        let error = bench.driver.switch(Switch::On).await.unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}

#[tokio::test]
async fn a_tag_is_sent_where_it_is_wanted() {
    let service = Service {
        wants_tag: true,
        ..one()
    };
    let bench = bench(service, "password").await;
    bench.driver.switch(Switch::On).await.unwrap();
    assert_eq!(bench.driver.read().await, Ok(Reading::On));
}

#[tokio::test]
async fn what_the_system_does_not_know_is_not_sent() {
    let service = Service {
        allowed: Some(vec!["ForceOn", "ForceOff"]),
        ..one()
    };
    let bench = bench(service, "password").await;
    bench.driver.switch(Switch::On).await.unwrap();
    let refused = bench.driver.switch(Switch::Off).await;
    assert!(matches!(refused, Err(PowerError::Unsupported(_))));
    assert_eq!(bench.shared.lock().unwrap().resets, ["ForceOn"]);
}

#[tokio::test]
async fn faults_are_errors_and_no_readings() {
    let service = Service {
        status: Some(500),
        ..one()
    };
    let bench = bench(service, "password").await;
    assert!(matches!(
        bench.driver.read().await,
        Err(PowerError::Failed(_))
    ));
    let several = Service {
        systems: 2,
        ..Service::default()
    };
    let bench = self::bench(several, "password").await;
    let refused = bench.driver.read().await.unwrap_err();
    assert!(refused.to_string().contains("2 systems"), "{refused}");
}

#[tokio::test]
async fn only_the_pinned_certificate_is_accepted() {
    let signed = rcgen::generate_simple_self_signed(["bmc".to_owned()]).unwrap();
    let certificate = signed.cert.der().clone();
    let key =
        rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let shared: Shared = Arc::new(Mutex::new(one()));
    let app = router(&shared);
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                let service = hyper_util::service::TowerToHyperService::new(app.clone());
                let io = hyper_util::rt::TokioIo::new(stream);
                let connection = hyper::server::conn::http1::Builder::new();
                let _ = connection.serve_connection(io, service).await;
            }
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let digest = sha2::Sha256::digest(&certificate);
    let right: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    for (pin, accepted) in [
        (Some(right.join(":")), true),
        (Some("00".repeat(32)), false),
        (None, false),
    ] {
        let mut entry = entry(&folder, address.clone(), "password");
        if let PowerEntry::Redfish {
            certificate_sha256, ..
        } = &mut entry
        {
            *certificate_sha256 = pin;
        }
        let driver = RedfishDriver::open(&entry).unwrap();
        assert_eq!(driver.read().await.is_ok(), accepted);
    }
}
