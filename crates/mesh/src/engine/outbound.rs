//! From the device to the peers.

use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};

use super::peer::Peer;
use super::statistics::one;
use super::{Shared, gone, read};
use crate::batch::Batch;
use crate::crypto::padded;
use crate::offload::segment::segment;
use crate::offload::{VIRTIO_HEADER, VirtioHeader};
use crate::packet::addresses;
use crate::tun::LARGEST;

/// Packets that are read before what was read is sent.
const READS: usize = 32;
/// Bytes that are sealed before they are sent: one large packet of the kernel's. More would make the
/// first wait for the last.
const ENOUGH: usize = 48 * 1024;

pub(super) struct Outbound {
    shared: Arc<Shared>,
    buffer: Vec<u8>,
    plain: Batch,
    sealed: Batch,
    /// Whom `plain` is for.
    target: Option<Arc<Peer>>,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            buffer: vec![0; VIRTIO_HEADER + LARGEST],
            plain: Batch::with_capacity(2 * LARGEST),
            sealed: Batch::with_capacity(2 * LARGEST),
            target: None,
        }
    }

    pub(super) fn run(mut self) {
        while !self.shared.stopping() {
            let waited = poll(
                &mut [
                    PollFd::new(&self.shared.tun, PollFlags::IN),
                    PollFd::new(&self.shared.wake, PollFlags::IN),
                ],
                None,
            );
            if let Err(error) = waited
                && error != rustix::io::Errno::INTR
            {
                tracing::error!(%error, "cannot wait for packets");
                return;
            }
            for _ in 0..READS {
                match self.shared.tun.read(&mut self.buffer) {
                    Ok(Some(length)) => self.take(length),
                    Ok(None) => break,
                    Err(error) if gone(&error) => {
                        tracing::error!(device = self.shared.tun.name(), "the TUN device is gone");
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "cannot read from the TUN device");
                        break;
                    }
                }
            }
            self.flush();
        }
    }

    /// Cuts the packet that was read, and adds it to what goes to its peer.
    fn take(&mut self, length: usize) {
        let header_length = self.shared.tun.header();
        let (header, packet) = match self.buffer.get_mut(..length) {
            Some(read) if read.len() >= header_length => read.split_at_mut(header_length),
            _ => return one(&self.shared.counters.not_ip),
        };
        let header = if header.is_empty() {
            Some(VirtioHeader::PLAIN)
        } else {
            VirtioHeader::read(header)
        };
        let (Some(header), Some(addresses)) = (header, addresses(packet)) else {
            return one(&self.shared.counters.not_ip);
        };
        let peer = read(&self.shared.table)
            .by_address(addresses.destination)
            .cloned();
        let Some(peer) = peer else {
            return one(&self.shared.counters.no_route);
        };
        if self
            .target
            .as_ref()
            .is_some_and(|target| !Arc::ptr_eq(target, &peer))
        {
            Self::send(
                &self.shared,
                &mut self.target,
                &mut self.plain,
                &mut self.sealed,
            );
        }
        self.target = Some(peer);
        let mtu = usize::from(self.shared.tun.mtu());
        if segment(&header, packet, &mut self.plain, |length| {
            padded(length, mtu)
        })
        .is_err()
        {
            one(&self.shared.counters.not_ip);
        }
        if self.plain.size() >= ENOUGH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        Self::send(
            &self.shared,
            &mut self.target,
            &mut self.plain,
            &mut self.sealed,
        );
    }

    /// Seals what is there and sends it.
    fn send(
        shared: &Shared,
        target: &mut Option<Arc<Peer>>,
        plain: &mut Batch,
        sealed: &mut Batch,
    ) {
        let Some(peer) = target.take() else { return };
        if plain.is_empty() {
            return;
        }
        let endpoint = {
            let mut state = peer.lock();
            let endpoint = state.endpoint;
            if endpoint.is_some() {
                let result = state.tunnel.seal(plain, sealed);
                peer.count_sealed(&result);
            }
            endpoint
        };
        match endpoint {
            Some(endpoint) => peer.count_not_sent(shared.wire.send(endpoint, sealed).failed),
            None => peer.count_not_sent(plain.len() as u64),
        }
        plain.clear();
        sealed.clear();
    }
}
