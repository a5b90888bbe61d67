//! How many handshakes one source gets done while there are many.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Handshakes a second and source, while there is load.
const RATE: f32 = 20.0;
/// Handshakes at once and source.
const BURST: f32 = 5.0;
/// Sources share this many accounts, so memory does not grow with the flood.
const ACCOUNTS: usize = 1024;

/// Accounts of sources that proved their address with a cookie and still send too much.
///
/// A source is an address, or for IPv6 a /64. Sources are spread over the accounts by a secret, so nobody can choose
/// whose account to empty.
#[derive(Debug)]
pub(crate) struct Sources {
    secret: RandomState,
    accounts: Vec<(f32, Instant)>,
    limit: u32,
    window: Instant,
    seen: u32,
}

impl Sources {
    /// No load. Beyond `limit` handshakes a second there is.
    pub(crate) fn new(limit: u32, now: Instant) -> Self {
        Self {
            secret: RandomState::new(),
            accounts: vec![(BURST, now); ACCOUNTS],
            limit,
            window: now,
            seen: 0,
        }
    }

    /// Whether a handshake of this source may be done now.
    pub(crate) fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.window) >= Duration::from_secs(1) {
            self.window = now;
            self.seen = 0;
        }
        self.seen = self.seen.saturating_add(1);
        if self.seen <= self.limit {
            return true;
        }
        let network = match source {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
        };
        let account = self.secret.hash_one((source.is_ipv4(), network)) as usize % ACCOUNTS;
        let (tokens, since) = &mut self.accounts[account];
        let passed = now.saturating_duration_since(*since).as_secs_f32();
        *tokens = (*tokens + passed * RATE).min(BURST);
        *since = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn under_load_each_source_gets_its_share() {
        let start = Instant::now();
        let mut sources = Sources::new(10, start);
        let flood: IpAddr = "192.0.2.1".parse().unwrap();
        let other: IpAddr = "2001:db8::1".parse().unwrap();
        let allowed = (0..1000).filter(|_| sources.allow(flood, start)).count();
        assert_eq!(allowed, 10 + 5, "ten before there is load, then a burst");
        // The two may share an account in one of 1024 runs; then the other waits with it.
        let shared = !sources.allow(other, start);
        let later = start + Duration::from_millis(500);
        let allowed = (0..1000).filter(|_| sources.allow(flood, later)).count();
        assert_eq!(allowed, 5);
        assert!(shared || sources.allow(other, later));
        let calm = start + Duration::from_secs(2);
        assert!((0..10).all(|_| sources.allow(flood, calm)));
    }
}
