//! Translating a microVM's address, in its slot's namespace: nf_tables spoken over netlink
//! (`include/uapi/linux/netfilter/nf_tables.h`), as `nft` would take ten times as long as all else.
//!
//! What is loaded, as `nft` prints it, the second table for a machine that is in the mesh:
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
//! table ip mesh {
//!     chain in {
//!         type nat hook prerouting priority dstnat; policy accept;
//!         iifname "atoll*" ip daddr 100.64.0.7 dnat to 169.254.0.21
//!         iifname "tap0" ip daddr 100.64.0.7 th dport != 53 dnat to 169.254.0.21
//!     }
//!     chain out {
//!         type nat hook postrouting priority srcnat; policy accept;
//!         oifname "atoll*" snat to 100.64.0.7
//!         oifname "tap0" ip saddr 169.254.0.21 snat to 169.254.0.22
//!     }
//!     chain pass {
//!         type filter hook forward priority filter; policy accept;
//!         iifname "atoll*" oifname != "tap0" drop
//!         oifname "atoll*" iifname != "tap0" drop
//!     }
//! }
//! ```
//!
//! A packet that belongs to no connection, such as a late one, is not translated; it leaves with
//! the machine's own address, and the host drops it as forged, as the mesh does.
//!
//! The rules for `tap0` in the second table let a machine speak with itself by the address that
//! others know it by, as members of clusters do; at port 53 of it names are asked for, in the
//! namespace.

use super::{
    error::NetworkError,
    netlink::{APPEND, Batch, Body, CREATE, Socket},
};
use driver::slot::machine;
use std::net::Ipv4Addr;

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
const DEL_TABLE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 2;
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
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;

const NF_INET_PRE_ROUTING: u32 = 0;
const NF_INET_FORWARD: u32 = 2;
const NF_INET_POST_ROUTING: u32 = 4;
const NF_IP_PRI_NAT_DST: i32 = -100;
const NF_IP_PRI_FILTER: i32 = 0;
const NF_IP_PRI_NAT_SRC: i32 = 100;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_NAT_SNAT: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;
/// Length of an interface's name in the kernel.
const IFNAMSIZ: usize = 16;
/// Where an IPv4 packet says where it comes from, and where it goes.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
/// Where a header of TCP or UDP has the port that it goes to.
const PORT: u32 = 2;
/// The port of servers for names.
const NAMES: u16 = 53;

/// Translates between a slot's `address` on `interface` and the machine behind it. `socket` is one
/// for netfilter in the slot's namespace, which has no such table yet.
pub(super) fn translate(
    socket: &mut Socket,
    interface: &str,
    address: Ipv4Addr,
    machine: Ipv4Addr,
) -> Result<(), NetworkError> {
    load(socket, |batch| {
        let mut table = Table::new(batch, "machine");
        table.chain(&IN);
        table.chain(&OUT);
        table.rule(&IN, |rule| {
            interface_is(rule, NFT_META_IIFNAME, interface);
            address_is(rule, DESTINATION, address);
            to(rule, NFT_NAT_DNAT, machine);
        });
        table.rule(&OUT, |rule| {
            interface_is(rule, NFT_META_OIFNAME, interface);
            to(rule, NFT_NAT_SNAT, address);
        });
    })
}

/// Translates between the `address` that a slot's machine has in the mesh and the machine. The
/// names of the mesh's devices begin with `devices`. What was there of it is replaced.
pub(super) fn join(
    socket: &mut Socket,
    devices: &str,
    address: Ipv4Addr,
) -> Result<(), NetworkError> {
    load(socket, |batch| {
        // Made before it is deleted, as there may be none.
        Table::new(batch, "mesh").delete();
        let mut table = Table::new(batch, "mesh");
        table.chain(&IN);
        table.chain(&OUT);
        table.chain(&PASS);
        table.rule(&IN, |rule| {
            interface_begins(rule, NFT_META_IIFNAME, devices);
            address_is(rule, DESTINATION, address);
            to(rule, NFT_NAT_DNAT, machine::ADDRESS);
        });
        table.rule(&IN, |rule| {
            interface_is(rule, NFT_META_IIFNAME, machine::TAP);
            address_is(rule, DESTINATION, address);
            payload(rule, NFT_PAYLOAD_TRANSPORT_HEADER, PORT, 2);
            compare(rule, NFT_CMP_NEQ, &NAMES.to_be_bytes());
            to(rule, NFT_NAT_DNAT, machine::ADDRESS);
        });
        table.rule(&OUT, |rule| {
            interface_begins(rule, NFT_META_OIFNAME, devices);
            to(rule, NFT_NAT_SNAT, address);
        });
        table.rule(&OUT, |rule| {
            interface_is(rule, NFT_META_OIFNAME, machine::TAP);
            address_is(rule, SOURCE, machine::ADDRESS);
            to(rule, NFT_NAT_SNAT, machine::GATEWAY);
        });
        for (mesh, other) in [
            (NFT_META_IIFNAME, NFT_META_OIFNAME),
            (NFT_META_OIFNAME, NFT_META_IIFNAME),
        ] {
            table.rule(&PASS, |rule| {
                interface_begins(rule, mesh, devices);
                meta(rule, other);
                compare(rule, NFT_CMP_NEQ, &whole_name(machine::TAP));
                drop_it(rule);
            });
        }
    })
}

