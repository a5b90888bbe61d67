//! Which requests go where, what the sandbox sees of them, and what is refused.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::StatusCode;
use serde_json::json;
use sha2::{Digest, Sha256};
use support::World;

#[tokio::test]
async fn names_and_headers_lead_to_the_port_and_the_rest_to_the_api() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(3000).await;

    let by_name = world.get("/a?b=c", &sandbox.host(3000)).await;
    assert!(by_name.body.starts_with("GET /a?b=c\n"), "{by_name:?}");
    let by_header = world.get("/a", &sandbox.routing(3000)).await;
    assert!(by_header.body.starts_with("GET /a\n"), "{by_header:?}");
    let legacy = format!("host: 3000-{}-00000000.other:99", sandbox.id);
    assert_eq!(world.get("/", &legacy).await.status, StatusCode::OK);

    for host in [
        "localhost:3000",
        "127.0.0.1",
        "[::1]:1",
        "api.example.org",
        "example.org",
    ] {
        let answer = world
            .ask("POST", "/sandboxes", &format!("host: {host}"), "12345")
            .await;
        assert_eq!(answer.body, "api /sandboxes 127.0.0.1 5");
    }
    let metrics = world.metrics();
    assert_eq!(
        (
            metrics.api_requests,
            metrics.sandbox_requests,
            metrics.errors
        ),
        (5, 3, 0)
    );
}

#[tokio::test]
async fn requests_for_nowhere_say_why() {
    let world = World::start().await;
    let id = world.sandbox().id;
    for (fields, message) in [
        ("host: nothing.example.net".to_owned(), "Invalid host"),
        (
            format!("host: localhost\ne2b-sandbox-id: {id}"),
            "missing header",
        ),
        (
            "host: 127.0.0.1\ne2b-sandbox-port: 1".to_owned(),
            "missing header",
        ),
        ("host: sandbox.example.org".to_owned(), "missing header"),
        (
            format!("host: x\ne2b-sandbox-id: {id}\ne2b-sandbox-port: http"),
            "Invalid header",
        ),
        (
            "host: localhost\nhost: other".to_owned(),
            "More than one Host header",
        ),
    ] {
        let answer = world.get("/", &fields).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.json()["message"], message);
        assert_eq!(answer.json()["code"], 400);
    }
}

#[tokio::test]
async fn unknown_sandboxes_are_not_found() {
    let world = World::start().await;
    for id in ["i0000000000000000000a", "short"] {
        let answer = world
            .get("/health", &format!("host: 49983-{id}.example.org"))
            .await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        let expected =
            json!({ "sandboxId": id, "message": "The sandbox was not found", "code": 502 });
        assert_eq!(answer.json(), expected);
        assert_eq!(answer.header("access-control-allow-origin"), "*");
    }
    let sandbox = world.sandbox();
    sandbox.serve_mirror(49983).await;
    assert_eq!(
        world.get("/health", &sandbox.host(49983)).await.status,
        StatusCode::OK
    );
    world.end(&sandbox);
    let answer = world.get("/health", &sandbox.host(49983)).await;
    assert_eq!(answer.json()["message"], "The sandbox was not found");
}

#[tokio::test]
async fn closed_ports_are_told_from_absent_sandboxes() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    let begin = std::time::Instant::now();
    let answer = world.get("/", &sandbox.host(8080)).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    let expected = json!({
        "sandboxId": sandbox.id,
        "message": "The sandbox is running but port is not open",
        "port": 8080,
        "code": 502,
    });
    assert_eq!(answer.json(), expected);
    assert!(
        begin.elapsed().as_millis() >= 500,
        "tried again for a while"
    );
}

#[tokio::test]
async fn browsers_get_a_page() {
    let world = World::start().await;
    let page = world
        .get(
            "/",
            "host: 80-iabc.example.org\nsec-fetch-mode: navigate\naccept: text/html",
        )
        .await;
    assert_eq!(page.status, StatusCode::BAD_GATEWAY);
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.body.contains("The sandbox was not found") && page.body.contains("iabc"));
}

