//! Nodes that find each other by keys: over relays, and past them.

use std::net::UdpSocket;

use super::*;
use crate::PeerWay;
use crate::relay::{AnyNode, Limits, Relay, RelayCertificate, RelayOptions, TlsOptions};
use crate::wire::WireOptions;

fn underlay_key(identity: &IdentityKey) -> PrivateKey {
    PrivateKey::from_bytes(*identity.as_bytes())
}

/// Nodes that know each other's keys and no address.
async fn lab(count: u32, allowed: Allowed<'_>, ports: &[u16]) -> Lab {
    let mut lab = Lab::with(count, &[], ports, |options| {
        options.underlay = Some(underlay_key(&options.identity.public()));
    })
    .await;
    for member in &mut lab.members {
        member.endpoints.clear();
        member.underlay = Some(underlay_key(&member.identity).public());
    }
    lab.allow(allowed);
    lab
}

fn relay(seed: u8) -> Relay {
    let options = RelayOptions {
        key: PrivateKey::from_bytes([seed; 32]),
        udp: Some(WireOptions::default()),
        tls: Some(TlsOptions {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            certificate: RelayCertificate::generate().unwrap(),
        }),
        tickets: Arc::new(AnyNode),
        limits: Limits::default(),
    };
    Relay::start(options, None).unwrap()
}

fn at(relay: &Relay) -> RelayAddress {
    relay.address(Ipv4Addr::LOCALHOST.into())
}

impl Lab {
    /// Lets all nodes use these relays, and waits until they are registered.
    async fn relays(&self, relays: &[RelayAddress]) {
        for node in self.nodes.iter().flatten() {
            node.set_relays(relays).unwrap();
        }
        let registered = |node: &Userspace| {
            let relays = node.relays();
            relays.iter().all(|relay| relay.udp || relay.tls)
        };
        until("all are registered", || {
            self.nodes.iter().flatten().all(registered)
        })
        .await;
    }

    fn way(&self, from: usize, to: usize) -> Option<PeerWay> {
        self.node(from).peer(&self.members[to].identity).way
    }

    /// Where a node's socket is.
    fn socket(&self, at: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.node(at).address().port()).into()
    }
}

/// Both ends of a flow, over which something goes both ways again and again.
struct Talk(TcpStream, TcpStream);

impl Talk {
    async fn between(lab: &Lab, service: &TcpListener, from: usize, to: usize) -> Self {
        let port = service.local_addr().unwrap().port();
        let caller = lab.flow(from, to, port).await.unwrap();
        let (called, _) = in_time("a caller", service.accept()).await.unwrap();
        Self(caller, called)
    }

