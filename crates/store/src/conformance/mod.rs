//! What every store must do. An implementation passes if [`run`] returns without a panic.
//!
//! It speaks to the store as its users do, through [`Store`] alone, and to its surroundings
//! through [`Subject`]: how to open it, how to lose everything that is only in memory, how to let
//! time pass.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // It is a test.

mod basics;
mod concurrency;
mod leases;
mod watches;

use crate::Store;
use std::{future::Future, sync::Arc, time::Duration};

/// A store under test.
#[async_trait::async_trait]
pub trait Subject: Send + Sync {
    /// The store as it is.
    async fn open(&self) -> Arc<dyn Store>;

    /// Takes everything down without warning and opens it anew: only what was acknowledged is
    /// sure to be there.
    async fn reopen(&self) -> Arc<dyn Store>;

    /// Lets time pass for leases: on a clock of the test's own, or by waiting.
    async fn pass(&self, time: Duration);
}

/// How long anything may take that should happen by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the whole suite. `make` makes an empty store each time.
pub async fn run<S, F, M>(make: M)
where
    S: Subject,
    F: Future<Output = S>,
    M: Fn() -> F,
{
    basics::run(&make).await;
    watches::run(&make).await;
    leases::run(&make).await;
    concurrency::run(&make).await;
}

/// Waits for something that should happen by itself, but not for ever.
async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, event).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {} s", PATIENCE.as_secs()),
    }
}
