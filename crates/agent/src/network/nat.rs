//! Translating a microVM's address, in its slot's namespace: nf_tables spoken over netlink
//! (`include/uapi/linux/netfilter/nf_tables.h`), as `nft` would take ten times as long as all else.
//!
//! What is loaded, as `nft` prints it:
//!
//! ```text
//! table ip machine {
//!     chain in {
//!         type nat hook prerouting priority dstnat; policy accept;
//!         iifname "eth0" ip daddr 10.192.0.1 dnat to 169.254.0.21
//!     }
//!     chain out {
//!         type nat hook postrouting priority srcnat; policy accept;
//!         oifname "eth0" snat to 10.192.0.1
//!     }
//! }
//! ```
//!
//! A packet that belongs to no connection, such as a late one, is not translated; it leaves with
//! the machine's own address, and the host drops it as forged.

use super::{
    error::NetworkError,
    netlink::{APPEND, Batch, Body, CREATE, Socket},
};
use std::net::Ipv4Addr;

/// Name of the table.
const TABLE: &str = "machine";

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
const NEW_CHAIN: u16 = NFNL_SUBSYS_NFTABLES << 8 | 3;
const NEW_RULE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 6;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

const NF_INET_PRE_ROUTING: u32 = 0;
const NF_INET_POST_ROUTING: u32 = 4;
const NF_IP_PRI_NAT_DST: i32 = -100;
const NF_IP_PRI_NAT_SRC: i32 = 100;
const NF_ACCEPT: u32 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFT_REG_1: u32 = 1;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFT_CMP_EQ: u32 = 0;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_NAT_SNAT: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;
/// Length of an interface's name in the kernel.
const IFNAMSIZ: usize = 16;
/// Where an IPv4 packet says where it goes.
const DESTINATION: u32 = 16;

/// Translates between a slot's `address` on `interface` and the machine behind it. `socket` is one
/// for netfilter in the slot's namespace, which has no such table yet.
pub(super) fn translate(
    socket: &mut Socket,
    interface: &str,
    address: Ipv4Addr,
    machine: Ipv4Addr,
) -> Result<(), NetworkError> {
    let mut batch = Batch::default();
    batch.push_unanswered(NFNL_MSG_BATCH_BEGIN, |body| {
        body.fixed(&header(0, NFNL_SUBSYS_NFTABLES));
    });
    batch.push("making a table", NEW_TABLE, CREATE, |body| {
        body.fixed(&header(NFPROTO_IPV4, 0));
        body.text(NFTA_TABLE_NAME, TABLE);
    });
    push_chain(&mut batch, "in", NF_INET_PRE_ROUTING, NF_IP_PRI_NAT_DST);
    push_chain(&mut batch, "out", NF_INET_POST_ROUTING, NF_IP_PRI_NAT_SRC);
    push_rule(&mut batch, "in", |rule| {
        on_interface(rule, NFT_META_IIFNAME, interface);
        expression(rule, "payload", |data| {
            big_endian(data, 1, NFT_REG_1);
            big_endian(data, 2, NFT_PAYLOAD_NETWORK_HEADER);
            big_endian(data, 3, DESTINATION);
            big_endian(data, 4, 4);
        });
        equals(rule, &address.octets());
        to(rule, NFT_NAT_DNAT, machine);
    });
    push_rule(&mut batch, "out", |rule| {
        on_interface(rule, NFT_META_OIFNAME, interface);
        to(rule, NFT_NAT_SNAT, address);
    });
    batch.push_unanswered(NFNL_MSG_BATCH_END, |body| {
        body.fixed(&header(0, NFNL_SUBSYS_NFTABLES));
    });
    socket.execute(batch)
}

/// `nfgenmsg`.
fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// Numbers in nf_tables are big-endian.
fn big_endian(body: &mut Body<'_>, kind: u16, value: u32) {
    body.attribute(kind, &value.to_be_bytes());
}

