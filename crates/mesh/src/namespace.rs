//! Network namespaces: where a device or a socket is made.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::error::Error;

/// A network namespace, held open. What was made in it stays in it.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

impl Namespace {
    /// The calling thread's.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn current() -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace at this path, such as `/run/netns/blue` or `/proc/1234/ns/net`.
    ///
    /// # Errors
    /// There is none, or it may not be opened.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file =
            File::open(path).map_err(|error| Error::io("open the network namespace", error))?;
        Ok(Self(file.into()))
    }

    /// A new namespace without a name. It ends with its last holder, so it cannot be left behind.
    ///
    /// # Errors
    /// The caller may not make one.
    pub fn unnamed() -> Result<Self, Error> {
        on_own_thread(|| {
            // SAFETY: only this thread's network namespace changes; the thread shares no other part of its
            // state with code that expects the old one, and ends with this closure.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|error| Error::io("make a network namespace", error))?;
            Self::current()
        })
    }

    /// Does something in this namespace, on a thread that ends afterwards.
    ///
    /// # Errors
    /// What `action` says, or that the namespace may not be entered.
    pub fn within<T: Send>(
        &self,
        action: impl FnOnce() -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        on_own_thread(|| {
            self.enter()
                .map_err(|error| Error::io("enter the network namespace", error))?;
            action()
        })
    }

    /// Moves the calling thread into this namespace, for good. Also right in a child before it executes a program.
    ///
    /// # Errors
    /// The namespace may not be entered.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(
            self.0.as_fd(),
            Some(LinkNameSpaceType::Network),
        )?)
    }

    /// The same namespace, held a second time.
    pub(crate) fn again(&self) -> Result<Self, Error> {
        self.0
            .try_clone()
            .map(Self)
            .map_err(|error| Error::io("hold the network namespace", error))
    }

    /// A path that other processes can open as long as this one holds the namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Makes a socket in a namespace, where it stays, or in that of the calling thread.
pub(crate) fn socket_in<T: Send>(
    namespace: Option<&Namespace>,
    make: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    match namespace {
        None => make(),
        Some(namespace) => namespace
            .within(|| Ok(make()))
            .unwrap_or_else(|error| Err(io::Error::other(error))),
    }
}

/// A UDP socket in a namespace, or in that of the calling thread, for this thread's runtime.
pub(crate) fn udp_in(
    namespace: Option<&Namespace>,
    place: SocketAddr,
) -> io::Result<tokio::net::UdpSocket> {
    let socket = socket_in(namespace, || std::net::UdpSocket::bind(place))?;
    socket.set_nonblocking(true)?;
    tokio::net::UdpSocket::from_std(socket)
}

impl From<OwnedFd> for Namespace {
    /// A handle of a network namespace that somebody else opened.
    fn from(handle: OwnedFd) -> Self {
        Self(handle)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Does something on a thread of its own.
fn on_own_thread<T: Send>(action: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("mesh-namespace".to_owned())
            .spawn_scoped(scope, action)
            .map_err(|error| Error::io("start a thread", error))?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
