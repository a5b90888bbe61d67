//! What an image may ask of the machine.

/// Bounds on what is unpacked. An image that exceeds one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries in one layer.
    pub entries: u64,
    /// Bytes of files in one layer, counted as files read them: a hole counts.
    pub bytes: u64,
    /// Bytes that one layer may take when stored compressed, as its publisher states them.
    pub compressed_bytes: u64,
    /// Layers in one image.
    pub layers: usize,
    /// Bytes of a path.
    pub path: usize,
    /// Directories within directories.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            bytes: 64 << 30,
            compressed_bytes: 32 << 30,
            layers: 128,
            path: 4095,
            depth: 256,
        }
    }
}

/// Which limit was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has more than {limit} {what}")]
pub struct LimitExceeded {
    /// What there is too much of.
    pub what: &'static str,
    /// The limit.
    pub limit: u64,
}
