//! How a machine's instructions run.

use crate::{kernel::Hypervisor, kvm, microvm::host_processor};
use serde::{Deserialize, Serialize};

/// How a machine's instructions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the processor, through the kernel.
    Kvm,
    /// By translation: slower, and on any machine.
    Tcg,
}

impl Accelerator {
    /// KVM where it runs code, else translation. Blocks for at most some 100 ms.
    pub fn choose() -> Self {
        match kvm::usable() {
            Ok(()) => Self::Kvm,
            Err(_) => Self::Tcg,
        }
    }

    /// Its name as QEMU knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// What the kernel is started by.
    pub(super) fn hypervisor(self) -> Hypervisor {
        match self {
            Self::Kvm => Hypervisor::QemuKvm,
            Self::Tcg => Hypervisor::QemuTcg,
        }
    }

    /// The processor model that QEMU gives the guest.
    pub(super) fn processor(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }

    /// Model and features that the guest sees, as one line to compare.
    pub(super) fn processor_facts(self) -> String {
        match self {
            // All features that the translator knows, whatever the host has.
            Self::Tcg => self.processor().into(),
            Self::Kvm => host_processor(),
        }
    }
}
