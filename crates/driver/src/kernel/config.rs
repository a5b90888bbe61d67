//! What a kernel was built with.

use std::collections::BTreeMap;

/// An option that microVMs need.
#[derive(Debug, Clone, Copy)]
struct Need {
    /// Any of these will do.
    options: &'static [&'static str],
    /// Whether it may be a module: those are loaded by the guest.
    module: bool,
    /// What is missing without it.
    what: &'static str,
}

const fn need(options: &'static [&'static str], module: bool, what: &'static str) -> Need {
    Need {
        options,
        module,
        what,
    }
}

const NEEDS: &[Need] = &[
    need(&["64BIT"], false, "64-bit programs"),
    need(&["BLK_DEV_INITRD"], false, "an initial file system"),
    need(&["DEVTMPFS"], false, "device files"),
    need(&["TMPFS"], false, "shared memory (/dev/shm)"),
    need(&["UNIX98_PTYS"], false, "terminals"),
    need(&["INOTIFY_USER"], false, "watching files"),
    need(
        &["SERIAL_8250_CONSOLE"],
        false,
        "the console that the start is followed on",
    ),
    need(&["PVH"], false, "starting from an ELF image in QEMU"),
    need(
        &["ACPI", "VIRTIO_MMIO_CMDLINE_DEVICES"],
        false,
        "finding devices without PCI",
    ),
    need(&["VIRTIO_MMIO"], true, "devices"),
    need(&["VIRTIO_BLK"], true, "disks"),
    need(&["VIRTIO_NET"], true, "the network"),
    need(&["EXT4_FS"], true, "the writable disk"),
    need(&["EROFS_FS"], true, "the template's disk"),
    need(
        &["OVERLAY_FS"],
        true,
        "a writable layer over the template's disk",
    ),
    need(
        &["RELOCATABLE"],
        false,
        "being loaded where a hypervisor wants",
    ),
];

/// A kernel's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// `y` or `m` by option, without `CONFIG_`.
    options: BTreeMap<String, char>,
}

impl Config {
    /// Reads the text of a `.config`. Lines that make no sense are skipped.
    pub fn parse(text: &str) -> Self {
        let options = text.lines().filter_map(|line| {
            let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            match value {
                "y" => Some((name.to_owned(), 'y')),
                "m" => Some((name.to_owned(), 'm')),
                _ => None,
            }
        });
        Self {
            options: options.collect(),
        }
    }

    fn has(&self, option: &str, module: bool) -> bool {
        match self.options.get(option) {
            Some('y') => true,
            Some(_) => module && self.has("MODULES", false),
            None => false,
        }
    }

    /// What microVMs need and this kernel has not, half a sentence each.
    pub fn missing(&self) -> Vec<String> {
        let missing = NEEDS.iter().filter(|need| {
            !need
                .options
                .iter()
                .any(|option| self.has(option, need.module))
        });
        missing
            .map(|need| {
                let how = if need.module { "y or m" } else { "y" };
                let options: Vec<String> = need
                    .options
                    .iter()
                    .map(|option| format!("CONFIG_{option}={how}"))
                    .collect();
                format!("{} is missing, for {}", options.join(" or "), need.what)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_purpose() {
        let all: String = NEEDS
            .iter()
            .filter_map(|need| need.options.first())
            .map(|option| format!("CONFIG_{option}=y\n"))
            .collect();
        assert_eq!(Config::parse(&all).missing(), [""; 0]);
        let less = all
            .replace("CONFIG_EROFS_FS=y", "# CONFIG_EROFS_FS is not set")
            .replace("CONFIG_PVH=y", "CONFIG_PVH=m\nCONFIG_MODULES=y")
            .replace("CONFIG_VIRTIO_BLK=y", "CONFIG_VIRTIO_BLK=m");
        assert_eq!(
            Config::parse(&less).missing(),
            [
                "CONFIG_PVH=y is missing, for starting from an ELF image in QEMU",
                "CONFIG_EROFS_FS=y or m is missing, for the template's disk",
            ]
        );
    }
}