fn load(socket: &mut Socket, write: impl FnOnce(&mut Batch)) -> Result<(), NetworkError> {
    let mut batch = Batch::default();
    batch.push_unanswered(NFNL_MSG_BATCH_BEGIN, |body| {
        body.fixed(&header(0, NFNL_SUBSYS_NFTABLES));
    });
    write(&mut batch);
    batch.push_unanswered(NFNL_MSG_BATCH_END, |body| {
        body.fixed(&header(0, NFNL_SUBSYS_NFTABLES));
    });
    socket.execute(batch)
}

/// A chain and where it is hooked in.
struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: u32,
    priority: i32,
}

const IN: Chain = Chain {
    name: "in",
    kind: "nat",
    hook: NF_INET_PRE_ROUTING,
    priority: NF_IP_PRI_NAT_DST,
};
const OUT: Chain = Chain {
    name: "out",
    kind: "nat",
    hook: NF_INET_POST_ROUTING,
    priority: NF_IP_PRI_NAT_SRC,
};
const PASS: Chain = Chain {
    name: "pass",
    kind: "filter",
    hook: NF_INET_FORWARD,
    priority: NF_IP_PRI_FILTER,
};

/// A table that is being written.
struct Table<'a> {
    batch: &'a mut Batch,
    name: &'static str,
}

impl<'a> Table<'a> {
    /// One that is made if it is not there.
    fn new(batch: &'a mut Batch, name: &'static str) -> Self {
        batch.push("making a table", NEW_TABLE, CREATE, |body| {
            body.fixed(&header(NFPROTO_IPV4, 0));
            body.text(NFTA_TABLE_NAME, name);
        });
        Self { batch, name }
    }

    fn delete(self) {
        self.batch.push("deleting a table", DEL_TABLE, 0, |body| {
            body.fixed(&header(NFPROTO_IPV4, 0));
            body.text(NFTA_TABLE_NAME, self.name);
        });
    }

    fn chain(&mut self, chain: &Chain) {
        self.batch
            .push("making a chain", NEW_CHAIN, CREATE, |body| {
                body.fixed(&header(NFPROTO_IPV4, 0));
                body.text(NFTA_CHAIN_TABLE, self.name);
                body.text(NFTA_CHAIN_NAME, chain.name);
                body.attributes(NFTA_CHAIN_HOOK, |body| {
                    big_endian(body, NFTA_HOOK_HOOKNUM, chain.hook);
                    body.attribute(NFTA_HOOK_PRIORITY, &chain.priority.to_be_bytes());
                });
                big_endian(body, NFTA_CHAIN_POLICY, NF_ACCEPT);
                body.text(NFTA_CHAIN_TYPE, chain.kind);
            });
    }

