//! Switching the machine off.

use rustix::system::{RebootCommand, reboot};

/// Ends the machine. What it holds for its disk is written back first.
pub(super) fn off() -> ! {
    rustix::fs::sync();
    // With ACPI the first ends the machine. Without, the kernel turns it into a halt, which a
    // hypervisor does not notice; so the machine is restarted, which ends it too.
    if has_power_switch() {
        let _ = reboot(RebootCommand::PowerOff);
    }
    let _ = reboot(RebootCommand::Restart);
    // The first process's end is the kernel's panic, and that ends the machine.
    std::process::exit(1)
}

fn has_power_switch() -> bool {
    std::path::Path::new("/sys/firmware/acpi/tables/FACP").exists()
}
