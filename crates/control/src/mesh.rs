//! The coordinator of the mesh: [`mesh::coordination::Book`] over the store.
//!
//! | key | what |
//! | --- | --- |
//! | `atoll/mesh/identity` | the seed of the key that everything is signed with |
//! | `atoll/mesh/turn` | written with every step: its revision is the book's |
//! | `atoll/mesh/head` | how far the log is |
//! | `atoll/mesh/log/SEQ` | what changed |
//! | `atoll/mesh/nodes/IDENTITY`, `…/revoked/IDENTITY` | who is in, and who was put out |
//! | `atoll/mesh/tokens/ID` | join tokens, without their secrets |
//! | `atoll/mesh/policy` | the policy's text |
//! | `atoll/mesh/authority` | what signs certificates of workloads: key and certificate |
//! | `atoll/mesh/services` | the numbers of its services, from which their addresses follow |
//!
//! A step is planned from memory, written in one transaction that holds only if `turn` is what memory was read at, and then
//! carried out in memory. Should another process have written meanwhile, memory is read anew and the step planned again; what others
//! write is followed besides, so that nodes hear of it whichever process they ask. Machines that join at the same time are let in together (`joins`), and who
//! waits for changes is told before anybody's next question is looked at (`news`).

mod certificates;
mod joins;
mod link;
mod news;
mod sandboxes;

