//! The process that brings one machine its pages.

use super::{
    layout::{Layout, Region},
    source::{Content, Source},
    userfault::{Event, Filled, Userfault},
};
use crate::{
    microvm::confined::{self, Failure, during},
    sparse::PAGE,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::IoSliceMut,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, accept_with, recvmsg},
    process::{Signal, pidfd_send_signal},
    thread::{LinkNameSpaceType, UnshareFlags},
};
use serde::{Deserialize, Serialize};
use std::{
    convert::Infallible,
    env, io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

/// Set, with any value, in the environment of a process that is to be a server.
pub(super) const VARIABLE: &str = "ATOLL_PAGES";

/// How long Firecracker may take to say where its memory is, once it has connected.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long to wait with a page that cannot be brought while memory is being given back.
const MOMENT: Duration = Duration::from_millis(1);

/// The longest that is taken of what Firecracker says.
const MOST_SAID: usize = 64 << 10;

/// Small pages are brought together with those that follow, up to the next multiple of this.
const AROUND: u64 = 8 * PAGE;

/// Faults that may wait for memory that is being given back: each is a processor of the machine, or
/// a thread of Firecracker.
const MOST_WAITING: usize = 1024;

/// What a server is told. With it travel the machine's network, the listening socket, a pidfd of
/// Firecracker, and the files of its memory, the uppermost first.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Task {
    /// The files through which the machine's control groups are joined.
    pub(super) groups: Vec<PathBuf>,
    /// What Firecracker sees as its root.
    pub(super) root: PathBuf,
    /// The machine's user and group.
    pub(super) user: u32,
}

/// Serves a machine's pages if this process was started for that; else returns at once. Call it
/// first thing in `main`, before any thread is started.
pub fn run_if_asked() {
    if env::var_os(VARIABLE).is_none() {
        return;
    }
    confined::run(lock_up)
}

fn lock_up(socket: &OwnedFd) -> Result<Infallible, Failure> {
    let (task, mut descriptors) = confined::be_told::<Task>(socket)?;
    let network = confined::next(&mut descriptors, "network")?;
    let listener = confined::next(&mut descriptors, "socket")?;
    let machine = confined::next(&mut descriptors, "machine")?;
    let source = Source::new(descriptors).map_err(during("map a memory"))?;
    confined::leave_parent(&task.groups)?;
    rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(during("enter the network"))?;
    drop(network);
    // SAFETY: this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWIPC | UnshareFlags::NEWUTS) }
        .map_err(during("make namespaces"))?;
    rustix::process::chroot(&task.root).map_err(during("enter the machine's root"))?;
    rustix::process::chdir("/").map_err(during("enter the machine's root"))?;
    confined::give_up_rights(task.user).map_err(during("give up rights"))?;
    confined::report(socket, Vec::new(), &[])?;
    let served = serve(listener, machine.as_fd(), &source);
    if let Err(error) = &served {
        eprintln!("a machine's pages cannot be brought: {error}");
        // Its processors would wait for ever.
        let _ = pidfd_send_signal(&machine, Signal::KILL);
    }
    std::process::exit(i32::from(served.is_err()))
}

/// Returns when the machine has ended.
fn serve(listener: OwnedFd, machine: BorrowedFd<'_>, source: &Source) -> io::Result<()> {
    if !wait(listener.as_fd(), machine, None)?.is_ready {
        return Ok(());
    }
    let connection = accept_with(&listener, rustix::net::SocketFlags::CLOEXEC)?;
    drop(listener);
    let Some((said, descriptor)) = hear(&connection, machine)? else {
        return Ok(());
    };
    let layout = Layout::parse(&said, source.length())?;
    let userfault = Userfault::new(descriptor)?;
    // Nobody waits yet; but whatever is no userfaultfd refuses, and would never say anything.
    for region in layout.regions() {
        userfault.wake(region.start, region.page)?;
    }
    let mut server = Server {
        userfault,
        layout,
        source,
        present: Pages::new(source.length()),
        removed: Pages::new(source.length()),
        waiting: Vec::new(),
        huge: Vec::new(),
    };
    loop {
        let patience = (!server.waiting.is_empty()).then_some(MOMENT);
        let woken = wait(server.userfault.as_fd(), machine, patience)?;
        if woken.is_over {
            return Ok(());
        }
        server.step()?;
    }
}

/// What there is after waiting.
struct Woken {
    is_ready: bool,
    /// The machine has ended.
    is_over: bool,
}

