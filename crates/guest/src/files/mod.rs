//! `/files`: the contents of files over plain HTTP.
//!
//! Reading and writing happens in pieces on the pool for blocking work, and never while waiting
//! for the network: so a slow client holds no thread.

pub mod compose;
pub mod download;
pub mod upload;

use crate::http::reply::Failure;
use std::io;

/// How much is read or written at once.
pub const PIECE: usize = 128 << 10;

/// Runs work that may wait for a disk, away from the thread that serves.
async fn blocking<T, F>(work: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Failure> + Send + 'static,
{
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.unwrap_or_else(|error| Err(Failure::internal(error.to_string())))
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Explains a failed write: 507 if the disk is full.
fn write_failure(doing: &str, error: &io::Error) -> Failure {
    if is_full(error) {
        let status = http::StatusCode::INSUFFICIENT_STORAGE;
        Failure::new(status, "not enough disk space available")
    } else {
        Failure::internal(format!("{doing}: {error}"))
    }
}
