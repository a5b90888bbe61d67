//! A process and what comes out of it.

use super::{input::Input, transcript::Transcript};
use crate::{
    descriptor::watched,
    logs::{LineLog, Logs},
};
use api::envd::process::{EndEvent, OutputStream, ProcessConfig};
use rustix::{io::Errno, process::Pid};
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

/// How much is read at once.
const READ_SIZE: usize = 64 << 10;
/// A client that takes nothing for so long while another waits for it is cut off.
const STALL_LIMIT: Duration = Duration::from_secs(20);

thread_local! {
    /// One buffer serves all processes: it is used between two waits only.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A process that was started here.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// What it was started with.
    pub config: ProcessConfig,
    /// A name to find it by.
    pub tag: Option<String>,
    /// Where input goes.
    pub input: Input,
    /// What it printed and who listens.
    pub transcript: RefCell<Transcript>,
    /// Its status, from when it was reaped.
    pub(super) exit: RefCell<Option<EndEvent>>,
    /// Rings when it was reaped.
    pub(super) exited: Notify,
    /// Readers that have not seen the end of their stream.
    pub(super) readers: Cell<u32>,
    /// Rings when a reader has.
    pub(super) reader_done: Notify,
    /// When it last printed, or had to wait for a client.
    pub(super) busy: Cell<Instant>,
    room: Notify,
    lines: RefCell<LineLog>,
    logs: Rc<Logs>,
    bound: Rc<Cell<usize>>,
}

impl Process {
    /// A process that was just spawned. `bound` is how much unseen output it may keep.
    pub(super) fn new(
        pid: u32,
        config: ProcessConfig,
        tag: Option<String>,
        input: Input,
        logs: Rc<Logs>,
        bound: Rc<Cell<usize>>,
    ) -> Self {
        Self {
            pid,
            config,
            tag,
            input,
            transcript: RefCell::default(),
            exit: RefCell::default(),
            exited: Notify::new(),
            readers: Cell::new(0),
            reader_done: Notify::new(),
            busy: Cell::new(Instant::now()),
            room: Notify::new(),
            lines: RefCell::new(LineLog::new(pid)),
            logs,
            bound,
        }
    }

    /// Whether it was reaped.
    pub fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// The command line, for people.
    pub fn command(&self) -> String {
        let mut command = self.config.cmd.clone();
        for argument in &self.config.args {
            command.push(' ');
            command.push_str(argument);
            if command.len() > 1000 {
                break;
            }
        }
        command.chars().take(1000).collect()
    }

    /// Starts to read a stream.
    pub(super) fn read_from(
        self: &Rc<Self>,
        stream: OutputStream,
        source: OwnedFd,
    ) -> io::Result<()> {
        let source = watched(source, Interest::READABLE)?;
        self.readers.set(self.readers.get() + 1);
        let process = Rc::clone(self);
        tokio::task::spawn_local(async move {
            process.read(stream, source).await;
            process.readers.set(process.readers.get() - 1);
            process.reader_done.notify_one();
        });
        Ok(())
    }

    async fn read(&self, stream: OutputStream, source: AsyncFd<OwnedFd>) {
        loop {
            self.wait_for_room().await;
            let Ok(mut ready) = source.readable().await else {
                return;
            };
            let outcome = SCRATCH.with_borrow_mut(|scratch| {
                if scratch.is_empty() {
                    scratch.resize(READ_SIZE, 0);
                }
                match rustix::io::read(source.get_ref(), scratch.as_mut_slice()) {
                    Ok(count) => {
                        self.take(stream, scratch.get(..count).unwrap_or_default());
                        Ok(count)
                    }
                    Err(error) => Err(error),
                }
            });
            match outcome {
                Ok(0) => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                // A terminal says EIO when its last program has closed it.
                Err(_) => return,
            }
        }
    }

    fn take(&self, stream: OutputStream, data: &[u8]) {
        self.busy.set(Instant::now());
        self.lines.borrow_mut().push(&self.logs, stream, data);
        let mut transcript = self.transcript.borrow_mut();
        // What its descendants print after it has ended belongs to nobody's stream.
        if transcript.ended().is_none() && !data.is_empty() {
            transcript.push(stream, data, self.bound.get());
        }
    }

    async fn wait_for_room(&self) {
        loop {
            let room = self.room.notified();
            {
                let transcript = self.transcript.borrow();
                if transcript.ended().is_some() || transcript.has_room() {
                    return;
                }
            }
            if tokio::time::timeout(STALL_LIMIT, room).await.is_err() {
                let before = Instant::now().checked_sub(STALL_LIMIT);
                if let Some(before) = before {
                    self.transcript.borrow_mut().cut_off_stalled(before);
                }
            }
            self.busy.set(Instant::now());
        }
    }

    /// To be called after a subscriber took something, or left.
    pub fn made_room(&self) {
        self.room.notify_waiters();
    }

    /// Forgets what it printed so far.
    pub(super) fn forget_output(&self) {
        self.lines.borrow_mut().forget();
        self.transcript.borrow_mut().forget();
        self.made_room();
    }

    /// Marks the end.
    pub(super) fn finish(&self, end: EndEvent) {
        self.lines
            .borrow_mut()
            .finish(&self.logs, self.input.is_terminal());
        self.transcript.borrow_mut().finish(end);
        self.input.close();
        self.made_room();
    }

    /// Sends a signal to the process and all of its session. Does nothing after it was reaped,
    /// when the number may be somebody else's.
    pub fn signal(&self, signal: rustix::process::Signal) -> io::Result<()> {
        if self.has_exited() {
            return Ok(());
        }
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        if signal == rustix::process::Signal::KILL {
            // Shells with job control give each job a group of its own, in the same session.
            for member in session_members(self.pid) {
                let _ = rustix::process::kill_process(member, signal);
            }
        }
        match rustix::process::kill_process_group(pid, signal) {
            Ok(()) => Ok(()),
            Err(_) => Ok(rustix::process::kill_process(pid, signal)?),
        }
    }
}

/// Processes whose session is `session`, from `/proc`.
fn session_members(session: u32) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let numbers = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let members = numbers.filter(|pid: &i32| {
        // SAFETY: takes a number and gives one. (`rustix` has no answer for processes whose
        // session is not of this namespace, which the kernel calls 0.)
        let own = unsafe { libc::getsid(*pid) };
        u32::try_from(own) == Ok(session)
    });
    members.filter_map(Pid::from_raw).collect()
}
