//! What a node says of itself, and what the coordinator vouches for.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::identity::{IdentityKey, Purpose, Signed};
use crate::key::PublicKey;
use crate::prefix::Prefix;

/// The most endpoints of a kind that a node may name.
pub(super) const MOST_ENDPOINTS: usize = 16;
/// The most services that it may say something of.
pub(crate) const MOST_SERVICES: usize = 64;

/// How packets get in and out of a node's machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Over a network device: it has tunnels, and carries flows with nodes that have none.
    #[default]
    Tun,
    /// Without one: only flows of TCP reach it.
    Userspace,
}

impl Mode {
    /// Whether there is a network device.
    pub const fn is_tun(&self) -> bool {
        matches!(self, Self::Tun)
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Tun => "tun",
            Self::Userspace => "userspace",
        })
    }
}

/// What a certificate is known by: its SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        let bytes = bytes.try_into();
        bytes
            .map(Self)
            .map_err(|_| serde::de::Error::custom("a fingerprint has 32 bytes"))
    }
}

/// A relay that a node is for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayOffer {
    /// Who the relay is.
    pub key: PublicKey,
    /// Where it listens on UDP: the same port at several addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub udp: Vec<SocketAddr>,
    /// Where it listens on TLS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<SocketAddr>,
    /// What its certificate is known by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Fingerprint>,
}

impl RelayOffer {
    fn bounded(&self) -> bool {
        self.udp.len() <= MOST_ENDPOINTS && self.tls.len() <= MOST_ENDPOINTS
    }
}

/// The keys of a node's tunnels besides the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The one in use, if it is not the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<PublicKey>,
    /// The one that takes its place, which it answers to already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<PublicKey>,
}

/// What a node says of itself, signed by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Who says it.
    pub identity: IdentityKey,
    /// Grows with every change, also across restarts: an older one is never believed again.
    pub epoch: u64,
    /// What it would like to be called.
    pub name: String,
    /// The key of its tunnels, or the first that they had: the name that relays know it by.
    pub wireguard: PublicKey,
    /// What it says of newer keys, if it has tunnels and may exchange their key. Versions that keep one key for good say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal: Option<Renewal>,
    /// Where its tunnels may be reached; nowhere if it has none.
    pub endpoints: Vec<SocketAddr>,
    /// Where its carrier of flows may be reached. Versions that carry none name nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flows: Vec<SocketAddr>,
    /// The key by which its carrier of flows is known to relays and to those who look for it. Versions that are only reached directly name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<PublicKey>,
    /// The relay that it is for others, if policy agrees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<RelayOffer>,
    /// How packets get in and out of it.
    #[serde(default, skip_serializing_if = "Mode::is_tun")]
    pub mode: Mode,
    /// Whether it runs no Atoll: any other WireGuard peer, which has tunnels and nothing else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
    /// The services that it is not ready to give, though policy says that it is one of those who do.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unready: BTreeSet<String>,
}

impl Purpose for NodeRecord {
    const PURPOSE: &'static str = "record";
}

impl NodeRecord {
    /// The key that its tunnels use.
    pub fn tunnel(&self) -> PublicKey {
        let present = self.renewal.and_then(|renewal| renewal.present);
        present.unwrap_or(self.wireguard)
    }

    /// Every key that is its own.
    pub(super) fn keys(&self) -> impl Iterator<Item = PublicKey> {
        let newer = self.renewal.map(|renewal| [renewal.present, renewal.next]);
        let newer = newer.into_iter().flatten().flatten();
        std::iter::once(self.wireguard).chain(newer)
    }

    pub(super) fn bounded(&self) -> bool {
        self.endpoints.len() <= MOST_ENDPOINTS
            && self.flows.len() <= MOST_ENDPOINTS
            && self.relay.as_ref().is_none_or(RelayOffer::bounded)
            && self.name.len() <= 255
            && self.unready.len() <= MOST_SERVICES
            && self.unready.iter().all(|service| service.len() <= 63)
    }
}

/// What the coordinator says of a node, signed by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voucher {
    /// Of whom.
    pub identity: IdentityKey,
    /// Its number in the mesh, from which its addresses follow.
    pub number: u32,
    /// What it is called: a DNS label that no other node has.
    pub name: String,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its address.
    pub v6: Ipv6Addr,
    /// What policy knows it by, from the token that it joined with.
    pub tags: BTreeSet<String>,
    /// Whether it is forgotten once it vanished.
    pub ephemeral: bool,
}

impl Purpose for Voucher {
    const PURPOSE: &'static str = "voucher";
}

/// A node as others are told of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What the coordinator vouches for.
    pub voucher: Signed<Voucher>,
    /// What the node says.
    pub record: Signed<NodeRecord>,
}

/// The first number that is no node's: from here on the range is for services.
const FIRST_OF_SERVICES: u32 = 0x3f << 16;

/// The IPv4 address of a node, in 100.64.0.0/10 below 100.127.0.0; `None` when the numbers are used up.
pub fn overlay_v4(number: u32) -> Option<Ipv4Addr> {
    (1..FIRST_OF_SERVICES)
        .contains(&number)
        .then(|| Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() | number))
}

/// The IPv4 address of a service, in 100.127.0.0/16; `None` for what is no service's number. The last is left out, as it would be a broadcast.
pub fn service_v4(number: u16) -> Option<Ipv4Addr> {
    let [high, low] = number.to_be_bytes();
    (1..u16::MAX)
        .contains(&number)
        .then(|| Ipv4Addr::new(100, 127, high, low))
}

/// Whether an address is of the range of services.
pub fn is_service_v4(address: Ipv4Addr) -> bool {
    address.octets()[..2] == [100, 127]
}

/// The IPv6 range of the mesh that this coordinator holds together: a /48 of its own in fd00::/8.
pub fn overlay_v6_range(coordinator: &IdentityKey) -> Prefix {
    Prefix::new(overlay_v6(coordinator, 0).into(), 48)
}

/// The IPv6 address of a node.
pub fn overlay_v6(coordinator: &IdentityKey, number: u32) -> Ipv6Addr {
    let digest = ring::digest::digest(&ring::digest::SHA256, coordinator.as_bytes());
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..6].copy_from_slice(&digest.as_ref()[..5]);
    bytes[12..].copy_from_slice(&number.to_be_bytes());
    bytes.into()
}

/// A DNS label out of any text: lower case, digits and hyphens, at most 56 characters, so that a number fits behind.
pub fn label(text: &str) -> String {
    let first = text.split('.').next().unwrap_or_default();
    let mut label = String::new();
    for c in first.chars().take(56) {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_lowercase() || c.is_ascii_digit() => label.push(c),
            _ if label.is_empty() || label.ends_with('-') => {}
            _ => label.push('-'),
        }
    }
    let label = label.trim_end_matches('-');
    if label.is_empty() { "node" } else { label }.to_owned()
}
