//! What the agent must not forget, so that it can be killed and started again while its sandboxes
//! go on.
//!
//! `agent/journal` in the data directory is a file of JSON lines that only grows. Its first line
//! says its version; each other line is a [`Record`]. A record is written, with one `write(2)`,
//! before what it says is acted upon or handed out. That a sandbox is paused is forced to the disk
//! before it is told, because it survives the machine; the rest must only survive the death of
//! this program.
//!
//! - A last line that was torn by the death of the program is ignored, and so is a line that makes
//!   no sense after those before it.
//! - When the file has grown to several times of what it says, it is rewritten beside itself and
//!   renamed into place, so that at each moment there is one whole journal. The same happens
//!   at every start.
//! - The file holds tokens of sandboxes, because after a restart the agent must know them: only
//!   root may read it, and rewriting drops those of sandboxes that ended.
//!
//! One thread owns the file: writing to a file may block, and async threads must not. What waits
//! in its queue is written together.

mod file;
mod ledger;
mod record;
#[cfg(test)]
mod tests;

pub(crate) use ledger::{HISTORY_COUNT, HISTORY_TIME, Ledger, Live, Rest, ended_at, status};
pub(crate) use record::Record;

use api::{ErrorCode, Problem};
use file::JournalFile;
use std::{path::Path, sync::Arc};
use tokio::sync::{mpsc, oneshot};

/// Why something could not be written down or read back.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum JournalError {
    /// A file operation failed.
    #[error("{doing}: {source}")]
    File {
        doing: String,
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The file is not a journal, or one of a later version.
    #[error("{0}")]
    Format(String),
    /// One record is larger than the journal takes.
    #[error("a record of {0} bytes is larger than the journal takes")]
    TooLarge(usize),
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
}

impl JournalError {
    /// As users see it.
    pub(crate) fn problem(&self) -> Problem {
        match self {
            Self::File { source, .. }
                if source.raw_os_error() == Some(libc::ENOSPC)
                    || source.raw_os_error() == Some(libc::EDQUOT) =>
            {
                Problem::new(
                    ErrorCode::OutOfDisk,
                    self.to_string(),
                    "free space on the disk that holds the data directory",
                )
            }
            Self::File { .. } => Problem::new(
                ErrorCode::Internal,
                self.to_string(),
                "check the permissions and the health of the disk that holds the data directory",
            ),
            Self::Format(_) => Problem::new(
                ErrorCode::Internal,
                self.to_string(),
                "start the version of Atoll that wrote it, or another data directory",
            ),
            Self::TooLarge(_) => Problem::new(
                ErrorCode::InvalidArgument,
                self.to_string(),
                "give the sandbox less metadata or fewer variables",
            ),
            Self::Closed => crate::problems::stopping(),
        }
    }
}

/// Records that may wait to be written.
const QUEUE: usize = 1024;

/// Records that are written together at most.
const BATCH: usize = 64;

struct Append {
    record: Record,
    done: oneshot::Sender<Result<(), JournalError>>,
}

/// The journal, open for writing.
pub(crate) struct Journal {
    queue: mpsc::Sender<Append>,
}

impl Journal {
    /// Opens the journal in `directory`, or begins one, and returns what it says. Blocks.
    pub(crate) fn open(directory: &Path) -> Result<(Self, Ledger), JournalError> {
        let (mut file, ledger) = JournalFile::open(directory)?;
        let (queue, mut waiting) = mpsc::channel::<Append>(QUEUE);
        std::thread::Builder::new()
            .name("atoll-journal".into())
            .spawn(move || {
                // Ends when the journal is dropped and the queue is empty.
                while let Some(first) = waiting.blocking_recv() {
                    let mut batch = vec![first];
                    while batch.len() < BATCH
                        && let Ok(next) = waiting.try_recv()
                    {
                        batch.push(next);
                    }
                    write(&mut file, batch);
                }
            })
            .map_err(|source| JournalError::File {
                doing: "cannot start the thread that writes the journal".into(),
                source: Arc::new(source),
            })?;
        Ok((Self { queue }, ledger))
    }

    /// Writes a record, and returns when the kernel has it.
    pub(crate) async fn append(&self, record: Record) -> Result<(), JournalError> {
        let (done, written) = oneshot::channel();
        self.queue
            .send(Append { record, done })
            .await
            .map_err(|_| JournalError::Closed)?;
        written.await.map_err(|_| JournalError::Closed)?
    }
}

fn write(file: &mut JournalFile, batch: Vec<Append>) {
    let (records, waiting): (Vec<_>, Vec<_>) = batch
        .into_iter()
        .map(|append| (append.record, append.done))
        .unzip();
    let results = file.append(&records);
    for (done, result) in waiting.into_iter().zip(results) {
        // Whoever asked may have gone away; the record counts all the same.
        let _ = done.send(result);
    }
    file.compact_if_large();
}
