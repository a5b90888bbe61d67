//! Doors: listeners at the loopback addresses that stand for other nodes and for services.
//!
//! There is one for each port of each node that a rule names and lets this node use, and one for each single port of each service of which this node may use an endpoint.
//! On a machine with a device, [`Fronts`] make them stand where programs look for them. Doors open and close with directory and gate.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use super::carrier::{Core, TCP};
use super::consumer;
use super::directory::{Directory, Member, loopback};
use super::flow::Local;
use super::fronts::Fronts;
use super::service::Protocol;
use crate::coordination::{IdentityKey, Mode};
use crate::namespace::{Namespace, socket_in};
use crate::policy::{Direction, Filter, Flow, Verdict};

/// Doors to nodes at once; those to services have a bound of their own.
pub(super) const MOST: usize = 1024;
/// When a door is tried again that could not be opened.
const AGAIN: Duration = Duration::from_secs(2);
/// Callers that wait for their turn at a door.
const QUEUE: u32 = 128;

pub(super) type Place = (Ipv4Addr, u16);

/// Where a door leads.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Leads {
    /// To a node.
    Node(IdentityKey),
    /// To one of the nodes of the service that is called so.
    Service(String),
}

#[derive(Debug)]
struct Door {
    leads: Leads,
    /// Closes it.
    close: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<Place, Door>,
    stuck: BTreeMap<Place, String>,
}

/// All doors.
#[derive(Debug, Default)]
pub(super) struct Doors {
    state: Mutex<State>,
    /// Ports that are opened too where a rule lets this node use them, though only as part of a range.
    more: Vec<u16>,
    fronts: Option<Fronts>,
    /// Where the programs are that use them, if not in this process's network namespace.
    programs: Option<Arc<Namespace>>,
}

/// The doors to services that there should be, by the services' own addresses.
fn wanted_services(directory: &Directory, filter: &Filter) -> BTreeMap<Place, Leads> {
    let doors = directory.service_doors(filter, |protocol| protocol == Protocol::Tcp);
    doors
        .into_iter()
        .map(|(service, address, _, port)| ((address, port), Leads::Service(service.name.clone())))
        .collect()
}

/// Which doors for a protocol there should be, and to whom they lead.
pub(super) fn wanted(
    directory: &Directory,
    filter: &Filter,
    more: &[u16],
    protocol: u8,
) -> BTreeMap<Place, IdentityKey> {
    let name = if protocol == TCP { "tcp" } else { "udp" };
    let own = directory.own();
    let mut wanted = BTreeMap::new();
    let others = directory.members();
    let other = |member: &&Arc<Member>| member.identity != own.identity;
    // Two that have a device have a tunnel.
    let flows = |member: &&Arc<Member>| !(own.mode.is_tun() && member.mode.is_tun());
    for member in others.filter(other).filter(flows) {
        let Some(address) = directory.door(member.v4) else {
            continue;
        };
        let Some(rules) = filter.peer(&member.key) else {
            continue;
        };
        let named = rules.outbound.iter().filter_map(|rule| rule.ports.single());
        let ports: BTreeSet<_> = named
            .filter(|(protocol, _)| *protocol == name)
            .map(|(_, port)| port)
            .chain(more.iter().copied())
            .collect();
        for port in ports {
            let flow = Flow {
                protocol,
                source: own.v4.into(),
                source_port: 0,
                destination: member.v4.into(),
                destination_port: port,
            };
            if filter.allows(&member.key, Direction::Outbound, &flow) == Verdict::Admit {
                wanted.insert((address, port), member.identity);
            }
        }
    }
    wanted
}

