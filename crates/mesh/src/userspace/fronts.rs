//! What makes the doors of a node that has a device stand where programs look for them: at addresses of the mesh.
//!
//! | programs are | the address of a service | that of a node without a device |
//! | --- | --- | --- |
//! | in the device's namespace, and may listen everywhere | stays nobody's: [`Redirects`] | the loopback address that stands for it |
//! | on a machine behind that namespace, which has nothing else in it | becomes the device's: [`Addresses`] | becomes the device's |
//!
//! The machine has a loopback of its own, so names lead it to addresses of the mesh alone.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Error;
use crate::link::Links;
use crate::namespace::Namespace;
use crate::services::Redirects;

/// How addresses lead to doors on a machine with a device.
#[derive(Debug, Clone)]
pub enum Fronts {
    /// What is sent to a service's address comes back out of the device, to a port of this node's own address.
    Redirects(Arc<Redirects>),
    /// Doors stand at the addresses themselves.
    Addresses(Arc<Addresses>),
}

/// Addresses that a device has for as long as there are doors at them.
#[derive(Debug)]
pub struct Addresses {
    device: u32,
    namespace: Option<Arc<Namespace>>,
    doors: Mutex<BTreeMap<Ipv4Addr, usize>>,
}

impl Addresses {
    /// None yet, on the device with this number in a namespace, or in that of the calling thread.
    pub fn new(device: u32, namespace: Option<Arc<Namespace>>) -> Self {
        Self {
            device,
            namespace,
            doors: Mutex::default(),
        }
    }

    /// Opens a door at an address, which the device has then.
    ///
    /// # Errors
    /// The device cannot have it, or what `open` says; then the device has only what other doors need.
    pub(super) fn open<T>(
        &self,
        address: Ipv4Addr,
        open: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let others = doors.get(&address).copied().unwrap_or_default();
        if others == 0 {
            self.change(|links| links.add_address(self.device, address.into(), 32))?;
        }
        let opened = open();
        if opened.is_ok() {
            doors.insert(address, others + 1);
        } else if others == 0 {
            self.take_away(address);
        }
        opened
    }

    /// A door is closed.
    pub(super) fn close(&self, address: Ipv4Addr) {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        match doors.remove(&address) {
            None => {}
            Some(1) => self.take_away(address),
            Some(more) => {
                doors.insert(address, more - 1);
            }
        }
    }

    fn take_away(&self, address: Ipv4Addr) {
        let taken = self.change(|links| links.remove_address(self.device, address.into(), 32));
        if let Err(error) = taken {
            tracing::debug!(%address, "the device has an address no more: {error}");
        }
    }

    fn change(&self, action: impl FnOnce(&Links) -> Result<(), Error> + Send) -> io::Result<()> {
        let change = || Links::open().and_then(|links| action(&links));
        let changed = match &self.namespace {
            Some(namespace) => namespace.within(change),
            None => change(),
        };
        changed.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::tun::{Tun, TunOptions};

    #[test]
    fn the_device_has_an_address_while_there_are_doors_at_it() {
        let namespace = Arc::new(Namespace::unnamed().unwrap());
        let tun = Tun::create(&TunOptions::default(), Some(&namespace)).unwrap();
        let addresses = Addresses::new(tun.index(), Some(Arc::clone(&namespace)));
        let shown = || {
            let show = || {
                let shown = Command::new("ip").args(["-4", "-o", "address"]).output();
                shown.map_err(|error| Error::io("run ip", error))
            };
            String::from_utf8(namespace.within(show).unwrap().stdout).unwrap()
        };
        let [one, other] = [1, 2].map(|last| Ipv4Addr::new(100, 127, 0, last));
        addresses.open(one, || Ok(())).unwrap();
        addresses.open(one, || Ok(())).unwrap();
        let refused = || Err::<(), _>(io::Error::from(io::ErrorKind::AddrInUse));
        for address in [one, other] {
            let error = addresses.open(address, refused).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        }
        assert!(shown().contains("100.127.0.1/32") && !shown().contains("100.127.0.2"));
        addresses.close(one);
        assert!(shown().contains("100.127.0.1/32"));
        addresses.close(one);
        addresses.close(one);
        assert!(!shown().contains("100.127"), "{}", shown());
    }
}
