//! Who is in the mesh and what all are called, at one moment.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::service::ServiceEntry;
use crate::coordination::{IdentityKey, Known, Mode, View, Voucher};
use crate::key::PublicKey;
use crate::policy::{Policy, Subject};

/// The range of nodes' addresses, and of the loopback addresses that stand for them: 22 bits are a node's number.
const MESH: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 0);
const NUMBER: u32 = (1 << 22) - 1;

/// The loopback address that stands for a node on every machine: 127.64.0.0/10 instead of 100.64.0.0/10. `None` if the
/// address is not in that range.
pub fn loopback(mesh: Ipv4Addr) -> Option<Ipv4Addr> {
    exchange(mesh, MESH, LOOPBACK)
}

/// The node's address that a loopback address stands for.
pub fn mesh_address(loopback: Ipv4Addr) -> Option<Ipv4Addr> {
    exchange(loopback, LOOPBACK, MESH)
}

fn exchange(address: Ipv4Addr, from: Ipv4Addr, to: Ipv4Addr) -> Option<Ipv4Addr> {
    let bits = address.to_bits();
    (bits & !NUMBER == from.to_bits()).then(|| Ipv4Addr::from_bits(to.to_bits() | bits & NUMBER))
}

/// A node as flows are carried to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who it is: what it proves when it is connected to.
    pub identity: IdentityKey,
    /// The key that the gate knows it by.
    pub key: PublicKey,
    /// What it is called, without the domain.
    pub name: String,
    /// Its address in the mesh.
    pub v4: Ipv4Addr,
    /// Its address in the mesh.
    pub v6: Ipv6Addr,
    /// Whether it has a device. Two nodes that have one reach each other by packets, so there are no doors between them.
    pub mode: Mode,
    /// Where its carrier listens on UDP; the first few are tried.
    pub endpoints: Vec<SocketAddr>,
    /// The key by which relays know it as a carrier of flows. Versions that are only reached directly have none.
    pub underlay: Option<PublicKey>,
}

impl Member {
    /// Where its services listen on its machine: its address in the mesh if it has a device, else the loopback address that stands for it.
    pub fn home(&self) -> Ipv4Addr {
        match self.mode {
            Mode::Tun => self.v4,
            Mode::Userspace => loopback(self.v4).unwrap_or(Ipv4Addr::LOCALHOST),
        }
    }
}

/// Whether something may be sent there: who is hostile does not make this machine talk to itself, or to many.
fn usable(at: &SocketAddr) -> bool {
    let ip = at.ip().to_canonical();
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()) && at.port() != 0
}

/// Everybody in the mesh, and this node. It does not change: another takes its place.
#[derive(Debug, Clone)]
pub struct Directory {
    pub(super) own: Arc<Member>,
    /// The machine that programs of this node are on, if it is one behind the device's namespace.
    machine: Option<Ipv4Addr>,
    domain: String,
    identities: HashMap<IdentityKey, Arc<Member>>,
    addresses: HashMap<IpAddr, Arc<Member>>,
    names: HashMap<String, Vec<Arc<Member>>>,
    pub(super) services: BTreeMap<String, Arc<ServiceEntry>>,
}

impl Directory {
    /// A directory of `own`, which is this node, the `others`, and services by name with the identities of their nodes. A service's
    /// name is not a node's, whatever a node calls itself.
    pub fn new(
        domain: &str,
        own: Member,
        others: impl IntoIterator<Item = Member>,
        services: impl IntoIterator<Item = (String, Vec<IdentityKey>)>,
    ) -> Self {
        let own = Arc::new(own);
        let mut directory = Self {
            own: Arc::clone(&own),
            machine: None,
            domain: domain.to_ascii_lowercase(),
            identities: HashMap::new(),
            addresses: HashMap::new(),
            names: HashMap::new(),
            services: BTreeMap::new(),
        };
        // This node last, so that nobody stands in its place.
        for member in others.into_iter().map(Arc::new).chain([own]) {
            for address in [IpAddr::V4(member.v4), IpAddr::V6(member.v6)] {
                directory.addresses.insert(address, Arc::clone(&member));
            }
            directory
                .names
                .insert(member.name.to_ascii_lowercase(), vec![Arc::clone(&member)]);
            directory.identities.insert(member.identity, member);
        }
        for (name, nodes) in services {
            let nodes: Vec<_> = nodes
                .iter()
                .filter_map(|node| directory.identities.get(node).cloned())
                .collect();
            let name = name.to_ascii_lowercase();
            directory.names.insert(format!("all.{name}"), nodes.clone());
            directory.names.insert(name, nodes);
        }
        directory
    }

