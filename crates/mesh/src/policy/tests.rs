//! Policy as its users meet it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::*;
use crate::PublicKey;
use crate::flows::{End, MOST_ENDED, MOST_RUNNING};

const POLICY: &str = r#"
[services.db]
nodes = ["tag:db"]
ports = ["tcp/5432"]

[[allow]]
from = ["tag:web"]
to = ["service:db"]

[[allow]]
from = ["tag:admin", "node:laptop"]
to = ["*"]
ports = ["icmp", "udp/53", "tcp/8000-8100"]

[[test]]
from = ["tag:web"]
to = ["tag:db"]
port = "tcp/5432"
expect = "allow"

[[test]]
from = ["tag:db"]
to = ["tag:web"]
port = "tcp/5432"
expect = "deny"
"#;

const ME: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(100, 64, 0, 1),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
);
const PEER: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(100, 64, 0, 2),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
);
const KEY: PublicKey = PublicKey::from_bytes([2; 32]);

fn tags(tags: &[&str]) -> BTreeSet<String> {
    tags.iter().map(|tag| (*tag).to_owned()).collect()
}

/// The filter of a node with these tags that has one peer with those.
fn filter(text: &str, me: &[&str], peer: &[&str]) -> Filter {
    let (me, peer) = (tags(me), tags(peer));
    let subject = |tags| Subject { name: None, tags };
    Policy::parse(text)
        .unwrap()
        .compile(subject(&me), ME, [(KEY, subject(&peer), PEER.0, PEER.1)])
}

fn packet(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0, 0, 0, protocol, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => panic!("two families"),
    }
    packet.extend(body);
    packet
}

const SYN: u8 = 2;
const ACK: u8 = 16;

fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut body = vec![0; 20];
    body[..2].copy_from_slice(&source.to_be_bytes());
    body[2..4].copy_from_slice(&destination.to_be_bytes());
    body[13] = flags;
    body
}

fn out(protocol: u8, body: &[u8]) -> Vec<u8> {
    packet(ME.0.into(), PEER.0.into(), protocol, body)
}

fn back(protocol: u8, body: &[u8]) -> Vec<u8> {
    packet(PEER.0.into(), ME.0.into(), protocol, body)
}

fn gate(text: &str, me: &[&str], peer: &[&str]) -> (FilterGate, Instant) {
    let now = Instant::now();
    let gate = FilterGate::closed(now);
    gate.set(filter(text, me, peer));
    (gate, now)
}

use Direction::{Inbound, Outbound};
use Verdict::{Admit, Deny};

#[test]
fn the_tests_of_a_policy_are_run() {
    assert_eq!(Policy::parse(POLICY).unwrap().test(), Ok(2));
    let wrong = POLICY.replace("expect = \"deny\"", "expect = \"allow\"");
    let failed = Policy::parse(&wrong).unwrap().test().unwrap_err();
    assert_eq!(failed.len(), 1);
    assert_eq!(
        failed[0].to_string(),
        "line 21: the test fails: tcp/5432 is denied, and should be allowed; \
         add a rule that allows it, or change what is expected"
    );
}

#[test]
fn mistakes_are_told_with_line_and_remedy() {
    for (text, line, words) in [
        ("\n\n[[allow]\n", 3, "see `atoll mesh policy test --help`"),
        (
            "[[allow]]\nfrom = [\"web\"]\nto = [\"*\"]\nports = [\"*\"]",
            2,
            "write tag:NAME, node:NAME, cluster:NAME or *",
        ),
        (
            "[[allow]]\nfrom = [\"*\"]\nto = [\n  \"service:x\"]",
            4,
            "there is no service \"x\"",
        ),
        (
            "[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]\nports = [\"tcp/0\"]",
            4,
            "write tcp/5432",
        ),
        (
            "[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]",
            1,
            "the rule names no ports",
        ),
        ("domain = \"Mesh\"", 1, "is not a domain"),
        (
            "[[test]]\nfrom = []\nto = []\nport = \"tcp/1-2\"\nexpect = \"allow\"",
            4,
            "is not one port",
        ),
        (
            "[[test]]\nfrom = []\nto = []\nport = \"tcp/1\"\nexpect = \"maybe\"",
            5,
            "write allow or deny",
        ),
        ("rules = 1", 1, "unknown field"),
        (
            "[dns.split]\n\"corp.example\" = [\"here\"]",
            2,
            "is not an address",
        ),
    ] {
        let mistakes = Policy::parse(text).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert_eq!(mistakes[0].line, line, "{mistakes:?}");
        assert!(mistakes[0].to_string().contains(words), "{}", mistakes[0]);
    }
}

