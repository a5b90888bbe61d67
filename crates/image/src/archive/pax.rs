//! Extended records of POSIX.1-2001 (pax), with the keys that matter for a root file system.

use super::header::Segment;

/// What the extended records of one entry say. Absent means that the header holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extended {
    /// `path`
    pub path: Option<Vec<u8>>,
    /// `linkpath`
    pub link: Option<Vec<u8>>,
    /// `size`
    pub size: Option<u64>,
    /// `uid`
    pub uid: Option<u64>,
    /// `gid`
    pub gid: Option<u64>,
    /// `mtime`: seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// `SCHILY.xattr.*`: name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.*`
    pub sparse: Option<Sparse>,
}

/// GNU's records about a sparse file, in its three pax dialects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sparse {
    /// The map stands at the start of the data (dialect 1.0).
    pub map_in_data: bool,
    /// The file's real name.
    pub name: Option<Vec<u8>>,
    /// The file's full size.
    pub size: Option<u64>,
    /// The map, in the dialects that put it into records.
    pub map: Vec<Segment>,
}

/// The most segments that a sparse map may have.
pub const SEGMENTS_MAX: usize = 1 << 20;

/// Reads the records in `data`; the error is what is wrong with them.
pub fn parse_extended(mut data: &[u8]) -> Result<Extended, &'static str> {
    let mut extended = Extended::default();
    let mut pending_offset = None;
    while !data.is_empty() {
        let space = data
            .iter()
            .take(20)
            .position(|byte| *byte == b' ')
            .ok_or("an extended record has no length")?;
        let length: usize = decimal(&data[..space])
            .and_then(|length| usize::try_from(length).ok())
            .ok_or("an extended record's length is not a number")?;
        if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
            return Err("an extended record's length is wrong");
        }
        let record = &data[space + 1..length - 1];
        data = &data[length..];
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or("an extended record has no value")?;
        apply(
            &mut extended,
            &mut pending_offset,
            &record[..equals],
            &record[equals + 1..],
        )?;
    }
    Ok(extended)
}

fn apply(
    extended: &mut Extended,
    pending_offset: &mut Option<u64>,
    key: &[u8],
    value: &[u8],
) -> Result<(), &'static str> {
    const NUMBER: &str = "an extended record's value is not a number";
    // An empty value takes an earlier record back.
    let bytes = || (!value.is_empty()).then(|| value.to_vec());
    let number = || {
        if value.is_empty() {
            Ok(None)
        } else {
            decimal(value).map(Some).ok_or(NUMBER)
        }
    };
    match key {
        b"path" => extended.path = bytes(),
        b"linkpath" => extended.link = bytes(),
        b"size" => extended.size = number()?,
        b"uid" => extended.uid = number()?,
        b"gid" => extended.gid = number()?,
        b"mtime" => {
            extended.mtime = match value {
                b"" => None,
                value => Some(time(value).ok_or(NUMBER)?),
            }
        }
        b"GNU.sparse.major" => sparse(extended).map_in_data = value == b"1",
        b"GNU.sparse.minor" | b"GNU.sparse.numblocks" => _ = sparse(extended),
        b"GNU.sparse.name" => sparse(extended).name = bytes(),
        b"GNU.sparse.realsize" | b"GNU.sparse.size" => sparse(extended).size = number()?,
        b"GNU.sparse.offset" => *pending_offset = number()?,
        b"GNU.sparse.numbytes" => {
            let (Some(offset), Some(length)) = (pending_offset.take(), number()?) else {
                return Err("a sparse map has a length without an offset");
            };
            sparse(extended).map.push(Segment { offset, length });
        }
        b"GNU.sparse.map" => {
            let numbers: Option<Vec<u64>> =
                value.split(|byte| *byte == b',').map(decimal).collect();
            let numbers = numbers.ok_or(NUMBER)?;
            sparse(extended).map = numbers
                .chunks_exact(2)
                .map(|pair| Segment {
                    offset: pair[0],
                    length: pair[1],
                })
                .collect();
        }
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                extended.xattrs.retain(|(known, _)| known != name);
                extended.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Ok(())
}

fn sparse(extended: &mut Extended) -> &mut Sparse {
    extended.sparse.get_or_insert_default()
}

/// A decimal number without sign.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `1700000000.25`, also negative.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text
        .iter()
        .position(|byte| *byte == b'.')
        .unwrap_or(text.len());
    let seconds = i64::try_from(decimal(&text[..dot])?).ok()?;
    let mut fraction: Vec<u8> = text.get(dot + 1..).unwrap_or_default().to_vec();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    fraction.resize(9, b'0');
    let nanoseconds = u32::try_from(decimal(&fraction)?).ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &str) -> String {
        let mut length = key.len() + value.len() + 3;
        loop {
            let text = format!("{length} {key}={value}\n");
            if text.len() == length {
                return text;
            }
            length = text.len();
        }
    }

    #[test]
    fn records_are_read() {
        let text = [
            record("path", &"long/".repeat(30)),
            record("mtime", "-1.25"),
            record("uid", "70000"),
            record("SCHILY.xattr.user.a", "x=y\nz"),
            record("GNU.sparse.map", "0,10,100,5"),
            record("GNU.sparse.size", "200"),
        ]
        .concat();
        let read = parse_extended(text.as_bytes()).unwrap();
        assert_eq!(read.path.unwrap(), "long/".repeat(30).as_bytes());
        assert_eq!(read.mtime, Some((-2, 750_000_000)));
        assert_eq!(read.uid, Some(70000));
        assert_eq!(read.xattrs, [(b"user.a".to_vec(), b"x=y\nz".to_vec())]);
        let sparse = read.sparse.unwrap();
        assert_eq!(sparse.size, Some(200));
        assert_eq!(
            sparse.map[1],
            Segment {
                offset: 100,
                length: 5
            }
        );
    }

    #[test]
    fn damaged_records_are_refused() {
        for text in [
            "8 path=x\n",
            "x path=y\n",
            "5 a=b",
            "6 abc\n",
            "99999999999999999999 a=b\n",
        ] {
            assert!(parse_extended(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
