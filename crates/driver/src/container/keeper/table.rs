//! The cells that a keeper has, and how it watches them.

use super::{
    super::{
        packet,
        protocol::{Failure, Start, Status},
    },
    root,
};
use crate::phases::Stopwatch;
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
};
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

/// What an event of the kernel is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Listener,
    Client,
    Control(u64),
    Process(u64),
}

impl Source {
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Listener => 0,
            Self::Client => 1,
            Self::Control(key) => key << 1,
            Self::Process(key) => key << 1 | 1,
        }
    }

    pub(super) fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Listener,
            1 => Self::Client,
            _ if number & 1 == 0 => Self::Control(number >> 1),
            _ => Self::Process(number >> 1),
        }
    }
}

/// Where a cell is in its life; drawn in [`super`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Preparing { question: u64 },
    Waiting,
    Starting { question: u64 },
    Running,
    Killed { question: Option<u64> },
}

/// One cell.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) pid: u32,
    pub(super) start_time: u64,
    /// The host's number for its root.
    pub(super) first_id: u32,
    pub(super) process: OwnedFd,
    pub(super) control: OwnedFd,
    /// Its user namespace, for mapping layers.
    pub(super) users: OwnedFd,
    /// The mount of its writable layer, mapped, until it is part of the root file system.
    pub(super) layer: Option<OwnedFd>,
    pub(super) state: State,
    pub(super) phases: Stopwatch,
}

impl Cell {
    /// Lays the root file system and hands it to the guest.
    pub(super) fn start(
        &mut self,
        question: u64,
        start: &Start,
        other_layer: Option<OwnedFd>,
    ) -> Result<(), Failure> {
        self.phases.restart();
        let layer = match other_layer {
            Some(layer) => {
                root::map_ids(&layer, &self.users, false)?;
                self.layer = None;
                layer
            }
            None => self.layer.take().ok_or_else(|| Failure::Guest {
                message: "the cell has no layer".into(),
            })?,
        };
        let root = root::lay(&start.layers, &layer, &self.users, self.first_id)?;
        self.phases.mark("root file system");
        packet::send(&self.control, &start.claim, &[root.as_fd()])
            .map_err(|error| Failure::system("tell the guest who it is", error))?;
        self.state = State::Starting { question };
        Ok(())
    }
}

/// All cells, by a number that is never used twice.
#[derive(Debug, Default)]
pub(super) struct Table {
    cells: HashMap<u64, Cell>,
    keys: HashMap<u32, u64>,
    last: u64,
}

impl Table {
    pub(super) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    pub(super) fn insert(&mut self, epoll: &OwnedFd, cell: Cell) -> io::Result<()> {
        self.last += 1;
        let key = self.last;
        let data = |source: Source| EventData::new_u64(source.number());
        let watched = epoll::add(
            epoll,
            &cell.process,
            data(Source::Process(key)),
            EventFlags::IN,
        )
        .and_then(|()| {
            epoll::add(
                epoll,
                &cell.control,
                data(Source::Control(key)),
                EventFlags::IN,
            )
        });
        if let Err(error) = watched {
            let _ = pidfd_send_signal(&cell.process, Signal::KILL);
            let _ = waitid(WaitId::PidFd(cell.process.as_fd()), WaitIdOptions::EXITED);
            return Err(error.into());
        }
        self.keys.insert(cell.pid, key);
        self.cells.insert(key, cell);
        Ok(())
    }

    pub(super) fn get(&mut self, key: u64) -> Option<&mut Cell> {
        self.cells.get_mut(&key)
    }

    pub(super) fn find(&mut self, pid: u32) -> Option<&mut Cell> {
        self.cells.get_mut(self.keys.get(&pid)?)
    }

    pub(super) fn running_pids(&self) -> Vec<u32> {
        self.cells
            .values()
            .filter(|cell| cell.state == State::Running)
            .map(|cell| cell.pid)
            .collect()
    }

    /// Its end is seen, and answered, when the kernel reports it.
    pub(super) fn kill(&mut self, pid: u32) {
        if let Some(cell) = self.find(pid) {
            if !matches!(cell.state, State::Killed { .. }) {
                cell.state = State::Killed { question: None };
            }
            let _ = pidfd_send_signal(&cell.process, Signal::KILL);
        }
    }

    pub(super) fn kill_unclaimed(&mut self) {
        for cell in self.cells.values_mut() {
            match cell.state {
                State::Running => {}
                // Whoever asked is gone.
                _ => {
                    cell.state = State::Killed { question: None };
                    let _ = pidfd_send_signal(&cell.process, Signal::KILL);
                }
            }
        }
    }

    pub(super) fn stop_listening(&mut self, epoll: &OwnedFd, key: u64) {
        if let Some(cell) = self.cells.get(&key) {
            let _ = epoll::delete(epoll, &cell.control);
        }
    }

    /// Takes a cell whose first process has ended out of the table. The kernel ends the first
    /// process of a namespace after all others, so none is left.
    pub(super) fn reap(&mut self, epoll: &OwnedFd, key: u64) -> Option<(Cell, Status)> {
        let cell = self.cells.get(&key)?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match waitid(WaitId::PidFd(cell.process.as_fd()), options) {
            Ok(None) => return None,
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Status::Code(code),
                (None, signal) => Status::Signal(signal.unwrap_or(libc::SIGKILL)),
            },
            Err(_) => Status::Signal(libc::SIGKILL),
        };
        let cell = self.cells.remove(&key)?;
        self.keys.remove(&cell.pid);
        let _ = epoll::delete(epoll, &cell.process);
        Some((cell, status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_the_kernel() {
        for source in [
            Source::Listener,
            Source::Client,
            Source::Control(1),
            Source::Process(77),
        ] {
            assert_eq!(Source::from_number(source.number()), source);
        }
    }
}
