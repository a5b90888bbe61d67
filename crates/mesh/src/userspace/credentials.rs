//! User and password of a proxy, compared in constant time.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What opens a proxy. Only a hash of it is kept.
#[derive(Clone, Copy)]
pub struct Credentials([u8; 32]);

impl Credentials {
    /// Those of this user with this password. SOCKS5 carries up to 255 bytes of each.
    pub fn new(user: &[u8], password: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update((user.len() as u64).to_be_bytes());
        hash.update(user);
        hash.update(password);
        Self(hash.finalize().into())
    }

    /// Whether these are the same. How long that takes says nothing of what differs.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Credentials(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_user_and_password_match() {
        let right = Credentials::new(b"user", b"word");
        assert!(right.matches(&Credentials::new(b"user", b"word")));
        for (user, password) in [
            ("user", "wor"),
            ("use", "rword"),
            ("userword", ""),
            ("", "userword"),
            ("User", "word"),
            ("", ""),
        ] {
            let other = Credentials::new(user.as_bytes(), password.as_bytes());
            assert!(!right.matches(&other), "{user}:{password}");
        }
        assert_eq!(format!("{right:?}"), "Credentials(…)");
    }
}
