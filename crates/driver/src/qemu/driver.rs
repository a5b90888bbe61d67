//! [`Qemu`]: prepare, adopt, sweep, shut down.

use super::{
    accelerator::Accelerator,
    arguments::{Begin, Description, TRANSLATIONS, memory_size},
    console::Console,
    facts,
    guest::Guest,
    hold::Hold,
    launch::{self, Launch},
    machine::QemuMachine,
    memory,
    notes::Notes,
    prepared::PreparedMachine,
    qmp::Qmp,
    restore,
    runtime::Runtime,
};
use crate::{
    Capabilities, Driver, DriverError, DriverKind, Machine, MachineRecord, NetworkSlot, Origin,
    Plan, Prepared, SavedState,
    cgroup::{Group, Hierarchies, Limits},
    container::{process, remove_group},
    doing,
    kernel::{Kernel, command_line},
    layer::Layers,
    phases::Stopwatch,
    sparse,
    state::HostFacts,
};
use api::{Resources, Secret};
use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// Slots that an instance may have; their users come one after another.
const MOST_SLOTS: u32 = 4094;

/// The host's number for the user of the first slot: above those of containers, in the range that
/// systemd.io/UIDS-GIDS leaves free.
const FIRST_ID: u32 = 0x7FFE_0000;

/// What QEMU itself may use beside the machine's memory, in mebibytes.
const OWN_MEMORY: u64 = 128;

/// Threads that QEMU may have beside the processors.
const OWN_THREADS: u32 = 96;

/// How long a machine may take to boot. Translation is slow, and many may boot at once.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);

/// How long QEMU may take for an ordinary command.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// How a node runs machines.
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// The data directory: what machines have is in `machines`.
    pub data_directory: PathBuf,
    /// Names what this instance makes on the machine: four hexadecimal digits.
    pub instance: String,
    /// The program, with arguments, that becomes QEMU in its jail: its `main` calls
    /// [`run_if_asked`](super::jail::run_if_asked) first thing.
    pub jail_command: Vec<OsString>,
    /// QEMU; None looks where programs are.
    pub program: Option<PathBuf>,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// How instructions run; None tries KVM.
    pub accelerator: Option<Accelerator>,
    /// The host's number for the user of the first slot.
    pub first_id: u32,
}

impl QemuOptions {
    /// The usual options: this program itself becomes the jail.
    pub fn new(
        data_directory: impl Into<PathBuf>,
        instance: impl Into<String>,
        kernel: Kernel,
    ) -> Self {
        Self {
            data_directory: data_directory.into(),
            instance: instance.into(),
            jail_command: vec!["/proc/self/exe".into(), "jail".into()],
            program: None,
            kernel,
            accelerator: None,
            first_id: FIRST_ID,
        }
    }
}

/// The `qemu` driver.
#[derive(Debug)]
pub struct Qemu {
    inner: Arc<Inner>,
}

/// What the driver and its machines share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) options: QemuOptions,
    pub(super) hierarchies: Hierarchies,
    pub(super) runtime: Runtime,
    pub(super) accelerator: Accelerator,
    pub(super) facts: HostFacts,
    layers: Layers,
    machines: PathBuf,
    /// Slots that have a machine in this program.
    held: Mutex<HashSet<u32>>,
    /// How much is being cleared away in the background.
    clearing: watch::Sender<usize>,
}

impl Qemu {
    /// Looks at this host and makes the directories. Runs QEMU once for its version, and a few
    /// instructions under KVM. Blocks.
    pub fn new(options: QemuOptions) -> Result<Self, DriverError> {
        let unsupported = |cause: String, remedy: &str| DriverError::Unsupported {
            cause,
            remedy: remedy.into(),
        };
        if !rustix::process::geteuid().is_root() {
            return Err(unsupported(
                "machines need root, to be locked up".into(),
                "Start Atoll as root, for example with sudo",
            ));
        }
        let hierarchies = Hierarchies::find().map_err(doing("read the mount table"))?;
        let missing = hierarchies.missing();
        if !missing.is_empty() {
            return Err(unsupported(
                format!(
                    "control group controllers are missing: {}",
                    missing.join(", ")
                ),
                "Boot with them enabled, or in a container mount /sys/fs/cgroup writable",
            ));
        }
        let accelerator = options.accelerator.unwrap_or_else(Accelerator::choose);
        let runtime = Runtime::find(options.program.as_deref(), accelerator)?;
        let facts = facts::gather(&runtime, accelerator, &options.kernel);
        let make = |name: &str| -> Result<PathBuf, DriverError> {
            let path = options.data_directory.join(name);
            make_private(&path)?;
            path.canonicalize()
                .map_err(doing(format!("find {}", path.display())))
        };
        Ok(Self {
            inner: Arc::new(Inner {
                machines: make("machines")?,
                layers: Layers::open(make("layers")?)?,
                hierarchies,
                runtime,
                accelerator,
                facts,
                options,
                held: Mutex::default(),
                clearing: watch::channel(0).0,
            }),
        })
    }

