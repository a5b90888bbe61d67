//! Flows of UDP.

use tokio::net::UdpSocket;

use super::*;
use crate::flows::End;
use crate::policy::Direction;

const ALLOWED: Allowed<'_> = &[(0, 1, "udp/7000")];

async fn socket() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

/// What comes next, and from where.
async fn next(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 1 << 16];
    let received = in_time("a datagram", socket.recv_from(&mut buffer)).await;
    let (length, from) = received.unwrap();
    buffer.truncate(length);
    (buffer, from)
}

/// Two nodes, and a service of the second that listens elsewhere, since doors have its address here.
async fn lab(change: impl Fn(&mut UserspaceOptions)) -> (Lab, UdpSocket) {
    let lab = Lab::with(2, ALLOWED, &[], |options| {
        options.doors = true;
        change(options);
    })
    .await;
    let service = socket().await;
    let offered = Service {
        port: 7000,
        target: service.local_addr().ok(),
    };
    lab.node(1).set_services(&[offered]).unwrap();
    (lab, service)
}

/// A program at the door of the second node, once it is open.
async fn program(lab: &Lab) -> UdpSocket {
    let place = lab.place(1, 7000);
    let open = || lab.node(0).status().datagram_doors == [place];
    until("a door is open", open).await;
    let program = socket().await;
    program.connect(place).await.unwrap();
    program
}

#[tokio::test]
async fn datagrams_of_any_length_go_both_ways_and_programs_do_not_mix() {
    let (lab, service) = lab(|_| {}).await;
    let programs = [program(&lab).await, program(&lab).await];
    let mut places = Vec::new();
    for (number, program) in (0..).zip(&programs) {
        // None at all, what fits in a datagram of QUIC, and what does not.
        for length in [0, 100, 1150, 1500, 20_000, 65_000] {
            let (said, answer) = (noise(number, length), noise(number + 10, length));
            program.send(&said).await.unwrap();
            let (heard, from) = next(&service).await;
            assert!(heard == said, "{length} bytes arrive as they are");
            assert_eq!(
                from.ip(),
                lab.place(0, 0).ip(),
                "the caller is seen by its address"
            );
            places.push(from);
            service.send_to(&answer, from).await.unwrap();
            assert!(next(program).await.0 == answer, "{length} bytes come back");
        }
    }
    places.dedup();
    assert_eq!(places.len(), 2, "each has a flow of its own");
    assert_eq!(lab.node(1).status().doors, []);
    for (at, direction) in [(0, Direction::Outbound), (1, Direction::Inbound)] {
        let status = lab.node(at).status();
        assert_eq!((status.connections, status.flows, status.opened), (1, 2, 2));
        let record = lab.node(at).records(0).records[1];
        assert_eq!((record.flow.protocol, record.direction), (17, direction));
        assert_eq!(record.flow.destination_port, 7000);
        assert_eq!((record.sent.bytes, record.received.bytes), (87_750, 87_750));
        let port = programs[0].local_addr().unwrap().port();
        assert_eq!(record.flow.source_port, if at == 0 { port } else { 0 });
    }
    // What is taken back ends, and the door with it.
    lab.allow(&[(0, 1, "tcp/7000")]);
    for at in 0..2 {
        until("flows are over", || lab.node(at).status().flows == 0).await;
    }
    let ends = lab.node(0).records(0).records;
    assert!(
        ends.iter()
            .all(|record| record.end.unwrap().1 == End::Policy)
    );
    let closed = || lab.node(0).status().datagram_doors.is_empty();
    until("the door closes", closed).await;
    lab.stop().await;
}

#[tokio::test]
async fn what_is_silent_ends_and_begins_anew() {
    let (lab, service) =
        lab(|options| options.limits.datagrams_idle = Duration::from_secs(1)).await;
    let program = program(&lab).await;
    for flows in 1..=2 {
        program.send(b"?").await.unwrap();
        let (_, from) = next(&service).await;
        service.send_to(b"!", from).await.unwrap();
        assert_eq!(next(&program).await.0, b"!");
        for at in 0..2 {
            until("the flow is over", || lab.node(at).status().flows == 0).await;
            let records = lab.node(at).records(0).records;
            assert_eq!(records.len(), flows);
            assert_eq!(records[0].end.unwrap().1, End::Idle);
        }
    }
    lab.stop().await;
}

