//! Which name servers sandboxes use.

use super::{error::NetworkError, rules};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
};

/// Where the host's name servers are written down; the second is what systemd-resolved asks, where
/// the first names only its own address on the loopback interface.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Used where the host names none that sandboxes can reach.
const FALLBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
];
/// As many as the C library uses (`MAXNS`).
const MOST: usize = 3;

/// Name servers for sandboxes: those that the operator named, else the host's public ones, else
/// two that anybody may use.
///
/// Fails if the operator named one that no sandbox can reach: an IPv6 address, or one that is not
/// a single other machine's.
pub(super) fn choose(named: &[IpAddr]) -> Result<Vec<IpAddr>, NetworkError> {
    if let Some(address) = named.iter().find(|address| !is_reachable(**address)) {
        return Err(NetworkError::NameServer(*address));
    }
    if !named.is_empty() {
        return Ok(named.to_vec());
    }
    let files = FILES
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok());
    Ok(public(files))
}

fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !(address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_broadcast())
        }
        IpAddr::V6(_) => false,
    }
}

fn public(files: impl Iterator<Item = String>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for text in files {
        let servers = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nameserver"))
            .filter_map(|rest| rest.trim().parse::<Ipv4Addr>().ok())
            .filter(|address| rules::is_public(*address))
            .map(IpAddr::V4);
        for server in servers {
            if !found.contains(&server) && found.len() < MOST {
                found.push(server);
            }
        }
    }
    if found.is_empty() {
        FALLBACK.to_vec()
    } else {
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str], expected: &[&str]) {
        let expected: Vec<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(
            public(files.iter().map(|text| (*text).to_owned())),
            expected
        );
    }

    #[test]
    fn only_public_servers_are_taken_from_the_host() {
        check(
            &[
                "# comment\nnameserver 127.0.0.53\nnameserver 10.0.0.2\noptions edns0\n",
                "nameserver 9.9.9.9\n nameserver\t149.112.112.112 \nnameserver 9.9.9.9",
            ],
            &["9.9.9.9", "149.112.112.112"],
        );
    }

    #[test]
    fn without_any_the_fallback_is_used() {
        check(
            &["nameserver fd00::1\nnameserver nonsense\n"],
            &["1.1.1.1", "8.8.8.8"],
        );
        check(&[], &["1.1.1.1", "8.8.8.8"]);
    }

    #[test]
    fn the_operators_choice_must_be_reachable() {
        let private: IpAddr = "10.0.0.2".parse().unwrap();
        assert_eq!(choose(&[private]).unwrap(), [private]);
        for address in ["127.0.0.1", "::1", "fd00::2", "0.0.0.0", "224.0.0.1"] {
            assert!(
                choose(&[private, address.parse().unwrap()]).is_err(),
                "{address}"
            );
        }
    }
}
