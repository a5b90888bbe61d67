//! What `atoll mesh services` shows.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::Node;
use super::status::microseconds;
use crate::coordination::Mode;
use crate::services::{Class, Failure, Reason, State};
use crate::userspace::{EndpointView, Protocol, ServiceEntry, loopback};

/// A service as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSummary {
    /// What it is called, without the domain.
    pub name: String,
    /// The address where programs of this machine find it, if the coordinator gave it one.
    pub address: Option<Ipv4Addr>,
    /// Whether its name leads to that address here, and not to its nodes.
    pub named: bool,
    /// Its single ports.
    pub ports: Vec<ServicePort>,
    /// Whether it has ranges of ports too, which are reached at its nodes only.
    pub ranges: bool,
}

/// One of its ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The port.
    pub port: u16,
    /// Whether there is a door: whether the service's address is of use at this port here.
    pub door: bool,
    /// How long ago a program of this machine used it or asked for it, in seconds, if it was lately: then endpoints are probed.
    pub used_seconds: Option<u64>,
    /// Whether most endpoints look ill, so that all are used.
    pub panic: bool,
    /// Its endpoints that policy lets this node use, in the order in which they would be tried now.
    pub endpoints: Vec<ServiceEndpoint>,
}

/// A node that gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoint {
    /// What it is called.
    pub node: String,
    /// Whether it says that it is ready, or says nothing.
    pub ready: bool,
    /// How far it is.
    pub class: Class,
    /// The shortest round trip of the last ones, in microseconds.
    pub round_trip_us: Option<u64>,
    /// What it looks like from here.
    pub health: State,
    /// Connections and probes that failed in a row.
    pub failures: u32,
    /// How the last that failed did.
    pub failure: Option<Failure>,
    /// How many seconds it is still put aside.
    pub aside_seconds: Option<u64>,
    /// Why it is in this place.
    pub reason: Reason,
}

impl From<EndpointView> for ServiceEndpoint {
    fn from(view: EndpointView) -> Self {
        Self {
            node: view.member.name.clone(),
            ready: view.ready,
            class: view.class,
            round_trip_us: view.round_trip.map(microseconds),
            health: view.state,
            failures: view.failures.0,
            failure: view.failures.1,
            aside_seconds: view.aside.map(|time| time.as_secs()),
            reason: view.reason,
        }
    }
}

impl Node {
    /// The services that the policy has, as this node sees them.
    pub fn services(&self) -> Vec<ServiceSummary> {
        let live = self.live();
        let directory = &live.current.directory;
        let doors = self.carriers.flows_status().service_doors;
        let named = directory.doors_of_services(&live.current.filter);
        let mode = self.said.mode;
        let services = directory.services().map(|service| ServiceSummary {
            name: service.name.clone(),
            address: service.address.and_then(|address| match mode {
                Mode::Tun => Some(address),
                Mode::Userspace => loopback(address),
            }),
            named: named.contains_key(&service.name),
            ports: service
                .ports
                .iter()
                .map(|(protocol, port)| self.service_port(service, *protocol, *port, &doors))
                .collect(),
            ranges: service.ranges,
        });
        services.collect()
    }

    fn service_port(
        &self,
        service: &ServiceEntry,
        protocol: Protocol,
        port: u16,
        doors: &[SocketAddr],
    ) -> ServicePort {
        let view = self.carriers.flows().service(service, protocol, port);
        let at = service.address.map(|at| SocketAddr::from((at, port)));
        let used = !view.endpoints.is_empty();
        ServicePort {
            protocol: protocol.to_string(),
            port,
            // Those for UDP are there whenever they should be.
            door: match protocol {
                Protocol::Tcp => at.is_some_and(|at| doors.contains(&at)),
                Protocol::Udp => at.is_some() && self.said.mode.is_tun() && used,
            },
            used_seconds: view.used.map(|time| time.as_secs()),
            panic: view.panic,
            endpoints: view.endpoints.into_iter().map(Into::into).collect(),
        }
    }
}
