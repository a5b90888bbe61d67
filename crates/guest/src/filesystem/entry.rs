//! What is known about a path.

use crate::{accounts::Names, metadata, paths};
use api::envd::filesystem::{EntryInfo, FileType};
use jiff::Timestamp;
use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

/// Looks at a path. Of a link, type and mode are those of what it leads to.
pub fn look(path: &Path, names: &Names) -> io::Result<EntryInfo> {
    let found = fs::symlink_metadata(path)?;
    Ok(describe(path, path, &found, names))
}

/// Describes what was found at `real` to who knows it as `shown`.
pub fn describe(shown: &Path, real: &Path, found: &Metadata, names: &Names) -> EntryInfo {
    let is_symlink = found.is_symlink();
    let target =
        is_symlink.then(|| fs::canonicalize(real).unwrap_or_else(|_| PathBuf::from(shown)));
    let led_to = if is_symlink {
        fs::metadata(real).ok()
    } else {
        None
    };
    let (file_type, mode) = match (&led_to, is_symlink) {
        (Some(led_to), _) => (kind(led_to), led_to.mode() & 0o777),
        (None, true) => (FileType::Unspecified, 0),
        (None, false) => (kind(found), found.mode() & 0o777),
    };
    EntryInfo {
        name: paths::name(shown),
        file_type,
        path: shown.to_string_lossy().into_owned(),
        size: i64::try_from(found.len()).unwrap_or(i64::MAX),
        mode,
        permissions: permissions(found),
        owner: names.user(found.uid()),
        group: names.group(found.gid()),
        modified_time: modified(found),
        symlink_target: target.map(|target| target.to_string_lossy().into_owned()),
        metadata: if is_symlink {
            metadata::Metadata::new()
        } else {
            metadata::read(real)
        },
        is_symlink,
    }
}

fn kind(found: &Metadata) -> FileType {
    if found.is_file() {
        FileType::File
    } else if found.is_dir() {
        FileType::Directory
    } else {
        FileType::Unspecified
    }
}

fn modified(found: &Metadata) -> Option<Timestamp> {
    Timestamp::new(found.mtime(), i32::try_from(found.mtime_nsec()).ok()?).ok()
}

/// Letters for the type and special bits, then the nine of the permissions, as clients are used
/// to from Go: `-rw-r--r--`, `drwxr-xr-x`, `Lrwxrwxrwx`, `dtrwxrwxrwx`.
pub fn permissions(found: &Metadata) -> String {
    let file_type = found.file_type();
    let mode = found.mode();
    let mut text = String::with_capacity(12);
    for (set, letters) in [
        (found.is_dir(), "d"),
        (found.is_symlink(), "L"),
        (
            file_type.is_block_device() || file_type.is_char_device(),
            "D",
        ),
        (file_type.is_fifo(), "p"),
        (file_type.is_socket(), "S"),
        (mode & 0o4000 != 0, "u"),
        (mode & 0o2000 != 0, "g"),
        (file_type.is_char_device(), "c"),
        (mode & 0o1000 != 0, "t"),
    ] {
        if set {
            text.push_str(letters);
        }
    }
    if text.is_empty() {
        text.push('-');
    }
    for (index, letter) in "rwxrwxrwx".chars().enumerate() {
        text.push(if mode & (0o400 >> index) != 0 {
            letter
        } else {
            '-'
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn links_tell_what_they_lead_to() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "hello").unwrap();
        fs::set_permissions(at("file"), fs::Permissions::from_mode(0o4640)).unwrap();
        symlink("file", at("link")).unwrap();
        symlink("missing", at("broken")).unwrap();
        let names = Names::load();
        let file = look(&at("file"), &names).unwrap();
        assert_eq!(
            (file.file_type, file.size, file.mode),
            (FileType::File, 5, 0o640)
        );
        assert_eq!(
            (file.permissions.as_str(), file.owner.as_str()),
            ("urw-r-----", "root")
        );
        let link = look(&at("link"), &names).unwrap();
        assert_eq!(
            (link.file_type, link.mode, link.is_symlink),
            (FileType::File, 0o640, true)
        );
        assert_eq!(link.permissions, "Lrwxrwxrwx");
        let target = fs::canonicalize(at("file")).unwrap();
        assert_eq!(link.symlink_target.as_deref(), target.to_str());
        let broken = look(&at("broken"), &names).unwrap();
        assert_eq!(
            (broken.file_type, broken.is_symlink),
            (FileType::Unspecified, true)
        );
        assert_eq!(
            permissions(&fs::metadata("/dev/null").unwrap()),
            "Dcrw-rw-rw-"
        );
        assert_eq!(permissions(&fs::metadata("/tmp").unwrap()), "dtrwxrwxrwx");
    }
}
