//! How the waiting guest process becomes a sandbox in a container.
//!
//! The driver starts `atoll-guest wait --control-fd N` as the first process of fresh namespaces,
//! long before anybody needs it. What follows has two halves, so that the second is short:
//!
//! 1. *Prepare*, away from the path of creating a sandbox: build `/dev`, `/proc` and `/sys` on a
//!    stage of its own, let go of the host's file systems, set limits, draw a border with Landlock,
//!    say [`GuestEvent::Waiting`].
//! 2. *Enter*, when the claim comes: slide under the root file system that came with it, give up
//!    capabilities, install the system call filter. After that the process can neither mount nor
//!    make namespaces, and serves.
//!
//! All of it runs before the first thread exists. What the process holds then of the host: the
//! control socket, and nothing else.
//!
//! [`GuestEvent::Waiting`]: api::boot::GuestEvent::Waiting

mod control;
mod filesystem;
mod landlock;
mod privileges;
mod seccomp;

pub use control::ControlSocket;

use api::boot::{GuestEvent, Identity};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// Why the process did not become a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The node went away before anybody claimed it: leave quietly.
    #[error("the node went away")]
    Abandoned,
    /// A message was not what it should be.
    #[error("unusable message from the node: {0}")]
    Message(String),
    /// A system call failed.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// What the kernel said.
        source: Errno,
    },
    /// The root file system cannot be used.
    #[error("the root file system cannot be used: {0}")]
    Root(String),
}

/// Adds what was being done to a system call's error.
trait Doing<T> {
    fn doing(self, doing: &str) -> Result<T, CellError>;
}

impl<T> Doing<T> for rustix::io::Result<T> {
    fn doing(self, doing: &str) -> Result<T, CellError> {
        self.map_err(|source| CellError::System {
            doing: doing.to_owned(),
            source,
        })
    }
}

/// Prepares, waits for the claim, and becomes the sandbox that it describes.
///
/// Call it as the first process of the namespaces that the driver made, before any thread exists;
/// `control` is the socket that it left. On return the working directory is `/`, standard input
/// and outputs are `/dev/null`, and privileges are those of the sandbox. Errors other than
/// [`CellError::Abandoned`] have already been told to the driver: the caller just exits.
pub fn wait(control: OwnedFd) -> Result<(Identity, ControlSocket), CellError> {
    let socket = ControlSocket::new(control);
    match become_sandbox(&socket) {
        Ok(identity) => Ok((identity, socket)),
        Err(CellError::Abandoned) => Err(CellError::Abandoned),
        Err(error) => {
            socket.failed(&error.to_string());
            Err(error)
        }
    }
}

fn become_sandbox(socket: &ControlSocket) -> Result<Identity, CellError> {
    let (setup, sysfs) = socket.receive_setup()?;
    filesystem::prepare(sysfs, &setup.cgroups)?;
    privileges::prepare()?;
    landlock::enclose()?;
    let filter = seccomp::Filter::standard();
    socket.send(&GuestEvent::Waiting)?;

    let (claim, root) = socket.receive_claim()?;
    filesystem::enter(root)?;
    rustix::system::sethostname(claim.host_name.as_bytes()).doing("set the host name")?;
    privileges::give_up(claim.no_new_privileges, &filter)?;
    Ok(claim.identity)
}