#[tokio::test]
async fn the_traffic_token_opens_all_ports_but_the_guests_which_is_open() {
    let world = World::start().await;
    let sandbox =
        world.sandbox_with(|route| route.traffic_token = Some(api::Secret::new("sesame")));
    sandbox.serve_mirror(8080).await;
    sandbox.serve_mirror(49983).await;

    for (token, message) in [
        (
            "",
            "The traffic access token is missing: send it as e2b-traffic-access-token",
        ),
        (
            "\ne2b-traffic-access-token: sesam",
            "The traffic access token is wrong",
        ),
    ] {
        let answer = world
            .get("/", &format!("{}{token}", sandbox.host(8080)))
            .await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        let expected = json!({ "sandboxId": sandbox.id, "message": message, "code": 403 });
        assert_eq!(answer.json(), expected);
    }
    let fields = format!("{}\ne2b-traffic-access-token: sesame", sandbox.host(8080));
    let answer = world.get("/", &fields).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(
        !answer.body.contains("sesame"),
        "the token stays outside: {answer:?}"
    );
    assert_eq!(
        world.get("/", &sandbox.host(49983)).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn control_routes_of_the_guest_do_not_exist_outside() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(49983).await;
    sandbox.serve_mirror(8080).await;
    for path in [
        "/init",
        "/freeze",
        "/unfreeze",
        "/fsfreeze",
        "/fsthaw",
        "/collapse",
        "/upgrade",
        "/_atoll/logs?follow=1",
        "//init",
        "/%69nit",
        "/x/../init",
        "/init/",
    ] {
        for fields in [sandbox.host(49983), sandbox.routing(49983)] {
            let answer = world.ask("POST", path, &fields, "{}").await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
            assert_eq!(answer.json()["sandboxId"], json!(sandbox.id));
            assert_eq!(answer.json()["code"], 404);
        }
        assert_eq!(
            world.get(path, &sandbox.host(8080)).await.status,
            StatusCode::OK
        );
    }
}

#[tokio::test]
async fn the_sandbox_learns_who_asked_and_no_secret_of_others() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(8080).await;
    let fields = format!(
        "{}\nx-api-key: e2b_secret\nx-access-token: mine\nx-atoll-control: forged\n\
         e2b-traffic-access-token: t\nx-forwarded-for: 9.9.9.9\nx-forwarded-proto: gopher\n\
         connection: x-private\nx-private: 1\nproxy-authorization: p\nte: trailers",
        sandbox.host(8080)
    );
    let answer = world.get("/", &fields).await;
    let seen: Vec<&str> = answer.body.trim_end().lines().collect();
    assert_eq!(
        seen,
        [
            "GET /",
            &sandbox.host(8080),
            "te: trailers",
            "x-access-token: mine",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-for: 9.9.9.9",
            "x-forwarded-proto: http",
        ]
    );
    for absent in ["keep-alive", "connection", "x-hop"] {
        assert_eq!(
            answer.header(absent),
            "",
            "hop-by-hop fields of the answer go too"
        );
    }
}

#[tokio::test]
async fn hosts_can_be_masked() {
    let world = World::start().await;
    let mask = |route: &mut api::route::Route| {
        route.mask_request_host = Some("localhost:${PORT}".into());
    };
    let sandbox = world.sandbox_with(mask);
    sandbox.serve_mirror(8080).await;
    sandbox.serve_mirror(49983).await;
    let masked = world.get("/", &sandbox.host(8080)).await;
    assert!(
        masked.body.contains("\nhost: localhost:8080\n"),
        "{masked:?}"
    );
    let guest = world.get("/", &sandbox.host(49983)).await;
    assert!(guest.body.contains(&sandbox.host(49983)), "{guest:?}");
}

