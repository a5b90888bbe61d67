//! Whether KVM runs code here.
//!
//! That `/dev/kvm` opens says little: under some hypervisors it opens, makes machines and
//! processors, and then runs none of their instructions, or interprets them a thousand times too
//! slowly. So a short program is run, in the mode that a kernel runs in: 64-bit, with paging.

use rustix::{
    fs::{Mode, OFlags},
    mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
};
use std::{
    ffi::c_void,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
    sync::mpsc,
    time::Duration,
};

/// How long a working KVM may take for the program; it needs a millisecond.
const DEADLINE: Duration = Duration::from_millis(100);

// linux/kvm.h
const KVM_GET_API_VERSION: libc::Ioctl = 0xAE00;
const KVM_CREATE_VM: libc::Ioctl = 0xAE01;
const KVM_GET_VCPU_MMAP_SIZE: libc::Ioctl = 0xAE04;
const KVM_CREATE_VCPU: libc::Ioctl = 0xAE41;
const KVM_SET_USER_MEMORY_REGION: libc::Ioctl = 0x4020_AE46;
const KVM_RUN: libc::Ioctl = 0xAE80;
const KVM_SET_REGS: libc::Ioctl = 0x4090_AE82;
const KVM_GET_SREGS: libc::Ioctl = 0x8138_AE83;
const KVM_SET_SREGS: libc::Ioctl = 0x4138_AE84;
const KVM_EXIT_IO: u32 = 2;
const API_VERSION: i32 = 12;

/// Offsets in `struct kvm_run`: the wish to leave at once, and why it left.
const RUN_IMMEDIATE_EXIT: usize = 1;
const RUN_EXIT_REASON: usize = 8;

const MEMORY: usize = 0x10000;
const PAGE_TABLES: u64 = 0x1000;
const CODE: u64 = 0x8000;

/// Counts down from a million, then leaves through a port:
/// `mov ecx, 1000000; dec ecx; jnz -4; out 0x10, al; hlt`.
///
/// The count tells running from interpreting: a processor takes a millisecond, a KVM that
/// interprets a foreign kernel's instructions one by one takes seconds, and no kernel boots on it.
const PROGRAM: [u8; 12] = [
    0xb9, 0x40, 0x42, 0x0f, 0, 0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x10, 0xf4,
];

/// What is to be had of KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kvm {
    /// It runs code.
    Usable,
    /// It is there and runs none; why, in half a sentence.
    Unusable(String),
    /// There is no `/dev/kvm`, or nothing behind it.
    Absent,
}

/// Looks, and runs instructions if it is there. Takes at most some 100 ms. Blocks.
pub fn look() -> Kvm {
    use rustix::io::Errno;
    match rustix::fs::open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT | Errno::NXIO | Errno::NODEV) => Kvm::Absent,
        _ => match usable() {
            Ok(()) => Kvm::Usable,
            Err(reason) => Kvm::Unusable(reason),
        },
    }
}

/// Succeeds if KVM runs instructions here; else says why not, in half a sentence. Takes at most
/// some 100 ms. Blocks: call it once, and remember the answer.
pub fn usable() -> Result<(), String> {
    let machine = Machine::new()?;
    let (sender, receiver) = mpsc::sync_channel(1);
    let immediate_exit = Flag(machine.run.cast::<u8>().wrapping_add(RUN_IMMEDIATE_EXIT));
    // SAFETY: answers this thread's own handle when it is asked on that thread.
    let handle = || unsafe { libc::pthread_self() };
    let (told, thread_id) = mpsc::sync_channel(1);
    let runner = std::thread::Builder::new()
        .name("kvm-probe".into())
        .spawn(move || {
            let _ = told.send(handle());
            let answer = machine.run_program();
            // With the machine, so that it lives until somebody has taken the answer.
            let _ = sender.send((answer, machine));
        })
        .map_err(|error| format!("no thread to try it on: {error}"))?;
    let answer = receiver.recv_timeout(DEADLINE);
    if let Err(mpsc::RecvTimeoutError::Timeout) = answer {
        // A signal makes the processor leave; its thread then ends and clears all away. One that
        // does not is left behind: it holds a few pages.
        if let Ok(thread) = thread_id.recv() {
            interrupt(thread, immediate_exit);
        }
        let _ = receiver.recv_timeout(DEADLINE);
        return Err("it opens, but does not run ordinary 64-bit code at a usable speed".into());
    }
    let _ = runner.join();
    answer
        .map_err(|error| error.to_string())
        .and_then(|(answer, _)| answer)
}

