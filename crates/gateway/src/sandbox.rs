//! The sandboxes that have traffic: their connections, and what happens to those at the end.

use crate::{options::Limits, upstream::Upstream};
use api::{SandboxId, route::Locate};
use futures::task::AtomicWaker;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*},
    },
    task::Context,
    time::{Duration, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// One stay of a sandbox at one address, from its first request until it ends or is paused.
pub(crate) struct Stay {
    pub(crate) id: SandboxId,
    pub(crate) address: IpAddr,
    /// Cancelled when it ends.
    pub(crate) ended: CancellationToken,
    /// The same, quicker to ask.
    over: AtomicBool,
    in_flight: AtomicUsize,
    upstreams: Mutex<Upstreams>,
    next: AtomicU64,
}

#[derive(Default)]
struct Upstreams {
    /// Waiting for the next request; the most recently used last.
    idle: Vec<Idle>,
    /// All that are open, so that the end reaches whoever holds them.
    open: HashMap<u64, Arc<End>>,
    closed: bool,
}

/// A connection to a sandbox that waits for the next request.
struct Idle {
    port: u16,
    upstream: Upstream,
    since: Instant,
}

/// Tells whoever holds a connection that the sandbox has ended.
pub(crate) struct EndSignal {
    stay: Weak<Stay>,
    number: u64,
    end: Arc<End>,
}

#[derive(Default)]
struct End {
    over: AtomicBool,
    waker: AtomicWaker,
}

impl EndSignal {
    /// Whether the sandbox has ended; if not, the task is woken when it does.
    pub(crate) fn poll(&self, context: &Context<'_>) -> bool {
        self.end.waker.register(context.waker());
        self.is_over()
    }

    /// Whether the sandbox has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.end.over.load(Acquire)
    }
}

impl Drop for EndSignal {
    fn drop(&mut self) {
        if let Some(stay) = self.stay.upgrade() {
            stay.lock().open.remove(&self.number);
        }
    }
}

/// A request under way in a sandbox.
pub(crate) struct InFlight(pub(crate) Arc<Stay>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl Stay {
    fn lock(&self) -> MutexGuard<'_, Upstreams> {
        self.upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.over.load(Acquire)
    }

    /// Takes the idle connection to a port that was used last, if it is not too old, and how
    /// long it has waited.
    pub(crate) fn take_idle(&self, port: u16, oldest: Duration) -> Option<(Upstream, Duration)> {
        let mut upstreams = self.lock();
        let index = upstreams.idle.iter().rposition(|idle| idle.port == port)?;
        let idle = upstreams.idle.remove(index);
        drop(upstreams);
        let age = idle.since.elapsed();
        (age < oldest).then_some((idle.upstream, age))
    }

    /// Keeps a connection for the next request, in place of the oldest if there are enough.
    pub(crate) fn keep_idle(&self, port: u16, upstream: Upstream, most: usize) {
        let mut upstreams = self.lock();
        if upstreams.closed || most == 0 {
            return;
        }
        let oldest = (upstreams.idle.len() >= most).then(|| upstreams.idle.remove(0));
        upstreams.idle.push(Idle {
            port,
            upstream,
            since: Instant::now(),
        });
        drop(upstreams);
        drop(oldest);
    }

    /// A signal that is given when the sandbox ends, for a new connection.
    pub(crate) fn end_signal(self: &Arc<Self>) -> EndSignal {
        let number = self.next.fetch_add(1, Relaxed);
        let end = Arc::new(End::default());
        let mut upstreams = self.lock();
        end.over.store(upstreams.closed, Release);
        upstreams.open.insert(number, end.clone());
        EndSignal {
            stay: Arc::downgrade(self),
            number,
            end,
        }
    }

    /// Breaks everything that is open.
    fn end(&self) {
        self.over.store(true, Release);
        self.ended.cancel();
        let mut upstreams = self.lock();
        upstreams.closed = true;
        let idle = std::mem::take(&mut upstreams.idle);
        let open = std::mem::take(&mut upstreams.open);
        drop(upstreams);
        for end in open.values() {
            end.over.store(true, Release);
            end.waker.wake();
        }
        drop(idle);
    }
}

/// All sandboxes that have traffic.
pub(crate) struct Sandboxes {
    locate: Arc<dyn Locate>,
    limits: Limits,
    tasks: TaskTracker,
    stop: CancellationToken,
    stays: RwLock<HashMap<SandboxId, Arc<Stay>>>,
}

impl Sandboxes {
    pub(crate) fn new(
        locate: Arc<dyn Locate>,
        limits: Limits,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            locate,
            limits,
            tasks,
            stop,
            stays: RwLock::default(),
        }
    }

    /// Counts a request in; `None` if too many are under way.
    pub(crate) fn enter(self: &Arc<Self>, id: &SandboxId, address: IpAddr) -> Option<InFlight> {
        let stay = self.stay(id, address);
        let before = stay.in_flight.fetch_add(1, Relaxed);
        let in_flight = InFlight(stay);
        (before < self.limits.requests_per_sandbox).then_some(in_flight)
    }

    fn stay(self: &Arc<Self>, id: &SandboxId, address: IpAddr) -> Arc<Stay> {
        let current = |stay: &&Arc<Stay>| stay.address == address && !stay.has_ended();
        let stays = self.stays.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(stay) = stays.get(id).filter(current) {
            return stay.clone();
        }
        drop(stays);
        let mut stays = self.stays.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(stay) = stays.get(id).filter(current) {
            return stay.clone();
        }
        let stay = Arc::new(Stay {
            id: id.clone(),
            address,
            ended: self.stop.child_token(),
            over: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            upstreams: Mutex::default(),
            next: AtomicU64::new(0),
        });
        let before = stays.insert(id.clone(), stay.clone());
        drop(stays);
        if let Some(before) = before {
            before.end();
        }
        self.tasks.spawn(watch(self.clone(), stay.clone()));
        stay
    }

    fn remove(&self, stay: &Arc<Stay>) {
        let mut stays = self.stays.write().unwrap_or_else(PoisonError::into_inner);
        if stays
            .get(&stay.id)
            .is_some_and(|current| Arc::ptr_eq(current, stay))
        {
            stays.remove(&stay.id);
        }
    }

    /// Closes connections that have waited too long for another request.
    pub(crate) fn expire(&self) {
        let stays = self.stays.read().unwrap_or_else(PoisonError::into_inner);
        for stay in stays.values() {
            let mut upstreams = stay.lock();
            let old = |idle: &mut Idle| idle.since.elapsed() > self.limits.upstream_keep_alive;
            let expired: Vec<Idle> = upstreams.idle.extract_if(.., old).collect();
            drop(upstreams);
            drop(expired);
        }
    }
}

/// Waits for a sandbox's end and breaks its connections.
async fn watch(sandboxes: Arc<Sandboxes>, stay: Arc<Stay>) {
    tokio::select! {
        () = sandboxes.locate.ended(&stay.id) => {}
        () = stay.ended.cancelled() => {}
    }
    stay.end();
    sandboxes.remove(&stay);
}