#[test]
fn nothing_passes_without_a_rule() {
    let now = Instant::now();
    let syn = out(6, &tcp(40000, 5432, SYN));
    assert_eq!(
        FilterGate::closed(now).admit(&KEY, Outbound, &syn, now),
        Deny(Denial::Peer)
    );
    for text in ["", POLICY] {
        let (gate, now) = gate(text, &["db"], &["web"]);
        assert_eq!(gate.admit(&KEY, Outbound, &syn, now), Deny(Denial::Rule));
        let ping = back(1, &[8, 0, 0, 0, 0, 7, 0, 1]);
        assert_eq!(gate.admit(&KEY, Inbound, &ping, now), Deny(Denial::Rule));
        assert_eq!(
            gate.admit(&KEY, Inbound, &back(47, &[0; 8]), now),
            Deny(Denial::Rule)
        );
    }
    let none = tags(&[]);
    let nobody = Subject {
        name: None,
        tags: &none,
    };
    let policy = Policy::parse(POLICY).unwrap();
    assert!(policy.ports(nobody, nobody).is_empty());
}

#[test]
fn both_ends_agree_and_answers_pass() {
    let (sender, now) = gate(POLICY, &["web"], &["db"]);
    let (receiver, _) = gate(POLICY, &["db"], &["web"]);
    let syn = tcp(40000, 5432, SYN);
    let answer = tcp(5432, 40000, SYN | ACK);
    // Before anything was asked, nothing is an answer.
    assert_eq!(
        sender.admit(&KEY, Inbound, &back(6, &answer), now),
        Deny(Denial::Rule)
    );
    assert_eq!(sender.admit(&KEY, Outbound, &out(6, &syn), now), Admit);
    assert_eq!(receiver.admit(&KEY, Inbound, &back(6, &syn), now), Admit);
    assert_eq!(receiver.admit(&KEY, Outbound, &out(6, &answer), now), Admit);
    assert_eq!(sender.admit(&KEY, Inbound, &back(6, &answer), now), Admit);
    // The other side may answer, and begin nothing between the same ports.
    assert_eq!(
        sender.admit(&KEY, Inbound, &back(6, &tcp(5432, 40000, SYN)), now),
        Deny(Denial::Rule)
    );
    // Another port is another flow.
    assert_eq!(
        sender.admit(&KEY, Outbound, &out(6, &tcp(40000, 5433, SYN)), now),
        Deny(Denial::Rule)
    );
    // Silence is forgotten at last.
    let later = now + Duration::from_secs(3 * 3600);
    assert_eq!(
        sender.admit(&KEY, Inbound, &back(6, &answer), later),
        Deny(Denial::Rule)
    );
}

#[test]
fn who_is_started_anew_goes_on_answering_and_believes_no_answers() {
    // Neither has seen how it began.
    let (server, now) = gate(POLICY, &["db"], &["web"]);
    let (client, _) = gate(POLICY, &["web"], &["db"]);
    let answer = tcp(5432, 40000, ACK);
    assert_eq!(server.admit(&KEY, Outbound, &out(6, &answer), now), Admit);
    for denied in [tcp(5432, 40000, SYN), tcp(5433, 40000, ACK)] {
        assert_eq!(
            server.admit(&KEY, Outbound, &out(6, &denied), now),
            Deny(Denial::Rule)
        );
    }
    assert_eq!(
        client.admit(&KEY, Inbound, &back(6, &answer), now),
        Deny(Denial::Rule)
    );
}

