//! Everything that two nodes say to each other arrives, over either family, inside and outside.

use mesh::{Offload, WireOptions};

use crate::lab::{Cable, NodeOptions, echo, exchange, pair, run, udp};

/// Pings, TCP and UDP both ways, with either family inside.
fn check(cable: &Cable, v6_outside: bool, options: &NodeOptions) {
    let nodes = pair(cable, v6_outside, options);
    let [one, two] = &nodes;
    for v6 in [false, true] {
        run(
            &one.inside,
            &format!("ping -c 2 -i 0.05 -W 5 {}", two.address(v6)),
        );
        // The second is in fragments inside.
        run(
            &two.inside,
            &format!("ping -c 2 -i 0.05 -W 5 -s 5000 {}", one.address(v6)),
        );
        exchange(&one.inside, &two.inside, two.address(v6), 4 << 20);
        let (near, far) = (
            udp(&one.inside, one.address(v6)),
            udp(&two.inside, two.address(v6)),
        );
        for length in [0, 1, 1372, 9000] {
            echo(&near, &far, length);
        }
    }
    for (node, peer) in [(one, two), (two, one)] {
        let status = node.engine.peer(&peer.engine.public_key()).unwrap();
        assert_eq!(status.endpoint.unwrap().is_ipv6(), v6_outside);
        assert!(status.handshakes >= 1 && status.last_handshake.is_some());
        assert!(
            status.sent_bytes > 8 << 20 && status.received_bytes > 8 << 20,
            "{status:?}"
        );
        assert_eq!(
            (status.rejected, status.foreign_source),
            (0, 0),
            "{status:?}"
        );
    }
}

#[test]
fn with_all_offloads_over_ipv4() {
    check(&Cable::new(1500), false, &NodeOptions::default());
}

#[test]
fn with_all_offloads_over_ipv6() {
    check(&Cable::new(1500), true, &NodeOptions::default());
}

#[test]
fn without_any_offload() {
    let wire = WireOptions {
        offload: false,
        ..WireOptions::default()
    };
    let options = NodeOptions {
        offload: Offload::None,
        wire,
        ..NodeOptions::default()
    };
    check(&Cable::new(1500), false, &options);
}

#[test]
fn where_the_kernel_cuts_only_tcp() {
    let options = NodeOptions {
        offload: Offload::Tcp,
        ..NodeOptions::default()
    };
    check(&Cable::new(1500), true, &options);
}

#[test]
fn where_the_path_is_narrower_than_the_tunnel() {
    check(&Cable::new(1300), false, &NodeOptions::default());
}

#[test]
fn with_a_small_mtu_inside() {
    check(
        &Cable::new(1500),
        true,
        &NodeOptions {
            mtu: 1280,
            ..NodeOptions::default()
        },
    );
}
