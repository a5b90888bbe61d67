//! A host in a network namespace of its own, with an uplink to an "internet" in another one.
//!
//! Nothing here touches the machine's own network: addresses, rules, routes and forwarding are
//! those of the namespace, which vanishes with the test.

use agent::network::{Network, NetworkOptions};
use driver::NetworkSlot;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::{
    future::Future,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    process::Command,
    time::Duration,
};

/// The host's address on its uplink.
pub(crate) const HOST: &str = "203.0.114.2";
/// The host's address on another network of its own.
pub(crate) const LAN: &str = "192.168.77.1";
/// Addresses that answer on port 80 of the internet, if anybody is let through to them.
pub(crate) const ELSEWHERE: [&str; 9] = [
    "8.8.8.8",
    "10.99.0.1",
    "169.254.169.254",
    "172.16.5.5",
    "100.64.0.9",
    "192.168.9.9",
    "198.18.3.3",
    "192.0.2.99",
    "240.0.0.9",
];
/// How long something that must not happen is waited for.
const PATIENCE: Duration = Duration::from_millis(400);

pub(crate) struct Lab {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) host: OwnedFd,
    pub(crate) internet: OwnedFd,
    runtime: tokio::runtime::Runtime,
}

/// Runs a test in a lab of its own.
pub(crate) fn in_lab(test: impl FnOnce(&Lab) + Send + 'static) {
    let body = move || {
        let host = new_namespace();
        let internet = std::thread::spawn(new_namespace).join().unwrap();
        // Made here, so that its threads are in the host's namespace.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let lab = Lab {
            folder: tempfile::tempdir().unwrap(),
            host,
            internet,
            runtime,
        };
        lab.wire();
        test(&lab);
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn new_namespace() -> OwnedFd {
    // SAFETY: unsafe only because of `FILES`, which is not used.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("run as root");
    // A new namespace takes over what the machine's own has, and another Atoll may have set that.
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    std::fs::File::open("/proc/thread-self/ns/net")
        .unwrap()
        .into()
}

/// Runs `work` inside a network namespace.
pub(crate) fn inside<T: Send>(
    namespace: &(impl AsFd + Sync),
    work: impl FnOnce() -> T + Send,
) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a program to its end; its output.
pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments}: {complaint}"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

impl Lab {
    fn wire(&self) {
        let internet = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.internet.as_raw_fd()
        );
        ip("link set lo up");
        ip(&format!(
            "link add up0 type veth peer name net0 netns {internet}"
        ));
        ip(&format!("address add {HOST}/24 dev up0"));
        ip("link set up0 up");
        ip("link add lan0 type veth peer name lan1");
        ip(&format!("address add {LAN}/24 dev lan0"));
        ip("link set lan0 up");
        ip("link set lan1 up");
        inside(&self.internet, || {
            ip("link set lo up");
            ip("address add 203.0.114.1/24 dev net0");
            ip("link set net0 up");
            for address in ELSEWHERE {
                ip(&format!("address add {address}/32 dev lo"));
            }
            // The way back is there, so that a connection fails by the host's rules alone.
            ip("route add 10.192.0.0/10 via 203.0.114.2");
        });
        ip("route add default via 203.0.114.1");
        serve(&self.internet, "0.0.0.0:80");
    }

    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(crate) fn options(&self, instance: &str) -> NetworkOptions {
        NetworkOptions {
            shared: self.shared(),
            ..NetworkOptions::new(instance, self.folder.path().join(instance))
        }
    }

    pub(crate) fn shared(&self) -> PathBuf {
        self.folder.path().join("shared")
    }

    pub(crate) fn start(&self, instance: &str) -> Network {
        self.wait(Network::start(self.options(instance))).unwrap()
    }

    pub(crate) fn claim(&self, network: &Network) -> NetworkSlot {
        self.wait(network.claim_slot()).unwrap()
    }

    pub(crate) fn forwarding(&self) -> String {
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")
            .unwrap()
            .trim()
            .to_owned()
    }
}

/// Answers every connection to `address` inside a namespace with the address of the caller, then
/// echoes.
pub(crate) fn serve(namespace: &(impl AsFd + Sync), address: &str) -> SocketAddr {
    let listener = inside(namespace, || TcpListener::bind(address).unwrap());
    let bound = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let peer = stream.peer_addr()?.ip().to_string();
                stream.write_all(format!("{peer}\n").as_bytes())?;
                io::copy(&mut stream.try_clone()?, &mut stream)
            });
        }
    });
    bound
}

/// Connects from inside a namespace; the address that the server saw, and the connection.
pub(crate) fn connect(
    namespace: &(impl AsFd + Sync),
    address: &str,
    port: u16,
) -> io::Result<(String, TcpStream)> {
    let address: IpAddr = address.parse().unwrap();
    let mut stream = inside(namespace, || {
        TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE)
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut seen = Vec::new();
    while seen.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        seen.push(byte[0]);
    }
    Ok((String::from_utf8_lossy(&seen).trim().to_owned(), stream))
}

/// Whether a byte comes back over a connection.
pub(crate) fn echoes(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok()
}

#[track_caller]
pub(crate) fn assert_reaches(from: &(impl AsFd + Sync), address: &str, port: u16) -> String {
    match connect(from, address, port) {
        Ok((seen, _)) => seen,
        Err(error) => panic!("{address}:{port} is not reached: {error}"),
    }
}

#[track_caller]
pub(crate) fn assert_blocked(from: &(impl AsFd + Sync), address: &str, port: u16) {
    assert!(
        connect(from, address, port).is_err(),
        "{address}:{port} is reached"
    );
}
