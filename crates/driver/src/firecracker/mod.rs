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
//! What drivers of microVMs have in common is in `microvm`.
//!
//! | file | what |
//! | --- | --- |
//! | `driver`, `options` | [`Firecracker`]: what differs from other hypervisors |
//! | `hold` | a machine, and the way to its Firecracker |
//! | `launch`, `jailer` | how Firecracker is started and locked up |
//! | `jail` | the directory that it sees as its root |
//! | `client`, `messages` | how it is spoken to |
//! | `runtime`, `version` | what it is, and what it can do |
//! | `boot`, `save`, `restore`, `memory` | a machine's beginning; what is saved, and comes back |
//! | [`pages`] | memory that is brought page by page |

mod boot;
mod client;
mod driver;
mod hold;
mod jail;
mod jailer;
mod launch;
mod memory;
mod messages;
mod options;
pub mod pages;
mod restore;
mod runtime;
mod save;
mod version;

pub use driver::Firecracker;
pub(crate) use memory::DIFFERENCE;
pub use messages::GuestMemory;
pub use options::{FirecrackerOptions, MemoryBackend};
pub use version::{OLDEST, Version};
