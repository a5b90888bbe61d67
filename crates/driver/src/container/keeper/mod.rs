//! The keeper: one small process that is the parent of all cells of an instance.
//!
//! Forking from a large program with many threads is slow and unsafe, so the program starts itself
//! once more, before any thread or runtime exists, and lets that process do it. The keeper has a
//! mount namespace of its own, so that the host's mount table never shows a sandbox's mounts. It
//! does one thing at a time and nothing that waits; what takes long is done by the client (layers,
//! control groups) or by the cells themselves.
//!
//! A cell's life, as the keeper sees it:
//!
//! ```text
//!            guest says Waiting        start            guest says Ready
//! Preparing ───────────────────▶ Waiting ───▶ Starting ─────────────────▶ Running
//!     │                             │             │                          │
//!     └──────── client gone, released, or failed ─┘                          │
//!                          ▼                                                 │
//!                       killed ◀──────────────── released ───────────────────┘
//!                          ▼
//!               reaped and forgotten (also when it ends by itself)
//! ```
//!
//! When the client goes, cells that nobody has claimed are killed, those that run go on, and the
//! keeper stays until the last of them has ended. A client that comes back finds it through its
//! socket. If the keeper itself is killed, running cells go on as orphans: nothing of theirs lives
//! in the keeper.

mod birth;
mod root;
mod table;

pub(super) use birth::IDS;

use super::{
    packet::{self, Received},
    protocol::{Answer, Failure, Prepare, Question, Request, Start, Statement, VERSION},
};
use api::boot::GuestEvent;
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountPropagationFlags, mount_change},
    net::{SocketFlags, accept_with},
    thread::UnshareFlags,
};
use std::{
    collections::VecDeque,
    env, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};
use table::{Cell, Source, State, Table};

/// The variable that makes a process a keeper; its value is the directory for its files.
pub(super) const VARIABLE: &str = "ATOLL_KEEPER";

/// The keeper's directory for mounting on, below the one for its files.
const STAGE: &str = "stage";

/// The most questions that wait for their turn.
const MOST_WAITING: usize = 4096;

/// Becomes the keeper and never returns, if this process was started to be one; else returns at
/// once. Call it first thing in `main`, before any thread exists.
pub fn run_if_asked() {
    if let Some(directory) = env::var_os(VARIABLE) {
        let code = match main(Path::new(&directory)) {
            Ok(()) => 0,
            Err(error) => {
                report(&error);
                1
            }
        };
        std::process::exit(code);
    }
}

/// Standard error is a log file; there is nobody else to tell.
fn report(error: &dyn std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "keeper: {error}");
}

