//! Loads the kernel modules that lie in the initial file system.

use super::{Doing, MachineError};
use rustix::io::Errno;
use std::{ffi::CString, fs::File, path::Path};

/// The modules, and the order in which they are to be loaded, one name a line.
const FOLDER: &str = "/modules";
const ORDER: &str = "/modules/order";

/// Loads all. `virtio_devices` are parameters for `virtio_mmio`, which takes them where it was
/// built to; others find their devices by ACPI, and then there are none.
///
/// A kernel that has everything built in comes without the folder.
pub(super) fn load(virtio_devices: &[String]) -> Result<(), MachineError> {
    if !Path::new(ORDER).exists() {
        return Ok(());
    }
    let order = std::fs::read_to_string(ORDER).doing(format!("read {ORDER}"))?;
    for name in order.lines().filter(|name| !name.is_empty()) {
        let path = format!("{FOLDER}/{name}");
        let file = File::open(&path).doing(format!("open {path}"))?;
        let parameters = match name {
            "virtio_mmio.ko" => virtio_devices.join(" "),
            _ => String::new(),
        };
        let parameters = CString::new(parameters).doing("hand over parameters")?;
        match rustix::system::finit_module(&file, &parameters, 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).doing(format!("load the kernel module {name}")),
        }
    }
    Ok(())
}
