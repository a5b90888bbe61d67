//! How a node runs QEMU.

use super::Accelerator;
use crate::{kernel::Kernel, slot::machine};
use std::{ffi::OsString, path::PathBuf};

/// How a node runs machines.
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// The data directory: what machines have is in `machines`.
    pub data_directory: PathBuf,
    /// Names what this instance makes on the machine: four hexadecimal digits.
    pub instance: String,
    /// The program, with arguments, that becomes QEMU in its jail: its `main` calls
    /// [`run_if_asked`](super::jail::run_if_asked) first thing.
    pub jail_command: Vec<OsString>,
    /// QEMU; None looks where programs are.
    pub program: Option<PathBuf>,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// How instructions run; None tries KVM.
    pub accelerator: Option<Accelerator>,
    /// The host's number for the user of the first slot.
    pub first_id: u32,
}

impl QemuOptions {
    /// The usual options: this program itself becomes the jail.
    pub fn new(
        data_directory: impl Into<PathBuf>,
        instance: impl Into<String>,
        kernel: Kernel,
    ) -> Self {
        let instance = instance.into();
        Self {
            data_directory: data_directory.into(),
            first_id: machine::first_user(&instance),
            instance,
            jail_command: vec!["/proc/self/exe".into(), "jail".into()],
            program: None,
            kernel,
            accelerator: None,
        }
    }
}
