//! Clusters behind gateways: the very same addresses twice, told apart by translation.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::clusters::Translation;
use mesh::policy::{Filter, FilterGate, Gate, Policy, Subject};
use mesh::{Namespace, PathOptions, PeerOptions, Prefix};

use crate::lab::{Node, NodeOptions, PATIENCE, echo, inner, key, pattern, run, udp, wait_for};

const POD: &str = "10.42.3.4";
const WEB: u8 = 1;
const PARIS: u8 = 2;
const LYON: u8 = 3;

const POLICY: &str = r#"
[clusters.paris]
nodes = ["tag:paris-gw"]
ranges = ["10.42.0.0/16"]

[clusters.lyon]
nodes = ["tag:lyon-gw"]
ranges = ["10.42.0.0/16"]

[[allow]]
from = ["tag:web"]
to = ["cluster:paris", "cluster:lyon"]
ports = ["tcp/8000-65535", "udp/8000-65535", "icmp"]

[[allow]]
from = ["cluster:paris"]
to = ["tag:web"]
ports = ["tcp/7000"]
"#;

fn tags(number: u8) -> BTreeSet<String> {
    let tag = ["web", "paris-gw", "lyon-gw"][usize::from(number) - 1];
    [tag.to_owned()].into()
}

fn addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    match (inner(number, false), inner(number, true)) {
        (IpAddr::V4(v4), IpAddr::V6(v6)) => (v4, v6),
        _ => unreachable!(),
    }
}

fn filter(policy: &Policy, me: u8) -> Filter {
    let all = [tags(WEB), tags(PARIS), tags(LYON)];
    let subject = |number: u8| Subject {
        name: None,
        tags: &all[usize::from(number) - 1],
    };
    let others = [WEB, PARIS, LYON].into_iter().filter(|other| *other != me);
    let peers = others.map(|other| {
        let (v4, v6) = addresses(other);
        (key(other).public(), subject(other), v4, v6)
    });
    policy.compile(subject(me), addresses(me), peers)
}

fn gate(policy: &Policy, me: u8) -> Arc<FilterGate> {
    let gate = Arc::new(FilterGate::closed(Instant::now()));
    gate.set(filter(policy, me));
    gate
}

/// Joins two namespaces; what the ends are called and their addresses.
fn cable(one: (&Namespace, &str, &str), two: (&Namespace, &str, &str)) {
    let path = two.0.path();
    run(
        one.0,
        &format!(
            "ip link add {} type veth peer name {} netns {path}",
            one.1, two.1
        ),
    );
    for (space, name, address) in [one, two] {
        run(space, &format!("ip address add {address} dev {name}"));
        run(space, &format!("ip link set {name} up"));
    }
}

/// The outside of the client and of the gateways, with a cable to each.
fn outside() -> [Namespace; 3] {
    let spaces = [(); 3].map(|()| Namespace::unnamed().unwrap());
    for at in 1..3 {
        cable(
            (&spaces[0], &format!("to{at}"), &format!("192.0.{at}.1/24")),
            (&spaces[at], "eth0", &format!("192.0.{at}.2/24")),
        );
    }
    spaces
}

/// A pod behind a gateway, in a network of 10.42.0.0/16.
fn pod(gateway: &Node) -> Namespace {
    let pod = Namespace::unnamed().unwrap();
    cable(
        (&gateway.inside, "pods", "10.42.0.1/16"),
        (&pod, "eth0", &format!("{POD}/16")),
    );
    run(&gateway.inside, "sysctl -qw net.ipv4.ip_forward=1");
    pod
}

fn listen(space: &Namespace, at: &str) -> TcpListener {
    space.within(|| Ok(TcpListener::bind(at).unwrap())).unwrap()
}

fn reach(space: &Namespace, at: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
    space
        .within(|| Ok(TcpStream::connect_timeout(&at, patience)))
        .unwrap()
}

/// Carries much in both directions, one after the other.
fn carry(near: &mut TcpStream, far: &mut TcpStream) {
    let sent = pattern(2 << 20, 5);
    let one_way = |out: &mut TcpStream, back: &mut TcpStream| {
        back.set_read_timeout(Some(PATIENCE)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| out.write_all(&sent).unwrap());
            let mut received = vec![0; sent.len()];
            back.read_exact(&mut received).unwrap();
            assert!(received == sent);
        });
    };
    one_way(near, far);
    one_way(far, near);
}

