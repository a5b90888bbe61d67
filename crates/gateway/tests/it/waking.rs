//! Requests for paused sandboxes: who is woken, how often, and what the others are told.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support;

use api::{ErrorCode, Problem};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use gateway::Limits;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::{convert::Infallible, time::Duration};
use support::{World, wait_for, within};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

#[tokio::test]
async fn the_request_that_wakes_a_sandbox_is_answered_by_it() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(3000).await;
    for round in 1..=3 {
        world.pause(&sandbox);
        let answer = world.get("/a", &sandbox.host(3000)).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(world.locate.wakes_of(&sandbox.id), round);
        // It runs now: nobody is woken.
        assert_eq!(
            world.get("/a", &sandbox.routing(3000)).await.status,
            StatusCode::OK
        );
        assert_eq!(world.locate.wakes_of(&sandbox.id), round);
    }
}

#[tokio::test]
async fn requests_that_come_together_wake_it_once() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(3000).await;
    world.pause(&sandbox);
    let shut = world.locate.slow_wake.write().await;
    let requests: Vec<_> = (0..40)
        .map(|_| {
            let (address, host) = (world.address, sandbox.host(3000));
            tokio::spawn(async move { World::at(address).get("/", &host).await.status })
        })
        .collect();
    wait_for("all are here", || world.metrics().sandbox_requests == 40).await;
    assert_eq!(world.locate.wakes_of(&sandbox.id), 1);
    drop(shut);
    for request in requests {
        assert_eq!(within(request).await.unwrap(), StatusCode::OK);
    }
    assert_eq!(world.locate.wakes_of(&sandbox.id), 1);
}

