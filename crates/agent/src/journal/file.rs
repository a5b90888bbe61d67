//! The journal's file: reading, appending, rewriting.

use super::{
    JournalError, Ledger, Record,
    record::{Header, NAME, VERSION},
};
use jiff::Timestamp;
use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A line above this is not written, and not read.
const LINE_MAX: usize = 1 << 20;

/// Below this size a journal is not worth rewriting.
const COMPACT_MIN: u64 = 1 << 20;

/// A journal is rewritten when it has grown to this many times its size after the last time.
const COMPACT_GROWTH: u64 = 4;

/// The open file, and what it says.
pub(super) struct JournalFile {
    path: PathBuf,
    file: File,
    length: u64,
    compact_at: u64,
    ledger: Ledger,
}

impl JournalFile {
    /// Reads the journal in `directory`, rewrites it without what is past, and opens it for
    /// appending.
    pub(super) fn open(directory: &Path) -> Result<(Self, Ledger), JournalError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| failed("cannot make", directory, source))?;
        let path = directory.join("journal");
        let mut ledger = match File::open(&path) {
            Ok(file) => load(&path, BufReader::new(file))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Ledger::default(),
            Err(error) => return Err(failed("cannot open", &path, error)),
        };
        ledger.prune(Timestamp::now());
        let (file, length) = rewrite(&path, &ledger)?;
        let compact_at = (length * COMPACT_GROWTH).max(COMPACT_MIN);
        Ok((
            Self {
                path,
                file,
                length,
                compact_at,
                ledger: ledger.clone(),
            },
            ledger,
        ))
    }

    /// Appends records with one write. A record that is refused does not stop the others.
    pub(super) fn append(&mut self, records: &[Record]) -> Vec<Result<(), JournalError>> {
        let mut text = Vec::new();
        let mut results: Vec<Result<(), JournalError>> = Vec::with_capacity(records.len());
        for record in records {
            let start = text.len();
            results.push(encode(record, &mut text));
            if results.last().is_some_and(Result::is_err) {
                text.truncate(start);
            }
        }
        let lasting = records.iter().any(Record::outlives_the_machine);
        let written = self.file.write_all(&text).and_then(|()| {
            if lasting {
                self.file.sync_data()
            } else {
                Ok(())
            }
        });
        match written {
            Ok(()) => {
                self.length += text.len() as u64;
                for (record, _) in records
                    .iter()
                    .zip(&results)
                    .filter(|(_, result)| result.is_ok())
                {
                    if let Err(error) = self.ledger.apply(record) {
                        tracing::error!("the journal was given a record out of turn: {error}");
                    }
                }
            }
            Err(error) => {
                // Part of it may have been written; the next line must not be glued to it.
                if let Err(error) = self.file.set_len(self.length) {
                    tracing::error!("cannot shorten {}: {error}", self.path.display());
                }
                let error = failed("cannot write to", &self.path, error);
                for result in &mut results {
                    if result.is_ok() {
                        *result = Err(error.clone());
                    }
                }
            }
        }
        results
    }

    /// Rewrites the file if that would make it much smaller.
    pub(super) fn compact_if_large(&mut self) {
        if self.length < self.compact_at {
            return;
        }
        self.ledger.prune(Timestamp::now());
        match rewrite(&self.path, &self.ledger) {
            Ok((file, length)) => {
                tracing::debug!("rewrote the journal: {} bytes became {length}", self.length);
                self.file = file;
                self.length = length;
                self.compact_at = (length * COMPACT_GROWTH).max(COMPACT_MIN);
            }
            Err(error) => {
                tracing::warn!("cannot rewrite the journal, so it goes on growing: {error}");
                self.compact_at = self.length + COMPACT_MIN;
            }
        }
    }
}

fn failed(doing: &str, path: &Path, source: std::io::Error) -> JournalError {
    JournalError::File {
        doing: format!("{doing} {}", path.display()),
        source: Arc::new(source),
    }
}

