//! Policy in the data plane: with real packets, at both ends.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::policy::{Filter, FilterGate, Policy, Subject};

use crate::lab::{
    Cable, Node, NodeOptions, PATIENCE, echo, exchange, inner, key, run, udp, wait_for,
};

/// How long something that is denied is tried.
const TRY: Duration = Duration::from_millis(400);

const RULES: &str = r#"
[[allow]]
from = ["tag:web"]
to = ["tag:db"]
ports = ["tcp/5432", "udp/*", "icmp"]
"#;

fn addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    match (inner(number, false), inner(number, true)) {
        (std::net::IpAddr::V4(v4), std::net::IpAddr::V6(v6)) => (v4, v6),
        _ => unreachable!(),
    }
}

/// What the policy means for node `me` (1 is web, 2 is db) and the other.
fn filter(policy: &str, me: u8) -> Filter {
    let tags =
        |number| -> BTreeSet<String> { [if number == 1 { "web" } else { "db" }.to_owned()].into() };
    let (mine, other) = (tags(me), 3 - me);
    let theirs = tags(other);
    let (v4, v6) = addresses(other);
    let subject = |tags| Subject { name: None, tags };
    Policy::parse(policy).unwrap().compile(
        subject(&mine),
        addresses(me),
        [(key(other).public(), subject(&theirs), v4, v6)],
    )
}

/// Two nodes; one without a gate has no policy at all.
fn nodes(cable: &Cable, gates: [Option<&Arc<FilterGate>>; 2]) -> [Node; 2] {
    let node = |at: usize| {
        let options = NodeOptions {
            gate: gates[at].map(|gate| Arc::clone(gate) as Arc<dyn mesh::policy::Gate>),
            ..NodeOptions::default()
        };
        Node::new(at as u8 + 1, &cable.spaces[at], &options)
    };
    let nodes = [node(0), node(1)];
    for (at, other) in [(0, 1), (1, 0)] {
        let peer = nodes[other].as_peer(Some(Cable::address(other, false)));
        nodes[at].engine.set_peer(&peer).unwrap();
    }
    nodes
}

fn closed() -> Arc<FilterGate> {
    Arc::new(FilterGate::closed(Instant::now()))
}

fn listen(node: &Node, port: u16) -> TcpListener {
    let at = SocketAddr::new(node.address(false), port);
    node.inside
        .within(|| Ok(TcpListener::bind(at).unwrap()))
        .unwrap()
}

fn reach(node: &Node, listener: &TcpListener, patience: Duration) -> std::io::Result<TcpStream> {
    let at = listener.local_addr().unwrap();
    node.inside
        .within(|| Ok(TcpStream::connect_timeout(&at, patience)))
        .unwrap()
}

fn denied(node: &Node) -> (u64, u64) {
    let status = node.engine.status();
    (status.denied_outbound, status.denied_inbound)
}

/// Sends until the counter of the node that denies has grown, and sees that nothing came out.
fn is_denied_at(from: &Node, to: &Node, count: impl Fn() -> u64) {
    for v6 in [false, true] {
        let (near, far) = (
            udp(&from.inside, from.address(v6)),
            udp(&to.inside, to.address(v6)),
        );
        let before = count();
        let there = far.local_addr().unwrap();
        wait_for("a packet that is denied", || {
            near.send_to(b"a beginning", there).unwrap();
            (count() > before).then_some(())
        });
        far.set_nonblocking(true).unwrap();
        assert!(far.recv_from(&mut [0; 64]).is_err());
    }
}

#[test]
fn nothing_leaves_and_nothing_enters_without_a_rule() {
    let cable = Cable::new(1500);
    let gate = closed();
    // The first asks nobody, as one would that is in wrong hands.
    let [one, two] = nodes(&cable, [None, Some(&gate)]);
    is_denied_at(&one, &two, || denied(&two).1);
    is_denied_at(&two, &one, || denied(&two).0);
    assert!(two.engine.peer(&key(1).public()).unwrap().handshakes > 0);
    // A filter that knows no rule is as closed as none.
    gate.set(filter("", 2));
    is_denied_at(&one, &two, || denied(&two).1);
    is_denied_at(&two, &one, || denied(&two).0);
}