#[tokio::test]
async fn what_cannot_be_woken_says_why_in_e2bs_words() {
    let world = World::start().await;
    for (code, status, message) in [
        (
            ErrorCode::PermissionDenied,
            502,
            "The sandbox was not found",
        ),
        (
            ErrorCode::Conflict,
            409,
            "The sandbox is being paused, resumed or ended",
        ),
        (
            ErrorCode::OutOfCapacity,
            503,
            "The sandbox could not be resumed",
        ),
        (
            ErrorCode::LimitReached,
            429,
            "The sandbox could not be resumed: its owner has reached a limit",
        ),
        (
            ErrorCode::DeadlineExceeded,
            504,
            "Finding the sandbox took too long",
        ),
    ] {
        let sandbox = world.sandbox();
        world.pause(&sandbox);
        let problem = Problem::new(code, "the cause names /a/path", "");
        world.locate.refuse(&sandbox.id, Some(problem));
        let answer = world.get("/health", &sandbox.host(49983)).await;
        let expected = json!({ "sandboxId": sandbox.id, "message": message, "code": status });
        assert_eq!(answer.json(), expected);
        assert_eq!(answer.status.as_u16(), status);
        // A refusal is not remembered.
        world.locate.refuse(&sandbox.id, None);
        sandbox.serve_mirror(49983).await;
        let answer = world.get("/health", &sandbox.host(49983)).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn requests_that_would_be_refused_wake_nobody() {
    let world = World::start().await;
    let sandbox =
        world.sandbox_with(|route| route.traffic_token = Some(api::Secret::new("sesame")));
    sandbox.serve_mirror(8080).await;
    sandbox.serve_mirror(49983).await;
    world.pause(&sandbox);
    for (path, port, token, status) in [
        ("/init", 49983, "", 502),
        ("/", 8080, "", 403),
        ("/", 8080, "\ne2b-traffic-access-token: sesam", 403),
    ] {
        let answer = world
            .get(path, &format!("{}{token}", sandbox.host(port)))
            .await;
        assert_eq!(answer.status.as_u16(), status, "{path}: {answer:?}");
    }
    assert_eq!(world.locate.wakes_of(&sandbox.id), 0);
    let fields = format!("{}\ne2b-traffic-access-token: sesame", sandbox.host(8080));
    assert_eq!(world.get("/", &fields).await.status, StatusCode::OK);
}

#[tokio::test]
async fn waiting_has_an_end_and_so_has_their_number() {
    let world = World::with(|options| {
        options.limits = Limits {
            wakes: 1,
            locate_timeout: Duration::from_millis(300),
            ..options.limits.clone()
        };
    })
    .await;
    let (first, second) = (world.sandbox(), world.sandbox());
    world.pause(&first);
    world.pause(&second);
    let shut = world.locate.slow_wake.write().await;
    let (address, host) = (world.address, first.host(3000));
    let waiting = tokio::spawn(async move { World::at(address).get("/", &host).await });
    wait_for("it waits", || world.locate.wakes_of(&first.id) == 1).await;
    let refused = world.get("/", &second.host(3000)).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        refused.json()["message"],
        "Too many sandboxes are being resumed"
    );
    assert_eq!(world.locate.wakes_of(&second.id), 0);
    let answer = within(waiting).await.unwrap();
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    drop(shut);
    second.serve_mirror(3000).await;
    let answer = world.get("/", &second.host(3000)).await;
    assert_eq!(answer.status, StatusCode::OK, "who went away made room");
}

#[tokio::test]
async fn unknown_sandboxes_take_no_place() {
    let world = World::with(|options| options.limits.wakes = 1).await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(3000).await;
    world.pause(&sandbox);
    let floods = (0..20).map(|task| {
        let address = world.address;
        tokio::spawn(async move {
            let client = World::at(address);
            for n in 0..20 {
                let host = format!("host: 80-i0000000000000000{task:02}{n:02}.example.org");
                let answer = client.get("/", &host).await;
                assert_eq!(answer.json()["message"], "The sandbox was not found");
            }
        })
    });
    let floods: Vec<_> = floods.collect();
    let answer = world.get("/", &sandbox.host(3000)).await;
    assert_eq!(answer.status, StatusCode::OK);
    for flood in floods {
        within(flood).await.unwrap();
    }
}

#[tokio::test]
async fn bodies_wait_until_it_is_awake() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(3000).await;
    world.pause(&sandbox);
    let shut = world.locate.slow_wake.write().await;
    let (sender, body) = tokio::sync::mpsc::channel::<Bytes>(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(body);
    let frames = stream.map(|bytes| Ok::<_, Infallible>(http_body::Frame::data(bytes)));
    let io = TokioIo::new(world.connect().await);
    let (mut client, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let host = sandbox.host(3000);
    let request = Request::post("/upload")
        .header("host", host.trim_start_matches("host: "))
        .body(StreamBody::new(frames))
        .unwrap();
    let answer = tokio::spawn(client.send_request(request));
    wait_for("it is being woken", || {
        world.locate.wakes_of(&sandbox.id) == 1
    })
    .await;
    sender.send("one ".into()).await.unwrap();
    drop(shut);
    sender.send("two".into()).await.unwrap();
    drop(sender);
    let answer = within(answer).await.unwrap().unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(body.ends_with(b"\n\none two"), "{body:?}");
}

#[tokio::test]
async fn websockets_wake_it_too() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    let listener = sandbox.listen(3000).await;
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(tcp).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() {
                socket.send(message).await.unwrap();
            }
        }
    });
    world.pause(&sandbox);
    let host = sandbox.host(3000).replace("host: ", "ws://");
    let request = host.into_client_request().unwrap();
    let tcp = world.connect().await;
    let (mut socket, _) = within(tokio_tungstenite::client_async(request, tcp))
        .await
        .unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    let heard = within(socket.next()).await.unwrap().unwrap();
    assert_eq!(heard.into_text().unwrap().as_str(), "hello");
    assert_eq!(world.locate.wakes_of(&sandbox.id), 1);
}

/// The look-up may have been true a moment ago only.
#[tokio::test]
async fn a_request_that_it_has_not_seen_survives_a_pause() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(3000).await;
    // Found once, and paused before the connection to it is open.
    world.locate.pause_after_next_locate(&sandbox.id);
    let answer = world.ask("POST", "/", &sandbox.host(3000), "body").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert!(answer.body.ends_with("body"), "{answer:?}");
    assert_eq!(world.locate.wakes_of(&sandbox.id), 1);
}