#[test]
fn a_changed_policy_ends_what_it_forbids() {
    let (gate, now) = gate(POLICY, &["web"], &["db"]);
    assert_eq!(
        gate.admit(&KEY, Outbound, &out(6, &tcp(1, 5432, SYN)), now),
        Admit
    );
    gate.set(filter("", &["web"], &["db"]));
    let answer = back(6, &tcp(5432, 1, ACK));
    assert_eq!(gate.admit(&KEY, Inbound, &answer, now), Deny(Denial::Rule));
    gate.set(filter(POLICY, &["web"], &["db"]));
    assert_eq!(gate.admit(&KEY, Inbound, &answer, now), Deny(Denial::Rule));
}

#[test]
fn addresses_are_those_of_node_and_peer() {
    let filter = filter(POLICY, &["db"], &["admin"]);
    let flow = |source: IpAddr, destination: IpAddr| Flow {
        protocol: 17,
        source,
        source_port: 999,
        destination,
        destination_port: 53,
    };
    let other: IpAddr = [100, 64, 0, 3].into();
    let right = flow(PEER.0.into(), ME.0.into());
    assert_eq!(filter.allows(&KEY, Inbound, &right), Admit);
    assert_eq!(
        filter.allows(&KEY, Inbound, &flow(PEER.1.into(), ME.1.into())),
        Admit
    );
    assert_eq!(filter.allows(&KEY, Outbound, &right), Deny(Denial::Address));
    for (source, destination) in [
        (other, ME.0.into()),
        (PEER.0.into(), other),
        (PEER.0.into(), ME.1.into()),
    ] {
        let flow = flow(source, destination);
        assert_eq!(filter.allows(&KEY, Inbound, &flow), Deny(Denial::Address));
    }
    assert_eq!(
        filter.allows(&PublicKey::from_bytes([3; 32]), Inbound, &right),
        Deny(Denial::Peer)
    );
}

#[test]
fn pings_and_reports_follow_what_was_asked() {
    let (gate, now) = gate(POLICY, &["admin"], &["db"]);
    let reply = back(1, &[0, 0, 0, 0, 0, 7, 0, 1]);
    assert_eq!(gate.admit(&KEY, Inbound, &reply, now), Deny(Denial::Rule));
    assert_eq!(
        gate.admit(&KEY, Outbound, &out(1, &[8, 0, 0, 0, 0, 7, 0, 1]), now),
        Admit
    );
    assert_eq!(gate.admit(&KEY, Inbound, &reply, now), Admit);
    assert_eq!(
        gate.admit(&KEY, Inbound, &back(1, &[0, 0, 0, 0, 0, 8, 0, 1]), now),
        Deny(Denial::Rule)
    );
    // "Too big" about a packet of ours, and about one that never was.
    let syn = out(6, &tcp(40000, 8080, SYN));
    let report = |about: &[u8]| back(1, &[&[3, 4, 0, 0, 0, 0, 5, 0], about].concat());
    assert_eq!(
        gate.admit(&KEY, Inbound, &report(&syn[..28]), now),
        Deny(Denial::Rule)
    );
    assert_eq!(gate.admit(&KEY, Outbound, &syn, now), Admit);
    assert_eq!(gate.admit(&KEY, Inbound, &report(&syn[..28]), now), Admit);
    let other = out(6, &tcp(40001, 8080, SYN));
    assert_eq!(
        gate.admit(&KEY, Inbound, &report(&other[..28]), now),
        Deny(Denial::Rule)
    );
}

