//! Bodies, tunnels and ends: bytes pass as they come, and so does the end of either side.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support;

use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, io::ErrorKind, time::Duration};
use support::{LONG, Sandbox, World, read_to_end, read_until, wait_for, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// A client that asked for a stream, and the server that is sending it.
async fn stream(world: &World, sandbox: &Sandbox) -> (TcpStream, TcpStream) {
    let listener = sandbox.listen(8080).await;
    let mut client = world.connect().await;
    let request = format!("GET / HTTP/1.1\r\n{}\r\n\r\n", sandbox.host(8080));
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    read_until(&mut server, "\r\n\r\n").await;
    server
        .write_all(format!("{HEAD}5\r\nfirst\r\n").as_bytes())
        .await
        .unwrap();
    read_until(&mut client, "first\r\n").await;
    (client, server)
}

#[tokio::test]
async fn answers_pass_chunk_by_chunk() {
    let world = World::start().await;
    let (mut client, mut server) = stream(&world, &world.sandbox()).await;
    // The first chunk has come through before this one exists.
    server.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
    let rest = read_until(&mut client, "0\r\n\r\n").await;
    assert!(rest.contains("second"), "{rest}");
}

#[tokio::test]
async fn request_bodies_pass_chunk_by_chunk_and_answers_may_come_first() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    let listener = sandbox.listen(8080).await;
    let mut client = world.connect().await;
    let head = format!(
        "POST / HTTP/1.1\r\n{}\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n",
        sandbox.host(8080)
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    read_until(&mut server, "one").await;
    server
        .write_all(format!("{HEAD}5\r\nearly\r\n").as_bytes())
        .await
        .unwrap();
    read_until(&mut client, "early").await;
    client.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
    read_until(&mut server, "two\r\n0\r\n\r\n").await;
    server.write_all(b"4\r\nlate\r\n0\r\n\r\n").await.unwrap();
    read_until(&mut client, "late\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_by_the_server_at_once() {
    let world = World::start().await;
    // While the answer streams.
    let (client, mut server) = stream(&world, &world.sandbox()).await;
    drop(client);
    assert_eq!(read_to_end(&mut server).await, "");

    // While the server is still thinking.
    let sandbox = world.sandbox();
    let listener = sandbox.listen(8080).await;
    let mut client = world.connect().await;
    let request = format!(
        "POST / HTTP/1.1\r\n{}\r\ncontent-length: 2\r\n\r\nhi",
        sandbox.host(8080)
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    read_until(&mut server, "hi").await;
    drop(client);
    assert_eq!(read_to_end(&mut server).await, "");

    // While its own body is on the way.
    let mut client = world.connect().await;
    let request = format!(
        "POST / HTTP/1.1\r\n{}\r\ncontent-length: 9\r\n\r\nhi",
        sandbox.host(8080)
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    read_until(&mut server, "hi").await;
    drop(client);
    assert_eq!(read_to_end(&mut server).await, "");
    wait_for("all closed", || world.metrics().connections_open == 0).await;
}

#[tokio::test]
async fn a_server_that_breaks_off_is_no_clean_end() {
    let world = World::start().await;
    let (mut client, server) = stream(&world, &world.sandbox()).await;
    drop(server);
    let mut rest = Vec::new();
    let error = within(client.read_to_end(&mut rest)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(!String::from_utf8_lossy(&rest).contains("0\r\n\r\n"));
    assert_eq!(world.metrics().broken, 1);
}

#[tokio::test]
async fn a_killed_sandbox_resets_its_streams() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    let (mut client, mut server) = stream(&world, &sandbox).await;
    world.end(&sandbox);
    let error = within(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(read_to_end(&mut server).await, "");
    let answer = world.get("/health", &sandbox.host(49983)).await;
    assert_eq!(answer.json()["message"], "The sandbox was not found");
}

#[tokio::test]
async fn a_request_that_waits_while_its_sandbox_is_killed_is_told_so() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    let listener = sandbox.listen(8080).await;
    let asked = async { world.get("/", &sandbox.host(8080)).await };
    let killed = async {
        let (mut server, _) = within(listener.accept()).await.unwrap();
        read_until(&mut server, "\r\n\r\n").await;
        world.end(&sandbox);
        read_to_end(&mut server).await;
    };
    let (answer, ()) = tokio::join!(asked, killed);
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["message"], "The sandbox was not found");
}

#[tokio::test]
async fn servers_that_break_off_before_an_answer_are_named() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    let listener = sandbox.listen(8080).await;
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            read_until(&mut tcp, "\r\n\r\n").await;
        }
    });
    let answer = world.ask("POST", "/", &sandbox.host(8080), "x").await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["port"], 8080);
}