/// Takes what is offered where a policy is refused.
fn repaired(text: &str) -> String {
    let mistakes = Policy::parse(text).unwrap_err();
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(mistakes[0].cause.contains("\"lyon\"") && mistakes[0].cause.contains("\"paris\""));
    let (_, offer) = mistakes[0].remedy.split_once(" write ").unwrap();
    text.replace("[clusters.lyon]", &format!("[clusters.lyon]\n{offer}"))
}

#[test]
fn two_clusters_with_the_same_addresses_are_both_reached() {
    let policy = Policy::parse(&repaired(POLICY)).unwrap();
    let clusters: Vec<_> = policy.clusters().collect();
    let [paris, lyon] = [clusters[0], clusters[1]];
    assert!(!paris.ranges[0].translated() && lyon.ranges[0].translated());
    let spaces = outside();
    let guarded = |number: u8| NodeOptions {
        gate: Some(gate(&policy, number) as Arc<dyn Gate>),
        ..NodeOptions::default()
    };
    let nodes = [WEB, PARIS, LYON]
        .map(|number| Node::new(number, &spaces[usize::from(number) - 1], &guarded(number)));
    let [client, first, second] = &nodes;
    for (at, (gateway, cluster)) in [(first, paris), (second, lyon)].into_iter().enumerate() {
        let at = at + 1;
        let endpoint = format!("192.0.{at}.2").parse().unwrap();
        let ranges: Vec<_> = cluster.ranges.iter().map(|range| range.outside).collect();
        for range in &ranges {
            let route = || client.engine.device().route(*range);
            client.inside.within(route).unwrap();
            // Nobody's route is taken away.
            assert!(client.inside.within(route).is_err());
        }
        let peer = PeerOptions {
            behind: ranges,
            ..gateway.as_peer(Some(endpoint))
        };
        client.engine.set_peer(&peer).unwrap();
        let back = client.as_peer(Some(format!("192.0.{at}.1").parse().unwrap()));
        gateway.engine.set_peer(&back).unwrap();
        let translation = Translation::new(&cluster.ranges);
        gateway.engine.set_translation(translation);
    }
    let pods = [pod(first), pod(second)];
    // Paris knows the way back. In Lyon nobody does, and the gateway stands for the mesh.
    run(&pods[0], "ip route add default via 10.42.0.1");
    run(&second.inside, "nft add table ip mesh");
    run(
        &second.inside,
        "nft add chain ip mesh post { type nat hook postrouting priority 100 ; }",
    );
    run(
        &second.inside,
        "nft add rule ip mesh post oifname pods masquerade",
    );
    let IpAddr::V4(base) = lyon.ranges[0].outside.address() else {
        unreachable!();
    };
    let octets = base.octets();
    let seen = [POD.to_owned(), format!("{}.{}.3.4", octets[0], octets[1])];
    for (pod, seen) in pods.iter().zip(&seen) {
        run(
            &client.inside,
            &format!("ping -c 2 -i 0.05 -W 5 -s 3000 {seen}"),
        );
        let listener = listen(pod, &format!("{POD}:8080"));
        let at = SocketAddr::new(seen.parse().unwrap(), 8080);
        let mut near = reach(&client.inside, at, PATIENCE).unwrap();
        let (mut far, caller) = listener.accept().unwrap();
        let own = [client.address(false), "10.42.0.1".parse().unwrap()];
        assert!(own.contains(&caller.ip()), "{caller}");
        carry(&mut near, &mut far);
        // What no rule names is held back at both ends.
        let closed = SocketAddr::new(at.ip(), 80);
        assert!(reach(&client.inside, closed, Duration::from_millis(300)).is_err());
        // An error comes back about the address that was asked.
        let socket = udp(&client.inside, client.address(false));
        socket.connect(SocketAddr::new(at.ip(), 9000)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        wait_for("an error of ICMP", || {
            let _ = socket.send(b"is anybody there?");
            let error = socket.recv(&mut [0; 9]).err()?;
            (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
        });
    }
    // The two are not one: each answers as itself.
    let [one, two] = [("one", &pods[0]), ("two", &pods[1])].map(|(word, pod)| {
        let listener = listen(pod, &format!("{POD}:8081"));
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(word.as_bytes()))
    });
    for (word, seen) in ["one", "two"].iter().zip(&seen) {
        let at = SocketAddr::new(seen.parse().unwrap(), 8081);
        let mut said = String::new();
        let mut near = reach(&client.inside, at, PATIENCE).unwrap();
        near.set_read_timeout(Some(PATIENCE)).unwrap();
        near.read_to_string(&mut said).unwrap();
        assert_eq!(said, *word);
    }
    one.join().unwrap().unwrap();
    two.join().unwrap().unwrap();
    // From a cluster, as rules say.
    let listener = listen(&client.inside, &format!("{}:7000", client.address(false)));
    let at = listener.local_addr().unwrap();
    let mut near = reach(&pods[0], at, PATIENCE).unwrap();
    let (mut far, caller) = listener.accept().unwrap();
    assert_eq!(caller.ip().to_string(), POD);
    carry(&mut near, &mut far);
    assert!(reach(&pods[1], at, Duration::from_millis(300)).is_err());
}

#[test]
fn a_gateway_speaks_for_its_own_cluster_alone() {
    let policy = Policy::parse(&repaired(POLICY)).unwrap();
    let range: Prefix = "10.42.0.0/16".parse().unwrap();
    let spaces = outside();
    let options = NodeOptions {
        gate: Some(gate(&policy, WEB) as Arc<dyn Gate>),
        ..NodeOptions::default()
    };
    let client = Node::new(WEB, &spaces[0], &options);
    // In wrong hands: it applies no policy, and claims an address of Paris.
    let liar = Node::new(LYON, &spaces[2], &NodeOptions::default());
    let peer = liar.as_peer(Some("192.0.2.2".parse().unwrap()));
    client.engine.set_peer(&peer).unwrap();
    let peer = client.as_peer(Some("192.0.2.1".parse().unwrap()));
    liar.engine.set_peer(&peer).unwrap();
    let other = PeerOptions {
        behind: vec![range],
        ..PeerOptions::new(key(PARIS).public(), vec![inner(PARIS, false).into()])
    };
    client.engine.set_peer(&other).unwrap();
    run(&liar.inside, &format!("ip address add {POD}/32 dev lo"));
    let socket = udp(&liar.inside, POD.parse().unwrap());
    let at = SocketAddr::new(client.address(false), 7000);
    let listener = udp(&client.inside, client.address(false));
    wait_for("a packet that is refused", || {
        socket.send_to(b"from Paris", at).unwrap();
        let status = client.engine.peer(&key(LYON).public()).unwrap();
        (status.foreign_source > 0).then_some(())
    });
    listener.set_nonblocking(true).unwrap();
    assert!(listener.recv_from(&mut [0; 9]).is_err());
}

#[test]
fn the_second_gateway_takes_over() {
    let range: Prefix = "10.42.0.0/16".parse().unwrap();
    let spaces = outside();
    let [client, first, second] = [WEB, PARIS, LYON].map(|number| {
        Node::new(
            number,
            &spaces[usize::from(number) - 1],
            &NodeOptions::default(),
        )
    });
    client
        .inside
        .within(|| client.engine.device().route(range))
        .unwrap();
    let known = |node: &Node, at: &str, behind: Vec<Prefix>| PeerOptions {
        behind,
        rank: u32::from(node.number),
        paths: Some(PathOptions {
            candidates: vec![SocketAddr::new(at.parse().unwrap(), node.engine.port())],
            ..PathOptions::default()
        }),
        ..node.as_peer(None)
    };
    for (at, gateway) in [&first, &second].into_iter().enumerate() {
        let at = at + 1;
        let peer = known(gateway, &format!("192.0.{at}.2"), vec![range]);
        client.engine.set_peer(&peer).unwrap();
        let back = known(&client, &format!("192.0.{at}.1"), Vec::new());
        gateway.engine.set_peer(&back).unwrap();
        run(&gateway.inside, &format!("ip address add {POD}/32 dev lo"));
    }
    let near = udp(&client.inside, client.address(false));
    let pods = [&first, &second].map(|gateway| udp(&gateway.inside, POD.parse().unwrap()));
    let used = || client.engine.gateway(range).unwrap();
    wait_for("both answer", || {
        let all = [&first, &second].map(|node| client.engine.peer(&node.engine.public_key()));
        all.into_iter()
            .all(|status| status.unwrap().handshakes > 0)
            .then_some(())
    });
    wait_for("the first is used", || {
        (used() == key(PARIS).public()).then_some(())
    });
    echo(&near, &pods[0], 100);
    first.engine.stop();
    wait_for("the second is used", || {
        (used() == key(LYON).public()).then_some(())
    });
    echo(&near, &pods[1], 100);
}
