//! What others may try: lying about addresses, floods, garbage.

use std::net::SocketAddr;
use std::time::Duration;

use mesh::{PeerOptions, WireOptions};

use crate::lab::{Cable, Node, NodeOptions, echo, exchange, pair, pattern, run, udp, wait_for};

#[test]
fn a_peer_that_lies_about_its_source_is_not_heard() {
    let cable = Cable::new(1500);
    let [one, two] = pair(&cable, false, &NodeOptions::default());
    let near = udp(&one.inside, one.address(false));
    near.set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    run(
        &two.inside,
        &format!(
            "ip address add 10.7.0.66/24 dev {}",
            two.engine.device().name()
        ),
    );
    let liar = udp(&two.inside, [10, 7, 0, 66].into());
    for _ in 0..3 {
        liar.send_to(b"I am another", near.local_addr().unwrap())
            .unwrap();
    }
    let status = wait_for("the lies to be counted", || {
        let status = one.engine.peer(&two.engine.public_key()).unwrap();
        (status.foreign_source >= 3).then_some(status)
    });
    assert_eq!(status.foreign_source, 3);
    assert!(near.recv(&mut [0; 64]).is_err(), "nothing came through");
    // Its own address still works.
    echo(&near, &udp(&two.inside, two.address(false)), 100);
}

#[test]
fn garbage_and_floods_do_not_disturb() {
    let cable = Cable::new(1500);
    let options = NodeOptions {
        handshakes: 20,
        ..NodeOptions::default()
    };
    let nodes = pair(&cable, false, &options);
    let [one, two] = &nodes;
    exchange(&one.inside, &two.inside, two.address(false), 1 << 16);
    let attacker = udp(&cable.spaces[0], Cable::address(0, false));
    let target = SocketAddr::new(Cable::address(1, false), two.engine.port());
    // Of every kind and length, with indices that exist.
    for length in 0..400usize {
        for kind in 0..6u8 {
            let mut bytes = pattern(length, kind);
            if let Some(start) = bytes.get_mut(..4) {
                start.copy_from_slice(&[kind, 0, 0, 0]);
            }
            if let Some(index) = bytes.get_mut(4..8) {
                index.copy_from_slice(&[0, (length % 3) as u8, 0, 0]);
            }
            attacker.send_to(&bytes, target).unwrap();
        }
    }
    attacker.send_to(&pattern(60_000, 1), target).unwrap();
    // Initiations that are right, of somebody unknown, a lot of them: made by an engine that has this node as peer and
    // is told anew again and again.
    let wire = WireOptions {
        ipv6: false,
        ..WireOptions::default()
    };
    let stranger = Node::new(
        9,
        &cable.spaces[0],
        &NodeOptions {
            wire,
            ..options.clone()
        },
    );
    let inside = udp(&stranger.inside, stranger.address(false));
    for round in 0..200u8 {
        // A changed secret is a new tunnel, with a new handshake.
        let secret = mesh::PresharedKey::from_bytes([round; 32]);
        let peer = PeerOptions {
            preshared_key: Some(secret),
            ..two.as_peer(Some(Cable::address(1, false)))
        };
        stranger.engine.set_peer(&peer).unwrap();
        inside
            .send_to(b"hello", SocketAddr::new(two.address(false), 9))
            .unwrap();
        wait_for("the initiation to be sent", || {
            let status = two.engine.status();
            (status.refused_handshakes + status.challenged > u64::from(round)).then_some(())
        });
    }
    let status = two.engine.status();
    assert!(status.malformed > 1000, "{status:?}");
    assert!(status.unknown_session > 10, "{status:?}");
    assert!(
        status.challenged > 10,
        "load is answered with cookies: {status:?}"
    );
    // Those who belong here are still served.
    exchange(&one.inside, &two.inside, two.address(true), 1 << 20);
    assert!(two.engine.running() && one.engine.running());
    assert_eq!(two.engine.peers().len(), 1);
}
