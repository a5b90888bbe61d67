//! What the tests share: making archives and images, and looking at directories.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod registry;

use api::node::{BuildEvent, BuiltImage};
use api::template::Requester;
use futures::StreamExt;
use image::{ImageStore, StoreOptions, digest::Digest};
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};
use tar::EntryType;

/// An archive that may say whatever it likes.
pub struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn entry(
        mut self,
        kind: EntryType,
        path: impl AsRef<[u8]>,
        link: impl AsRef<[u8]>,
        mode: u32,
        content: &[u8],
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        let gnu = header.as_gnu_mut().unwrap();
        for (field, text) in [
            (&mut gnu.name[..], path.as_ref()),
            (&mut gnu.linkname[..], link.as_ref()),
        ] {
            field[..text.len()].copy_from_slice(text);
        }
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, "", 0o644, content)
    }

    pub fn directory(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", 0o755, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, 0o777, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, 0o644, b"")
    }

    /// Extended records for the next entry.
    pub fn records(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0
            .append_pax_extensions(records.iter().copied())
            .unwrap();
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// What a test sees of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Directory { mode: u32, opaque: bool },
    File { content: Vec<u8>, mode: u32 },
    Symlink(String),
    Whiteout,
    Other,
}

/// Everything below `root`.
pub fn look(root: &Path) -> BTreeMap<PathBuf, Node> {
    fn walk(root: &Path, at: &Path, nodes: &mut BTreeMap<PathBuf, Node>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let kind = metadata.file_type();
            let mode = metadata.mode() & 0o7777;
            let node = if kind.is_dir() {
                let opaque = xattr::get(&path, "trusted.overlay.opaque").unwrap();
                Node::Directory {
                    mode,
                    opaque: opaque.as_deref() == Some(b"y"),
                }
            } else if kind.is_file() {
                Node::File {
                    content: fs::read(&path).unwrap(),
                    mode,
                }
            } else if kind.is_symlink() {
                Node::Symlink(fs::read_link(&path).unwrap().to_str().unwrap().to_owned())
            } else if kind.is_char_device() && metadata.rdev() == 0 {
                Node::Whiteout
            } else {
                Node::Other
            };
            nodes.insert(path.strip_prefix(root).unwrap().to_owned(), node);
            if kind.is_dir() {
                walk(root, &path, nodes);
            }
        }
    }
    let mut nodes = BTreeMap::new();
    walk(root, root, &mut nodes);
    nodes
}

/// Names below `root`, in order, as one text.
pub fn names(root: &Path) -> String {
    let nodes = look(root);
    nodes
        .keys()
        .map(|path| path.to_str().unwrap())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A store in a directory of its own.
pub struct Fixture {
    pub directory: tempfile::TempDir,
    pub store: ImageStore,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut StoreOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut options = options(&directory.path().join("store"));
        options.docker_config = Some(directory.path().join("docker.json"));
        change(&mut options);
        let store = ImageStore::open(options).unwrap();
        Self { directory, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Files of the store's own folder `name`.
    pub fn stored(&self, name: &str) -> Vec<String> {
        stored(&self.path("store"), name)
    }

    pub async fn build(&self, source: &str) -> BuiltImage {
        ready(self.events(source).await)
    }

    pub async fn fail(&self, source: &str) -> String {
        match self.events(source).await.pop() {
            Some(BuildEvent::Failed { cause, remedy }) => {
                assert!(!remedy.is_empty(), "no remedy for: {cause}");
                cause
            }
            other => panic!("did not fail: {other:?}"),
        }
    }

    pub async fn events(&self, source: &str) -> Vec<BuildEvent> {
        self.store
            .build(source.parse().unwrap(), Requester::Administrator)
            .collect()
            .await
    }

    /// The directories of an image, uppermost first.
    pub fn layers(&self, image: &BuiltImage) -> Vec<PathBuf> {
        self.store.root(&image.digest).unwrap().layers
    }
}

pub fn options(directory: &Path) -> StoreOptions {
    let mut options = StoreOptions::new(directory);
    options.durable = false;
    options
}

pub fn stored(store: &Path, name: &str) -> Vec<String> {
    let entries = fs::read_dir(store.join(name)).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn ready(mut events: Vec<BuildEvent>) -> BuiltImage {
    match events.pop() {
        Some(BuildEvent::Ready(image)) => image,
        other => panic!("not ready: {other:?}"),
    }
}

/// Names of the steps, in order.
pub fn steps(events: &[BuildEvent]) -> Vec<String> {
    let step = |event: &BuildEvent| match event {
        BuildEvent::Step { name, .. } => Some(name.clone()),
        _ => None,
    };
    events.iter().filter_map(step).collect()
}

pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// An image as it lies in a registry or a layout: blobs by digest, and the manifest's digest.
pub struct Image {
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    pub layers: Vec<Digest>,
    pub config: Digest,
    pub manifest: Digest,
}

/// An OCI image of uncompressed `layers`, lowest first, stored as `compress` makes them.
pub fn image_of(layers: &[Vec<u8>], compress: fn(&[u8]) -> Vec<u8>, kind: &str) -> Image {
    let mut blobs = BTreeMap::new();
    let mut add = |content: Vec<u8>| {
        let (digest, size) = (Digest::of(&content), content.len());
        blobs.insert(digest, content);
        (digest, size)
    };
    let diffs: Vec<String> = layers
        .iter()
        .map(|layer| Digest::of(layer).to_string())
        .collect();
    let stored: Vec<(Digest, usize)> = layers.iter().map(|layer| add(compress(layer))).collect();
    let config = serde_json::json!({
        "architecture": image::source::manifest::architecture(),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diffs},
        "config": {"Env": ["A=1"], "Cmd": ["/bin/sh"], "User": "app", "WorkingDir": "/srv"},
    });
    let config = add(serde_json::to_vec(&config).unwrap());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.0, "size": config.1},
        "layers": stored.iter().map(|(digest, size)| serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{kind}"),
            "digest": digest, "size": size})).collect::<Vec<_>>(),
    });
    let manifest = add(serde_json::to_vec(&manifest).unwrap());
    Image {
        layers: stored.into_iter().map(|(digest, _)| digest).collect(),
        config: config.0,
        manifest: manifest.0,
        blobs,
    }
}

/// Bytes that don't compress and are the same in every run.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A file's name as bytes, for archives.
pub fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
