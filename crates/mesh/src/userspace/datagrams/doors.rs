//! Doors to other nodes' services over UDP: sockets at the loopback addresses that stand for them, as [`crate::userspace::doors`] has for TCP.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::{Clients, Near, wire};
use crate::coordination::{IdentityKey, Mode};
use crate::namespace::udp_in;
use crate::userspace::carrier::{Core, UDP};
use crate::userspace::directory::loopback;
use crate::userspace::doors::{MOST, Place, keep_arranged, wanted};
use crate::userspace::fronts::Fronts;
use crate::userspace::service::Protocol;

/// Programs at one door.
const CLIENTS: usize = 256;

/// Where a door leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::userspace) enum Callee {
    /// To a port of a node.
    Node(IdentityKey, u16),
    /// To a port of whoever is called so: a node, or one of a service's.
    Name(String, u16),
}

#[derive(Debug)]
struct Door {
    callee: Callee,
    close: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<Place, Door>,
    stuck: BTreeMap<Place, String>,
}

/// All doors for UDP.
#[derive(Debug, Default)]
pub(in crate::userspace) struct Doors {
    state: Mutex<State>,
    more: Vec<u16>,
    fronts: Option<Fronts>,
}

/// The doors that there should be, to nodes and, without a device, to services.
fn all_wanted(core: &Core, more: &[u16]) -> BTreeMap<Place, Callee> {
    let (directory, filter) = (core.directory(), core.filter());
    let services = match directory.own().mode {
        Mode::Tun => Vec::new(),
        Mode::Userspace => directory.service_doors(&filter, |protocol| protocol == Protocol::Udp),
    };
    let services = services
        .into_iter()
        .filter_map(|(service, address, _, port)| {
            let callee = Callee::Name(service.name.clone(), port);
            Some(((loopback(address)?, port), callee))
        });
    let nodes = wanted(&directory, &filter, more, UDP).into_iter();
    let nodes = nodes.map(|(place, peer)| (place, Callee::Node(peer, place.1)));
    services.chain(nodes).collect()
}

impl Doors {
    pub(in crate::userspace) fn new(more: Vec<u16>, fronts: Option<Fronts>) -> Self {
        Self {
            state: Mutex::default(),
            more,
            fronts,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_at(&self, core: &Core, place: Place) -> io::Result<UdpSocket> {
        let open = || udp_in(core.programs.as_deref(), place.into());
        match &self.fronts {
            Some(Fronts::Addresses(addresses)) => addresses.open(place.0, open),
            _ => open(),
        }
    }

    fn closed(&self, place: Place) {
        if let Some(Fronts::Addresses(addresses)) = &self.fronts {
            addresses.close(place.0);
        }
    }

    /// Opens and closes doors until this node stops.
    pub(in crate::userspace) async fn keep(self: Arc<Self>, core: Arc<Core>) {
        keep_arranged(&core, || self.arrange(&core)).await;
    }

    /// Makes the doors what they should be; whether some could not be opened.
    fn arrange(&self, core: &Arc<Core>) -> bool {
        let wanted = all_wanted(core, &self.more);
        let mut state = self.state();
        state.open.retain(|place, door| {
            let stay = wanted.get(place) == Some(&door.callee);
            if !stay {
                door.close.cancel();
                self.closed(*place);
            }
            stay
        });
        let before = std::mem::take(&mut state.stuck);
        for (place, callee) in wanted {
            if state.open.contains_key(&place) {
                continue;
            }
            let socket = match state.open.len() {
                ..MOST => self.open_at(core, place).map_err(|error| error.to_string()),
                _ => Err("there are too many".to_owned()),
            };
            match socket {
                Ok(socket) => {
                    let close = CancellationToken::new();
                    let attended = attend(Arc::clone(core), socket, callee.clone(), close.clone());
                    core.spawn(attended);
                    state.open.insert(place, Door { callee, close });
                }
                Err(why) => {
                    if !before.contains_key(&place) {
                        tracing::warn!("cannot take datagrams at {}:{}: {why}", place.0, place.1);
                    }
                    if state.stuck.len() < MOST {
                        state.stuck.insert(place, why);
                    }
                }
            }
        }
        !state.stuck.is_empty()
    }

    /// Where doors are open.
    pub(in crate::userspace) fn open(&self) -> Vec<SocketAddr> {
        let state = self.state();
        state.open.keys().map(|place| (*place).into()).collect()
    }

    /// Where they should be and cannot, and why.
    pub(in crate::userspace) fn stuck(&self) -> Vec<(SocketAddr, String)> {
        let state = self.state();
        let stuck = state.stuck.iter();
        let stuck = stuck.map(|(place, why)| ((*place).into(), format!("udp: {why}")));
        stuck.collect()
    }
}

/// Leads programs that send to a socket to a service, each in a flow of its own, until it is closed. Those that run end when policy ends them, or with
/// their silence.
pub(in crate::userspace) async fn attend(
    core: Arc<Core>,
    socket: UdpSocket,
    callee: Callee,
    close: CancellationToken,
) {
    let socket = Arc::new(socket);
    let mut clients = Clients::new(CLIENTS);
    let mut buffer = vec![0; wire::LONGEST];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = close.cancelled() => return,
        };
        // An answer that nobody took any more shows as an error of a later call.
        let Ok((length, at)) = received else { continue };
        let datagram = buffer.get(..length).unwrap_or_default().to_vec();
        if let Some(sent) = clients.take(at, datagram, Instant::now()) {
            let near = Near::Program {
                sent,
                socket: Arc::clone(&socket),
                at,
                head: Vec::new(),
            };
            core.spawn(lead(Arc::clone(&core), near, callee.clone()));
        }
    }
}

async fn lead(core: Arc<Core>, near: Near, callee: Callee) {
    let opened = match &callee {
        Callee::Node(peer, port) => match core.directory().by_identity(peer) {
            Some(member) => core.open_datagrams(member, false, *port).await,
            None => return,
        },
        Callee::Name(name, port) => core.reach_datagrams(name, *port).await,
    };
    match opened {
        Ok((far, rule)) => core.run_datagrams(near, far, rule).await,
        Err(refusal) => {
            tracing::debug!(?callee, "no flow of datagrams: {refusal}");
            // Whoever goes on sending does not have it asked again with each datagram.
            let _near = near;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
}