#[test]
fn what_hides_is_refused() {
    let (gate, now) = gate(
        "[[allow]]\nfrom=[\"*\"]\nto=[\"*\"]\nports=[\"tcp/80\"]",
        &[],
        &[],
    );
    let whole = back(6, &tcp(9, 80, SYN));
    assert_eq!(gate.admit(&KEY, Inbound, &whole, now), Admit);
    let mut tiny = whole.clone();
    tiny[7] = 1;
    let mut piece = whole.clone();
    piece[7] = 100;
    let mut udp = piece.clone();
    udp[9] = 17;
    for (packet, expected) in [
        (&tiny[..], Deny(Denial::Malformed)),
        (&piece, Admit),
        (&udp, Deny(Denial::Rule)),
        (&whole[..23], Deny(Denial::Malformed)),
        (&whole[..10], Deny(Denial::Malformed)),
        (&[], Deny(Denial::Malformed)),
    ] {
        assert_eq!(
            gate.admit(&KEY, Inbound, packet, now),
            expected,
            "{packet:?}"
        );
    }
    let v6 = |next, body: &[u8]| packet(PEER.1.into(), ME.1.into(), next, body);
    let through_options = [&[6, 0, 0, 0, 0, 0, 0, 0][..], &tcp(9, 80, SYN)].concat();
    assert_eq!(
        gate.admit(&KEY, Inbound, &v6(60, &through_options), now),
        Admit
    );
    assert_eq!(
        gate.admit(&KEY, Inbound, &v6(43, &through_options), now),
        Deny(Denial::Malformed)
    );
}

proptest::proptest! {
    #[test]
    fn no_packet_makes_the_gate_fail(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120), first in 0_u8..3) {
        let (gate, now) = gate(POLICY, &["admin"], &["db"]);
        let mut bytes = bytes;
        if let (Some(byte), 1..) = (bytes.first_mut(), first) {
            *byte = if first == 1 { 0x45 } else { 0x60 };
        }
        // Random addresses are not those of the two.
        if let Admit = gate.admit(&KEY, Inbound, &bytes, now) {
            let own = [&PEER.0.octets()[..], &PEER.1.octets()[..]];
            assert!(own.iter().any(|own| bytes.windows(own.len()).any(|part| part == *own)));
        }
    }

    #[test]
    fn no_text_makes_a_policy_fail(text in "\\PC{0,80}|(\\[\\[(allow|test)\\]\\]\n|(from|to|ports) = \\[\"(tag:a|\\*|tcp/1|node:b)\"\\]\n){0,8}") {
        if let Ok(policy) = Policy::parse(&text) {
            let _ = policy.test();
        }
    }
}

/// What is told of the flows that run, and of those that ended.
fn told(gate: &FilterGate, now: Instant) -> Vec<(u32, Direction, u16, Option<End>)> {
    let records = gate.records(0, now).records.into_iter();
    let told = records.map(|record| {
        let end = record.end.map(|(_, end)| end);
        (
            record.line,
            record.direction,
            record.flow.destination_port,
            end,
        )
    });
    told.collect()
}

