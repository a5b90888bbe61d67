//! Paths as clients write them: `~` and relative paths resolve against the user's home, an empty
//! path is the default directory.
//!
//! There is no wall here: `..` is legal, since the file system is the sandbox's own.

use crate::accounts::User;
use std::path::{Component, Path, PathBuf};

/// The kernel's limit, with room to spare for what is appended.
const LENGTH_LIMIT: usize = 4096;

/// Why a text is not a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It names another user's home.
    #[error("cannot expand user-specific home dir")]
    OtherHome,
    /// It holds a NUL.
    #[error("path contains a NUL character")]
    Nul,
    /// It is longer than the kernel takes.
    #[error("path is longer than {LENGTH_LIMIT} bytes")]
    TooLong,
}

/// The absolute path that a client means, with `.` and `..` resolved in the text.
pub fn resolve(text: &str, user: &User, default_directory: &str) -> Result<PathBuf, PathError> {
    if text.contains('\0') {
        return Err(PathError::Nul);
    }
    if text.len() > LENGTH_LIMIT {
        return Err(PathError::TooLong);
    }
    let text = if text.is_empty() {
        default_directory
    } else {
        text
    };
    let path = match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            user.home.join(rest.trim_start_matches('/'))
        }
        Some(_) => return Err(PathError::OtherHome),
        None => user.home.join(text),
    };
    Ok(clean(&path))
}

/// Resolves `.` and `..` in the text; above the root is the root.
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(part) => cleaned.push(part),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

/// The last part of a path, `/` for the root.
pub fn name(path: &Path) -> String {
    path.file_name().map_or_else(
        || "/".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_resolve_against_home() {
        let user = User {
            name: "user".into(),
            uid: 1000,
            gid: 1000,
            home: "/home/user".into(),
        };
        let check = |text: &str, path: &str| {
            assert_eq!(
                resolve(text, &user, "/work").unwrap(),
                PathBuf::from(path),
                "{text}"
            );
        };
        check("", "/work");
        check("~", "/home/user");
        check("~/a//b", "/home/user/a/b");
        check("a/./b/../c", "/home/user/a/c");
        check("/etc/../../..", "/");
        check("/a/b/", "/a/b");
        check("../other", "/home/other");
        assert_eq!(resolve("~root/a", &user, ""), Err(PathError::OtherHome));
        assert_eq!(resolve("a\0b", &user, ""), Err(PathError::Nul));
        assert_eq!(
            resolve(&"a".repeat(5000), &user, ""),
            Err(PathError::TooLong)
        );
        assert_eq!(resolve("", &user, "").unwrap(), PathBuf::from("/home/user"));
    }
}
