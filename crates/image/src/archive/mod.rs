//! Reading tar archives as a stream, with bounds.
//!
//! Written here and not taken from a library because a layer comes from whoever published an
//! image: each header, long name and extended record is bounded before it is read.

pub mod compression;
pub mod header;
pub mod pax;
pub mod reader;

pub use reader::{ArchiveReader, Entry, EntryKind, Segment};

/// Why a tar archive can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream itself failed: the file, the decompression, or a cancelled build.
    #[error("the archive can't be read: {0}")]
    Read(#[from] std::io::Error),
    /// The archive ends in the middle of an entry.
    #[error("the archive is cut short")]
    CutShort,
    /// A block that should be a header is none.
    #[error("the archive is damaged at byte {at}: {what}")]
    Damaged {
        /// Where the block begins.
        at: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A header asks for more than is allowed.
    #[error("the archive holds {what} longer than {limit} bytes")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// The most that is allowed.
        limit: u64,
    },
}
