//! Files of log lines, one pair for each sandbox.

use super::line::NumberedLine;
use api::{SandboxId, node::LogLine};
use jiff::Timestamp;
use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// A sandbox's newer file is moved aside, over the older one, when it has grown to this.
const FILE_MAX: u64 = 512 << 10;

/// All files together; beyond it the ones that were written to least recently go.
const TOTAL_MAX: u64 = 1 << 30;

/// A line in a file is never longer: a guest's line after it was cut to size, with all its
/// characters escaped.
const LINE_MAX: u64 = 256 << 10;

/// The folder of all logs.
#[derive(Clone)]
pub(crate) struct LogStore {
    directory: PathBuf,
}

impl LogStore {
    /// Opens the folder, or makes it. Blocks.
    pub(crate) fn open(directory: PathBuf) -> std::io::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        Ok(Self { directory })
    }

    fn newer(&self, id: &SandboxId) -> PathBuf {
        self.directory.join(format!("{id}.log"))
    }

    fn older(&self, id: &SandboxId) -> PathBuf {
        self.directory.join(format!("{id}.old"))
    }

    /// Appends lines. Blocks.
    pub(super) fn append(&self, id: &SandboxId, lines: &[NumberedLine]) -> std::io::Result<()> {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        let path = self.newer(id);
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)?;
        if file.metadata()?.len() + text.len() as u64 > FILE_MAX {
            std::fs::rename(&path, self.older(id))?;
            file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&path)?;
        }
        file.write_all(&text)
    }

    /// The number of the last line that was kept; 0 if there is none. Blocks.
    pub(super) fn last_number(&self, id: &SandboxId) -> u64 {
        let last = |path: &Path| -> Option<u64> {
            let mut file = File::open(path).ok()?;
            let length = file.metadata().ok()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(2 * LINE_MAX)))
                .ok()?;
            lines(file).map(|line| line.seq).max()
        };
        last(&self.newer(id))
            .or_else(|| last(&self.older(id)))
            .unwrap_or(0)
    }

    /// Lines at or after `from`, oldest first, at most `limit`. Blocks.
    pub(crate) fn read(
        &self,
        id: &SandboxId,
        from: Option<Timestamp>,
        limit: usize,
    ) -> std::io::Result<Vec<LogLine>> {
        let mut found = Vec::new();
        for path in [self.older(id), self.newer(id)] {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let wanted = lines(file)
                .map(|numbered| numbered.line)
                .filter(|line| from.is_none_or(|from| line.at >= from));
            found.extend(wanted.take(limit - found.len()));
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }

    /// Removes files of sandboxes that are not known, and the oldest of too many. Blocks.
    pub(crate) fn prune(&self, is_known: impl Fn(&SandboxId) -> bool) -> std::io::Result<()> {
        let mut kept: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let path = entry.path();
            let id = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse::<SandboxId>().ok());
            if id.is_some_and(|id| is_known(&id)) {
                let metadata = entry.metadata()?;
                kept.push((metadata.modified()?, metadata.len(), path));
            } else {
                remove(&path)?;
            }
        }
        let mut total: u64 = kept.iter().map(|(_, length, _)| length).sum();
        if total > TOTAL_MAX {
            kept.sort();
            for (_, length, path) in kept {
                if total <= TOTAL_MAX {
                    break;
                }
                remove(&path)?;
                total -= length;
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The lines of a file. What is torn or cut in half is left out.
fn lines(file: File) -> impl Iterator<Item = NumberedLine> {
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let mut line = Vec::new();
    std::iter::from_fn(move || {
        loop {
            line.clear();
            let read = (&mut reader)
                .take(LINE_MAX)
                .read_until(b'\n', &mut line)
                .ok()?;
            if read == 0 {
                return None;
            }
            if let Ok(numbered) = serde_json::from_slice(&line) {
                return Some(numbered);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{ClusterId, NodeId, node::LogLevel};
    use std::collections::BTreeMap;

    fn id() -> SandboxId {
        let random = &mut rand::rng();
        SandboxId::random(&ClusterId::random(random), &NodeId::random(random), random)
    }

    fn line(seq: u64, message: &str) -> NumberedLine {
        let at = Timestamp::from_second(seq as i64).unwrap();
        let line = LogLine {
            at,
            level: LogLevel::Info,
            message: message.into(),
            fields: BTreeMap::new(),
        };
        NumberedLine { seq, line }
    }

    #[test]
    fn lines_come_back_in_order_and_the_oldest_are_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let store = LogStore::open(directory.path().join("logs")).unwrap();
        let id = id();
        assert_eq!(store.last_number(&id), 0);
        assert!(store.read(&id, None, 10).unwrap().is_empty());
        let long = "x".repeat(10_000);
        for seq in 1..=200 {
            store.append(&id, &[line(seq, &long)]).unwrap();
        }
        assert_eq!(store.last_number(&id), 200);
        let all = store.read(&id, None, 1000).unwrap();
        assert!((50..110).contains(&all.len()), "{}", all.len());
        assert!(all.windows(2).all(|pair| pair[0].at < pair[1].at));
        assert_eq!(all.last().unwrap().at, line(200, "").line.at);
        let from = line(190, "").line.at;
        let some = store.read(&id, Some(from), 5).unwrap();
        assert_eq!(
            some.iter()
                .map(|line| line.at.as_second())
                .collect::<Vec<_>>(),
            [190, 191, 192, 193, 194]
        );
    }

    #[test]
    fn logs_of_forgotten_sandboxes_go() {
        let directory = tempfile::tempdir().unwrap();
        let store = LogStore::open(directory.path().to_owned()).unwrap();
        let (kept, gone) = (id(), id());
        for id in [&kept, &gone] {
            store.append(id, &[line(1, "hello")]).unwrap();
        }
        store.prune(|id| *id == kept).unwrap();
        assert_eq!(store.read(&kept, None, 10).unwrap().len(), 1);
        assert_eq!(store.read(&gone, None, 10).unwrap().len(), 0);
    }

    #[test]
    fn a_torn_line_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let store = LogStore::open(directory.path().to_owned()).unwrap();
        let id = id();
        store
            .append(&id, &[line(1, "whole"), line(2, "torn")])
            .unwrap();
        let path = store.newer(&id);
        let length = std::fs::metadata(&path).unwrap().len();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(length - 4)
            .unwrap();
        assert_eq!(store.last_number(&id), 1);
    }
}