#[test]
fn a_flow_is_recorded_with_its_rule_and_what_it_carried() {
    const FIN: u8 = 1;
    let (gate, now) = gate(POLICY, &["web"], &["db"]);
    let pass = |direction, packet: &[u8]| {
        assert_eq!(gate.admit(&KEY, direction, packet, now), Admit);
    };
    pass(Outbound, &out(6, &tcp(40_000, 5432, SYN)));
    pass(Inbound, &back(6, &tcp(5432, 40_000, SYN | ACK)));
    let large = [tcp(5432, 40_000, ACK), vec![0; 1000]].concat();
    pass(Inbound, &back(6, &large));
    let denied = gate.admit(&KEY, Outbound, &out(6, &tcp(40_001, 22, SYN)), now);
    assert_eq!(denied, Deny(Denial::Rule));

    let records = gate.records(0, now);
    let [record] = records.records[..] else {
        panic!("{records:?}")
    };
    assert_eq!((records.cursor, records.begun), (1, 1));
    assert_eq!(
        (record.peer, record.direction, record.line),
        (KEY, Outbound, 6)
    );
    let flow = record.flow;
    assert_eq!(
        (flow.source, flow.destination),
        (ME.0.into(), PEER.0.into())
    );
    assert_eq!((flow.source_port, flow.destination_port), (40_000, 5432));
    assert_eq!((record.sent.packets, record.sent.bytes), (1, 40));
    assert_eq!((record.received.packets, record.received.bytes), (2, 1080));
    assert_eq!(gate.records(records.cursor, now).records, []);

    // One end sends no more, then the other; what comes late is counted nowhere.
    pass(Outbound, &out(6, &tcp(40_000, 5432, FIN | ACK)));
    assert_eq!(told(&gate, now), [(6, Outbound, 5432, None)]);
    pass(Inbound, &back(6, &tcp(5432, 40_000, FIN | ACK)));
    pass(Outbound, &out(6, &tcp(40_000, 5432, ACK)));
    assert_eq!(told(&gate, now), [(6, Outbound, 5432, Some(End::Closed))]);
    // It is news once, and the same ports begin another.
    assert_eq!(gate.records(1, now).records.len(), 1);
    assert_eq!(gate.records(2, now).records, []);
    pass(Outbound, &out(6, &tcp(40_000, 5432, SYN)));
    let refusal = back(6, &tcp(5432, 40_000, 4 | ACK));
    pass(Inbound, &refusal);
    let ends: Vec<_> = told(&gate, now).iter().map(|told| told.3).collect();
    assert_eq!(ends, [Some(End::Reset), Some(End::Closed)]);
}

#[test]
fn both_directions_of_a_flow_are_one_record_whatever_rules_allow() {
    let rules = r#"[[allow]]
from = ["*"]
to = ["*"]
ports = ["*"]
"#;
    let (gate, now) = gate(rules, &[], &[]);
    for (direction, packet) in [
        (Inbound, back(6, &tcp(50_000, 80, SYN))),
        (Outbound, out(6, &tcp(80, 50_000, SYN | ACK))),
        (Inbound, back(6, &tcp(50_000, 80, ACK))),
        (Outbound, out(17, &tcp(5353, 53, 0))),
        (Inbound, back(17, &tcp(53, 5353, 0))),
    ] {
        assert_eq!(gate.admit(&KEY, direction, &packet, now), Admit);
    }
    assert_eq!(
        told(&gate, now),
        [(1, Outbound, 53, None), (1, Inbound, 80, None)]
    );
    // The other is not heard of for minutes.
    let later = now + Duration::from_secs(181);
    assert_eq!(
        told(&gate, later),
        [(1, Inbound, 80, None), (1, Outbound, 53, Some(End::Idle))]
    );
    // A rule that moved is told where it is, and one that is gone ends what it let.
    gate.set(filter(&format!("\n\n{rules}"), &[], &[]));
    assert_eq!(told(&gate, later)[0], (3, Inbound, 80, None));
    gate.set(Filter::default());
    assert_eq!(told(&gate, later)[0], (3, Inbound, 80, Some(End::Policy)));
}

#[test]
fn a_flood_of_flows_has_an_end_of_records() {
    let (gate, now) = gate(POLICY, &["admin"], &[]);
    for source in 1..=u16::MAX {
        let packet = out(17, &tcp(source, 53, 0));
        assert_eq!(gate.admit(&KEY, Outbound, &packet, now), Admit);
    }
    let records = gate.records(0, now);
    assert_eq!(records.records.len(), MOST_RUNNING + MOST_ENDED);
    let all = records.records.len() as u64 + records.beyond + records.forgotten;
    assert_eq!(all, u64::from(u16::MAX));
    assert_eq!(records.begun, all);
    assert!(records.records.iter().all(|record| record.line == 10));
}

