//! Work on trees of files. All of it may wait for a disk.

use super::entry;
use crate::accounts::{Names, User};
use api::envd::{
    connect::{Code, ConnectError},
    filesystem::EntryInfo,
};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, chown},
    path::{Path, PathBuf},
};

/// More entries are not listed at once.
const LIST_LIMIT: usize = 100_000;

/// Why a directory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// Something on the way is not a directory.
    #[error("path is a file: {0}")]
    NotDirectory(String),
    /// The kernel refused.
    #[error("failed to create directory: {0}")]
    Io(#[from] io::Error),
}

/// Makes a directory and those above it that are missing; what is made belongs to the user.
pub fn ensure_directories(path: &Path, user: &User) -> Result<(), MakeError> {
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        match fs::metadata(ancestor) {
            Ok(found) if found.is_dir() => break,
            Ok(_) => return Err(MakeError::NotDirectory(ancestor.display().to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            // A file further up says this of all that is below it.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => return Err(error.into()),
        }
    }
    for ancestor in missing.into_iter().rev() {
        match fs::DirBuilder::new().mode(0o755).create(ancestor) {
            Ok(()) => chown(ancestor, Some(user.uid), Some(user.gid))?,
            // Somebody else was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && ancestor.is_dir() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Lists a directory down to `depth` levels, without following links below it. Paths come out
/// below `shown`, as the caller knows it.
pub fn list(shown: &Path, real: &Path, depth: u32) -> Result<Vec<EntryInfo>, ConnectError> {
    let names = Names::load();
    let mut entries = Vec::new();
    walk(shown, real, depth, &names, &mut entries)?;
    Ok(entries)
}

fn walk(
    shown: &Path,
    real: &Path,
    depth: u32,
    names: &Names,
    entries: &mut Vec<EntryInfo>,
) -> Result<(), ConnectError> {
    let failed = |error: io::Error| {
        let message = format!("error reading directory {}: {error}", shown.display());
        ConnectError::internal(message)
    };
    let mut children = Vec::new();
    for child in fs::read_dir(real).map_err(failed)? {
        children.push(child.map_err(failed)?.file_name());
        if entries.len() + children.len() > LIST_LIMIT {
            return Err(ConnectError::new(
                Code::ResourceExhausted,
                format!("{} holds more than {LIST_LIMIT} entries", shown.display()),
            ));
        }
    }
    children.sort();
    for name in children {
        let (shown, real) = (shown.join(&name), real.join(&name));
        let found = match fs::symlink_metadata(&real) {
            Ok(found) => found,
            // Gone since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        entries.push(entry::describe(&shown, &real, &found, names));
        if depth > 1 && found.is_dir() {
            match walk(&shown, &real, depth - 1, names, entries) {
                Err(_) if !real.is_dir() => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Removes a file, a link, or a directory with all that is in it. What is not there is removed.
pub fn remove(path: &Path) -> io::Result<()> {
    let gone = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    };
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    }
    .or_else(|error| if gone(&error) { Ok(()) } else { Err(error) })
}

/// Moves a file or directory; across file systems, and where an overlay cannot rename a directory
/// of its lower layers, by copying.
pub fn rename(source: &Path, destination: &Path) -> io::Result<()> {
    match fs::rename(source, destination) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            if destination.starts_with(source) {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            let mut name = destination.file_name().unwrap_or_default().to_owned();
            name.push(format!(".moving-{}", std::process::id()));
            let staged = destination.with_file_name(name);
            let copied = copy_tree(source, &staged).and_then(|()| fs::rename(&staged, destination));
            if let Err(error) = copied {
                // Half a copy is of no use to anybody.
                let _ = remove(&staged);
                return Err(error);
            }
            remove(source)
        }
        other => other,
    }
}

fn copy_tree(source: &Path, destination: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let found = fs::symlink_metadata(source)?;
    let (uid, gid) = (Some(found.uid()), Some(found.gid()));
    if found.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(source)?, destination)?;
        return std::os::unix::fs::lchown(destination, uid, gid);
    }
    if found.is_dir() {
        fs::create_dir(destination)?;
        for child in fs::read_dir(source)? {
            let name = child?.file_name();
            copy_tree(&source.join(&name), &destination.join(&name))?;
        }
    } else if found.is_file() {
        fs::copy(source, destination)?;
        let labels = crate::metadata::read(source);
        if !labels.is_empty() {
            let copy = fs::File::options().write(true).open(destination)?;
            crate::metadata::replace(&copy, &labels)?;
        }
    } else {
        let kind = rustix::fs::FileType::from_raw_mode(found.mode());
        let mode = rustix::fs::Mode::from_raw_mode(found.mode());
        rustix::fs::mknodat(rustix::fs::CWD, destination, kind, mode, found.rdev())?;
    }
    // The owner first: changing it takes the set-user-id bit away.
    chown(destination, uid, gid)?;
    fs::set_permissions(destination, found.permissions())?;
    if found.is_file() {
        let times = fs::FileTimes::new()
            .set_modified(found.modified()?)
            .set_accessed(found.accessed()?);
        fs::File::options()
            .write(true)
            .open(destination)?
            .set_times(times)?;
    }
    Ok(())
}

/// Follows all links of a path.
pub fn follow(path: &Path) -> Result<PathBuf, ConnectError> {
    fs::canonicalize(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => {
            ConnectError::not_found(format!("path not found: {}", path.display()))
        }
        Some(libc::ELOOP) => ConnectError::new(
            Code::FailedPrecondition,
            format!(
                "cyclic symlink or chain of too many links at \"{}\"",
                path.display()
            ),
        ),
        _ => ConnectError::internal(format!("error resolving symlink: {error}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn directories_are_made_for_the_user() {
        let directory = tempfile::tempdir().unwrap();
        let user = User {
            name: "u".into(),
            uid: 1234,
            gid: 2345,
            home: "/".into(),
        };
        let path = directory.path().join("a/b");
        ensure_directories(&path, &user).unwrap();
        let made = fs::metadata(directory.path().join("a")).unwrap();
        assert_eq!((made.uid(), made.gid()), (1234, 2345));
        fs::write(path.join("file"), "").unwrap();
        let error = ensure_directories(&path.join("file/x/y"), &user).unwrap_err();
        assert!(error.to_string().starts_with("path is a file: "), "{error}");
    }

    #[test]
    fn listing_is_ordered_and_as_deep_as_asked() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("b/c/d")).unwrap();
        fs::write(directory.path().join("a"), "").unwrap();
        fs::write(directory.path().join("b/z"), "").unwrap();
        std::os::unix::fs::symlink("b", directory.path().join("link")).unwrap();
        let list = |depth| {
            let entries = list(Path::new("/shown"), directory.path(), depth).unwrap();
            entries
                .into_iter()
                .map(|entry| entry.path)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(list(1), "/shown/a /shown/b /shown/link");
        assert_eq!(
            list(2),
            "/shown/a /shown/b /shown/b/c /shown/b/z /shown/link"
        );
    }

    #[test]
    fn a_tree_is_copied_where_it_cannot_be_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let (source, copy) = (
            directory.path().join("source"),
            directory.path().join("copy"),
        );
        fs::create_dir_all(source.join("a")).unwrap();
        fs::write(source.join("a/file"), "text").unwrap();
        chown(source.join("a/file"), Some(1234), None).unwrap();
        std::os::unix::fs::symlink("nowhere", source.join("link")).unwrap();
        copy_tree(&source, &copy).unwrap();
        assert_eq!(fs::read_to_string(copy.join("a/file")).unwrap(), "text");
        assert_eq!(fs::metadata(copy.join("a/file")).unwrap().uid(), 1234);
        assert_eq!(
            fs::read_link(copy.join("link")).unwrap(),
            Path::new("nowhere")
        );
        // Between the root's file system and memory, if this machine has both.
        let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
        rename(&copy, &elsewhere.path().join("moved")).unwrap();
        assert!(elsewhere.path().join("moved/a/file").exists() && !copy.exists());
    }
}
