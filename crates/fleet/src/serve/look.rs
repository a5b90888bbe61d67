//! Looking at a machine: what its node does, what its controller says, and whether it carries work.

use super::source::Source;
use crate::{
    config::NodeEntry,
    power::{NodeLook, PowerDriver, PowerError, Reading, Sight, drivers::TcpLook},
};
use futures::{StreamExt, stream};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

/// So many machines are looked at together.
const TOGETHER: usize = 128;
/// A controller that takes longer to answer is not waited for.
const READING: Duration = Duration::from_secs(8);
/// All looks together take no longer; who was not looked at then is as before.
const ALL: Duration = Duration::from_secs(15);

/// The last look before something is sent: the node is asked, and whoever schedules work.
///
/// A machine is idle only if nobody says otherwise and somebody says that it is: its own command,
/// if there is one, and the source, if it knows. A node that never answered since its machine was
/// switched on cannot have been given any work.
pub(super) struct CarefulLook {
    pub(super) name: String,
    pub(super) node: Option<NodeEntry>,
    pub(super) source: Arc<dyn Source>,
    /// Whether the node has answered since the machine was switched on.
    pub(super) answered: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl NodeLook for CarefulLook {
    async fn look(&self) -> Sight {
        let mut answers = false;
        // Whether its own command says that it is idle; none if it has no command.
        let mut idle = None;
        if let Some(node) = &self.node {
            let look = TcpLook::new(node.address.clone(), node.idle.clone());
            let sight = look.look().await;
            answers = sight.answers;
            idle = node.idle.as_ref().map(|_| !sight.carries_work);
        }
        let carries = self.source.carries_work(&self.name).await;
        if answers {
            self.answered.store(true, Relaxed);
        }
        let never = !self.answered.load(Relaxed);
        Sight {
            answers,
            carries_work: judge(answers, idle, carries, never),
        }
    }

    async fn boot_id(&self) -> Result<Option<String>, PowerError> {
        let Some(node) = &self.node else {
            return Ok(None);
        };
        let look = TcpLook::new(node.address.clone(), None);
        look.telling_boots(node.boot_id.clone()).boot_id().await
    }
}

/// Whether a machine counts as carrying work: `idle` is what its own command says, `carries` what
/// the source says, `never` whether its node never answered.
fn judge(answers: bool, idle: Option<bool>, carries: Option<bool>, never: bool) -> bool {
    match (carries, idle) {
        (Some(true), _) => true,
        // Nobody can ask a node that does not answer.
        (Some(false), _) if !answers => false,
        (None, _) if !answers && never => false,
        (Some(false), None) => false,
        (_, Some(idle)) => !idle,
        (None, None) => true,
    }
}

/// What was seen of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Whether its node answers.
    pub(super) answers: bool,
    /// What its controller says; absent if it was not asked or did not answer.
    pub(super) reading: Option<Reading>,
}

/// What a look at a machine brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Looked {
    pub(super) seen: Seen,
    /// What is wrong with its controller; absent if that was not asked.
    pub(super) controller: Option<Result<(), String>>,
}

/// One machine to look at.
pub(super) struct Target {
    pub(super) node: Option<String>,
    /// Absent if the controller need not be asked.
    pub(super) driver: Option<Arc<dyn PowerDriver>>,
    /// Whether there is nobody to ask about it: it is on, as the configuration says of base machines.
    pub(super) given: bool,
    /// Whether the controller is asked even if the node answers, to see whether it still would.
    pub(super) check: bool,
}

/// Looks at all machines, many at a time. `None` for those that there was no time for. A node that
/// answers is on, so its controller is asked now and then only, and not believed.
pub(super) async fn look(targets: &[Target], first: usize) -> Vec<Option<Looked>> {
    let found = Mutex::new(vec![None; targets.len()]);
    let order = (0..targets.len()).map(|at| (at + first) % targets.len());
    let all = stream::iter(order).for_each_concurrent(TOGETHER, |at| {
        let (found, target) = (&found, &targets[at]);
        async move {
            let seen = look_at(target).await;
            found.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(seen);
        }
    });
    // Those who were not in time are looked at first the next time.
    let _ = tokio::time::timeout(ALL, all).await;
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

async fn look_at(target: &Target) -> Looked {
    let answers = match &target.node {
        Some(address) => TcpLook::new(address.clone(), None).look().await.answers,
        None => target.given,
    };
    let said = match &target.driver {
        Some(driver) if !answers || target.check => {
            let said = tokio::time::timeout(READING, driver.read()).await;
            Some(said.unwrap_or(Err(PowerError::TimedOut(READING))))
        }
        _ => None,
    };
    let controller = said.as_ref().map(|said| match said {
        Ok(Reading::Off) if answers => {
            Err("says that it is off, though its node answers".to_owned())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    });
    let reading = said.and_then(Result::ok).filter(|_| !answers);
    Looked {
        seen: Seen { answers, reading },
        controller,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_be_at_work_counts_as_working() {
        for (answers, idle, carries, never, expected) in [
            (true, None, None, false, true),
            (true, None, Some(false), false, false),
            (true, None, Some(true), false, true),
            (true, Some(false), Some(false), false, true),
            (true, Some(true), Some(true), false, true),
            (true, Some(true), None, false, false),
            // A node that answered once and is silent may work on.
            (false, None, None, false, true),
            (false, Some(false), None, false, true),
            (false, None, None, true, false),
            (false, Some(false), Some(false), false, false),
            (false, None, Some(true), true, true),
        ] {
            let judged = judge(answers, idle, carries, never);
            assert_eq!(judged, expected, "{answers} {idle:?} {carries:?} {never}");
        }
    }
}
