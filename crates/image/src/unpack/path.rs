//! Names as archives give them, made into paths below a root. Pure.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

/// The longest name of one file that Linux file systems take.
pub const NAME_MAX: usize = 255;

/// Why an entry's name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It has a part `..`, which no honest archive needs.
    #[error("its path goes up with `..`")]
    GoesUp,
    /// It has a NUL byte.
    #[error("its path holds a NUL byte")]
    Nul,
    /// It is too long, as a whole or in a part.
    #[error("its path is too long")]
    TooLong,
}

/// A path below a root: parts that are names, none of them empty, `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct EntryPath(Vec<u8>);

impl EntryPath {
    /// Reads a name out of an archive. An absolute one is taken as relative to the root, as every
    /// unpacker does.
    pub fn parse(name: &[u8], limit: usize) -> Result<Self, PathError> {
        if name.contains(&0) {
            return Err(PathError::Nul);
        }
        let mut path = Vec::with_capacity(name.len());
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err(PathError::GoesUp),
                _ if part.len() > NAME_MAX => return Err(PathError::TooLong),
                _ => {}
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
            if path.len() > limit {
                return Err(PathError::TooLong);
            }
        }
        Ok(Self(path))
    }

    /// Whether this is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory and the name in it; `None` for the root.
    pub fn split(&self) -> Option<(&Path, &OsStr)> {
        if self.is_root() {
            return None;
        }
        let (directory, name) = match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&self.0[..at], &self.0[at + 1..]),
            None => (&self.0[..0], &self.0[..]),
        };
        Some((
            Path::new(OsStr::from_bytes(directory)),
            OsStr::from_bytes(name),
        ))
    }

    /// As a relative path; empty for the root.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

/// What a name in a layer means (OCI image specification, "Whiteouts").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameMeaning<'a> {
    /// A file of that name.
    Plain,
    /// The file of this name in lower layers is gone.
    Whiteout(&'a OsStr),
    /// All of the directory in lower layers is gone.
    Opaque,
    /// Reserved, and nothing that may be unpacked.
    Reserved,
}

/// Tells what `name` means in a layer.
pub fn meaning(name: &OsStr) -> NameMeaning<'_> {
    let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") else {
        return NameMeaning::Plain;
    };
    match hidden {
        b".wh..opq" => NameMeaning::Opaque,
        b"" | b"." | b".." => NameMeaning::Reserved,
        _ if hidden.starts_with(b".wh.") => NameMeaning::Reserved,
        _ => NameMeaning::Whiteout(OsStr::from_bytes(hidden)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, expected: Result<&str, PathError>) {
        let parsed = EntryPath::parse(name.as_bytes(), 4095);
        assert_eq!(
            parsed.as_ref().map(|path| path.as_path().to_str().unwrap()),
            expected.as_ref().map(|text| *text)
        );
    }

    #[test]
    fn names_become_paths_below_the_root() {
        check("./usr//bin/./env", Ok("usr/bin/env"));
        check("/etc/passwd", Ok("etc/passwd"));
        check("./", Ok(""));
        check("...", Ok("..."));
        check("../etc/passwd", Err(PathError::GoesUp));
        check("a/../../b", Err(PathError::GoesUp));
        check("a/..", Err(PathError::GoesUp));
        check("a\0b", Err(PathError::Nul));
        check(&"n".repeat(256), Err(PathError::TooLong));
        check(&"n/".repeat(4000), Err(PathError::TooLong));
    }

    #[test]
    fn whiteouts_never_name_more_than_a_file() {
        assert_eq!(
            meaning(OsStr::new(".wh.x")),
            NameMeaning::Whiteout(OsStr::new("x"))
        );
        assert_eq!(meaning(OsStr::new(".wh..wh..opq")), NameMeaning::Opaque);
        for name in [".wh.", ".wh..", ".wh...", ".wh..wh.plnk"] {
            assert_eq!(meaning(OsStr::new(name)), NameMeaning::Reserved, "{name}");
        }
    }
}
