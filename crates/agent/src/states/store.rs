//! The index of all states, and their removal.

use super::{About, FOLDERS, Lease, Purpose, StateKey};
use crate::problems;
use api::{BuildId, ErrorCode, Problem};
use driver::SavedState;
use jiff::Timestamp;
use std::{
    any::Any,
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio_util::task::TaskTracker;

/// Keeps an image that a state lies on.
pub(crate) type Pin = Box<dyn Any + Send + Sync>;

pub(super) struct Entry {
    pub(super) state: Arc<SavedState>,
    pub(super) about: Option<About>,
    /// Bytes on the disk.
    pub(super) size: u64,
    pub(super) used_at: Timestamp,
    /// Leases.
    pub(super) users: u32,
    /// Nothing names it any more.
    pub(super) doomed: bool,
    pin: Option<Pin>,
}

/// All states of the node.
pub(crate) struct States {
    root: PathBuf,
    entries: Mutex<HashMap<StateKey, Entry>>,
    /// Builds of snapshots whose state should be there and is not.
    lost: Mutex<HashSet<BuildId>>,
    removals: TaskTracker,
}

impl States {
    /// Reads what is there and removes what is half made. Blocks.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let mut entries = HashMap::new();
        for folder in FOLDERS {
            let path = root.join(folder);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)?;
            for found in fs::read_dir(&path)? {
                let found = found?;
                if !found.file_type()?.is_dir() {
                    continue;
                }
                let name = found.file_name();
                let key = name.to_str().and_then(|name| StateKey::parse(folder, name));
                match (key, SavedState::load(&found.path(), root)) {
                    (Some(key), Ok(state)) => {
                        let entry = read_entry(&key, state);
                        entries.insert(key, entry);
                    }
                    // Damaged, and not half made: somebody may want to look at it.
                    (Some(key), Err(error)) if found.path().join("state.json").exists() => {
                        tracing::error!(path = %found.path().display(), "the {key} cannot be read: {}", problems::chain(&error));
                    }
                    (Some(key), Err(_)) => {
                        tracing::info!("removing the half-made {key}");
                        remove(&found.path());
                    }
                    (None, _) => {}
                }
            }
        }
        take_names(&mut entries);
        let lost = read_lost(&root.join("states"), &entries)?;
        Ok(Self {
            root: root.to_owned(),
            entries: Mutex::new(entries),
            lost: Mutex::new(lost),
            removals: TaskTracker::new(),
        })
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, HashMap<StateKey, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> MutexGuard<'_, HashSet<BuildId>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a build is a snapshot whose state cannot be had any more.
    pub(crate) fn is_lost(&self, build: &BuildId) -> bool {
        self.lost().contains(build)
    }

    /// Where a state of this name is to be saved.
    pub(crate) fn directory(&self, key: &StateKey) -> PathBuf {
        key.directory(&self.root)
    }

    /// Writes down what is known of a build's state before it is saved, and returns its name. A
    /// template's may be made anew while there is one. Blocks for a moment.
    pub(crate) fn announce(&self, about: &About) -> Result<StateKey, Problem> {
        let build = &about.build.build;
        let key = {
            let entries = self.entries();
            let all = entries.iter().filter(|(key, _)| key.build() == Some(build));
            let (mut named, mut count) = (false, 0);
            for (key, entry) in all {
                let gives_way = about.purpose == Purpose::Template && entry.is_cache();
                named |= !entry.doomed && !gives_way;
                if let StateKey::Build { count: used, .. } = key {
                    count = count.max(used.saturating_add(1));
                }
            }
            let key = StateKey::Build {
                build: build.clone(),
                count,
            };
            (!named).then_some(key)
        };
        let Some(key) = key else {
            return Err(Problem::new(
                ErrorCode::Conflict,
                format!("there is a state of build {} already", about.build.build),
                "use a new build",
            ));
        };
        let path = about_path(&self.directory(&key));
        let write = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            serde_json::to_writer(&mut file, about)?;
            file.sync_all()
        };
        write().map_err(|error| cannot_write(&path, &error))?;
        Ok(key)
    }

    /// Takes back what was announced, as saving failed.
    pub(crate) fn abandon(&self, key: &StateKey) {
        if !self.entries().contains_key(key) {
            remove_about(&self.directory(key));
        }
    }

    /// Adds a state that was saved, and holds it for the caller.
    pub(crate) fn add(
        self: &Arc<Self>,
        key: StateKey,
        state: SavedState,
        about: Option<About>,
        pin: Option<Pin>,
    ) -> Lease {
        let state = Arc::new(state);
        let entry = Entry {
            size: size_of(&state.directory),
            state: state.clone(),
            about,
            used_at: Timestamp::now(),
            users: 1,
            doomed: false,
            pin,
        };
        self.entries().insert(key.clone(), entry);
        Lease::new(self.clone(), key, state)
    }

    /// Holds a state that is there and not about to go.
    pub(crate) fn lease(self: &Arc<Self>, key: &StateKey) -> Option<Lease> {
        let mut entries = self.entries();
        let entry = entries.get_mut(key).filter(|entry| !entry.doomed)?;
        entry.users += 1;
        entry.used_at = Timestamp::now();
        Some(Lease::new(self.clone(), key.clone(), entry.state.clone()))
    }

    /// Holds what sandboxes of a build start from, if it is there: the newest, as the one before
    /// keeps its name for a moment.
    pub(crate) fn lease_build(self: &Arc<Self>, build: &BuildId) -> Option<Lease> {
        let key = {
            let entries = self.entries();
            let named = entries.iter().filter(|(_, entry)| !entry.doomed);
            let of_build = named.filter(|(key, _)| key.build() == Some(build));
            of_build.map(|(key, _)| key).max()?.clone()
        };
        self.lease(&key)
    }

    /// Takes a build's name from the state that had it, as another was made anew. If the build was
    /// removed meanwhile, the other has no name either.
    pub(crate) fn hand_over(&self, former: &StateKey, new: &StateKey) {
        let entries = self.entries();
        let named = entries.get(former).is_some_and(|entry| !entry.doomed);
        drop(entries);
        self.doom(if named { former } else { new });
    }

    /// The states of templates, the one that was used last first.
    pub(crate) fn templates(&self) -> Vec<StateKey> {
        let entries = self.entries();
        let mut templates: Vec<_> = entries
            .iter()
            .filter(|(_, entry)| entry.is_cache() && !entry.doomed)
            .map(|(key, entry)| (std::cmp::Reverse(entry.used_at), key.clone()))
            .collect();
        templates.sort();
        templates.into_iter().map(|(_, key)| key).collect()
    }

    /// Takes the name of a build's state away; see [`States::doom`].
    pub(crate) fn doom_build(&self, build: &BuildId) {
        self.lost().remove(build);
        let keys: Vec<StateKey> = {
            let entries = self.entries();
            let all = entries.keys().filter(|key| key.build() == Some(build));
            all.cloned().collect()
        };
        for key in keys {
            self.doom(&key);
        }
    }

    /// Holds a state that a machine of an earlier run runs on, whatever is to become of it.
    pub(crate) fn lease_adopted(self: &Arc<Self>, key: &StateKey) -> Option<Lease> {
        let mut entries = self.entries();
        let entry = entries.get_mut(key)?;
        entry.users += 1;
        Some(Lease::new(self.clone(), key.clone(), entry.state.clone()))
    }

    /// A state that has a name, and what is known of its build. Looking is not using.
    pub(crate) fn look(&self, key: &StateKey) -> Option<(Arc<SavedState>, About)> {
        let entries = self.entries();
        let entry = entries.get(key).filter(|entry| !entry.doomed)?;
        Some((entry.state.clone(), entry.about.clone()?))
    }

    /// What is known of a build's state.
    pub(crate) fn about(&self, key: &StateKey) -> Option<About> {
        self.entries().get(key)?.about.clone()
    }

    /// What a state takes on the disk.
    pub(crate) fn size(&self, key: &StateKey) -> u64 {
        self.entries().get(key).map_or(0, |entry| entry.size)
    }

    /// The images that states of builds lie on and that are not pinned.
    pub(crate) fn unpinned(&self) -> Vec<(StateKey, api::ImageDigest)> {
        let unpinned = |(key, entry): (&StateKey, &Entry)| {
            let image = entry.about.as_ref()?.build.image.clone();
            entry.pin.is_none().then(|| (key.clone(), image))
        };
        self.entries().iter().filter_map(unpinned).collect()
    }

    /// Keeps an image for as long as a state exists.
    pub(crate) fn pin(&self, key: &StateKey, pin: Pin) {
        if let Some(entry) = self.entries().get_mut(key) {
            entry.pin = Some(pin);
        }
    }

    /// A number that no state of this sandbox has.
    pub(crate) fn next_count(&self, sandbox: &api::SandboxId) -> u32 {
        let used = |key: &StateKey| match key {
            StateKey::Paused { sandbox: of, count } if of == sandbox => Some(*count),
            _ => None,
        };
        let highest = self.entries().keys().filter_map(used).max();
        highest.map_or(1, |count| count.wrapping_add(1))
    }

    pub(super) fn count_in(&self, key: &StateKey) {
        if let Some(entry) = self.entries().get_mut(key) {
            entry.users += 1;
        }
    }

    pub(super) fn count_out(&self, key: &StateKey) {
        let unused = match self.entries().get_mut(key) {
            Some(entry) => {
                entry.users = entry.users.saturating_sub(1);
                entry.doomed && entry.users == 0
            }
            None => false,
        };
        if unused {
            self.collect();
        }
    }

    /// Takes a state's name away, durably: it goes as soon as nothing needs it.
    pub(crate) fn doom(&self, key: &StateKey) {
        if let Some(entry) = self.entries().get_mut(key) {
            entry.doomed = true;
        }
        if key.build().is_some() {
            remove_about(&self.directory(key));
        }
        self.collect();
    }

    /// Takes the names of all states of pauses and forks away but those that `keep` holds for.
    pub(crate) fn doom_but(&self, keep: impl Fn(&StateKey) -> bool) {
        for (key, entry) in self.entries().iter_mut() {
            if key.build().is_none() && !keep(key) {
                entry.doomed = true;
            }
        }
        self.collect();
    }

    /// Removes what has no name and is needed by nobody; what lay beneath it follows.
    fn collect(&self) {
        let mut gone = Vec::new();
        {
            let mut entries = self.entries();
            loop {
                let carried = carried(&entries);
                let unused = entries
                    .iter()
                    .filter(|(_, entry)| entry.doomed && entry.users == 0);
                let free: Vec<StateKey> = unused
                    .filter(|(_, entry)| !carried.contains_key(&*entry.state.directory))
                    .map(|(key, _)| key.clone())
                    .collect();
                if free.is_empty() {
                    break;
                }
                gone.extend(free.iter().filter_map(|key| entries.remove(key)));
            }
        }
        if gone.is_empty() {
            return;
        }
        let work = move || {
            for entry in &gone {
                remove(&entry.state.directory);
            }
            // The images beneath go last.
            drop(gone);
        };
        // Removing large files takes a while, and this may be an asynchronous thread.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(self.removals.spawn_blocking_on(work, &runtime)),
            Err(_) => work(),
        }
    }

    /// Waits until all that was to go is gone from the disk. For the end, when nothing more is
    /// about to go.
    pub(crate) async fn settle(&self) {
        self.removals.close();
        self.removals.wait().await;
    }
}

