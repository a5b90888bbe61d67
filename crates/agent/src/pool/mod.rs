//! Sandboxes that are prepared ahead, so that creating one only has to make it somebody's.
//!
//! One task keeps the pool: it refills up to a target that follows demand ([`demand`]), yields to
//! creates, replaces what died while it waited, and lets surplus go one by one. A create that finds
//! the pool empty prepares for itself.

mod demand;
mod preparer;

pub(crate) use preparer::Preparer;

use crate::{admission::Admission, options::PoolOptions};
use api::{ErrorCode, Problem};
use demand::{Demand, refills_allowed};
use driver::Prepared;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How often the pool is looked at when nothing happens.
const TICK: Duration = Duration::from_secs(2);

/// The pause after a failed preparation doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long closing waits for preparations that are under way.
const CLOSE_DEADLINE: Duration = Duration::from_secs(20);

struct State {
    ready: VecDeque<Box<dyn Prepared>>,
    /// Preparations under way for the pool.
    preparing: u32,
    /// Creates under way.
    creating: u32,
    demand: Demand,
    closed: bool,
    retry_at: Option<Instant>,
    retry_pause: Duration,
}

/// The pool.
pub(crate) struct Pool {
    preparer: Preparer,
    options: PoolOptions,
    admission: Arc<Admission>,
    processors: u32,
    began: Instant,
    state: Mutex<State>,
    wake: Notify,
    tasks: TaskTracker,
}

impl Pool {
    pub(crate) fn new(
        preparer: Preparer,
        options: PoolOptions,
        admission: Arc<Admission>,
        processors: u32,
    ) -> Self {
        Self {
            preparer,
            options,
            admission,
            processors,
            began: Instant::now(),
            state: Mutex::new(State {
                ready: VecDeque::new(),
                preparing: 0,
                creating: 0,
                demand: Demand::default(),
                closed: false,
                retry_at: None,
                retry_pause: RETRY.0,
            }),
            wake: Notify::new(),
            tasks: TaskTracker::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> u32 {
        self.state().ready.len() as u32
    }

    /// Announces a create, to which refilling yields until the answer is dropped.
    pub(crate) fn begin_create(self: &Arc<Self>) -> Creating {
        let mut state = self.state();
        state.creating += 1;
        state.demand.record(self.began.elapsed(), &self.options);
        Creating(self.clone())
    }

    /// A prepared sandbox: a ready one, or one made for the caller.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        deadline: Duration,
    ) -> Result<Box<dyn Prepared>, Problem> {
        if let Some(prepared) = self.take_ready() {
            return Ok(prepared);
        }
        if self.state().closed {
            return Err(crate::problems::stopping());
        }
        let (send, receive) = oneshot::channel();
        let pool = self.clone();
        // A task of its own, because a preparation must not be dropped halfway.
        self.tasks.spawn(async move {
            let result = pool.preparer.prepare().await;
            if let Err(Ok(prepared)) = send.send(result) {
                pool.put_back(prepared).await;
            }
        });
        match tokio::time::timeout(deadline, receive).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(crate::problems::stopping()),
            Err(_) => Err(Problem::new(
                ErrorCode::Unavailable,
                "no sandbox was prepared ahead, and preparing one took too long",
                "try again; if it stays like this, the machine is overloaded",
            )),
        }
    }

    fn take_ready(self: &Arc<Self>) -> Option<Box<dyn Prepared>> {
        loop {
            let prepared = self.state().ready.pop_front()?;
            if prepared.is_alive() {
                return Some(prepared);
            }
            self.discard_later(prepared);
        }
    }

    /// Returns a prepared sandbox that was not needed after all.
    pub(crate) async fn put_back(self: &Arc<Self>, prepared: Box<dyn Prepared>) {
        let surplus = {
            let mut state = self.state();
            if state.closed || state.ready.len() as u32 >= self.options.max {
                Some(prepared)
            } else {
                state.ready.push_back(prepared);
                None
            }
        };
        if let Some(prepared) = surplus {
            self.preparer.discard(prepared).await;
        }
    }

