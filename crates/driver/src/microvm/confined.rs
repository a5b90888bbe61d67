//! Inside a process that locks itself up: how it is told what to be, gives up its rights, and
//! reports.

use crate::container::packet::{self, Received};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

/// Out of the way of numbers that mean something.
const SOCKET: i32 = 64;

/// What such a process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// It is locked up.
    Locked {
        /// How long each step took, in nanoseconds.
        phases: Vec<(String, u64)>,
    },
    /// It could not.
    Failed {
        /// What was being done.
        doing: String,
        /// The kernel's error, 0 if there is none.
        error: i32,
    },
}

/// What was being done, and why it failed.
pub(crate) type Failure = (String, io::Error);

/// Adds what was being done to an error.
pub(crate) fn during<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Failure {
    move |error| (doing.into(), error.into())
}

/// Does the work of a process that was started as a [`Child`](super::child::Child), which is told
/// what to be and reports over the socket that it gets; it must not come back. Ends the process.
pub(crate) fn run(work: impl FnOnce(&OwnedFd) -> Result<std::convert::Infallible, Failure>) -> ! {
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), SOCKET) else {
        std::process::exit(1);
    };
    let failure = match work(&socket) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let report = Report::Failed {
        doing: failure.0,
        error: failure.1.raw_os_error().unwrap_or(0),
    };
    let _ = packet::send(&socket, &report, &[]);
    std::process::exit(1)
}

/// What it is to be, with the descriptors that came along.
pub(crate) fn be_told<T: DeserializeOwned>(
    socket: &OwnedFd,
) -> Result<(T, std::vec::IntoIter<OwnedFd>), Failure> {
    let what = "be told of the jail";
    match packet::receive(socket) {
        Ok(Received::Packet(told, descriptors)) => Ok((told, descriptors.into_iter())),
        Ok(_) => Err((what.into(), io::ErrorKind::UnexpectedEof.into())),
        Err(error) => Err((what.into(), error)),
    }
}

/// The next of the descriptors.
pub(crate) fn next(
    descriptors: &mut impl Iterator<Item = OwnedFd>,
    what: &str,
) -> Result<OwnedFd, Failure> {
    let missing = || (format!("find the {what}"), io::ErrorKind::NotFound.into());
    descriptors.next().ok_or_else(missing)
}

/// Says that it is locked up.
pub(crate) fn report(
    socket: &OwnedFd,
    phases: Vec<(String, u64)>,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Failure> {
    packet::send(socket, &Report::Locked { phases }, descriptors).map_err(during("report"))
}

/// Leaves the session, standard input and standard output of this program's parent, and joins
/// control groups, by the files through which they are joined.
pub(crate) fn leave_parent(groups: &[PathBuf]) -> Result<(), Failure> {
    // Ctrl-C in its terminal is not for sandboxes.
    let _ = rustix::process::setsid();
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(during("open /dev/null"))?;
    rustix::stdio::dup2_stdin(null.as_fd()).map_err(during("close standard input"))?;
    rustix::stdio::dup2_stdout(null.as_fd()).map_err(during("close standard output"))?;
    for group in groups {
        fs::write(group, "0").map_err(during(format!("join {}", group.display())))?;
    }
    Ok(())
}

/// No capability, no way to any, a user who owns nothing, and few open files.
pub(crate) fn give_up_rights(user: u32) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = |most| Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Core, limit(0))?;
    setrlimit(Resource::Nofile, limit(256))?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    // SAFETY: plain system calls on this process alone; what a kernel does not know of capabilities
    // it answers with an error, which ends the loop.
    unsafe {
        let mut capability = 0;
        while libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) == 0 {
            capability += 1;
        }
        let steps: [libc::c_int; 3] = [
            libc::setgroups(0, std::ptr::null()),
            libc::setresgid(user, user, user),
            libc::setresuid(user, user, user),
        ];
        if steps.iter().any(|step| *step != 0)
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
