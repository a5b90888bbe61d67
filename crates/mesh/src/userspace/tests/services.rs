//! One consumer, some nodes that give a service, and what happens to these.

use std::collections::HashMap;

use tokio::task::JoinHandle;

use super::*;
use crate::services::{Class, Reason, State};

const PORT: u16 = 7000;

/// The directory of a node, with the service `db` of these nodes.
fn with_service(members: &[Member], at: usize, givers: &[usize], address: Ipv4Addr) -> Directory {
    let mut directory = directory(members, at);
    let endpoints = givers.iter().map(|giver| {
        let member = directory.by_identity(&members[*giver].identity).unwrap();
        Endpoint {
            member: Arc::clone(member),
            ready: true,
        }
    });
    let service = ServiceEntry {
        name: "db".to_owned(),
        address: Some(address),
        ports: vec![(Protocol::Tcp, PORT)],
        ranges: false,
        own: [(Protocol::Tcp, PORT)].into(),
        endpoints: endpoints.collect(),
    };
    directory.set_services([service]);
    directory
}

/// An address that no other test of this machine has at the same time.
fn address() -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(100, 127, high.clamp(1, 254), low)
}

/// A server that says which node it is at, as long as it is kept.
struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Lab {
    fn serve(&self, givers: &[usize]) {
        for at in 0..self.members.len() {
            if let Some(node) = &self.nodes[at] {
                let directory = with_service(&self.members, at, givers, address());
                node.set_directory(directory).unwrap();
            }
        }
    }

    async fn server(&self, at: usize) -> Server {
        let listener = self.service(at, PORT).await;
        Server(tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                // A probe is gone already.
                let _ = stream.write_all(&[b'0' + at as u8]).await;
            }
        }))
    }

    /// Who answers, over the proxy of a node.
    async fn who(&self, from: usize) -> usize {
        let mut stream = self.socks(from, "db", PORT).await.unwrap();
        let said = rest(&mut stream).await.unwrap();
        usize::from(said[0] - b'0')
    }

    /// What a node sees of the endpoints.
    fn view(&self, from: usize) -> PortView {
        let core = &self.node(from).core;
        let directory = core.directory();
        let service = directory.service("db.mesh.internal").unwrap();
        self.node(from).service(service, Protocol::Tcp, PORT)
    }

    fn state(&self, from: usize, of: usize) -> State {
        let view = self.view(from);
        let mut endpoints = view.endpoints.iter();
        let found = endpoints.find(|one| one.member.identity == self.members[of].identity);
        found.unwrap().state
    }

    /// Asks until a node's endpoint looks so; every answer must come, from one of these.
    async fn asks_until(&self, from: usize, of: usize, state: State, answers: &[usize]) {
        in_time("an endpoint looks different", async {
            while self.state(from, of) != state {
                let who = self.who(from).await;
                assert!(answers.contains(&who), "{who} of {answers:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_server_or_a_node_dies_another_answers_and_it_is_put_aside() {
    let rules: Allowed<'_> = &[(0, 1, "tcp/7000"), (0, 2, "tcp/7000"), (0, 3, "tcp/7000")];
    let mut lab = Lab::new(4, rules, &[PORT]).await;
    lab.serve(&[1, 2, 3]);
    let mut servers = HashMap::new();
    for at in 1..4 {
        servers.insert(at, lab.server(at).await);
    }
    for at in 1..4 {
        lab.asks_until(0, at, State::Well, &[1, 2, 3]).await;
    }
    assert!(!lab.view(0).panic && lab.view(0).used.is_some());
    // A server dies: no request is lost, and nobody asks there any more.
    drop(servers.remove(&1));
    lab.asks_until(0, 1, State::Ejected, &[2, 3]).await;
    // It comes back, and a probe finds out.
    servers.insert(1, lab.server(1).await);
    lab.asks_until(0, 1, State::Well, &[1, 2, 3]).await;
    // A node dies without a word, as after kill -9: its socket is gone.
    let dead = lab.nodes[2].take().unwrap();
    dead.core.stop.cancel();
    drop(dead);
    lab.asks_until(0, 2, State::Ejected, &[1, 3]).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_endpoint_is_found_before_a_program_meets_it() {
    let lab = Lab::new(3, &[(0, 1, "tcp/7000"), (0, 2, "tcp/7000")], &[PORT]).await;
    lab.serve(&[1, 2]);
    let (one, _two) = (lab.server(1).await, lab.server(2).await);
    // Somebody asked for the name: that is all.
    let (asked, questions) = tokio::sync::mpsc::channel(1);
    lab.node(0).follow_questions(questions);
    asked.send("db".to_owned()).await.unwrap();
    until("both are known", || {
        [1, 2].iter().all(|at| lab.state(0, *at) == State::Well)
    })
    .await;
    assert_eq!(lab.node(0).status().opened, 0, "no program was there");
    drop(one);
    let died = Instant::now();
    until("the first is put aside", || {
        lab.state(0, 1) == State::Ejected
    })
    .await;
    assert!(
        died.elapsed() < Duration::from_secs(30),
        "{:?}",
        died.elapsed()
    );
    assert_eq!(lab.view(0).endpoints[1].reason, Reason::Ejected);
    assert_eq!(lab.who(0).await, 2);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_most_look_ill_all_are_used_and_one_that_lives_answers() {
    let rules: Allowed<'_> = &[(0, 1, "tcp/7000"), (0, 2, "tcp/7000"), (0, 3, "tcp/7000")];
    let lab = Lab::new(4, rules, &[PORT]).await;
    lab.serve(&[1, 2, 3]);
    let _one = lab.server(3).await;
    in_time("panic", async {
        while !lab.view(0).panic {
            assert_eq!(lab.who(0).await, 3);
        }
    })
    .await;
    let reasons = lab.view(0).endpoints;
    assert!(reasons.iter().all(|one| one.reason == Reason::Panic));
    for _ in 0..10 {
        assert_eq!(lab.who(0).await, 3);
    }
    lab.stop().await;
}

/// Passes datagrams on to a node, some time later. It is where others find the node then.
async fn far_away(to: SocketAddr, delay: Duration) -> SocketAddr {
    let front = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let at = front.local_addr().unwrap();
    tokio::spawn(async move {
        let mut backs: HashMap<SocketAddr, Arc<tokio::net::UdpSocket>> = HashMap::new();
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, from) = front.recv_from(&mut buffer).await.unwrap();
            if let std::collections::hash_map::Entry::Vacant(place) = backs.entry(from) {
                let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
                back.connect(to).await.unwrap();
                let back = Arc::clone(place.insert(Arc::new(back)));
                let front = Arc::clone(&front);
                tokio::spawn(async move {
                    let mut buffer = vec![0; 65_536];
                    while let Ok(length) = back.recv(&mut buffer).await {
                        let _ = front.send_to(&buffer[..length], from).await;
                    }
                });
            }
            let (back, bytes) = (Arc::clone(&backs[&from]), buffer[..length].to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = back.send(&bytes).await;
            });
        }
    });
    at
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nearest_answers_and_a_farther_one_when_it_is_gone() {
    let rules: Allowed<'_> = &[(0, 1, "tcp/7000"), (0, 2, "tcp/7000")];
    let mut lab = Lab::new(3, rules, &[PORT]).await;
    let real = lab.members[1].endpoints[0];
    lab.members[1].endpoints = vec![far_away(real, Duration::from_millis(100)).await];
    lab.serve(&[1, 2]);
    let _far = lab.server(1).await;
    let near = lab.server(2).await;
    for at in [1, 2] {
        lab.asks_until(0, at, State::Well, &[1, 2]).await;
    }
    let class = |of: usize| {
        let view = lab.view(0);
        let mut endpoints = view.endpoints.iter();
        let found = endpoints.find(|one| one.member.identity == lab.members[of].identity);
        found.unwrap().class
    };
    until("both distances are known", || {
        class(1) == Class::Far
            && class(2) < Class::Far
            && lab.view(0).endpoints[0].round_trip.is_some()
    })
    .await;
    for _ in 0..20 {
        assert_eq!(lab.who(0).await, 2);
    }
    drop(near);
    for _ in 0..5 {
        assert_eq!(lab.who(0).await, 1);
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_a_service_uses_its_own_and_who_may_not_uses_none() {
    let lab = Lab::new(3, &[(0, 1, "tcp/7000")], &[PORT]).await;
    lab.serve(&[0, 1]);
    let (own, _other) = (lab.server(0).await, lab.server(1).await);
    for _ in 0..5 {
        assert_eq!(lab.who(0).await, 0);
    }
    assert_eq!(lab.view(0).endpoints[0].class, Class::Here);
    drop(own);
    assert_eq!(lab.who(0).await, 1);
    // No rule lets the third use it.
    assert!(lab.socks(2, "db", PORT).await.is_err());
    assert!(lab.view(2).endpoints.is_empty());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_has_a_door_at_the_loopback_address_that_stands_for_it() {
    // One of them only: all share the addresses here.
    let first = std::sync::atomic::AtomicBool::new(true);
    let lab = Lab::with(3, &[], &[PORT], |options| {
        options.doors = first.swap(false, Ordering::Relaxed);
    })
    .await;
    let (with_doors, others) = (0, [1, 2]);
    // Before there are doors to their nodes, which are at the same addresses on this machine.
    let (_one, _two) = (lab.server(1).await, lab.server(2).await);
    lab.allow(&[(0, 1, "tcp/7000"), (0, 2, "tcp/7000")]);
    lab.serve(&others);
    let place = SocketAddr::from((address(), PORT));
    until("the door opens", || {
        lab.node(with_doors).status().service_doors.contains(&place)
    })
    .await;
    let mut seen = std::collections::BTreeSet::new();
    in_time("both answer", async {
        while seen.len() < 2 {
            let door = (loopback(address()).unwrap(), PORT);
            let mut stream = TcpStream::connect(door).await.unwrap();
            let said = rest(&mut stream).await.unwrap();
            seen.insert(usize::from(said[0] - b'0'));
        }
    })
    .await;
    assert_eq!(seen, others.iter().copied().collect());
    // When no rule lets it be used any more, it is closed.
    lab.allow(&[]);
    until("the door closes", || {
        lab.node(with_doors).status().service_doors.is_empty()
    })
    .await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_reach_a_service_without_a_device_and_another_node_when_one_is_gone() {
    let rules: Allowed<'_> = &[(0, 1, "udp/7000"), (0, 2, "udp/7000")];
    let mut lab = Lab::with(3, rules, &[], |options| options.doors = true).await;
    for at in 0..3 {
        let mut directory = with_service(&lab.members, at, &[1, 2], address());
        let service = directory.service("db").unwrap();
        let service = ServiceEntry {
            ports: vec![(Protocol::Udp, PORT)],
            ..ServiceEntry::clone(service)
        };
        directory.set_services([service]);
        lab.node(at).set_directory(directory).unwrap();
    }
    let mut servers = Vec::new();
    for at in 1..3 {
        // Elsewhere than doors to the nodes are on this one machine.
        let socket = tokio::net::UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
        let service = Service {
            port: PORT,
            target: Some(socket.local_addr().unwrap()),
        };
        lab.node(at).set_services(&[service]).unwrap();
        servers.push(Server(tokio::spawn(async move {
            let mut buffer = [0; 8];
            loop {
                let (_, from) = socket.recv_from(&mut buffer).await.unwrap();
                let _ = socket.send_to(&[b'0' + at as u8], from).await;
            }
        })));
    }
    // Each program has a flow of its own, which goes to one node or the other.
    let door = (loopback(address()).unwrap(), PORT);
    let asks = async || {
        in_time("somebody answers", async {
            loop {
                let program = tokio::net::UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
                program.connect(door).await.unwrap();
                let _ = program.send(b"?").await;
                let mut answer = [0];
                let heard = program.recv(&mut answer);
                let heard = tokio::time::timeout(Duration::from_millis(500), heard).await;
                if matches!(heard, Ok(Ok(1))) {
                    return usize::from(answer[0] - b'0');
                }
            }
        })
        .await
    };
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 2 {
        seen.insert(asks().await);
    }
    assert_eq!(seen, [1, 2].into());
    let dead = lab.nodes[1].take().unwrap();
    dead.core.stop.cancel();
    drop(dead);
    for _ in 0..4 {
        assert_eq!(asks().await, 2);
    }
    lab.stop().await;
}
