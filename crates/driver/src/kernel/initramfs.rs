//! The initial file system: a cpio archive of the form that the kernel calls `newc`.
//!
//! Not compressed: it is in the page cache, and unpacking costs an emulated processor more than
//! reading. The same input makes the same bytes.

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// An archive that holds the guest's program as `/init` and modules in `/modules`, with their
/// `order`.
pub(super) fn write(guest: &[u8], order: &str, modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.add("init", PROGRAM, guest);
    if !modules.is_empty() {
        archive.add("modules", DIRECTORY, &[]);
        archive.add("modules/order", FILE, order.as_bytes());
        for (name, content) in modules {
            archive.add(&format!("modules/{name}"), FILE, content);
        }
    }
    archive.add("TRAILER!!!", 0, &[]);
    archive.bytes
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    next: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.next += 1;
        let links = if mode & 0o040_000 != 0 { 2 } else { 1 };
        // Inode, mode, user, group, links, time, size, device (two), the node's device (two),
        // length of the name with its NUL, checksum.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let length = name.len() as u32 + 1;
        let fields = [self.next, mode, 0, 0, links, 0, size, 0, 0, 0, 0, length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
