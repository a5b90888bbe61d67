//! A machine's serial console, and what its hypervisor complains of.
//!
//! What the guest writes goes to a file in the machine's directory, up to a bound, and is read on
//! beyond it, so that nobody inside waits for a console that is full. The line that says that the
//! guest waits is an event.

use super::socket;
use crate::{DriverError, doing};
use api::boot::{SERIAL_FAILED, SERIAL_WAITING};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{net::UnixStream, sync::watch, task::JoinHandle};

/// The most that is kept of what a machine writes.
const MOST_KEPT: usize = 256 << 10;

/// The longest line that is understood.
const LONGEST_LINE: usize = 1024;

/// The most that is kept of a hypervisor's complaints.
const MOST_COMPLAINTS: usize = 4 << 10;

/// The file in the machine's directory.
pub(crate) const LOG: &str = "console.log";

/// What the guest said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    /// Nothing yet.
    Nothing,
    /// It waits for its identity.
    Waiting,
    /// It cannot start.
    Failed(String),
    /// The machine is gone.
    Ended,
}

/// Reads for as long as it is there.
#[derive(Debug)]
pub(crate) struct Console {
    word: watch::Receiver<Word>,
    last_lines: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Console {
    /// Connects to the socket `name` in `directory`.
    pub(crate) fn connect(directory: &Path, name: &str) -> Result<Self, DriverError> {
        let socket = socket::connect(directory, name).map_err(doing("connect to the console"))?;
        let stream = UnixStream::from_std(socket.into()).map_err(doing("read the console"))?;
        Self::read_from(stream, directory)
    }

    /// Reads what comes from a socket; keeps it in `directory`.
    pub(crate) fn read_from(stream: UnixStream, directory: &Path) -> Result<Self, DriverError> {
        let path = directory.join(LOG);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(doing(format!("open {}", path.display())))?;
        let (sender, word) = watch::channel(Word::Nothing);
        let last_lines = Arc::new(Mutex::new(String::new()));
        let reader = tokio::spawn(read(stream, log, sender, Arc::clone(&last_lines)));
        Ok(Self {
            word,
            last_lines,
            reader,
        })
    }

    /// Waits until the guest says that it waits.
    pub(crate) async fn wait_for_guest(&self) -> Result<(), DriverError> {
        let mut word = self.word.clone();
        let said = word
            .wait_for(|word| *word != Word::Nothing)
            .await
            .map_or(Word::Ended, |word| word.clone());
        match said {
            Word::Waiting => Ok(()),
            Word::Failed(cause) => Err(DriverError::Guest(cause)),
            Word::Nothing | Word::Ended => Err(DriverError::Guest(format!(
                "the machine ended while it started; it last said: {}",
                self.last_lines()
            ))),
        }
    }

    /// The last that it wrote, as one short line.
    pub(crate) fn last_lines(&self) -> String {
        let last = self
            .last_lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last.trim().replace('\n', "; ")
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(
    stream: UnixStream,
    mut log: File,
    word: watch::Sender<Word>,
    last_lines: Arc<Mutex<String>>,
) {
    let mut room = MOST_KEPT;
    let mut line: Vec<u8> = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        if stream.readable().await.is_err() {
            break;
        }
        let length = match stream.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        };
        let part = &buffer[..length];
        let kept = &part[..length.min(room)];
        // A full disk costs the log and nothing else.
        room = match log.write_all(kept) {
            Ok(()) => room - kept.len(),
            Err(_) => 0,
        };
        for byte in part {
            match byte {
                b'\n' => {
                    understand(&line, &word, &last_lines);
                    line.clear();
                }
                b'\r' => {}
                _ if line.len() < LONGEST_LINE => line.push(*byte),
                _ => {}
            }
        }
    }
    word.send_if_modified(|word| {
        let unheard = *word == Word::Nothing;
        if unheard {
            *word = Word::Ended;
        }
        unheard
    });
}

fn understand(line: &[u8], word: &watch::Sender<Word>, last_lines: &Mutex<String>) {
    let line = String::from_utf8_lossy(line);
    // Whatever the kernel writes may stand before it on the same line.
    if let Some((_, cause)) = line.split_once(SERIAL_FAILED) {
        word.send_replace(Word::Failed(cause.to_owned()));
    } else if line.contains(SERIAL_WAITING) {
        word.send_if_modified(|word| {
            let first = *word == Word::Nothing;
            if first {
                *word = Word::Waiting;
            }
            first
        });
    }
    let mut last = last_lines.lock().unwrap_or_else(PoisonError::into_inner);
    if last.lines().count() >= 4 {
        let rest = last
            .split_once('\n')
            .map_or("", |(_, rest)| rest)
            .to_owned();
        *last = rest;
    }
    last.extend(line.chars().filter(|letter| !letter.is_control()).take(200));
    last.push('\n');
}

/// What a process writes to its standard error, bounded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Complaints(Arc<Mutex<String>>);

impl Complaints {
    /// Collects what comes from a pipe until its other end is closed.
    pub(crate) fn collect(pipe: OwnedFd) -> io::Result<Self> {
        let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe)?;
        let complaints = Self::default();
        let kept = complaints.clone();
        tokio::spawn(async move {
            use tokio::io::AsyncReadExt;
            let mut buffer = [0u8; 1024];
            while let Ok(length) = pipe.read(&mut buffer).await {
                if length == 0 {
                    break;
                }
                let text = String::from_utf8_lossy(&buffer[..length]);
                let mut kept = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() < MOST_COMPLAINTS {
                    kept.push_str(&text);
                }
            }
        });
        Ok(complaints)
    }

    /// As one line.
    pub(crate) fn text(&self) -> String {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text.trim().replace('\n', "; ")
    }
}
