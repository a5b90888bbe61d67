//! Doors of services for UDP, on machines with a device: what a program sends to a service's address goes to one of its nodes, through the tunnel, or to one that has no device as
//! a flow of [`datagrams`](super::datagrams).
//!
//! What a program sends from one of its ports is one flow, with a socket of its own towards the endpoint, whose answers go back to that port. It stays with its endpoint until that one says
//! that nobody listens (ICMP), which is evidence, or nothing was sent for long. That nothing comes back says nothing: there are services that never answer, so a node that
//! is dead is noticed only by services that have a port of TCP too. Datagrams that do not fit into one packet are lost on the way here, as they are pieces.
//!
//! Absent: machines without a device, where doors of `datagrams` lead to services.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use super::carrier::Core;
use super::consumer::failure;
use super::datagrams::Near;
use super::directory::Member;
use super::doors::keep_arranged;
use super::fronts::Fronts;
use super::header::Refusal;
use super::service::Protocol;
use crate::namespace::udp_in;
use crate::services::Failure;

/// Flows of one door at once, and datagrams of each that wait.
const FLOWS: usize = 1024;
const WAITING: usize = 64;
/// How long a flow may be silent.
const IDLE: Duration = Duration::from_secs(120);
/// The longest datagram; what is longer does not fit into a packet of the device.
const LONGEST: usize = 2048;

const UDP: u8 = Protocol::Udp.number();

/// A service's address and port.
type Front = (Ipv4Addr, u16);

/// A socket at any port of this node's own address, where its programs are.
fn bind(core: &Core, own: Ipv4Addr) -> std::io::Result<UdpSocket> {
    udp_in(core.programs.as_deref(), (own, 0).into())
}

fn open_at(core: &Core, fronts: &Fronts, front: Front) -> std::io::Result<UdpSocket> {
    match fronts {
        Fronts::Redirects(redirects) => {
            let socket = bind(core, core.directory().own().v4)?;
            let port = socket.local_addr()?.port();
            redirects.open((UDP, front.0, front.1), port);
            Ok(socket)
        }
        Fronts::Addresses(addresses) => {
            addresses.open(front.0, || udp_in(core.programs.as_deref(), front.into()))
        }
    }
}

fn closed(fronts: &Fronts, front: Front) {
    match fronts {
        Fronts::Redirects(redirects) => redirects.close((UDP, front.0, front.1)),
        Fronts::Addresses(addresses) => addresses.close(front.0),
    }
}

/// Opens and closes doors until this node stops.
pub(super) async fn keep(core: Arc<Core>, fronts: Fronts) {
    let mut open: BTreeMap<Front, (String, CancellationToken)> = BTreeMap::new();
    keep_arranged(&core, || arrange(&core, &fronts, &mut open)).await;
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
fn arrange(
    core: &Arc<Core>,
    fronts: &Fronts,
    open: &mut BTreeMap<Front, (String, CancellationToken)>,
) -> bool {
    let wanted = wanted(core);
    open.retain(|front, (service, close)| {
        let stay = wanted.get(front) == Some(service);
        if !stay {
            close.cancel();
            closed(fronts, *front);
        }
        stay
    });
    let mut stuck = false;
    for (front, service) in wanted {
        if open.contains_key(&front) {
            continue;
        }
        let Ok(socket) = open_at(core, fronts, front) else {
            stuck = true;
            continue;
        };
        let close = CancellationToken::new();
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
            // Over the service's address, or from the machine that programs are on.
            let machine = self.core.directory().machine();
            if from.ip() != machine.unwrap_or(self.front.0) {
                continue;
            }
            let bytes = buffer[..length].to_vec();
            let bytes = match flows.get(&from.port()).map(|flow| flow.try_send(bytes)) {
                None => buffer[..length].to_vec(),
                Some(Err(TrySendError::Closed(bytes))) => bytes,
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
        let own = directory.own().identity;
        let mut last = first;
        for member in consumer.for_datagrams(&self.core, service, port) {
            let place = (member.identity, Protocol::Udp, port);
            let tunnel = member.mode.is_tun() || member.identity == own;
            let ended = match tunnel {
                true => self.tunnel(&member, from, &mut last, &mut datagrams).await,
                false => self.flow(&member, from, &last, &mut datagrams).await,
            };
            match ended {
                Ended::Over => return,
                Ended::Refused(why) => consumer.failed(place, why),
            }
        }
    }

    /// Carries it as a flow, to a node that no tunnel leads to.
    async fn flow(
        &self,
        member: &Arc<Member>,
        from: SocketAddr,
        last: &[u8],
        datagrams: &mut mpsc::Receiver<Vec<u8>>,
    ) -> Ended {
        let opened = self.core.open_datagrams(member, false, self.front.1).await;
        let (far, rule) = match opened {
            Ok(opened) => opened,
            // That there is no room here says nothing of the endpoint.
            Err(Refusal::Busy) => return Ended::Over,
            Err(refusal) => return Ended::Refused(failure(refusal)),
        };
        let (queue, sent) = mpsc::channel(WAITING);
        let near = Near::Program {
            sent,
            socket: Arc::clone(&self.socket),
            at: from,
            head: Vec::new(),
        };
        // There is room for the first; later ones are lost if there is none.
        let _ = queue.try_send(last.to_vec());
        let forward = async {
            while let Some(bytes) = datagrams.recv().await {
                if let Err(TrySendError::Closed(_)) = queue.try_send(bytes) {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.core.run_datagrams(near, far, rule) => {}
            () = forward => {}
            () = self.close.cancelled() => {}
        }
        Ended::Over
    }

    /// Carries it through the tunnel.
    async fn tunnel(
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
                return Ended::Refused(Failure::Closed);
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
    /// It is not taken there: another may take it.
    Refused(Failure),
}
