//! What the program asks of its own process: few heaps, many files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Heaps of the C library. It makes eight for each processor otherwise, and memory that one thread
/// freed in its own is not there for others.
const HEAPS: libc::c_int = 2;

/// Bounds the memory that lies idle in the C library's allocator. Call it before threads start.
pub(super) fn bound_heaps() {
    // SAFETY: mallopt only sets a number in the allocator; no other thread runs yet that could
    // allocate meanwhile, and it may be called at any time besides.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Raises the limit of open files to what the system allows: each sandbox takes several.
pub(super) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}
