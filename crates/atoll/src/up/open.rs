//! The driver that was chosen, opened. Blocks: a guest's kernel may have to be fetched first.

use super::machines::FirecrackerArguments;
use crate::failure::Failure;
use driver::{
    Driver, DriverError, DriverKind,
    cgroup::IoLimits,
    container::{Container, ContainerOptions},
    firecracker::{Firecracker, FirecrackerOptions},
    kernel::Kernel,
    probe,
    qemu::{Qemu, QemuOptions},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What every driver is opened with.
pub(super) struct Opening {
    pub(super) kind: DriverKind,
    pub(super) data_directory: PathBuf,
    pub(super) instance: String,
    /// The guest's kernel; the distribution's if absent.
    pub(super) kernel: Option<PathBuf>,
    /// What only that driver takes.
    pub(super) firecracker: FirecrackerArguments,
    /// What a container may read and write of its disk; unbounded if absent.
    pub(super) disk_limits: Option<IoLimits>,
}

impl Opening {
    /// Whether sandboxes are machines, which want a tap in their slots.
    pub(super) fn machines(&self) -> bool {
        self.kind != DriverKind::Container
    }

    pub(super) fn open(self) -> anyhow::Result<Arc<dyn Driver>> {
        match self.kind {
            DriverKind::Container => {
                let mut options = ContainerOptions::new(&self.data_directory, &self.instance);
                options.io = self.disk_limits;
                Ok(Arc::new(Container::new(options).map_err(explain)?))
            }
            DriverKind::Qemu => {
                let kernel = find_kernel(&self.data_directory, self.kernel.as_deref())?;
                let options = QemuOptions::new(self.data_directory, self.instance, kernel);
                Ok(Arc::new(Qemu::new(options).map_err(explain)?))
            }
            DriverKind::Firecracker => {
                let program = installed("firecracker")?;
                let jailer = installed("jailer")?;
                let kernel = find_kernel(&self.data_directory, self.kernel.as_deref())?;
                let mut options = FirecrackerOptions::new(
                    self.data_directory,
                    self.instance,
                    (program, jailer),
                    kernel,
                );
                self.firecracker.apply(&mut options);
                Ok(Arc::new(Firecracker::new(options).map_err(explain)?))
            }
        }
    }
}

fn installed(program: &str) -> anyhow::Result<PathBuf> {
    probe::find_program(program).ok_or_else(|| {
        Failure::new(
            format!("`{program}` is not installed"),
            "put Firecracker's release of it where programs are, or use --driver qemu",
        )
        .into()
    })
}

fn find_kernel(data_directory: &Path, given: Option<&Path>) -> anyhow::Result<Kernel> {
    let tell = |step: &str| tracing::info!("{step}");
    let kernel = Kernel::find(data_directory, given, tell).map_err(explain)?;
    tracing::info!("guests run Linux {}", kernel.release);
    for note in &kernel.notes {
        tracing::debug!("{note}");
    }
    Ok(kernel)
}

/// The driver's error with the remedy that it brings.
fn explain(error: DriverError) -> anyhow::Error {
    match error {
        DriverError::Unsupported { cause, remedy } => Failure::new(cause, remedy).into(),
        other => other.into(),
    }
}
