//! Random archives against a model: what is unpacked is what an archive means, and where the model
//! refuses, so does the unpacker.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support;

use image::{Limits, unpack::unpack};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    process::Command,
};
use support::{Archive, Node, look};

#[derive(Debug, Clone)]
enum Step {
    File(String, u8),
    Directory(String),
    Symlink(String, String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    File(u8),
    Directory,
    Symlink(String),
}

/// A tree in memory: real paths, and the layer that each comes from.
#[derive(Debug, Default, Clone)]
struct Model {
    nodes: BTreeMap<PathBuf, (Kind, usize)>,
    layer: usize,
}

struct Refused;

impl Model {
    /// The real path of `path`; missing directories are made if `make`.
    fn resolve(&mut self, path: &Path, make: bool) -> Result<PathBuf, Refused> {
        let mut here = PathBuf::new();
        let parts = |text: &str| -> VecDeque<String> {
            let parts = text.split('/').filter(|part| !part.is_empty());
            parts.map(str::to_owned).collect()
        };
        let mut todo = parts(path.to_str().unwrap());
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == ".." {
                here.pop();
                continue;
            }
            let next = here.join(&part);
            match self.nodes.get(&next).cloned() {
                Some((Kind::Directory, _)) => {
                    if make {
                        // The layer has the directory as well, if only to write into it.
                        self.nodes
                            .insert(next.clone(), (Kind::Directory, self.layer));
                    }
                    here = next;
                }
                Some((Kind::Symlink(target), _)) => {
                    links += 1;
                    if links > 40 {
                        return Err(Refused);
                    }
                    if target.starts_with('/') {
                        here = PathBuf::new();
                    }
                    for part in parts(&target).into_iter().rev() {
                        todo.push_front(part);
                    }
                }
                Some((Kind::File(_), layer)) if layer == self.layer || !make => {
                    return Err(Refused);
                }
                None if !make => return Err(Refused),
                // A file of a lower layer is hidden by the directory.
                _ => {
                    self.nodes
                        .insert(next.clone(), (Kind::Directory, self.layer));
                    here = next;
                }
            }
        }
        Ok(here)
    }

    fn split(path: &str) -> (&Path, &str) {
        match path.rsplit_once('/') {
            Some((parent, name)) => (Path::new(parent), name),
            None => (Path::new(""), path),
        }
    }

    fn remove(&mut self, path: &Path) {
        self.nodes.retain(|known, _| !known.starts_with(path));
    }

    /// Puts something at `path`, in place of what is there.
    fn put(&mut self, path: &str, kind: Kind) -> Result<(), Refused> {
        let (parent, name) = Self::split(path);
        let place = self.resolve(parent, true)?.join(name);
        if kind == Kind::Directory && matches!(self.nodes.get(&place), Some((Kind::Directory, _))) {
            return Ok(());
        }
        self.remove(&place);
        self.nodes.insert(place, (kind, self.layer));
        Ok(())
    }

    fn apply(&mut self, step: &Step) -> Result<(), Refused> {
        match step {
            Step::File(path, content) => self.put(path, Kind::File(*content)),
            Step::Directory(path) => self.put(path, Kind::Directory),
            Step::Symlink(path, target) => self.put(path, Kind::Symlink(target.clone())),
            Step::HardLink(path, target) => {
                let (parent, name) = Self::split(target);
                let from = self.resolve(parent, false)?.join(name);
                let kind = match self.nodes.get(&from) {
                    Some((kind, _)) if *kind != Kind::Directory => kind.clone(),
                    _ => return Err(Refused),
                };
                let (parent, name) = Self::split(path);
                let place = self.resolve(parent, true)?.join(name);
                if place == from {
                    return Ok(());
                }
                let mut without = self.clone();
                without.remove(&place);
                if !without.nodes.contains_key(&from) {
                    return Err(Refused);
                }
                self.put(path, kind)
            }
            Step::Whiteout(path) => {
                let (parent, name) = Self::split(path);
                let place = self.resolve(parent, true)?.join(name);
                // What the layer itself has stays.
                self.nodes
                    .retain(|known, (_, layer)| *layer == self.layer || !known.starts_with(&place));
                Ok(())
            }
            Step::Opaque(path) => {
                let place = self.resolve(Path::new(path), true)?;
                let inside = |known: &Path| known != place && known.starts_with(&place);
                self.nodes
                    .retain(|known, (_, layer)| *layer == self.layer || !inside(known));
                Ok(())
            }
        }
    }

