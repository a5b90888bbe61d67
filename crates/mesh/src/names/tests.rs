//! Names as `dig` sees them, on loopback.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::process::Command;

use super::*;
use crate::policy::{Policy, Subject};
use crate::{Namespace, Prefix};

const POLICY: &str = r#"
[services.db]
nodes = ["tag:db"]
ports = ["tcp/5432"]

[services.many]
nodes = ["tag:many"]
ports = ["tcp/80"]

[dns.split]
"corp.example" = ["127.0.0.1"]
"#;

static READY: BTreeSet<String> = BTreeSet::new();

fn zone() -> Zone {
    let policy = Policy::parse(POLICY).unwrap();
    let tags = |tag: &str| BTreeSet::from([tag.to_owned()]);
    let (db, many) = (tags("db"), tags("many"));
    let named: Vec<_> = (1..=43_u8)
        .map(|n| match n {
            1..=2 => (n, format!("db-{n}"), &db),
            // It calls itself what a service is called.
            3 => (n, "db".to_owned(), &many),
            _ => (n, format!("a-name-that-takes-some-room-{n}"), &many),
        })
        .collect();
    let nodes: Vec<_> = named
        .iter()
        .map(|(n, name, tags)| ZoneNode {
            subject: Subject {
                name: Some(name),
                tags,
            },
            v4: Ipv4Addr::new(100, 64, 0, *n),
            v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(*n)),
            door: None,
            unready: &READY,
        })
        .collect();
    Zone::new(
        &policy,
        &nodes,
        Prefix::new("fd00::".parse().unwrap(), 48),
        7,
    )
}

async fn server(upstream: Vec<SocketAddr>) -> Server {
    let options = ServerOptions {
        listen: vec![([127, 0, 0, 1], 0).into()],
        upstream,
        ..ServerOptions::default()
    };
    Server::start(options, zone()).await.unwrap()
}

async fn dig(server: &Server, words: &str) -> String {
    let port = server.addresses()[0].port().to_string();
    let output = Command::new("dig")
        .args([
            "@127.0.0.1",
            "-p",
            &port,
            "+tries=1",
            "+time=20",
            "+nocookie",
        ])
        .args(words.split(' '))
        .output()
        .await
        .expect("dig is missing; scripts/setup.sh test installs what tests need");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(!text.contains("malformed"), "{text}");
    text
}

