//! Serves a loaded machine's memory page by page, through userfaultfd.
//!
//! By default Firecracker maps the memory file itself, and all machines of one state share the
//! pages that they only read. With this backend every page that a machine touches is a copy of its
//! own; that costs memory, and is what machines on huge pages cannot do without.
//!
//! ```text
//!  this program ── starts ──▶ server ◀── "pages.socket": faults, where memory is ── Firecracker
//!                               │ memory file, and what differs from it
//! ```
//!
//! A server is a process of its own, because a machine outlives this program, and nothing in it
//! would move again with nobody to bring its pages. It lives in the machine's control group, as the
//! machine's user, in its root directory and network, and sees no other process; and it ends with
//! the machine. If it fails, it ends the machine.
//!
//! | file | what |
//! | --- | --- |
//! | `start` | this program's side: the socket, and starting a server |
//! | `server` | the process |
//! | `layout`, `source` | where the machine's memory is, and what its pages hold |
//! | `userfault` | the kernel's interface |

mod layout;
mod server;
mod source;
mod start;
mod userfault;

pub use server::run_if_asked;
pub(super) use start::{Pages, listen};
pub(super) use userfault::is_usable;
