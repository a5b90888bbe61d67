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
//! What drivers of microVMs have in common is in `microvm`.
//!
//! | file | what |
//! | --- | --- |
//! | `driver`, `options` | [`Qemu`]: what differs from other hypervisors |
//! | `hold`, `machine` | a machine, and the way to its QEMU |
//! | `launch`, [`jail`], `opener` | how QEMU is started and locked up |
//! | `arguments`, `runtime`, `accelerator` | its command line, its files, how instructions run |
//! | `qmp` | how QEMU is spoken to |
//! | `full_disk` | what stopped for want of room goes on |
//! | `save`, `restore`, `memory`, `checksums` | what is saved, and how it comes back |

mod accelerator;
mod arguments;
pub(crate) mod checksums;
mod driver;
mod full_disk;
mod hold;
pub mod jail;
mod launch;
mod machine;
mod memory;
mod opener;
mod options;
mod qmp;
mod restore;
mod runtime;
mod save;

use crate::microvm::notes;

pub use accelerator::Accelerator;
pub use checksums::verify;
pub use driver::Qemu;
pub use options::QemuOptions;
