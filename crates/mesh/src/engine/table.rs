//! Who the peers are, and whose an address is.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::PeerOptions;
use super::peer::Peer;
use crate::crypto::{Core, STRANDS, TunnelKeys};
use crate::error::Error;
use crate::key::PublicKey;
use crate::prefix::{Prefix, Routes};

/// Indices have 24 bits, and each peer a few of them; that all are taken must not make the search for a free one long.
const MOST_PEERS: usize = 1 << 21;
const INDEX_MASK: u32 = 0x00ff_ffff;

/// All peers, by everything they are looked up by.
pub(super) struct Table {
    peers: HashMap<PublicKey, Entry>,
    by_index: HashMap<u32, Arc<Peer>>,
    /// By the keys of their tunnels.
    by_tunnel: HashMap<PublicKey, Arc<Peer>>,
    routes: Routes<Arc<Peer>>,
    /// Ranges that several peers may lead to, the preferred first.
    gateways: Routes<Vec<(u32, Arc<Peer>)>>,
    next_index: u32,
}

struct Entry {
    peer: Arc<Peer>,
    tunnels: Vec<PublicKey>,
    allowed: Vec<Prefix>,
    behind: Vec<Prefix>,
    probed: bool,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            peers: HashMap::new(),
            by_index: HashMap::new(),
            by_tunnel: HashMap::new(),
            routes: Routes::new(),
            gateways: Routes::new(),
            next_index: 0,
        }
    }

    /// Adds or changes a peer.
    pub(super) fn set(
        &mut self,
        options: &PeerOptions,
        core: &dyn Core,
    ) -> Result<Arc<Peer>, Error> {
        let key = options.public_key;
        let mut tunnels = options.tunnels.clone();
        if tunnels.is_empty() {
            tunnels.push(key);
        }
        let known = self.peers.get(&key).map(|entry| Arc::clone(&entry.peer));
        let peer = match known {
            Some(peer) if peer.preshared_key == options.preshared_key => {
                self.unroute(&key);
                peer
            }
            other => {
                let endpoint = other.and_then(|peer| peer.lock().endpoint);
                self.remove(&key);
                if self.peers.len() >= MOST_PEERS {
                    return Err(Error::TooManyPeers(self.peers.len()));
                }
                let index = self.free_index();
                let preshared = options.preshared_key.clone();
                let keys = TunnelKeys {
                    peer: *tunnels.first().unwrap_or(&key),
                    preshared: preshared.clone(),
                    index,
                };
                let peer = Arc::new(Peer::new(
                    key,
                    preshared,
                    index,
                    core.tunnel(&keys),
                    endpoint,
                ));
                self.by_index.insert(index, Arc::clone(&peer));
                peer
            }
        };
        for tunnel in &tunnels {
            self.by_tunnel.insert(*tunnel, Arc::clone(&peer));
        }
        let follows = options.paths.is_some();
        peer.lock().tunnel.renew(&tunnels, follows);
        let mut allowed = options.allowed.clone();
        allowed.sort_unstable();
        allowed.dedup();
        for range in &allowed {
            let before = self.routes.insert(*range, Arc::clone(&peer));
            if let Some(before) = before
                && let Some(entry) = self.peers.get_mut(&before.public_key)
            {
                entry.allowed.retain(|theirs| theirs != range);
            }
        }
        let mut behind = options.behind.clone();
        behind.sort_unstable();
        behind.dedup();
        for range in &behind {
            let mut gateways = self.gateways.remove(*range).unwrap_or_default();
            gateways.push((options.rank, Arc::clone(&peer)));
            gateways.sort_by_key(|(rank, peer)| (*rank, peer.public_key));
            self.gateways.insert(*range, gateways);
        }
        self.peers.insert(
            key,
            Entry {
                peer: Arc::clone(&peer),
                tunnels,
                allowed,
                behind,
                probed: options.paths.is_some(),
            },
        );
        Ok(peer)
    }

    /// Forgets a peer; whether it was there.
    pub(super) fn remove(&mut self, key: &PublicKey) -> bool {
        self.unroute(key);
        match self.peers.remove(key) {
            Some(entry) => {
                self.by_index.remove(&entry.peer.index);
                true
            }
            None => false,
        }
    }

    /// Takes a peer's ranges away.
    fn unroute(&mut self, key: &PublicKey) {
        let Some(entry) = self.peers.get_mut(key) else {
            return;
        };
        for range in entry.allowed.drain(..) {
            if self
                .routes
                .get(range)
                .is_some_and(|peer| Arc::ptr_eq(peer, &entry.peer))
            {
                self.routes.remove(range);
            }
        }
        for tunnel in entry.tunnels.drain(..) {
            let owner = self.by_tunnel.get(&tunnel);
            if owner.is_some_and(|peer| Arc::ptr_eq(peer, &entry.peer)) {
                self.by_tunnel.remove(&tunnel);
            }
        }
        for range in entry.behind.drain(..) {
            let mut gateways = self.gateways.remove(range).unwrap_or_default();
            gateways.retain(|(_, peer)| !Arc::ptr_eq(peer, &entry.peer));
            if !gateways.is_empty() {
                self.gateways.insert(range, gateways);
            }
        }
    }

    fn free_index(&mut self) -> u32 {
        loop {
            self.next_index = (self.next_index + STRANDS) & INDEX_MASK;
            if !self.by_index.contains_key(&self.next_index) {
                return self.next_index;
            }
        }
    }

    pub(super) fn by_key(&self, key: &PublicKey) -> Option<Arc<Peer>> {
        self.peers.get(key).map(|entry| Arc::clone(&entry.peer))
    }

    pub(super) fn by_index(&self, index: u32) -> Option<Arc<Peer>> {
        self.by_index.get(&(index & !(STRANDS - 1))).cloned()
    }

    /// Whose tunnels have the key.
    pub(super) fn by_tunnel(&self, key: &PublicKey) -> Option<Arc<Peer>> {
        self.by_tunnel.get(key).cloned()
    }

    /// Every peer with the keys of its tunnels, and whether it hears of new ones.
    pub(super) fn tunnels(&self) -> Vec<(Arc<Peer>, Vec<PublicKey>, bool)> {
        let all = self.peers.values();
        all.map(|entry| (Arc::clone(&entry.peer), entry.tunnels.clone(), entry.probed))
            .collect()
    }

    /// Who is sent what goes to the address: whose it is, or else the first that leads there and answers, or the first if none does.
    pub(super) fn by_address(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        let owner = self.routes.find(address);
        owner.or_else(|| Self::preferred(self.gateways.find(address)?))
    }

    fn preferred(gateways: &[(u32, Arc<Peer>)]) -> Option<&Arc<Peer>> {
        let mut answering = gateways.iter().filter(|(_, peer)| peer.answers());
        let (_, peer) = answering.next().or(gateways.first())?;
        Some(peer)
    }

    /// Whether the peer may send from the address.
    pub(super) fn owns(&self, address: IpAddr, peer: &Arc<Peer>) -> bool {
        if let Some(owner) = self.routes.find(address) {
            return Arc::ptr_eq(owner, peer);
        }
        let mut gateways = self.gateways.find(address).into_iter().flatten();
        gateways.any(|(_, gateway)| Arc::ptr_eq(gateway, peer))
    }

    /// The peer that is sent what goes to a range.
    pub(super) fn gateway(&self, range: Prefix) -> Option<&Arc<Peer>> {
        Self::preferred(self.gateways.get(range)?)
    }

    /// Peers among which there is a choice.
    pub(super) fn choices(&self) -> Vec<Arc<Peer>> {
        let all = self.gateways.values().filter(|gateways| gateways.len() > 1);
        let mut peers: Vec<_> = all.flatten().map(|(_, peer)| Arc::clone(peer)).collect();
        peers.sort_by_key(|peer| peer.index);
        peers.dedup_by_key(|peer| peer.index);
        peers
    }

    /// Every peer.
    pub(super) fn all(&self) -> Vec<Arc<Peer>> {
        self.peers
            .values()
            .map(|entry| Arc::clone(&entry.peer))
            .collect()
    }

    /// Every peer whose ways are probed.
    pub(super) fn probed(&self) -> Vec<Arc<Peer>> {
        let probed = self.peers.values().filter(|entry| entry.probed);
        probed.map(|entry| Arc::clone(&entry.peer)).collect()
    }

    /// Every peer with its ranges.
    pub(super) fn entries(&self) -> Vec<(Arc<Peer>, Vec<Prefix>)> {
        self.peers
            .values()
            .map(|entry| (Arc::clone(&entry.peer), entry.allowed.clone()))
            .collect()
    }

    /// One peer with its ranges.
    pub(super) fn entry(&self, key: &PublicKey) -> Option<(Arc<Peer>, Vec<Prefix>)> {
        self.peers
            .get(key)
            .map(|entry| (Arc::clone(&entry.peer), entry.allowed.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::crypto::NoiseCore;
    use crate::key::{PresharedKey, PrivateKey};

    fn peer(seed: u8, allowed: &[&str]) -> PeerOptions {
        let key = PrivateKey::from_bytes([seed; 32]).public();
        PeerOptions::new(
            key,
            allowed.iter().map(|range| range.parse().unwrap()).collect(),
        )
    }

    fn owner(table: &Table, address: &str) -> Option<PublicKey> {
        table
            .by_address(address.parse().unwrap())
            .map(|peer| peer.public_key)
    }

    #[test]
    fn ranges_move_and_go_with_their_peers() {
        let core = NoiseCore::new(&PrivateKey::from_bytes([9; 32]), 100, Arc::new(SystemClock));
        let mut table = Table::new();
        let (one, two) = (
            peer(1, &["10.0.0.0/8", "10.1.0.0/16"]),
            peer(2, &["10.1.0.0/16"]),
        );
        table.set(&one, &core).unwrap();
        assert_eq!(owner(&table, "10.1.0.1"), Some(one.public_key));
        table.set(&two, &core).unwrap();
        assert_eq!(owner(&table, "10.1.0.1"), Some(two.public_key));
        assert_eq!(owner(&table, "10.2.0.1"), Some(one.public_key));
        assert_eq!(
            table.entry(&one.public_key).unwrap().1,
            ["10.0.0.0/8".parse().unwrap()]
        );
        // What moved away is not taken along.
        assert!(table.remove(&one.public_key));
        assert!(!table.remove(&one.public_key));
        assert_eq!(owner(&table, "10.1.0.1"), Some(two.public_key));
        assert_eq!(owner(&table, "10.2.0.1"), None);
        assert_eq!(table.all().len(), 1);
    }

    #[test]
    fn the_first_gateway_that_answers_is_sent_to_and_all_may_send() {
        let core = NoiseCore::new(&PrivateKey::from_bytes([9; 32]), 100, Arc::new(SystemClock));
        let mut table = Table::new();
        let range: Prefix = "10.42.0.0/16".parse().unwrap();
        let gateway = |seed, rank| PeerOptions {
            behind: vec![range],
            rank,
            ..peer(seed, &[])
        };
        let (one, two) = (gateway(1, 20), gateway(2, 10));
        let first = table.set(&one, &core).unwrap();
        let second = table.set(&two, &core).unwrap();
        let other = table.set(&peer(3, &["10.42.7.7/32"]), &core).unwrap();
        let to = |table: &Table| owner(table, "10.42.3.4").unwrap();
        assert_eq!(table.choices().len(), 2);
        // Nobody answered yet: the preferred one.
        assert_eq!(to(&table), two.public_key);
        first.note_answers(true);
        assert_eq!(to(&table), one.public_key);
        second.note_answers(true);
        assert_eq!(to(&table), two.public_key);
        let address = "10.42.3.4".parse().unwrap();
        assert!(table.owns(address, &first) && table.owns(address, &second));
        assert!(!table.owns(address, &other));
        // A peer's own address is nobody else's.
        let address = "10.42.7.7".parse().unwrap();
        assert!(table.owns(address, &other) && !table.owns(address, &first));
        table.remove(&two.public_key);
        assert_eq!(to(&table), one.public_key);
        assert!(table.choices().is_empty());
        table.set(&peer(1, &[]), &core).unwrap();
        assert_eq!(owner(&table, "10.42.3.4"), None);
        assert!(!table.owns("10.42.3.4".parse().unwrap(), &first));
    }

    #[test]
    fn a_change_keeps_the_session_unless_the_secret_changes() {
        let core = NoiseCore::new(&PrivateKey::from_bytes([9; 32]), 100, Arc::new(SystemClock));
        let mut table = Table::new();
        let mut options = peer(1, &["10.0.0.0/8"]);
        let first = table.set(&options, &core).unwrap();
        first.lock().endpoint = Some("192.0.2.1:1".parse().unwrap());
        options.allowed = vec!["10.0.0.0/9".parse().unwrap()];
        let second = table.set(&options, &core).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(owner(&table, "10.200.0.1"), None);
        options.preshared_key = Some(PresharedKey::from_bytes([3; 32]));
        let third = table.set(&options, &core).unwrap();
        assert!(!Arc::ptr_eq(&first, &third));
        assert_eq!(third.lock().endpoint, Some("192.0.2.1:1".parse().unwrap()));
        assert!(table.by_index(first.index).is_none());
        assert!(table.by_index(third.index).is_some());
        assert_eq!(owner(&table, "10.100.0.1"), Some(options.public_key));
    }
}
