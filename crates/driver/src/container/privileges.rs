//! Whether programs in a sandbox may gain privileges by being executed.
//!
//! Where nobody needs `sudo`, `no_new_privs` takes a way up from all programs that have the
//! set-user-id bit, known and unknown. Whether somebody needs it is asked of the root file system
//! alone: who put a set-user-id `sudo`, `su` or `doas` there wants it to work.

use crate::layer::{self, Layer};
use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// Where those programs are, in the layout of any distribution.
const PROGRAMS: [&str; 9] = [
    "usr/bin/sudo",
    "usr/bin/su",
    "usr/bin/doas",
    "bin/sudo",
    "bin/su",
    "bin/doas",
    "usr/local/bin/sudo",
    "usr/local/bin/su",
    "usr/local/bin/doas",
];

/// Root file systems whose answer is kept; a node has not nearly as many.
const MOST_ANSWERS: usize = 1024;

/// Whether set-user-id programs gain privileges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SetUserId {
    /// Where the root file system has a set-user-id `sudo`, `su` or `doas`, and else not.
    #[default]
    WhereWanted,
    /// In every sandbox.
    Always,
    /// In none.
    Never,
}

/// The answers that were found. Layers never change, so an answer holds for ever.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<HashMap<Vec<PathBuf>, bool>>);

impl Answers {
    /// Whether a sandbox of these layers must not gain privileges. `restored` is its writable layer
    /// if there is something in it already. Blocks, the first time it sees the layers.
    pub(super) fn forbids(
        &self,
        choice: SetUserId,
        layers: &[PathBuf],
        restored: Option<&Layer>,
    ) -> bool {
        match choice {
            SetUserId::Always => false,
            SetUserId::Never => true,
            SetUserId::WhereWanted => {
                !self.is_wanted(layers)
                    && !restored.is_some_and(|layer| layer.has_set_user_id(&PROGRAMS))
            }
        }
    }

    fn is_wanted(&self, layers: &[PathBuf]) -> bool {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = answers.get(layers) {
            return *answer;
        }
        // A layer may hide what one below has. Then nothing is forbidden that could have been.
        let answer = layers.iter().any(|layer| {
            File::open(layer).is_ok_and(|layer| layer::has_set_user_id(&layer, &PROGRAMS))
        });
        if answers.len() >= MOST_ANSWERS {
            answers.clear();
        }
        answers.insert(layers.to_vec(), answer);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    #[test]
    fn who_has_sudo_may_use_it_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let layer = folder.path().join(name);
            fs::create_dir_all(layer.join("usr/bin")).unwrap();
            layer
        };
        let program = |path: PathBuf, mode: u32| {
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        };
        let (bare, plain, sudo) = (layer("bare"), layer("plain"), layer("sudo"));
        program(plain.join("usr/bin/su"), 0o755);
        program(plain.join("usr/bin/passwd"), 0o4755);
        program(sudo.join("usr/bin/sudo"), 0o4755);
        // A link out of the root leads nowhere.
        symlink(sudo.join("usr/bin/sudo"), bare.join("usr/bin/sudo")).unwrap();
        let linked = layer("linked");
        program(linked.join("usr/bin/suid"), 0o4755);
        symlink("/usr/bin/suid", linked.join("usr/bin/su")).unwrap();
        symlink("usr/bin", linked.join("bin")).unwrap();

        let answers = Answers::default();
        let forbids = |layers: &[&PathBuf]| {
            let layers: Vec<PathBuf> = layers.iter().map(|layer| layer.to_path_buf()).collect();
            let first = answers.forbids(SetUserId::WhereWanted, &layers, None);
            assert_eq!(
                answers.forbids(SetUserId::WhereWanted, &layers, None),
                first
            );
            assert!(answers.forbids(SetUserId::Never, &layers, None));
            assert!(!answers.forbids(SetUserId::Always, &layers, None));
            first
        };
        assert!(forbids(&[&bare]));
        assert!(forbids(&[&plain, &bare]));
        assert!(!forbids(&[&sudo]));
        assert!(!forbids(&[&plain, &sudo]));
        assert!(!forbids(&[&linked]));
    }
}
