//! What a memory snapshot is bound to, as it is here and now.

use super::hexadecimal;
use crate::{kernel::Kernel, state::HostFacts};
use api::boot::GUEST_PROTOCOL;
use sha2::{Digest, Sha256};
use std::fs;

impl HostFacts {
    /// What is true here, of a hypervisor, how it runs instructions, the processor that its guests
    /// see, their kernel and program, and the layout of its machines.
    pub(crate) fn here(
        program: String,
        accelerator: &str,
        processor: String,
        kernel: &Kernel,
        layout: u32,
    ) -> Self {
        Self {
            program,
            accelerator: accelerator.into(),
            processor,
            kernel: format!("{}, {}", kernel.release, short(&kernel.digest)),
            guest: short(&kernel.guest_digest),
            protocol: GUEST_PROTOCOL,
            layout,
            counter_khz: None,
        }
    }
}

/// Model and features of this host's processor, as one line to compare.
pub(crate) fn host_processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map_or("", |(_, value)| value.trim())
    };
    let features = Sha256::digest(field("flags"));
    format!(
        "{}, features {}",
        field("model name"),
        hexadecimal(&features[..8])
    )
}

/// Enough of a digest to tell contents apart.
fn short(digest: &str) -> String {
    digest.chars().take(32).collect()
}