    /// What a view and its policy say, for the node with this voucher, key and mode.
    pub fn of(view: &View, policy: &Policy, me: &Voucher, key: PublicKey, mode: Mode) -> Self {
        let member = |known: &Known| Member {
            identity: known.voucher.identity,
            key: known.record.wireguard,
            name: known.voucher.name.clone(),
            v4: known.voucher.v4,
            v6: known.voucher.v6,
            mode: known.record.mode,
            endpoints: {
                let all = known.record.flows.iter().copied();
                all.filter(usable).collect()
            },
            underlay: known.record.underlay,
        };
        // What others know of this node's mode may be old.
        let own = match view.node(&me.identity).map(member) {
            Some(known) => Member { mode, ..known },
            None => Member {
                identity: me.identity,
                key,
                name: me.name.clone(),
                v4: me.v4,
                v6: me.v6,
                mode,
                endpoints: Vec::new(),
                underlay: None,
            },
        };
        let nodes: BTreeMap<_, _> = view
            .nodes()
            .map(|known| &known.voucher)
            .chain([me])
            .map(|voucher| (voucher.identity, voucher))
            .collect();
        let services = policy.services().iter().map(|(name, service)| {
            let serving = nodes.values().filter(|voucher| {
                let subject = Subject {
                    name: Some(&voucher.name),
                    tags: &voucher.tags,
                };
                policy.serves(service, subject)
            });
            let serving: Vec<_> = serving.map(|voucher| voucher.identity).collect();
            let ready = |node: &&IdentityKey| {
                let known = view.node(node);
                known.is_none_or(|known| !known.record.unready.contains(name))
            };
            let ready: Vec<_> = serving.iter().filter(ready).copied().collect();
            // Better those who say that they are not ready than nobody.
            (name.clone(), if ready.is_empty() { serving } else { ready })
        });
        let others = view
            .nodes()
            .filter(|known| known.voucher.identity != me.identity)
            .map(member);
        let mut directory = Self::new(policy.domain(), own, others, services);
        directory.offer(view, policy, me);
        directory
    }

    /// The same, for a node whose programs are on a machine of their own: this is where the namespace of the device finds it.
    #[must_use]
    pub fn with_machine(self, machine: Option<Ipv4Addr>) -> Self {
        Self { machine, ..self }
    }

    /// The machine that programs of this node are on, if it is not the one that the node is on.
    pub(super) fn machine(&self) -> Option<Ipv4Addr> {
        self.machine
    }

    /// Where a door stands that is for this address of the mesh.
    pub(super) fn door(&self, mesh: Ipv4Addr) -> Option<Ipv4Addr> {
        match self.machine {
            Some(_) => Some(mesh),
            None => loopback(mesh),
        }
    }

    /// This node.
    pub fn own(&self) -> &Arc<Member> {
        &self.own
    }

    /// Who has this identity.
    pub fn by_identity(&self, identity: &IdentityKey) -> Option<&Arc<Member>> {
        self.identities.get(identity)
    }

