//! Hands a machine its memory, without a name and with no more rights than it needs.
//!
//! QEMU opens its memory by name, for reading and writing, even where it only ever writes to a
//! private copy (before version 9 there is no way to tell it otherwise). Many machines stand on one
//! memory file, and none must be able to change it. So the jail has no such file: a filter makes
//! every opening for reading and writing a question to this program, which answers with a
//! descriptor of its own making: the machine's memory, open for reading only where it is shared,
//! and `/dev/kvm` where that is used. When QEMU has started, nobody answers any more, and such
//! openings fail.
//!
//! How: seccomp's user notification, `seccomp_unotify(2)`; the descriptor is added and returned in
//! one step (Linux 5.14).

use rustix::fs::OFlags;
use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};
use tokio::io::{Interest, unix::AsyncFd};

// linux/seccomp.h
const NOTIFICATION_RECEIVE: libc::Ioctl = 0xC050_2100_u32 as libc::Ioctl;
const NOTIFICATION_SEND: libc::Ioctl = 0xC018_2101_u32 as libc::Ioctl;
const NOTIFICATION_ADD: libc::Ioctl = 0x4018_2103;
const ADD_AND_ANSWER: u32 = 1 << 1;
const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;

/// The longest name that is looked at.
const LONGEST_NAME: usize = 64;

#[repr(C)]
#[derive(Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    call: i32,
    architecture: u32,
    instruction: u64,
    arguments: [u64; 6],
}

#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

#[repr(C)]
struct Addition {
    id: u64,
    flags: u32,
    source: u32,
    target: u32,
    target_flags: u32,
}

/// Installs the filter in this thread, and returns what its questions arrive at. Needs
/// `no_new_privs`.
pub(super) fn install() -> io::Result<OwnedFd> {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let jump = |k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let give = libc::BPF_RET | libc::BPF_K;
    // Offsets in `struct seccomp_data`: number 0, architecture 4, arguments from 16, low half first.
    let mut program = [
        statement(load, 4),
        jump(AUDIT_ARCH_X86_64, 1, 0),
        statement(give, libc::SECCOMP_RET_KILL_PROCESS),
        statement(load, 0),
        jump(libc::SYS_openat as u32, 3, 0),
        jump(libc::SYS_open as u32, 5, 0),
        jump(libc::SYS_openat2 as u32, 8, 0),
        statement(give, libc::SECCOMP_RET_ALLOW),
        // openat: flags are the third argument.
        statement(load, 32),
        statement(
            libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
            libc::O_ACCMODE as u32,
        ),
        jump(libc::O_RDWR as u32, 3, 5),
        // open: the second.
        statement(load, 24),
        statement(
            libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
            libc::O_ACCMODE as u32,
        ),
        jump(libc::O_RDWR as u32, 0, 2),
        statement(give, libc::SECCOMP_RET_USER_NOTIF),
        // openat2 has its flags in memory, where a filter cannot look.
        statement(give, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        statement(give, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the program outlives the call; the result is a new descriptor or an error.
    unsafe {
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        );
        if listener < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(listener as i32))
    }
}

/// What the machine may open, by the name that it asks for.
pub(super) type Openable = Vec<(&'static str, OwnedFd)>;

/// Answers questions until it is dropped, or until nobody can ask any more.
pub(super) async fn answer(listener: &AsyncFd<OwnedFd>, openable: &Openable) -> io::Result<()> {
    loop {
        let asked = listener
            .async_io(Interest::READABLE, |listener| {
                answer_one(listener, openable)
            })
            .await;
        match asked {
            Ok(()) => {}
            // The one who asked is gone, or nobody is left.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
}

fn answer_one(listener: &OwnedFd, openable: &Openable) -> io::Result<()> {
    // The kernel waits for a question if there is none, whatever the descriptor's flags say.
    let mut ready = [rustix::event::PollFd::new(
        listener,
        rustix::event::PollFlags::IN,
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if rustix::event::poll(&mut ready, Some(&now))? == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    if !ready[0].revents().contains(rustix::event::PollFlags::IN) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut question = Notification::default();
    control(listener, NOTIFICATION_RECEIVE, &raw mut question)?;
    let name_at = match i64::from(question.call) {
        libc::SYS_openat => question.arguments[1],
        _ => question.arguments[0],
    };
    let name = read_name(question.pid, name_at);
    let found = openable
        .iter()
        .find(|(openable, _)| name.as_deref().ok() == Some(openable.as_bytes()));
    match found {
        Some((_, descriptor)) => {
            let mut addition = Addition {
                id: question.id,
                flags: ADD_AND_ANSWER,
                source: descriptor.as_raw_fd() as u32,
                target: 0,
                target_flags: OFlags::CLOEXEC.bits(),
            };
            control(listener, NOTIFICATION_ADD, &raw mut addition)
        }
        None => {
            let mut answer = Answer {
                id: question.id,
                value: 0,
                error: -libc::EACCES,
                flags: 0,
            };
            control(listener, NOTIFICATION_SEND, &raw mut answer)
        }
    }
}

/// A text in the memory of another process.
fn read_name(pid: u32, address: u64) -> io::Result<Vec<u8>> {
    let mut text = [0u8; LONGEST_NAME];
    let local = libc::iovec {
        iov_base: text.as_mut_ptr().cast(),
        iov_len: text.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: text.len(),
    };
    // SAFETY: the local buffer is writable for its whole length; the remote one is the kernel's to
    // check.
    let read =
        unsafe { libc::process_vm_readv(pid as i32, &raw const local, 1, &raw const remote, 1, 0) };
    if read < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = CStr::from_bytes_until_nul(&text).map_err(io::Error::other)?;
    Ok(name.to_bytes().to_vec())
}

fn control<T>(listener: &OwnedFd, request: libc::Ioctl, argument: *mut T) -> io::Result<()> {
    // SAFETY: each request gets a pointer to the structure that it is declared with.
    if unsafe { libc::ioctl(listener.as_raw_fd(), request, argument) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