#[tokio::test]
async fn a_server_that_has_just_been_started_is_reached() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    let fields = sandbox.host(8080);
    let asked = world.get("/", &fields);
    let started = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        sandbox.serve_mirror(8080).await;
    };
    let (answer, ()) = tokio::join!(asked, started);
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn connections_to_the_sandbox_are_used_again_but_never_for_another_port() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    sandbox.serve_mirror(8080).await;
    sandbox.serve_mirror(8081).await;
    for _ in 0..20 {
        assert_eq!(
            world
                .ask("POST", "/", &sandbox.host(8080), "body")
                .await
                .status,
            200
        );
    }
    assert_eq!(world.metrics().upstream_connections, 1);
    assert_eq!(world.get("/", &sandbox.host(8081)).await.status, 200);
    assert_eq!(world.metrics().upstream_connections, 2);
}

#[tokio::test]
async fn a_connection_that_the_server_closed_meanwhile_is_not_used() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    let listener = sandbox.listen(8080).await;
    tokio::spawn(async move {
        // Says that it keeps connections, and does not.
        while let Ok((mut tcp, _)) = listener.accept().await {
            read_until(&mut tcp, "\r\n\r\n").await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await
                .unwrap();
        }
    });
    let mut sender = world.sender().await;
    for _ in 0..30 {
        let host = sandbox.host(8080);
        let request = Request::get("/")
            .header("host", &host[6..])
            .body(Full::default())
            .unwrap();
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    let listener = sandbox.listen(8080).await;
    let mut client = world.connect().await;
    let request = format!(
        "POST / HTTP/1.1\r\n{}\r\nte: trailers\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\
         \r\n\r\n1\r\na\r\n0\r\nx-sum: 1\r\n\r\n",
        sandbox.host(8080)
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    read_until(&mut server, "0\r\nx-sum: 1\r\n\r\n").await;
    let answer = "HTTP/1.1 200 OK\r\ntrailer: x-end\r\ntransfer-encoding: chunked\r\n\r\n\
                  1\r\nb\r\n0\r\nx-end: 2\r\n\r\n";
    server.write_all(answer.as_bytes()).await.unwrap();
    read_until(&mut client, "0\r\nx-end: 2\r\n\r\n").await;
}

/// Accepts one WebSocket and sends back what it gets.
fn echo(listener: tokio::net::TcpListener) {
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let socket = tokio_tungstenite::accept_async(tcp).await.unwrap();
        let (mut write, mut read) = socket.split();
        while let Some(Ok(message)) = read.next().await {
            if message.is_close() || write.send(message).await.is_err() {
                break;
            }
        }
    });
}

#[tokio::test]
async fn websockets_pass_and_break_with_the_sandbox() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    echo(sandbox.listen(8080).await);
    let tcp = world.connect().await;
    let url = format!("ws://8080-{}.example.org/chat", sandbox.id);
    let (mut socket, response) = within(tokio_tungstenite::client_async(
        url.into_client_request().unwrap(),
        tcp,
    ))
    .await
    .unwrap();
    assert_eq!(response.status(), 101);
    for size in [1, 1000, 200_000] {
        let sent = Message::Binary(vec![7; size].into());
        socket.send(sent.clone()).await.unwrap();
        assert_eq!(within(socket.next()).await.unwrap().unwrap(), sent);
    }
    assert_eq!(world.metrics().tunnels, 1);
    world.end(&sandbox);
    assert!(within(socket.next()).await.unwrap().is_err());
    wait_for("closed", || world.metrics().connections_open == 0).await;
}

