//! Which hosts a pull may reach.
//!
//! An administrator's pull may reach any. A tenant's may not reach what is near the node and not
//! on the internet: other services of the machine, its private networks, a cloud's metadata. Names
//! are judged by what they resolve to, when they are resolved for a connection, so that a name
//! cannot mean one address when it is judged and another when it is used; that holds for redirects
//! and token servers too.

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A cloud's service for its machines that has a public address.
const PLATFORM_SERVICE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Says of an address whether it may be reached.
pub(super) type Judge = fn(IpAddr) -> bool;

/// The host is not to be reached from here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is in a private network, where only an administrator may pull from")]
pub(super) struct Unreachable(String);

/// Refuses an address that stands in a URL: such a host is never resolved.
pub(super) fn check(url: &Url, judge: Judge) -> Result<(), Unreachable> {
    let Some(host) = url.host_str() else {
        return Ok(());
    };
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) if !judge(address) => Err(Unreachable(host.to_owned())),
        _ => Ok(()),
    }
}

/// Resolves names to those of their addresses that may be reached.
pub(super) struct Resolver(pub(super) Judge);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let judge = self.0;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.filter(|found| judge(found.ip())).collect();
            if found.is_empty() {
                return Err(Unreachable(name.as_str().to_owned()).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is on the internet, by the registries of special addresses (RFC 6890).
pub(super) fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = match address.octets() {
        [0 | 10 | 127, ..] | [224..=255, ..] => true,
        [100, second, ..] => (64..128).contains(&second),
        [169, 254, ..] | [192, 168, ..] | [198, 18 | 19, ..] => true,
        [172, second, ..] => (16..32).contains(&second),
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 51, 100, _] | [203, 0, 113, _] => true,
        _ => false,
    };
    !special && address != PLATFORM_SERVICE
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        // What a translator (RFC 6052) or 6to4 (RFC 3056) would reach.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Protocol assignments with Teredo, and documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_the_node_is_not_public() {
        for near in [
            "0.0.0.0",
            "10.1.2.3",
            "100.100.100.200",
            "127.0.0.1",
            "169.254.169.254",
            "168.63.129.16",
            "172.31.255.1",
            "192.0.0.192",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "64:ff9b:1::1",
        ] {
            assert!(!is_public(near.parse().unwrap()), "{near}");
        }
        for far in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "8.8.8.8",
            "2606:4700::1111",
            "64:ff9b::808:808",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(far.parse().unwrap()), "{far}");
        }
    }

    #[test]
    fn addresses_in_urls_are_judged() {
        for (url, well) in [
            ("https://127.0.0.1/v2/", false),
            ("https://[::1]:5000/v2/", false),
            ("https://2130706433/", false),
            ("https://0x7f.1/", false),
            ("https://1.1.1.1/", true),
            ("https://registry.example/", true),
        ] {
            assert_eq!(
                check(&Url::parse(url).unwrap(), is_public).is_ok(),
                well,
                "{url}"
            );
        }
    }
}
