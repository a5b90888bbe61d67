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
    /// A persistent tap device in the namespace, for a microVM; see [`machine`].
    pub tap: Option<String>,
}

impl AsFd for NetworkSlot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// What a microVM sees of its slot: the same in every slot, so that a memory snapshot can be
/// resumed in any.
///
/// The namespace translates: what comes in for the slot's address goes to [`machine::ADDRESS`],
/// and what the machine sends leaves with the slot's address.
pub mod machine {
    use std::net::Ipv4Addr;

    /// The tap device's name in the namespace.
    pub const TAP: &str = "tap0";
    /// The machine's address.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
    /// The tap's address, the machine's default route.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
    /// Length of the network's prefix.
    pub const PREFIX: u8 = 30;
    /// The machine's hardware address.
    pub const MAC: [u8; 6] = [0x02, 0xa7, 0x01, 0x1a, 0x00, 0x02];
    /// The tap's hardware address.
    pub const TAP_MAC: [u8; 6] = [0x02, 0xa7, 0x01, 0x1a, 0x00, 0x01];

    /// The host's numbers for the users that machines run as: 65,536 that
    /// <https://systemd.io/UIDS-GIDS/> lists as nobody's, above those of containers.
    const FIRST_USER: u32 = 0x7fff_0000;
    /// Users of one instance: as many as it may have slots, and a little more.
    const USERS: u32 = 4096;
    const _: () = assert!(crate::microvm::MOST_SLOTS < USERS);

    /// The host's number for the user of the first slot's machine; the second slot's follows, and so
    /// on. Instances on one host mostly get users of their own: there are sixteen ranges, and an
    /// instance's last digit chooses.
    pub fn first_user(instance: &str) -> u32 {
        let digit = instance.chars().last().and_then(|digit| digit.to_digit(16));
        FIRST_USER + digit.unwrap_or(0) * USERS
    }

    #[cfg(test)]
    #[test]
    fn users_are_in_the_range_that_is_nobodys_and_differ() {
        let mut last = FIRST_USER;
        for digit in 1..16u32 {
            let first = first_user(&format!("ab0{digit:x}"));
            assert_eq!(first, last + USERS);
            last = first;
        }
        assert_eq!(last + USERS - 1, 0x7fff_ffff);
        assert_eq!(first_user(""), FIRST_USER);
    }
}