/// The directories of states that the memory of others lies on, each with one of these.
pub(super) fn carried(entries: &HashMap<StateKey, Entry>) -> HashMap<&Path, &StateKey> {
    let lies_on = |(key, entry)| -> Option<(&Path, &StateKey)> {
        let entry: &Entry = entry;
        Some((entry.state.memory.as_ref()?.base.as_deref()?, key))
    };
    entries.iter().filter_map(lies_on).collect()
}

fn read_entry(key: &StateKey, state: SavedState) -> Entry {
    let path = about_path(&state.directory);
    let about: Option<About> = fs::read(&path)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok());
    let used_at = fs::metadata(&path)
        .and_then(|about| about.modified())
        .ok()
        .and_then(|time| Timestamp::try_from(time).ok());
    Entry {
        size: size_of(&state.directory),
        // Without the file beside it, its removal was only waiting for somebody.
        doomed: key.build().is_some() && about.is_none(),
        about,
        used_at: used_at.unwrap_or_else(Timestamp::now),
        users: 0,
        pin: None,
        state: Arc::new(state),
    }
}

/// Takes the names of states that were made anew, if the agent died before it did.
fn take_names(entries: &mut HashMap<StateKey, Entry>) {
    let named = |(key, entry): (&StateKey, &Entry)| {
        let build = key.build().filter(|_| !entry.doomed)?;
        Some((build.clone(), key.clone()))
    };
    let mut named: Vec<_> = entries.iter().filter_map(named).collect();
    named.sort();
    for pair in named.windows(2) {
        let [(build, key), (next, _)] = pair else {
            continue;
        };
        if build == next
            && let Some(entry) = entries.get_mut(key)
        {
            entry.doomed = true;
            remove_about(&entry.state.directory);
        }
    }
}

