//! Network namespaces: making one, working inside one, and the settings that each has.

use super::error::NetworkError;
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{Mode, OFlags},
    thread::{LinkNameSpaceType, UnshareFlags},
};
use std::fs;

/// Moves the calling thread into a new network namespace that nothing else knows of, and returns a
/// handle of it. There is no way back: end the thread afterwards.
///
/// The namespace belongs to the user namespace of this program, so that root inside a sandbox, who
/// is root of another one, may change nothing in it.
#[allow(unsafe_code)]
pub(super) fn enter_new() -> Result<OwnedFd, NetworkError> {
    // SAFETY: the call is unsafe because of `UnshareFlags::FILES`, which is not used.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
        .map_err(|source| NetworkError::system("making a network namespace", source))?;
    open("/proc/thread-self/ns/net")
}

/// A handle of the network namespace that a process is in.
pub(super) fn of_process(pid: u32) -> Result<OwnedFd, NetworkError> {
    open(&format!("/proc/{pid}/ns/net"))
}

fn open(path: &str) -> Result<OwnedFd, NetworkError> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| NetworkError::system(format!("opening {path}"), source))
}

/// Moves the calling thread into a namespace. End the thread afterwards.
pub(super) fn enter(namespace: BorrowedFd<'_>) -> Result<(), NetworkError> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .map_err(|source| NetworkError::system("entering a network namespace", source))
}

/// Runs `work` on a thread of its own inside `namespace`, and waits for it.
pub(super) fn inside<T: Send>(
    namespace: impl AsFd + Sync,
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("namespace".to_owned())
            .spawn_scoped(scope, || enter(namespace.as_fd()).and_then(|()| work()))
            .map_err(|source| NetworkError::system("starting a thread", source))?;
        thread.join().unwrap_or(Err(NetworkError::Answer(
            "working inside a network namespace",
        )))
    })
}

/// Sets what holds for a whole sandbox: any user in it may open any port and send pings; only `lo`
/// has an IPv6 address. To be called inside the namespace before it has an interface but `lo`.
pub(super) fn set_up() -> Result<(), NetworkError> {
    set("net/ipv4/ip_unprivileged_port_start", "0")?;
    // Groups are compared as the host numbers them, so the range must hold every mapped one.
    set("net/ipv4/ping_group_range", "0 2147483647")?;
    match set("net/ipv6/conf/default/disable_ipv6", "1") {
        // A kernel without IPv6.
        Err(NetworkError::System { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}

/// Changes a setting of the calling thread's network namespace.
pub(super) fn set(name: &str, value: &str) -> Result<(), NetworkError> {
    fs::write(format!("/proc/sys/{name}"), value)
        .map_err(|source| NetworkError::system(format!("setting {name} to {value}"), source))
}

/// Reads a setting of the calling thread's network namespace.
pub(super) fn get(name: &str) -> Result<String, NetworkError> {
    fs::read_to_string(format!("/proc/sys/{name}"))
        .map(|text| text.trim().to_owned())
        .map_err(|source| NetworkError::system(format!("reading {name}"), source))
}
