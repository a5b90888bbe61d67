//! How one slot is made: a namespace, a pair, addresses, a default route.

use super::{
    error::NetworkError,
    link::{self, End},
    namespace,
    netlink::Socket,
    range::Ipv4Range,
    tap::{self, MachineSlots},
};
use driver::{NetworkSlot, slot::machine};
use std::{os::fd::AsFd, time::Instant};

/// Name of the interface inside a sandbox.
pub(super) const INNER: &str = "eth0";

/// How many slots a range of [`PREFIX`] bits holds: two addresses for each.
pub(super) const SLOTS: u32 = 2048;
/// Bits of the range of an instance.
pub(super) const PREFIX: u8 = 20;

/// What the slots of an instance have in common.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Four hexadecimal digits.
    pub(super) instance: String,
    pub(super) range: Ipv4Range,
    /// Longest packet in bytes.
    pub(super) mtu: u32,
    /// The interface group that new slots are in.
    pub(super) group: u32,
    /// Set if slots are for microVMs.
    pub(super) machines: Option<MachineSlots>,
}

impl Plan {
    /// The name of the host's end of a slot.
    pub(super) fn interface(&self, number: u32) -> String {
        format!("at{}.{number}", self.instance)
    }

    /// The number of the slot whose host's end has this name.
    pub(super) fn number(&self, interface: &str) -> Option<u32> {
        let number = interface.strip_prefix("at")?.strip_prefix(&self.instance)?;
        let number: u32 = number.strip_prefix('.')?.parse().ok()?;
        (number < SLOTS && self.interface(number) == interface).then_some(number)
    }

    /// A slot with its addresses; its parts need not exist.
    pub(super) fn slot(
        &self,
        number: u32,
        handle: std::os::fd::OwnedFd,
    ) -> Result<NetworkSlot, NetworkError> {
        let address = |offset| {
            self.range
                .address(offset)
                .ok_or(NetworkError::NotClaimed(number))
        };
        Ok(NetworkSlot {
            number,
            namespace: handle,
            host_interface: self.interface(number),
            gateway: address(2 * number)?,
            tap: self.machines.map(|_| machine::TAP.to_owned()),
            address: address(2 * number + 1)?,
        })
    }

    /// Hardware address of an end: locally administered, so that it is nobody's else.
    fn hardware(&self, number: u32, side: u8) -> link::HardwareAddress {
        let [_, _, high, low] = number.to_be_bytes();
        let [first, second] = u16::from_str_radix(&self.instance, 16)
            .unwrap_or_default()
            .to_be_bytes();
        [0x02, side, first, second, high, low]
    }

    /// Makes a slot; `host` was opened in the host's namespace. Moves the calling thread into the
    /// new namespace: to be called on a thread that ends afterwards and starts no other. On failure
    /// nothing is left, as soon as the thread has ended.
    pub(super) fn build(
        &self,
        number: u32,
        host: &mut Socket,
    ) -> Result<NetworkSlot, NetworkError> {
        let began = Instant::now();
        let slot = self.slot(number, namespace::enter_new()?)?;
        let unshared = began.elapsed();
        namespace::set_up()?;
        let mut watch = Socket::route(link::RTMGRP_LINK)?;
        let mut inside = Socket::route(0)?;
        let outer = End {
            name: &slot.host_interface,
            hardware: self.hardware(number, 1),
            address: slot.gateway,
        };
        let inner = End {
            name: INNER,
            hardware: self.hardware(number, 2),
            address: slot.address,
        };
        let namespace = slot.namespace.as_fd();
        link::create_pair(host, &outer, &inner, namespace, self.group, self.mtu)?;
        let mut connect = || {
            link::raise_inner(&mut inside, &inner, &outer)?;
            if let Some(machines) = self.machines {
                tap::set_up(machines, &mut inside, (number, slot.address), self.mtu)?;
            }
            link::raise_outer(host, &outer, &inner)?;
            // The end that was raised first gets its queue from a worker of the kernel and drops
            // packets until then: a lost first answer would cost a second.
            watch.wait("waiting for an interface to come up", |kind, body| {
                link::tells_up(kind, body, INNER)
            })
        };
        if let Err(error) = connect() {
            if let Err(error) = link::delete(host, &slot.host_interface) {
                tracing::warn!(%error, interface = slot.host_interface, "left an interface");
            }
            return Err(error);
        }
        let took = began.elapsed();
        tracing::debug!(number, ?took, ?unshared, "made a network slot");
        Ok(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            instance: "ab12".to_owned(),
            range: "10.192.16.0/20".parse().unwrap(),
            mtu: 1500,
            group: 1,
            machines: None,
        }
    }

    #[test]
    fn names_and_numbers_round_trip() {
        for number in [0, 7, 2047] {
            assert_eq!(plan().number(&plan().interface(number)), Some(number));
        }
        for name in [
            "atab12.2048",
            "atab12.07",
            "atab12.+7",
            "atab12.",
            "atab13.7",
            "eth0",
        ] {
            assert_eq!(plan().number(name), None, "{name}");
        }
    }

    #[test]
    fn every_slot_has_a_pair_of_addresses_of_its_own() {
        let slot = |number| plan().slot(number, std::fs::File::open("/dev/null").unwrap().into());
        let last = slot(2047).unwrap();
        assert_eq!(last.gateway.to_string(), "10.192.31.254");
        assert_eq!(last.address.to_string(), "10.192.31.255");
        assert!(slot(2048).is_err());
        assert_ne!(plan().hardware(1, 1), plan().hardware(257, 1));
    }
}