    async fn goes_on(&mut self) {
        let words = noise(7, 100_000);
        let (mut there, mut back) = (vec![0; words.len()], vec![0; words.len()]);
        let exchange = async {
            let (mut one_in, mut one_out) = self.0.split();
            let (mut two_in, mut two_out) = self.1.split();
            tokio::try_join!(
                one_out.write_all(&words),
                two_out.write_all(&words),
                two_in.read_exact(&mut there),
                one_in.read_exact(&mut back),
            )
        };
        in_time("a flow goes on", exchange).await.unwrap();
        assert!(there == words && back == words);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_go_over_a_relay_at_once_and_directly_when_that_works() {
    let mut lab = lab(2, &[(0, 1, "tcp/7000")], &[7000]).await;
    let relay = relay(1);
    lab.relays(&[at(&relay)]).await;
    let service = lab.service(1, 7000).await;
    let mut talk = Talk::between(&lab, &service, 0, 1).await;
    talk.goes_on().await;
    let over = Some(PeerWay::Relay(at(&relay).key));
    assert_eq!((lab.way(0, 1), lab.way(1, 0)), (over, over));
    assert!(relay.statistics().bytes > 200_000);
    // They hear of each other's addresses: the same connection goes another way.
    for at in 0..2 {
        let socket = lab.socket(at);
        lab.members[at].endpoints = vec![(Ipv4Addr::LOCALHOST, 9).into(), socket];
    }
    lab.allow(&[(0, 1, "tcp/7000")]);
    let direct = |to: usize| Some(PeerWay::Direct(lab.socket(to)));
    until("both go directly", || {
        (lab.way(0, 1), lab.way(1, 0)) == (direct(1), direct(0))
    })
    .await;
    talk.goes_on().await;
    let before = relay.statistics().bytes;
    talk.goes_on().await;
    let carried = relay.statistics().bytes - before;
    assert!(carried < 10_000, "the relay carried {carried} bytes more");
    assert_eq!(lab.node(0).status().connections, 1);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_relay_takes_the_place_of_one_that_dies() {
    let lab = lab(2, &[(0, 1, "tcp/7000")], &[7000]).await;
    let relays = [relay(1), relay(2)];
    lab.relays(&[at(&relays[0]), at(&relays[1])]).await;
    let service = lab.service(1, 7000).await;
    let mut talk = Talk::between(&lab, &service, 0, 1).await;
    talk.goes_on().await;
    let [first, second] = relays;
    let used = lab.way(0, 1);
    let (gone, stays) = match used == Some(PeerWay::Relay(at(&first).key)) {
        true => (first, second),
        false => (second, first),
    };
    gone.stop();
    talk.goes_on().await;
    let over = Some(PeerWay::Relay(at(&stays).key));
    until("both go over the other one", || {
        (lab.way(0, 1), lab.way(1, 0)) == (over, over)
    })
    .await;
    lab.stop().await;
    until("who stopped has said goodbye", || {
        stays.statistics().clients == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_go_over_tls_where_nothing_else_passes() {
    let lab = lab(2, &[(0, 1, "tcp/7000")], &[7000]).await;
    let relay = relay(1);
    let only_tls = RelayAddress {
        udp: None,
        ..at(&relay)
    };
    // One end only: the other has UDP.
    lab.node(0)
        .set_relays(std::slice::from_ref(&only_tls))
        .unwrap();
    lab.node(1).set_relays(&[at(&relay)]).unwrap();
    let registered = |at: usize| lab.node(at).relays()[0];
    until("both are registered", || {
        registered(0).tls && registered(1).udp
    })
    .await;
    let service = lab.service(1, 7000).await;
    let mut talk = Talk::between(&lab, &service, 0, 1).await;
    talk.goes_on().await;
    assert_eq!(lab.way(0, 1), Some(PeerWay::Relay(only_tls.key)));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_name_addresses_need_no_relay() {
    let mut lab = lab(3, &[], &[7000]).await;
    for at in 1..3 {
        lab.members[at].endpoints = vec![(Ipv4Addr::LOCALHOST, 9).into(), lab.socket(at)];
    }
    // One of an older version, which is known by its address alone.
    lab.members[2].underlay = None;
    lab.allow(&[(0, 1, "tcp/7000"), (0, 2, "tcp/7000")]);
    for to in 1..3 {
        let service = lab.service(to, 7000).await;
        Talk::between(&lab, &service, 0, to).await.goes_on().await;
        assert_eq!(lab.way(0, to), Some(PeerWay::Direct(lab.socket(to))));
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_makes_up_and_plays_back_signals_gains_nothing() {
    let mut lab = lab(2, &[(0, 1, "tcp/7000")], &[7000]).await;
    // Somebody stands between: what goes to the second passes through this.
    let between = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    between
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let relay = relay(1);
    lab.relays(&[at(&relay)]).await;
    let service = lab.service(1, 7000).await;
    let mut talk = Talk::between(&lab, &service, 0, 1).await;
    lab.members[1].endpoints = vec![between.local_addr().unwrap()];
    lab.allow(&[(0, 1, "tcp/7000")]);
    let mut heard = Vec::new();
    let mut buffer = [0; 2048];
    until("a question is heard", || {
        if let Ok((length, _)) = between.recv_from(&mut buffer) {
            heard.push(buffer[..length].to_vec());
        }
        heard.len() >= 3
    })
    .await;
    // Played back to where it came from, to whom it was for, and changed: from a place of one's own.
    for datagram in &heard {
        let mut forged = datagram.clone();
        *forged.last_mut().unwrap() ^= 1;
        for at in 0..2 {
            between.send_to(datagram, lab.socket(at)).unwrap();
            between.send_to(&forged, lab.socket(at)).unwrap();
        }
    }
    talk.goes_on().await;
    // Who hears a question may answer with its own words only, which are no answer: no way is taken that leads there.
    let over = Some(PeerWay::Relay(at(&relay).key));
    assert_eq!(lab.way(0, 1), over);
    talk.goes_on().await;
    lab.stop().await;
}
