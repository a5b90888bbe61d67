//! The `qemu` driver: a machine of its own, under KVM or, where that is not to be had, by
//! translation.
//!
//! ```text
//!  this program ── jail ──▶ QEMU ── kernel ──▶ guest
//!     │  QMP: stop, save, resume, go   │ tap
//!     │  HTTP inside the slot's network: who it is
//! ```
//!
//! A fresh machine boots until its guest waits for an identity, and its memory is a file. Saving it
//! keeps that file and the state of its devices; from then on a machine is *resumed*: its memory is
//! a private view of the file, which is copied page by page as it writes.
//!
//! | file | what |
//! | --- | --- |
//! | `driver` | [`Qemu`]: prepare, adopt, sweep, shut down |
//! | `prepared`, `machine` | a machine before and after it is somebody's |
//! | `hold` | what both have: the process, its sockets, groups and files |
//! | `launch`, [`jail`], `opener` | how QEMU is started and locked up |
//! | `arguments`, `runtime`, `facts` | its command line, its files, what a snapshot is bound to |
//! | `qmp`, `console`, `guest` | how QEMU and the guest are spoken to |
//! | `save`, `restore`, `memory`, `checksums` | what is saved, and how it comes back |

pub(crate) mod accelerator;
mod arguments;
pub(crate) mod checksums;
pub(crate) mod console;
pub(crate) mod driver;
mod facts;
pub(crate) mod guest;
mod hold;
pub mod jail;
mod launch;
mod machine;
mod memory;
pub(crate) mod notes;
mod opener;
pub(crate) mod prepared;
mod qmp;
mod restore;
mod runtime;
mod save;

pub use accelerator::Accelerator;
pub use checksums::verify;
pub use driver::{Qemu, QemuOptions};
