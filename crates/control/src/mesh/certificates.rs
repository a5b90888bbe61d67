//! Certificates for programs on nodes, and the authority that signs them: `atoll/mesh/authority` in the store, made when it is needed first.

use super::{Coordinator, PREFIX, now_ms, refuse};
use api::{ErrorCode, Problem};
use mesh::{
    coordination::Signed,
    workload::{Authority, Certificate, CertifyRequest},
};
use store::{Condition, Operation, Transaction};

/// What the book does not read.
pub(super) const KEY: &str = "authority";

fn failed(error: mesh::Error) -> Problem {
    Problem::new(ErrorCode::Internal, error.to_string(), "")
}

impl Coordinator {
    /// A certificate for a node's program, signed as an answer.
    pub(crate) async fn certify(
        &self,
        request: &Signed<CertifyRequest>,
    ) -> Result<Signed<Certificate>, Problem> {
        let asked = self.look(|book| book.holder(request, now_ms())).await;
        let asked = asked.map_err(refuse)?;
        let domain = &asked.holder.domain;
        let authority = self
            .authority
            .get_or_try_init(|| self.open_authority(domain));
        let certificate = authority.await?.issue(&asked, now_ms()).map_err(failed)?;
        tracing::info!(id = %certificate.id, node = %asked.holder.node, "made a certificate");
        Ok(self.look(|book| book.sign(&certificate)).await)
    }

    async fn open_authority(&self, domain: &str) -> Result<Authority, Problem> {
        let key = format!("{PREFIX}{KEY}");
        loop {
            if let Some(entry) = self.store.get(&key).await? {
                let text = std::str::from_utf8(&entry.value).unwrap_or_default();
                return Authority::open(text).map_err(|_| {
                    let cause =
                        format!("the authority of the mesh's certificates is spoilt: `{key}`");
                    let remedy = "restore the store from a backup";
                    Problem::new(ErrorCode::Internal, cause, remedy)
                });
            }
            let new = Authority::generate(domain, now_ms()).map_err(failed)?;
            let transaction = Transaction {
                conditions: vec![Condition::Absent(key.clone())],
                then: vec![Operation::put(key.clone(), new.as_bytes().to_vec())],
            };
            self.store.transact(transaction).await?;
        }
    }
}
