//! Starting and stopping the agent.

use crate::{
    admission::Admission,
    adoption, background,
    facts::Facts,
    journal::Journal,
    logs::LogStore,
    options::{AgentOptions, OnExit},
    parts::Parts,
    phases::{PhaseSummary, Phases},
    pool::{Pool, Preparer},
    renewal,
    sandbox::{Registry, Request, Sandbox},
    states::States,
    templates::Making,
};
use api::{ErrorCode, Problem, node::EndReason};
use std::{sync::Arc, time::Duration};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long stopping waits for sandboxes to end.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// How long stopping waits for files to be removed.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);

/// The owner of all sandboxes of one machine. It implements [`api::node::Node`] for the control
/// plane and [`api::route::Locate`] for the gateway.
///
/// Its tasks end with [`Agent::stop`] or with the runtime. In the second case, as when the program
/// is killed, sandboxes go on and the next start finds them.
#[derive(Clone)]
pub struct Agent {
    pub(crate) parts: Arc<Parts>,
    pub(crate) on_exit: OnExit,
    keepers: TaskTracker,
}

impl Agent {
    /// Reads the journal, finds the sandboxes that are still running, removes what earlier runs
    /// left half made, and begins to prepare sandboxes ahead.
    ///
    /// Only one agent may use a data directory at a time; whoever calls this sees to that.
    pub async fn start(options: AgentOptions) -> Result<Arc<Self>, Problem> {
        let directory = options.data_dir.join("agent");
        let data_dir = options.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let (journal, ledger) = Journal::open(&directory).map_err(|error| error.problem())?;
            let logs = LogStore::open(directory.join("logs")).map_err(|error| {
                Problem::new(
                    ErrorCode::Internal,
                    format!(
                        "cannot make the folder for logs in {}: {error}",
                        directory.display()
                    ),
                    "check the permissions of the data directory",
                )
            })?;
            let states = States::open(&data_dir).map_err(|error| {
                Problem::new(
                    ErrorCode::Internal,
                    format!("cannot read the states in {}: {error}", data_dir.display()),
                    "check the permissions of the data directory",
                )
            })?;
            Ok::<_, Problem>((journal, ledger, logs, Facts::new(&data_dir), states))
        });
        let (journal, ledger, logs, facts, states) = opened.await.map_err(|error| {
            Problem::new(ErrorCode::Internal, format!("cannot start: {error}"), "")
        })??;
        let (journal, facts) = (Arc::new(journal), Arc::new(facts));
        let admission = Arc::new(Admission::new(options.limits, facts.clone()));
        let preparer = Preparer::new(
            options.driver.clone(),
            options.network.clone(),
            journal.clone(),
        );
        let processors = facts.processors;
        let parts = Arc::new(Parts {
            node: options.node,
            name: options.name,
            driver: options.driver,
            images: options.images,
            network: options.network,
            members: options.members,
            journal,
            pool: Arc::new(Pool::new(
                preparer,
                options.pool,
                admission.clone(),
                processors,
            )),
            facts,
            admission,
            registry: Registry::default(),
            states: Arc::new(states),
            making: Making::default(),
            logs,
            phases: Phases::new(),
            starts: Semaphore::new(processors as usize * 2),
            guest_port: options.guest_port,
            start_deadline: options.start_deadline,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            background: CancellationToken::new(),
        });
        adoption::adopt(&parts, ledger).await?;
        let keepers = TaskTracker::new();
        // All that goes on is pinned now. A large store takes its time: nobody waits for it.
        let images = parts.images.clone();
        keepers.spawn(async move { images.collect_garbage().await });
        keepers.spawn(parts.pool.clone().keep(parts.background.clone()));
        keepers.spawn(background::run(parts.clone()));
        keepers.spawn(renewal::run(parts.clone()));
        tracing::debug!(instance = %options.instance, "the agent serves");
        Ok(Arc::new(Self {
            parts,
            on_exit: options.on_exit,
            keepers,
        }))
    }

    /// Where the time of starting sandboxes went, phase by phase, since the agent started.
    pub fn phases(&self) -> Vec<PhaseSummary> {
        self.parts.phases.summaries()
    }

    /// How many sandboxes are prepared and wait to be somebody's.
    pub fn ready(&self) -> u32 {
        self.parts.pool.ready()
    }

    /// Stops: takes no more requests, ends the sandboxes or leaves them, as the options said, and
    /// takes down all else that the agent made on this machine. May be called repeatedly.
    pub async fn stop(&self) {
        let parts = &self.parts;
        if parts.stopping.is_cancelled() {
            self.keepers.close();
            self.keepers.wait().await;
            return;
        }
        parts.stopping.cancel();
        let sandboxes = parts.registry.all_live();
        let count = sandboxes.len();
        let all = futures::future::join_all(
            sandboxes
                .into_iter()
                .map(|sandbox| part_with(sandbox, self.on_exit)),
        );
        if tokio::time::timeout(STOP_DEADLINE, all).await.is_err() {
            tracing::warn!(
                "not all of {count} sandboxes ended within {STOP_DEADLINE:?}; the next start goes \
                 on with it"
            );
        }
        parts.background.cancel();
        self.keepers.close();
        self.keepers.wait().await;
        parts.pool.close().await;
        parts.tasks.close();
        // Tasks whose sandbox cannot be taken down go on trying; they must not hold up the end.
        let _ = tokio::time::timeout(Duration::from_secs(2), parts.tasks.wait()).await;
        let live = parts.registry.all_live();
        let left = live.iter().any(|sandbox| sandbox.is_on_the_machine());
        parts.driver.shutdown().await;
        parts.network.stop(left).await;
        let settled = async {
            parts.states.settle().await;
            parts.images.settle().await;
        };
        if tokio::time::timeout(SETTLE_DEADLINE, settled)
            .await
            .is_err()
        {
            tracing::warn!(
                "not all states and images that nobody needs were removed within \
                 {SETTLE_DEADLINE:?}; the next start goes on with it"
            );
        }
    }
}

/// Ends a sandbox or leaves it, and returns when that is done.
pub(crate) async fn part_with(sandbox: Arc<Sandbox>, on_exit: OnExit) {
    let (done, finished) = oneshot::channel();
    let request = match on_exit {
        OnExit::Kill => Request::Kill {
            reason: EndReason::NodeStopped,
            done,
        },
        OnExit::Keep => Request::Leave { done },
    };
    if sandbox.send(request).await {
        // An error means that the task has ended without an answer, so there is nothing to wait
        // for either.
        let _ = finished.await;
    }
}