/// A client of SOCKS5 that may send datagrams: its connection, and where to.
async fn associated(lab: &Lab, port: u16) -> (TcpStream, SocketAddr) {
    let proxy = lab.node(0).proxies()[0];
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let mut said = b"\x05\x01\x02\x01\x04user\x04word\x05\x03\x00\x01\0\0\0\0".to_vec();
    said.extend(port.to_be_bytes());
    stream.write_all(&said).await.unwrap();
    let mut heard = [0; 14];
    in_time("an answer", stream.read_exact(&mut heard))
        .await
        .unwrap();
    assert_eq!(heard[..8], [5, 2, 1, 0, 5, 0, 0, 1]);
    let port = u16::from_be_bytes([heard[12], heard[13]]);
    (stream, (Ipv4Addr::LOCALHOST, port).into())
}

#[tokio::test]
async fn clients_of_socks5_send_datagrams_by_name_and_address() {
    let (lab, service) = lab(|options| options.doors = false).await;
    let (client, stranger) = (socket().await, socket().await);
    let port = client.local_addr().unwrap().port();
    let (stream, relay) = associated(&lab, port).await;
    let name = &lab.members[1].name;
    let named = [&[0, 0, 0, 3, name.len() as u8], name.as_bytes()].concat();
    let v4 = lab.members[1].v4;
    let addressed = [&[0, 0, 0, 1][..], &v4.octets()].concat();
    for (head, said) in [(named, &b"by name"[..]), (addressed, b"by address")] {
        let datagram = [&head[..], &7000_u16.to_be_bytes(), said].concat();
        // Who did not show the password, and what is a piece, get nowhere.
        stranger.send_to(&datagram, relay).await.unwrap();
        let piece = [&[0, 0, 1], &datagram[3..]].concat();
        client.send_to(&piece, relay).await.unwrap();
        client.send_to(&datagram, relay).await.unwrap();
        let (heard, from) = next(&service).await;
        assert_eq!(heard, said);
        service.send_to(b"answer", from).await.unwrap();
        let (answer, _) = next(&client).await;
        let expected = socks::datagram_head((v4, 7000).into());
        assert_eq!(answer, [&expected[..], b"answer"].concat());
    }
    // Nothing of others was sent on, and nobody else may be sent to.
    assert_eq!(lab.node(0).status().opened, 2);
    let mut wrong = socks::datagram_head((v4, 7001).into());
    wrong.push(b'?');
    client.send_to(&wrong, relay).await.unwrap();
    until("it is refused", || lab.node(0).status().refused == 1).await;
    // With the connection all of it ends.
    drop(stream);
    until("all is over", || lab.node(0).status().flows == 0).await;
    until("the socket is gone", || {
        std::net::UdpSocket::bind(relay).is_ok()
    })
    .await;
    lab.stop().await;
}

/// A caller of its own making, as the first node, with or without datagrams.
async fn caller(lab: &Lab, datagrams: bool) -> (quinn::Endpoint, quinn::Connection) {
    let number = lab.members[0].v4.to_bits() & 0x3f_ffff;
    let credential = identity::Credential::new(&identity(number)).unwrap();
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let mut config = credential.client(lab.members[1].identity).unwrap();
    if !datagrams {
        let mut transport = quinn::TransportConfig::default();
        transport.datagram_receive_buffer_size(None);
        config.transport_config(Arc::new(transport));
    }
    let connecting = endpoint.connect_with(config, lab.node(1).address(), identity::NAME);
    let connection = in_time("a connection", connecting.unwrap()).await.unwrap();
    (endpoint, connection)
}

/// Asks for datagrams; the answer and the stream.
async fn ask(
    lab: &Lab,
    connection: &quinn::Connection,
    port: u16,
) -> (u8, quinn::SendStream, quinn::RecvStream) {
    let request = Request {
        carries: Carries::Datagrams,
        address: lab.members[1].v4.into(),
        port,
    };
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&request.encode()).await.unwrap();
    let mut answer = [9];
    in_time("an answer", recv.read_exact(&mut answer))
        .await
        .unwrap();
    (answer[0], send, recv)
}

