//! Identities of workloads: certificates by which programs on nodes prove to each other who they are (mutual TLS).
//!
//! They are X.509-SVIDs of [SPIFFE](https://spiffe.io/docs/latest/spiffe-specs/x509-svid/). The trust domain is the mesh's domain, and the path says who
//! is meant:
//!
//! | SPIFFE id | whose | also good for the DNS names |
//! | --- | --- | --- |
//! | `spiffe://mesh.internal/node/db-1` | any program of a node | `db-1.mesh.internal` |
//! | `spiffe://mesh.internal/service/db` | what gives a service, on every node that policy names for it | `db.mesh.internal`, `db-1.mesh.internal` |
//!
//! A node makes the key, so no private key is ever sent, shows that it has it, and signs what it asks for with its identity; the coordinator looks
//! whether it is a member and whether policy has it give the service, and answers with a certificate of its [`Authority`] that ends after [`LIFE`],
//! and with the authority's own, which others are checked against. The answer is signed like all that a coordinator says, so who stands between can put no
//! other authority in its place. A revoked node gets none any more; what it has ends by itself.
//!
//! The authority has a key of its own (ECDSA P-256, which all TLS libraries take), apart from that of the coordinator.
//!
//! Absent: SPIFFE's Workload API (programs read files), JWT-SVIDs, federation of trust domains, lists of revoked certificates.

mod authority;
mod request;
#[cfg(test)]
mod tests;

pub use authority::Authority;
pub use request::{Certificate, Certified, CertifyRequest, WorkloadKey};

use std::time::Duration;

/// How long a certificate is good for. It is renewed after a third of it, so the coordinator may be away for the rest.
pub const LIFE: Duration = Duration::from_secs(24 * 3600);
/// How much earlier it begins than it is made: clocks differ.
const EARLIER: Duration = Duration::from_secs(15 * 60);

/// Whom a certificate is for: what is written into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The trust domain: that of the mesh.
    pub domain: String,
    /// The node's name.
    pub node: String,
    /// The service, if it is for one.
    pub service: Option<String>,
    /// The node's addresses in the mesh.
    pub addresses: Vec<std::net::IpAddr>,
}

/// What may be certified: a key, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certifiable {
    /// Who asked.
    pub identity: crate::identity::IdentityKey,
    /// The public key, as it was asked for.
    pub key: String,
    /// Whose it is.
    pub holder: Holder,
    /// Its point.
    pub point: [u8; 65],
}

impl Holder {
    /// Its SPIFFE id.
    pub fn id(&self) -> String {
        let Self { domain, node, .. } = self;
        match &self.service {
            Some(service) => format!("spiffe://{domain}/service/{service}"),
            None => format!("spiffe://{domain}/node/{node}"),
        }
    }

    /// Its DNS names, its own first.
    fn names(&self) -> Vec<String> {
        let own = self.service.iter().chain([&self.node]);
        own.map(|name| format!("{name}.{}", self.domain)).collect()
    }
}
