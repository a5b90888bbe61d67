//! Making little of what a snapshot would have to keep.

use crate::http::reply::{Failure, Reply, empty};
use http::StatusCode;

/// `POST /_atoll/settle[?keep-cache=1]`.
pub(super) async fn answer(query: &str) -> Result<Reply, Failure> {
    let keep_cache = query.split('&').any(|pair| pair == "keep-cache=1");
    let settled = tokio::task::spawn_blocking(move || settle(keep_cache)).await;
    match settled {
        Ok(Ok(())) => Ok(empty(StatusCode::NO_CONTENT)),
        Ok(Err(error)) => Err(Failure::internal(format!("cannot settle: {error}"))),
        Err(error) => Err(Failure::internal(format!("settling broke off: {error}"))),
    }
}

fn settle(keep_cache: bool) -> std::io::Result<()> {
    rustix::fs::sync();
    if keep_cache {
        return Ok(());
    }
    // SAFETY: gives free memory of the allocator back; it takes its own locks.
    unsafe { libc::malloc_trim(0) };
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    // Free pages side by side are free pages of the host, once it backs them by larger ones. Not
    // every kernel can.
    match std::fs::write("/proc/sys/vm/compact_memory", "1") {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
