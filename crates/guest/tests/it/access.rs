//! Who may do what, and the routes that are not calls.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use crate::support;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::{CONTROL, Guest, TOKEN, bash};

fn message(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

#[tokio::test]
async fn only_health_is_open_without_the_token() {
    let guest = Guest::secured();
    let (status, _, body) = guest.request("GET", "/health", &[], "").await;
    assert_eq!((status, body.len()), (StatusCode::NO_CONTENT, 0));
    let expected = json!({
        "code": 401,
        "message": "unauthorized access, please provide a valid access token or method signing if supported",
    });
    let json_body = ("content-type", "application/json");
    for (method, path) in [
        ("GET", "/metrics"),
        ("GET", "/envs"),
        ("POST", "/files/compose"),
        ("POST", "/process.Process/List"),
        ("POST", "/process.Process/Start"),
        ("POST", "/init"),
        ("GET", "/nowhere"),
        ("GET", "/_atoll/logs"),
    ] {
        for token in ["", "wrong", CONTROL] {
            let headers = [json_body, ("x-access-token", token)];
            let (status, _, body) = guest.request(method, path, &headers, "{}").await;
            assert_eq!(
                (status, message(&body)),
                (StatusCode::UNAUTHORIZED, expected.clone())
            );
        }
    }
    let headers = [("x-access-token", TOKEN)];
    let (status, _, body) = guest.request("GET", "/metrics", &headers, "").await;
    assert_eq!(status, StatusCode::OK);
    let metrics: api::envd::files::GuestMetrics = serde_json::from_slice(&body).unwrap();
    assert!(metrics.mem_total > 0 && metrics.disk_total > 0);
    assert_eq!(
        guest
            .call_with("/process.Process/List", json!({}), &headers)
            .await,
        Ok(json!({}))
    );
    let (status, ..) = guest.request("POST", "/init", &headers, "{}").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

fn sign(text: &str) -> String {
    let signature = format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)));
    signature.replace('+', "%2B").replace('/', "%2F")
}

#[tokio::test]
async fn files_take_a_token_or_a_signature() {
    let guest = Guest::secured();
    let path = guest.path("signed file");
    let query_path = path.replace(' ', "%20");
    std::fs::write(&path, "content").unwrap();
    let get = async |query: &str| {
        let target = format!("/files?path={query_path}{query}");
        let (status, _, body) = guest.request("GET", &target, &[], "").await;
        (status.as_u16(), body)
    };
    let failure = |text: &str| {
        (
            401,
            Bytes::from(json!({"code": 401, "message": text}).to_string()),
        )
    };
    assert_eq!(get("").await, failure("missing signature query parameter"));
    assert_eq!(get("&signature=v1_x").await, failure("invalid signature"));
    let read = sign(&format!("{path}:read::{TOKEN}"));
    assert_eq!(
        get(&format!("&signature={read}")).await,
        (200, Bytes::from("content"))
    );
    let query = format!("&signature={read}&username=root");
    assert_eq!(get(&query).await, failure("invalid signature"));
    let user = sign(&format!("{path}:read:root:{TOKEN}"));
    assert_eq!(
        get(&format!("&signature={user}&username=root")).await.0,
        200
    );
    let late = sign(&format!("{path}:read::{TOKEN}:1000"));
    let query = format!("&signature={late}&signature_expiration=1000");
    assert_eq!(get(&query).await, failure("signature is already expired"));
    let later = sign(&format!("{path}:read::{TOKEN}:99999999999"));
    assert_eq!(
        get(&format!(
            "&signature={later}&signature_expiration=99999999999"
        ))
        .await
        .0,
        200
    );
    assert_eq!(
        get(&format!("&signature={later}&signature_expiration=x"))
            .await
            .0,
        400
    );

    // A signature for reading does not write.
    let octets = ("content-type", "application/octet-stream");
    let target = |signature: &str| format!("/files?path={query_path}&signature={signature}");
    let (status, ..) = guest
        .request("POST", &target(&read), &[octets], "new")
        .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let write = sign(&format!("{path}:write::{TOKEN}"));
    let (status, ..) = guest
        .request("POST", &target(&write), &[octets], "new")
        .await;
    assert_eq!(status, StatusCode::OK);
    let wrong = [("x-access-token", "wrong")];
    let (status, _, body) = guest.request("GET", &target(&read), &wrong, "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        message(&body)["message"],
        "access token present in header but does not match"
    );
    let token = [("x-access-token", TOKEN)];
    let (status, _, body) = guest
        .request("GET", &format!("/files?path={query_path}"), &token, "")
        .await;
    assert_eq!((status, body), (StatusCode::OK, Bytes::from("new")));
}

