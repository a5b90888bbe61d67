//! The few modules that a guest needs to find its disks and its network.

use super::{elf, payload, unfit};
use crate::{DriverError, doing};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Those that the guest cannot do without, unless the kernel has them built in, and those that it
/// takes if they are there: for entropy, to notice that it was resumed, and to give back memory.
const NEEDED: [&str; 6] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "ext4",
    "erofs",
    "overlay",
];
const WELCOME: [&str; 3] = ["virtio_rng", "vmgenid", "virtio_balloon"];

/// Dependencies are never deeper.
const DEEPEST: usize = 16;

/// A module, ready to be loaded.
#[derive(Debug)]
pub(super) struct Module {
    /// Its file's name: `virtio_blk.ko`.
    pub(super) name: String,
    /// Uncompressed.
    pub(super) content: Vec<u8>,
}

/// The modules out of `lib/modules/RELEASE`, each behind those that it depends on.
pub(super) fn gather(directory: &Path) -> Result<Vec<Module>, DriverError> {
    let mut files = BTreeMap::new();
    find(&directory.join("kernel"), &mut files, 0);
    let builtin = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    let builtin: Vec<String> = builtin
        .lines()
        .filter_map(|line| name_of(line.as_ref()))
        .collect();
    let mut gathered = Vec::new();
    for name in NEEDED.iter().chain(&WELCOME) {
        if builtin.iter().any(|known| known == name) {
            continue;
        }
        if files.contains_key(*name) {
            add(name, &files, &mut gathered, 0)?;
        } else if NEEDED.contains(name) {
            return Err(unfit(&format!(
                "it has no module `{name}`, nor is it built in"
            )));
        }
    }
    Ok(gathered)
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    gathered: &mut Vec<Module>,
    depth: usize,
) -> Result<(), DriverError> {
    let file_name = format!("{name}.ko");
    if gathered.iter().any(|module| module.name == file_name) {
        return Ok(());
    }
    // What is not a file here is built in.
    let Some(path) = files.get(name) else {
        return Ok(());
    };
    if depth > DEEPEST {
        return Err(unfit("its modules depend on each other in a circle"));
    }
    let mut content = fs::read(path).map_err(doing(format!("read {}", path.display())))?;
    if !content.starts_with(elf::MAGIC) {
        content = payload::decompress(&content)
            .map_err(|error| unfit(&format!("{}: {error}", path.display())))?;
    }
    let dependencies = elf::module_dependencies(&content)
        .ok_or_else(|| unfit(&format!("{} is no kernel module", path.display())))?;
    for dependency in dependencies {
        add(&dependency.replace('-', "_"), files, gathered, depth + 1)?;
    }
    gathered.push(Module {
        name: file_name,
        content,
    });
    Ok(())
}

/// Files of modules below a directory, by the modules' names.
fn find(directory: &Path, files: &mut BTreeMap<String, PathBuf>, depth: usize) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth < DEEPEST => find(&path, files, depth + 1),
            Ok(kind) if kind.is_file() => {
                if let Some(name) = name_of(&path) {
                    files.insert(name, path);
                }
            }
            _ => {}
        }
    }
}

/// A module's name by its file's; in names, unlike in files, there are no hyphens.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}
