//! What flows do for those who are allowed to have them.

use super::*;

const MEGABYTES: usize = 3 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn megabytes_arrive_whole_in_both_directions_at_once() {
    let lab = Lab::new(2, &[(0, 1, "tcp/7000"), (1, 0, "tcp/7000")], &[7000]).await;
    // Over one connection: the second flow is begun by the node that the first one called.
    for (from, to) in [(0, 1), (1, 0)] {
        let service = lab.service(to, 7000).await;
        let served = tokio::spawn(async move {
            let (stream, _) = service.accept().await.unwrap();
            let (mut read, mut write) = stream.into_split();
            let answer = tokio::spawn(async move {
                write.write_all(&noise(2, MEGABYTES)).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.unwrap();
            answer.await.unwrap();
            all
        });
        let (mut read, mut write) = lab.flow(from, to, 7000).await.unwrap().into_split();
        let asked = tokio::spawn(async move {
            write.write_all(&noise(1, MEGABYTES)).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut all = Vec::new();
        in_time("the answer", read.read_to_end(&mut all))
            .await
            .unwrap();
        asked.await.unwrap();
        assert!(
            all == noise(2, MEGABYTES),
            "what came back is what was sent"
        );
        let came = in_time("the question", served).await.unwrap();
        assert!(came == noise(1, MEGABYTES), "what arrived is what was sent");
    }
    for at in 0..2 {
        until("flows are over", || lab.node(at).status().flows == 0).await;
        let status = lab.node(at).status();
        assert_eq!((status.connections, status.opened), (1, 2));
        let both = 2 * MEGABYTES as u64;
        assert_eq!((status.sent, status.received), (both, both));
    }
    lab.stop().await;
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let lab = Lab::new(2, &[(0, 1, "tcp/7000")], &[7000]).await;
    let service = lab.service(1, 7000).await;
    // The caller ends first, then the service does.
    let mut caller = lab.flow(0, 1, 7000).await.unwrap();
    let (mut called, _) = in_time("a caller", service.accept()).await.unwrap();
    caller.write_all(b"question").await.unwrap();
    caller.shutdown().await.unwrap();
    assert_eq!(rest(&mut called).await.unwrap(), b"question");
    called.write_all(b"answer").await.unwrap();
    drop(called);
    assert_eq!(rest(&mut caller).await.unwrap(), b"answer");
    // And the other way round.
    let mut caller = lab.flow(0, 1, 7000).await.unwrap();
    let (mut called, _) = in_time("a caller", service.accept()).await.unwrap();
    called.write_all(b"greeting").await.unwrap();
    called.shutdown().await.unwrap();
    assert_eq!(rest(&mut caller).await.unwrap(), b"greeting");
    caller.write_all(b"farewell").await.unwrap();
    drop(caller);
    assert_eq!(rest(&mut called).await.unwrap(), b"farewell");
    drop(called);
    for at in 0..2 {
        until("flows are over", || lab.node(at).status().flows == 0).await;
    }
    lab.stop().await;
}

#[tokio::test]
async fn a_reset_at_one_end_is_one_at_the_other() {
    let lab = Lab::new(2, &[(0, 1, "tcp/7000")], &[7000]).await;
    let service = lab.service(1, 7000).await;
    for caller_breaks in [true, false] {
        let caller = lab.flow(0, 1, 7000).await.unwrap();
        let (called, _) = in_time("a caller", service.accept()).await.unwrap();
        let (broken, mut other) = match caller_breaks {
            true => (caller, called),
            false => (called, caller),
        };
        other.write_all(b"unread").await.unwrap();
        rustix::net::sockopt::set_socket_linger(&broken, Some(Duration::ZERO)).unwrap();
        drop(broken);
        let error = rest(&mut other).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_flows_at_once_do_not_mix() {
    let lab = Lab::new(3, &[(0, 2, "tcp/7000"), (1, 2, "tcp/7000")], &[7000]).await;
    let service = lab.service(2, 7000).await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = service.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
        }
    });
    // All are open before the first is used.
    let mut flows = Vec::new();
    for number in 0..200 {
        flows.push(lab.flow(number % 2, 2, 7000).await.unwrap());
    }
    assert_eq!(lab.node(2).status().flows, 200);
    assert_eq!(lab.node(2).status().connections, 2);
    let flows = flows.into_iter().zip(0..).map(|(mut stream, number)| {
        tokio::spawn(async move {
            let sent = noise(number, 30_000);
            let (mut read, mut write) = stream.split();
            let both = async {
                write.write_all(&sent).await?;
                write.shutdown().await
            };
            let mut all = Vec::new();
            let (said, heard) = tokio::join!(both, read.read_to_end(&mut all));
            said.and(heard).unwrap();
            all == sent
        })
    });
    for flow in flows.collect::<Vec<_>>() {
        assert!(in_time("a flow", flow).await.unwrap());
    }
    lab.stop().await;
}

#[tokio::test]
async fn doors_have_the_same_address_everywhere_and_show_who_calls() {
    let allowed: Allowed<'_> = &[
        (0, 1, "tcp/7000"),
        (0, 1, "tcp/7100-7200"),
        (0, 1, "udp/7300"),
    ];
    let ports = &[7000, 7150];
    let lab = Lab::with(2, allowed, ports, |options| {
        options.doors = true;
        options.door_ports = vec![7150, 8000];
    })
    .await;
    let service = lab.service(1, 7000).await;
    // What a rule names, and what was asked for within a range; not what no rule allows.
    let places = [lab.place(1, 7000), lab.place(1, 7150)];
    // The service has the address, so the door of the other node, on the same machine here, is stuck until it gives it back.
    let stuck = || {
        lab.node(0)
            .status()
            .stuck
            .iter()
            .any(|(at, _)| *at == places[0])
    };
    until("a door is stuck", stuck).await;
    drop(service);
    until("doors are open", || lab.node(0).status().doors == places).await;
    assert_eq!(lab.node(1).status().doors, []);
    // Then it can only listen at 127.0.0.1, which is where it is looked for next.
    let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = service.local_addr().unwrap();
    let other = Service {
        port: 7000,
        target: Some(target),
    };
    lab.node(1).set_services(&[other]).unwrap();
    let mut caller = lab.door(1, 7000).await;
    let (mut called, from) = in_time("a caller", service.accept()).await.unwrap();
    assert_eq!(from.ip(), lab.place(0, 0).ip());
    caller.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    in_time("a word", called.read_exact(&mut heard))
        .await
        .unwrap();
    assert_eq!(&heard, b"hello");
    // A door whose rule is gone closes.
    lab.allow(&[]);
    until("doors close", || lab.node(0).status().doors.is_empty()).await;
    let refused = TcpStream::connect(places[0]).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert!(rest(&mut caller).await.is_err());
    lab.stop().await;
}

#[tokio::test]
async fn a_service_is_reached_while_one_of_its_nodes_is() {
    let allowed: Allowed<'_> = &[(0, 1, "tcp/7000"), (0, 2, "tcp/7000")];
    let lab = Lab::new(3, allowed, &[7000]).await;
    // The first two of its nodes offer the port and have nobody there; one of them is the node that asks.
    let service = lab.service(2, 7000).await;
    for _ in 0..3 {
        let mut caller = lab.socks(0, "ALL.mesh.internal.", 7000).await.unwrap();
        let (mut called, _) = in_time("a caller", service.accept()).await.unwrap();
        called.write_all(b"here").await.unwrap();
        drop(called);
        caller.shutdown().await.unwrap();
        assert_eq!(rest(&mut caller).await.unwrap(), b"here");
    }
    lab.stop().await;
}

#[tokio::test]
async fn a_node_reaches_itself_by_its_name_and_only_what_it_offers() {
    let lab = Lab::new(1, &[], &[7000]).await;
    let service = lab.service(0, 7000).await;
    let own = &lab.members[0];
    for host in [own.name.clone(), own.v4.to_string(), own.v6.to_string()] {
        let mut caller = lab.socks(0, &host, 7000).await.unwrap();
        let (called, _) = in_time("a caller", service.accept()).await.unwrap();
        drop(called);
        assert_eq!(rest(&mut caller).await.unwrap(), b"");
    }
    assert_eq!(lab.flow(0, 0, 7001).await.err(), Some(2));
    lab.stop().await;
}

#[tokio::test]
async fn when_a_node_stops_its_flows_break_off_and_none_is_left() {
    let mut lab = Lab::new(2, &[(0, 1, "tcp/7000")], &[7000]).await;
    let service = lab.service(1, 7000).await;
    let mut caller = lab.flow(0, 1, 7000).await.unwrap();
    let (mut called, _) = in_time("a caller", service.accept()).await.unwrap();
    called.write_all(b"half").await.unwrap();
    let mut half = [0; 4];
    in_time("a word", caller.read_exact(&mut half))
        .await
        .unwrap();
    in_time("a node stops", lab.nodes[1].take().unwrap().stop()).await;
    // Neither side takes it for an end in order.
    for stream in [&mut caller, &mut called] {
        let error = rest(stream).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    until("nothing is left", || {
        let status = lab.node(0).status();
        (status.flows, status.connections) == (0, 0)
    })
    .await;
    assert_eq!(lab.flow(0, 1, 7000).await.err(), Some(4));
    lab.stop().await;
}
