//! Machines that join, many at a time: what is asked while a transaction is being written goes into the next one together.
//!
//! Each is planned on what those before it led to, so memory is ahead of the store until the transaction is written. Nobody else sees that, as the state is
//! held all the while; and should the transaction fail, everything is read anew before it is let go.

use super::{Coordinator, PREFIX, State, TURN, now_ms, others_may_know_better, refuse};
use api::{ErrorCode, Problem};
use bytes::Bytes;
use mesh::coordination::{JoinAnswer, JoinRequest, Write};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};
use store::{Condition, Operation, Outcome, StoreError, Transaction};
use tokio::sync::oneshot;

/// How many are let in by one transaction: each takes up to three of its operations.
const TOGETHER: usize = 40;

type Answer = Result<JoinAnswer, Problem>;

/// A machine that asks, and who waits for the answer.
struct Joining {
    request: JoinRequest,
    answer: oneshot::Sender<Answer>,
}

/// Those who wait to be let in.
#[derive(Default)]
pub(super) struct Queue(Mutex<VecDeque<Joining>>);

impl Queue {
    fn push(&self, joining: Joining) {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back(joining);
    }

    fn take(&self) -> Vec<Joining> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let many = queue.len().min(TOGETHER);
        queue.drain(..many).collect()
    }
}

impl Coordinator {
    /// Lets a machine in, or says again that it is in.
    pub(crate) async fn join(self: &Arc<Self>, request: JoinRequest) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.joins.push(Joining { request, answer });
        let coordinator = Arc::clone(self);
        // On its own: whoever hangs up takes nobody along.
        tokio::spawn(async move { coordinator.let_in().await });
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Lets in who waits by then, as far as nobody else did.
    async fn let_in(&self) {
        let mut state = self.state.lock().await;
        let now = now_ms();
        let mut answers = Vec::new();
        let mut unsure = Vec::new();
        // What is written twice is written as it was last.
        let mut writes = BTreeMap::new();
        for joining in self.joins.take() {
            match state.book.join(&joining.request, now) {
                Ok(plan) => {
                    state.book.apply(&plan.writes);
                    for write in plan.writes {
                        let (Write::Put(key, _) | Write::Delete(key)) = &write;
                        writes.insert(key.clone(), write);
                    }
                    answers.push((joining, Ok(plan.answer)));
                }
                Err(refusal) if others_may_know_better(&refusal) => unsure.push(joining),
                // It may rest on what those before it are about to write.
                Err(refusal) => answers.push((joining, Err(refuse(refusal)))),
            }
        }
        match self.write(&mut state, writes.into_values()).await {
            Ok(true) => {
                for (joining, answer) in answers {
                    let _ = joining.answer.send(answer);
                }
            }
            Ok(false) => unsure.extend(answers.into_iter().map(|(joining, _)| joining)),
            Err(problem) => {
                for (joining, _) in answers {
                    let _ = joining.answer.send(Err(problem.clone()));
                }
            }
        }
        drop(state);
        for Joining { request, answer } in unsure {
            let step = self.step(|book| book.join(&request, now)).await;
            let _ = answer.send(step);
        }
    }

    /// Writes what was carried out in memory already; `false` if somebody else wrote meanwhile. If nothing was written, memory says so too afterwards.
    async fn write(
        &self,
        state: &mut State,
        writes: impl ExactSizeIterator<Item = Write>,
    ) -> Result<bool, Problem> {
        if writes.len() == 0 {
            return Ok(true);
        }
        let condition = match state.turn {
            Some(revision) => Condition::Unchanged(TURN.to_owned(), revision),
            None => Condition::Absent(TURN.to_owned()),
        };
        let writes = writes.map(|write| match write {
            Write::Put(key, value) => Operation::put(format!("{PREFIX}{key}"), value),
            Write::Delete(key) => Operation::delete(format!("{PREFIX}{key}")),
        });
        let turn = Operation::put(TURN, Bytes::from_static(b"{}"));
        let transaction = Transaction {
            conditions: vec![condition],
            then: writes.chain([turn]).collect(),
        };
        let written = match self.store.transact(transaction).await {
            Ok(Outcome::Committed { revision }) => {
                state.turn = Some(revision);
                let book = &mut state.book;
                self.news.publish(book.head(), |from| book.frame(from));
                return Ok(true);
            }
            Ok(Outcome::Refused { .. }) => Ok(false),
            // It may have been written all the same.
            Err(error) => Err(error.into()),
        };
        loop {
            match self.renew(state).await {
                Ok(()) => return written,
                Err(StoreError::Closed) => return Err(stopping()),
                Err(error) => {
                    tracing::error!(%error, "the mesh cannot be read; nobody is told anything until it can");
                    tokio::time::sleep(super::AGAIN).await;
                }
            }
        }
    }
}

fn stopping() -> Problem {
    let remedy = "ask again later";
    Problem::new(ErrorCode::Unavailable, "Atoll is stopping", remedy)
}