    /// All of them, this one too, in no order.
    pub fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.identities.values()
    }

    /// Whom a name or an address means: a node's name or a service's, short or full; an address in the mesh, or the loopback address that
    /// stands for it. Nobody, if it is none of the mesh's.
    pub fn find(&self, host: &str) -> &[Arc<Member>] {
        if let Ok(address) = host.parse::<IpAddr>() {
            let address = match address.to_canonical() {
                IpAddr::V4(address) => IpAddr::V4(mesh_address(address).unwrap_or(address)),
                address => address,
            };
            return self
                .addresses
                .get(&address)
                .map(std::slice::from_ref)
                .unwrap_or_default();
        }
        let found = self.names.get(&self.short(host));
        found.map(Vec::as_slice).unwrap_or_default()
    }

    /// A name without the domain, in lower case.
    pub(super) fn short(&self, host: &str) -> String {
        let host = host.to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        let short = host
            .strip_suffix(&self.domain)
            .and_then(|rest| rest.strip_suffix('.'));
        short.unwrap_or(host).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::member;
    use super::*;

    #[test]
    fn each_node_has_a_loopback_address_of_its_own() {
        let at = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        assert_eq!(loopback(at("100.64.0.7")), Some(at("127.64.0.7")));
        assert_eq!(loopback(at("100.127.255.254")), Some(at("127.127.255.254")));
        assert_eq!(mesh_address(at("127.65.2.3")), Some(at("100.65.2.3")));
        for other in ["100.128.0.1", "10.0.0.1", "127.0.0.1"] {
            assert_eq!(loopback(at(other)), None);
            assert_eq!(mesh_address(at(other)), None);
        }
    }

    #[test]
    fn a_view_and_its_policy_are_a_directory() {
        use crate::coordination::{Book, BookOptions, Identity, JoinRequest, NewToken, NodeRecord};
        let mut book = Book::new(Identity::from_seed([1; 32]), BookOptions::default(), 0);
        let mut vouchers = Vec::new();
        for (seed, tag) in [(2_u8, "web"), (3, "store"), (4, "store")] {
            let allows = NewToken {
                tags: [tag.to_owned()].into(),
                ..NewToken::default()
            };
            let plan = book.new_token(allows, "http://a", 0).unwrap();
            book.apply(&plan.writes);
            let identity = Identity::from_seed([seed; 32]);
            let request = JoinRequest {
                token: plan.answer.id.clone(),
                admission: plan.answer.admission(identity.public()),
                record: identity.sign(&NodeRecord {
                    identity: identity.public(),
                    epoch: 1,
                    name: format!("n{seed}"),
                    wireguard: crate::PrivateKey::from_bytes([seed; 32]).public(),
                    renewal: None,
                    endpoints: vec![([192, 0, 2, seed], 51820).into()],
                    flows: vec![([192, 0, 2, seed], 51821).into()],
                    underlay: None,
                    relay: None,
                    plain: false,
                    mode: Mode::Tun,
                    unready: (seed == 4).then(|| "db".to_owned()).into_iter().collect(),
                }),
            };
            let plan = book.join(&request, 0).unwrap();
            book.apply(&plan.writes);
            vouchers.push(plan.answer.voucher.verify(&book.key()).unwrap());
        }
        let text = "[services.db]\nnodes = [\"tag:store\"]\nports = [\"tcp/5432\"]\n";
        let policy = Policy::parse(text).unwrap();
        let names = |directory: &Directory, host: &str| {
            let found = directory
                .find(host)
                .iter()
                .map(|member| member.name.clone());
            found.collect::<Vec<_>>().join(" ")
        };
        // Before the first frame a node knows what was vouched for when it joined.
        let mut view = View::new(book.key());
        let key = crate::PrivateKey::from_bytes([3; 32]).public();
        let alone = Directory::of(&view, &policy, &vouchers[1], key, Mode::Userspace);
        assert_eq!(alone.members().count(), 1);
        assert_eq!(
            (names(&alone, "db"), alone.own().key),
            ("n3".to_owned(), key)
        );
        let frame = serde_json::from_str(&book.frame(0).unwrap()).unwrap();
        view.apply(&frame).unwrap();
        let directory = Directory::of(&view, &policy, &vouchers[0], key, Mode::Userspace);
        assert_eq!(directory.own().name, "n2");
        // The other one says that it is not ready.
        assert_eq!(names(&directory, "db.mesh.internal"), "n3");
        let serving = directory.find("db");
        let place: SocketAddr = ([192, 0, 2, 3], 51821).into();
        assert_eq!((serving[0].key, &serving[0].endpoints), (key, &vec![place]));
    }

    #[test]
    fn a_door_is_where_policy_lets_this_node_use_all_that_a_service_has() {
        use crate::coordination::{Frame, Identity, NodeRecord};
        let coordinator = Identity::from_seed([1; 32]);
        let key = |seed: u8| crate::PrivateKey::from_bytes([seed; 32]).public();
        let mut vouchers = Vec::new();
        let mut changes = Vec::new();
        for (seed, tag) in [(2_u8, "web"), (3, "db"), (4, "db")] {
            let identity = Identity::from_seed([seed; 32]);
            let voucher = Voucher {
                identity: identity.public(),
                number: seed.into(),
                name: format!("n{seed}"),
                v4: [100, 64, 0, seed].into(),
                v6: [0xfd00, 0, 0, 0, 0, 0, 0, seed.into()].into(),
                tags: [tag.to_owned()].into(),
                ephemeral: false,
            };
            let record = NodeRecord {
                identity: identity.public(),
                epoch: 1,
                name: String::new(),
                wireguard: key(seed),
                endpoints: Vec::new(),
                flows: Vec::new(),
                underlay: None,
                relay: None,
                plain: false,
                renewal: None,
                mode: Mode::Tun,
                unready: Default::default(),
            };
            changes.push(crate::coordination::Change::Node(Box::new(
                crate::coordination::Entry {
                    voucher: coordinator.sign(&voucher),
                    record: identity.sign(&record),
                },
            )));
            vouchers.push(voucher);
        }
        let services = ["db", "far", "mixed", "none", "udp"];
        let numbers = (1_u8..).map(|number| Ipv4Addr::new(100, 127, 0, number));
        let addresses = services.map(str::to_owned).into_iter().zip(numbers);
        let frame = Frame {
            from: None,
            to: 1,
            changes,
            services: Some(addresses.collect()),
        };
        let mut view = View::new(coordinator.public());
        view.apply(&coordinator.sign(&frame)).unwrap();
        let policy = r#"
            services.db = { nodes = ["tag:db"], ports = ["tcp/5432", "tcp/5433", "icmp"] }
            services.far = { nodes = ["tag:db"], ports = ["tcp/8000-8100"] }
            services.mixed = { nodes = ["tag:db"], ports = ["tcp/80", "tcp/8000-8100"] }
            services.none = { nodes = ["node:n9"], ports = ["tcp/80"] }
            services.udp = { nodes = ["tag:db"], ports = ["udp/53"] }
            allow = [{ from = ["tag:web"], to = ["*"], ports = ["*"] }, { from = ["tag:db"], to = ["tag:db"], ports = ["tcp/5432"] }]
        "#;
        let policy = Policy::parse(policy).unwrap();
        fn subject(voucher: &Voucher) -> Subject<'_> {
            Subject {
                name: Some(&voucher.name),
                tags: &voucher.tags,
            }
        }
        let doors = |at: usize, mode: Mode| {
            let me = &vouchers[at];
            let others = vouchers
                .iter()
                .filter(|other| other.identity != me.identity);
            let others = others.map(|other| {
                let seed = other.v4.octets()[3];
                (key(seed), subject(other), other.v4, other.v6)
            });
            let filter = policy.compile(subject(me), (me.v4, me.v6), others);
            let directory = Directory::of(&view, &policy, me, key(me.v4.octets()[3]), mode);
            let named = directory.doors_of_services(&filter).into_iter();
            let named: Vec<_> = named.map(|(name, at)| format!("{name} {at}")).collect();
            let all = directory.service_doors(&filter, |_| true);
            let all: Vec<_> = all
                .iter()
                .map(|(service, _, protocol, port)| format!("{} {protocol}/{port}", service.name))
                .collect();
            (named.join(", "), all.join(", "))
        };
        // Who may use everything: but for ranges, which are not behind a door.
        let (named, all) = doors(0, Mode::Tun);
        assert_eq!(named, "db 100.127.0.1, udp 100.127.0.5");
        assert_eq!(all, "db tcp/5432, db tcp/5433, mixed tcp/80, udp udp/53");
        // Without a device at other addresses.
        let (named, all) = doors(0, Mode::Userspace);
        assert_eq!(named, "db 127.127.0.1, udp 127.127.0.5");
        assert_eq!(all, "db tcp/5432, db tcp/5433, mixed tcp/80, udp udp/53");
        // Whom a rule lets use a part has a door to that part, to its own too.
        let (named, all) = doors(1, Mode::Tun);
        assert_eq!((&*named, &*all), ("", "db tcp/5432"));
    }

    #[test]
    fn names_and_addresses_lead_to_members() {
        // The third calls itself as a service is called, and the fourth has this node's addresses.
        let mut members: Vec<_> = [(1, "one"), (2, "two"), (3, "db"), (4, "four")]
            .map(|(number, name)| Member {
                name: name.to_owned(),
                ..member(number)
            })
            .into();
        members[3].v4 = members[0].v4;
        members[3].v6 = members[0].v6;
        let services = vec![(
            "db".to_owned(),
            vec![
                members[1].identity,
                IdentityKey::from_bytes([9; 32]),
                members[0].identity,
            ],
        )];
        let own = members.remove(0);
        let directory = Directory::new("Mesh.Internal", own.clone(), members.clone(), services);
        let check = |host: &str, expected: &[&str]| {
            let found = directory.find(host).iter().map(|member| &*member.name);
            assert_eq!(found.collect::<Vec<_>>(), expected, "{host}");
        };
        check("one", &["one"]);
        check("TWO.mesh.internal.", &["two"]);
        check("db.mesh.internal", &["two", "one"]);
        check("all.db.mesh.internal", &["two", "one"]);
        check("127.64.0.2", &["two"]);
        check("100.64.0.1", &["one"]);
        check("::ffff:100.64.0.2", &["two"]);
        check(&members[0].v6.to_string(), &["two"]);
        for nobody in [
            "",
            ".",
            "three",
            "two.mesh",
            "all.two",
            "twomesh.internal",
            "mesh.internal",
            "127.0.0.1",
            "::1",
            "100.64.0.9",
            "example.org",
        ] {
            check(nobody, &[]);
        }
        assert_eq!(**directory.own(), own);
    }
}
