//! A border around the sandbox's processes that does not depend on namespaces.
//!
//! Landlock lets a process put itself and all that it starts into a *domain*. With nothing but a
//! scope, a domain restricts no file and costs nothing where it is not crossed; it forbids to send
//! signals to processes outside, to connect to abstract unix sockets that were made outside (those
//! belong to a network namespace, and the node prepares that one from the host), and to trace or
//! read the memory of processes outside. Namespaces forbid most of this already: this is the second
//! line, in other code of the kernel, for the day when one of them has a hole.
//!
//! Scopes came with Linux 6.12 (ABI 6). An older kernel, or one without Landlock, goes without.

use super::{CellError, Doing};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
const SCOPE_SIGNAL: u64 = 2;

/// `struct landlock_ruleset_attr` of ABI 6.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// Puts this thread and all that it starts into a domain of their own. Needs CAP_SYS_ADMIN in its
/// user namespace, or `no_new_privs`. False if the kernel cannot.
pub(super) fn enclose() -> Result<bool, CellError> {
    let ruleset = Ruleset {
        handled_access_fs: 0,
        handled_access_net: 0,
        scoped: SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL,
    };
    // SAFETY: the kernel reads a structure of the size that is passed, which lives through the call.
    let created = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const ruleset,
            size_of::<Ruleset>(),
            0,
        )
    };
    if created < 0 {
        return match last_error() {
            // No Landlock, switched off, or an ABI without scopes.
            Errno::NOSYS | Errno::OPNOTSUPP | Errno::TOOBIG | Errno::INVAL => Ok(false),
            error => Err(error).doing("make a Landlock ruleset"),
        };
    }
    let descriptor = i32::try_from(created).map_err(|_| Errno::BADF);
    let descriptor = descriptor.doing("make a Landlock ruleset")?;
    // SAFETY: the kernel has just made it for us.
    let ruleset = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: takes two numbers, and affects this thread alone.
    let enclosed =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    match enclosed {
        0 => Ok(true),
        _ => Err(last_error()).doing("enter a Landlock domain"),
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io,
        os::{
            linux::net::SocketAddrExt,
            unix::net::{SocketAddr, UnixListener, UnixStream},
        },
        process::Command,
        time::Instant,
    };

    /// As root, which the tests run as.
    #[test]
    fn what_is_outside_gets_no_signal_and_no_connection() {
        let mut outside = Command::new("sleep").arg("1000").spawn().unwrap();
        let name = format!("atoll-landlock-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let _listener = UnixListener::bind_addr(&address).unwrap();
        let pid = outside.id();
        let (enclosed, signal, connection, own) = std::thread::spawn(move || {
            let begin = Instant::now();
            let enclosed = enclose().unwrap();
            println!("entering a domain took {:?}", begin.elapsed());
            let signal = Command::new("kill").args(["-0", &pid.to_string()]).status();
            let connection = UnixStream::connect_addr(&address).map(drop);
            // What is inside is reached as ever.
            let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
            let own = child.kill();
            child.wait().unwrap();
            (enclosed, signal.unwrap().success(), connection, own)
        })
        .join()
        .unwrap();
        outside.kill().unwrap();
        outside.wait().unwrap();
        own.unwrap();
        assert_eq!(signal, !enclosed);
        match connection {
            Ok(()) => assert!(!enclosed),
            Err(error) => {
                assert!(enclosed);
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            }
        }
    }
}
