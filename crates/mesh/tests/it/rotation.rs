//! Keys of tunnels that are exchanged while packets travel.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use mesh::crypto::{OwnKeys, RotatingCore};
use mesh::{
    Engine, Namespace, PathOptions, PeerOptions, PrivateKey, PublicKey, ShiftedClock, Tun,
    TunOptions, Wire, WireOptions,
};

use crate::lab::{Cable, PATIENCE, allowed, echo, inner, key, run, udp, wait_for};

/// A node whose keys may be exchanged.
struct Node {
    engine: Engine,
    core: Arc<RotatingCore>,
    inside: Namespace,
    number: u8,
    at: usize,
}

fn tunnel_key(node: u8, turn: u8) -> PrivateKey {
    PrivateKey::from_bytes([node * 16 + turn; 32])
}

impl Node {
    fn new(cable: &Cable, at: usize) -> Self {
        let number = at as u8 + 1;
        let inside = Namespace::unnamed().unwrap();
        run(&inside, "ip link set lo up");
        let tun = TunOptions {
            addresses: vec![(inner(number, false), 24), (inner(number, true), 64)],
            ..TunOptions::default()
        };
        let tun = Tun::create(&tun, Some(&inside)).unwrap();
        let wire = Wire::bind(&WireOptions::default(), Some(&cable.spaces[at])).unwrap();
        let clock = Arc::new(ShiftedClock::new());
        let keys = OwnKeys::one(tunnel_key(number, 0));
        let core = Arc::new(RotatingCore::new(&key(number), &keys, 500, clock.clone()));
        let engine = Engine::start(tun, wire, core.clone(), clock).unwrap();
        Self {
            engine,
            core,
            inside,
            number,
            at,
        }
    }

    /// Takes the keys of these turns.
    fn use_keys(&self, present: u8, next: Option<u8>, retired: Option<u8>) {
        let own = |turn| tunnel_key(self.number, turn);
        self.core.set_keys(&OwnKeys {
            present: own(present),
            next: next.map(own),
            retired: retired.map(own),
        });
        self.engine.renew();
    }

    /// Hears that another has the keys of these turns.
    fn hear(&self, other: &Self, turns: &[u8]) {
        let keys = turns
            .iter()
            .map(|turn| tunnel_key(other.number, *turn).public());
        let address: IpAddr = Cable::address(other.at, false);
        let peer = PeerOptions {
            tunnels: keys.collect(),
            paths: Some(PathOptions {
                candidates: vec![SocketAddr::new(address, other.engine.port())],
                ..PathOptions::default()
            }),
            ..PeerOptions::new(name(other), allowed(other.number))
        };
        self.engine.set_peer(&peer).unwrap();
    }

    fn renewed(&self, other: &Self) -> bool {
        self.engine.peer(&name(other)).unwrap().renewed
    }

    fn socket(&self) -> UdpSocket {
        udp(&self.inside, inner(self.number, false))
    }
}

/// What a node is known by, whatever its keys.
fn name(node: &Node) -> PublicKey {
    key(node.number).public()
}

fn nodes(cable: &Cable) -> [Node; 2] {
    let nodes = [Node::new(cable, 0), Node::new(cable, 1)];
    nodes[0].hear(&nodes[1], &[0]);
    nodes[1].hear(&nodes[0], &[0]);
    nodes
}

