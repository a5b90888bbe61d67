//! What sandboxes print, kept on the node, so that it can be read when they are gone.
//!
//! The guest keeps a ring of its newest lines. For each sandbox the node holds one connection to it
//! ([`follow`]) and appends what comes to a file ([`store`]); lines are numbered, so a connection
//! that breaks, or an agent that starts again, goes on where it stopped. Nothing of a log is kept
//! in this program's memory: the kernel's page cache does that better.
//!
//! The guest is hostile: the length of a line, its fields, the rate at which lines are taken, the
//! size of one sandbox's file and the size of all together are bounded. A guest that is too fast
//! is read more slowly, and its own ring drops what does not fit.

mod follow;
mod line;
mod store;

pub(crate) use store::LogStore;

/// Takes bytes as they come from a guest and returns how many lines of a log are in them. For
/// fuzzing: whatever the bytes, this neither panics nor keeps much memory.
pub fn count_guest_lines(bytes: &[u8]) -> usize {
    let mut count = 0;
    let mut splitter = line::LineSplitter::new(follow::LINE_MAX);
    for chunk in bytes.chunks(4096) {
        splitter.push(chunk, |text| {
            let line = line::NumberedLine::from_guest(text, jiff::Timestamp::MAX);
            count += usize::from(line.is_some());
        });
    }
    count
}