    fn apply_all(&mut self, steps: &[Step]) -> Result<(), Refused> {
        steps.iter().try_for_each(|step| self.apply(step))
    }
}

fn archive_of(steps: &[Step]) -> Vec<u8> {
    let mut archive = Archive::new();
    for step in steps {
        archive = match step {
            Step::File(path, content) => archive.file(path, &[*content]),
            Step::Directory(path) => archive.directory(path),
            Step::Symlink(path, target) => archive.symlink(path, target),
            Step::HardLink(path, target) => archive.hard_link(path, target),
            Step::Whiteout(path) => {
                let (parent, name) = Model::split(path);
                archive.file(&format!("{}/.wh.{name}", parent.display()), b"")
            }
            Step::Opaque(path) => archive.file(&format!("{path}/.wh..wh..opq"), b""),
        };
    }
    archive.finish()
}

fn compare(root: &Path, model: &Model) {
    let found: BTreeMap<PathBuf, Kind> = look(root)
        .into_iter()
        .map(|(path, node)| {
            let kind = match node {
                Node::File { content, .. } => Kind::File(content[0]),
                Node::Directory { .. } => Kind::Directory,
                Node::Symlink(target) => Kind::Symlink(target),
                other => panic!("{}: {other:?}", path.display()),
            };
            (path, kind)
        })
        .collect();
    let expected: BTreeMap<PathBuf, Kind> = model
        .nodes
        .iter()
        .map(|(path, (kind, _))| (path.clone(), kind.clone()))
        .collect();
    assert_eq!(found, expected);
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "..", ".."]);
    (any::<bool>(), prop::collection::vec(part, 1..4)).prop_map(|(absolute, parts)| {
        format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"))
    })
}

fn lower_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (path(), any::<u8>()).prop_map(|(path, content)| Step::File(path, content)),
        2 => path().prop_map(Step::Directory),
        2 => (path(), target()).prop_map(|(path, target)| Step::Symlink(path, target)),
        1 => (path(), path()).prop_map(|(path, target)| Step::HardLink(path, target)),
    ]
}

fn hiding_step() -> impl Strategy<Value = Step> {
    prop_oneof![3 => path().prop_map(Step::Whiteout), 1 => path().prop_map(Step::Opaque)]
}

fn upper_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (path(), any::<u8>()).prop_map(|(path, content)| Step::File(path, content)),
        2 => path().prop_map(Step::Directory),
    ]
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        _ = Command::new("umount").arg(&self.0).status();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_layer_is_what_its_archive_means(steps in prop::collection::vec(lower_step(), 1..16)) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let mut model = Model::default();
        let expected = model.apply_all(&steps).is_ok();
        let result = unpack(&archive_of(&steps)[..], &root, &[], Limits::default());
        prop_assert_eq!(result.is_ok(), expected, "{:?}", result);
        if expected {
            compare(&root, &model);
        }
        prop_assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

    #[test]
    fn two_layers_in_overlayfs_are_what_their_archives_mean(
        lower in prop::collection::vec(lower_step(), 1..10),
        hiding in prop::collection::vec(hiding_step(), 0..3),
        upper in prop::collection::vec(upper_step(), 1..6),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (low, up, merged) = (place("low"), place("up"), place("merged"));
        let mut model = Model::default();
        prop_assume!(model.apply_all(&lower).is_ok());
        unpack(&archive_of(&lower)[..], &low, &[], Limits::default()).unwrap();
        model.layer = 1;
        let steps = [hiding, upper].concat();
        let expected = model.apply_all(&steps).is_ok();
        let result = unpack(&archive_of(&steps)[..], &up, std::slice::from_ref(&low), Limits::default());
        prop_assert_eq!(result.is_ok(), expected, "{:?}", result);
        if expected {
            let options = format!("ro,lowerdir={}:{}", up.display(), low.display());
            let status = Command::new("mount")
                .args(["-t", "overlay", "overlay", "-o", &options])
                .arg(&merged)
                .status();
            prop_assert!(status.unwrap().success());
            let mounted = Mounted(merged.clone());
            compare(&merged, &model);
            drop(mounted);
        }
    }
}