    /// Takes down a prepared sandbox that cannot be used any more.
    pub(crate) async fn discard(&self, prepared: Box<dyn Prepared>) {
        self.preparer.discard(prepared).await;
        self.wake.notify_one();
    }

    fn discard_later(self: &Arc<Self>, prepared: Box<dyn Prepared>) {
        let pool = self.clone();
        self.tasks
            .spawn(async move { pool.discard(prepared).await });
    }

    /// Keeps the pool until `stop`.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            while let Some(pause) = self.begin_refill() {
                self.refill(pause);
            }
            let pause = match self.state().retry_at {
                Some(at) => at.saturating_duration_since(Instant::now()).min(TICK),
                None => TICK,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => self.tidy(),
            }
        }
    }

    fn target(&self, state: &State) -> u32 {
        let promised = self.admission.promised().sandboxes;
        let room = self.admission.limits().sandboxes.saturating_sub(promised);
        state
            .demand
            .target(self.began.elapsed(), &self.options, room)
    }

    /// Counts one more preparation if it is due, and returns the pause if it should fail.
    fn begin_refill(&self) -> Option<Duration> {
        let mut state = self.state();
        let wait = state.retry_at.is_some_and(|at| at > Instant::now());
        if state.closed
            || wait
            || state.ready.len() as u32 + state.preparing >= self.target(&state)
            || state.preparing >= refills_allowed(state.creating, self.processors)
        {
            return None;
        }
        state.preparing += 1;
        Some(state.retry_pause)
    }

    fn refill(self: &Arc<Self>, pause: Duration) {
        let pool = self.clone();
        self.tasks.spawn(async move {
            let result = pool.preparer.prepare().await;
            let mut surplus = None;
            {
                let mut state = pool.state();
                state.preparing -= 1;
                match result {
                    Ok(prepared) if state.closed => surplus = Some(prepared),
                    Ok(prepared) => {
                        state.ready.push_back(prepared);
                        state.retry_at = None;
                        state.retry_pause = RETRY.0;
                    }
                    Err(problem) => {
                        tracing::warn!(
                            "cannot prepare a sandbox, next try in {pause:?}: {problem}"
                        );
                        state.retry_at = Some(Instant::now() + pause);
                        state.retry_pause = (pause * 2).min(RETRY.1);
                    }
                }
            }
            if let Some(prepared) = surplus {
                pool.preparer.discard(prepared).await;
            }
            pool.wake.notify_one();
        });
    }

    /// Replaces what died, and lets one go if there are too many.
    fn tidy(self: &Arc<Self>) {
        let gone: Vec<_> = {
            let mut state = self.state();
            let (alive, mut gone): (Vec<_>, Vec<_>) = state
                .ready
                .drain(..)
                .partition(|prepared| prepared.is_alive());
            state.ready = alive.into();
            if !gone.is_empty() {
                tracing::warn!(
                    "{} prepared sandboxes were lost while they waited",
                    gone.len()
                );
            }
            let target = self.target(&state);
            if state.ready.len() as u32 > target {
                gone.extend(state.ready.pop_back());
            }
            gone
        };
        for prepared in gone {
            self.discard_later(prepared);
        }
    }

    /// Takes everything down, and refuses what comes later.
    pub(crate) async fn close(&self) {
        let ready: Vec<_> = {
            let mut state = self.state();
            state.closed = true;
            state.ready.drain(..).collect()
        };
        futures::future::join_all(
            ready
                .into_iter()
                .map(|prepared| self.preparer.discard(prepared)),
        )
        .await;
        self.tasks.close();
        if tokio::time::timeout(CLOSE_DEADLINE, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("preparations did not end in time; the next start takes them down");
        }
    }
}

/// A create that is under way.
pub(crate) struct Creating(Arc<Pool>);

impl Drop for Creating {
    fn drop(&mut self) {
        self.0.state().creating -= 1;
        self.0.wake.notify_one();
    }
}