#[tokio::test]
async fn either_end_of_a_tunnel_may_close_it() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    let listener = sandbox.listen(8080).await;
    let ask = format!(
        "GET / HTTP/1.1\r\n{}\r\nconnection: Upgrade\r\nupgrade: raw\r\n\r\nping",
        sandbox.host(8080)
    );
    let open = async || {
        let mut client = world.connect().await;
        client.write_all(ask.as_bytes()).await.unwrap();
        let (mut server, _) = within(listener.accept()).await.unwrap();
        let seen = read_until(&mut server, "\r\n\r\n").await;
        assert!(
            seen.contains("upgrade: raw") && seen.contains("connection: upgrade"),
            "{seen}"
        );
        let switch = b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\npong";
        server.write_all(switch).await.unwrap();
        read_until(&mut server, "ping").await;
        read_until(&mut client, "pong").await;
        (client, server)
    };
    let (client, mut server) = open().await;
    drop(client);
    assert_eq!(read_to_end(&mut server).await, "");
    drop(server);
    let (mut client, server) = open().await;
    drop(server);
    assert_eq!(read_to_end(&mut client).await, "");
    drop(client);
    // Half a close passes as half a close.
    let (mut client, mut server) = open().await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await, "");
    server.write_all(b"still here").await.unwrap();
    drop(server);
    assert_eq!(read_to_end(&mut client).await, "still here");
    drop(client);
    wait_for("closed", || world.metrics().connections_open == 0).await;
}

#[tokio::test]
async fn requests_that_are_answered_finish_before_shutdown_and_the_rest_is_broken() {
    let world = World::with(|options| options.limits.shutdown = Duration::from_secs(2)).await;
    let (mut client, mut server) = stream(&world, &world.sandbox()).await;
    let (mut stuck, _silent) = stream(&world, &world.sandbox()).await;
    world.shutdown.cancel();
    wait_for("no more connections", || {
        std::net::TcpStream::connect_timeout(&world.address, LONG).is_err()
    })
    .await;
    server.write_all(b"4\r\nlast\r\n0\r\n\r\n").await.unwrap();
    read_until(&mut client, "last\r\n0\r\n\r\n").await;
    assert_eq!(read_to_end(&mut client).await, "");
    read_to_end(&mut stuck).await;
    within(world.serving).await.unwrap();
    assert_eq!(world.gateway.metrics().connections_open, 0);
}

#[tokio::test]
async fn large_bodies_arrive_whole() {
    let world = World::start().await;
    let sandbox = world.sandbox();
    let listener = sandbox.listen(8080).await;
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async {
            Ok::<_, Infallible>(Response::new(request.into_body()))
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(tcp), service)
            .await;
    });
    let io = TokioIo::new(world.connect().await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let (feed, chunks) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(4);
    let host = sandbox.host(8080);
    let request = Request::post("/").header("host", &host[6..]);
    let request = request
        .body(StreamBody::new(ReceiverStream::new(chunks)))
        .unwrap();
    tokio::spawn(async move {
        for index in 0..256_u32 {
            let chunk = Bytes::from(vec![index as u8; 64 << 10]);
            feed.send(Ok(Frame::data(chunk))).await.unwrap();
        }
    });
    let response = within(sender.send_request(request)).await.unwrap();
    let body = within(response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    assert_eq!(body.len(), 16 << 20);
    assert!((0..256_usize).all(|index| body[index * (64 << 10) + 5] == index as u8));
}
