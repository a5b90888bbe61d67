//! Doors of services for UDP, on machines with a device: what a program sends to a service's address goes to one of its nodes, through the tunnel.
//!
//! What a program sends from one of its ports is one flow, with a socket of its own towards the endpoint, whose answers go back to that port. It stays with its endpoint until that one says
//! that nobody listens (ICMP), which is evidence, or nothing was sent for long. That nothing comes back says nothing: there are services that never answer, so a node that
//! is dead is noticed only by services that have a port of TCP too. Datagrams that do not fit into one packet are lost on the way here, as they are pieces.
//!
//! Absent: UDP to nodes without a device. Where this machine has none, doors of `datagrams` lead to services.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::carrier::Core;
use super::directory::Member;
use super::service::Protocol;
use crate::namespace::udp_in;
use crate::services::{Failure, Redirects};

/// Flows of one door at once, and datagrams of each that wait.
const FLOWS: usize = 1024;
const WAITING: usize = 64;
/// How long a flow may be silent.
const IDLE: Duration = Duration::from_secs(120);
/// The longest datagram; what is longer does not fit into a packet of the device.
const LONGEST: usize = 2048;
/// When a door is tried again that could not be opened.
const AGAIN: Duration = Duration::from_secs(2);

const UDP: u8 = Protocol::Udp.number();

/// A service's address and port.
type Front = (Ipv4Addr, u16);

/// A socket at any port of this node's own address, where its programs are.
fn bind(core: &Core, own: Ipv4Addr) -> std::io::Result<UdpSocket> {
    udp_in(core.programs.as_deref(), (own, 0).into())
}

