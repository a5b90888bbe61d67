//! Users' labels on files: `X-Metadata-*` headers on the wire, extended attributes `user.e2b.*`
//! on the disk.

use std::{collections::BTreeMap, fs::File, io, os::fd::AsFd, path::Path};

/// Before a label's key on the disk.
pub const ATTRIBUTE_PREFIX: &str = "user.e2b.";
/// Before a label's key on the wire.
pub const HEADER_PREFIX: &str = "x-metadata-";
/// The longest key: the kernel's limit of 255 bytes, less the prefix.
const KEY_LIMIT: usize = 246;
/// The most that all keys and values of a file may hold together.
const TOTAL_LIMIT: usize = 4096;
/// More attributes than this are not looked at.
const NAMES_LIMIT: usize = 64 << 10;

/// Labels by key.
pub type Metadata = BTreeMap<String, String>;

/// Why labels are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Nothing behind the prefix, or too much.
    #[error("metadata key '{0}' must have 1 to {KEY_LIMIT} bytes")]
    Key(String),
    /// Not printable ASCII.
    #[error("metadata value of key '{0}' must be printable ASCII")]
    Value(String),
    /// All together are too long.
    #[error("metadata is larger than {TOTAL_LIMIT} bytes")]
    TooLarge,
}

/// Takes the labels out of a request's headers.
pub fn parse(headers: &http::HeaderMap) -> Result<Metadata, MetadataError> {
    let mut metadata = Metadata::new();
    let mut total = 0;
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(HEADER_PREFIX) else {
            continue;
        };
        if key.is_empty() || key.len() > KEY_LIMIT {
            return Err(MetadataError::Key(key.chars().take(KEY_LIMIT).collect()));
        }
        // `to_str` takes visible ASCII and tabs only.
        let value = value
            .to_str()
            .map_err(|_| MetadataError::Value(key.to_owned()))?;
        total += key.len() + value.len();
        if total > TOTAL_LIMIT {
            return Err(MetadataError::TooLarge);
        }
        metadata.insert(key.to_owned(), value.to_owned());
    }
    Ok(metadata)
}

/// Takes the labels' keys out of what `listxattr` returns: names, each ended by a NUL.
fn keys(names: &[u8]) -> impl Iterator<Item = &str> {
    let names = names
        .split(|byte| *byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok());
    names
        .filter_map(|name| name.strip_prefix(ATTRIBUTE_PREFIX))
        .filter(|key| !key.is_empty())
}

fn unsupported(error: rustix::io::Errno) -> bool {
    matches!(
        error,
        rustix::io::Errno::NOTSUP | rustix::io::Errno::NODATA | rustix::io::Errno::PERM
    )
}

/// Replaces all labels of a file. A file system without extended attributes is an error only if
/// there is something to write.
pub fn replace(file: &File, metadata: &Metadata) -> io::Result<()> {
    let mut names = vec![0; 1024];
    let length = match rustix::fs::flistxattr(file.as_fd(), &mut names) {
        Err(rustix::io::Errno::RANGE) => {
            names.resize(NAMES_LIMIT, 0);
            rustix::fs::flistxattr(file.as_fd(), &mut names)
        }
        other => other,
    };
    for key in keys(names.get(..length.unwrap_or(0)).unwrap_or_default()) {
        if !metadata.contains_key(key) {
            let name = format!("{ATTRIBUTE_PREFIX}{key}");
            match rustix::fs::fremovexattr(file.as_fd(), name) {
                Err(error) if !unsupported(error) => return Err(error.into()),
                _ => {}
            }
        }
    }
    for (key, value) in metadata {
        let name = format!("{ATTRIBUTE_PREFIX}{key}");
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(file.as_fd(), name, value.as_bytes(), flags)?;
    }
    Ok(())
}

/// The labels of a path, none where they cannot be read. Does not follow a link.
pub fn read(path: &Path) -> Metadata {
    let mut metadata = Metadata::new();
    let mut names = [0; 1024];
    let mut many = Vec::new();
    let names: &[u8] = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => names.get(..length).unwrap_or_default(),
        Err(rustix::io::Errno::RANGE) => {
            many.resize(NAMES_LIMIT, 0);
            let length = rustix::fs::llistxattr(path, &mut many).unwrap_or(0);
            many.get(..length).unwrap_or_default()
        }
        Err(_) => return metadata,
    };
    for key in keys(names) {
        let mut value = [0; TOTAL_LIMIT];
        let name = format!("{ATTRIBUTE_PREFIX}{key}");
        if let Ok(length) = rustix::fs::lgetxattr(path, name, &mut value) {
            let value = value.get(..length).unwrap_or_default();
            metadata.insert(key.to_owned(), String::from_utf8_lossy(value).into_owned());
        }
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_pairs(pairs: &[(&str, &str)]) -> Result<Metadata, MetadataError> {
        let mut headers = http::HeaderMap::new();
        for (name, value) in pairs {
            let name: http::HeaderName = name.parse().unwrap();
            headers.insert(
                name,
                http::HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        parse(&headers)
    }

    #[test]
    fn labels_come_from_headers() {
        let metadata =
            parse_pairs(&[("X-Metadata-Author", "me"), ("Content-Type", "a/b")]).unwrap();
        assert_eq!(metadata, Metadata::from([("author".into(), "me".into())]));
        let long = format!("X-Metadata-{}", "k".repeat(247));
        assert!(matches!(
            parse_pairs(&[(&long, "v")]),
            Err(MetadataError::Key(_))
        ));
        let large = "v".repeat(4096);
        assert_eq!(
            parse_pairs(&[("X-Metadata-a", &large)]),
            Err(MetadataError::TooLarge)
        );
        assert!(matches!(
            parse_pairs(&[("X-Metadata-a", "é")]),
            Err(MetadataError::Value(_))
        ));
    }

    #[test]
    fn each_write_replaces_the_whole_set() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = directory.path().join("file");
        let file = File::create(&path).unwrap();
        let set = |pairs: &[(&str, &str)]| {
            let labels = pairs
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()));
            let labels: Metadata = labels.collect();
            replace(&file, &labels).unwrap();
            assert_eq!(read(&path), labels);
        };
        set(&[("a", "1"), ("b", "2")]);
        set(&[("b", "3")]);
        set(&[]);
    }
}
