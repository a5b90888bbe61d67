//! The network slot that a sandbox sits in.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// A network of a sandbox's own: a network namespace that has one end of a veth pair, an address
/// and a default route, and whose other end and rules are on the host.
///
/// The namespace has no name in the file system: it lives as long as this handle or a process
/// inside it, so nothing is left when both are gone.
#[derive(Debug)]
pub struct NetworkSlot {
    /// Numbers names and addresses; unique among the node's live slots.
    pub number: u32,
    /// The network namespace, owned by the host's user namespace, so that root inside a sandbox
    /// cannot change its addresses, routes or rules.
    pub namespace: OwnedFd,
    /// The host's end of the veth pair.
    pub host_interface: String,
    /// The sandbox's address.
    pub address: Ipv4Addr,
    /// The host's address on the pair, the sandbox's default route.
    pub gateway: Ipv4Addr,
}

impl AsFd for NetworkSlot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}