const CLUSTERS: &str = r#"
[clusters.paris]
nodes = ["tag:paris-gw"]
ranges = ["10.42.0.0/16", "10.43.0.0/16"]
as = ["10.200.0.0/16", "10.43.0.0/16"]

[clusters.lyon]
nodes = ["tag:lyon-gw"]
ranges = ["10.42.0.0/16"]

[[allow]]
from = ["tag:web"]
to = ["cluster:paris"]
ports = ["tcp/443", "icmp"]

[[allow]]
from = ["cluster:lyon"]
to = ["cluster:paris", "tag:web"]
ports = ["udp/53"]

[[test]]
from = ["tag:web"]
to = ["cluster:paris"]
port = "tcp/443"
expect = "allow"

[[test]]
from = ["cluster:paris"]
to = ["tag:web"]
port = "tcp/443"
expect = "deny"
"#;

fn between(source: &str, destination: &str, protocol: u8, body: &[u8]) -> Vec<u8> {
    packet(
        source.parse().unwrap(),
        destination.parse().unwrap(),
        protocol,
        body,
    )
}

#[test]
fn clusters_are_reached_by_their_gateways_alone_and_only_as_rules_say() {
    assert_eq!(Policy::parse(CLUSTERS).unwrap().test(), Ok(2));
    let udp = |port: u16| [vec![0, 9], port.to_be_bytes().to_vec(), vec![0; 4]].concat();
    let (gate, now) = gate(CLUSTERS, &["web"], &["paris-gw"]);
    let admit = |direction, packet: &[u8]| gate.admit(&KEY, direction, packet, now);
    let own = "100.64.0.1";
    let out = |to, body: &[u8]| admit(Outbound, &between(own, to, 6, body));
    assert_eq!(out("10.200.3.4", &tcp(9, 443, SYN)), Admit);
    assert_eq!(out("10.43.3.4", &tcp(9, 443, SYN)), Admit);
    assert_eq!(out("10.200.3.4", &tcp(9, 80, SYN)), Deny(Denial::Rule));
    // The gateway itself, its other networks, and addresses that only the cluster uses.
    for to in ["100.64.0.2", "10.42.3.4", "10.44.0.1"] {
        let verdict = out(to, &tcp(9, 443, SYN));
        assert!(
            matches!(verdict, Deny(Denial::Rule | Denial::Address)),
            "{to}"
        );
    }
    // What began is answered; nothing begins there.
    let back = |from, body: &[u8]| admit(Inbound, &between(from, own, 6, body));
    assert_eq!(back("10.200.3.4", &tcp(443, 9, SYN | ACK)), Admit);
    assert_eq!(
        back("10.200.3.5", &tcp(443, 9, SYN | ACK)),
        Deny(Denial::Rule)
    );
    assert_eq!(back("10.200.3.4", &tcp(443, 9, SYN)), Deny(Denial::Rule));
    // Not for somebody else: this node leads nowhere.
    let stray = between("10.200.3.4", "10.43.1.1", 6, &tcp(443, 9, ACK));
    assert_eq!(admit(Inbound, &stray), Deny(Denial::Address));
    // The other gateway does not speak for this cluster.
    let (other, now) = self::gate(CLUSTERS, &["web"], &["lyon-gw"]);
    let from_paris = between("10.200.3.4", own, 17, &udp(53));
    let from_lyon = between("10.42.3.4", own, 17, &udp(53));
    let admit = |packet: &[u8]| other.admit(&KEY, Inbound, packet, now);
    assert_eq!(admit(&from_paris), Deny(Denial::Address));
    assert_eq!(admit(&from_lyon), Admit);
    // Between two gateways.
    let (paris, now) = self::gate(CLUSTERS, &["paris-gw"], &["lyon-gw"]);
    let admit = |direction, from, to, port| {
        paris.admit(&KEY, direction, &between(from, to, 17, &udp(port)), now)
    };
    assert_eq!(admit(Inbound, "10.42.0.9", "10.200.0.9", 53), Admit);
    assert_eq!(
        admit(Outbound, "10.200.0.8", "10.42.0.8", 53),
        Deny(Denial::Rule)
    );
    assert_eq!(admit(Inbound, "10.42.0.9", own, 53), Deny(Denial::Address));
    // Anybody is a node: nobody named the cluster.
    let anyone = format!("{CLUSTERS}\n[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]\nports = [\"*\"]\n");
    let (open, now) = self::gate(&anyone, &["other"], &["paris-gw"]);
    let packet = between(own, "10.200.3.4", 6, &tcp(9, 443, SYN));
    assert_eq!(
        open.admit(&KEY, Outbound, &packet, now),
        Deny(Denial::Address)
    );
}

