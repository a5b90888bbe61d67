//! How a cell is made: one `clone3`, then the guest.

use super::{
    super::{
        packet,
        protocol::{Failure, Prepare},
    },
    root,
    table::{Cell, State},
};
use crate::phases::Stopwatch;
use rustix::{
    fs::{Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
    thread::{Gid, LinkNameSpaceType, Uid, UnshareFlags, move_into_link_name_space},
};
use std::{
    ffi::CStr,
    fs, io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

/// Users and groups that a cell has.
pub(crate) const IDS: u32 = 65_536;

/// The descriptor of the control socket inside; the command line names it.
const CONTROL: RawFd = 3;

/// Namespaces of a cell's own. Its control group namespace it makes itself, once it is in its
/// groups; its network namespace comes from its slot.
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// `CLONE_INTO_CGROUP`, which does not fit the type that `libc` gives it.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// What making cells takes.
pub(super) struct Nursery {
    /// The guest's program, sealed.
    pub(super) guest: OwnedFd,
    /// The keeper's own network namespace.
    pub(super) home: OwnedFd,
    /// `/dev/null`.
    pub(super) null: OwnedFd,
}

impl Nursery {
    /// Makes a cell whose guest prepares itself. On failure nothing is left.
    pub(super) fn make(
        &self,
        prepare: &Prepare,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Cell, Failure> {
        let mut phases = Stopwatch::start();
        let mut descriptors = descriptors.into_iter();
        let (Some(network), Some(layer)) = (descriptors.next(), descriptors.next()) else {
            return Err(Failure::system(
                "prepare without a network",
                io::Error::from_raw_os_error(libc::EBADF),
            ));
        };
        let group = if prepare.unified {
            descriptors.next()
        } else {
            None
        };
        let groups: Vec<OwnedFd> = descriptors.collect();
        let (ours, theirs) =
            packet::pair().map_err(|error| Failure::system("make a control socket", error))?;

        self.enter(&network)?;
        let made = mount_sysfs().and_then(|sysfs| {
            let child = self.clone(&theirs, group.as_ref(), &groups)?;
            Ok((child, sysfs))
        });
        self.enter(&self.home)?;
        let (child, sysfs) = made?;
        drop((theirs, network, group, groups));
        phases.mark("clone");

        let raised = child
            .raise(prepare, &layer, &mut phases)
            .and_then(|(users, start_time)| {
                // Its namespaces are complete: it may run the guest, which then reads this.
                let mut descriptors = Vec::new();
                descriptors.extend(sysfs.as_ref().map(AsFd::as_fd));
                packet::send(&ours, &GO, &[])
                    .and_then(|()| packet::send(&ours, &prepare.setup, &descriptors))
                    .map_err(|error| Failure::system("speak to a cell", error))?;
                Ok((users, start_time))
            });
        match raised {
            Ok((users, start_time)) => Ok(Cell {
                pid: child.pid,
                start_time,
                first_id: prepare.first_id,
                process: child.process,
                control: ours,
                users,
                layer: Some(layer),
                state: State::Waiting,
                phases,
            }),
            Err(failure) => {
                let _ = pidfd_send_signal(&child.process, Signal::KILL);
                let _ = waitid(WaitId::PidFd(child.process.as_fd()), WaitIdOptions::EXITED);
                Err(failure)
            }
        }
    }

    fn enter(&self, network: &OwnedFd) -> Result<(), Failure> {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| Failure::system("enter a network namespace", error))
    }

    /// `group` is the directory of a control group of version 2 to be made in, `groups` are the
    /// files `cgroup.procs` of those of version 1 to be joined.
    fn clone(
        &self,
        control: &OwnedFd,
        group: Option<&OwnedFd>,
        groups: &[OwnedFd],
    ) -> Result<Child, Failure> {
        let mut process: RawFd = -1;
        let mut flags = NAMESPACES as u64 | libc::CLONE_PIDFD as u64;
        if group.is_some() {
            flags |= INTO_CGROUP;
        }
        // SAFETY: all fields of the structure are numbers, for which zero means absent.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = flags;
        arguments.pidfd = (&raw mut process) as u64;
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.cgroup = group.map_or(0, |group| group.as_raw_fd() as u64);
        // SAFETY: without a stack this is a `fork`; the process has one thread, so that the child
        // finds every lock free.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw const arguments,
                size_of_val(&arguments),
            )
        };
        match pid {
            0 => self.be_born(control, groups),
            1.. => Ok(Child {
                pid: pid as u32,
                // SAFETY: the kernel has just made it for us.
                process: unsafe { OwnedFd::from_raw_fd(process) },
            }),
            _ => Err(Failure::system(
                "clone a process",
                io::Error::last_os_error(),
            )),
        }
    }

    /// The child: waits until its namespaces are complete, then becomes the guest.
    fn be_born(&self, control: &OwnedFd, groups: &[OwnedFd]) -> ! {
        if let Err(error) = self.become_guest(control, groups) {
            super::report(&format_args!("a cell: {error}"));
        }
        // SAFETY: ends this process at once, without running anything that its parent set up.
        unsafe { libc::_exit(127) }
    }

    fn become_guest(&self, control: &OwnedFd, groups: &[OwnedFd]) -> io::Result<()> {
        // Each waits for all processors to have passed a quiet state, up to tens of milliseconds:
        // so it is not the keeper that does this.
        for group in groups {
            rustix::io::write(group, b"0")?;
        }
        rustix::io::ioctl_fionbio(control, false)?;
        if !matches!(packet::receive::<String>(control)?, packet::Received::Packet(word, _) if word == GO)
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
        // SAFETY: a control group namespace has no effect on memory or descriptors.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }?;
        let _ = rustix::process::setsid();
        let _ = fs::write("/proc/self/oom_score_adj", "0");
        for signal in 1..=libc::SIGRTMAX() {
            // SAFETY: the default action installs no handler; for two signals it is refused.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        rustix::stdio::dup2_stdin(&self.null)?;
        rustix::stdio::dup2_stdout(&self.null)?;
        rustix::stdio::dup2_stderr(&self.null)?;
        // SAFETY: this process is about to become another program; nothing here uses descriptors
        // after this but the two that are kept: 3 and the guest's program.
        unsafe {
            // Away from the numbers that are about to be overwritten.
            let guest = libc::fcntl(self.guest.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10);
            let socket = libc::fcntl(control.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10);
            if guest < 0 || socket < 0 || libc::dup2(socket, CONTROL) < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::close_range(CONTROL as u32 + 1, guest as u32 - 1, 0);
            libc::close_range(guest as u32 + 1, u32::MAX, 0);
            let words: [&CStr; 4] = [c"atoll-guest", c"wait", c"--control-fd", c"3"];
            let arguments = [
                words[0].as_ptr(),
                words[1].as_ptr(),
                words[2].as_ptr(),
                words[3].as_ptr(),
                std::ptr::null(),
            ];
            let environment: [*const libc::c_char; 1] = [std::ptr::null()];
            libc::syscall(
                libc::SYS_execveat,
                guest,
                c"".as_ptr(),
                arguments.as_ptr(),
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        Err(io::Error::last_os_error())
    }
}

/// What the parent says once the child's namespaces are complete.
const GO: &str = "go";

struct Child {
    pid: u32,
    process: OwnedFd,
}

impl Child {
    /// Gives it its users and its layer. Returns its user namespace and its
    /// start time.
    fn raise(
        &self,
        prepare: &Prepare,
        layer: &OwnedFd,
        phases: &mut Stopwatch,
    ) -> Result<(OwnedFd, u64), Failure> {
        let process = format!("/proc/{}", self.pid);
        let map = format!("0 {} {IDS}\n", prepare.first_id);
        for name in ["uid_map", "gid_map"] {
            fs::write(format!("{process}/{name}"), &map)
                .map_err(|error| Failure::system("map users", error))?;
        }
        let users = rustix::fs::open(
            format!("{process}/ns/user"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| Failure::system("open a user namespace", error))?;
        let start_time = super::super::process::start_time(self.pid)
            .map_err(|error| Failure::system("read a process's start time", error))?;
        root::map_ids(layer, &users, false)?;
        phases.mark("map users");
        Ok((users, start_time))
    }
}

/// `/sys` for the network namespace that this process is in. None where the kernel has none.
fn mount_sysfs() -> Result<Option<OwnedFd>, Failure> {
    let mount = || -> rustix::io::Result<OwnedFd> {
        let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        )
    };
    match mount() {
        Ok(mount) => Ok(Some(mount)),
        Err(rustix::io::Errno::NODEV | rustix::io::Errno::PERM) => Ok(None),
        Err(error) => Err(Failure::system("mount /sys", error)),
    }
}
