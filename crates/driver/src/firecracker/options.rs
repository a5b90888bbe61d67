//! How a node runs Firecracker.

use crate::{kernel::Kernel, slot::machine};
use std::{ffi::OsString, path::PathBuf, time::Duration};

/// Where the memory of a machine that is loaded comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MemoryBackend {
    /// Firecracker maps the file: machines of one state share the pages that they only read.
    #[default]
    File,
    /// A process of this program's brings each page that the machine touches; see
    /// [`pages`](super::pages). Where the host has no userfaultfd, it is the file.
    Pages,
}

/// How a node runs machines.
#[derive(Debug, Clone)]
pub struct FirecrackerOptions {
    /// The data directory: what machines have is in `jails`.
    pub data_directory: PathBuf,
    /// Names what this instance makes on the machine: four hexadecimal digits.
    pub instance: String,
    /// Firecracker; its file name must hold `firecracker`, as the jailer wants it.
    pub program: PathBuf,
    /// Its jailer, of the same release.
    pub jailer: PathBuf,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// The host's number for the user of the first slot.
    pub first_id: u32,
    /// A CPU template that hides what hosts differ in, such as `T2`; then snapshots are bound to it
    /// and not to the processor.
    pub cpu_template: Option<String>,
    /// Whether pages that a loaded machine writes are counted, so that saving it again keeps only
    /// those. It costs a fault for each.
    pub track_dirty_pages: bool,
    /// Where the memory of a machine that is loaded comes from.
    pub memory: MemoryBackend,
    /// Whether memory is in pages of 2 MiB from the host's pool of them
    /// (`/proc/sys/vm/nr_hugepages`), which control groups do not count as memory. They are always
    /// brought by a process; states with and without them are not exchanged.
    pub huge_pages: bool,
    /// The program, with arguments, that brings pages: its `main` calls
    /// [`run_if_asked`](super::pages::run_if_asked) first thing.
    pub pages_command: Vec<OsString>,
    /// Whether a loaded machine's clocks go on from the time that it is. The guest is told the time
    /// anyway; this moves its monotonic clock, too, so that timers that were set before it was saved
    /// are up. Firecracker 1.16 or newer on Linux 5.16 or newer; others let them go on.
    pub advance_clock: bool,
    /// How often guests are asked what their memory holds, for
    /// [`guest_memory`](Firecracker::guest_memory). It wakes them each time.
    pub balloon_statistics: Option<Duration>,
    /// Whether programs inside can ask Firecracker at 169.254.169.254 for the ids of sandbox and
    /// template (MMDS, version 2).
    pub metadata: bool,
    /// Whether to try first if KVM runs code. Only tests, with something in place of Firecracker,
    /// do without.
    pub try_kvm: bool,
}

impl FirecrackerOptions {
    /// The usual options.
    pub fn new(
        data_directory: impl Into<PathBuf>,
        instance: impl Into<String>,
        (program, jailer): (PathBuf, PathBuf),
        kernel: Kernel,
    ) -> Self {
        let instance = instance.into();
        Self {
            data_directory: data_directory.into(),
            first_id: machine::first_user(&instance),
            instance,
            program,
            jailer,
            kernel,
            cpu_template: None,
            track_dirty_pages: true,
            memory: MemoryBackend::default(),
            huge_pages: false,
            pages_command: vec!["/proc/self/exe".into(), "pages".into()],
            advance_clock: false,
            balloon_statistics: None,
            metadata: false,
            try_kvm: true,
        }
    }
}
