//! The `firecracker` driver: a machine of its own under KVM, by Firecracker and its jailer.
//!
//! ```text
//!  this program ── jailer ──▶ Firecracker ── kernel ──▶ guest
//!     │  HTTP on a Unix socket: devices, go, pause, snapshot, load
//!     │  HTTP inside the slot's network: who it is
//! ```
//!
//! A fresh machine boots until its guest waits for an identity. Saving it keeps its memory, the
//! state of its devices and its disk; from then on a machine is *loaded*: its memory is a private
//! view of a file that all machines of one state share.
//!
//! Nothing is ever asked of a Firecracker but through its API
//! (<https://github.com/firecracker-microvm/firecracker>, `src/firecracker/swagger`), and nothing
//! but its version before a snapshot is loaded: it takes snapshots only while nothing is
//! configured. What a version cannot do yet is said otherwise; see `version`.
//!
//! | file | what |
//! | --- | --- |
//! | `driver` | [`Firecracker`]: prepare, adopt, sweep, shut down |
//! | `prepared`, `machine` | a machine before and after it is somebody's |
//! | `hold` | what both have: the process, its socket, groups and files |
//! | `launch`, `jailer` | how Firecracker is started and locked up |
//! | `jail` | the directory that it sees as its root |
//! | `client`, `messages`, `version` | how it is spoken to |
//! | `save`, `memory` | what is saved, and how it comes back |
//!
//! Left out, as no test of this project could show that it works: memory through userfaultfd, and
//! with it huge pages.

mod client;
mod driver;
mod exit;
mod hold;
mod jail;
mod jailer;
mod launch;
mod machine;
mod memory;
mod messages;
mod prepared;
mod save;
mod version;

pub use driver::{Firecracker, FirecrackerOptions};
pub(crate) use memory::DIFFERENCE;
pub use version::{OLDEST, Version};
