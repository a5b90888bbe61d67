//! Watches: each reads the history at its own pace, so a slow one costs no memory and misses
//! nothing; it only falls out of the history at last.

use super::read::{ReadJob, ask};
use crate::{Batch, Revision, StoreError, Watch};
use futures::{StreamExt, stream};
use std::collections::VecDeque;
use tokio::sync::{mpsc, watch::Receiver};

struct State {
    prefix: String,
    next: Revision,
    ready: VecDeque<Batch>,
    reads: mpsc::WeakSender<ReadJob>,
    revision: Receiver<Revision>,
    ended: bool,
}

impl State {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            let next = self.next;
            if self
                .revision
                .wait_for(|revision| *revision >= next)
                .await
                .is_err()
            {
                return Err(StoreError::Closed);
            }
            let prefix = self.prefix.clone();
            // Weak: a watch that nobody reads must not keep the store's threads alive.
            let reads = self.reads.upgrade().ok_or(StoreError::Closed)?;
            let changes = ask(&reads, |reply| ReadJob::Changes(prefix, next, reply)).await?;
            self.ready = changes.batches.into();
            self.next = changes.next;
        }
    }
}

/// The changes below `prefix` from `from` on.
pub(super) fn watch(
    prefix: String,
    from: Revision,
    reads: mpsc::Sender<ReadJob>,
    revision: Receiver<Revision>,
) -> Watch {
    let state = State {
        prefix,
        next: from,
        ready: VecDeque::new(),
        reads: reads.downgrade(),
        revision,
        ended: false,
    };
    stream::unfold(state, |mut state| async move {
        if state.ended {
            return None;
        }
        let item = state.next().await;
        state.ended = item.is_err();
        Some((item, state))
    })
    .boxed()
}