use api::{ErrorCode, Problem};
use bytes::Bytes;
use futures::StreamExt;
pub use link::MeshLink;
use mesh::coordination::{
    Book, BookOptions, Farewell, Identity, Plan, Refusal, Signed, WatchRequest, Write,
};
use mesh::workload::Authority;
use news::News;
pub(crate) use sandboxes::{Applicant, Ends, check_template};
use std::{sync::Arc, time::Duration};
use store::{Condition, Operation, Outcome, Range, Revision, Store, StoreError, Transaction};
use tokio::sync::{Mutex, OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

const PREFIX: &str = "atoll/mesh/";
const TURN: &str = "atoll/mesh/turn";
/// How long a node that knows everything waits for something new.
const WAIT: Duration = Duration::from_secs(20);
/// How often a step is planned again because somebody else wrote.
const ATTEMPTS: usize = 8;
/// How many nodes may wait at once.
const WAITING: usize = 32_768;
/// How soon the store is followed again after it broke off.
const AGAIN: Duration = Duration::from_secs(1);

struct State {
    book: Book,
    /// The revision of `turn` that the book was read at; none while there is none.
    turn: Option<Revision>,
}

/// The coordinator.
pub(crate) struct Coordinator {
    store: Arc<dyn Store>,
    identity: Identity,
    state: Mutex<State>,
    news: News,
    joins: joins::Queue,
    authority: OnceCell<Authority>,
    waiting: Semaphore,
    /// Nobody is kept waiting from then on.
    stop: CancellationToken,
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
}

impl Coordinator {
    /// Reads what is kept; makes the key at the first start. Serves until `stop`.
    pub(crate) async fn load(
        store: Arc<dyn Store>,
        stop: CancellationToken,
    ) -> Result<Self, Problem> {
        let key = format!("{PREFIX}identity");
        let identity = loop {
            if let Some(entry) = store.get(&key).await? {
                let text = std::str::from_utf8(&entry.value).ok();
                let identity = text.and_then(|text| Identity::from_base64(text).ok());
                break identity.ok_or_else(|| {
                    let cause = format!("the key of the mesh is spoilt: `{key}` in the store");
                    Problem::new(
                        ErrorCode::Internal,
                        cause,
                        "restore the store from a backup",
                    )
                })?;
            }
            let new = Identity::generate()
                .map_err(|error| Problem::new(ErrorCode::Internal, error.to_string(), ""))?;
            let transaction = Transaction {
                conditions: vec![Condition::Absent(key.clone())],
                then: vec![Operation::put(key.clone(), new.to_base64())],
            };
            store.transact(transaction).await?;
        };
        let state = read(&store, &identity).await?;
        Ok(Self {
            news: News::new(state.book.head()),
            joins: joins::Queue::default(),
            authority: OnceCell::new(),
            store,
            identity,
            state: Mutex::new(state),
            waiting: Semaphore::new(WAITING),
            stop,
        })
    }

    /// Takes a step.
    pub(crate) async fn step<T>(
        &self,
        plan: impl Fn(&Book) -> Result<Plan<T>, Refusal> + Send,
    ) -> Result<T, Problem> {
        let mut state = self.state.lock().await;
        for _ in 0..ATTEMPTS {
            let planned = match plan(&state.book) {
                Ok(planned) => planned,
                Err(refusal)
                    if others_may_know_better(&refusal) && self.is_behind(&state).await? =>
                {
                    self.renew(&mut state).await?;
                    continue;
                }
                Err(refusal) => return Err(refuse(refusal)),
            };
            if planned.writes.is_empty() {
                return Ok(planned.answer);
            }
            let condition = match state.turn {
                Some(revision) => Condition::Unchanged(TURN.to_owned(), revision),
                None => Condition::Absent(TURN.to_owned()),
            };
            let writes = planned.writes.iter().map(|write| match write {
                Write::Put(key, value) => Operation::put(format!("{PREFIX}{key}"), value.clone()),
                Write::Delete(key) => Operation::delete(format!("{PREFIX}{key}")),
            });
            let turn = Operation::put(TURN, Bytes::from_static(b"{}"));
            let transaction = Transaction {
                conditions: vec![condition],
                then: writes.chain([turn]).collect(),
            };
            match self.store.transact(transaction).await {
                Ok(Outcome::Committed { revision }) => {
                    state.turn = Some(revision);
                    state.book.apply(&planned.writes);
                    let head = state.book.head();
                    // Who is in no more is told that alone.
                    let gone = planned.writes.iter().any(|write| match write {
                        Write::Delete(key) => key.starts_with("nodes/"),
                        Write::Put(..) => false,
                    });
                    let book = &mut state.book;
                    let frame = |from| (!gone).then(|| book.frame(from)).flatten();
                    self.news.publish(head, frame);
                    return Ok(planned.answer);
                }
                Ok(Outcome::Refused { .. }) => self.renew(&mut state).await?,
                Err(error) => {
                    // It may have been written all the same.
                    self.renew(&mut state).await?;
                    return Err(error.into());
                }
            }
        }
        Err(Problem::new(
            ErrorCode::Unavailable,
            "The mesh changes too fast",
            "try again",
        ))
    }

    /// Reads the book anew, as others wrote. What is remembered of nodes while this runs is taken along.
    async fn renew(&self, state: &mut State) -> Result<(), StoreError> {
        let mut new = read(&self.store, &self.identity).await?;
        new.book.remember(&state.book);
        *state = new;
        self.news.publish(state.book.head(), |_| None);
        Ok(())
    }

    /// Follows what other processes write, for as long as the store is open.
    pub(crate) async fn follow(&self) {
        loop {
            match self.follow_once().await {
                Err(StoreError::Closed) => return,
                Err(error) => tracing::warn!(%error, "what happens in the mesh is not followed"),
                Ok(()) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn follow_once(&self) -> Result<(), StoreError> {
        let from = self.store.revision().await?.next();
        let mut watch = self.store.watch(TURN, from).await?;
        self.catch_up().await?;
        while let Some(batch) = watch.next().await {
            batch?;
            self.catch_up().await?;
        }
        Ok(())
    }

    /// Reads the book anew if it is not what the store has.
    async fn catch_up(&self) -> Result<(), StoreError> {
        // After whoever is taking a step, whose own writes are no news.
        let mut state = self.state.lock().await;
        if self.is_behind(&state).await? {
            self.renew(&mut state).await?;
        }
        Ok(())
    }

    async fn is_behind(&self, state: &State) -> Result<bool, StoreError> {
        let turn = self.store.get(TURN).await?.map(|entry| entry.modified);
        Ok(turn != state.turn)
    }

    async fn hear(&self, asked: &WatchRequest) -> Result<(), Refusal> {
        self.state.lock().await.book.note(asked, now_ms())
    }

    /// Reads something.
    pub(crate) async fn look<T>(&self, at: impl FnOnce(&Book) -> T) -> T {
        at(&self.state.lock().await.book)
    }

    /// What to say to a node that is in no more.
    pub(crate) async fn farewell(
        &self,
        request: &Signed<WatchRequest>,
    ) -> Option<Signed<Farewell>> {
        self.state.lock().await.book.farewell(request)
    }

    /// What changed since the node asked last; waits a while if nothing did.
    pub(crate) async fn watch(
        &self,
        request: &Signed<WatchRequest>,
    ) -> Result<Option<Arc<str>>, Problem> {
        self.news.told().await;
        // Before anybody has to wait for it.
        let asked = request.check().map_err(refuse)?;
        let mut listener = self.news.listen();
        let heard = match self.hear(&asked).await {
            // It may have joined elsewhere, and have heard there of what is not known here yet.
            Err(Refusal::Unknown(_) | Refusal::Ahead) => {
                self.catch_up().await?;
                self.hear(&asked).await
            }
            other => other,
        };
        heard.map_err(refuse)?;
        let Ok(_turn) = self.waiting.try_acquire() else {
            return Err(Problem::new(
                ErrorCode::Unavailable,
                "Too many nodes wait for changes",
                "ask again later",
            ));
        };
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            if let Some(frame) = listener.take(asked.cursor) {
                return Ok(Some(frame));
            }
            {
                let mut state = self.state.lock().await;
                state
                    .book
                    .still_there(&asked.identity, now_ms())
                    .map_err(refuse)?;
                if let Some(frame) = state.book.frame(asked.cursor) {
                    return Ok(Some(frame));
                }
            }
            let more = tokio::select! {
                more = tokio::time::timeout_at(deadline, listener.changed()) => more,
                () = self.stop.cancelled() => {
                    let remedy = "ask again later";
                    return Err(Problem::new(ErrorCode::Unavailable, "Atoll is stopping", remedy));
                }
            };
            if more != Ok(true) {
                return Ok(None);
            }
        }
    }

    /// Forgets ephemeral nodes that vanished, and gives services of a policy that an older version took their addresses.
    pub(crate) async fn sweep(&self) {
        let now = now_ms();
        let settled = || Refusal::Unknown("service");
        if self.look(|book| book.settle().is_some()).await
            && let Err(problem) = self.step(|book| book.settle().ok_or_else(settled)).await
        {
            tracing::warn!("services have no addresses yet: {}", problem.cause);
        }
        // One that nobody has is no mistake: it means that there is nothing to sweep.
        let nothing = || Refusal::Unknown("node");
        while self.look(|book| book.sweep(now).is_some()).await {
            match self.step(|book| book.sweep(now).ok_or_else(nothing)).await {
                Ok(identity) => tracing::info!(%identity, "an ephemeral node of the mesh vanished"),
                Err(problem) => {
                    tracing::warn!("a node that vanished is not forgotten: {}", problem.cause);
                    return;
                }
            }
        }
    }
}

/// Whether what others wrote meanwhile could make a step possible. What is forged, late or used up stays so: whoever sends much of that
/// makes nobody read the store.
const fn others_may_know_better(refusal: &Refusal) -> bool {
    !matches!(
        refusal,
        Refusal::Forged
            | Refusal::Replayed
            | Refusal::Clock(_)
            | Refusal::Expired
            | Refusal::UsedUp
            | Refusal::Revoked
            | Refusal::Policy(_)
            | Refusal::Random
    )
}

/// Reads the book from the store.
async fn read(store: &Arc<dyn Store>, identity: &Identity) -> Result<State, StoreError> {
    let mut book = Book::new(identity.clone(), BookOptions::default(), now_ms());
    let mut turn = None;
    let mut range = Range::new(PREFIX, 500);
    loop {
        let page = store.range(range.clone()).await?;
        range.at = Some(page.revision);
        range.after = page.entries.last().map(|entry| entry.key.clone());
        for entry in page.entries {
            let key = entry.key.strip_prefix(PREFIX).unwrap_or_default();
            match key {
                "identity" | certificates::KEY => {}
                "turn" => turn = Some(entry.modified),
                _ => {
                    if !book.apply(&[Write::Put(key.to_owned(), entry.value.to_vec())]) {
                        tracing::warn!(
                            key,
                            "what is kept of the mesh is not understood, and left out"
                        );
                    }
                }
            }
        }
        if !page.more {
            return Ok(State { book, turn });
        }
    }
}

/// A refusal as callers read it.
fn refuse(refusal: Refusal) -> Problem {
    let (code, remedy) = match &refusal {
        Refusal::Token | Refusal::Expired | Refusal::UsedUp => (
            ErrorCode::Unauthenticated,
            "make another with `atoll mesh token create`",
        ),
        Refusal::Revoked => (
            ErrorCode::PermissionDenied,
            "to let the machine in again, join with a new state directory and a new token",
        ),
        Refusal::Unknown(_) => (ErrorCode::NotFound, ""),
        Refusal::Forged => (ErrorCode::Unauthenticated, ""),
        Refusal::Replayed | Refusal::Ahead => (ErrorCode::Conflict, ""),
        Refusal::Clock(_) => (
            ErrorCode::InvalidArgument,
            "set the clocks: they may differ by 15 minutes",
        ),
        Refusal::Full => (ErrorCode::LimitReached, "revoke nodes that are gone"),
        Refusal::Invalid(_) => (ErrorCode::InvalidArgument, ""),
        Refusal::Random => (ErrorCode::Internal, ""),
        Refusal::Policy(mistakes) => {
            let all: Vec<_> = mistakes.iter().take(20).map(ToString::to_string).collect();
            return Problem::new(
                ErrorCode::InvalidArgument,
                format!("The policy is refused: {}", all.join("\n")),
                "try it with `atoll mesh policy test FILE` first",
            );
        }
    };
    Problem::new(code, refusal.to_string(), remedy)
}
