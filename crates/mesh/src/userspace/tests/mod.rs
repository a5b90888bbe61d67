//! Nodes in one process, with real sockets on loopback.

mod cluster;
mod datagrams;
mod distance;
mod flows;
mod home;
mod hostile;
mod proxies;
mod records;
mod services;
mod underlay;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::coordination::{IdentityKey, overlay_v4, overlay_v6};
use crate::key::PrivateKey;
use crate::policy::{Filter, FilterPeer, Ports};

/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn identity(number: u32) -> Identity {
    let mut seed = [1; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    Identity::from_seed(seed)
}

/// A node of this number.
pub(super) fn member(number: u32) -> Member {
    let seed = crate::coordination::Identity::to_base64(&identity(number));
    let mut key = [0; 32];
    key.copy_from_slice(&seed.as_bytes()[..32]);
    Member {
        identity: identity(number).public(),
        key: PrivateKey::from_bytes(key).public(),
        name: format!("node{number}"),
        v4: overlay_v4(number).unwrap(),
        v6: overlay_v6(&IdentityKey::from_bytes([0; 32]), number),
        mode: crate::coordination::Mode::Userspace,
        endpoints: Vec::new(),
        underlay: None,
    }
}

/// Numbers for the nodes of a test that no other test has at the same time, as their loopback addresses are shared.
fn numbers(count: u32) -> Vec<u32> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = NEXT.fetch_add(count, Ordering::Relaxed) % (64 - 8);
    let base = std::process::id() % 60_000 * 64 + 1;
    (0..count).map(|at| base + first + at).collect()
}

/// A mesh: from, to, port.
type Allowed<'a> = &'a [(usize, usize, &'a str)];

struct Lab {
    members: Vec<Member>,
    gates: Vec<Arc<FilterGate>>,
    nodes: Vec<Option<Userspace>>,
}

fn filter(members: &[Member], at: usize, allowed: Allowed<'_>) -> Filter {
    let ports = |from: usize, to: usize| {
        allowed
            .iter()
            .filter(|rule| (rule.0, rule.1) == (from, to))
            .map(|rule| rule.2.parse::<Ports>().unwrap().into())
            .collect()
    };
    let own = &members[at];
    let peers = members.iter().enumerate().filter(|(other, _)| *other != at);
    let peers = peers.map(|(other, peer)| {
        let rules = FilterPeer {
            v4: peer.v4,
            v6: peer.v6,
            inbound: ports(other, at),
            outbound: ports(at, other),
        };
        (peer.key, rules)
    });
    Filter::new((own.v4, own.v6), peers)
}

fn directory(members: &[Member], at: usize) -> Directory {
    let mut others = members.to_vec();
    let own = others.remove(at);
    let all = members.iter().map(|member| member.identity).collect();
    Directory::new("mesh.internal", own, others, [("all".to_owned(), all)])
}

impl Lab {
    /// Nodes that all offer the ports, each with a proxy.
    async fn new(count: u32, allowed: Allowed<'_>, ports: &[u16]) -> Self {
        Self::with(count, allowed, ports, |_| {}).await
    }

    async fn with(
        count: u32,
        allowed: Allowed<'_>,
        ports: &[u16],
        change: impl Fn(&mut UserspaceOptions),
    ) -> Self {
        let numbers = numbers(count);
        let mut members: Vec<_> = numbers.iter().map(|number| member(*number)).collect();
        let mut gates = Vec::new();
        let mut nodes = Vec::new();
        for (at, number) in numbers.iter().enumerate() {
            let gate = Arc::new(FilterGate::closed(Instant::now()));
            let own = directory(&members, at);
            let mut options = UserspaceOptions::new(identity(*number), own, Arc::clone(&gate));
            options.listen = (Ipv4Addr::LOCALHOST, 0).into();
            options.proxies = vec![ProxyOptions {
                listen: (Ipv4Addr::LOCALHOST, 0).into(),
                credentials: Some(Credentials::new(b"user", b"word")),
            }];
            options.services = ports
                .iter()
                .map(|port| Service {
                    port: *port,
                    target: None,
                })
                .collect();
            // All are on one machine here, so doors would stand where services are.
            options.doors = false;
            change(&mut options);
            nodes.push(Userspace::start(options).await.unwrap());
            gates.push(gate);
        }
        for (member, node) in members.iter_mut().zip(&nodes) {
            member.endpoints = vec![node.address()];
        }
        let nodes = nodes.into_iter().map(Some).collect();
        let lab = Self {
            members,
            gates,
            nodes,
        };
        lab.allow(allowed);
        lab
    }

    /// Another policy for all, and the directory that goes with it.
    fn allow(&self, allowed: Allowed<'_>) {
        for at in 0..self.members.len() {
            self.gates[at].set(filter(&self.members, at, allowed));
            if let Some(node) = &self.nodes[at] {
                node.set_directory(directory(&self.members, at)).unwrap();
            }
        }
    }

    fn node(&self, at: usize) -> &Userspace {
        self.nodes[at].as_ref().unwrap()
    }

    /// Where a node's service is, as seen on every node.
    fn place(&self, at: usize, port: u16) -> SocketAddr {
        (loopback(self.members[at].v4).unwrap(), port).into()
    }

    /// A listener for a service of a node.
    async fn service(&self, at: usize, port: u16) -> TcpListener {
        TcpListener::bind(self.place(at, port)).await.unwrap()
    }

    /// Waits for a door of a node, which is open at one of the nodes at most since they share their addresses here.
    async fn door(&self, to: usize, port: u16) -> TcpStream {
        let place = self.place(to, port);
        let open = || {
            let nodes = self.nodes.iter().flatten();
            nodes
                .flat_map(|node| node.status().doors)
                .any(|door| door == place)
        };
        until("a door opens", open).await;
        TcpStream::connect(place).await.unwrap()
    }

    /// Asks the proxy of a node for a flow, as SOCKS5 does; the code of the answer.
    async fn socks(&self, at: usize, host: &str, port: u16) -> Result<TcpStream, u8> {
        let mut stream = TcpStream::connect(self.node(at).proxies()[0])
            .await
            .unwrap();
        let mut said = b"\x05\x01\x02\x01\x04user\x04word\x05\x01\x00\x03".to_vec();
        said.push(host.len() as u8);
        said.extend(host.as_bytes());
        said.extend(port.to_be_bytes());
        stream.write_all(&said).await.unwrap();
        let mut heard = [0; 14];
        in_time("an answer of SOCKS5", stream.read_exact(&mut heard))
            .await
            .unwrap();
        assert_eq!(heard[..5], [5, 2, 1, 0, 5]);
        match heard[5] {
            0 => Ok(stream),
            code => Err(code),
        }
    }

    /// Asks for a flow to a node by its name.
    async fn flow(&self, from: usize, to: usize, port: u16) -> Result<TcpStream, u8> {
        self.socks(from, &self.members[to].name, port).await
    }

    /// Stops all; this ends only if no task is left.
    async fn stop(self) {
        for node in self.nodes.into_iter().flatten() {
            in_time("a node stops", node.stop()).await;
        }
    }
}

async fn in_time<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    in_time(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Reads to the end.
async fn rest(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    in_time("the end of a flow", stream.read_to_end(&mut all)).await?;
    Ok(all)
}

/// Bytes that look like nothing.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
