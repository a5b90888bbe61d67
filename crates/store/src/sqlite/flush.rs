//! The thread that brings the log to the disk after what was written without waiting for it.

use std::{
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    time::{Duration, Instant},
};

/// Nothing waits longer for the disk than this, and what the disk itself takes.
const LONGEST: Duration = Duration::from_millis(200);
/// What comes in a burst goes to the disk together: a burst ends when nothing came for so long.
const QUIET: Duration = Duration::from_millis(20);

/// Tells the thread that there is something to bring to the disk.
#[derive(Debug, Clone)]
pub(super) struct Flushes(SyncSender<()>);

impl Flushes {
    /// Never waits. If the thread is gone the store is going too, and closing it brings all to the
    /// disk.
    pub(super) fn ask(&self) {
        // Full means that it was asked for already, and has not begun.
        let (Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(()))) =
            self.0.try_send(());
    }
}

pub(super) fn channel() -> (Flushes, Receiver<()>) {
    let (sender, receiver) = sync_channel(1);
    (Flushes(sender), receiver)
}

/// Where SQLite keeps the log of the database at `path`.
pub(super) fn log_of(path: &Path) -> PathBuf {
    let mut name: OsString = path.to_owned().into();
    name.push("-wal");
    name.into()
}

/// Works until the writer is gone.
pub(super) fn run(log: &Path, asked: &Receiver<()>) {
    while asked.recv().is_ok() {
        let begun = Instant::now();
        while begun.elapsed() < LONGEST {
            match asked.recv_timeout(QUIET) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        // Not the database itself: to close a second descriptor of that would give up the locks
        // that SQLite holds on it.
        if let Err(error) = File::open(log).and_then(|log| log.sync_data()) {
            tracing::error!(%error, "what was written is not on disk yet");
        }
    }
}
