//! A watch over the rules: whoever removes them from the kernel finds them back at once.
//!
//! On many distributions a restart of the nftables service flushes all tables, ours included, and
//! without them a sandbox would reach the host. The kernel tells of every such change
//! (`NFNLGRP_NFTABLES`); a thread listens for those that concern our table and loads it again.

use super::{
    error::NetworkError,
    netlink::{Socket, attributes},
    rules::{self, Rules},
};
use rustix::event::{PollFd, PollFlags, poll};
use std::{
    io::{PipeReader, PipeWriter},
    os::fd::AsFd,
};
use tokio::runtime::Handle;

/// Group number 7, as the bit that `bind` takes.
const NFNLGRP_NFTABLES: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10 << 8;
/// `NFT_MSG_DELTABLE`, `NFT_MSG_DELCHAIN`, `NFT_MSG_DELRULE`, `NFT_MSG_DELSET`.
const REMOVALS: [u16; 4] = [SUBSYSTEM | 2, SUBSYSTEM | 5, SUBSYSTEM | 8, SUBSYSTEM | 11];
/// Bytes of `nfgenmsg`.
const HEADER: usize = 4;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE` are the same.
const TABLE: u16 = 1;
/// How often the rules are loaded again for one event before giving up until the next.
const ATTEMPTS: u32 = 5;

/// Watches over an instance's rules until it is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    /// Closing it ends the thread.
    _end: PipeWriter,
}

impl Guard {
    /// Starts watching over rules that are loaded and were then listed as `expected`. The calling
    /// thread must be in the host's network namespace.
    pub(super) fn start(
        runtime: Handle,
        rules: Rules,
        expected: String,
    ) -> Result<Self, NetworkError> {
        let fail = |source| NetworkError::system("starting the watch over the rules", source);
        let socket = Socket::netfilter(NFNLGRP_NFTABLES)?;
        let (reader, writer) = std::io::pipe().map_err(fail)?;
        std::thread::Builder::new()
            .name("rules".to_owned())
            .spawn(move || {
                if let Err(error) = watch(&runtime, &rules, &expected, socket, &reader) {
                    tracing::error!(%error, "nobody watches over the firewall rules any more");
                }
            })
            .map_err(fail)?;
        Ok(Self { _end: writer })
    }
}

fn watch(
    runtime: &Handle,
    rules: &Rules,
    expected: &str,
    mut socket: Socket,
    end: &PipeReader,
) -> Result<(), NetworkError> {
    let table = rules::table(&rules.instance);
    let concerns = |kind: u16, body: &[u8]| {
        REMOVALS.contains(&kind)
            && attributes(body.get(HEADER..).unwrap_or_default()).any(|(kind, value)| {
                kind == TABLE && value.strip_suffix(b"\0") == Some(table.as_bytes())
            })
    };
    loop {
        let mut sources = [
            PollFd::new(&socket, PollFlags::IN),
            PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN),
        ];
        match poll(&mut sources, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(source) => {
                return Err(NetworkError::system("waiting for changes of rules", source));
            }
        }
        if !sources[1].revents().is_empty() {
            return Ok(());
        }
        if socket.drain(concerns)? {
            restore(runtime, rules, expected, &mut socket);
        }
    }
}

fn restore(runtime: &Handle, rules: &Rules, expected: &str, socket: &mut Socket) {
    for _ in 0..ATTEMPTS {
        let table = rules::table(&rules.instance);
        tracing::warn!(
            table,
            "the firewall rules were changed by somebody: loading them again"
        );
        if let Err(error) = rules.load(runtime) {
            tracing::error!(%error, "the firewall rules are lost");
            continue;
        }
        // Loading makes events of its own, and those of somebody who changes the rules again are
        // among them: so read them first, and look then.
        let drained = socket.drain(|_, _| false).is_ok();
        if drained
            && rules
                .listing(runtime)
                .is_ok_and(|listed| listed == expected)
        {
            return;
        }
    }
}