#[tokio::test]
async fn nobody_names_a_flow_that_is_not_its_own_and_floods_have_an_end() {
    let (lab, service) = lab(|options| options.doors = false).await;
    let (_endpoint, connection) = caller(&lab, true).await;
    // The gate is asked: another port, and TCP's.
    assert_eq!(ask(&lab, &connection, 7001).await.0, 1);
    let (answer, mut send, _recv) = ask(&lab, &connection, 7000).await;
    assert_eq!(answer, 0);
    let number = quinn::VarInt::from(send.id()).into_inner() as u8;
    let say = |bytes: &[u8]| {
        let sent = connection.send_datagram(bytes.to_vec().into());
        sent.unwrap();
    };
    // Flows that there are not, nothing at all, and a number that is cut.
    for nonsense in [&b"\x3fnobody"[..], b"", b"\xff", b"\x7f\xffnobody"] {
        say(nonsense);
    }
    say(&[number, b'a']);
    assert_eq!(next(&service).await.0, b"a");
    // Another connection of the same node, as another node's would be: the number says nothing there.
    let (_other_endpoint, other) = caller(&lab, true).await;
    other.send_datagram(vec![number, b'x'].into()).unwrap();
    // More than anybody reads is lost, and what comes later gets through.
    for _ in 0..5_000 {
        say(&[&[number][..], &[b'f'; 1000]].concat());
    }
    send.write_all(&[0, 3, b'e', b'n', b'd']).await.unwrap();
    let mut flood = 0;
    loop {
        match &*next(&service).await.0 {
            b"end" => break,
            heard => {
                assert_eq!(heard, [b'f'; 1000]);
                flood += 1;
            }
        }
    }
    assert!(flood <= 5_000);
    until("no flow is left", || {
        let _ = send.reset(quinn::VarInt::from_u32(1));
        lab.node(1).status().flows == 0
    })
    .await;
    say(&[number, b'z']);
    lab.stop().await;
}

#[tokio::test]
async fn a_node_that_knows_no_datagrams_is_not_asked_and_gets_none() {
    let (mut lab, _service) = lab(|options| options.doors = false).await;
    let (_endpoint, connection) = caller(&lab, false).await;
    assert_eq!(ask(&lab, &connection, 7000).await.0, 6);
    // One that is called, which would close the connection if it heard a datagram.
    let number = lab.members[1].v4.to_bits() & 0x3f_ffff;
    let credential = identity::Credential::new(&identity(number)).unwrap();
    let others = directory(&lab.members, 1);
    let mut config = credential
        .server(Arc::new(RwLock::new(Arc::new(others))))
        .unwrap();
    let mut transport = quinn::TransportConfig::default();
    transport.datagram_receive_buffer_size(None);
    config.transport_config(Arc::new(transport));
    let old = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    lab.members[1].endpoints = vec![old.local_addr().unwrap()];
    lab.allow(ALLOWED);
    let held = tokio::spawn(async move {
        let connection = old.accept().await.unwrap().await.unwrap();
        connection.closed().await
    });
    let member = Arc::new(lab.members[1].clone());
    let core = &lab.node(0).core;
    let opened = in_time("a refusal", core.open_datagrams(&member, false, 7000)).await;
    assert_eq!(opened.err(), Some(Refusal::NoDatagrams));
    lab.stop().await;
    let why = in_time("the end", held).await.unwrap();
    assert!(
        matches!(why, quinn::ConnectionError::ApplicationClosed(_)),
        "{why}"
    );
}

#[tokio::test]
async fn there_is_an_end_of_flows_of_datagrams() {
    let (lab, service) = lab(|options| options.limits.flows = 2).await;
    let mut programs = Vec::new();
    for _ in 0..3 {
        let program = program(&lab).await;
        program.send(b"?").await.unwrap();
        programs.push(program);
    }
    for _ in 0..2 {
        next(&service).await;
    }
    assert_eq!(lab.node(0).status().flows, 2);
    let third = tokio::time::timeout(Duration::from_millis(100), next(&service)).await;
    assert!(third.is_err(), "the third has no place");
    lab.stop().await;
}

#[tokio::test]
async fn a_socket_of_its_own_leads_to_a_service_by_its_name() {
    let (lab, service) = lab(|options| options.doors = false).await;
    let (door, program) = (socket().await, socket().await);
    program.connect(door.local_addr().unwrap()).await.unwrap();
    let core = &lab.node(0).core;
    let callee = super::super::datagrams::doors::Callee::Name("all.mesh.internal".to_owned(), 7000);
    let close = tokio_util::sync::CancellationToken::new();
    let attended =
        super::super::datagrams::doors::attend(Arc::clone(core), door, callee, close.clone());
    core.spawn(attended);
    // Of its two nodes one is the caller, which offers nothing.
    program.send(b"?").await.unwrap();
    let (_, from) = next(&service).await;
    service.send_to(b"!", from).await.unwrap();
    assert_eq!(next(&program).await.0, b"!");
    close.cancel();
    lab.stop().await;
}