#[tokio::test]
async fn dig_finds_nodes_services_and_ports() {
    let server = server(Vec::new()).await;
    for (words, lines) in [
        ("+short db-1.mesh.internal", &["100.64.0.1"][..]),
        ("+short DB-1.Mesh.Internal AAAA", &["fd00::1"]),
        ("+short db-2", &["100.64.0.2"]),
        // A node cannot take a service's name.
        ("+short db.mesh.internal", &["100.64.0.1", "100.64.0.2"]),
        (
            "+short _db._tcp.mesh.internal SRV",
            &[
                "0 1 5432 db-1.mesh.internal.",
                "0 1 5432 db-2.mesh.internal.",
            ],
        ),
        ("+short -x 100.64.0.2", &["db-2.mesh.internal."]),
        ("+short -x fd00::1", &["db-1.mesh.internal."]),
        (
            "+short mesh.internal SOA",
            &["ns.mesh.internal. nobody.mesh.internal. 7 60 10 3600 1"],
        ),
        ("+short +tcp db-1.mesh.internal", &["100.64.0.1"]),
    ] {
        let text = dig(&server, words).await;
        let found: BTreeSet<_> = text.lines().collect();
        assert_eq!(found, lines.iter().copied().collect(), "{words}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_told_apart_from_what_has_no_such_record() {
    let server = server(Vec::new()).await;
    for (words, status) in [
        ("db-1.mesh.internal MX", "NOERROR"),
        ("_tcp.mesh.internal A", "NOERROR"),
        ("mesh.internal A", "NOERROR"),
        ("nobody.mesh.internal A", "NXDOMAIN"),
        ("a.db-1.mesh.internal A", "NXDOMAIN"),
        ("-x 100.99.0.1", "NXDOMAIN"),
        ("-c CH db-1.mesh.internal A", "REFUSED"),
        ("+noedns +opcode=NOTIFY db-1.mesh.internal", "NOTIMP"),
        ("www.example.com A", "REFUSED"),
    ] {
        let text = dig(&server, words).await;
        assert!(
            text.contains(&format!("status: {status}")),
            "{words}: {text}"
        );
        if matches!(status, "NOERROR" | "NXDOMAIN") {
            assert!(text.contains("ANSWER: 0, AUTHORITY: 1"), "{words}: {text}");
            assert!(text.contains("SOA\tns.mesh.internal."), "{words}: {text}");
        }
    }
}

#[tokio::test]
async fn what_does_not_fit_is_cut_and_asked_for_again() {
    let server = server(Vec::new()).await;
    let small = dig(&server, "+ignore +noedns many.mesh.internal").await;
    assert!(
        small.contains(" tc ") && small.contains("ANSWER: 0"),
        "{small}"
    );
    let large = dig(&server, "+ignore +bufsize=4096 many.mesh.internal").await;
    assert!(
        large.contains("ANSWER: 41") && large.contains("EDNS: version: 0"),
        "{large}"
    );
    let ports = dig(
        &server,
        "+ignore +bufsize=4096 _many._tcp.mesh.internal SRV",
    )
    .await;
    assert!(ports.contains(" tc "), "{ports}");
    let again = dig(&server, "_many._tcp.mesh.internal SRV").await;
    assert!(
        again.contains("ANSWER: 41") && again.contains("(TCP)"),
        "{again}"
    );
}

#[tokio::test]
async fn other_names_are_asked_on() {
    // Another of ours stands for the server that was there before.
    let before = server(Vec::new()).await;
    let policy = Policy::parse("domain = \"other.internal\"").unwrap();
    let zone = Zone::new(&policy, &[], Prefix::new("fd01::".parse().unwrap(), 48), 1);
    let asks = Server::start(
        ServerOptions {
            listen: vec![([127, 0, 0, 1], 0).into()],
            upstream: vec![before.addresses()[0]],
            ..ServerOptions::default()
        },
        zone,
    )
    .await
    .unwrap();
    assert_eq!(
        dig(&asks, "+short db-2.mesh.internal").await,
        "100.64.0.2\n"
    );
    assert_eq!(
        dig(&asks, "+short +tcp db-2.mesh.internal").await,
        "100.64.0.2\n"
    );
    let cut = dig(&asks, "_many._tcp.mesh.internal SRV").await;
    assert!(cut.contains("ANSWER: 41") && cut.contains("(TCP)"), "{cut}");
    assert!(
        dig(&asks, "db-2.other.internal")
            .await
            .contains("status: NXDOMAIN")
    );
}

#[test]
fn domains_of_others_have_servers_of_their_own() {
    let question = |name: &str| {
        let mut packet = simple_dns::Packet::new_query(1);
        packet.questions.push(simple_dns::Question::new(
            simple_dns::Name::new(name).unwrap(),
            simple_dns::TYPE::A.into(),
            simple_dns::CLASS::IN.into(),
            false,
        ));
        packet.build_bytes_vec().unwrap()
    };
    let zone = zone();
    let corp = Answer::Forward(vec![[127, 0, 0, 1].into()]);
    assert_eq!(zone.answer(&question("a.corp.example"), true), corp);
    assert_eq!(zone.answer(&question("corp.example"), true), corp);
    let elsewhere = Answer::Forward(Vec::new());
    assert_eq!(zone.answer(&question("notcorp.example"), true), elsewhere);
    assert_eq!(zone.answer(&question("unknown"), true), elsewhere);
    assert_eq!(
        upstream_of(
            "# x\nnameserver 192.0.2.1\nnameserver 100.64.0.1\nsearch a\nnameserver ::1\n",
            &[[100, 64, 0, 1].into()]
        ),
        [
            SocketAddr::from(([192, 0, 2, 1], 53)),
            SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 53))
        ]
    );
}

proptest::proptest! {
    #[test]
    fn no_question_makes_it_fail(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80), plain in proptest::prelude::any::<bool>()) {
        let mut bytes = bytes;
        if plain && bytes.len() >= 12 {
            bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        if let Answer::Reply(reply) = zone().answer(&bytes, true) {
            assert!(reply.len() >= 12 && reply.len() <= 1232);
            assert_eq!(reply[..2], bytes[..2]);
        }
    }
}

#[tokio::test]
async fn who_is_not_ready_is_left_out_unless_nobody_is() {
    let policy = Policy::parse(POLICY).unwrap();
    let (db, ill) = (
        BTreeSet::from(["db".to_owned()]),
        BTreeSet::from(["db".to_owned()]),
    );
    let node = |n: u8, name, unready| ZoneNode {
        subject: Subject {
            name: Some(name),
            tags: &db,
        },
        v4: Ipv4Addr::new(100, 64, 0, n),
        v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)),
        door: None,
        unready,
    };
    let range = Prefix::new("fd00::".parse().unwrap(), 48);
    let server = server(Vec::new()).await;
    for (one, two, expected) in [
        (&READY, &READY, 2),
        (&ill, &READY, 1),
        (&READY, &ill, 1),
        (&ill, &ill, 2),
    ] {
        server.set_zone(Zone::new(
            &policy,
            &[node(1, "db-1", one), node(2, "db-2", two)],
            range,
            1,
        ));
        let answers = dig(&server, "+short db.mesh.internal").await;
        assert_eq!(answers.lines().count(), expected, "{answers}");
    }
}

