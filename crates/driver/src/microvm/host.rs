//! What a driver of microVMs has on this host, whichever hypervisor it starts.

use crate::{
    DriverError, DriverKind, Origin, Plan, SavedState,
    cgroup::{Group, Hierarchies, Limits},
    container::remove_group,
    directory::make_private,
    doing, full_or,
    layer::Layers,
    sparse,
    state::HostFacts,
};
use std::{
    collections::HashSet,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// Slots that an instance may have; their users come one after another.
pub(crate) const MOST_SLOTS: u32 = 4094;

/// How long shutting down waits for what is being cleared away.
const CLEARING_PATIENCE: Duration = Duration::from_secs(20);

/// Users, control groups, layers, and which slots are in use.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) hierarchies: Hierarchies,
    pub(crate) instance: String,
    data_directory: PathBuf,
    layers: Layers,
    /// The host's number for the user of the first slot.
    first_id: u32,
    /// Slots that have a machine in this program.
    taken: Mutex<HashSet<u32>>,
    /// How much is being cleared away in the background.
    clearing: watch::Sender<usize>,
}

impl Host {
    /// What must be there for machines to be locked up: root, and control groups.
    pub(crate) fn look() -> Result<Hierarchies, DriverError> {
        if !rustix::process::geteuid().is_root() {
            return Err(unsupported(
                "machines need root, to be locked up",
                "Start Atoll as root, for example with sudo",
            ));
        }
        let hierarchies = Hierarchies::find().map_err(doing("read the mount table"))?;
        let missing = hierarchies.missing();
        if missing.is_empty() {
            return Ok(hierarchies);
        }
        Err(unsupported(
            format!(
                "control group controllers are missing: {}",
                missing.join(", ")
            ),
            "Boot with them enabled, or in a container mount /sys/fs/cgroup writable",
        ))
    }

    /// Makes what is missing in the data directory. Blocks.
    pub(crate) fn open(
        hierarchies: Hierarchies,
        data_directory: &Path,
        instance: &str,
        first_id: u32,
    ) -> Result<Self, DriverError> {
        Ok(Self {
            hierarchies,
            instance: instance.to_owned(),
            data_directory: data_directory.to_owned(),
            layers: Layers::open(folder(data_directory, "layers")?)?,
            first_id,
            taken: Mutex::default(),
            clearing: watch::channel(0).0,
        })
    }

    /// What paths that are written down are relative to.
    pub(crate) fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    /// A private folder in the data directory, by its canonical path. Blocks.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, DriverError> {
        folder(&self.data_directory, name)
    }

    /// The host's number for the user and group that a slot's machine runs as: nobody else's.
    pub(crate) fn user_of(&self, slot: u32) -> u32 {
        self.first_id + slot
    }

    /// The control group of a slot, whether or not it is there.
    pub(crate) fn group_of(&self, slot: u32) -> Group {
        Group::of(&self.hierarchies, &self.instance, slot)
    }

    /// A fresh control group with limits, even if an earlier machine of the slot left one.
    pub(crate) fn make_group(&self, slot: u32, limits: &Limits) -> Result<Group, DriverError> {
        let create = || Group::create(&self.hierarchies, &self.instance, slot);
        let make = || -> io::Result<Group> {
            let group = create().or_else(|_| {
                self.group_of(slot).kill_all()?;
                create()
            })?;
            group.limit(limits)?;
            Ok(group)
        };
        make().map_err(doing(format!("make the control group of slot {slot}")))
    }

    /// Ends all that is left in a slot's control group, and removes it. Blocks. True if there was
    /// one.
    pub(super) fn clear_group(&self, slot: u32) -> Result<bool, DriverError> {
        let group = self.group_of(slot);
        let existed = group.exists();
        if existed {
            group
                .kill_all()
                .map_err(doing(format!("end what is left in slot {slot}")))?;
            remove_group(&group).map_err(doing(format!("remove the group of slot {slot}")))?;
        }
        Ok(existed)
    }

    /// The writable disk of a machine to come: empty, or as it was saved. Blocks.
    pub(crate) fn make_disk(&self, plan: &Plan, path: &Path) -> Result<File, DriverError> {
        match &plan.origin {
            Origin::Fresh(_) => self.layers.create_image(path, plan.resources.disk),
            Origin::Saved(state) => File::open(state.disk())
                .and_then(|saved| sparse::copy_to(&saved, path))
                .map_err(|error| full_or(error, "copy a disk")),
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a slot has a machine of this program's.
    pub(super) fn take(&self, slot: u32) {
        self.taken().insert(slot);
    }

    /// It has none any more.
    pub(super) fn let_go(&self, slot: u32) {
        self.taken().remove(&slot);
    }

    pub(super) fn is_taken(&self, slot: u32) -> bool {
        self.taken().contains(&slot)
    }

    pub(super) fn begin_clearing(&self) {
        self.clearing.send_modify(|count| *count += 1);
    }

    pub(super) fn end_clearing(&self) {
        self.clearing
            .send_modify(|count| *count = count.saturating_sub(1));
    }

    /// Waits, but not for long, until nothing is being cleared away.
    pub(super) async fn wait_for_clearing(&self) {
        let mut clearing = self.clearing.subscribe();
        let cleared = clearing.wait_for(|count| *count == 0);
        let _ = tokio::time::timeout(CLEARING_PATIENCE, cleared).await;
    }
}

fn folder(data_directory: &Path, name: &str) -> Result<PathBuf, DriverError> {
    let path = data_directory.join(name);
    make_private(&path)?;
    path.canonicalize()
        .map_err(doing(format!("find {}", path.display())))
}

/// The disk image of the root file system that a plan starts from.
pub(crate) fn root_disk(plan: &Plan, kind: DriverKind) -> Result<&Path, DriverError> {
    plan.origin.root().disk.as_deref().ok_or_else(|| {
        unsupported(
            "the template has no disk image",
            format!("Build the template for the `{}` driver", name_of(kind)),
        )
    })
}

/// Refuses a state that cannot be resumed where `facts` are true.
pub(super) fn check(
    state: &SavedState,
    kind: DriverKind,
    facts: &HostFacts,
) -> Result<(), DriverError> {
    let Some(memory) = &state.memory else {
        return Ok(());
    };
    let mut reasons = Vec::new();
    if state.driver != kind {
        reasons.push("it was saved by another driver".to_owned());
    }
    reasons.extend(memory.host.differences(facts));
    if reasons.is_empty() {
        return Ok(());
    }
    Err(unsupported(
        format!(
            "its memory cannot be resumed on this machine: {}",
            reasons.join(", ")
        ),
        "Resume it where it was saved, or start from its disk; a template is built anew",
    ))
}

/// The files through which a control group is joined, one for each hierarchy.
pub(crate) fn members(group: &Group) -> impl Iterator<Item = PathBuf> {
    let groups = group.legacy().into_iter();
    groups
        .chain(group.unified().map(Into::into))
        .map(|group| group.join("cgroup.procs"))
}

fn name_of(kind: DriverKind) -> &'static str {
    match kind {
        DriverKind::Firecracker => "firecracker",
        DriverKind::Qemu => "qemu",
        DriverKind::Container => "container",
    }
}

/// What the machine lacks, and how to get it.
pub(crate) fn unsupported(cause: impl Into<String>, remedy: impl Into<String>) -> DriverError {
    DriverError::Unsupported {
        cause: cause.into(),
        remedy: remedy.into(),
    }
}
