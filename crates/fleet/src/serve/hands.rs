//! Doing what a plan says: keeping work away, moving it, and switching.

use super::{
    fleet::{TickError, Unit},
    known::Known,
    source::Source,
};
use crate::{
    inventory::{Inventory, Machine, Power, Role},
    moment::Moment,
    planner::{Action, Plan},
    power::{
        executor::Executor,
        journal::JournalError,
        transition::{Intent, Outcome, Wanted},
    },
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream, stream::FuturesUnordered};
use std::sync::Arc;

/// So many things are asked for together.
const TOGETHER: usize = 32;
/// So many workloads are asked to move in one tick.
const MOVES: usize = 200;
/// So many machines are switched together.
const STEPS: usize = 256;

type Step = BoxFuture<'static, (usize, Result<Option<Outcome>, JournalError>)>;

/// Carries plans out.
pub(super) struct Hands {
    executor: Arc<Executor>,
    steps: FuturesUnordered<Step>,
    stepping: Vec<bool>,
    waiting: bool,
}

/// What was marked before anything is done: the places of machines.
pub(super) struct Marked {
    /// Work is to be kept away from them.
    close: Vec<usize>,
    /// Work may come to them again.
    open: Vec<usize>,
}

/// What became of it.
#[derive(Default)]
pub(super) struct Carried {
    /// Machines that work may come to again.
    pub(super) opened: Vec<usize>,
    /// What went wrong, for people.
    pub(super) trouble: Vec<String>,
}

impl Hands {
    pub(super) fn new(executor: Executor, machines: usize) -> Self {
        Self {
            executor: Arc::new(executor),
            steps: FuturesUnordered::new(),
            stepping: vec![false; machines],
            waiting: false,
        }
    }

    /// Marks from whom work is kept away: it is written down before it is done, so that whoever
    /// comes after us lets it come again.
    pub(super) fn mark(known: &mut [Known], plan: &Plan) -> Marked {
        let mut marked = Marked {
            close: Vec::new(),
            open: Vec::new(),
        };
        for (at, known) in known.iter_mut().enumerate() {
            match plan.decisions[at].action {
                Action::Drain => known.draining = true,
                Action::Undrain | Action::Wake => known.draining = false,
                Action::Keep | Action::Suspend | Action::PowerOff => {}
            }
            let goes = matches!(
                plan.decisions[at].action,
                Action::PowerOff | Action::Suspend
            );
            if known.draining || goes {
                known.closed = true;
                marked.close.push(at);
            } else if known.closed && known.power == Power::On && known.answered {
                marked.open.push(at);
            }
        }
        marked
    }

    /// Does what a plan says, as far as it is done at once: what takes time is written down.
    pub(super) async fn carry_out(
        &self,
        inventory: &Inventory,
        plan: &Plan,
        marked: &Marked,
        source: &dyn Source,
        now: Moment,
    ) -> Result<Carried, TickError> {
        let mut carried = Carried::default();
        let name = |at: usize| inventory.machines()[at].name.as_str();
        let gates = marked.close.iter().map(|at| (*at, true));
        let gates = gates.chain(marked.open.iter().map(|at| (*at, false)));
        let mut left_open = Vec::new();
        let mut done = stream::iter(gates)
            .map(|(at, closed)| async move { (at, closed, source.close(name(at), closed).await) })
            .buffer_unordered(TOGETHER);
        while let Some((at, closed, result)) = done.next().await {
            match result {
                Ok(()) if !closed => carried.opened.push(at),
                Ok(()) => {}
                Err(error) => {
                    carried.trouble.push(format!("{}: {error}", name(at)));
                    if closed {
                        left_open.push(at);
                    }
                }
            }
        }
        drop(done);
        if source.moves_work() {
            carried.trouble.extend(evict(inventory, plan, source).await);
        }
        let wants = plan.actions().filter_map(|(index, action)| match action {
            Action::Wake => Some((index.at(), Wanted::On)),
            // Work might come to a machine that could not be closed.
            Action::PowerOff if !left_open.contains(&index.at()) => Some((index.at(), Wanted::Off)),
            Action::Suspend if !left_open.contains(&index.at()) => {
                Some((index.at(), Wanted::Suspended))
            }
            _ => None,
        });
        let mut written = stream::iter(wants)
            .map(|(at, wanted)| {
                let decision = &plan.decisions[at];
                tracing::info!(
                    machine = name(at),
                    ?wanted,
                    reason = decision.reason.name(),
                    "wanted"
                );
                self.executor.want(name(at), wanted, now)
            })
            .buffer_unordered(TOGETHER);
        while let Some(result) = written.next().await {
            result?;
        }
        Ok(carried)
    }

