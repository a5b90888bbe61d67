//! The firewall rules of an instance, and the `nft` program that loads them.
//!
//! One table for each instance, loaded when a node starts and never changed: rules tell sandboxes
//! by the names of their interfaces, and those that may reach the internet by the interface's
//! group. So nothing here is on the path of creating a sandbox.

use super::{error::NetworkError, range::Ipv4Range};
use std::{io, net::Ipv4Addr, process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command, runtime::Handle};

/// Interface group of slots that may reach the internet.
pub(super) const OPEN: u32 = 0x4154_0001;
/// Interface group of slots that may not.
pub(super) const CLOSED: u32 = 0x4154_0002;

/// Addresses that no sandbox reaches: private (RFC 1918), shared (RFC 6598), link-local with the
/// metadata services of clouds (RFC 3927), loopback, "this network", and the rest of what RFC 6890
/// calls special, multicast and reserved.
pub(super) const FORBIDDEN: [&str; 15] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

const PROGRAM_DEADLINE: Duration = Duration::from_secs(20);
/// Most of what is kept of the program's complaints.
const COMPLAINT: usize = 600;
/// The chains that must be there after loading.
const CHAINS: [&str; 5] = [
    "hook prerouting priority raw",
    "hook prerouting priority mangle",
    "hook input",
    "hook forward",
    "hook postrouting",
];

/// Whether sandboxes may reach an address without an exception.
pub(super) fn is_public(address: Ipv4Addr) -> bool {
    !FORBIDDEN
        .iter()
        .filter_map(|range| range.parse::<Ipv4Range>().ok())
        .any(|range| range.contains(address))
}

/// What the rules of an instance depend on.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// Its name.
    pub(super) instance: String,
    /// The addresses of its slots.
    pub(super) range: Ipv4Range,
    /// Name servers in forbidden ranges that the operator lets sandboxes reach.
    pub(super) resolvers: Vec<Ipv4Addr>,
    /// Most connections to the outside that a sandbox may have at once.
    pub(super) connections: u32,
}

/// Most connections to the outside that a sandbox may have at once, of those that the host can
/// remember: a sixteenth, so that no sandbox fills the table.
pub(super) fn connection_limit(host_limit: u32) -> u32 {
    (host_limit / 16).clamp(256, 4096)
}

/// The name of an instance's table.
pub(super) fn table(instance: &str) -> String {
    format!("atoll_{instance}")
}

impl Rules {
    /// The table as `nft` reads it. Loading it replaces the table of the same name in one step.
    pub(super) fn text(&self) -> String {
        let Self {
            instance,
            range,
            connections,
            ..
        } = self;
        let table = table(instance);
        let forbidden = FORBIDDEN.join(", ");
        let resolvers = match self.resolvers.as_slice() {
            [] => String::new(),
            some => {
                let list: Vec<String> = some.iter().map(Ipv4Addr::to_string).collect();
                format!("elements = {{ {} }};", list.join(", "))
            }
        };
        format!(
            r#"table inet {table}
delete table inet {table}
table inet {table} {{
    set forbidden {{ type ipv4_addr; flags interval; elements = {{ {forbidden} }}; }}
    set resolvers {{ type ipv4_addr; {resolvers} }}
    set new_connections {{ type ipv4_addr; size 4096; flags dynamic,timeout; timeout 1m; }}
    set connections {{ type ipv4_addr; size 4096; flags dynamic; }}

    # Before connections are tracked: a packet must come from the address of its own slot.
    chain sources {{
        type filter hook prerouting priority raw; policy accept;
        iifname != "at{instance}.*" iifname != "lo" ip saddr {range} drop
        iifname != "at{instance}.*" accept
        meta nfproto != ipv4 drop
        fib saddr . iif oif missing drop
    }}

    # Before anybody translates addresses: where a sandbox may begin a connection to.
    chain destinations {{
        type filter hook prerouting priority mangle; policy accept;
        iifname != "at{instance}.*" accept
        ct state established accept
        ct state != new drop
        iifgroup {OPEN} ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept
        fib daddr type != unicast drop
        ip daddr @forbidden drop
    }}

    # To the host itself: only answers.
    chain host {{
        type filter hook input priority filter - 10; policy accept;
        iifname != "at{instance}.*" accept
        ct state established accept
        iifgroup {OPEN} ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept
        drop
    }}

    chain through {{
        type filter hook forward priority filter - 10; policy accept;
        oifname "at{instance}.*" goto inward
        iifname "at{instance}.*" goto outward
    }}

    # Into a sandbox from elsewhere than the host: only answers, and not from sandboxes.
    chain inward {{
        iifname "at{instance}.*" drop
        oifgroup != {OPEN} drop
        ct state {{ established, related }} accept
        drop
    }}

    # Once more after addresses were translated, and within limits.
    chain outward {{
        iifgroup != {OPEN} drop
        meta nfproto != ipv4 drop
        ct state new update @new_connections {{ ip saddr limit rate over 500/second burst 2000 packets }} drop
        ct state new add @connections {{ ip saddr ct count over {connections} }} drop
        ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept
        ip daddr @forbidden drop
        ip daddr {range} drop
        tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
        ct state {{ new, established }} accept
        drop
    }}

    chain translation {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {range} oifname != "at{instance}.*" oifname != "lo" masquerade fully-random
    }}
}}
"#
        )
    }

    /// Loads the table and sees that it is there. Returns it as [`Rules::listing`] does.
    pub(super) fn load(&self, runtime: &Handle) -> Result<String, NetworkError> {
        nft(runtime, &["-f", "-"], &self.text())?.map_err(|cause| self.refusal(cause))?;
        let listed = self.listing(runtime)?;
        match CHAINS.iter().find(|chain| !listed.contains(**chain)) {
            Some(missing) => Err(self.refusal(format!("it lacks the chain `{missing}`"))),
            None => Ok(listed),
        }
    }

    /// The table as it is in the kernel, without what its sets hold at the moment.
    pub(super) fn listing(&self, runtime: &Handle) -> Result<String, NetworkError> {
        let table = table(&self.instance);
        nft(runtime, &["--terse", "list", "table", "inet", &table], "")?
            .map_err(|cause| self.refusal(cause))
    }

    fn refusal(&self, cause: String) -> NetworkError {
        NetworkError::Rules {
            table: table(&self.instance),
            cause,
        }
    }

    /// What `nft` and the kernel have against the table, without loading it.
    pub(super) fn check(&self, runtime: &Handle) -> Result<Result<(), String>, NetworkError> {
        Ok(nft(runtime, &["--check", "-f", "-"], &self.text())?.map(|_| ()))
    }
}

