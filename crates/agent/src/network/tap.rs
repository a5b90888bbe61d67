//! What a microVM's slot has besides: a tap device behind which the machine sits, and the way there.
//!
//! The namespace is a router between the machine, whose address is the same in every slot, and the
//! pair of interfaces, whose address is the slot's ([`super::nat`]). So the host sees a machine as it
//! sees any other sandbox, and all its rules hold.

use super::{
    build::INNER,
    error::NetworkError,
    link::{self, End},
    namespace, nat,
    netlink::Socket,
};
use driver::slot::machine;
use rustix::fs::{Mode, OFlags};
use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
};

// include/uapi/linux/if_tun.h
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
const TUNSETOWNER: libc::Ioctl = 0x4004_54cc;

/// For slots of microVMs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineSlots {
    /// The user besides root who may open the first slot's tap device; the second slot's belongs to
    /// the user after, and so on. None if only root may.
    pub first_owner: Option<u32>,
}

impl MachineSlots {
    fn owner_of(self, slot: u32) -> Option<u32> {
        self.first_owner?.checked_add(slot)
    }
}

/// Sets up the calling thread's namespace, which is that of a slot with this number and address.
pub(super) fn set_up(
    machines: MachineSlots,
    inside: &mut Socket,
    (slot, address): (u32, Ipv4Addr),
    mtu: u32,
) -> Result<(), NetworkError> {
    // Only what comes from where it says passes: a machine cannot claim to be its router.
    namespace::set("net/ipv4/conf/all/rp_filter", "1")?;
    namespace::set("net/ipv4/conf/all/send_redirects", "0")?;
    namespace::set("net/ipv4/conf/default/send_redirects", "0")?;
    drop(make_tap(machines.owner_of(slot))?);
    let tap = End {
        name: machine::TAP,
        hardware: machine::TAP_MAC,
        address: machine::GATEWAY,
    };
    let behind = End {
        name: machine::TAP,
        hardware: machine::MAC,
        address: machine::ADDRESS,
    };
    link::raise_tap(inside, &tap, &behind, machine::PREFIX, mtu)?;
    nat::translate(&mut Socket::netfilter(0)?, INNER, address, machine::ADDRESS)?;
    // Last, so that nothing passes untranslated.
    namespace::set("net/ipv4/ip_forward", "1")
}

/// Makes the tap device, which stays when the handle is closed.
fn make_tap(owner: Option<u32>) -> Result<OwnedFd, NetworkError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let tap = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
        .map_err(|source| NetworkError::system("opening /dev/net/tun", source))?;
    // `struct ifreq`: a name of 16 bytes, flags, and what is not used.
    let mut request = [0u8; 40];
    request[..machine::TAP.len()].copy_from_slice(machine::TAP.as_bytes());
    let kind = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    request[16..18].copy_from_slice(&kind.to_ne_bytes());
    let control = |what: libc::Ioctl, argument: libc::c_ulong| {
        // SAFETY: the first takes a pointer to an `ifreq`, which outlives the call; the others take
        // a number.
        #[allow(unsafe_code)]
        let outcome = unsafe { libc::ioctl(tap.as_raw_fd(), what, argument) };
        match outcome {
            -1 => Err(NetworkError::system(
                "making a tap device",
                io::Error::last_os_error(),
            )),
            _ => Ok(()),
        }
    };
    control(TUNSETIFF, request.as_mut_ptr() as libc::c_ulong)?;
    if let Some(owner) = owner {
        control(TUNSETOWNER, libc::c_ulong::from(owner))?;
    }
    control(TUNSETPERSIST, 1)?;
    Ok(tap)
}
