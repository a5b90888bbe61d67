//! Certificates for programs on this machine.

use super::{Link, LinkError, Node, now_ms};
use crate::error::Error;
use crate::workload::{Certified, WorkloadKey};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertifyError {
    /// There are no random numbers.
    #[error(transparent)]
    Random(#[from] Error),
    /// The coordinator makes none, or is away.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Somebody else answered.
    #[error("what the coordinator answered is not signed by it, or is not for this node")]
    Impostor,
}

impl Node {
    /// A certificate with a new key for a program on this machine: of a service that policy has this node give, or of the node itself.
    ///
    /// # Errors
    /// The coordinator refuses or is away.
    pub async fn certify(
        &self,
        service: Option<&str>,
        link: &impl Link,
    ) -> Result<Certified, CertifyError> {
        let key = WorkloadKey::generate()?;
        let (request, asked, coordinator) = {
            let state = self.state();
            let asked = key.request(state.identity.public(), service, now_ms())?;
            let request = state.identity.sign(&asked);
            (request, asked, state.coordinator)
        };
        let answer = link.certify(&request).await?;
        let answer = answer.verify(&coordinator);
        let answer = answer.map_err(|_| CertifyError::Impostor)?;
        if (answer.identity, &answer.key) != (asked.identity, &asked.key) {
            return Err(CertifyError::Impostor);
        }
        Ok(key.with(answer))
    }
}