    /// How instructions run here.
    pub fn accelerator(&self) -> Accelerator {
        self.inner.accelerator
    }

    /// What snapshots made here are bound to.
    pub fn facts(&self) -> &HostFacts {
        &self.inner.facts
    }
}

impl Inner {
    pub(super) fn directory_of(&self, slot: u32) -> PathBuf {
        self.machines.join(slot.to_string())
    }

    /// Removes the directory of a slot's machine. Blocks. True if there was one.
    pub(super) fn remove_directory(&self, slot: u32) -> Result<bool, DriverError> {
        let path = self.directory_of(slot);
        match fs::remove_dir_all(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(doing(format!("remove {}", path.display()))(error)),
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashSet<u32>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn let_go(&self, slot: u32) {
        self.held().remove(&slot);
    }

    pub(super) fn begin_clearing(&self) {
        self.clearing.send_modify(|count| *count += 1);
    }

    pub(super) fn end_clearing(&self) {
        self.clearing
            .send_modify(|count| *count = count.saturating_sub(1));
    }

    /// Whether a state can be resumed here.
    pub(super) fn check(&self, state: &SavedState) -> Result<(), DriverError> {
        let Some(memory) = &state.memory else {
            return Ok(());
        };
        let mut reasons = Vec::new();
        if state.driver != DriverKind::Qemu {
            reasons.push("it was saved by another driver".to_owned());
        }
        reasons.extend(memory.host.differences(&self.facts));
        if reasons.is_empty() {
            return Ok(());
        }
        Err(DriverError::Unsupported {
            cause: format!(
                "its memory cannot be resumed on this machine: {}",
                reasons.join(", ")
            ),
            remedy:
                "Resume it where it was saved, or start from its disk; a template is built anew"
                    .into(),
        })
    }

    /// A fresh control group with limits, even if an earlier machine of the slot left one.
    fn make_group(&self, slot: u32, resources: &Resources) -> io::Result<Group> {
        let create = || Group::create(&self.hierarchies, &self.options.instance, slot);
        let group = create().or_else(|_| {
            Group::of(&self.hierarchies, &self.options.instance, slot).kill_all()?;
            create()
        })?;
        let translations = match self.accelerator {
            Accelerator::Kvm => 0,
            Accelerator::Tcg => TRANSLATIONS,
        };
        group.limit(&Limits {
            memory: resources.memory.0 + ((OWN_MEMORY + translations) << 20),
            vcpus: resources.vcpus,
            processes: resources.vcpus + OWN_THREADS,
        })?;
        Ok(group)
    }

    /// The files of a machine, and its group. Blocks.
    fn furnish(&self, slot: u32, plan: &Plan) -> Result<Furniture, DriverError> {
        self.remove_directory(slot)?;
        let directory = self.directory_of(slot);
        make_private(&directory)?;
        let root = plan.origin.root().disk.as_ref();
        let root = root.ok_or_else(|| DriverError::Unsupported {
            cause: "the template has no disk image".into(),
            remedy: "Build the template for the `qemu` driver".into(),
        })?;
        let open =
            |path: &Path| File::open(path).map_err(doing(format!("open {}", path.display())));
        let root = open(root)?;
        let disk = directory.join("disk.img");
        let (layer, memory) = match &plan.origin {
            Origin::Fresh(_) => (
                self.layers.create_image(&disk, plan.resources.disk)?,
                self.empty_memory(&directory, &plan.resources)?,
            ),
            Origin::Saved(state) => {
                let saved = open(&state.disk())?;
                let layer = sparse::copy_to(&saved, &disk)
                    .map_err(|error| full_or(error, "copy a disk"))?;
                let memory = match &state.memory {
                    Some(saved) => open(
                        &saved
                            .base
                            .as_ref()
                            .unwrap_or(&state.directory)
                            .join(memory::WHOLE),
                    )?,
                    None => self.empty_memory(&directory, &plan.resources)?,
                };
                (layer, memory)
            }
        };
        let group = self
            .make_group(slot, &plan.resources)
            .map_err(doing(format!("make the control group of slot {slot}")))?;
        Ok(Furniture {
            root,
            layer,
            memory,
            group,
        })
    }

    fn empty_memory(&self, directory: &Path, resources: &Resources) -> Result<File, DriverError> {
        let path = directory.join(memory::WHOLE);
        let make = || -> io::Result<File> {
            let file = sparse::create(&path)?;
            file.set_len(memory_size(resources).0)?;
            Ok(file)
        };
        make().map_err(doing(format!("make {}", path.display())))
    }

    /// Ends and removes whatever is left in a slot. Blocks. True if there was anything.
    fn clear_slot(&self, slot: u32) -> Result<bool, DriverError> {
        let group = Group::of(&self.hierarchies, &self.options.instance, slot);
        let existed = group.exists();
        if existed {
            group
                .kill_all()
                .map_err(doing(format!("end what is left in slot {slot}")))?;
            remove_group(&group).map_err(doing(format!("remove the group of slot {slot}")))?;
        }
        Ok(existed | self.remove_directory(slot)?)
    }

    /// Slots that have a directory.
    fn slots(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.machines).into_iter().flatten();
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// Starts a machine and brings it to where only its identity is missing.
    async fn prepare(
        self: &Arc<Self>,
        slot: &Arc<NetworkSlot>,
        plan: &Plan,
        phases: &mut Stopwatch,
    ) -> Result<(Hold, Notes), DriverError> {
        let number = slot.number;
        let inner = Arc::clone(self);
        let furnishing = plan.clone();
        let furniture = blocking(move || inner.furnish(number, &furnishing)).await?;
        phases.mark("files and control group");
        let resumed = match &plan.origin {
            Origin::Saved(state) => state.memory.as_ref().map(|memory| (state, memory)),
            Origin::Fresh(_) => None,
        };
        let token = match resumed {
            Some((_, memory)) => memory.control_token.clone(),
            None => random_token()?,
        };
        let description = Description {
            accelerator: self.accelerator,
            resources: plan.resources,
            begin: match resumed {
                Some(_) => Begin::Incoming,
                None => Begin::Boot {
                    parameters: command_line(self.accelerator.hypervisor(), &token),
                },
            },
        };
        let launched = launch::launch(
            self,
            Launch {
                slot,
                directory: &self.directory_of(number),
                description: &description,
                group: &furniture.group,
                root: furniture.root.into(),
                layer: furniture.layer.into(),
                memory: furniture.memory.into(),
            },
        )
        .await?;
        phases.insert(launched.phases.clone());
        let network = slot
            .namespace
            .try_clone()
            .map_err(doing("keep a network"))?;
        let guest = Guest::new(network);
        guest.provide().map_err(doing("enter a network"))?;
        let group = furniture.group;
        let hold = Hold::of_launched(Arc::clone(self), number, launched, group, guest)?;
        let brought = match resumed {
            Some((state, memory)) => restore::restore(&hold, state, memory, phases).await,
            None => {
                let booted = boot(&hold).await;
                phases.mark("boot");
                booted
            }
        };
        if let Err(error) = brought {
            let _ = hold.end().await;
            return Err(error);
        }
        let notes = Notes {
            root: plan.origin.root().clone(),
            resources: plan.resources,
            base: resumed.map(|(state, memory)| {
                memory
                    .base
                    .clone()
                    .unwrap_or_else(|| state.directory.clone())
            }),
            control_token: token,
        };
        Ok((hold, notes))
    }
}

async fn boot(hold: &Hold) -> Result<(), DriverError> {
    hold.qmp
        .call("cont", serde_json::json!({}), PATIENCE)
        .await?;
    hold.wait_for_guest(BOOT_PATIENCE).await
}

/// What a machine is made with.
struct Furniture {
    root: File,
    layer: File,
    memory: File,
    group: Group,
}

#[async_trait::async_trait]
impl Driver for Qemu {
    fn kind(&self) -> DriverKind {
        DriverKind::Qemu
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            memory_snapshot: true,
            needs_disk: true,
            prepares_anything: false,
        }
    }

    async fn prepare(
        &self,
        slot: Arc<NetworkSlot>,
        plan: &Plan,
    ) -> Result<Box<dyn Prepared>, DriverError> {
        let mut phases = Stopwatch::start();
        let number = slot.number;
        if number >= MOST_SLOTS {
            return Err(DriverError::Exhausted {
                what: "slots",
                cause: format!("slot {number} is beyond the last of {MOST_SLOTS}"),
            });
        }
        if let Origin::Saved(state) = &plan.origin {
            self.inner.check(state)?;
            if state.memory.is_some() && state.resources != plan.resources {
                return Err(DriverError::Unsupported {
                    cause: "a state with memory has the resources that it was saved with".into(),
                    remedy: "Ask for the same resources, or start from its disk".into(),
                });
            }
        }
        self.inner.held().insert(number);
        match self.inner.prepare(&slot, plan, &mut phases).await {
            Ok((hold, notes)) => Ok(Box::new(PreparedMachine::new(hold, notes, slot, phases))),
            Err(error) => {
                let inner = Arc::clone(&self.inner);
                let cleared = blocking(move || inner.clear_slot(number).map(drop));
                if let Err(error) = cleared.await {
                    tracing::warn!(%error, slot = number, "half a machine is left");
                }
                self.inner.let_go(number);
                Err(error)
            }
        }
    }

    fn check(&self, state: &SavedState) -> Result<(), DriverError> {
        self.inner.check(state)
    }

    async fn adopt(&self, record: &MachineRecord) -> Result<Option<Box<dyn Machine>>, DriverError> {
        let found = process::find(record.pid, record.start_time)
            .map_err(doing(format!("look for process {}", record.pid)))?;
        let Some(process) = found else {
            return Ok(None);
        };
        let directory = self.inner.directory_of(record.slot);
        let notes = Notes::read(&directory)?;
        let qmp = Qmp::connect(&directory, launch::QMP, PATIENCE).await?;
        let console = Console::connect(&directory, launch::SERIAL).ok();
        self.inner.held().insert(record.slot);
        let hold = Hold::of_adopted(
            Arc::clone(&self.inner),
            record.slot,
            (record.pid, record.start_time),
            process,
            qmp,
            console,
        )?;
        let status = hold
            .qmp
            .call("query-status", serde_json::json!({}), PATIENCE)
            .await?;
        // It may have been frozen when this program died.
        let stands = !status["running"].as_bool().unwrap_or(true);
        Ok(Some(Box::new(QemuMachine::new(
            hold,
            notes,
            Stopwatch::start(),
            stands,
        ))))
    }

    async fn sweep(&self, keep: &[u32]) -> Result<Vec<String>, DriverError> {
        let inner = Arc::clone(&self.inner);
        let keep = keep.to_vec();
        blocking(move || {
            let mut slots = Group::slots(&inner.hierarchies, &inner.options.instance);
            slots.extend(inner.slots());
            slots.sort_unstable();
            slots.dedup();
            let mut removed = Vec::new();
            for slot in slots {
                let kept = keep.contains(&slot) || inner.held().contains(&slot);
                if !kept && inner.clear_slot(slot)? {
                    removed.push(format!("machine in slot {slot}"));
                }
            }
            Ok(removed)
        })
        .await
    }

    async fn shutdown(&self) {
        let mut clearing = self.inner.clearing.subscribe();
        let cleared = clearing.wait_for(|count| *count == 0);
        let _ = tokio::time::timeout(PATIENCE, cleared).await;
        let inner = Arc::clone(&self.inner);
        let _ = blocking(move || {
            // Stays if a machine still runs.
            Group::remove_instance(&inner.hierarchies, &inner.options.instance);
            Ok(())
        })
        .await;
    }
}

/// Runs what blocks away from the asynchronous threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(doing("work on a thread")(io::Error::other(error))),
    }
}

/// An error that says so if the disk is full.
pub(crate) fn full_or(error: io::Error, what: &str) -> DriverError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DriverError::Exhausted {
            what: "disk",
            cause: error.to_string(),
        },
        _ => doing(what)(error),
    }
}

/// 32 random hexadecimal digits.
pub(crate) fn random_token() -> Result<Secret, DriverError> {
    let bytes = random_bytes::<16>()?;
    Ok(Secret::new(facts::hexadecimal(&bytes)))
}

/// Bytes from the kernel's generator.
pub(crate) fn random_bytes<const COUNT: usize>() -> Result<[u8; COUNT], DriverError> {
    let mut bytes = [0; COUNT];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(doing("get random bytes"))?;
    Ok(bytes)
}

/// Makes a directory that only its owner can enter.
pub(crate) fn make_private(directory: &Path) -> Result<(), DriverError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(doing(format!("make {}", directory.display())))
}