fn encode(record: &Record, text: &mut Vec<u8>) -> Result<(), JournalError> {
    let start = text.len();
    serde_json::to_writer(&mut *text, record)
        .map_err(|error| JournalError::Format(format!("a record cannot be written: {error}")))?;
    if text.len() - start > LINE_MAX {
        return Err(JournalError::TooLarge(text.len() - start));
    }
    text.push(b'\n');
    Ok(())
}

/// Reads a journal to its end. What was torn or makes no sense is left out; then a copy of the
/// file is kept for whoever wants to know.
pub(super) fn load(path: &Path, mut reader: impl BufRead) -> Result<Ledger, JournalError> {
    let mut ledger = Ledger::default();
    let mut line = Vec::new();
    let mut number = 0u64;
    let mut damaged = 0u64;
    loop {
        line.clear();
        let read = (&mut reader)
            .take(LINE_MAX as u64 + 1)
            .read_until(b'\n', &mut line)
            .map_err(|source| failed("cannot read", path, source))?;
        if read == 0 {
            break;
        }
        number += 1;
        if line.last() != Some(&b'\n') {
            if line.len() > LINE_MAX {
                // Too long to be ours: skip to its end.
                damaged += 1;
                reader
                    .skip_until(b'\n')
                    .map_err(|source| failed("cannot read", path, source))?;
                continue;
            }
            tracing::debug!(
                "the last line of {} is torn, which is legal",
                path.display()
            );
            break;
        }
        if number == 1 {
            check_header(path, &line)?;
            continue;
        }
        let applied = serde_json::from_slice::<Record>(&line)
            .map_err(|error| error.to_string())
            .and_then(|record| ledger.apply(&record).map_err(|error| error.to_string()));
        if let Err(error) = applied {
            damaged += 1;
            tracing::warn!("line {number} of {} is left out: {error}", path.display());
        }
    }
    if damaged > 0 {
        let copy = path.with_extension("damaged");
        match std::fs::copy(path, &copy) {
            Ok(_) => tracing::warn!("a copy of the damaged journal is at {}", copy.display()),
            Err(error) => tracing::warn!("cannot keep the damaged journal: {error}"),
        }
    }
    Ok(ledger)
}

fn check_header(path: &Path, line: &[u8]) -> Result<(), JournalError> {
    let header: Header = serde_json::from_slice(line).map_err(|_| {
        JournalError::Format(format!("{} is not the journal of an agent", path.display()))
    })?;
    if header.journal != NAME || header.version > VERSION {
        return Err(JournalError::Format(format!(
            "{} is a journal of `{}` version {}, and this program reads `{NAME}` up to version \
             {VERSION}",
            path.display(),
            header.journal,
            header.version
        )));
    }
    Ok(())
}

/// Writes a ledger beside `path` and renames it into place; returns it open for appending.
fn rewrite(path: &Path, ledger: &Ledger) -> Result<(File, u64), JournalError> {
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(failed("cannot remove", &beside, error));
        }
        _ => {}
    }
    let file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .map_err(|source| failed("cannot make", &beside, source))?;
    let mut length = 0u64;
    let mut writer = BufWriter::with_capacity(1 << 16, &file);
    let mut text = Vec::new();
    serde_json::to_writer(
        &mut text,
        &Header {
            journal: NAME.into(),
            version: VERSION,
        },
    )
    .map_err(|error| JournalError::Format(error.to_string()))?;
    text.push(b'\n');
    for record in ledger.records() {
        encode(&record, &mut text)?;
        if text.len() >= 1 << 16 {
            writer
                .write_all(&text)
                .map_err(|source| failed("cannot write", &beside, source))?;
            length += text.len() as u64;
            text.clear();
        }
    }
    writer
        .write_all(&text)
        .and_then(|()| writer.flush())
        .map_err(|source| failed("cannot write", &beside, source))?;
    length += text.len() as u64;
    drop(writer);
    if ledger.live.values().any(|live| live.rest.is_some()) {
        file.sync_all()
            .map_err(|source| failed("cannot write", &beside, source))?;
    }
    std::fs::rename(&beside, path).map_err(|source| failed("cannot rename", &beside, source))?;
    Ok((file, length))
}
