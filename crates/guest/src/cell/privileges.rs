//! What the sandbox may do: capabilities, limits, keys, system calls.

use super::{CellError, Doing, seccomp::Filter};
use rustix::{
    io::Errno,
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};

/// What root of a sandbox keeps: what package managers and sudo need within its own files and
/// processes. Nothing that reaches devices, the network's configuration, mounts or the kernel.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::AUDIT_WRITE);

/// The highest capability that any kernel may know.
const LAST_CAPABILITY: u32 = 63;

/// Open files of one process, where the host's own limit allows as many.
const OPEN_FILES: u64 = 65_536;
const OPEN_FILES_AT_MOST: u64 = 1_048_576;

/// What can be limited before it is known who the sandbox is.
pub(super) fn prepare() -> Result<(), CellError> {
    let _ = rustix::thread::set_name(c"atoll-guest");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // A core file would land wherever the host's core pattern says.
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )
    .doing("forbid core files")?;
    let hard = getrlimit(Resource::Nofile)
        .maximum
        .unwrap_or(OPEN_FILES_AT_MOST);
    let maximum = hard.min(OPEN_FILES_AT_MOST);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(maximum.min(OPEN_FILES)),
            maximum: Some(maximum),
        },
    )
    .doing("limit open files")?;
    leave_keyring();
    // The bounding set limits what a program may gain by being executed; what this process holds
    // stays until the claim.
    for number in 0..=LAST_CAPABILITY {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if KEPT.contains(capability) {
            continue;
        }
        match capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)
                .doing("give up capabilities for good")?,
            Ok(false) => {}
            // The first number that the kernel does not know.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error).doing("look at capabilities"),
        }
    }
    Ok(())
}

/// The last step: capabilities and system calls of a sandbox. There is no way back.
///
/// The filter comes first, because without `no_new_privs` only a process that still has
/// CAP_SYS_ADMIN may install one; it lets through what the rest needs.
pub(super) fn give_up(no_new_privileges: bool, filter: &Filter) -> Result<(), CellError> {
    if no_new_privileges {
        set_no_new_privs(true).doing("forbid new privileges")?;
    }
    filter.install().doing("install the system call filter")?;
    clear_ambient_capability_set().doing("clear ambient capabilities")?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: KEPT,
            permitted: KEPT,
            inheritable: CapabilitySet::empty(),
        },
    )
    .doing("give up capabilities")?;
    // Root of the sandbox has the same user id as this process; without this it could attach to it
    // with ptrace, stop it and read its memory (ptrace(2), "Ptrace access mode checking").
    set_dumpable_behavior(DumpableBehavior::NotDumpable).doing("refuse to be traced")
}

/// A session keyring of its own, so that none of the host's is inherited. Kernels without keys
/// have nothing to leave.
fn leave_keyring() {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: takes a number and a null pointer, which asks for an anonymous keyring.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        );
    }
}
