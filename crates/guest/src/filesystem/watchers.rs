//! Watchers that clients poll: `CreateWatcher`, `GetWatcherEvents`, `RemoveWatcher`.
//!
//! Each is emptied as events come, so that recursive ones keep up with new directories, and once
//! more when it is asked, so that no event that has happened is missed.

use super::watch::Watch;
use api::envd::{
    connect::{Code, ConnectError},
    filesystem::FilesystemEvent,
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::{Duration, Instant},
};

/// Watchers at once: the kernel gives a user 128 instances, and streams need some.
const WATCHERS_LIMIT: usize = 64;
/// Events that a watcher keeps.
const EVENTS_LIMIT: usize = 16_384;
/// A watcher that nobody asked for so long may be removed for a new one.
const IDLE_LIMIT: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct Watcher {
    watch: RefCell<Watch>,
    events: RefCell<VecDeque<FilesystemEvent>>,
    failed: RefCell<Option<ConnectError>>,
    asked: Cell<Instant>,
    task: RefCell<Option<tokio::task::AbortHandle>>,
}

impl Watcher {
    fn collect(&self) {
        loop {
            match self.watch.borrow_mut().read() {
                Ok(new) if new.is_empty() => return,
                Ok(new) => {
                    let mut events = self.events.borrow_mut();
                    events.extend(new);
                    if events.len() > EVENTS_LIMIT {
                        let excess = events.len() - EVENTS_LIMIT;
                        events.drain(..excess);
                        self.failed.replace(Some(ConnectError::new(
                            Code::ResourceExhausted,
                            "watcher error: events came faster than they were fetched, and the \
                             oldest were dropped",
                        )));
                    }
                }
                Err(error) => {
                    self.failed.replace(Some(error));
                    return;
                }
            }
        }
    }

    fn stop(&self) {
        if let Some(task) = self.task.borrow_mut().take() {
            task.abort();
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Watchers {
    watchers: RefCell<BTreeMap<String, Rc<Watcher>>>,
    next: Cell<u64>,
}

impl Watchers {
    /// Adds one, and names it.
    pub fn add(&self, watch: Watch) -> Result<String, ConnectError> {
        let mut watchers = self.watchers.borrow_mut();
        if watchers.len() >= WATCHERS_LIMIT {
            let oldest = watchers
                .iter()
                .min_by_key(|(_, watcher)| watcher.asked.get());
            let idle = oldest.filter(|(_, watcher)| watcher.asked.get().elapsed() > IDLE_LIMIT);
            let Some(name) = idle.map(|(name, _)| name.clone()) else {
                return Err(ConnectError::new(
                    Code::ResourceExhausted,
                    format!("there are {WATCHERS_LIMIT} watchers already; remove some first"),
                ));
            };
            if let Some(watcher) = watchers.remove(&name) {
                watcher.stop();
            }
        }
        self.next.set(self.next.get() + 1);
        let name = format!("w{:016x}{:04x}", unique(), self.next.get() & 0xffff);
        let watcher = Rc::new(Watcher {
            watch: RefCell::new(watch),
            events: RefCell::default(),
            failed: RefCell::default(),
            asked: Cell::new(Instant::now()),
            task: RefCell::default(),
        });
        let collector = Rc::clone(&watcher);
        let task = tokio::task::spawn_local(async move {
            loop {
                // The watch is never borrowed across a wait for writing: `read` is synchronous,
                // and readiness needs the descriptor alone.
                let ready =
                    std::future::poll_fn(|context| collector.watch.borrow().poll_ready(context));
                if ready.await.is_err() {
                    return;
                }
                collector.collect();
                if collector.failed.borrow().is_some() {
                    return;
                }
            }
        });
        watcher.task.replace(Some(task.abort_handle()));
        watchers.insert(name.clone(), watcher);
        Ok(name)
    }

    fn find(&self, name: &str) -> Result<Rc<Watcher>, ConnectError> {
        let found = self.watchers.borrow().get(name).cloned();
        found.ok_or_else(|| {
            let name: String = name.chars().take(100).collect();
            ConnectError::not_found(format!("watcher with id {name} not found"))
        })
    }

    /// Events since the last call.
    pub fn take(&self, name: &str) -> Result<Vec<FilesystemEvent>, ConnectError> {
        let watcher = self.find(name)?;
        watcher.asked.set(Instant::now());
        watcher.collect();
        if let Some(error) = watcher.failed.borrow().clone() {
            return Err(error);
        }
        Ok(watcher.events.take().into())
    }

    /// Removes all.
    pub fn clear(&self) {
        for watcher in self.watchers.take().values() {
            watcher.stop();
        }
    }

    /// Removes one.
    pub fn remove(&self, name: &str) -> Result<(), ConnectError> {
        self.find(name)?.stop();
        self.watchers.borrow_mut().remove(name);
        Ok(())
    }
}

/// Makes names unlike those of another life of this sandbox.
fn unique() -> u64 {
    let mut bytes = [0; 8];
    // Names only have to differ; zeros would do.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    u64::from_le_bytes(bytes)
}