/// A byte in memory that the kernel shares.
struct Flag(*mut u8);

fn interrupt(thread: libc::pthread_t, immediate_exit: Flag) {
    extern "C" fn ignore(_: libc::c_int) {}
    let signal = libc::SIGRTMIN() + 7;
    // SAFETY: the machine, and with it the flag, lives until its answer is taken, which it has not
    // been; the handler does nothing, and the thread has not been joined.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(signal, &raw const action, ptr::null_mut());
        immediate_exit.0.write_volatile(1);
        libc::pthread_kill(thread, signal);
    }
}

/// A machine with one processor and 64 KiB.
struct Machine {
    // The order is that of release: the processor before the machine.
    processor: OwnedFd,
    _machine: OwnedFd,
    _kvm: OwnedFd,
    run: *mut c_void,
    run_size: usize,
    memory: *mut c_void,
}

// SAFETY: the mappings belong to the machine alone, and the kernel lets any thread run it.
unsafe impl Send for Machine {}

impl Machine {
    fn new() -> Result<Self, String> {
        let kvm = rustix::fs::open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| format!("/dev/kvm does not open: {error}"))?;
        let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let version = ioctl(&kvm, KVM_GET_API_VERSION, 0).map_err(failed("it has no version"))?;
        if version != API_VERSION {
            return Err(format!("its version is {version} and not {API_VERSION}"));
        }
        let machine = new(&kvm, KVM_CREATE_VM, 0).map_err(failed("it makes no machine"))?;
        let processor =
            new(&machine, KVM_CREATE_VCPU, 0).map_err(failed("it makes no processor"))?;
        let run_size = ioctl(&kvm, KVM_GET_VCPU_MMAP_SIZE, 0)
            .ok()
            .and_then(|size| usize::try_from(size).ok())
            .filter(|size| *size >= 4096)
            .ok_or("it tells no size of a processor")?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe { mmap_anonymous(ptr::null_mut(), MEMORY, access, MapFlags::PRIVATE) }
            .map_err(|error| format!("no memory to try it in: {error}"))?;
        // SAFETY: as above.
        let run = unsafe {
            mmap(
                ptr::null_mut(),
                run_size,
                access,
                MapFlags::SHARED,
                &processor,
                0,
            )
        };
        let run = match run {
            Ok(run) => run,
            Err(error) => {
                // SAFETY: mapped above, and used by nothing.
                let _ = unsafe { munmap(memory, MEMORY) };
                return Err(format!("its processor cannot be reached: {error}"));
            }
        };
        Ok(Self {
            processor,
            _machine: machine,
            _kvm: kvm,
            run,
            run_size,
            memory,
        })
    }

    fn run_program(&self) -> Result<(), String> {
        let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        // Three levels of tables that map the first 2 MiB onto themselves with one large page.
        let present_writable = 3;
        let large = 1 << 7;
        self.write(
            PAGE_TABLES,
            &u64::to_le_bytes((PAGE_TABLES + 0x1000) | present_writable),
        );
        self.write(
            PAGE_TABLES + 0x1000,
            &u64::to_le_bytes((PAGE_TABLES + 0x2000) | present_writable),
        );
        self.write(
            PAGE_TABLES + 0x2000,
            &u64::to_le_bytes(large | present_writable),
        );
        self.write(CODE, &PROGRAM);
        // struct kvm_userspace_memory_region: slot, flags, address inside, size, address here.
        let region: [u64; 4] = [0, 0, MEMORY as u64, self.memory as u64];
        ioctl(
            &self._machine,
            KVM_SET_USER_MEMORY_REGION,
            region.as_ptr() as usize,
        )
        .map_err(failed("it takes no memory"))?;
        self.set_registers()
            .map_err(failed("its processor takes no registers"))?;
        ioctl(&self.processor, KVM_RUN, 0).map_err(failed("its processor does not run"))?;
        // SAFETY: the kernel keeps this field inside the mapping, which is at least a page.
        let reason = unsafe {
            self.run
                .cast::<u8>()
                .add(RUN_EXIT_REASON)
                .cast::<u32>()
                .read_volatile()
        };
        if reason == KVM_EXIT_IO {
            Ok(())
        } else {
            Err(format!(
                "its processor stopped for reason {reason} instead of running"
            ))
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        debug_assert!(at as usize + bytes.len() <= MEMORY);
        // SAFETY: the constants above keep all writes inside the mapping.
        unsafe {
            ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.memory.cast::<u8>().add(at as usize),
                bytes.len(),
            );
        }
    }

    /// 64-bit mode with paging, ready at the program.
    fn set_registers(&self) -> io::Result<()> {
        let mut special = Special::default();
        ioctl(&self.processor, KVM_GET_SREGS, (&raw mut special) as usize)?;
        let code = Segment {
            base: 0,
            limit: 0xffff_ffff,
            selector: 8,
            kind: 11,
            present: 1,
            privilege: 0,
            wide: 0,
            system: 1,
            long: 1,
            granular: 1,
            ..Segment::default()
        };
        let data = Segment {
            selector: 16,
            kind: 3,
            wide: 1,
            long: 0,
            ..code
        };
        special.code = code;
        for segment in &mut special.data {
            *segment = data;
        }
        special.control[0] = 0x8005_0033; // protected mode, paging, floating point
        special.control[2] = PAGE_TABLES;
        special.control[3] = 1 << 5; // physical address extension
        special.extended_features = 1 << 8 | 1 << 10; // long mode, enabled and active
        ioctl(
            &self.processor,
            KVM_SET_SREGS,
            (&raw const special) as usize,
        )?;
        // struct kvm_regs: 16 general registers, rip, rflags.
        let mut general = [0u64; 18];
        general[6] = MEMORY as u64; // rsp
        general[16] = CODE;
        general[17] = 2;
        ioctl(&self.processor, KVM_SET_REGS, general.as_ptr() as usize)?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: both were mapped by `new`, and nothing refers to them any more.
        unsafe {
            let _ = munmap(self.run, self.run_size);
            let _ = munmap(self.memory, MEMORY);
        }
    }
}

