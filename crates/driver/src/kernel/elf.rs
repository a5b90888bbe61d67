//! As much of ELF as is needed to read what a kernel module says of itself.

/// The first bytes of every ELF file.
pub const MAGIC: &[u8; 4] = b"\x7fELF";

fn number<const N: usize>(data: &[u8], at: usize) -> Option<u64> {
    let bytes = data.get(at..at.checked_add(N)?)?;
    let mut wide = [0; 8];
    wide.get_mut(..N)?.copy_from_slice(bytes);
    Some(u64::from_le_bytes(wide))
}

fn slice(data: &[u8], at: u64, length: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    data.get(at..at.checked_add(usize::try_from(length).ok()?)?)
}

/// The content of a section of a 64-bit little-endian ELF file; `None` if there is none of that
/// name, or the file is not what it should be.
pub fn section<'a>(file: &'a [u8], name: &str) -> Option<&'a [u8]> {
    if !file.starts_with(MAGIC) || file.get(4..6)? != [2, 1] {
        return None;
    }
    let table = number::<8>(file, 0x28)?;
    let size = number::<2>(file, 0x3a)?.max(0x40);
    let count = number::<2>(file, 0x3c)?;
    let names_at = number::<2>(file, 0x3e)?;
    let header = |index: u64| slice(file, table.checked_add(index.checked_mul(size)?)?, 0x40);
    let content =
        |header: &[u8]| slice(file, number::<8>(header, 0x18)?, number::<8>(header, 0x20)?);
    let names = content(header(names_at)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let own = names.get(usize::try_from(number::<4>(header, 0)?).ok()?..)?;
        let own = own.split(|byte| *byte == 0).next()?;
        if own == name.as_bytes() {
            content(header)
        } else {
            None
        }
    })
}

/// The modules that a kernel module depends on, by name; `None` if it says nothing of it.
pub fn module_dependencies(file: &[u8]) -> Option<Vec<String>> {
    let info = section(file, ".modinfo")?;
    let mut fields = info.split(|byte| *byte == 0);
    let depends = fields.find_map(|field| field.strip_prefix(b"depends="))?;
    let text = std::str::from_utf8(depends).ok()?;
    let names = text.split(',').filter(|name| !name.is_empty());
    Some(names.map(str::to_owned).collect())
}
