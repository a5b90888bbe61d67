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
//! | `driver` | [`Firecracker`]: what differs from other hypervisors |
//! | `hold` | a machine, and the way to its Firecracker |
//! | `launch`, `jailer` | how Firecracker is started and locked up |
//! | `jail` | the directory that it sees as its root |
//! | `client`, `messages`, `version` | how it is spoken to |
//! | `save`, `restore`, `memory` | what is saved, and how it comes back |
//! | [`pages`] | memory that is brought page by page |

mod client;
mod driver;
mod hold;
mod jail;
mod jailer;
mod launch;
mod memory;
mod messages;
pub mod pages;
mod restore;
mod save;
mod version;

pub use driver::{Firecracker, FirecrackerOptions, MemoryBackend};
pub(crate) use memory::DIFFERENCE;
pub use messages::GuestMemory;
pub use version::{OLDEST, Version};
