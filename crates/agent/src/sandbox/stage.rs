//! Which change of state is legal.

use api::{ErrorCode, Problem, SandboxId, node::SandboxState};
use std::fmt;

/// A state without what it carries. See the module's drawing for what leads where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Starting,
    Running,
    Pausing,
    Paused,
    Resuming,
    Stopping,
    Ended,
}

impl Stage {
    /// The stage that a state belongs to.
    pub(crate) fn of(state: &SandboxState) -> Self {
        match state {
            SandboxState::Starting => Self::Starting,
            SandboxState::Running => Self::Running,
            SandboxState::Pausing => Self::Pausing,
            SandboxState::Paused => Self::Paused,
            SandboxState::Resuming => Self::Resuming,
            SandboxState::Stopping { .. } => Self::Stopping,
            SandboxState::Ended { .. } => Self::Ended,
        }
    }

    /// Checks that a sandbox may go from here to `next`.
    pub(crate) fn check(self, next: Self) -> Result<(), IllegalTransition> {
        use Stage::{Ended, Paused, Pausing, Resuming, Running, Starting, Stopping};
        match (self, next) {
            (Starting, Running | Stopping | Ended)
            | (Running, Pausing | Stopping | Ended)
            | (Pausing, Running | Paused | Stopping | Ended)
            | (Paused, Resuming | Stopping | Ended)
            | (Resuming, Running | Paused | Stopping | Ended)
            | (Stopping, Ended) => Ok(()),
            (from, to) => Err(IllegalTransition { from, to }),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
        })
    }
}

/// A sandbox cannot go from one state to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is {from} cannot become {to}")]
pub(crate) struct IllegalTransition {
    pub(crate) from: Stage,
    pub(crate) to: Stage,
}

/// What a request that only a running sandbox can serve gets otherwise.
pub(crate) fn not_running(id: &SandboxId, stage: Stage) -> Problem {
    let remedy = match stage {
        Stage::Starting => "wait until it runs",
        _ => "create another one",
    };
    Problem::new(
        ErrorCode::Conflict,
        format!(
            "sandbox {id} is {stage}, and this needs it to be {}",
            Stage::Running
        ),
        remedy,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_the_end_and_nothing_returns_to_the_start() {
        use Stage::{Ended, Paused, Pausing, Resuming, Running, Starting, Stopping};
        let all = [
            Starting, Running, Pausing, Paused, Resuming, Stopping, Ended,
        ];
        for stage in all {
            assert!(Ended.check(stage).is_err());
            assert!(stage.check(Starting).is_err());
            assert!(stage.check(stage).is_err());
        }
        assert_eq!(
            Stopping.check(Running).unwrap_err().to_string(),
            "a sandbox that is stopping cannot become running"
        );
    }
}