#[tokio::test]
async fn other_codecs_and_methods_are_refused() {
    let guest = Guest::start();
    let refused = async |method: &str, path: &str, content_type: &str| {
        let headers = [("content-type", content_type)];
        let (status, headers, _) = guest.request(method, path, &headers, "{}").await;
        (status.as_u16(), headers)
    };
    let header = |headers: &HeaderMap, name: &str| headers[name].to_str().unwrap().to_owned();
    for (path, wrong, right) in [
        (
            "/process.Process/List",
            "application/proto",
            "application/json",
        ),
        (
            "/process.Process/List",
            "application/connect+json",
            "application/json",
        ),
        (
            "/process.Process/Start",
            "application/connect+proto",
            "application/connect+json",
        ),
        (
            "/process.Process/Start",
            "application/json",
            "application/connect+json",
        ),
    ] {
        let (status, headers) = refused("POST", path, wrong).await;
        assert_eq!(
            (status, header(&headers, "accept-post").as_str()),
            (415, right)
        );
    }
    let (status, headers) = refused("GET", "/process.Process/List", "application/json").await;
    assert_eq!((status, header(&headers, "allow").as_str()), (405, "POST"));
    assert_eq!(
        refused("POST", "/process.Process/None", "application/json")
            .await
            .0,
        404
    );
    assert_eq!(
        refused("POST", "/other.Service/None", "application/json")
            .await
            .0,
        404
    );
    let json = ("content-type", "application/json; charset=utf-8");
    let (status, ..) = guest
        .request("POST", "/process.Process/List", &[json], "{}")
        .await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn requests_are_bounded() {
    let guest = Guest::start();
    let large = vec![b' '; (4 << 20) + 1];
    let json = [("content-type", "application/json")];
    let (status, _, body) = guest
        .request("POST", "/process.Process/List", &json, large)
        .await;
    assert_eq!(
        (status.as_u16(), &message(&body)["code"]),
        (429, &json!("resource_exhausted"))
    );
    // An envelope that only says that it is large is refused before it comes.
    let stream = [("content-type", "application/connect+json")];
    let lie = &b"\0\xff\xff\xff\xff"[..];
    let (status, _, body) = guest
        .request("POST", "/process.Process/Start", &stream, lie)
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(message(&body[5..])["error"]["code"], "resource_exhausted");
}

#[tokio::test]
async fn pages_of_any_origin_may_call() {
    let guest = Guest::secured();
    let headers = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "x-access-token"),
    ];
    let (status, headers, _) = guest
        .request("OPTIONS", "/process.Process/List", &headers, "")
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    assert_eq!(
        headers[header::ACCESS_CONTROL_ALLOW_HEADERS],
        "x-access-token"
    );
}

#[tokio::test]
async fn the_node_follows_the_log() {
    let guest = Guest::secured();
    let token = [("x-access-token", TOKEN)];
    let script = bash("echo a line; echo another >&2; exit 2");
    guest.start_process(script, &token).await.outcome().await;
    let control = [("x-atoll-control", CONTROL)];
    let (status, _, body) = guest.request("GET", "/_atoll/logs", &control, "").await;
    assert_eq!(status, StatusCode::OK);
    let lines: Vec<api::envd::files::NumberedLine> = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let has = |text: &str| lines.iter().any(|line| line.line.message == text);
    assert!(has("a line") && has("another"), "{lines:?}");
    assert!(lines[0].line.message.ends_with("started"));
    assert!(lines[0].line.fields["command"].contains("a line"));
    let last = lines.last().unwrap();
    assert_eq!(last.line.fields["status"], "exit status 2");

    let target = format!("/_atoll/logs?after={}&follow=1", last.seq);
    let request = http::Request::get(target)
        .header("host", "test")
        .header(control[0].0, CONTROL);
    let request = request.body(http_body_util::Full::default()).unwrap();
    let mut follow = guest.send(request).await.into_body();
    guest
        .start_process(bash("true"), &token)
        .await
        .outcome()
        .await;
    let frame = follow.frame().await.unwrap().unwrap().into_data().unwrap();
    let first = frame.split(|byte| *byte == b'\n').next().unwrap();
    let first: api::envd::files::NumberedLine = serde_json::from_slice(first).unwrap();
    assert_eq!(first.seq, last.seq + 1);
}