impl Entry {
    /// Whether it can be made again.
    pub(super) fn is_cache(&self) -> bool {
        let template = |about: &About| about.purpose == Purpose::Template;
        self.about.as_ref().is_some_and(template)
    }
}

fn about_path(directory: &Path) -> PathBuf {
    // Not `with_extension`: a count is not one.
    let mut path = directory.as_os_str().to_owned();
    path.push(".json");
    path.into()
}

fn remove_about(directory: &Path) {
    let path = about_path(directory);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}

/// The builds of snapshots of which only the file beside them is left; that of templates goes.
fn read_lost(folder: &Path, entries: &HashMap<StateKey, Entry>) -> io::Result<HashSet<BuildId>> {
    let mut lost = HashSet::new();
    for found in fs::read_dir(folder)? {
        let path = found?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let key = name
            .and_then(|name| name.strip_suffix(".json"))
            .and_then(|name| StateKey::parse("states", name));
        let Some(StateKey::Build { build, .. }) = key.filter(|key| !entries.contains_key(key))
        else {
            continue;
        };
        let about: Option<About> = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        if about.is_some_and(|about| about.purpose == Purpose::Snapshot) {
            tracing::warn!("the state of build {build} is missing");
            lost.insert(build);
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(lost)
}

/// Removes a state's directory, what makes it whole first.
fn remove(directory: &Path) {
    let sealed = fs::remove_file(directory.join("state.json"));
    let removed = match sealed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_dir_all(directory),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", directory.display());
        }
        _ => {}
    }
}

/// Bytes that the files of a directory take on the disk.
fn size_of(directory: &Path) -> u64 {
    let Ok(files) = fs::read_dir(directory) else {
        return 0;
    };
    files
        .filter_map(|file| file.ok()?.metadata().ok())
        .map(|about| about.blocks() * 512)
        .sum()
}

fn cannot_write(path: &Path, error: &io::Error) -> Problem {
    let code = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => ErrorCode::OutOfDisk,
        _ => ErrorCode::Internal,
    };
    Problem::new(
        code,
        format!("cannot write {}: {error}", path.display()),
        "check the space and the permissions of the data directory",
    )
}
