//! Three providers behind NATs, relays, and what may happen to them.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh::PeerWay;
use mesh::relay::SharedTickets;

use crate::internet::{Internet, Nat, direct, introduce, registered, status};
use crate::lab::{Node, PATIENCE, connect, echo, exchange, key, run, udp, wait_for};

/// A UDP socket inside a node.
fn socket(node: &Node) -> UdpSocket {
    udp(&node.inside, node.address(false))
}

/// Sends numbered datagrams, a few at a time, until `done`; every one must arrive, once and in time.
fn lossless(near: &UdpSocket, far: &UdpSocket, mut done: impl FnMut() -> bool) {
    let there = far.local_addr().unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut number = 0u64;
    let mut after = 0;
    while after < 20 {
        if done() {
            after += 1;
        }
        assert!(number < 200_000, "waited in vain");
        let burst = number..number + 16;
        for each in burst.clone() {
            near.send_to(&each.to_be_bytes(), there).unwrap();
        }
        let mut arrived: Vec<u64> = Vec::new();
        while arrived.len() < 16 {
            let mut buffer = [0; 16];
            let (length, _) = far
                .recv_from(&mut buffer)
                .unwrap_or_else(|error| panic!("a datagram after {number} was lost: {error}"));
            // Others are left over from conversations before.
            if length == 8 {
                arrived.push(u64::from_be_bytes(buffer[..8].try_into().unwrap()));
            }
        }
        arrived.sort_unstable();
        assert!(
            arrived.iter().copied().eq(burst.clone()),
            "{arrived:?} for {burst:?}"
        );
        number = burst.end;
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// A conversation that must go on whatever happens.
struct Talk(TcpStream, TcpStream);

impl Talk {
    fn between(one: &Node, two: &Node) -> Self {
        let (near, far) = connect(&one.inside, &two.inside, two.address(false));
        for stream in [&near, &far] {
            stream
                .set_read_timeout(Some(Duration::from_secs(120)))
                .unwrap();
        }
        Self(near, far)
    }

    fn go_on(&mut self) {
        for (from, to) in [(0, 1), (1, 0)] {
            let mut ends = [&self.0, &self.1];
            ends[from].write_all(b"still here").unwrap();
            let mut whole = [0; 10];
            ends[to].read_exact(&mut whole).unwrap();
            assert_eq!(&whole, b"still here");
        }
    }
}

#[test]
fn direct_where_nats_allow_and_relayed_where_not() {
    let internet = Internet::new();
    let middle = internet.provider(100, Nat::None);
    let relay = middle.open_relay();
    let relays = [relay.address(middle.public())];
    let kinds = [
        Nat::Cone,
        Nat::Cone,
        Nat::Symmetric,
        Nat::FullyRandom,
        Nat::None,
    ];
    let providers: Vec<_> = (1..)
        .zip(kinds)
        .map(|(number, nat)| internet.provider(number, nat))
        .collect();
    let nodes: Vec<_> = providers
        .iter()
        .map(|provider| provider.node(&relays))
        .collect();
    introduce(&nodes.iter().collect::<Vec<_>>());
    let sockets: Vec<_> = nodes.iter().map(socket).collect();
    // The first packets go at once, and none is lost when they go another way.
    wait_for("the first packet", || {
        sockets[0]
            .send_to(b"first", sockets[1].local_addr().unwrap())
            .unwrap();
        sockets[1]
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        sockets[1].recv_from(&mut [0; 9]).ok()
    });
    while sockets[1].recv_from(&mut [0; 9]).is_ok() {}
    lossless(&sockets[0], &sockets[1], || direct(&nodes[0], &nodes[1]));
    for (one, two, straight) in [
        (0, 1, true),
        (0, 4, true),
        (2, 4, true),
        (3, 4, true),
        (0, 2, false),
        (1, 3, false),
        (2, 3, false),
    ] {
        let (near, far) = (&sockets[one], &sockets[two]);
        wait_for("the way", || {
            echo(near, far, 100);
            let ways = [
                direct(&nodes[one], &nodes[two]),
                direct(&nodes[two], &nodes[one]),
            ];
            (ways == [straight; 2]).then_some(())
        });
        exchange(
            &nodes[one].inside,
            &nodes[two].inside,
            nodes[two].address(true),
            100_000,
        );
    }
    // Those without a straight way stay with the relay, which is proven, and lose nothing by looking for another.
    let start = Instant::now();
    lossless(&sockets[0], &sockets[2], || {
        status(&nodes[0], &nodes[2]).round_trip.is_some()
            && start.elapsed() > Duration::from_secs(3)
    });
    assert!(!direct(&nodes[0], &nodes[2]) && !direct(&nodes[2], &nodes[0]));
    let carried = relay.statistics();
    assert_eq!(carried.clients, 5);
    assert_eq!((carried.refused, carried.malformed), (0, 0));
}

#[test]
fn where_only_tls_passes_a_relay_carries_it() {
    let internet = Internet::new();
    let middle = internet.provider(100, Nat::None);
    let relay = middle.open_relay();
    let relays = [relay.address(middle.public())];
    let providers = [
        internet.provider(1, Nat::OnlyTls),
        internet.provider(2, Nat::Cone),
    ];
    let nodes = [providers[0].node(&relays), providers[1].node(&relays)];
    introduce(&[&nodes[0], &nodes[1]]);
    let sockets = [socket(&nodes[0]), socket(&nodes[1])];
    echo(&sockets[0], &sockets[1], 1200);
    exchange(
        &nodes[0].inside,
        &nodes[1].inside,
        nodes[1].address(false),
        1 << 20,
    );
    let state = nodes[0].engine.relays();
    assert!(state[0].tls && !state[0].udp, "{state:?}");
    wait_for("UDP where it works", || {
        nodes[1].engine.relays()[0].udp.then_some(())
    });
    // UDP dies for the other one too, while a connection is open.
    let mut talk = Talk::between(&nodes[0], &nodes[1]);
    talk.go_on();
    providers[1].only_tls();
    echo(&sockets[0], &sockets[1], 100);
    talk.go_on();
    assert!(nodes[1].engine.relays()[0].tls);
    let relay_key = key(100).public();
    assert_eq!(
        status(&nodes[1], &nodes[0]).way,
        Some(PeerWay::Relay(relay_key))
    );
}

#[test]
fn a_node_that_moves_is_followed() {
    let internet = Internet::new();
    let middle = internet.provider(100, Nat::None);
    let relay = middle.open_relay();
    let relays = [relay.address(middle.public())];
    let providers = [
        internet.provider(1, Nat::None),
        internet.provider(2, Nat::Cone),
    ];
    let nodes = [providers[0].node(&relays), providers[1].node(&relays)];
    introduce(&[&nodes[0], &nodes[1]]);
    let sockets = [socket(&nodes[0]), socket(&nodes[1])];
    wait_for("a straight way", || {
        echo(&sockets[0], &sockets[1], 100);
        (direct(&nodes[0], &nodes[1]) && direct(&nodes[1], &nodes[0])).then_some(())
    });
    let mut talk = Talk::between(&nodes[0], &nodes[1]);
    let host = &providers[0].host;
    run(host, "ip address add 203.0.1.77/24 dev wan");
    run(host, "ip address del 203.0.1.2/24 dev wan");
    run(host, "ip address add 203.0.1.77/24 dev wan");
    run(host, "ip route replace default via 203.0.1.1");
    wait_for("the new address", || {
        echo(&sockets[0], &sockets[1], 100);
        let way = status(&nodes[1], &nodes[0]).way;
        matches!(way, Some(PeerWay::Direct(address)) if address.ip().to_string() == "203.0.1.77")
            .then_some(())
    });
    talk.go_on();
    wait_for("the relay to see it there", || {
        let seen = nodes[0].engine.relays()[0].seen?;
        (seen.ip().to_string() == "203.0.1.77").then_some(())
    });
}

#[test]
fn when_a_relay_dies_flows_go_on_over_another() {
    let internet = Internet::new();
    let places = [
        internet.provider(100, Nat::None),
        internet.provider(101, Nat::None),
    ];
    let mut relays: Vec<_> = places
        .iter()
        .map(|place| Some(place.open_relay()))
        .collect();
    let addresses: Vec<_> = relays
        .iter()
        .flatten()
        .zip(&places)
        .map(|(relay, place)| relay.address(place.public()))
        .collect();
    let providers = [
        internet.provider(1, Nat::Symmetric),
        internet.provider(2, Nat::Symmetric),
    ];
    let nodes = [providers[0].node(&addresses), providers[1].node(&addresses)];
    for node in &nodes {
        registered(node);
    }
    introduce(&[&nodes[0], &nodes[1]]);
    let sockets = [socket(&nodes[0]), socket(&nodes[1])];
    echo(&sockets[0], &sockets[1], 100);
    let mut talk = Talk::between(&nodes[0], &nodes[1]);
    talk.go_on();
    let used = |node: usize| match status(&nodes[node], &nodes[1 - node]).way {
        Some(PeerWay::Relay(key)) => addresses.iter().position(|relay| relay.key == key),
        _ => None,
    };
    // One is cut off without a word.
    let first = used(0).unwrap();
    run(&places[first].host, "ip link set wan down");
    wait_for("the other relay", || {
        echo(&sockets[0], &sockets[1], 100);
        (used(0) == Some(1 - first) && used(1) == Some(1 - first)).then_some(())
    });
    talk.go_on();
    // It comes back, and the other one ends in order: its clients are told.
    run(&places[first].host, "ip link set wan up");
    let gateway = 100 + first;
    run(
        &places[first].host,
        &format!("ip route replace default via 203.0.{gateway}.1"),
    );
    for node in &nodes {
        registered(node);
    }
    relays[1 - first].take().unwrap().stop();
    wait_for("the first relay", || {
        echo(&sockets[0], &sockets[1], 100);
        (used(0) == Some(first) && used(1) == Some(first)).then_some(())
    });
    talk.go_on();
}

#[test]
fn a_relay_lets_in_who_has_a_ticket() {
    let internet = Internet::new();
    let middle = internet.provider(100, Nat::None);
    let tickets = Arc::new(SharedTickets::generate().unwrap());
    let relay = middle.relay(tickets.clone());
    let addresses = [relay.address(middle.public())];
    let provider = internet.provider(1, Nat::Cone);
    let node = provider.node(&addresses);
    wait_for("a refusal", || {
        (relay.statistics().refused > 0).then_some(())
    });
    assert_eq!(relay.statistics().clients, 0);
    let later = SystemTime::now() + Duration::from_secs(600);
    let ticket = tickets.issue(&key(1).public(), later);
    node.engine.set_relays(&addresses, &ticket).unwrap();
    registered(&node);
    assert_eq!(relay.statistics().clients, 1);
    // Who is thrown out and stopped is gone; a node that ends says goodbye itself.
    assert!(relay.forget(&key(1).public()));
    assert_eq!(relay.statistics().clients, 0);
    node.engine.set_relays(&[], &[]).unwrap();
    assert!(node.engine.relays().is_empty());
    node.engine.set_relays(&addresses, &ticket).unwrap();
    registered(&node);
    assert_eq!(relay.statistics().clients, 1);
    node.engine.stop();
    wait_for("the goodbye", || {
        (relay.statistics().clients == 0).then_some(())
    });
}
