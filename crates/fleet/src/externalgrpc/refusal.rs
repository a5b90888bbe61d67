//! Refusals as gRPC says them. Cluster Autoscaler only tells "unimplemented" from the rest, and shows
//! the words to people.

use crate::targets::TargetError;
use tonic::{Code, Status};

impl From<TargetError> for Status {
    fn from(error: TargetError) -> Self {
        let code = match &error {
            TargetError::UnknownGroup(_) | TargetError::UnknownNode(_) => Code::NotFound,
            TargetError::Delta { .. } | TargetError::OtherGroup { .. } => Code::InvalidArgument,
            TargetError::Base(_)
            | TargetError::BelowMin { .. }
            | TargetError::Atomic(_)
            | TargetError::Fulfilled { .. } => Code::FailedPrecondition,
            TargetError::AboveMax { .. } => Code::OutOfRange,
            TargetError::TooFew { .. } => Code::ResourceExhausted,
            TargetError::NotSeenYet(_) | TargetError::NotLeader | TargetError::Stopping => {
                Code::Unavailable
            }
            _ => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// A message that is not what the call takes.
pub(super) fn unreadable(error: &prost::DecodeError) -> Status {
    Status::invalid_argument(format!("the message cannot be read: {error}"))
}