/// `struct kvm_segment`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    privilege: u8,
    wide: u8,
    system: u8,
    long: u8,
    granular: u8,
    available: u8,
    unusable: u8,
    padding: u8,
}

/// `struct kvm_sregs`: code; data, extra, f, g, stack; task, local table; two tables' addresses;
/// control registers 0, 2, 3, 4, 8; features; interrupts.
#[repr(C)]
#[derive(Default)]
struct Special {
    code: Segment,
    data: [Segment; 5],
    task: [Segment; 2],
    tables: [u64; 4],
    control: [u64; 5],
    extended_features: u64,
    interrupt_base: u64,
    interrupts: [u64; 4],
}

/// An `ioctl` whose argument is a number or the address of a structure of the right layout that
/// lives through the call; every caller here passes one.
fn ioctl(file: &OwnedFd, request: libc::Ioctl, argument: usize) -> io::Result<i32> {
    // SAFETY: see above.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, argument) } {
        -1 => Err(io::Error::last_os_error()),
        answer => Ok(answer),
    }
}

/// An `ioctl` that answers a descriptor.
fn new(file: &OwnedFd, request: libc::Ioctl, argument: usize) -> io::Result<OwnedFd> {
    let descriptor = ioctl(file, request, argument)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Segment>(), 24);
        assert_eq!(size_of::<Special>(), 0x138);
    }

    #[test]
    fn the_answer_comes_in_time() {
        let begin = Instant::now();
        println!("{:?}", usable());
        assert!(begin.elapsed() < Duration::from_secs(2));
    }
}
