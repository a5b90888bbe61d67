//! The kernel's command line.

use super::time_stamp_khz;
use crate::slot::machine;
use api::Secret;

/// What the kernel is started by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hypervisor {
    /// QEMU that emulates the processor.
    QemuTcg,
    /// QEMU under KVM.
    QemuKvm,
    /// Firecracker.
    Firecracker,
}

/// What every machine is told: to say nothing while it starts (each line on an emulated serial
/// port costs), to end the hypervisor when it crashes, to leave out what it has no use for, and
/// not to touch two megabytes of memory where four kilobytes do.
const COMMON: &str = "console=ttyS0 quiet loglevel=1 panic=-1 cryptomgr.notests \
                      random.trust_cpu=on 8250.nr_uarts=1 audit=0 transparent_hugepage=madvise";

/// The command line of a machine whose guest opens to `control_token` until it is told who it is.
///
/// It holds that token, which is worthless afterwards: programs inside can read the line.
pub fn command_line(hypervisor: Hypervisor, control_token: &Secret) -> String {
    let special = match hypervisor {
        Hypervisor::QemuTcg => {
            // Translated processors all count by the host's own counter, but do not say so. Without
            // being told, the kernel falls back to ticks: 250 interrupts a second when idle, and a
            // clock that is right to 4 ms. And what protects from a real processor's guesses only
            // costs time on one that makes none.
            format!(
                "reboot=t no_timer_check init_on_alloc=0 mitigations=off lsm=landlock,yama \
                 hardened_usercopy=off randomize_kstack_offset=off nowatchdog tsc=reliable tsc_early_khz={}",
                time_stamp_khz()
            )
        }
        Hypervisor::QemuKvm => "reboot=t".to_owned(),
        Hypervisor::Firecracker => "reboot=k pci=off i8042.noaux i8042.nomux i8042.dumbkbd".into(),
    };
    format!(
        "{COMMON} {special} atoll.address={}/{} atoll.gateway={} atoll.control={}",
        machine::ADDRESS,
        machine::PREFIX,
        machine::GATEWAY,
        control_token.expose()
    )
}
