//! What the book says of certificates: for whom one may be made.

use super::book::{Book, Refusal, SKEW_MS};
use crate::identity::Signed;
use crate::policy::{Policy, Subject};
use crate::workload::{Certifiable, CertifyRequest, Holder};

impl Book {
    /// What may be certified of what a node asks for.
    ///
    /// # Errors
    /// It is no node, its clock differs too much, or policy does not have it give the service.
    pub fn holder(
        &self,
        request: &Signed<CertifyRequest>,
        now_ms: u64,
    ) -> Result<Certifiable, Refusal> {
        let asked = request.verify_own(|asked| asked.identity);
        let asked = asked.map_err(|_| Refusal::Forged)?;
        let voucher = &self.member(&asked.identity)?.voucher;
        if asked.at_ms.abs_diff(now_ms) > SKEW_MS {
            return Err(Refusal::Clock(asked.at_ms.abs_diff(now_ms) / 1000));
        }
        let point = asked.point().ok_or(Refusal::Forged)?;
        let policy = match self.policy() {
            // It was parsed when it was taken.
            Some(text) => Policy::parse(text).map_err(Refusal::Policy)?,
            None => Policy::none(),
        };
        if let Some(name) = &asked.service {
            let subject = Subject {
                name: Some(&voucher.name),
                tags: &voucher.tags,
            };
            let service = policy.services().get(name);
            if !service.is_some_and(|service| policy.serves(service, subject)) {
                return Err(Refusal::Invalid(format!(
                    "the policy does not name this node for the service {name:?}"
                )));
            }
        }
        let holder = Holder {
            domain: policy.domain().to_owned(),
            node: voucher.name.clone(),
            service: asked.service,
            addresses: vec![voucher.v4.into(), voucher.v6.into()],
        };
        Ok(Certifiable {
            identity: asked.identity,
            key: asked.key,
            holder,
            point,
        })
    }
}
