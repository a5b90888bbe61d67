//! Work that blocks, from where nothing may.

use crate::{DriverError, doing};
use std::io;

/// Runs what blocks away from the asynchronous threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(doing("work on a thread")(io::Error::other(error))),
    }
}