#[tokio::test]
async fn signed_urls_find_their_sandbox() {
    let world = World::start().await;
    let sandboxes = [world.sandbox(), world.sandbox(), world.sandbox()];
    for sandbox in &sandboxes {
        sandbox.serve_mirror(49983).await;
    }
    let sign = |operation: &str, token: &str, after: &str| {
        let digest = Sha256::digest(format!("/tmp/a b:{operation}:root:{token}{after}"));
        let signature = format!("v1_{}", STANDARD_NO_PAD.encode(digest));
        signature.replace('+', "%2B").replace('/', "%2F")
    };
    for sandbox in &sandboxes {
        let token = format!("token-of-{}", sandbox.id);
        let read = sign("read", &token, ":1234");
        let path = format!(
            "/files?path=%2Ftmp%2Fa+b&username=root&signature={read}&signature_expiration=1234"
        );
        let answer = world.get(&path, "host: 127.0.0.1:3000").await;
        assert!(
            answer.body.starts_with(&format!("GET {path}\n")),
            "{answer:?}"
        );
        assert_eq!(answer.header("content-security-policy"), "sandbox");
        assert_eq!(
            answer.header("set-cookie"),
            "",
            "no cookies for the API's address"
        );

        let refused = world.ask("POST", &path, "host: localhost", "").await;
        assert_eq!(
            refused.status,
            StatusCode::UNAUTHORIZED,
            "signed for reading only"
        );
        let write = sign("write", &token, "");
        let path = format!("/files?path=/tmp/a%20b&username=root&signature={write}");
        let answer = world
            .ask("POST", &path, "host: sandbox.example.org", "body")
            .await;
        assert!(answer.body.ends_with("\n\nbody"), "{answer:?}");
    }
    let refused = world
        .get("/files?path=x&signature=v1_x", "host: localhost")
        .await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    let unsigned = world.get("/files?path=x", "host: localhost").await;
    assert_eq!(unsigned.body, "api /files 127.0.0.1 0");
    world.end(&sandboxes[0]);
    let token = format!("token-of-{}", sandboxes[0].id);
    let path = format!(
        "/files?path=/tmp/a+b&username=root&signature={}",
        sign("read", &token, "")
    );
    assert_eq!(
        world.get(&path, "host: localhost").await.status,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn scripts_may_talk_to_the_guest_and_servers_decide_for_themselves() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(49983).await;
    sandbox.serve_mirror(8080).await;
    let preflight = "\norigin: https://a.example\naccess-control-request-method: POST\n\
                     access-control-request-headers: authorization,x-access-token";
    let fields = format!("{}{preflight}", sandbox.host(49983));
    let answer = world.ask("OPTIONS", "/files", &fields, "").await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(
        answer.header("access-control-allow-headers"),
        "authorization,x-access-token"
    );
    assert!(
        answer
            .header("access-control-allow-methods")
            .contains("POST")
    );
    let answer = world.get("/health", &sandbox.host(49983)).await;
    assert_eq!(answer.header("access-control-allow-origin"), "*");

    let fields = format!("{}{preflight}", sandbox.host(8080));
    let answer = world.ask("OPTIONS", "/x", &fields, "").await;
    assert!(answer.body.starts_with("OPTIONS /x\n"), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), "");
}

/// The API may be asked by pages of any origin, errors included.
#[tokio::test]
async fn scripts_of_any_origin_may_ask_the_api() {
    let world = World::start().await;
    let fields = "host: api.example.org\norigin: https://example.com\n\
                  access-control-request-method: POST\n\
                  access-control-request-headers: x-api-key,content-type";
    let asked = world.ask("OPTIONS", "/v2/sandboxes", fields, "").await;
    assert_eq!(asked.status, StatusCode::NO_CONTENT);
    assert_eq!(asked.header("access-control-allow-origin"), "*");
    assert_eq!(
        asked.header("access-control-allow-headers"),
        "x-api-key,content-type"
    );
    assert!(
        asked
            .header("access-control-allow-methods")
            .contains("PATCH")
    );
    let answer = world.get("/v2/sandboxes", "host: api.example.org").await;
    assert_eq!(answer.body, "api /v2/sandboxes 127.0.0.1 0");
    for name in [
        "access-control-allow-origin",
        "access-control-expose-headers",
    ] {
        assert_eq!(answer.header(name), "*");
    }
}

#[tokio::test]
async fn heads_without_bodies_keep_their_length() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(8080).await;
    let answer = world.ask("HEAD", "/", &sandbox.host(8080), "").await;
    assert_eq!(answer.body, "");
    assert!(
        answer.header("content-length").parse::<u64>().unwrap() > 10,
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_router_can_be_the_api() {
    let router = axum::Router::new().route("/health", axum::routing::get(async || "well"));
    let world = World::with(|options| {
        options.api = std::sync::Arc::new(gateway::TowerApi(router));
    })
    .await;
    assert_eq!(world.get("/health", "host: localhost").await.body, "well");
}