/// Removes an instance's table. False if it was not there.
pub(super) fn unload(runtime: &Handle, instance: &str) -> Result<bool, NetworkError> {
    let name = table(instance);
    let tables = list(runtime, "tables")?;
    let line = format!("table inet {name}");
    if !tables.lines().any(|present| present.trim() == line) {
        return Ok(false);
    }
    nft(runtime, &["delete", "table", "inet", &name], "")?
        .map(|_| true)
        .map_err(|cause| NetworkError::Rules { table: name, cause })
}

/// What `nft list KIND` prints: `tables`, `chains` or `ruleset`.
pub(super) fn list(runtime: &Handle, kind: &'static str) -> Result<String, NetworkError> {
    nft(runtime, &["list", kind], "")?.map_err(|cause| NetworkError::Rules {
        table: kind.to_owned(),
        cause,
    })
}

/// Runs `nft`: what it printed, or what it complained of.
fn nft(
    runtime: &Handle,
    arguments: &[&str],
    input: &str,
) -> Result<Result<String, String>, NetworkError> {
    let work = async {
        let mut child = match spawn("nft", arguments) {
            // Not in the search path of those who are not root, on some distributions.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                spawn("/usr/sbin/nft", arguments)
            }
            outcome => outcome,
        }
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => NetworkError::MissingProgram {
                program: "nft",
                package: "nftables",
            },
            _ => NetworkError::system("starting nft", source),
        })?;
        if let Some(mut stdin) = child.stdin.take() {
            // If it ends before it has read all, its exit code says why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = child
            .wait_with_output()
            .await
            .map_err(|source| NetworkError::system("waiting for nft", source))?;
        if output.status.success() {
            return Ok(Ok(String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Ok(Err(complaint.trim().chars().take(COMPLAINT).collect()))
    };
    runtime.block_on(async {
        tokio::time::timeout(PROGRAM_DEADLINE, work)
            .await
            .unwrap_or(Err(NetworkError::Deadline("running nft")))
    })
}

fn spawn(program: &str, arguments: &[&str]) -> io::Result<tokio::process::Child> {
    Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_are_told_from_the_rest() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "172.32.0.1",
            "203.0.114.1",
            "100.128.0.1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.100.100.200",
            "127.0.0.53",
            "169.254.169.254",
            "172.31.0.1",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_sandbox_gets_a_share_of_the_hosts_connections() {
        assert_eq!(connection_limit(1024), 256);
        assert_eq!(connection_limit(16384), 1024);
        assert_eq!(connection_limit(262_144), 4096);
    }
}
