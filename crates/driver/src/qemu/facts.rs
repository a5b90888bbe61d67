//! What a memory snapshot is bound to, as it is here and now.

use super::{accelerator::Accelerator, runtime::Runtime};
use crate::{kernel::Kernel, state::HostFacts};

/// What is true here.
pub(super) fn gather(runtime: &Runtime, accelerator: Accelerator, kernel: &Kernel) -> HostFacts {
    HostFacts {
        program: runtime.version.clone(),
        accelerator: accelerator.name().into(),
        processor: accelerator.processor_facts(),
        kernel: format!("{}, {}", kernel.release, short(&kernel.digest)),
        guest: short(&kernel.guest_digest),
    }
}

/// Enough of a digest to tell contents apart.
fn short(digest: &str) -> String {
    digest.chars().take(32).collect()
}

/// Bytes as lower-case hexadecimal digits.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
