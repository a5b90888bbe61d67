//! What the tests have in common: namespaces, nodes, and conversations between them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::crypto::NoiseCore;
use mesh::policy::Gate;
use mesh::{
    Engine, Namespace, Offload, PeerOptions, PrivateKey, ShiftedClock, Tun, TunOptions, Wire,
    WireOptions,
};

/// The longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A program that will run in the namespace.
pub(crate) fn program(space: &Namespace, name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(arguments);
    let space = space.as_fd().as_raw_fd();
    // SAFETY: setns is a system call and nothing else; the descriptor is open until the child was started, as `space`
    // outlives the command's use in these tests.
    unsafe {
        command.pre_exec(move || {
            if libc::setns(space, libc::CLONE_NEWNET) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command
}

/// Runs a program to its end; it must succeed.
pub(crate) fn run(space: &Namespace, line: &str) -> String {
    let words: Vec<_> = line.split_whitespace().collect();
    let output = program(space, words[0], &words[1..])
        .output()
        .unwrap_or_else(|error| {
            panic!("{line}: {error}; scripts/setup.sh test installs what tests need")
        });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{line}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Waits until the condition holds, and returns what it gave.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Two machines with a cable between them.
pub(crate) struct Cable {
    pub(crate) spaces: [Namespace; 2],
}

impl Cable {
    /// Addresses 192.0.2.1 and .2, 2001:db8::1 and ::2.
    pub(crate) fn new(mtu: u16) -> Self {
        let spaces = [Namespace::unnamed().unwrap(), Namespace::unnamed().unwrap()];
        run(
            &spaces[0],
            &format!(
                "ip link add eth0 type veth peer name eth0 netns {}",
                spaces[1].path()
            ),
        );
        for (at, space) in spaces.iter().enumerate() {
            let host = at + 1;
            run(space, &format!("ip link set eth0 mtu {mtu} up"));
            run(space, "ip link set lo up");
            run(space, &format!("ip address add 192.0.2.{host}/24 dev eth0"));
            run(
                space,
                &format!("ip address add 2001:db8::{host}/64 dev eth0 nodad"),
            );
        }
        Self { spaces }
    }

    /// Where a machine is found from outside.
    pub(crate) fn address(at: usize, v6: bool) -> IpAddr {
        if v6 {
            format!("2001:db8::{}", at + 1).parse().unwrap()
        } else {
            format!("192.0.2.{}", at + 1).parse().unwrap()
        }
    }
}

/// How a node is made.
#[derive(Clone)]
pub(crate) struct NodeOptions {
    pub(crate) offload: Offload,
    pub(crate) wire: WireOptions,
    pub(crate) mtu: u16,
    pub(crate) handshakes: u32,
    pub(crate) clock: ShiftedClock,
    pub(crate) gate: Option<Arc<dyn Gate>>,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            offload: Offload::TcpAndUdp,
            wire: WireOptions::default(),
            mtu: 1420,
            handshakes: 500,
            clock: ShiftedClock::new(),
            gate: None,
        }
    }
}

/// An engine, and the namespace that its device is in: another than its sockets'.
pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) inside: Namespace,
    pub(crate) number: u8,
}

impl Node {
    /// A node with the addresses 10.7.0.N and fd07::N.
    pub(crate) fn new(number: u8, outside: &Namespace, options: &NodeOptions) -> Self {
        let inside = Namespace::unnamed().unwrap();
        run(&inside, "ip link set lo up");
        let tun = TunOptions {
            mtu: options.mtu,
            addresses: vec![
                ([10, 7, 0, number].into(), 24),
                (format!("fd07::{number}").parse().unwrap(), 64),
            ],
            offload: options.offload,
            ..TunOptions::default()
        };
        let tun = Tun::create(&tun, Some(&inside)).unwrap();
        assert_eq!(
            tun.offload(),
            options.offload,
            "this kernel has all of them"
        );
        let wire = Wire::bind(&options.wire, Some(outside)).unwrap();
        let clock = Arc::new(options.clock.clone());
        let core = NoiseCore::new(&key(number), options.handshakes, clock.clone());
        let core = Arc::new(core);
        let engine = match &options.gate {
            Some(gate) => Engine::start_guarded(tun, wire, core, clock, Arc::clone(gate)),
            None => Engine::start(tun, wire, core, clock),
        };
        let engine = engine.unwrap();
        Self {
            engine,
            inside,
            number,
        }
    }