fn wait(
    descriptor: BorrowedFd<'_>,
    machine: BorrowedFd<'_>,
    patience: Option<Duration>,
) -> io::Result<Woken> {
    let mut ready = [
        PollFd::from_borrowed_fd(descriptor, PollFlags::IN),
        PollFd::from_borrowed_fd(machine, PollFlags::IN),
    ];
    let patience = patience.map(|patience| Timespec {
        tv_sec: patience.as_secs().cast_signed(),
        tv_nsec: patience.subsec_nanos().into(),
    });
    loop {
        match poll(&mut ready, patience.as_ref()) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let is_over = !ready[1].revents().is_empty();
    let events = ready[0].revents();
    if !is_over && events.intersects(PollFlags::ERR | PollFlags::NVAL) {
        return Err(io::Error::other("what Firecracker sent is no userfaultfd"));
    }
    Ok(Woken {
        is_ready: !is_over && !events.is_empty(),
        is_over,
    })
}

/// What Firecracker says: where its memory is, and the descriptor through which it is filled.
/// None if it has ended.
fn hear(connection: &OwnedFd, machine: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, OwnedFd)>> {
    let odd = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let begin = Instant::now();
    let (mut said, mut descriptor) = (Vec::new(), None);
    loop {
        let left = PATIENCE.saturating_sub(begin.elapsed());
        let woken = wait(connection.as_fd(), machine, Some(left))?;
        if woken.is_over {
            return Ok(None);
        }
        if !woken.is_ready {
            return Err(odd("Firecracker does not say where its memory is"));
        }
        let mut buffer = [0u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            connection,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                descriptor = descriptors.into_iter().next().or(descriptor);
            }
        }
        said.extend_from_slice(&buffer[..received.bytes]);
        let is_whole = serde_json::from_slice::<serde::de::IgnoredAny>(&said).is_ok();
        match descriptor.take() {
            Some(descriptor) if is_whole => return Ok(Some((said, descriptor))),
            none_or_early => descriptor = none_or_early,
        }
        if received.bytes == 0 || said.len() > MOST_SAID {
            return Err(odd("Firecracker does not say where its memory is"));
        }
    }
}

/// A set of pages of a memory file.
struct Pages(Vec<u64>);

impl Pages {
    fn new(length: u64) -> Self {
        Self(vec![0; (length / PAGE).div_ceil(64) as usize])
    }

    fn place(offset: u64) -> (usize, u64) {
        let page = offset / PAGE;
        ((page / 64) as usize, 1 << (page % 64))
    }

    fn has(&self, offset: u64) -> bool {
        let (word, bit) = Self::place(offset);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    fn set(&mut self, (from, to): (u64, u64), value: bool) {
        for offset in (from..to).step_by(PAGE as usize) {
            let (word, bit) = Self::place(offset);
            if let Some(word) = self.0.get_mut(word) {
                *word = if value { *word | bit } else { *word & !bit };
            }
        }
    }
}

/// One machine's memory, while it is filled.
struct Server<'a> {
    userfault: Userfault,
    layout: Layout,
    source: &'a Source,
    /// Pages that were brought.
    present: Pages,
    /// Pages that the machine gave back: they hold zeros, whatever was saved.
    removed: Pages,
    /// Addresses of pages that are waited for and could not be brought yet.
    waiting: Vec<u64>,
    /// Where a huge page is put together; empty until there is one.
    huge: Vec<u8>,
}

impl Server<'_> {
    /// Takes what has happened, then brings what is waited for.
    fn step(&mut self) -> io::Result<()> {
        for event in self.userfault.read()? {
            match event {
                Event::Fault(address) => self.waiting.push(address),
                Event::Remove(start, end) => {
                    for part in self.layout.offsets(start, end) {
                        self.removed.set(part, true);
                        self.present.set(part, false);
                    }
                }
            }
        }
        if self.waiting.len() > MOST_WAITING {
            return Err(io::Error::other("too many faults"));
        }
        for address in std::mem::take(&mut self.waiting) {
            let region = *self.layout.region_of(address).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "a fault outside of all memory")
            })?;
            let start = address / region.page * region.page;
            let filled = match region.page {
                PAGE => self.bring_small(&region, start)?,
                _ => self.bring_huge(&region, start)?,
            };
            if filled == Filled::Later {
                self.waiting.push(address);
            }
        }
        Ok(())
    }

    fn bring_small(&mut self, region: &Region, start: u64) -> io::Result<Filled> {
        let offset = start - region.start + region.offset;
        let end = (start + 1).next_multiple_of(AROUND);
        let end = end.min(region.start + region.length) - region.start + region.offset;
        let removed = self.removed.has(offset);
        let mut last = offset + PAGE;
        while last < end && !self.present.has(last) && self.removed.has(last) == removed {
            last += PAGE;
        }
        let content = match removed {
            true => Content::Zeros(last - offset),
            false => self.source.content(offset, last),
        };
        let filled = match content {
            Content::Bytes(bytes) => self.userfault.copy(start, bytes)?,
            Content::Zeros(length) => self.userfault.zero(start, length)?,
        };
        match filled {
            Filled::Bytes(length) => self.present.set((offset, offset + length), true),
            Filled::Present => self.userfault.wake(start, PAGE)?,
            Filled::Later | Filled::Gone => {}
        }
        Ok(filled)
    }

    fn bring_huge(&mut self, region: &Region, start: u64) -> io::Result<Filled> {
        let offset = start - region.start + region.offset;
        self.huge.resize(region.page as usize, 0);
        match self.removed.has(offset) {
            true => self.huge.fill(0),
            false => self.source.read(offset, &mut self.huge),
        }
        let mut done = 0;
        loop {
            let part = self.huge.get(done as usize..).unwrap_or_default();
            match self.userfault.copy(start + done, part)? {
                Filled::Bytes(length) if done + length < region.page => done += length,
                Filled::Present => {
                    self.userfault.wake(start, region.page)?;
                    return Ok(Filled::Present);
                }
                other => return Ok(other),
            }
        }
    }
}