fn push_chain(batch: &mut Batch, name: &str, hook: u32, priority: i32) {
    batch.push("making a chain", NEW_CHAIN, CREATE, |body| {
        body.fixed(&header(NFPROTO_IPV4, 0));
        body.text(NFTA_CHAIN_TABLE, TABLE);
        body.text(NFTA_CHAIN_NAME, name);
        body.attributes(NFTA_CHAIN_HOOK, |body| {
            big_endian(body, NFTA_HOOK_HOOKNUM, hook);
            body.attribute(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
        });
        big_endian(body, NFTA_CHAIN_POLICY, NF_ACCEPT);
        body.text(NFTA_CHAIN_TYPE, "nat");
    });
}

fn push_rule(batch: &mut Batch, chain: &str, write: impl FnOnce(&mut Body<'_>)) {
    batch.push("adding a rule", NEW_RULE, CREATE | APPEND, |body| {
        body.fixed(&header(NFPROTO_IPV4, 0));
        body.text(NFTA_RULE_TABLE, TABLE);
        body.text(NFTA_RULE_CHAIN, chain);
        body.attributes(NFTA_RULE_EXPRESSIONS, write);
    });
}

fn expression(rule: &mut Body<'_>, name: &str, write: impl FnOnce(&mut Body<'_>)) {
    rule.attributes(NFTA_LIST_ELEM, |element| {
        element.text(NFTA_EXPR_NAME, name);
        element.attributes(NFTA_EXPR_DATA, write);
    });
}

/// Goes on only for packets of an interface.
fn on_interface(rule: &mut Body<'_>, key: u32, interface: &str) {
    expression(rule, "meta", |data| {
        big_endian(data, 1, NFT_REG_1);
        big_endian(data, 2, key);
    });
    let mut name = [0; IFNAMSIZ];
    let length = interface.len().min(IFNAMSIZ - 1);
    name[..length].copy_from_slice(&interface.as_bytes()[..length]);
    equals(rule, &name);
}

/// Goes on only if the register holds this.
fn equals(rule: &mut Body<'_>, value: &[u8]) {
    expression(rule, "cmp", |data| {
        big_endian(data, 1, NFT_REG_1);
        big_endian(data, 2, NFT_CMP_EQ);
        data.attributes(3, |data| data.attribute(NFTA_DATA_VALUE, value));
    });
}

/// Translates one end of the connection to an address.
fn to(rule: &mut Body<'_>, kind: u32, address: Ipv4Addr) {
    expression(rule, "immediate", |data| {
        big_endian(data, 1, NFT_REG_1);
        data.attributes(2, |data| {
            data.attribute(NFTA_DATA_VALUE, &address.octets());
        });
    });
    expression(rule, "nat", |data| {
        big_endian(data, 1, kind);
        big_endian(data, 2, u32::from(NFPROTO_IPV4));
        big_endian(data, 3, NFT_REG_1);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::namespace;
    use std::process::Command;

    #[test]
    fn the_kernel_has_what_was_written() {
        let listed = std::thread::spawn(|| {
            let _handle = namespace::enter_new().unwrap();
            let mut socket = Socket::netfilter(0).unwrap();
            let slot = Ipv4Addr::new(10, 192, 0, 1);
            translate(&mut socket, "eth0", slot, driver::slot::machine::ADDRESS).unwrap();
            // A child is in the namespace of the thread that starts it.
            Command::new("nft")
                .args(["list", "ruleset"])
                .output()
                .unwrap()
        })
        .join()
        .unwrap();
        let text = String::from_utf8_lossy(&listed.stdout);
        let words: Vec<&str> = text.split_whitespace().collect();
        let expected = "table ip machine { chain in { type nat hook prerouting priority dstnat; \
                        policy accept; iifname \"eth0\" ip daddr 10.192.0.1 dnat to 169.254.0.21 } \
                        chain out { type nat hook postrouting priority srcnat; policy accept; \
                        oifname \"eth0\" snat to 10.192.0.1 } }";
        let expected: Vec<&str> = expected.split_whitespace().collect();
        assert_eq!(
            words,
            expected,
            "{}",
            String::from_utf8_lossy(&listed.stderr)
        );
    }
}