/// Sends bursts both ways until `done`; every datagram must arrive. How many did.
fn lossless(sockets: &[UdpSocket; 2], mut done: impl FnMut(u64) -> bool) -> u64 {
    for socket in sockets {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut number = 0_u64;
    loop {
        for (from, to) in [(0, 1), (1, 0)] {
            let there = sockets[to].local_addr().unwrap();
            let burst = number..number + 16;
            for each in burst.clone() {
                sockets[from].send_to(&each.to_be_bytes(), there).unwrap();
            }
            let mut arrived: Vec<u64> = Vec::new();
            while arrived.len() < 16 {
                let mut buffer = [0; 16];
                let (length, _) = sockets[to]
                    .recv_from(&mut buffer)
                    .unwrap_or_else(|error| panic!("one of {burst:?} was lost: {error}"));
                // Others are left over from before.
                if length == 8 {
                    arrived.push(u64::from_be_bytes(buffer[..8].try_into().unwrap()));
                }
            }
            arrived.sort_unstable();
            assert!(arrived.iter().copied().eq(burst));
        }
        number += 16;
        assert!(number < 1_000_000, "waited in vain");
        if done(number) {
            return number;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Exchanges the keys of those who `rotate`, under traffic.
fn exchange_keys(rotate: [bool; 2]) {
    let cable = Cable::new(1500);
    let nodes = nodes(&cable);
    let sockets = [nodes[0].socket(), nodes[1].socket()];
    echo(&sockets[0], &sockets[1], 100);
    let pairs = || [(0, 1), (1, 0)].into_iter().filter(|(who, _)| rotate[*who]);
    let mut step = 0;
    let mut since = 0;
    let handshakes = nodes[0].engine.peer(&name(&nodes[1])).unwrap().handshakes;
    let sent = lossless(&sockets, |number| {
        if number < since + 1600 {
            return false;
        }
        match step {
            0 => {
                for (who, other) in pairs() {
                    nodes[who].use_keys(0, Some(1), None);
                    nodes[other].hear(&nodes[who], &[0, 1]);
                }
            }
            1 if nodes[0].renewed(&nodes[1]) && nodes[1].renewed(&nodes[0]) => {
                for (who, other) in pairs() {
                    nodes[who].use_keys(1, None, Some(0));
                    nodes[other].hear(&nodes[who], &[1]);
                }
            }
            1 => return false,
            2 => {
                for (who, _) in pairs() {
                    nodes[who].use_keys(1, None, None);
                }
            }
            _ => return true,
        }
        step += 1;
        since = number;
        false
    });
    println!("{sent} datagrams in each direction, none lost");
    let after = nodes[0].engine.peer(&name(&nodes[1])).unwrap().handshakes;
    assert!(after > 0 && handshakes > 0);
    // The old key is worth nothing any more, and the new one is all that is needed.
    for (who, other) in pairs() {
        let refused = || nodes[who].engine.status().refused_handshakes;
        let before = refused();
        nodes[other].hear(&nodes[who], &[0]);
        nodes[other].engine.probe(&name(&nodes[who]));
        wait_for("a refusal", || (refused() > before).then_some(()));
        nodes[other].hear(&nodes[who], &[1]);
        // It has no session left, and makes one when it has something to say.
        echo(&sockets[other], &sockets[who], 100);
    }
}

#[test]
fn a_key_is_exchanged_under_traffic_and_no_packet_is_lost() {
    exchange_keys([true, false]);
}

#[test]
fn both_exchange_their_keys_at_once_and_no_packet_is_lost() {
    exchange_keys([true, true]);
}

#[test]
fn who_was_not_told_goes_on_with_the_key_that_it_knows() {
    let cable = Cable::new(1500);
    let nodes = nodes(&cable);
    let sockets = [nodes[0].socket(), nodes[1].socket()];
    echo(&sockets[0], &sockets[1], 100);
    nodes[0].use_keys(0, Some(1), None);
    let mut left = 200;
    lossless(&sockets, |_| {
        left -= 1;
        left == 0
    });
    assert!(!nodes[0].renewed(&nodes[1]));
    // It missed the announcement, and hears of the exchange alone.
    nodes[0].use_keys(1, None, Some(0));
    nodes[1].hear(&nodes[0], &[1]);
    wait_for("the new key", || {
        echo(&sockets[0], &sockets[1], 100);
        nodes[0].renewed(&nodes[1]).then_some(())
    });
}