#[test]
fn what_a_rule_lets_begin_is_answered_and_nothing_else_passes() {
    let cable = Cable::new(1500);
    let gates = [closed(), closed()];
    gates[0].set(filter(RULES, 1));
    gates[1].set(filter(RULES, 2));
    let [one, two] = nodes(&cable, [Some(&gates[0]), Some(&gates[1])]);
    run(
        &one.inside,
        &format!("ping -c 2 -i 0.05 -W 5 -s 5000 {}", two.address(false)),
    );
    let listener = listen(&two, 5432);
    let mut near = reach(&one, &listener, PATIENCE).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    // Large packets from the kernel in both directions.
    let sent = vec![7; 4 << 20];
    let carry = |out: &mut TcpStream, back: &mut TcpStream| {
        back.set_read_timeout(Some(PATIENCE)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| out.write_all(&sent).unwrap());
            let mut received = vec![0; sent.len()];
            back.read_exact(&mut received).unwrap();
            assert!(received == sent);
        });
    };
    carry(&mut near, &mut far);
    carry(&mut far, &mut near);
    echo(
        &udp(&one.inside, one.address(true)),
        &udp(&two.inside, two.address(true)),
        9000,
    );
    assert_eq!(denied(&two).1, 0);
    // Another port, and the other direction, already at the sender.
    let other = listen(&two, 5433);
    let back = listen(&one, 5432);
    for (from, listener) in [(&one, &other), (&two, &back)] {
        let before = denied(from).0;
        assert!(reach(from, listener, TRY).is_err());
        assert!(denied(from).0 > before);
    }
    // One that applies another policy gets no further than the receiver.
    gates[0].set(filter(&RULES.replace("tcp/5432", "tcp/*"), 1));
    assert!(reach(&one, &other, TRY).is_err());
    assert!(denied(&two).1 > 0);
    assert!(reach(&one, &listener, PATIENCE).is_ok());
}

#[test]
fn a_policy_that_is_taken_back_cuts_what_runs() {
    let cable = Cable::new(1500);
    let gates = [closed(), closed()];
    for (at, gate) in gates.iter().enumerate() {
        gate.set(filter(RULES, at as u8 + 1));
    }
    let [one, two] = nodes(&cable, [Some(&gates[0]), Some(&gates[1])]);
    let listener = listen(&two, 5432);
    let mut near = reach(&one, &listener, PATIENCE).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let mut word = [0; 4];
    near.write_all(b"ping").unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    far.read_exact(&mut word).unwrap();
    // At the receiver alone: it need not trust the sender.
    gates[1].set(filter("", 2));
    let before = denied(&two).1;
    near.write_all(b"more").unwrap();
    wait_for("a packet that is denied", || {
        (denied(&two).1 > before).then_some(())
    });
    far.set_read_timeout(Some(TRY)).unwrap();
    assert!(far.read_exact(&mut word).is_err());
    // Nor does it answer any more.
    let before = denied(&two).0;
    far.write_all(b"back").unwrap();
    wait_for("an answer that is denied", || {
        (denied(&two).0 > before).then_some(())
    });
    // Given back, the kernel's repetitions bring what was held up.
    gates[1].set(filter(RULES, 2));
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    far.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"more");
    near.set_read_timeout(Some(PATIENCE)).unwrap();
    near.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"back");
    drop((near, far, listener));
    gates[1].set(filter(&RULES.replace("5432", "*"), 2));
    gates[0].set(filter(&RULES.replace("5432", "*"), 1));
    exchange(&one.inside, &two.inside, two.address(true), 1 << 20);
}