/// Has doors arranged whenever something changes, and again soon while `arrange` says that some could not be opened, until this node stops.
pub(super) async fn keep_arranged(core: &Core, mut arrange: impl FnMut() -> bool) {
    let mut changes = core.changes();
    loop {
        let stuck = arrange();
        let again = async {
            if stuck {
                tokio::time::sleep(AGAIN).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

fn listen(place: Place, programs: Option<&Namespace>) -> std::io::Result<TcpListener> {
    let socket = socket_in(programs, TcpSocket::new_v4)?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddrV4::new(place.0, place.1).into())?;
    socket.listen(QUEUE)
}

impl Doors {
    pub(super) fn new(
        more: Vec<u16>,
        fronts: Option<Fronts>,
        programs: Option<Arc<Namespace>>,
    ) -> Self {
        Self {
            state: Mutex::default(),
            more,
            fronts,
            programs,
        }
    }

    /// Opens a door.
    fn open_at(&self, core: &Core, place: Place, leads: &Leads) -> std::io::Result<TcpListener> {
        let programs = self.programs.as_deref();
        let (address, port) = place;
        match (leads, &self.fronts) {
            (_, Some(Fronts::Addresses(addresses))) => {
                addresses.open(address, || listen(place, programs))
            }
            (Leads::Node(_), _) => listen(place, programs),
            (Leads::Service(_), None) => {
                listen((loopback(address).unwrap_or(address), port), programs)
            }
            // At any port of this node's own address, to which what is sent to the service leads.
            (Leads::Service(_), Some(Fronts::Redirects(redirects))) => {
                let listener = listen((core.directory().own().v4, 0), programs)?;
                redirects.open((TCP, address, port), listener.local_addr()?.port());
                Ok(listener)
            }
        }
    }

    /// What leads to a door that is closed leads nowhere.
    fn closed(&self, place: Place, leads: &Leads) {
        match (leads, &self.fronts) {
            (_, Some(Fronts::Addresses(addresses))) => addresses.close(place.0),
            (Leads::Service(_), Some(Fronts::Redirects(redirects))) => {
                redirects.close((TCP, place.0, place.1));
            }
            _ => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens and closes doors until this node stops.
    pub(super) async fn keep(self: Arc<Self>, core: Arc<Core>) {
        keep_arranged(&core, || self.arrange(&core)).await;
    }

    /// Makes the doors what they should be; whether some could not be opened.
    fn arrange(&self, core: &Arc<Core>) -> bool {
        let (directory, filter) = (core.directory(), core.filter());
        let nodes = wanted(&directory, &filter, &self.more, TCP).into_iter();
        let nodes: Vec<_> = nodes
            .map(|(place, peer)| (place, Leads::Node(peer)))
            .collect();
        // Where there is a device and nothing that leads to them, there are none.
        let services = match (directory.own().mode, &self.fronts) {
            (Mode::Tun, None) => BTreeMap::new(),
            _ => wanted_services(&directory, &filter),
        };
        let many = services.len();
        let wanted: BTreeMap<_, _> = services.into_iter().chain(nodes).collect();
        let mut state = self.state();
        state.open.retain(|place, door| {
            let stay = wanted.get(place) == Some(&door.leads);
            if !stay {
                door.close.cancel();
                self.closed(*place, &door.leads);
            }
            stay
        });
        let before = std::mem::take(&mut state.stuck);
        for (place, leads) in wanted {
            if state.open.contains_key(&place) {
                continue;
            }
            let is_node = matches!(leads, Leads::Node(_));
            let listener = if is_node && state.open.len() >= MOST + many {
                Err("there are too many".to_owned())
            } else {
                let opened = self.open_at(core, place, &leads);
                opened.map_err(|error| error.to_string())
            };
            match listener {
                Ok(listener) => {
                    let close = CancellationToken::new();
                    core.spawn(attend(
                        Arc::clone(core),
                        listener,
                        place,
                        leads.clone(),
                        close.clone(),
                    ));
                    state.open.insert(place, Door { leads, close });
                }
                Err(why) => {
                    if !before.contains_key(&place) {
                        tracing::warn!("cannot listen at {}:{}: {why}", place.0, place.1);
                    }
                    // Those beyond the bound are not listed one by one.
                    if state.stuck.len() < MOST {
                        state.stuck.insert(place, why);
                    }
                }
            }
        }
        !state.stuck.is_empty()
    }

    /// Where doors to nodes are open.
    pub(super) fn open(&self) -> Vec<SocketAddr> {
        let state = self.state();
        let nodes = state.open.iter();
        nodes
            .filter(|(_, door)| matches!(door.leads, Leads::Node(_)))
            .map(|(place, _)| (*place).into())
            .collect()
    }

    /// Where doors to services are open, by the services' own addresses.
    pub(super) fn open_to_services(&self) -> Vec<SocketAddr> {
        let state = self.state();
        let services = state.open.iter();
        services
            .filter(|(_, door)| matches!(door.leads, Leads::Service(_)))
            .map(|(place, _)| (*place).into())
            .collect()
    }

    /// Where they should be and cannot, and why.
    pub(super) fn stuck(&self) -> Vec<(SocketAddr, String)> {
        let state = self.state();
        let stuck = state.stuck.iter();
        stuck
            .map(|(place, why)| {
                let address = match self.fronts {
                    Some(_) => place.0,
                    // Where programs of this machine would find it.
                    None => loopback(place.0).unwrap_or(place.0),
                };
                ((address, place.1).into(), why.clone())
            })
            .collect()
    }
}

/// Lets callers through one door.
async fn attend(
    core: Arc<Core>,
    listener: TcpListener,
    place: Place,
    leads: Leads,
    close: CancellationToken,
) {
    let at = listener.local_addr().map(|at| at.ip());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = close.cancelled() => return,
        };
        let Ok((stream, caller)) = accepted else {
            // No descriptors are left, perhaps; then some time must pass.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let near = Local::new(stream);
        // From a machine of their own, as the address that it has; elsewhere by way of the service's, unless that is a loopback address.
        let expected = match core.directory().machine() {
            Some(machine) => Some(machine),
            None => Some(place.0).filter(|_| at.as_ref().is_ok_and(|at| !at.is_loopback())),
        };
        if expected.is_some_and(|expected| caller.ip() != expected) {
            // Whoever it is, it is no program that meant the service.
            continue;
        }
        let task = Arc::clone(&core);
        let leads = leads.clone();
        core.spawn(async move {
            let directory = task.directory();
            let opened = match &leads {
                Leads::Node(peer) => match directory.by_identity(peer) {
                    Some(member) => task.open(member, false, place.1).await,
                    None => return,
                },
                Leads::Service(name) => match directory.service(name) {
                    Some(service) => consumer::reach(&task, service, place.1).await,
                    None => return,
                },
            };
            match opened {
                Ok((far, rule)) => task.run(near, &[], far, rule).await,
                // The caller sees a connection that is reset.
                Err(refusal) => {
                    tracing::debug!(?leads, port = place.1, "no flow: {refusal}");
                }
            }
        });
    }
}