/// Opens and closes doors until this node stops.
pub(super) async fn keep(core: Arc<Core>, redirects: Arc<Redirects>) {
    let mut changes = core.changes();
    let mut open: BTreeMap<Front, (String, CancellationToken)> = BTreeMap::new();
    loop {
        let stuck = arrange(&core, &redirects, &mut open).await;
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

/// The doors that there should be, and the services that they lead to.
fn wanted(core: &Core) -> BTreeMap<Front, String> {
    let (directory, filter) = (core.directory(), core.filter());
    let doors = directory.service_doors(&filter, |protocol| protocol == Protocol::Udp);
    doors
        .into_iter()
        .map(|(service, address, _, port)| ((address, port), service.name.clone()))
        .collect()
}

/// Makes the doors what they should be; whether some could not be opened.
async fn arrange(
    core: &Arc<Core>,
    redirects: &Arc<Redirects>,
    open: &mut BTreeMap<Front, (String, CancellationToken)>,
) -> bool {
    let wanted = wanted(core);
    open.retain(|front, (service, close)| {
        let stay = wanted.get(front) == Some(service);
        if !stay {
            close.cancel();
            redirects.close((UDP, front.0, front.1));
        }
        stay
    });
    let own = core.directory().own().v4;
    let mut stuck = false;
    for (front, service) in wanted {
        if open.contains_key(&front) {
            continue;
        }
        let bound = bind(core, own);
        let bound = bound.and_then(|socket| Ok((socket.local_addr()?.port(), socket)));
        let Ok((port, socket)) = bound else {
            stuck = true;
            continue;
        };
        let close = CancellationToken::new();
        redirects.open((UDP, front.0, front.1), port);
        let door = Door {
            core: Arc::clone(core),
            socket: Arc::new(socket),
            front,
            service: service.clone(),
            close: close.clone(),
        };
        core.spawn(door.attend());
        open.insert(front, (service, close));
    }
    stuck
}

/// A door.
#[derive(Debug, Clone)]
struct Door {
    core: Arc<Core>,
    socket: Arc<UdpSocket>,
    front: Front,
    service: String,
    close: CancellationToken,
}

impl Door {
    /// Takes what programs send, until the door is closed.
    async fn attend(self) {
        let mut flows: HashMap<u16, mpsc::Sender<Vec<u8>>> = HashMap::new();
        let mut buffer = vec![0; LONGEST];
        loop {
            let received = tokio::select! {
                received = self.socket.recv_from(&mut buffer) => received,
                () = self.close.cancelled() => return,
            };
            let Ok((length, from)) = received else {
                // That a program is gone is told by the next call; it is not about this socket.
                tokio::task::yield_now().await;
                continue;
            };
            if from.ip() != self.front.0 {
                // It did not come over the service's address.
                continue;
            }
            let bytes = buffer[..length].to_vec();
            let bytes = match flows.get(&from.port()).map(|flow| flow.try_send(bytes)) {
                None => buffer[..length].to_vec(),
                Some(Err(mpsc::error::TrySendError::Closed(bytes))) => bytes,
                // What does not fit is lost, as on any network.
                Some(_) => continue,
            };
            if flows.len() >= FLOWS {
                flows.retain(|_, flow| !flow.is_closed());
            }
            if flows.len() >= FLOWS {
                continue;
            }
            let (flow, datagrams) = mpsc::channel(WAITING);
            flows.insert(from.port(), flow);
            let carrying = self.clone().carry(from, bytes, datagrams);
            self.core.spawn(carrying);
        }
    }

    /// Carries one flow to its end.
    async fn carry(self, from: SocketAddr, first: Vec<u8>, mut datagrams: mpsc::Receiver<Vec<u8>>) {
        let directory = self.core.directory();
        let Some(service) = directory.service(&self.service) else {
            return;
        };
        let port = self.front.1;
        let consumer = &self.core.consumer;
        let mut last = first;
        for member in consumer.for_datagrams(&self.core, service, port) {
            let place = (member.identity, Protocol::Udp, port);
            match self
                .carry_to(&member, from, &mut last, &mut datagrams)
                .await
            {
                Ended::Over => return,
                Ended::Refused => consumer.failed(place, Failure::Closed),
            }
        }
    }

    async fn carry_to(
        &self,
        member: &Member,
        from: SocketAddr,
        last: &mut Vec<u8>,
        datagrams: &mut mpsc::Receiver<Vec<u8>>,
    ) -> Ended {
        let mut changes = self.core.changes();
        let own = self.core.directory().own().v4;
        let Ok(socket) = bind(&self.core, own) else {
            return Ended::Over;
        };
        if socket.connect((member.v4, self.front.1)).await.is_err() || !self.allowed(member) {
            return Ended::Over;
        }
        let mut answer = vec![0; LONGEST];
        let mut sent = socket.send(last).await;
        loop {
            if sent.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
                return Ended::Refused;
            }
            sent = Ok(0);
            tokio::select! {
                next = datagrams.recv() => match next {
                    Some(bytes) => {
                        *last = bytes;
                        sent = socket.send(last).await;
                    }
                    None => return Ended::Over,
                },
                received = socket.recv(&mut answer) => match received {
                    Ok(length) => {
                        let place = (member.identity, Protocol::Udp, self.front.1);
                        self.core.consumer.succeeded(place, None);
                        // A program that is gone needs no answer.
                        let _ = self.socket.send_to(&answer[..length], from).await;
                    }
                    Err(error) => sent = Err(error),
                },
                changed = changes.changed() => if changed.is_err() || !self.allowed(member) {
                    return Ended::Over;
                },
                () = self.close.cancelled() => return Ended::Over,
                () = tokio::time::sleep(IDLE) => return Ended::Over,
            }
        }
    }

    /// Whether policy lets this node still send there; what it does not would be held back anyway.
    fn allowed(&self, member: &Member) -> bool {
        let (directory, filter) = (self.core.directory(), self.core.filter());
        let service = directory.service(&self.service);
        service.is_some_and(|service| {
            let mut usable = directory.usable(service, Protocol::Udp, self.front.1, &filter);
            usable.any(|endpoint| endpoint.member.identity == member.identity)
        })
    }
}

/// How a flow to one endpoint ended.
enum Ended {
    /// For good.
    Over,
    /// Nobody listens there: another may.
    Refused,
}