    /// How others know this node.
    pub(crate) fn as_peer(&self, endpoint: Option<IpAddr>) -> PeerOptions {
        PeerOptions {
            endpoint: endpoint.map(|address| SocketAddr::new(address, self.engine.port())),
            ..PeerOptions::new(self.engine.public_key(), allowed(self.number))
        }
    }

    /// Its address inside.
    pub(crate) fn address(&self, v6: bool) -> IpAddr {
        inner(self.number, v6)
    }
}

/// A node's key.
pub(crate) fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

/// A node's addresses inside.
pub(crate) fn allowed(number: u8) -> Vec<mesh::Prefix> {
    vec![inner(number, false).into(), inner(number, true).into()]
}

/// A node's address inside.
pub(crate) fn inner(number: u8, v6: bool) -> IpAddr {
    if v6 {
        format!("fd07::{number}").parse().unwrap()
    } else {
        [10, 7, 0, number].into()
    }
}

/// Two nodes on a cable that know each other.
pub(crate) fn pair(cable: &Cable, v6: bool, options: &NodeOptions) -> [Node; 2] {
    let nodes = [
        Node::new(1, &cable.spaces[0], options),
        Node::new(2, &cable.spaces[1], options),
    ];
    nodes[0]
        .engine
        .set_peer(&nodes[1].as_peer(Some(Cable::address(1, v6))))
        .unwrap();
    nodes[1]
        .engine
        .set_peer(&nodes[0].as_peer(Some(Cable::address(0, v6))))
        .unwrap();
    nodes
}

/// Bytes that tell when one is missing or in the wrong place.
pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A TCP connection from a namespace to an address in another.
pub(crate) fn connect(from: &Namespace, to: &Namespace, address: IpAddr) -> (TcpStream, TcpStream) {
    let listener = to
        .within(|| Ok(TcpListener::bind(SocketAddr::new(address, 0)).unwrap()))
        .unwrap();
    let there = listener.local_addr().unwrap();
    let near = from
        .within(|| Ok(TcpStream::connect_timeout(&there, PATIENCE).unwrap()))
        .unwrap();
    let (far, _) = listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
    }
    (near, far)
}

/// Sends this many bytes in both directions at once; all must arrive.
pub(crate) fn exchange(from: &Namespace, to: &Namespace, address: IpAddr, length: usize) {
    let (near, far) = connect(from, to, address);
    std::thread::scope(|scope| {
        for (mut out, mut back, seed) in [
            (near.try_clone().unwrap(), far.try_clone().unwrap(), 1),
            (far.try_clone().unwrap(), near.try_clone().unwrap(), 2),
        ] {
            let sent = pattern(length, seed);
            let expected = sent.clone();
            scope.spawn(move || {
                out.write_all(&sent).unwrap();
                out.shutdown(std::net::Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut received = Vec::new();
                back.read_to_end(&mut received).unwrap();
                assert!(received == expected, "{} of {length} bytes", received.len());
            });
        }
    });
}

/// A UDP socket in a namespace, with a deadline.
pub(crate) fn udp(space: &Namespace, address: IpAddr) -> UdpSocket {
    let socket = space
        .within(|| Ok(UdpSocket::bind(SocketAddr::new(address, 0)).unwrap()))
        .unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a datagram there and back; it is sent anew until it arrives, as UDP may lose it.
pub(crate) fn echo(near: &UdpSocket, far: &UdpSocket, length: usize) {
    let sent = pattern(length, 3);
    let mut buffer = vec![0; 65_536];
    let mut carry = |from: &UdpSocket, to: &UdpSocket| {
        to.set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let there = to.local_addr().unwrap();
        wait_for("a datagram", || {
            from.send_to(&sent, there).unwrap();
            let (received, source) = to.recv_from(&mut buffer).ok()?;
            assert_eq!(source, from.local_addr().unwrap());
            // One of another length is left over from a conversation before; if it is this one cut short, the wait is in vain.
            if received != length {
                return None;
            }
            assert!(buffer[..received] == sent, "{received} of {length} bytes");
            Some(())
        });
    };
    carry(near, far);
    carry(far, near);
}