#[tokio::test]
async fn a_service_with_doors_has_one_address_and_a_name_for_its_nodes() {
    let address = Ipv4Addr::new(100, 127, 0, 1);
    let zone = zone().with_services(&[("db".to_owned(), address)].into());
    let (asked, mut heard) = tokio::sync::mpsc::channel(8);
    let options = ServerOptions {
        listen: vec![([127, 0, 0, 1], 0).into()],
        upstream: Vec::new(),
        asked: Some(asked),
        ..ServerOptions::default()
    };
    let server = Server::start(options, zone).await.unwrap();
    for (words, lines) in [
        ("+short db.mesh.internal", &["100.127.0.1"][..]),
        ("+short DB", &["100.127.0.1"]),
        // There is no such address for IPv6, though there is such a name.
        ("+short db.mesh.internal AAAA", &[]),
        ("+short all.db.mesh.internal", &["100.64.0.1", "100.64.0.2"]),
        ("+short all.db.mesh.internal AAAA", &["fd00::1", "fd00::2"]),
        (
            "+short _db._tcp.mesh.internal SRV",
            &[
                "0 1 5432 db-1.mesh.internal.",
                "0 1 5432 db-2.mesh.internal.",
            ],
        ),
        ("+short -x 100.127.0.1", &["db.mesh.internal."]),
        ("+short db-1.mesh.internal", &["100.64.0.1"]),
    ] {
        let text = dig(&server, words).await;
        let found: BTreeSet<_> = text.lines().collect();
        assert_eq!(found, lines.iter().copied().collect(), "{words}");
    }
    let missing = dig(&server, "all.db-1.mesh.internal").await;
    assert!(missing.contains("NXDOMAIN"), "{missing}");
    // Only questions for the service itself say that somebody is about to use it.
    let mut told = Vec::new();
    while let Ok(name) = heard.try_recv() {
        told.push(name);
    }
    assert_eq!(told, ["db"; 3]);
}

/// A question for the address of a name, as RFC 1035 writes it.
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

#[tokio::test]
async fn who_asks_from_elsewhere_is_answered_if_he_is_named() {
    let machine = Namespace::unnamed().unwrap();
    let inside = Namespace::unnamed().unwrap();
    let run = |words: &str| {
        let mut words = words.split(' ');
        let mut command = std::process::Command::new(words.next().unwrap());
        let done = command.args(words).status();
        assert!(done.is_ok_and(|done| done.success()));
        Ok(())
    };
    let wire = format!(
        "ip link add name near type veth peer name far netns {}",
        machine.path()
    );
    inside.within(|| run(&wire)).unwrap();
    for (space, end, address) in [
        (&inside, "near", "192.0.2.1"),
        (&machine, "far", "192.0.2.2"),
    ] {
        let address = format!("ip address add {address}/30 dev {end}");
        let up = format!("ip link set {end} up");
        space
            .within(|| run(&address).and_then(|()| run(&up)))
            .unwrap();
    }
    let inside = Arc::new(inside);
    for (askers, answered) in [(vec!["192.0.2.2".parse().unwrap()], true), (vec![], false)] {
        let options = ServerOptions {
            listen: vec![([192, 0, 2, 1], 0).into()],
            askers,
            namespace: Some(Arc::clone(&inside)),
            ..ServerOptions::default()
        };
        let server = Server::start(options, zone()).await.unwrap();
        for datagram in [true, false] {
            let asked = question("db-1.mesh.internal");
            let asked = super::forward::ask(server.addresses(), &asked, datagram, Some(&machine));
            assert_eq!(asked.await.is_some(), answered);
        }
    }
}

#[tokio::test]
async fn in_another_namespace_questions_come_from_there_and_are_asked_on_from_there() {
    // Reached from here alone.
    let before = server(Vec::new()).await;
    let inside = Arc::new(Namespace::unnamed().unwrap());
    inside
        .within(|| crate::link::Links::open()?.bring_up(1, u16::MAX, 100))
        .unwrap();
    let policy = Policy::parse("domain = \"other.internal\"").unwrap();
    let zone = Zone::new(&policy, &[], Prefix::new("fd01::".parse().unwrap(), 48), 1);
    let asks = async |namespace: Option<&Arc<Namespace>>, name: &str, datagram: bool| {
        let options = ServerOptions {
            listen: vec![([127, 0, 0, 1], 0).into()],
            upstream: vec![before.addresses()[0]],
            namespace: namespace.cloned(),
            ..ServerOptions::default()
        };
        let server = Server::start(options, zone.clone()).await.unwrap();
        let namespace = namespace.map(|namespace| &**namespace);
        let asked = question(name);
        let answer = super::forward::ask(server.addresses(), &asked, datagram, namespace).await;
        // The last four bits say how it went.
        answer.map(|answer| answer[3] & 0xf)
    };
    for datagram in [true, false] {
        let here = asks(None, "db-2.mesh.internal", datagram).await;
        assert_eq!(here, Some(0));
        let there = asks(Some(&inside), "db-2.mesh.internal", datagram).await;
        assert_eq!(there, Some(2), "nobody can be asked from there");
        let own = asks(Some(&inside), "nobody.other.internal", datagram).await;
        assert_eq!(own, Some(3), "what it knows itself it answers there");
    }
}
