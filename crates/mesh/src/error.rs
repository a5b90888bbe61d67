//! What can go wrong when the data plane is set up. What goes wrong with packets is counted, not raised.

use std::io;

/// Why something could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused a step.
    #[error("cannot {step}: {source}")]
    System {
        /// What was tried, as an infinitive.
        step: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A text that is not 32 bytes in base64.
    #[error("this is not a WireGuard key: it must be 32 bytes in base64, 44 characters")]
    Key,
    /// A text that is not an identity.
    #[error("this is not a mesh identity: it must be 32 bytes in base64 for URLs, 43 characters")]
    Identity,
    /// A text that is not a join token.
    #[error(
        "this is not a join token: `atoll mesh token create` prints one, which begins with atm_"
    )]
    Token,
    /// A signature that does not hold, or a text that is not understood.
    #[error("the signature does not hold")]
    Signature,
    /// A text that is not an address range.
    #[error("{0:?} is not an address range such as 10.1.0.0/16 or fd00::/64")]
    Prefix(String),
    /// An interface name that the kernel would not take.
    #[error("{0:?} is not an interface name: 1 to 15 characters, no blanks, no slashes")]
    InterfaceName(String),
    /// The own key given as a peer's.
    #[error("a node cannot be its own peer")]
    OwnKey,
    /// All indices are taken.
    #[error("there is no room for another peer: {0} are there")]
    TooManyPeers(usize),
}

impl Error {
    /// The system's error, with what was tried.
    pub(crate) fn io(step: &'static str, source: impl Into<io::Error>) -> Self {
        Self::System {
            step,
            source: source.into(),
        }
    }

    /// What `errno` says of the call before, with what was tried.
    pub(crate) fn last(step: &'static str) -> Self {
        Self::io(step, io::Error::last_os_error())
    }
}