    fn rule(&mut self, chain: &Chain, write: impl FnOnce(&mut Body<'_>)) {
        let flags = CREATE | APPEND;
        self.batch.push("adding a rule", NEW_RULE, flags, |body| {
            body.fixed(&header(NFPROTO_IPV4, 0));
            body.text(NFTA_RULE_TABLE, self.name);
            body.text(NFTA_RULE_CHAIN, chain.name);
            body.attributes(NFTA_RULE_EXPRESSIONS, write);
        });
    }
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

fn expression(rule: &mut Body<'_>, name: &str, write: impl FnOnce(&mut Body<'_>)) {
    rule.attributes(NFTA_LIST_ELEM, |element| {
        element.text(NFTA_EXPR_NAME, name);
        element.attributes(NFTA_EXPR_DATA, write);
    });
}

/// Goes on only for packets of an interface.
fn interface_is(rule: &mut Body<'_>, key: u32, interface: &str) {
    meta(rule, key);
    compare(rule, NFT_CMP_EQ, &whole_name(interface));
}

/// Goes on only for packets of interfaces whose names begin so.
fn interface_begins(rule: &mut Body<'_>, key: u32, name: &str) {
    meta(rule, key);
    compare(rule, NFT_CMP_EQ, name.as_bytes());
}

/// An interface's name as the kernel compares it to its end.
fn whole_name(interface: &str) -> [u8; IFNAMSIZ] {
    let mut name = [0; IFNAMSIZ];
    let length = interface.len().min(IFNAMSIZ - 1);
    name[..length].copy_from_slice(&interface.as_bytes()[..length]);
    name
}

/// Goes on only for packets that have this address there in their header.
fn address_is(rule: &mut Body<'_>, place: u32, address: Ipv4Addr) {
    payload(rule, NFT_PAYLOAD_NETWORK_HEADER, place, 4);
    compare(rule, NFT_CMP_EQ, &address.octets());
}

/// Loads something that is known of a packet.
fn meta(rule: &mut Body<'_>, key: u32) {
    expression(rule, "meta", |data| {
        big_endian(data, 1, NFT_REG_1);
        big_endian(data, 2, key);
    });
}

/// Loads bytes of a packet.
fn payload(rule: &mut Body<'_>, header: u32, place: u32, length: u32) {
    expression(rule, "payload", |data| {
        big_endian(data, 1, NFT_REG_1);
        big_endian(data, 2, header);
        big_endian(data, 3, place);
        big_endian(data, 4, length);
    });
}

/// Goes on only if what was loaded is this, or is not.
fn compare(rule: &mut Body<'_>, how: u32, value: &[u8]) {
    expression(rule, "cmp", |data| {
        big_endian(data, 1, NFT_REG_1);
        big_endian(data, 2, how);
        data.attributes(3, |data| data.attribute(NFTA_DATA_VALUE, value));
    });
}

/// Drops the packet.
fn drop_it(rule: &mut Body<'_>) {
    expression(rule, "immediate", |data| {
        big_endian(data, 1, NFT_REG_VERDICT);
        data.attributes(2, |data| {
            data.attributes(NFTA_DATA_VERDICT, |data| {
                big_endian(data, NFTA_VERDICT_CODE, NF_DROP);
            });
        });
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

    /// What `nft` prints of a namespace after `load`.
    fn listed(load: impl FnOnce(&mut Socket) + Send + 'static) -> String {
        let listed = std::thread::spawn(|| {
            let _handle = namespace::enter_new().unwrap();
            load(&mut Socket::netfilter(0).unwrap());
            // A child is in the namespace of the thread that starts it.
            let mut nft = Command::new("nft");
            nft.args(["list", "ruleset"]).output().unwrap()
        });
        let listed = listed.join().unwrap();
        assert!(listed.status.success(), "{listed:?}");
        let text = String::from_utf8(listed.stdout).unwrap();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_kernel_has_what_was_written() {
        let text = listed(|socket| {
            let slot = Ipv4Addr::new(10, 192, 0, 1);
            translate(socket, "eth0", slot, machine::ADDRESS).unwrap();
        });
        assert_eq!(
            text,
            "table ip machine { chain in { type nat hook prerouting priority dstnat; \
             policy accept; iifname \"eth0\" ip daddr 10.192.0.1 dnat to 169.254.0.21 } \
             chain out { type nat hook postrouting priority srcnat; policy accept; \
             oifname \"eth0\" snat to 10.192.0.1 } }"
        );
    }

    #[test]
    fn a_machine_in_the_mesh_is_translated_and_nothing_else_passes() {
        let text = listed(|socket| {
            // What is left of an earlier run is replaced.
            join(socket, "atoll", Ipv4Addr::new(100, 64, 0, 6)).unwrap();
            join(socket, "atoll", Ipv4Addr::new(100, 64, 0, 7)).unwrap();
        });
        assert_eq!(
            text,
            "table ip mesh { chain in { type nat hook prerouting priority dstnat; policy accept; \
             iifname \"atoll*\" ip daddr 100.64.0.7 dnat to 169.254.0.21 \
             iifname \"tap0\" ip daddr 100.64.0.7 th dport != 53 dnat to 169.254.0.21 } \
             chain out { type nat hook postrouting priority srcnat; policy accept; \
             oifname \"atoll*\" snat to 100.64.0.7 \
             oifname \"tap0\" ip saddr 169.254.0.21 snat to 169.254.0.22 } \
             chain pass { type filter hook forward priority filter; policy accept; \
             iifname \"atoll*\" oifname != \"tap0\" drop \
             oifname \"atoll*\" iifname != \"tap0\" drop } }"
        );
    }
}
