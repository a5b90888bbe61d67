//! Starting, changing and ending.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use mesh::{Namespace, PeerOptions, Prefix, PresharedKey, Tun, TunOptions};

use crate::lab::{
    Cable, Node, NodeOptions, allowed, connect, echo, exchange, inner, key, pair, run, udp,
    wait_for,
};

#[test]
fn peers_come_and_go_while_it_runs() {
    let cable = Cable::new(1500);
    let options = NodeOptions::default();
    let [one, two] = pair(&cable, false, &options);
    let three = Node::new(3, &cable.spaces[1], &options);
    let (near, far) = (
        udp(&one.inside, one.address(false)),
        udp(&two.inside, two.address(false)),
    );
    echo(&near, &far, 100);
    // A third joins; the second is undisturbed.
    let there = Cable::address(1, false);
    one.engine.set_peer(&three.as_peer(Some(there))).unwrap();
    three.engine.set_peer(&one.as_peer(None)).unwrap();
    exchange(&one.inside, &three.inside, three.address(true), 1 << 20);
    echo(&near, &far, 100);
    // Removed, it is not heard any more, whatever it says.
    assert!(one.engine.remove_peer(&three.engine.public_key()));
    assert!(one.engine.peer(&three.engine.public_key()).is_none());
    let lost = udp(&three.inside, three.address(false));
    lost.send_to(b"hello", near.local_addr().unwrap()).unwrap();
    wait_for("the message of nobody's session", || {
        (one.engine.status().unknown_session > 0).then_some(())
    });
    echo(&near, &far, 100);
    // A preshared key on one side only keeps them apart; on both it joins them.
    let mut changed = two.as_peer(Some(there));
    changed.preshared_key = Some(PresharedKey::from_bytes([5; 32]));
    one.engine.set_peer(&changed).unwrap();
    let mut back = one.as_peer(Some(Cable::address(0, false)));
    back.preshared_key = changed.preshared_key.clone();
    two.engine.set_peer(&back).unwrap();
    echo(&near, &far, 100);
    assert!(
        one.engine.set_peer(&one.as_peer(None)).is_err(),
        "not one's own peer"
    );
    assert_eq!(one.engine.peers().len(), 1);
}

#[test]
fn the_longest_range_decides() {
    let cable = Cable::new(1500);
    let options = NodeOptions::default();
    let [one, two] = pair(&cable, false, &options);
    let three = Node::new(3, &cable.spaces[1], &options);
    three.engine.set_peer(&one.as_peer(None)).unwrap();
    let (near, far) = (
        udp(&one.inside, one.address(false)),
        udp(&three.inside, three.address(false)),
    );
    let wide = |node: &Node, range: &str| PeerOptions {
        allowed: vec![range.parse::<Prefix>().unwrap()],
        ..node.as_peer(Some(Cable::address(1, false)))
    };
    one.engine.set_peer(&wide(&two, "10.7.0.0/24")).unwrap();
    one.engine.set_peer(&wide(&three, "10.7.0.3/32")).unwrap();
    echo(&near, &far, 100);
    let status = one.engine.peer(&three.engine.public_key()).unwrap();
    assert!(status.received_packets > 0, "{status:?}");
    // What goes to nobody is dropped and counted.
    one.engine.set_peer(&wide(&two, "10.7.0.2/32")).unwrap();
    near.send_to(b"hello", "10.7.0.200:9").unwrap();
    wait_for("the packet to nobody", || {
        (one.engine.status().no_route > 0).then_some(())
    });
}

#[test]
fn stopping_ends_threads_and_device() {
    let cable = Cable::new(1500);
    let [one, two] = pair(&cable, false, &NodeOptions::default());
    let (near, _far) = connect(&one.inside, &two.inside, two.address(false));
    let name = one.engine.device().name().to_owned();
    let Node { engine, inside, .. } = one;
    assert!(run(&inside, "ip -o link").contains(&name));
    engine.stop();
    // A program that another test starts at this moment may hold the device for as long as it takes to start.
    wait_for("the device to go", || {
        (!run(&inside, "ip -o link").contains(&name)).then_some(())
    });
    // Removed by others, the device takes its engine along.
    run(
        &two.inside,
        &format!("ip link delete {}", two.engine.device().name()),
    );
    wait_for("the engine without a device to end", || {
        (!two.engine.running()).then_some(())
    });
    drop(near);
}

#[test]
fn keys_change_under_traffic_and_nothing_is_lost() {
    let cable = Cable::new(1500);
    let options = NodeOptions::default();
    let nodes = pair(&cable, false, &options);
    let [one, two] = &nodes;
    let (near, far) = (
        udp(&one.inside, one.address(false)),
        udp(&two.inside, two.address(false)),
    );
    let there = far.local_addr().unwrap();
    echo(&near, &far, 100);
    let peer = two.engine.public_key();
    let handshakes = || one.engine.peer(&peer).unwrap().handshakes;
    let mut number = 0u32;
    for round in 0..3 {
        let before = handshakes();
        options.clock.advance(Duration::from_secs(121));
        // Counted datagrams in both directions until some time after the change.
        let mut after = 0;
        while after < 50 {
            assert!(number < 1_000_000, "round {round}: the keys never change");
            after += u32::from(handshakes() > before);
            number += 1;
            near.send_to(&number.to_be_bytes(), there).unwrap();
            let mut buffer = [0; 64];
            let (length, source) = far.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..length], number.to_be_bytes(), "round {round}");
            far.send_to(&number.to_be_bytes(), source).unwrap();
            let length = near.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], number.to_be_bytes(), "round {round}");
        }
    }
    let status = one.engine.peer(&peer).unwrap();
    assert_eq!(status.rejected, 0, "{status:?}");
}

/// Not a test by itself: what the next one kills.
#[test]
fn victim() {
    let Ok(space) = std::env::var("MESH_TEST_VICTIM") else {
        return;
    };
    let space = Namespace::open(space.as_ref()).unwrap();
    let cable = Cable::new(1500);
    let tun = TunOptions {
        name: "victim0".to_owned(),
        addresses: vec![(inner(1, false), 24)],
        ..TunOptions::default()
    };
    let tun = Tun::create(&tun, Some(&space)).unwrap();
    let wire = mesh::Wire::bind(&mesh::WireOptions::default(), Some(&cable.spaces[0])).unwrap();
    let clock = std::sync::Arc::new(mesh::SystemClock);
    let core = mesh::crypto::NoiseCore::new(&key(1), 100, clock.clone());
    let engine = mesh::Engine::start(tun, wire, std::sync::Arc::new(core), clock).unwrap();
    engine
        .set_peer(&PeerOptions::new(key(2).public(), allowed(2)))
        .unwrap();
    println!("\nready");
    loop {
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

#[test]
fn killed_it_leaves_no_device() {
    let space = Namespace::unnamed().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "life::victim", "--nocapture"])
        .env("MESH_TEST_VICTIM", space.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines
        .map_while(Result::ok)
        .any(|line| line.trim() == "ready");
    let before = run(&space, "ip -o link");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready && before.contains("victim0"), "{before}");
    wait_for("the device to go", || {
        (!run(&space, "ip -o link").contains("victim0")).then_some(())
    });
}
