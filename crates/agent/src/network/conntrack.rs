//! Forgetting the connections of an address (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`).
//!
//! The host remembers a connection for up to five days after a sandbox has died without saying
//! goodbye. Forgotten entries neither fill the table nor lead late packets to the address's next
//! user.

use super::{
    error::NetworkError,
    netlink::{Batch, Body, Socket},
};
use std::net::Ipv4Addr;

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_DELETE`.
const CT_DELETE: u16 = 1 << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// `nfgenmsg`: `AF_INET`, and version 1, which makes the kernel look at the family.
const HEADER: [u8; 4] = [2, 1, 0, 0];

/// Makes the host forget all connections from and to `address`. Kernels before 5.8 cannot; they
/// forget them when their time is up.
pub(super) fn forget(address: Ipv4Addr) -> Result<(), NetworkError> {
    let mut batch = Batch::default();
    for (attribute, flag) in [(CTA_IP_V4_SRC, 1), (CTA_IP_V4_DST, 2)] {
        batch.push(
            "forgetting connections",
            CT_DELETE,
            0,
            |body: &mut Body<'_>| {
                body.fixed(&HEADER);
                body.attributes(CTA_TUPLE_ORIG, |body| {
                    body.attributes(CTA_TUPLE_IP, |body| {
                        body.attribute(attribute, &address.octets());
                    });
                });
                body.attributes(CTA_FILTER, |body| {
                    body.number(CTA_FILTER_ORIG_FLAGS, flag);
                    body.number(CTA_FILTER_REPLY_FLAGS, 0);
                });
            },
        );
    }
    Socket::netfilter(0)?.execute(batch)
}
