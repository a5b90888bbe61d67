//! Peers that move: another port, another address, and sessions go on.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mesh::{Namespace, PeerOptions};

use crate::lab::{Node, NodeOptions, connect, echo, run, udp, wait_for};

/// Something between two nodes that changes how one of them looks to the other, as a NAT does.
struct Translator {
    inside: UdpSocket,
    outside: Vec<UdpSocket>,
    chosen: AtomicUsize,
    stop: AtomicBool,
}

impl Translator {
    /// Carries datagrams between who sends to `inside` and `there`, which sees one of the outside addresses.
    fn run(&self, there: SocketAddr) {
        let mut buffer = vec![0; 65_536];
        let mut here = None;
        while !self.stop.load(Ordering::Relaxed) {
            while let Ok((length, source)) = self.inside.recv_from(&mut buffer) {
                here = Some(source);
                let outside = &self.outside[self.chosen.load(Ordering::Relaxed)];
                let _ = outside.send_to(&buffer[..length], there);
            }
            let outside = &self.outside[self.chosen.load(Ordering::Relaxed)];
            while let (Ok(length), Some(here)) = (outside.recv(&mut buffer), here) {
                let _ = self.inside.send_to(&buffer[..length], here);
            }
        }
    }
}

#[test]
fn a_peer_is_followed_to_another_port_and_another_address() {
    let outside = Namespace::unnamed().unwrap();
    run(&outside, "ip link set lo up");
    let options = NodeOptions::default();
    let one = Node::new(1, &outside, &options);
    let two = Node::new(2, &outside, &options);
    let socket = |address: &str| {
        let socket = udp(&outside, address.parse().unwrap());
        socket
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        socket
    };
    let translator = Arc::new(Translator {
        inside: socket("127.0.0.1"),
        outside: ["127.0.0.1", "127.0.0.1", "127.0.0.9"].map(socket).into(),
        chosen: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    });
    let there = SocketAddr::new([127, 0, 0, 1].into(), two.engine.port());
    let carrier = {
        let translator = Arc::clone(&translator);
        std::thread::spawn(move || translator.run(there))
    };
    let mut peer: PeerOptions = two.as_peer(None);
    peer.endpoint = Some(translator.inside.local_addr().unwrap());
    one.engine.set_peer(&peer).unwrap();
    two.engine.set_peer(&one.as_peer(None)).unwrap();
    let (near, far) = (
        udp(&one.inside, one.address(true)),
        udp(&two.inside, two.address(true)),
    );
    let (mut client, mut server) = connect(&one.inside, &two.inside, two.address(false));
    for at in 0..3 {
        translator.chosen.store(at, Ordering::Relaxed);
        echo(&near, &far, 500);
        let seen = || two.engine.peer(&one.engine.public_key()).unwrap();
        let expected = translator.outside[at].local_addr().unwrap();
        wait_for("the new address", || {
            (seen().endpoint == Some(expected)).then_some(())
        });
        assert_eq!(seen().roamed, at as u64);
        assert_eq!(seen().handshakes, 1, "no new session is needed");
        // The connection goes on.
        std::io::Write::write_all(&mut client, b"still here").unwrap();
        let mut buffer = [0; 10];
        std::io::Read::read_exact(&mut server, &mut buffer).unwrap();
        std::io::Write::write_all(&mut server, &buffer).unwrap();
        std::io::Read::read_exact(&mut client, &mut buffer).unwrap();
        assert_eq!(&buffer, b"still here");
    }
    translator.stop.store(true, Ordering::Relaxed);
    carrier.join().unwrap();
}
