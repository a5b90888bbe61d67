//! Owners, modes, times and extended attributes.

use rustix::{
    fd::AsFd,
    fs::{Gid, Timespec, Timestamps, Uid},
    io::Errno,
};

/// The longest value of an extended attribute that Linux takes.
const VALUE_MAX: usize = 64 << 10;

/// Whether an image may set the extended attribute `name`.
///
/// `trusted.*` steers overlayfs, `user.overlay.*` does so for unprivileged mounts, and
/// `security.*` beside file capabilities belongs to the host's policy.
pub fn is_kept(name: &[u8], value: &[u8]) -> bool {
    value.len() <= VALUE_MAX
        && name.len() <= 255
        && !name.contains(&0)
        && (name == b"security.capability"
            || (name.starts_with(b"user.")
                && name.len() > 5
                && !name.starts_with(b"user.overlay.")))
}

/// Gives an open file to an owner and a group.
pub fn set_owner(file: impl AsFd, uid: u32, gid: u32) -> Result<(), Errno> {
    // All ones means "leave it" to the kernel; such an id belongs to nobody.
    rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

/// An id from an archive as the kernel takes it.
pub fn id(value: u64) -> Option<u32> {
    u32::try_from(value).ok().filter(|id| *id != u32::MAX)
}

/// Both times of a file, set to its time of modification, so that unpacking is deterministic.
pub fn times(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.0,
        tv_nsec: mtime.1.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_attributes_are_kept() {
        assert!(is_kept(b"user.mime", b"x"));
        assert!(is_kept(b"security.capability", b"x"));
        for name in [
            "trusted.overlay.opaque",
            "user.overlay.opaque",
            "security.selinux",
            "user.",
        ] {
            assert!(!is_kept(name.as_bytes(), b"y"), "{name}");
        }
        assert_eq!(id(u64::from(u32::MAX)), None);
        assert_eq!(id(1000), Some(1000));
    }
}
