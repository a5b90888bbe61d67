//! A relay that does what it can: it loses, repeats, delays, changes, exchanges and makes up datagrams.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::internet::{Internet, Nat, introduce};
use crate::lab::{Node, exchange, udp, wait_for};

/// What was done to datagrams.
#[derive(Default)]
struct Deeds {
    dropped: AtomicU64,
    repeated: AtomicU64,
    changed: AtomicU64,
    delayed: AtomicU64,
    invented: AtomicU64,
}

/// Sits in front of a real relay and spoils what it carries.
struct Spoiler {
    front: UdpSocket,
    relay: SocketAddr,
    deeds: Deeds,
    stop: AtomicBool,
}

const HEADER: usize = mesh::relay::HEADER;

impl Spoiler {
    /// Sends it on, or what it makes of it. Only data is spoiled: who spoils the rest is no relay at all.
    fn pass(&self, chance: &mut u64, held: &mut Vec<Vec<u8>>, bytes: &[u8], send: impl Fn(&[u8])) {
        *chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        if bytes.first() != Some(&0x85) || bytes.len() <= HEADER {
            return send(bytes);
        }
        let one = |deed: &AtomicU64| deed.fetch_add(1, Ordering::Relaxed);
        match (*chance >> 33) % 64 {
            0 => {
                one(&self.deeds.dropped);
            }
            1 => {
                one(&self.deeds.repeated);
                send(bytes);
                send(bytes);
                // And what was there long ago.
                for old in held.iter() {
                    send(old);
                }
            }
            2 => {
                one(&self.deeds.changed);
                let mut changed = bytes.to_vec();
                let at = HEADER + (*chance >> 40) as usize % (bytes.len() - HEADER);
                changed[at] ^= 1;
                send(&changed);
            }
            3 => {
                one(&self.deeds.delayed);
                held.push(bytes.to_vec());
                if held.len() > 8 {
                    for old in held.drain(..).rev() {
                        send(&old);
                    }
                }
            }
            4 => {
                one(&self.deeds.invented);
                send(bytes);
                let mut invented = bytes[..HEADER + 16].to_vec();
                invented.extend((0..64u64).map(|at| (*chance >> (at % 56)) as u8));
                send(&invented);
                // Another's name on it.
                let mut renamed = bytes.to_vec();
                renamed[8..20].fill(9);
                send(&renamed);
                // Cut short.
                send(&bytes[..HEADER + 5]);
            }
            _ => send(bytes),
        }
    }

    fn run(&self, outside: impl Fn() -> UdpSocket) {
        let mut clients: BTreeMap<SocketAddr, UdpSocket> = BTreeMap::new();
        let mut buffer = vec![0; 65_536];
        let mut chance = 7;
        let mut held = [Vec::new(), Vec::new()];
        while !self.stop.load(Ordering::Relaxed) {
            while let Ok((length, source)) = self.front.recv_from(&mut buffer) {
                let back = clients.entry(source).or_insert_with(&outside);
                self.pass(&mut chance, &mut held[0], &buffer[..length], |bytes| {
                    let _ = back.send_to(bytes, self.relay);
                });
            }
            for (client, back) in &clients {
                while let Ok((length, source)) = back.recv_from(&mut buffer) {
                    if source == self.relay {
                        self.pass(&mut chance, &mut held[1], &buffer[..length], |bytes| {
                            let _ = self.front.send_to(bytes, client);
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn a_hostile_relay_gains_nothing() {
    let internet = Internet::new();
    let middle = internet.provider(100, Nat::None);
    let relay = middle.open_relay();
    let socket = |space: &mesh::Namespace| {
        let socket = udp(space, middle.public());
        socket
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        socket
    };
    let mut address = relay.address(middle.public());
    let front = socket(&middle.host);
    let spoiler = Arc::new(Spoiler {
        relay: address.udp.unwrap(),
        front,
        deeds: Deeds::default(),
        stop: AtomicBool::new(false),
    });
    address.udp = Some(spoiler.front.local_addr().unwrap());
    address.tls = None;
    let providers = [
        internet.provider(1, Nat::Cone),
        internet.provider(2, Nat::Cone),
    ];
    std::thread::scope(|scope| {
        scope.spawn(|| spoiler.run(|| socket(&middle.host)));
        // However this ends, the other thread has to.
        let _stop = Stop(&spoiler.stop);
        let relays = [address.clone()];
        let nodes = [providers[0].node(&relays), providers[1].node(&relays)];
        introduce(&[&nodes[0], &nodes[1]]);
        exchange(
            &nodes[0].inside,
            &nodes[1].inside,
            nodes[1].address(false),
            300_000,
        );
        nothing_twice(&nodes, &spoiler);
        let deeds = &spoiler.deeds;
        for deed in [
            &deeds.dropped,
            &deeds.repeated,
            &deeds.changed,
            &deeds.delayed,
            &deeds.invented,
        ] {
            assert!(deed.load(Ordering::Relaxed) > 0, "it did not even try");
        }
        let status = |at: usize| {
            nodes[at]
                .engine
                .peer(&nodes[1 - at].engine.public_key())
                .unwrap()
        };
        assert!(status(0).rejected + status(1).rejected > 0);
        assert_eq!(status(0).foreign_source + status(1).foreign_source, 0);
        // A replayed handshake makes no session.
        assert!(
            status(0).handshakes + status(1).handshakes <= 10,
            "{:?}",
            status(0)
        );
    });
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Numbered datagrams: some are lost, none comes twice or changed.
fn nothing_twice(nodes: &[Node; 2], spoiler: &Spoiler) {
    let near = udp(&nodes[0].inside, nodes[0].address(false));
    let far = udp(&nodes[1].inside, nodes[1].address(false));
    far.set_read_timeout(Some(Duration::from_millis(5)))
        .unwrap();
    let there = far.local_addr().unwrap();
    let mut seen = BTreeSet::new();
    let mut number = 0u64;
    let mut buffer = [0; 64];
    let start = spoiler.deeds.repeated.load(Ordering::Relaxed);
    wait_for("enough to be spoiled", || {
        for _ in 0..8 {
            number += 1;
            near.send_to(
                &[number.to_be_bytes(), (!number).to_be_bytes()].concat(),
                there,
            )
            .unwrap();
        }
        while let Ok((length, _)) = far.recv_from(&mut buffer) {
            assert_eq!(length, 16);
            let first = u64::from_be_bytes(buffer[..8].try_into().unwrap());
            let second = u64::from_be_bytes(buffer[8..16].try_into().unwrap());
            assert_eq!(first, !second, "changed");
            assert!(seen.insert(first), "{first} came twice");
        }
        (spoiler.deeds.repeated.load(Ordering::Relaxed) >= start + 10).then_some(())
    });
    assert!(seen.len() as u64 > number / 2, "{} of {number}", seen.len());
}
