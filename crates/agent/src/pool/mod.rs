//! Sandboxes that are prepared ahead, so that creating one only has to make it somebody's.
//!
//! One task keeps the pool: it refills up to a target that follows demand ([`demand`]), yields to
//! creates and, for a moment, to who got a machine, replaces what died while it waited, and lets
//! surplus go one by one. A create that finds the pool empty prepares for itself.
//!
//! What some drivers prepare may become any sandbox, and there is one shelf for all. Others prepare
//! for one origin: for each build that is asked for there is a shelf ([`shelf`]), whose sandboxes
//! have their state loaded already; it follows the build's own demand, and goes with it.

mod demand;
mod preparer;
mod shelf;

pub(crate) use preparer::Preparer;

use crate::{admission::Admission, options::PoolOptions, source::Source, states::Lease};
use api::{BuildId, ErrorCode, Problem, Resources, node::PoolReport};
use demand::refills_allowed;
use driver::{Plan, Prepared};
use shelf::{Key, Shelf};
use std::{
    collections::HashMap,
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
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

struct State {
    shelves: HashMap<Key, Shelf>,
    /// Creates under way.
    creating: u32,
    closed: bool,
    retry_at: Option<Instant>,
    retry_pause: Duration,
    /// Until when shelves of builds that are not empty are left alone.
    grace: Option<Instant>,
}

impl State {
    fn graced(&self) -> Option<Instant> {
        self.grace.filter(|until| *until > Instant::now())
    }
}

/// A prepared sandbox, for whoever starts it.
pub(crate) struct Claimed {
    pub(crate) prepared: Box<dyn Prepared>,
    key: Option<Key>,
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
    /// Ends preparations that closing cannot wait for.
    given_up: CancellationToken,
}

impl Pool {
    pub(crate) fn new(
        preparer: Preparer,
        options: PoolOptions,
        admission: Arc<Admission>,
        processors: u32,
    ) -> Self {
        let mut shelves = HashMap::new();
        if preparer.driver.capabilities().prepares_anything {
            shelves.insert(Key::Anything, Shelf::anything());
        }
        Self {
            preparer,
            options,
            admission,
            processors,
            began: Instant::now(),
            state: Mutex::new(State {
                shelves,
                creating: 0,
                closed: false,
                retry_at: None,
                retry_pause: RETRY.0,
                grace: None,
            }),
            wake: Notify::new(),
            tasks: TaskTracker::new(),
            given_up: CancellationToken::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> u32 {
        let state = self.state();
        state
            .shelves
            .values()
            .map(|shelf| shelf.ready.len() as u32)
            .sum()
    }

    /// What is prepared ahead, and for what.
    pub(crate) fn reports(&self) -> Vec<PoolReport> {
        let state = self.state();
        let shelves = state.shelves.iter();
        shelves
            .map(|(key, shelf)| shelf.report(key, self.target(key, shelf)))
            .collect()
    }

    /// For what is prepared and started outside of the pool.
    pub(crate) fn preparer(&self) -> &Preparer {
        &self.preparer
    }

    /// Announces a create, to which refilling yields until the answer is dropped.
    pub(crate) fn begin_create(self: &Arc<Self>) -> Creating {
        self.state().creating += 1;
        Creating(self.clone())
    }

    /// A prepared sandbox for a source: a ready one, or one made for the caller.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        source: &Source,
        resources: Resources,
        deadline: Duration,
    ) -> Result<Claimed, Problem> {
        let key = match self.preparer.driver.capabilities().prepares_anything {
            true => Some(Key::Anything),
            false => Key::of(source, &resources),
        };
        if let Some(key) = &key
            && let Some(prepared) = self.take_ready(key, source, resources)
        {
            let key = Some(key.clone());
            return Ok(Claimed { prepared, key });
        }
        if self.state().closed {
            return Err(crate::problems::stopping());
        }
        let (send, receive) = oneshot::channel();
        let (pool, plan, lease) = (self.clone(), source.plan(resources), source.lease.clone());
        // A task of its own, because a preparation must not be dropped halfway.
        self.tasks.spawn(async move {
            let result = pool.unless_given_up(pool.preparer.prepare(&plan)).await;
            let claimed = result.map(|prepared| Claimed { prepared, key });
            if let Err(Ok(claimed)) = send.send(claimed) {
                pool.put_back(claimed).await;
            }
            drop(lease);
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

    fn take_ready(
        self: &Arc<Self>,
        key: &Key,
        source: &Source,
        resources: Resources,
    ) -> Option<Box<dyn Prepared>> {
        let (taken, dead) = {
            let mut state = self.state();
            if state.closed {
                return None;
            }
            let now = self.began.elapsed();
            let bounds = Shelf::bounds(key, &self.options);
            let shelf = state
                .shelves
                .entry(key.clone())
                .or_insert_with(|| Shelf::of(source, resources));
            shelf.demand.record(now, &bounds);
            let mut dead = Vec::new();
            let taken = loop {
                match shelf.ready.pop_front() {
                    Some(prepared) if !prepared.is_alive() => dead.push(prepared),
                    other => break other,
                }
            };
            match taken {
                Some(_) => shelf.hits += 1,
                None => shelf.misses += 1,
            }
            if taken.is_some() && *key != Key::Anything && state.graced().is_none() {
                state.grace = Some(Instant::now() + self.options.grace);
            }
            (taken, dead)
        };
        for prepared in dead {
            self.discard_later(prepared);
        }
        self.wake.notify_one();
        taken
    }

    /// Returns a prepared sandbox that was not needed after all.
    pub(crate) async fn put_back(self: &Arc<Self>, claimed: Claimed) {
        let Claimed { prepared, key } = claimed;
        let surplus = {
            let mut state = self.state();
            let closed = state.closed;
            let place = key.and_then(|key| {
                let most = Shelf::bounds(&key, &self.options).max;
                let shelf = state.shelves.get_mut(&key)?;
                (!closed && (shelf.ready.len() as u32) < most).then_some(shelf)
            });
            match place {
                Some(shelf) => {
                    shelf.ready.push_back(prepared);
                    None
                }
                None => Some(prepared),
            }
        };
        if let Some(prepared) = surplus {
            self.preparer.discard(prepared).await;
        }
    }

    /// Takes down a prepared sandbox that cannot be used any more.
    pub(crate) async fn discard(&self, claimed: Claimed) {
        self.preparer.discard(claimed.prepared).await;
        self.wake.notify_one();
    }

    /// Takes down what is prepared for a build, as its state goes.
    pub(crate) async fn clear(&self, build: &BuildId) {
        let gone: Vec<Shelf> = {
            let mut state = self.state();
            let keys: Vec<Key> = state
                .shelves
                .keys()
                .filter(|key| key.is_of(build))
                .cloned()
                .collect();
            keys.iter()
                .filter_map(|key| state.shelves.remove(key))
                .collect()
        };
        for shelf in gone {
            for prepared in shelf.ready {
                self.preparer.discard(prepared).await;
            }
            drop(shelf.lease);
        }
    }

    fn discard_later(self: &Arc<Self>, prepared: Box<dyn Prepared>) {
        let pool = self.clone();
        self.tasks.spawn(async move {
            pool.preparer.discard(prepared).await;
            pool.wake.notify_one();
        });
    }

    /// Keeps the pool until `stop`.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            while let Some(refill) = self.begin_refill() {
                self.refill(refill);
            }
            let now = Instant::now();
            let (retry, grace) = {
                let state = self.state();
                (state.retry_at, state.graced())
            };
            let due = |at: Option<Instant>| at.map_or(TICK, |at| at.saturating_duration_since(now));
            let pause = due(retry).min(due(grace)).min(TICK);
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => self.tidy(),
            }
        }
    }

    fn target(&self, key: &Key, shelf: &Shelf) -> u32 {
        let promised = self.admission.promised().sandboxes;
        let room = self.admission.limits().sandboxes.saturating_sub(promised);
        shelf.target(key, self.began.elapsed(), &self.options, room)
    }

    /// Counts one more preparation if one is due.
    fn begin_refill(&self) -> Option<Refill> {
        let mut state = self.state();
        let wait = state.retry_at.is_some_and(|at| at > Instant::now());
        let preparing: u32 = state.shelves.values().map(|shelf| shelf.preparing).sum();
        let total: u32 = state.shelves.values().map(Shelf::count).sum();
        if state.closed
            || wait
            || preparing >= refills_allowed(state.creating, self.processors)
            || total >= self.options.max
            || (state.shelves.keys().any(|key| *key != Key::Anything)
                && !self.admission.has_memory_to_prepare())
        {
            return None;
        }
        let pause = state.retry_pause;
        let graced = state.graced().is_some();
        // Where most of what is wanted is missing, first.
        let (key, _) = state
            .shelves
            .iter()
            .filter(|(key, shelf)| !graced || **key == Key::Anything || shelf.count() == 0)
            .map(|(key, shelf)| {
                let missing = self.target(key, shelf).saturating_sub(shelf.count());
                (key.clone(), missing)
            })
            .max_by_key(|(_, missing)| *missing)
            .filter(|(_, missing)| *missing > 0)?;
        let shelf = state.shelves.get_mut(&key)?;
        shelf.preparing += 1;
        Some(Refill {
            key,
            plan: shelf.plan.clone(),
            lease: shelf.lease.clone(),
            shell_of: shelf.shell_of.clone(),
            pause,
        })
    }

    fn refill(self: &Arc<Self>, refill: Refill) {
        let pool = self.clone();
        self.tasks.spawn(async move {
            let Refill {
                key,
                plan,
                lease,
                shell_of,
                pause,
            } = refill;
            let prepare = pool.preparer.prepare_warm(&plan, shell_of.as_deref());
            let result = pool.unless_given_up(prepare).await;
            let mut surplus = None;
            {
                let mut state = pool.state();
                let closed = state.closed;
                match result {
                    Ok(prepared) => {
                        state.retry_at = None;
                        state.retry_pause = RETRY.0;
                        match state.shelves.get_mut(&key).filter(|_| !closed) {
                            Some(shelf) => shelf.ready.push_back(prepared),
                            None => surplus = Some(prepared),
                        }
                    }
                    Err(problem) => {
                        tracing::warn!(
                            "cannot prepare a sandbox, next try in {pause:?}: {problem}"
                        );
                        state.retry_at = Some(Instant::now() + pause);
                        state.retry_pause = (pause * 2).min(RETRY.1);
                    }
                }
                if let Some(shelf) = state.shelves.get_mut(&key) {
                    shelf.preparing = shelf.preparing.saturating_sub(1);
                }
            }
            if let Some(prepared) = surplus {
                pool.preparer.discard(prepared).await;
            }
            drop(lease);
            pool.wake.notify_one();
        });
    }

    /// Replaces what died, lets one of each kind go if there are too many, and forgets builds that
    /// nobody asks for any more.
    fn tidy(self: &Arc<Self>) {
        let mut gone = Vec::new();
        let mut idle = Vec::new();
        {
            let mut state = self.state();
            for (key, shelf) in &mut state.shelves {
                let (alive, dead): (Vec<_>, Vec<_>) = shelf
                    .ready
                    .drain(..)
                    .partition(|prepared| prepared.is_alive());
                shelf.ready = alive.into();
                if !dead.is_empty() {
                    tracing::warn!(
                        "{} prepared sandboxes were lost while they waited",
                        dead.len()
                    );
                    gone.extend(dead);
                }
                let target = self.target(key, shelf);
                if shelf.ready.len() as u32 > target {
                    gone.extend(shelf.ready.pop_back());
                }
                if *key != Key::Anything && target == 0 && shelf.count() == 0 {
                    idle.push(key.clone());
                }
            }
            for key in &idle {
                state.shelves.remove(key);
            }
        }
        for prepared in gone {
            self.discard_later(prepared);
        }
    }

    /// Takes everything down, and refuses what comes later.
    pub(crate) async fn close(&self) {
        let shelves: Vec<Shelf> = {
            let mut state = self.state();
            state.closed = true;
            state.shelves.drain().map(|(_, shelf)| shelf).collect()
        };
        let ready = shelves.into_iter().flat_map(|shelf| shelf.ready);
        futures::future::join_all(ready.map(|prepared| self.preparer.discard(prepared))).await;
        self.tasks.close();
        let ended = async || tokio::time::timeout(CLOSE_DEADLINE, self.tasks.wait()).await;
        if ended().await.is_ok() {
            return;
        }
        tracing::warn!("preparations did not end in time: giving them up");
        self.given_up.cancel();
        if ended().await.is_err() {
            tracing::warn!("preparations did not end at all; the next start takes them down");
        }
        self.preparer.give_up().await;
    }

    /// What a preparation comes to, unless the pool closes and cannot wait for it any longer.
    async fn unless_given_up<T>(
        &self,
        prepare: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        tokio::select! {
            result = prepare => result,
            () = self.given_up.cancelled() => Err(crate::problems::stopping()),
        }
    }
}

/// One preparation for the pool.
struct Refill {
    key: Key,
    plan: Plan,
    lease: Option<Lease>,
    /// Whose shell is run in it, if anybody's.
    shell_of: Option<String>,
    /// How long to wait if it fails.
    pause: Duration,
}

/// A create that is under way.
pub(crate) struct Creating(Arc<Pool>);

impl Drop for Creating {
    fn drop(&mut self) {
        self.0.state().creating -= 1;
        self.0.wake.notify_one();
    }
}