fn mistakes(text: &str) -> Vec<String> {
    let found = Policy::parse(text).unwrap_err();
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn clusters_that_cannot_be_told_apart_are_refused_with_an_offer() {
    let text = CLUSTERS.replace("as = [\"10.200.0.0/16\", \"10.43.0.0/16\"]\n", "");
    let found = mistakes(&text);
    assert_eq!(found.len(), 1);
    let (said, offer) = found[0].split_once(" write ").unwrap();
    assert_eq!(
        said,
        "line 6: 10.42.0.0/16 of cluster \"lyon\" overlaps with 10.42.0.0/16 of cluster \"paris\"; \
         reach it at other addresses, one to one: in [clusters.lyon]"
    );
    // Pasted where it says, it is right.
    let pasted = text.replace("[clusters.lyon]\n", &format!("[clusters.lyon]\n{offer}\n"));
    assert_eq!(Policy::parse(&pasted).unwrap().test(), Ok(2));
}

#[test]
fn mistakes_in_clusters_are_told() {
    let with = |ranges: &str| format!("[clusters.a]\nnodes = [\"tag:a\"]\nranges = {ranges}\n");
    for (text, said) in [
        (
            with("[\"10.42.1.0/16\"]"),
            "line 3: \"10.42.1.0/16\" does not begin where its range does; write the range's first address and its length: 10.42.0.0/16",
        ),
        (
            with("[\"fd00::/64\"]"),
            "line 3: fd00::/64 is a range of IPv6, which clusters cannot have yet; leave it out: only ranges of IPv4 are carried",
        ),
        (
            with("[\"10.0.0.0/7\"]"),
            "line 3: 10.0.0.0/7 has too many addresses; write ranges of /8 and smaller",
        ),
        (
            with("[\"pods\"]"),
            "line 3: \"pods\" is not a range of addresses; write one as 10.42.0.0/16",
        ),
        (
            with("[]"),
            "line 1: cluster \"a\" has 0 ranges; write between 1 and 16",
        ),
        (
            with("[\"10.1.0.0/16\"]\nas = [\"10.2.0.0/17\"]"),
            "line 4: `as` of cluster \"a\" has other sizes than `ranges`; write one range of the same length for each, in the same order",
        ),
        (
            "[[allow]]\nfrom = [\"*\"]\nto = [\"cluster:b\"]\nports = [\"*\"]\n".to_owned(),
            "line 3: there is no cluster \"b\"; describe it: [clusters.NAME] with nodes and ranges",
        ),
        (
            "relays = [\"cluster:b\"]\n".to_owned(),
            "line 1: \"cluster:b\" names no nodes; write tag:NAME, node:NAME or *",
        ),
    ] {
        assert_eq!(mistakes(&text), [said]);
    }
    let reserved = mistakes(&with("[\"100.64.0.0/16\"]"));
    assert!(
        reserved[0].starts_with("line 1: 100.64.0.0/16 of cluster \"a\" overlaps with 100.64.0.0/10 of the mesh's own addresses; "),
        "{reserved:?}"
    );
}
