//! What a machine's network lacks, for `doctor`.

use super::{
    NetworkError,
    build::Plan,
    life, link, namespace,
    netlink::Socket,
    range::Ipv4Range,
    resolvers,
    rules::{self, Rules},
};
use api::finding::Finding;
use std::net::{IpAddr, Ipv4Addr};
use tokio::runtime::Handle;

/// Where the probe's addresses are taken from; they exist in throw-away namespaces only.
const PROBE: Ipv4Addr = Ipv4Addr::new(198, 19, 240, 0);

/// Checks all that [`super::Network::start`] needs, and what hampers it. Changes nothing on the
/// host. To be called within a tokio runtime.
///
/// `name_servers` are those that the operator named, if any.
pub async fn check(name_servers: &[IpAddr]) -> Vec<Finding> {
    let runtime = Handle::current();
    let named = name_servers.to_vec();
    let work = move || {
        let mut findings = vec![slots()];
        findings.push(firewall(&runtime));
        if let Ok(chains) = rules::list(&runtime, "chains") {
            findings.push(other_rules(dropping_chain(&chains).or_else(legacy_policy)));
        }
        findings.push(servers(&named));
        findings.push(connections());
        findings
    };
    let lost = |error: tokio::task::JoinError| {
        vec![Finding::missing(
            "network",
            format!("the check failed: {error}"),
            "",
        )]
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(lost)
}

fn missing(name: &str, error: NetworkError) -> Finding {
    let problem = error.problem();
    Finding::missing(name, problem.cause, problem.remedy)
}

/// Makes a slot whose host is a throw-away namespace, too.
fn slots() -> Finding {
    let plan = Plan {
        instance: "0000".to_owned(),
        range: Ipv4Range::containing(PROBE, 20),
        mtu: 1500,
        group: rules::OPEN,
        machines: None,
    };
    let host = std::thread::spawn(move || {
        namespace::enter_new()?;
        let began = std::time::Instant::now();
        let mut socket = Socket::route(0)?;
        let slot = std::thread::scope(|scope| scope.spawn(|| plan.build(0, &mut socket)).join())
            .unwrap_or(Err(NetworkError::Answer("making a network slot")))?;
        let took = began.elapsed();
        link::delete(&mut socket, &slot.host_interface)?;
        Ok(took)
    });
    match host
        .join()
        .unwrap_or(Err(NetworkError::Answer("making a network slot")))
    {
        Ok(took) => Finding::ok(
            "network slots",
            format!(
                "a namespace with a veth pair takes {:.1} ms",
                took.as_secs_f64() * 1e3
            ),
        ),
        Err(error) => missing("network slots", error),
    }
}

/// Whether `nft` and the kernel accept the rules.
fn firewall(runtime: &Handle) -> Finding {
    let rules = Rules {
        instance: "0000".to_owned(),
        range: Ipv4Range::containing(PROBE, 20),
        resolvers: vec![Ipv4Addr::new(10, 0, 0, 2)],
        connections: rules::connection_limit(life::host_connections()),
    };
    let name = "firewall";
    match rules.check(runtime) {
        Ok(Ok(())) => Finding::ok(name, "nft and the kernel accept the rules for sandboxes"),
        Ok(Err(cause)) => missing(
            name,
            NetworkError::Rules {
                table: "atoll_0000".into(),
                cause,
            },
        ),
        Err(error) => missing(name, error),
    }
}

/// Whether somebody else's rules drop what sandboxes send to the internet.
fn other_rules(dropping: Option<String>) -> Finding {
    let name = "forwarding";
    match dropping {
        None => Finding::ok(name, "no other firewall drops forwarded packets by default"),
        Some(chain) => Finding::warning(
            name,
            format!("{chain} drops forwarded packets, so sandboxes may not reach the internet"),
            "let them pass there; Atoll's own rules still hold. With Docker: \
             iptables -I DOCKER-USER -i at+ -j ACCEPT; iptables -I DOCKER-USER -o at+ -j ACCEPT",
        ),
    }
}

/// The first chain of another's in the output of `nft list chains` that drops by default what is
/// forwarded.
fn dropping_chain(chains: &str) -> Option<String> {
    let (mut table, mut chain) = ("", "");
    for line in chains.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("table ") {
            table = rest.trim_end_matches('{').trim();
        } else if let Some(rest) = line.strip_prefix("chain ") {
            chain = rest.trim_end_matches('{').trim();
        } else if line.contains("hook forward")
            && line.contains("policy drop")
            && !table.starts_with("inet atoll_")
        {
            return Some(format!("chain {chain} of table {table}"));
        }
    }
    None
}

/// The same for rules of the older kind, which `nft` does not list.
fn legacy_policy() -> Option<String> {
    let tables = std::fs::read_to_string("/proc/net/ip_tables_names").ok()?;
    if !tables.lines().any(|table| table == "filter") {
        return None;
    }
    let output = std::process::Command::new("iptables-legacy")
        .args(["-S", "FORWARD"])
        .output()
        .ok()?;
    let drops = String::from_utf8_lossy(&output.stdout).contains("-P FORWARD DROP");
    drops.then(|| "chain FORWARD of iptables-legacy".to_owned())
}

fn servers(named: &[IpAddr]) -> Finding {
    match resolvers::choose(named) {
        Ok(servers) => {
            let list: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
            Finding::ok("name servers", format!("sandboxes ask {}", list.join(", ")))
        }
        Err(error) => missing("name servers", error),
    }
}

fn connections() -> Finding {
    let host = life::host_connections();
    let name = "connections";
    let detail = format!(
        "the host remembers {host}, a sandbox {}",
        rules::connection_limit(host)
    );
    if host >= 32768 {
        Finding::ok(name, detail)
    } else {
        Finding::warning(
            name,
            detail,
            "raise net.netfilter.nf_conntrack_max to 262144 if many sandboxes use the internet",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firewall_that_drops_forwarded_packets_is_named() {
        let docker = "table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority \
                      filter; policy drop;\n\t}\n\tchain FORWARD {\n\t\ttype filter hook forward \
                      priority filter; policy drop;\n\t}\n}\n";
        assert_eq!(
            dropping_chain(docker).as_deref(),
            Some("chain FORWARD of table ip filter")
        );
        assert_eq!(
            dropping_chain(&docker.replace("policy drop", "policy accept")),
            None
        );
        assert_eq!(dropping_chain(""), None);
    }
}
