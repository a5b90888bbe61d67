//! An internet of namespaces: a router in the middle, providers around it, each behind the NAT it is said to have.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh::relay::{AnyNode, Limits, RelayCertificate, TicketCheck, TlsOptions};
use mesh::{
    Namespace, PathOptions, PeerOptions, PeerStatus, PeerWay, Relay, RelayOptions, WireOptions,
};

use crate::lab::{Node, NodeOptions, key, run, wait_for};

/// What a provider lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nat {
    /// Everything: the machine has a public address.
    None,
    /// One port outside for each inside, open to those that were sent to.
    Cone,
    /// Another port for each destination.
    Symmetric,
    /// The same, chosen in another way by the kernel.
    FullyRandom,
    /// TCP to port 443 and nothing else.
    OnlyTls,
}

/// The router in the middle.
pub(crate) struct Internet {
    router: Namespace,
}

/// A machine, and what is between it and the internet.
pub(crate) struct Provider {
    pub(crate) host: Namespace,
    pub(crate) gateway: Option<Namespace>,
    number: u8,
}

fn attach(near: &Namespace, name: &str, far: &Namespace, far_name: &str) {
    let line = format!(
        "ip link add {name} type veth peer name {far_name} netns {}",
        far.path()
    );
    run(near, &line);
    run(near, &format!("ip link set {name} up"));
    run(far, &format!("ip link set {far_name} up"));
}

fn forward(space: &Namespace) {
    // Written from a thread in the namespace: the file is that of the thread's.
    space
        .within(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            Ok(())
        })
        .unwrap();
}

impl Internet {
    pub(crate) fn new() -> Self {
        let router = Namespace::unnamed().unwrap();
        run(&router, "ip link set lo up");
        forward(&router);
        Self { router }
    }

    /// A provider with the public addresses 203.0.N.2 and up; its machine has 10.0.N.2 if there is a NAT.
    pub(crate) fn provider(&self, number: u8, nat: Nat) -> Provider {
        let outer = Namespace::unnamed().unwrap();
        run(&outer, "ip link set lo up");
        attach(&self.router, &format!("p{number}"), &outer, "wan");
        run(
            &self.router,
            &format!("ip address add 203.0.{number}.1/24 dev p{number}"),
        );
        run(
            &outer,
            &format!("ip address add 203.0.{number}.2/24 dev wan"),
        );
        run(
            &outer,
            &format!("ip route add default via 203.0.{number}.1"),
        );
        if nat == Nat::None {
            return Provider {
                host: outer,
                gateway: None,
                number,
            };
        }
        let host = Namespace::unnamed().unwrap();
        run(&host, "ip link set lo up");
        attach(&outer, "lan", &host, "eth0");
        run(
            &outer,
            &format!("ip address add 10.0.{number}.1/24 dev lan"),
        );
        run(
            &host,
            &format!("ip address add 10.0.{number}.2/24 dev eth0"),
        );
        run(&host, &format!("ip route add default via 10.0.{number}.1"));
        forward(&outer);
        let kind = match nat {
            Nat::Symmetric => "random",
            Nat::FullyRandom => "fully-random",
            _ => "",
        };
        for line in [
            "add table ip nat".to_owned(),
            "add chain ip nat post { type nat hook postrouting priority 100 ; }".to_owned(),
            format!("add rule ip nat post oifname wan masquerade {kind}"),
            "add table ip filter".to_owned(),
            "add chain ip filter input { type filter hook input priority 0 ; }".to_owned(),
            // Else an early packet of the other side takes the port that a later one of this side wants.
            "add rule ip filter input iifname wan ct state new drop".to_owned(),
            "add chain ip filter forward { type filter hook forward priority 0 ; }".to_owned(),
            "add rule ip filter forward iifname wan ct state new drop".to_owned(),
        ] {
            run(&outer, &format!("nft {line}"));
        }
        let provider = Provider {
            host,
            gateway: Some(outer),
            number,
        };
        if nat == Nat::OnlyTls {
            provider.only_tls();
        }
        provider
    }
}

impl Provider {
    /// Lets nothing pass any more but TCP to port 443.
    pub(crate) fn only_tls(&self) {
        let gateway = self.gateway.as_ref().unwrap();
        run(
            gateway,
            "nft add rule ip filter forward meta l4proto udp drop",
        );
        run(
            gateway,
            "nft add rule ip filter forward iifname lan tcp dport != 443 drop",
        );
    }

    /// Where it is found on the internet.
    pub(crate) fn public(&self) -> IpAddr {
        [203, 0, self.number, 2].into()
    }

    /// A node in it, that knows these relays.
    pub(crate) fn node(&self, relays: &[mesh::RelayAddress]) -> Node {
        let node = Node::new(self.number, &self.host, &NodeOptions::default());
        node.engine.set_relays(relays, &[]).unwrap();
        node
    }

    /// A relay in it, on UDP and port 443.
    pub(crate) fn relay(&self, tickets: Arc<dyn TicketCheck>) -> Relay {
        let options = RelayOptions {
            key: key(self.number),
            udp: Some(WireOptions {
                port: 3478,
                ipv6: false,
                ..WireOptions::default()
            }),
            tls: Some(TlsOptions {
                listen: SocketAddr::new([0, 0, 0, 0].into(), 443),
                certificate: RelayCertificate::generate().unwrap(),
            }),
            tickets,
            limits: Limits::default(),
        };
        Relay::start(options, Some(&self.host)).unwrap()
    }

    pub(crate) fn open_relay(&self) -> Relay {
        self.relay(Arc::new(AnyNode))
    }
}

/// Lets nodes know of each other, and of nothing but that they are.
pub(crate) fn introduce(nodes: &[&Node]) {
    for node in nodes {
        for other in nodes {
            if node.number != other.number {
                let peer = PeerOptions {
                    paths: Some(PathOptions::default()),
                    ..other.as_peer(None)
                };
                node.engine.set_peer(&peer).unwrap();
            }
        }
    }
}

/// What a node knows of another.
pub(crate) fn status(node: &Node, other: &Node) -> PeerStatus {
    node.engine.peer(&other.engine.public_key()).unwrap()
}

/// Whether packets go straight.
pub(crate) fn direct(node: &Node, other: &Node) -> bool {
    matches!(status(node, other).way, Some(PeerWay::Direct(_)))
}

/// Waits until a node is registered with all its relays.
pub(crate) fn registered(node: &Node) {
    wait_for("the registration with the relays", || {
        let relays = node.engine.relays();
        relays
            .iter()
            .all(|relay| relay.udp || relay.tls)
            .then_some(())
    });
}
