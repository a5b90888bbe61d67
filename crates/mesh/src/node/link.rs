//! How a node reaches its coordinator.

use std::future::Future;

use crate::coordination::{
    Farewell, Frame, JoinAnswer, JoinRequest, NodeRecord, Signed, WatchRequest,
};
use crate::workload::{Certificate, CertifyRequest};

/// Why the coordinator did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It was not reached, or has a fault that may pass.
    #[error("the coordinator does not answer: {0}")]
    Unreachable(String),
    /// It refuses.
    #[error("the coordinator refuses: {0}")]
    Refused(String),
}

/// What a node hears that asked for changes. Nothing of it is believed without a signature.
#[derive(Debug, Clone)]
pub enum Heard {
    /// Nothing changed for a while.
    Nothing,
    /// What changed.
    Frame(Box<Signed<Frame>>),
    /// The node is in no more.
    Farewell(Signed<Farewell>),
}

/// A way to the coordinator. What it carries is signed, so it need not be trusted; but the secret of a token in a join should
/// not be read on the way.
pub trait Link: Send + Sync {
    /// Asks to be let in.
    fn join(
        &self,
        request: &JoinRequest,
    ) -> impl Future<Output = Result<JoinAnswer, LinkError>> + Send;

    /// Says something else of oneself.
    fn update(
        &self,
        record: &Signed<NodeRecord>,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Asks for what changed, and waits a while if nothing did.
    fn watch(
        &self,
        request: &Signed<WatchRequest>,
    ) -> impl Future<Output = Result<Heard, LinkError>> + Send;

    /// Asks for a certificate. One that carries none refuses.
    fn certify(
        &self,
        _request: &Signed<CertifyRequest>,
    ) -> impl Future<Output = Result<Signed<Certificate>, LinkError>> + Send {
        async { Err(LinkError::Refused("it makes no certificates".to_owned())) }
    }
}
