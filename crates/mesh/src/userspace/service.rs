//! Services as their consumers see them: which there are, at which nodes, and at which of their ports this node may use them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::directory::{Directory, Member, loopback, mesh_address};
use crate::coordination::{Mode, View, Voucher};
use crate::policy::{Direction, Filter, Flow, Policy, Subject, Verdict};

/// Doors to services at once; those of services beyond are not there, and their names lead to their nodes.
const MOST_SERVICE_DOORS: usize = 512;

/// A protocol that a service may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its number in packets and policies.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// The protocol that is called so.
    pub fn called(name: &str) -> Option<Self> {
        match name {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            _ => None,
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One of the nodes of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Who it is.
    pub member: Arc<Member>,
    /// Whether it says that it is ready, or says nothing.
    pub ready: bool,
}

/// A service as its consumers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// What it is called, without the domain.
    pub name: String,
    /// Its address in the mesh, once the coordinator gave one.
    pub address: Option<Ipv4Addr>,
    /// Its single ports.
    pub ports: Vec<(Protocol, u16)>,
    /// Whether it has ranges of ports too, which are reached at its nodes only.
    pub ranges: bool,
    /// The ports at which policy lets this node use the service of this node itself.
    pub own: BTreeSet<(Protocol, u16)>,
    /// Its nodes.
    pub endpoints: Vec<Endpoint>,
}

impl ServiceEntry {
    /// Whether this is one of its single ports of TCP.
    pub(super) fn has_port(&self, protocol: Protocol, port: u16) -> bool {
        self.ports.contains(&(protocol, port))
    }
}

impl Directory {
    /// Knows the services of a policy from now on, for the node with this voucher.
    pub(super) fn offer(&mut self, view: &View, policy: &Policy, me: &Voucher) {
        let me = view.node(&me.identity).map_or(me, |known| &known.voucher);
        let vouchers: BTreeMap<_, _> = view
            .nodes()
            .map(|known| &known.voucher)
            .chain([me])
            .map(|voucher| (voucher.identity, voucher))
            .collect();
        let me = Subject {
            name: Some(&me.name),
            tags: &me.tags,
        };
        let allowed_here = policy.ports(me, me);
        let entries = policy.services().iter().map(|(name, service)| {
            let singles = service.ports.iter().filter_map(|ports| ports.single());
            let ports: BTreeSet<_> = singles
                .filter_map(|(protocol, port)| Some((Protocol::called(protocol)?, port)))
                .collect();
            let is_allowed = |(protocol, port): &&(Protocol, u16)| {
                let mut rules = allowed_here.iter();
                rules.any(|rule| rule.ports.contains(protocol.number(), *port))
            };
            let serving = vouchers.values().filter(|voucher| {
                let subject = Subject {
                    name: Some(&voucher.name),
                    tags: &voucher.tags,
                };
                policy.serves(service, subject)
            });
            let endpoints = serving.filter_map(|voucher| {
                let member = Arc::clone(self.by_identity(&voucher.identity)?);
                let known = view.node(&voucher.identity);
                let ready = known.is_none_or(|known| !known.record.unready.contains(name));
                Some(Endpoint { member, ready })
            });
            ServiceEntry {
                name: name.clone(),
                address: view.services().get(name).copied(),
                own: ports.iter().filter(is_allowed).copied().collect(),
                ports: ports.into_iter().collect(),
                ranges: service
                    .ports
                    .iter()
                    .any(|ports| ports.has_ports() && ports.single().is_none()),
                endpoints: endpoints.collect(),
            }
        });
        let entries: Vec<_> = entries.collect();
        self.set_services(entries);
    }

    /// These are the services.
    pub fn set_services(&mut self, services: impl IntoIterator<Item = ServiceEntry>) {
        let services = services.into_iter().map(Arc::new);
        self.services = services
            .map(|service| (service.name.to_ascii_lowercase(), service))
            .collect();
    }

    /// All services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.values()
    }

    /// The service that a name or an address means: its name, short or full; its address in the mesh, or the loopback address that stands for it.
    pub fn service(&self, host: &str) -> Option<&Arc<ServiceEntry>> {
        if let Ok(IpAddr::V4(address)) = host.parse::<IpAddr>().map(|at| at.to_canonical()) {
            let address = mesh_address(address).unwrap_or(address);
            let mut services = self.services.values();
            return services.find(|service| service.address == Some(address));
        }
        self.services.get(&self.short(host))
    }

    /// The endpoints of a service that this node may use at a port.
    pub(super) fn usable<'a>(
        &'a self,
        service: &'a ServiceEntry,
        protocol: Protocol,
        port: u16,
        filter: &Filter,
    ) -> impl Iterator<Item = &'a Endpoint> {
        service.endpoints.iter().filter(move |endpoint| {
            let member = &endpoint.member;
            if member.identity == self.own.identity {
                return service.own.contains(&(protocol, port));
            }
            let flow = Flow {
                protocol: protocol.number(),
                source: self.own.v4.into(),
                source_port: 0,
                destination: member.v4.into(),
                destination_port: port,
            };
            filter.allows(&member.key, Direction::Outbound, &flow) == Verdict::Admit
        })
    }

    /// Which doors to services there are at this node: at which of their ports policy lets it use an endpoint, so long as `carries` says that their
    /// protocol is carried. In the order of names, and not too many.
    pub(super) fn service_doors(
        &self,
        filter: &Filter,
        carries: impl Fn(Protocol) -> bool,
    ) -> Vec<(Arc<ServiceEntry>, Ipv4Addr, Protocol, u16)> {
        let all = self.services.values().filter_map(|service| {
            let address = service.address?;
            Some((service, address))
        });
        let doors = all.flat_map(|(service, address)| {
            let carried = service
                .ports
                .iter()
                .filter(|(protocol, _)| carries(*protocol));
            let used = carried.filter(|(protocol, port)| {
                let mut usable = self.usable(service, *protocol, *port, filter);
                usable.next().is_some()
            });
            used.map(move |(protocol, port)| (Arc::clone(service), address, *protocol, *port))
        });
        doors.take(MOST_SERVICE_DOORS).collect()
    }

    /// The services whose names lead to their own address at this node, which programs find them at: those of which all that there is has a door.
    pub fn doors_of_services(&self, filter: &Filter) -> BTreeMap<String, Ipv4Addr> {
        let doors = self.service_doors(filter, |_| true);
        let mut counts: BTreeMap<String, (Ipv4Addr, usize)> = BTreeMap::new();
        for (service, address, _, _) in doors {
            let (_, count) = counts.entry(service.name.clone()).or_insert((address, 0));
            *count += 1;
        }
        let whole = counts.into_iter().filter_map(|(name, (address, count))| {
            let service = self.services.get(&name.to_ascii_lowercase())?;
            let address = match self.own.mode {
                Mode::Tun => address,
                Mode::Userspace => loopback(address)?,
            };
            (!service.ranges && count == service.ports.len()).then_some((name, address))
        });
        whole.collect()
    }
}
