//! The sandboxes that have traffic: their connections, and what happens to those at the end.

use crate::{options::Limits, upstream::Sender};
use api::{SandboxId, route::Locate};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};
use tokio::task::AbortHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// One stay of a sandbox at one address, from its first request until it ends or is paused.
pub(crate) struct Stay {
    pub(crate) id: SandboxId,
    pub(crate) address: IpAddr,
    /// Cancelled when it ends.
    pub(crate) ended: CancellationToken,
    in_flight: AtomicUsize,
    upstreams: Mutex<Upstreams>,
    next: AtomicU64,
}

#[derive(Default)]
struct Upstreams {
    /// Waiting for the next request; the most recently used last.
    idle: Vec<Idle>,
    /// All that are open, so that the end can break them.
    open: HashMap<u64, AbortHandle>,
    closed: bool,
}

/// A connection to a sandbox that waits for the next request.
pub(crate) struct Idle {
    pub(crate) port: u16,
    pub(crate) sender: Sender,
    pub(crate) task: TaskGuard,
    pub(crate) since: Instant,
}

/// Ends a connection's task when dropped.
pub(crate) struct TaskGuard(AbortHandle);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.abort();
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
        self.ended.is_cancelled()
    }

    /// Takes the idle connection to a port that was used last.
    pub(crate) fn take_idle(&self, port: u16) -> Option<Idle> {
        let mut upstreams = self.lock();
        let index = upstreams.idle.iter().rposition(|idle| idle.port == port)?;
        Some(upstreams.idle.remove(index))
    }

    /// Keeps a connection for the next request, or drops it if there are enough.
    pub(crate) fn keep_idle(&self, idle: Idle, most: usize) {
        let mut upstreams = self.lock();
        if upstreams.closed || most == 0 {
            return;
        }
        let oldest = (upstreams.idle.len() >= most).then(|| upstreams.idle.remove(0));
        upstreams.idle.push(idle);
        drop(upstreams);
        drop(oldest);
    }

    /// Starts the task that drives a connection, and ties it to the sandbox's life.
    pub(crate) fn drive(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        connection: impl Future<Output = ()> + Send + 'static,
    ) -> TaskGuard {
        let number = self.next.fetch_add(1, Relaxed);
        let forget = Forget {
            stay: self.clone(),
            number,
        };
        let task = tasks.spawn(async move {
            let _forget = forget;
            connection.await;
        });
        let handle = task.abort_handle();
        let mut upstreams = self.lock();
        if upstreams.closed {
            handle.abort();
        } else if !handle.is_finished() {
            upstreams.open.insert(number, handle.clone());
        }
        TaskGuard(handle)
    }

    /// Breaks everything that is open.
    fn end(&self) {
        self.ended.cancel();
        let mut upstreams = self.lock();
        upstreams.closed = true;
        let idle = std::mem::take(&mut upstreams.idle);
        let open = std::mem::take(&mut upstreams.open);
        drop(upstreams);
        open.values().for_each(AbortHandle::abort);
        drop(idle);
    }
}

/// Takes a connection off the list when its task is over.
struct Forget {
    stay: Arc<Stay>,
    number: u64,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.stay.lock().open.remove(&self.number);
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
            let old = |idle: &mut Idle| {
                idle.since.elapsed() > self.limits.upstream_keep_alive || idle.sender.is_closed()
            };
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
