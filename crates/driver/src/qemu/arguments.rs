//! QEMU's command line, from a description: a pure function.
//!
//! QEMU opens no file of a tenant's by name. Disks, the tap device and its own sockets reach it as
//! open descriptors with the numbers below; its memory comes through [`super::opener`].

use super::accelerator::Accelerator;
use crate::slot::machine::MAC;
use api::{Bytes, Resources};

/// The first number of descriptors that QEMU finds open.
pub(super) const FIRST_DESCRIPTOR: i32 = 10;
/// The listening socket of the machine protocol.
const QMP: i32 = FIRST_DESCRIPTOR;
/// The listening socket of the serial console.
const SERIAL: i32 = FIRST_DESCRIPTOR + 1;
/// The root disk, open for reading only.
const ROOT: i32 = FIRST_DESCRIPTOR + 2;
/// The writable disk.
const LAYER: i32 = FIRST_DESCRIPTOR + 3;
/// The tap device, opened inside the slot's network.
pub(super) const TAP: i32 = FIRST_DESCRIPTOR + 4;

/// Where things are as QEMU sees them.
pub(super) const KERNEL: &str = "/kernel";
pub(super) const INITRAMFS: &str = "/initramfs";
/// No file: whoever opens this name is handed the machine's memory.
pub(super) const MEMORY: &str = "/memory";

/// The layout of a machine and of its files. A state can only be resumed into a machine that has the
/// same devices with the same properties: whatever changes them here, or the files of a state, raises
/// this.
pub(super) const LAYOUT: u32 = 1;

/// QEMU's own filter of system calls.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// What is translated code may take, in mebibytes, for all processors of a machine together.
pub(super) const TRANSLATIONS: u64 = 128;

/// What a machine begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Begin {
    /// A kernel and its command line.
    Boot {
        /// Parameters of the kernel.
        parameters: String,
    },
    /// The state of another machine, which is named later.
    Incoming,
}

/// Everything that decides QEMU's command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) accelerator: Accelerator,
    /// Whether this QEMU may go on running what it has translated while another processor changes it. A
    /// kernel does that to itself as it boots, so its processors then take turns.
    pub(super) stale_code: bool,
    pub(super) resources: Resources,
    pub(super) begin: Begin,
}