/// Serves until the client is gone and no cell that it claimed is left. Standard input is the
/// listening socket; `directory` is where the stage is.
fn main(directory: &Path) -> io::Result<()> {
    // SAFETY: the process was started for this alone, so nothing else owns descriptor 0.
    let listener = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    // SAFETY: no thread and no other owner of these descriptors exists yet; 4 is the first after
    // standard input, output, error and the listener.
    unsafe { libc::close_range(4, libc::c_uint::MAX, 0) };
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    // Whoever connects is told the pid of the process that listened last (unix(7), SO_PEERCRED),
    // and until now that is the program that started this one.
    rustix::net::listen(&listener, 16)?;

    // Ctrl-C in the client's terminal is not for the keeper, and who stops a service ends the
    // client: the keeper follows when it is no longer needed.
    let _ = rustix::process::setsid();
    ignore_signals();
    let _ = rustix::thread::set_name(c"atoll-keeper");
    // Only a privileged process may; what it gets killed for is not its own use.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-500");

    // SAFETY: a mount namespace of its own affects this single thread only.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    rustix::process::chdir(directory)?;
    // Open to all, because to this machine root of a cell is somebody else; it is empty, and nobody
    // gets there but through a private directory.
    match rustix::fs::mkdir(STAGE, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::process::chdir(STAGE)?;

    let guest = crate::guest_binary::sealed()?;
    let home = rustix::fs::open("/proc/self/ns/net", OFlags::CLOEXEC, Mode::empty())?;
    let mut keeper = Keeper {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        listener,
        client: None,
        nursery: birth::Nursery { guest, home, null },
        table: Table::default(),
        waiting: VecDeque::new(),
    };
    keeper.watch_listener()?;
    keeper.serve()
}

/// Signals that would end it are for its client.
fn ignore_signals() {
    for signal in [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGPIPE,
        libc::SIGQUIT,
    ] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

struct Keeper {
    epoll: OwnedFd,
    listener: OwnedFd,
    client: Option<OwnedFd>,
    nursery: birth::Nursery,
    table: Table,
    /// Cells still to be made: they wait while there is anything more urgent.
    waiting: VecDeque<(u64, Prepare, Vec<OwnedFd>)>,
}

impl Keeper {
    fn watch_listener(&self) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            &self.listener,
            EventData::new_u64(Source::Listener.number()),
            EventFlags::IN,
        )?)
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut had_client = false;
        loop {
            had_client |= self.client.is_some();
            if had_client && self.client.is_none() && self.table.is_empty() {
                return Ok(());
            }
            let mut events = [epoll::Event {
                flags: EventFlags::empty(),
                data: EventData::new_u64(0),
            }; 64];
            // A client that never comes must not leave a keeper behind.
            let patience = rustix::event::Timespec {
                tv_sec: if self.waiting.is_empty() { 10 } else { 0 },
                tv_nsec: 0,
            };
            let ready = match epoll::wait(&self.epoll, &mut events[..], Some(&patience)) {
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if ready == 0 && !had_client && self.waiting.is_empty() {
                return Ok(());
            }
            for event in &events[..ready] {
                match Source::from_number(event.data.u64()) {
                    Source::Listener => self.accept(),
                    Source::Client => self.hear_client(),
                    Source::Control(key) => self.hear_guest(key),
                    Source::Process(key) => self.reap(key),
                }
            }
            // One at a time, so that a start never waits for more than one of them.
            if let Some((number, prepare, descriptors)) = self.waiting.pop_front() {
                self.prepare(number, &prepare, descriptors);
            }
        }
    }

    /// The newest client is the one: the data directory's lock lets no two live at once.
    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match accept_with(&self.listener, flags) {
            Ok(socket) => {
                self.lose_client();
                let data = EventData::new_u64(Source::Client.number());
                if packet::make_room(&socket).is_ok()
                    && epoll::add(&self.epoll, &socket, data, EventFlags::IN).is_ok()
                {
                    self.client = Some(socket);
                }
            }
            Err(error) => report(&error),
        }
    }

    /// Cells that nobody has claimed are of no use to the next client.
    fn lose_client(&mut self) {
        if self.client.take().is_some() {
            self.waiting.clear();
            self.table.kill_unclaimed();
        }
    }

    fn say(&mut self, statement: &Statement, descriptors: &[OwnedFd]) {
        let Some(client) = &self.client else { return };
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        // A client that does not listen is as good as gone; waiting for it would hold up all.
        if let Err(error) = packet::send(client, statement, &descriptors) {
            report(&error);
            self.lose_client();
        }
    }

    fn answer(&mut self, number: u64, answer: Answer) {
        self.say(&Statement::Answer { number, answer }, &[]);
    }

    fn hear_client(&mut self) {
        while let Some(client) = &self.client {
            match packet::receive::<Question>(client) {
                Ok(Received::Packet(Question { number, request }, descriptors)) => match request {
                    Request::Hello { version } => self.greet(number, version),
                    Request::Prepare(prepare) if self.waiting.len() < MOST_WAITING => {
                        self.waiting.push_back((number, prepare, descriptors));
                    }
                    Request::Prepare(_) => {
                        let failure =
                            Failure::system("queue for a cell", io::Error::from(Errno::AGAIN));
                        self.answer(number, Answer::Failed(failure));
                    }
                    Request::Start(start) => self.start(number, *start, descriptors),
                    Request::Release { pid } => self.release(number, pid),
                },
                Ok(Received::Nothing) => return,
                Ok(Received::End) => self.lose_client(),
                Err(error) => {
                    report(&error);
                    self.lose_client();
                }
            }
        }
    }

    fn greet(&mut self, number: u64, version: u32) {
        let answer = if version == VERSION {
            Answer::Hello {
                pids: self.table.running_pids(),
            }
        } else {
            Answer::Failed(Failure::Version { version: VERSION })
        };
        self.answer(number, answer);
    }

    fn prepare(&mut self, number: u64, prepare: &Prepare, descriptors: Vec<OwnedFd>) {
        let born = self.nursery.make(prepare, descriptors).and_then(|cell| {
            let cell = Cell {
                state: State::Preparing { question: number },
                ..cell
            };
            self.table
                .insert(&self.epoll, cell)
                .map_err(|error| Failure::system("watch a cell", error))
        });
        if let Err(failure) = born {
            self.answer(number, Answer::Failed(failure));
        }
    }

    fn start(&mut self, number: u64, start: Start, mut descriptors: Vec<OwnedFd>) {
        let result = match self.table.find(start.pid) {
            Some(cell) if cell.state == State::Waiting => {
                cell.start(number, &start, descriptors.pop())
            }
            Some(_) | None => Err(Failure::Guest {
                message: "the prepared cell is gone".into(),
            }),
        };
        if let Err(failure) = result {
            self.table.kill(start.pid);
            self.answer(number, Answer::Failed(failure));
        }
    }

    fn release(&mut self, number: u64, pid: u32) {
        match self.table.find(pid) {
            Some(cell) => {
                cell.state = State::Killed {
                    question: Some(number),
                };
                self.table.kill(pid);
            }
            None => self.answer(number, Answer::Released { status: None }),
        }
    }

    fn hear_guest(&mut self, key: u64) {
        let Some(cell) = self.table.get(key) else {
            return;
        };
        match packet::receive::<GuestEvent>(&cell.control) {
            Ok(Received::Nothing) => {}
            Ok(Received::Packet(event, _)) => self.guest_said(key, event),
            // Its end is seen through its pidfd.
            Ok(Received::End) | Err(_) => self.table.stop_listening(&self.epoll, key),
        }
    }

    fn guest_said(&mut self, key: u64, event: GuestEvent) {
        let Some(cell) = self.table.get(key) else {
            return;
        };
        match (event, cell.state) {
            (GuestEvent::Waiting, State::Preparing { question }) => {
                cell.state = State::Waiting;
                cell.phases.mark("guest waits");
                let answer = Answer::Prepared {
                    pid: cell.pid,
                    start_time: cell.start_time,
                    phases: cell.phases.take(),
                };
                match cell.process.try_clone() {
                    Ok(process) => {
                        self.say(
                            &Statement::Answer {
                                number: question,
                                answer,
                            },
                            &[process],
                        );
                    }
                    Err(error) => {
                        let failure = Failure::system("hand out a process", error);
                        self.answer(question, Answer::Failed(failure));
                    }
                }
            }
            (GuestEvent::Ready, State::Starting { question }) => {
                cell.state = State::Running;
                cell.phases.mark("guest serves");
                let phases = cell.phases.take();
                // From here on nothing that the guest says matters.
                self.table.stop_listening(&self.epoll, key);
                self.answer(question, Answer::Started { phases });
            }
            (
                GuestEvent::Failed { message },
                State::Preparing { question } | State::Starting { question },
            ) => {
                cell.state = State::Killed { question: None };
                let pid = cell.pid;
                self.table.kill(pid);
                self.answer(question, Answer::Failed(Failure::Guest { message }));
            }
            // The guest is hostile: what does not fit is not heard.
            _ => {}
        }
    }

    fn reap(&mut self, key: u64) {
        let Some((cell, status)) = self.table.reap(&self.epoll, key) else {
            return;
        };
        match cell.state {
            State::Preparing { question } | State::Starting { question } => {
                let message = format!("it ended ({status:?})");
                self.answer(question, Answer::Failed(Failure::Guest { message }));
            }
            State::Killed {
                question: Some(question),
            } => {
                self.answer(
                    question,
                    Answer::Released {
                        status: Some(status),
                    },
                );
            }
            State::Running => {
                self.say(
                    &Statement::Exited {
                        pid: cell.pid,
                        status,
                    },
                    &[],
                );
            }
            State::Waiting | State::Killed { question: None } => {}
        }
    }
}
