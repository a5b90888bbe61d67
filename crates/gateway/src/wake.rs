//! Waking paused sandboxes for the requests that come for them.
//!
//! Requests for one sandbox share one call of [`Locate::wake`]; each waits for it no longer than
//! its own time allows. What is answered at once, as for sandboxes that nobody knows, takes no
//! place; of those that are answered later so many may be under way.

use crate::{options::Limits, refusal::Refusal};
use api::{
    ErrorCode, Problem, SandboxId,
    route::{Locate, Route},
};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

type Answer = Result<Option<Route>, Problem>;
type Call = Shared<BoxFuture<'static, Answer>>;

/// The calls that are under way.
pub(crate) struct Wakes {
    locate: Arc<dyn Locate>,
    most: usize,
    most_waiting: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    calls: HashMap<SandboxId, Entry>,
}

struct Entry {
    number: u64,
    call: Call,
    waiting: usize,
}

/// One who waits. The call is given up when the last of them has gone.
struct Place<'a> {
    wakes: &'a Wakes,
    id: &'a SandboxId,
    number: u64,
}

impl Wakes {
    pub(crate) fn new(locate: Arc<dyn Locate>, limits: &Limits) -> Self {
        Self {
            locate,
            most: limits.wakes,
            most_waiting: limits.requests_per_sandbox,
            table: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The route to a sandbox that runs then; `None` if there is none. It waits as long as the
    /// call takes: whoever asks bounds that.
    pub(crate) async fn wake(&self, id: &SandboxId) -> Result<Option<Route>, Refusal> {
        let (call, _place) = self.join(id)?;
        call.await.or_else(|problem| refuse(id, &problem))
    }

    fn join<'a>(&'a self, id: &'a SandboxId) -> Result<(Call, Place<'a>), Refusal> {
        let mut table = self.lock();
        let Table { next, calls } = &mut *table;
        // An answer that was given already is about another moment.
        if let Some(entry) = calls.get_mut(id)
            && entry.call.peek().is_none()
        {
            if entry.waiting >= self.most_waiting {
                let sandbox = id.to_string();
                return Err(Refusal::Busy { sandbox });
            }
            entry.waiting += 1;
            let (call, number) = (entry.call.clone(), entry.number);
            let wakes = self;
            return Ok((call, Place { wakes, id, number }));
        }
        if calls.len() >= self.most && !calls.contains_key(id) {
            let sandbox = id.to_string();
            return Err(Refusal::WakesFull { sandbox });
        }
        let (locate, asked) = (self.locate.clone(), id.clone());
        let call = async move { locate.wake(&asked).await }.boxed().shared();
        let number = *next;
        *next += 1;
        let entry = Entry {
            number,
            call: call.clone(),
            waiting: 1,
        };
        calls.insert(id.clone(), entry);
        let wakes = self;
        Ok((call, Place { wakes, id, number }))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut table = self.wakes.lock();
        let Some(entry) = table.calls.get_mut(self.id) else {
            return;
        };
        if entry.number != self.number {
            return;
        }
        entry.waiting -= 1;
        if entry.waiting == 0 {
            let gone = table.calls.remove(self.id);
            drop(table);
            // It may run code of others when it is dropped.
            drop(gone);
        }
    }
}

/// What a client is told; the cause is for the node's owner alone.
fn refuse(id: &SandboxId, problem: &Problem) -> Result<Option<Route>, Refusal> {
    let sandbox = id.to_string();
    Err(match problem.code {
        // Paused, and not to be woken by traffic: for traffic it is not there.
        ErrorCode::PermissionDenied | ErrorCode::NotFound => return Ok(None),
        ErrorCode::Conflict => Refusal::InTransition { sandbox },
        ErrorCode::DeadlineExceeded => Refusal::LocateTimeout { sandbox },
        ErrorCode::LimitReached => Refusal::LimitReached { sandbox },
        _ => {
            tracing::warn!(sandbox = %id, %problem, "could not wake a sandbox for its traffic");
            Refusal::NotWoken { sandbox }
        }
    })
}
