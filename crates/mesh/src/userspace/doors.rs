//! Doors to other nodes' services: listeners at the loopback addresses that stand for them.
//!
//! There is one for each port of each node that a rule names and lets this node use. Doors open and close with directory and gate.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use super::carrier::{Core, TCP};
use super::directory::{Directory, Member, loopback};
use super::flow::Local;
use crate::coordination::IdentityKey;
use crate::policy::{Direction, Filter, Flow, Verdict};

/// Doors at once.
pub(super) const MOST: usize = 1024;
/// When a door is tried again that could not be opened.
pub(super) const AGAIN: Duration = Duration::from_secs(2);
/// Callers that wait for their turn at a door.
const QUEUE: u32 = 128;

pub(super) type Place = (Ipv4Addr, u16);

#[derive(Debug)]
struct Door {
    peer: IdentityKey,
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
        let Some(address) = loopback(member.v4) else {
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

fn listen(place: Place) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddrV4::new(place.0, place.1).into())?;
    socket.listen(QUEUE)
}

impl Doors {
    pub(super) fn new(more: Vec<u16>) -> Self {
        Self {
            state: Mutex::default(),
            more,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens and closes doors until this node stops.
    pub(super) async fn keep(self: Arc<Self>, core: Arc<Core>) {
        let mut changes = core.changes();
        loop {
            let stuck = self.arrange(&core);
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

    /// Makes the doors what they should be; whether some could not be opened.
    fn arrange(&self, core: &Arc<Core>) -> bool {
        let wanted = wanted(&core.directory(), &core.filter(), &self.more, TCP);
        let mut state = self.state();
        state.open.retain(|place, door| {
            let stay = wanted.get(place) == Some(&door.peer);
            if !stay {
                door.close.cancel();
            }
            stay
        });
        let before = std::mem::take(&mut state.stuck);
        for (place, peer) in wanted {
            if state.open.contains_key(&place) {
                continue;
            }
            let listener = match listen(place) {
                _ if state.open.len() >= MOST => Err("there are too many".to_owned()),
                Ok(listener) => Ok(listener),
                Err(error) => Err(error.to_string()),
            };
            match listener {
                Ok(listener) => {
                    let close = CancellationToken::new();
                    core.spawn(attend(
                        Arc::clone(core),
                        listener,
                        place,
                        peer,
                        close.clone(),
                    ));
                    state.open.insert(place, Door { peer, close });
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

    /// Where doors are open.
    pub(super) fn open(&self) -> Vec<SocketAddr> {
        let state = self.state();
        state.open.keys().map(|place| (*place).into()).collect()
    }

    /// Where they should be and cannot, and why.
    pub(super) fn stuck(&self) -> Vec<(SocketAddr, String)> {
        let state = self.state();
        let stuck = state.stuck.iter();
        stuck
            .map(|(place, why)| ((*place).into(), why.clone()))
            .collect()
    }
}

/// Lets callers through one door.
async fn attend(
    core: Arc<Core>,
    listener: TcpListener,
    place: Place,
    peer: IdentityKey,
    close: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = close.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            // No descriptors are left, perhaps; then some time must pass.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let near = Local::new(stream);
        let task = Arc::clone(&core);
        core.spawn(async move {
            let directory = task.directory();
            let Some(member) = directory.by_identity(&peer) else {
                return;
            };
            match task.open(member, false, place.1).await {
                Ok((far, rule)) => task.run(near, &[], far, rule).await,
                // The caller sees a connection that is reset.
                Err(refusal) => {
                    tracing::debug!(node = %member.name, port = place.1, "no flow: {refusal}");
                }
            }
        });
    }
}
