//! Creations that are repeated must not create twice.
//!
//! A caller who sends `Idempotency-Key` gets the first answer again for an hour. What is
//! remembered is bounded and in memory: after a restart of the control plane, or when more than
//! [`MOST`] keys were used meanwhile, the same key creates anew. A creation that failed is
//! forgotten, so that it can be tried again.

use crate::error::invalid;
use api::{ErrorCode, Problem, TenantId, rest::sandbox::Sandbox};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How many keys are remembered at most.
const MOST: usize = 10_000;

/// For how long.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The digest of a request, to notice another one with the same key.
pub(crate) type Fingerprint = [u8; 32];

type Id = (TenantId, String);

struct Entry {
    fingerprint: Fingerprint,
    began: Instant,
    /// None while it is under way.
    answer: Option<Sandbox>,
}

#[derive(Default)]
struct Memory {
    entries: HashMap<Id, Entry>,
    /// In the order in which they began.
    order: VecDeque<(Id, Instant)>,
}

impl Memory {
    fn forget_old(&mut self, now: Instant) {
        while let Some((id, began)) = self.order.front() {
            if self.order.len() <= MOST && now.duration_since(*began) < REMEMBERED {
                return;
            }
            if self
                .entries
                .get(id)
                .is_some_and(|entry| entry.began == *began)
            {
                self.entries.remove(id);
            }
            self.order.pop_front();
        }
    }
}

/// What is remembered of creations with a key.
#[derive(Default, Clone)]
pub(crate) struct Idempotency(Arc<Mutex<Memory>>);

/// What a key means.
pub(crate) enum First {
    /// It is new: create, and say what came of it.
    Yes(Attempt),
    /// It was answered before.
    No(Box<Sandbox>),
}

/// A creation under way. Dropped without an answer, it is forgotten.
pub(crate) struct Attempt {
    idempotency: Idempotency,
    id: Id,
}

/// Refuses a key that does not have the form of one.
pub(crate) fn check_key(key: &str) -> Result<(), Problem> {
    let valid = (1..=255).contains(&key.len())
        && key
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if valid {
        return Ok(());
    }
    Err(invalid(
        "Idempotency-Key must have 1 to 255 characters of a-z, 0-9 and -",
    ))
}

impl Idempotency {
    /// Looks a key up, and takes it if it is new.
    pub(crate) fn begin(
        &self,
        tenant: &TenantId,
        key: &str,
        fingerprint: Fingerprint,
        now: Instant,
    ) -> Result<First, Problem> {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.forget_old(now);
        let id = (tenant.clone(), key.to_owned());
        match memory.entries.get(&id) {
            Some(entry) if entry.fingerprint != fingerprint => Err(Problem::new(
                ErrorCode::IdempotencyRequestMismatch,
                "The idempotency key was used before with another request",
                "use a new key for each new request",
            )),
            Some(Entry {
                answer: Some(answer),
                ..
            }) => Ok(First::No(Box::new(answer.clone()))),
            Some(_) => Err(Problem::new(
                ErrorCode::IdempotencyInProgress,
                "The first request with this idempotency key is still under way",
                "wait and send the same request again",
            )),
            None => {
                memory.order.push_back((id.clone(), now));
                memory.entries.insert(
                    id.clone(),
                    Entry {
                        fingerprint,
                        began: now,
                        answer: None,
                    },
                );
                Ok(First::Yes(Attempt {
                    idempotency: self.clone(),
                    id,
                }))
            }
        }
    }
}

impl Attempt {
    /// Remembers the answer.
    pub(crate) fn answered(self, answer: &Sandbox) {
        let mut memory = self
            .idempotency
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = memory.entries.get_mut(&self.id) {
            entry.answer = Some(answer.clone());
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut memory = self
            .idempotency
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if memory
            .entries
            .get(&self.id)
            .is_some_and(|entry| entry.answer.is_none())
        {
            memory.entries.remove(&self.id);
        }
    }
}
