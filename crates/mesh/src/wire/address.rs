//! Socket addresses as the kernel has them.

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Room for an address of either family.
#[derive(Clone, Copy)]
pub(super) struct Name {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl Name {
    /// Room for an address that is to be received.
    pub(super) fn empty() -> Self {
        // SAFETY: `sockaddr_storage` is plain numbers, for which zero is a value.
        let storage = unsafe { MaybeUninit::zeroed().assume_init() };
        Self {
            storage,
            length: size_of::<libc::sockaddr_storage>() as libc::socklen_t,
        }
    }

    /// The address for the kernel.
    pub(super) fn of(address: SocketAddr) -> Self {
        let mut name = Self::empty();
        let place = (&raw mut name.storage).cast::<u8>();
        match address {
            SocketAddr::V4(address) => {
                let value = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(address.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is made to hold, and be aligned for, any family's address.
                unsafe { place.cast::<libc::sockaddr_in>().write(value) };
                name.length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(address) => {
                let value = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: address.ip().octets(),
                    },
                    sin6_scope_id: address.scope_id(),
                };
                // SAFETY: as above.
                unsafe { place.cast::<libc::sockaddr_in6>().write(value) };
                name.length = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        name
    }

    /// The address that the kernel wrote.
    pub(super) fn read(&self) -> Option<SocketAddr> {
        let place = &raw const self.storage;
        match libc::c_int::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the storage holds this, and zeroed storage is valid in any case.
                let value = unsafe { place.cast::<libc::sockaddr_in>().read() };
                let ip = Ipv4Addr::from(value.sin_addr.s_addr.to_ne_bytes());
                Some((ip, u16::from_be(value.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let value = unsafe { place.cast::<libc::sockaddr_in6>().read() };
                let ip = Ipv6Addr::from(value.sin6_addr.s6_addr);
                let port = u16::from_be(value.sin6_port);
                Some(SocketAddrV6::new(ip, port, 0, value.sin6_scope_id).into())
            }
            _ => None,
        }
    }

    pub(super) const fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(super) const fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        (&raw mut self.storage).cast()
    }

    pub(super) const fn length(&self) -> libc::socklen_t {
        self.length
    }
}
