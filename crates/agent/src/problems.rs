//! Faults of the machine as users see them.

use api::{ErrorCode, Problem};
use driver::DriverError;
use std::error::Error;

/// An error and all that caused it, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What a driver's error tells the user who wanted a sandbox.
pub(crate) fn from_driver(error: &DriverError) -> Problem {
    match error {
        DriverError::Unsupported { cause, remedy } => {
            Problem::new(ErrorCode::Unsupported, cause, remedy)
        }
        DriverError::Exhausted { what: "disk", .. } => Problem::new(
            ErrorCode::OutOfDisk,
            chain(error),
            "free space on the disk that holds the data directory, or remove templates that \
             nobody uses",
        ),
        DriverError::Exhausted { .. } => Problem::new(
            ErrorCode::OutOfCapacity,
            chain(error),
            "end sandboxes that are not needed, or try again later",
        ),
        DriverError::Guest(_) => Problem::new(
            ErrorCode::Internal,
            chain(error),
            "look at the node's log; a template without a usable root file system shows like this",
        ),
        DriverError::System { .. } => {
            Problem::new(ErrorCode::Internal, chain(error), "look at the node's log")
        }
    }
}

/// The agent is shutting down and takes no more requests.
pub(crate) fn stopping() -> Problem {
    Problem::new(
        ErrorCode::Unavailable,
        "this node is stopping",
        "try again when it has started again, or on another node",
    )
}

/// No sandbox of that name is known here.
pub(crate) fn unknown(id: &api::SandboxId) -> Problem {
    Problem::new(
        ErrorCode::NotFound,
        format!("sandbox {id} is not on this node"),
        "list sandboxes to see which there are",
    )
}