    /// Lets the nodes of sleeping machines be forgotten in groups that Cluster Autoscaler plans: it
    /// stops when too many nodes do not answer. Returns what went wrong, for people.
    pub(super) async fn forget_sleepers(
        inventory: &Inventory,
        foreign: &[bool],
        source: &dyn Source,
    ) -> Vec<String> {
        let asleep = inventory.machines().iter().filter(|machine| {
            machine.power == Power::Off && machine.role == Role::Auto && foreign[machine.group.at()]
        });
        let forgotten = stream::iter(asleep)
            .map(|machine| async move { (&machine.name, source.forget(&machine.name).await) })
            .buffer_unordered(TOGETHER);
        forgotten
            .filter_map(|(name, result)| async move {
                let error = result.err()?;
                Some(format!("{name}: its node is not forgotten: {error}"))
            })
            .collect()
            .await
    }

    /// Says of the nodes of all other machines whether they sleep on purpose. On its way to being on or
    /// off a machine's node stays as it is marked. Returns what went wrong, for people.
    pub(super) async fn mark_sleepers(
        inventory: &Inventory,
        foreign: &[bool],
        source: &dyn Source,
        now: Moment,
    ) -> Vec<String> {
        let asleep = |machine: &Machine| match machine.power {
            // Its node is forgotten.
            Power::Off | Power::Suspended if foreign[machine.group.at()] => None,
            Power::Off | Power::Suspended => Some(true),
            Power::On => Some(false),
            Power::Waking | Power::Stopping => None,
        };
        let machines = inventory.machines().iter();
        let marks: Vec<(&str, bool)> = machines
            .filter_map(|one| Some((one.name.as_str(), asleep(one)?)))
            .collect();
        let failed = source.mark(&marks, now).await.into_iter();
        failed
            .map(|(name, error)| {
                format!("{name}: its node does not say whether it sleeps: {error}")
            })
            .collect()
    }

    /// Whether machines wait for their turn to wake.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting
    }

    /// Begins the next step of every machine of which something is wanted.
    pub(super) fn start(&mut self, units: &[Unit], open: &[Option<Intent>], now: Moment) {
        self.start_some(units, open, STEPS, now);
    }

    /// Begins the next step of some machines of which something is wanted.
    pub(super) fn start_some(
        &mut self,
        units: &[Unit],
        open: &[Option<Intent>],
        most: usize,
        now: Moment,
    ) {
        let mut left = most;
        self.waiting = false;
        for (at, intent) in open.iter().enumerate() {
            let Some(intent) = intent else { continue };
            self.waiting |= intent.sent.is_none();
            if left == 0 || self.stepping[at] || self.steps.len() >= STEPS {
                continue;
            }
            left -= 1;
            self.stepping[at] = true;
            let executor = self.executor.clone();
            let machine = units[at].switchable.clone();
            let step = async move { (at, executor.step(&machine, now).await) };
            self.steps.push(step.boxed());
        }
    }

    /// Lets steps go on until `end`, or until there are none.
    pub(super) async fn drive(&mut self, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        while !self.steps.is_empty() {
            tokio::select! {
                Some((at, result)) = self.steps.next() => {
                    self.stepping[at] = false;
                    if let Err(error) = result {
                        // It is done again with the next tick, by whoever acts then.
                        tracing::debug!(%error, "a step was not written down");
                    }
                }
                () = &mut end => return,
            }
        }
    }
}

/// Asks for the workloads to move that the plan moves; returns what went wrong.
async fn evict(inventory: &Inventory, plan: &Plan, source: &dyn Source) -> Vec<String> {
    let moving = plan.moves.iter().filter_map(|one| {
        let workload = inventory.workload(one.workload)?;
        let machine = inventory.machine(workload.machine?);
        let index = workload.machine?;
        let goes = machine.draining || plan.decision(index).action == Action::Drain;
        goes.then_some(workload.name.as_str())
    });
    let mut asked = stream::iter(moving.take(MOVES))
        .map(|workload| async move { (workload, source.evict(workload).await) })
        .buffer_unordered(TOGETHER);
    let mut trouble = Vec::new();
    while let Some((workload, result)) = asked.next().await {
        if let Err(error) = result {
            trouble.push(format!("{workload}: {error}"));
        }
    }
    trouble
}
