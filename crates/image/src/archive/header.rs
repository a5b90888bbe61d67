//! One 512-byte tar header: ustar (POSIX.1-1988), GNU and version 7.

/// The unit in which tar archives are laid out.
pub const BLOCK: usize = 512;

/// The fixed part of an entry, before long names and extended records are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Name with the ustar prefix.
    pub path: Vec<u8>,
    /// Link target.
    pub link: Vec<u8>,
    /// Permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Bytes of data that follow.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// The type flag.
    pub flag: u8,
}

/// A stretch of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it lies in the file.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// Reads a header; `None` for a block of zeros, which ends an archive.
///
/// The error is what is wrong with the block.
pub fn parse_header(block: &[u8; BLOCK]) -> Result<Option<Header>, &'static str> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let stated = number(&block[148..156]).ok_or("its checksum is not a number")?;
    let (mut unsigned, mut signed) = (0u64, 0i64);
    for (at, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) {
            b' '
        } else {
            *byte
        };
        unsigned += u64::from(byte);
        signed += i64::from(byte as i8);
    }
    // Some old programs added signed bytes.
    if stated != i128::from(unsigned) && stated != i128::from(signed) {
        return Err("its checksum is wrong");
    }
    let mut path = text(&block[..100]).to_vec();
    if &block[257..263] == b"ustar\0" {
        let prefix = text(&block[345..500]);
        if !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
    }
    let unsigned_field = |range: std::ops::Range<usize>, what| {
        number(&block[range])
            .and_then(|value| u64::try_from(value).ok())
            .ok_or(what)
    };
    Ok(Some(Header {
        path,
        link: text(&block[157..257]).to_vec(),
        mode: (unsigned_field(100..108, "its mode is not a number")? & 0o7777) as u32,
        uid: unsigned_field(108..116, "its owner is not a number")?,
        gid: unsigned_field(116..124, "its group is not a number")?,
        size: unsigned_field(124..136, "its size is not a number")?,
        mtime: number(&block[136..148])
            .and_then(|value| i64::try_from(value).ok())
            .ok_or("its time is not a number")?,
        flag: block[156],
    }))
}

/// The sparse map in an old GNU header: segments, whether more blocks of it follow, and the
/// file's full size.
pub fn parse_gnu_sparse(block: &[u8; BLOCK]) -> Result<(Vec<Segment>, bool, u64), &'static str> {
    let size = number(&block[483..495])
        .and_then(|value| u64::try_from(value).ok())
        .ok_or("its full size is not a number")?;
    Ok((segments(&block[386..482])?, block[482] != 0, size))
}

/// A continuation of the sparse map in an old GNU archive: segments and whether more follow.
pub fn parse_gnu_sparse_more(block: &[u8; BLOCK]) -> Result<(Vec<Segment>, bool), &'static str> {
    Ok((segments(&block[..504])?, block[504] != 0))
}

fn segments(bytes: &[u8]) -> Result<Vec<Segment>, &'static str> {
    let mut found = Vec::new();
    for pair in bytes.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let part = |bytes| number(bytes).and_then(|value| u64::try_from(value).ok());
        let (Some(offset), Some(length)) = (part(&pair[..12]), part(&pair[12..])) else {
            return Err("its sparse map is not made of numbers");
        };
        found.push(Segment { offset, length });
    }
    Ok(found)
}

/// The bytes before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    &field[..end]
}

/// An octal number in text, or GNU's base-256 form; an empty field is 0.
fn number(field: &[u8]) -> Option<i128> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // Two's complement, most significant byte first; the top bit is only the marker.
        let mut value = i128::from(first & 0x3f);
        if first & 0x40 != 0 {
            value -= 0x40;
        }
        for byte in rest {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return Some(value);
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0i128, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i128::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_all_forms() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b" 644 \0\0\0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"12x4"), None);
        assert_eq!(number(&[0x80, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff]), Some(-1));
    }

    #[test]
    fn a_header_made_by_another_library_is_read() {
        let mut made = tar::Header::new_ustar();
        made.set_path(format!("{}/{}", "d".repeat(120), "f".repeat(60)))
            .unwrap();
        made.set_mode(0o4755);
        made.set_uid(7);
        made.set_gid(8);
        made.set_size(9);
        made.set_mtime(10);
        made.set_entry_type(tar::EntryType::Regular);
        made.set_cksum();
        let read = parse_header(made.as_bytes()).unwrap().unwrap();
        assert_eq!(read.path, made.path_bytes().to_vec());
        assert_eq!((read.mode, read.uid, read.gid), (0o4755, 7, 8));
        assert_eq!((read.size, read.mtime, read.flag), (9, 10, b'0'));
    }

    #[test]
    fn a_damaged_header_is_refused() {
        let mut made = tar::Header::new_gnu();
        made.set_path("x").unwrap();
        made.set_size(0);
        made.set_cksum();
        let mut bytes = *made.as_bytes();
        bytes[0] = b'y';
        assert_eq!(parse_header(&bytes), Err("its checksum is wrong"));
        assert_eq!(parse_header(&[0; BLOCK]), Ok(None));
    }
}
