//! The underlay as QUIC's socket.

use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::{Towards, Underlay, canonical, lock, meant, read, stands_for};
use crate::batch::Batch;
use crate::relay::{Link, data, marked};
use crate::ways::Way;

/// Whether a datagram of QUIC's is one of those that begin a connection (RFC 9000, section 17.2).
fn begins(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0)
}

/// A real address as QUIC calls it, which knows this socket as one of IPv6.
fn as_v6(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        v6 => v6,
    }
}

/// Cuts what was sent or received as one into datagrams.
fn cut(contents: &[u8], length: usize) -> impl Iterator<Item = &[u8]> {
    contents.chunks(length.max(1))
}

impl Underlay {
    /// Sends a transmission to a real address.
    fn send_direct(&self, transmit: &Transmit<'_>, to: SocketAddr) -> io::Result<()> {
        let Some(destination) = self.native(to) else {
            return Ok(());
        };
        self.socket.try_send(&Transmit {
            destination,
            // What it came to is of another way, maybe.
            src_ip: None,
            ..transmit.clone()
        })
    }

    fn send_one(&self, transmit: &Transmit<'_>, way: &Way) -> io::Result<()> {
        match way {
            Way::Direct(address) => self.send_direct(transmit, *address),
            Way::Relay(..) => {
                let length = transmit.segment_size.unwrap_or(transmit.contents.len());
                let mut batch = Batch::with_capacity(transmit.contents.len());
                cut(transmit.contents, length).for_each(|datagram| batch.push(datagram));
                // What a relay or its connection has no room for is lost, as on any network.
                way.send(self, &batch, &mut Batch::default());
                Ok(())
            }
        }
    }

    /// Looks at what was received from one address: renames it, or keeps it from QUIC.
    fn sort(&self, contents: &[u8], meta: &mut RecvMeta) {
        let source = canonical(meta.addr);
        let contents = contents.get(..meta.len).unwrap_or_default();
        if let Some(link) = self.relays.at(source) {
            for datagram in cut(contents, meta.stride) {
                self.take_frame(&link, datagram);
            }
            meta.len = 0;
            return;
        }
        let from = {
            let places = read(&self.places);
            let place = places.get(&source);
            place.map(|place| {
                lock(&place.peer.state).ways.lives(Instant::now());
                stands_for(place.peer.short)
            })
        };
        if cut(contents, meta.stride).any(marked) {
            let way = Way::Direct(source);
            for datagram in cut(contents, meta.stride) {
                if !self.take_signal(&way, datagram) && !marked(datagram) {
                    self.wait(from.unwrap_or_else(|| as_v6(source)), datagram);
                }
            }
            meta.len = 0;
        } else if let Some(from) = from {
            meta.addr = from;
            // Answers go by what is proven, not from where this came to.
            meta.dst_ip = None;
        } else {
            meta.addr = as_v6(source);
        }
    }

    /// Takes what came from a relay's address.
    fn take_frame(&self, link: &Arc<Link>, datagram: &[u8]) {
        match data(datagram) {
            Some((session, from, packet)) if session == link.udp_session() => {
                self.take_relayed(&Way::Relay(Arc::clone(link), from), from, packet);
            }
            Some(_) => {}
            None => {
                if link.take(Instant::now(), self, datagram) {
                    self.relays.note_change();
                    self.wake.notify_one();
                }
            }
        }
    }

    /// Hands out what waits; how many.
    fn hand_out(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        let mut waiting = lock(&self.waiting);
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Some((addr, datagram)) = waiting.pop_front() else {
                break;
            };
            // Longer ones were not sent by QUIC.
            let len = match buffer.get_mut(..datagram.len()) {
                Some(place) => {
                    place.copy_from_slice(&datagram);
                    datagram.len()
                }
                None => 0,
            };
            *meta = RecvMeta {
                addr,
                len,
                stride: len,
                ..RecvMeta::default()
            };
            count += 1;
        }
        count
    }
}

impl AsyncUdpSocket for Underlay {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(to) = meant(transmit.destination) else {
            return self.send_direct(transmit, transmit.destination);
        };
        let towards = self
            .peer(to)
            .and_then(|peer| self.towards(&peer, begins(transmit.contents)));
        match towards {
            Some(Towards::One(way)) => self.send_one(transmit, &way),
            Some(Towards::All(ways)) => {
                for way in &ways {
                    // If the socket has no room, QUIC says it again in a while.
                    let _ = self.send_one(transmit, way);
                }
                Ok(())
            }
            // Nobody, or nowhere: lost, as on any network.
            None => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let count = self.hand_out(buffers, metas);
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            if let Poll::Ready(received) = self.socket.poll_recv(context, buffers, metas) {
                let count = received?;
                for (buffer, meta) in buffers.iter().zip(metas).take(count) {
                    self.sort(buffer, meta);
                }
                return Poll::Ready(Ok(count));
            }
            for (link, frame) in ready!(self.relays.poll_arrivals(context)) {
                if let Some((_, from, packet)) = data(&frame) {
                    self.take_relayed(&Way::Relay(link, from), from, packet);
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        // Addresses that stand for nodes are of IPv6, whatever the socket is of.
        let port = self.socket.local_addr()?.port();
        Ok((Ipv6Addr::UNSPECIFIED, port).into())
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
