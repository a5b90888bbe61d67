//! `filesystem.Filesystem`: looking at, making, moving, removing and watching files.

pub mod entry;
pub mod service;
pub mod stream;
pub mod tree;
pub mod watch;
pub mod watchers;

use api::envd::connect::ConnectError;

/// Runs work that may wait for a disk, away from the thread that serves.
pub async fn blocking<T, F>(work: F) -> Result<T, ConnectError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ConnectError> + Send + 'static,
{
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.unwrap_or_else(|error| Err(ConnectError::internal(error.to_string())))
}