/// The arguments, without the program's name.
pub(super) fn arguments(description: &Description) -> Vec<String> {
    let Description {
        accelerator,
        stale_code,
        resources,
        begin,
    } = description;
    let fresh = matches!(begin, Begin::Boot { .. });
    let memory = memory_size(resources);
    let mut all: Vec<String> = Vec::new();
    let mut add = |name: &str, value: String| all.extend([name.to_owned(), value]);

    // With ACPI, because Debian's kernel finds devices by nothing else; and with the old timer and
    // interrupt controller, which its calibration of timers needs under emulation.
    add(
        "-machine",
        "microvm,acpi=on,isa-serial=on,rtc=on,suppress-vmdesc=on,memory-backend=ram".into(),
    );
    add(
        "-accel",
        match accelerator {
            Accelerator::Kvm => "kvm".into(),
            Accelerator::Tcg => {
                let threads = if fresh && *stale_code {
                    ",thread=single"
                } else {
                    ""
                };
                format!("tcg,tb-size={TRANSLATIONS}{threads}")
            }
        },
    );
    add("-cpu", accelerator.processor().into());
    add("-smp", resources.vcpus.max(1).to_string());
    add("-m", format!("{}M", memory.as_mebibytes()));
    // Shared with its file while it boots, so that the file is the memory; private afterwards, so
    // that many machines may stand on one file.
    add(
        "-object",
        format!(
            "memory-backend-file,id=ram,mem-path={MEMORY},size={},share={}",
            memory.0,
            if fresh { "on" } else { "off" }
        ),
    );
    // The state of devices is read without the header that this would add.
    add("-global", "migration.send-configuration=off".into());
    // It arrives where nobody knew it before: both ends know each other's hardware address, and a
    // guest that is asked to tell the network where it is now would only lose time.
    add("-global", "migration.announce-rounds=0".into());
    add("-display", "none".into());
    match begin {
        Begin::Boot { parameters } => {
            add("-kernel", KERNEL.into());
            add("-initrd", INITRAMFS.into());
            add("-append", parameters.clone());
        }
        // A kernel that nobody boots would cost memory and time.
        Begin::Incoming => add("-incoming", "defer".into()),
    }

    for (index, (name, descriptor, writable)) in [("root", ROOT, false), ("layer", LAYER, true)]
        .into_iter()
        .enumerate()
    {
        let set = index + 1;
        add("-add-fd", format!("fd={descriptor},set={set}"));
        let read_only = if writable { "off" } else { "on" };
        // Writing through is for hosts that lose power, and a sandbox that ran then is lost; what
        // is saved is written through when it is saved.
        add(
            "-blockdev",
            format!(
                "driver=file,node-name={name}-file,filename=/dev/fdset/{set},locking=off,\
                 auto-read-only=off,read-only={read_only},cache.no-flush=on,discard=unmap"
            ),
        );
        add(
            "-blockdev",
            format!(
                "driver=raw,node-name={name},file={name}-file,read-only={read_only},\
                 cache.no-flush=on,discard=unmap"
            ),
        );
        // No bus is named: QEMU gives devices those whose interrupts nobody else has.
        add(
            "-device",
            format!("virtio-blk-device,drive={name},serial={name}"),
        );
    }
    add("-netdev", format!("tap,id=net,fd={TAP},vhost=off"));
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    add("-device", format!("virtio-net-device,netdev=net,mac={mac}"));
    add("-object", "rng-builtin,id=rng".into());
    add("-device", "virtio-rng-device,rng=rng".into());
    for (name, descriptor) in [("serial", SERIAL), ("qmp", QMP)] {
        add(
            "-chardev",
            format!("socket,id={name},fd={descriptor},server=on,wait=off"),
        );
    }
    add("-serial", "chardev:serial".into());
    add("-mon", "chardev=qmp,mode=control".into());
    add("-sandbox", SANDBOX.into());
    // It stands still until told to go; and a guest that resets itself has come to its end.
    all.extend(["-nodefaults", "-no-user-config", "-no-reboot", "-S"].map(String::from));
    all
}

/// What a machine has for memory: whole mebibytes.
pub(super) fn memory_size(resources: &Resources) -> Bytes {
    Bytes::mebibytes(resources.memory.as_mebibytes().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(begin: Begin) -> Description {
        Description {
            accelerator: Accelerator::Tcg,
            stale_code: true,
            resources: Resources {
                vcpus: 2,
                memory: Bytes::mebibytes(256),
                disk: Bytes::gibibytes(1),
            },
            begin,
        }
    }

    #[test]
    fn a_machine_that_boots() {
        let parameters = "console=ttyS0".to_owned();
        insta::assert_snapshot!(arguments(&description(Begin::Boot { parameters })).join("\n"));
    }

    /// If its devices are others, [`LAYOUT`] is to be raised.
    #[test]
    fn a_machine_that_is_resumed() {
        insta::assert_snapshot!(arguments(&description(Begin::Incoming)).join("\n"));
    }

    #[test]
    fn processors_take_turns_only_where_they_must() {
        let booting = description(Begin::Boot {
            parameters: String::new(),
        });
        assert!(arguments(&booting).join(" ").contains("thread=single"));
        let sound = Description {
            stale_code: false,
            ..booting
        };
        for other in [sound, description(Begin::Incoming)] {
            assert!(!arguments(&other).join(" ").contains("thread="));
        }
    }

    #[test]
    fn kvm_passes_the_processor_through() {
        let mut with_kvm = description(Begin::Incoming);
        with_kvm.accelerator = Accelerator::Kvm;
        let text = arguments(&with_kvm).join(" ");
        assert!(text.contains("-accel kvm -cpu host"), "{text}");
    }
}
