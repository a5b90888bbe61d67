//! [`Firecracker`]: prepare, adopt, sweep, shut down.

use super::{
    hold::Hold,
    jail::Jail,
    launch,
    machine::FirecrackerMachine,
    memory,
    messages::{
        self, Action, Balloon, BootSource, DEVICES, DRIVES, Entropy, INITRAMFS, Interface, KERNEL,
        LAYER, MEMORY, MachineConfig, ROOT,
    },
    prepared::{Parts, PreparedMachine},
    save::link_or_copy,
    version::{Version, parse_first_line},
};
use crate::{
    Capabilities, Driver, DriverError, DriverKind, Machine, MachineRecord, NetworkSlot, Origin,
    Plan, Prepared, SavedState,
    cgroup::{Group, Hierarchies, Limits},
    container::{process, remove_group},
    doing,
    kernel::{Hypervisor, Kernel, command_line},
    kvm,
    layer::Layers,
    phases::Stopwatch,
    qemu::{
        accelerator::Accelerator,
        driver::{full_or, make_private, random_token},
        guest::Guest,
        notes::Notes,
    },
    slot::machine::TAP,
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
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

pub(super) use crate::qemu::driver::blocking;

/// Slots that an instance may have; their users come one after another.
const MOST_SLOTS: u32 = 4094;

/// The host's number for the user of the first slot: above those of containers.
const FIRST_ID: u32 = 0x7FFE_0000;

/// What Firecracker itself may use beside the machine's memory, in mebibytes.
const OWN_MEMORY: u64 = 64;

/// Threads that Firecracker may have beside the processors.
const OWN_THREADS: u32 = 16;

/// How long a machine may take to boot; many may boot at once.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// How long Firecracker may take for an ordinary request.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long shutting down waits.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// The most processors that Firecracker gives a machine.
const MOST_PROCESSORS: u32 = 32;

/// How a node runs machines.
#[derive(Debug, Clone)]
pub struct FirecrackerOptions {
    /// The data directory: what machines have is in `jails`.
    pub data_directory: PathBuf,
    /// Names what this instance makes on the machine: four hexadecimal digits.
    pub instance: String,
    /// Firecracker; its file name must hold `firecracker`, as the jailer wants it.
    pub program: PathBuf,
    /// Its jailer, of the same release.
    pub jailer: PathBuf,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// The host's number for the user of the first slot.
    pub first_id: u32,
    /// A CPU template that hides what hosts differ in, such as `T2`; then snapshots are bound to it
    /// and not to the processor.
    pub cpu_template: Option<String>,
    /// Whether pages that a loaded machine writes are counted, so that saving it again keeps only
    /// those. It costs a fault for each.
    pub track_dirty_pages: bool,
    /// Whether to try first if KVM runs code. Only tests, with something in place of Firecracker,
    /// do without.
    pub try_kvm: bool,
}

impl FirecrackerOptions {
    /// The usual options.
    pub fn new(
        data_directory: impl Into<PathBuf>,
        instance: impl Into<String>,
        (program, jailer): (PathBuf, PathBuf),
        kernel: Kernel,
    ) -> Self {
        Self {
            data_directory: data_directory.into(),
            instance: instance.into(),
            program,
            jailer,
            kernel,
            first_id: FIRST_ID,
            cpu_template: None,
            track_dirty_pages: true,
            try_kvm: true,
        }
    }
}

/// The `firecracker` driver.
#[derive(Debug)]
pub struct Firecracker {
    inner: Arc<Inner>,
}

/// What the driver and its machines share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) options: FirecrackerOptions,
    pub(super) hierarchies: Hierarchies,
    pub(super) version: Version,
    pub(super) facts: HostFacts,
    /// The folder above all jails.
    pub(super) jails: PathBuf,
    /// What the jailer names files and folders after.
    pub(super) program_name: OsString,
    layers: Layers,
    /// Slots that have a machine in this program.
    held: Mutex<HashSet<u32>>,
    /// How much is being cleared away in the background.
    clearing: watch::Sender<usize>,
}

impl Firecracker {
    /// Looks at this host and makes the directories. Runs Firecracker and jailer for their
    /// versions, and a few instructions under KVM. Blocks.
    ///
    /// # Errors
    /// [`DriverError::Unsupported`] if something is missing, or too old.
    pub fn new(options: FirecrackerOptions) -> Result<Self, DriverError> {
        if !rustix::process::geteuid().is_root() {
            return Err(unsupported(
                "machines need root, to be locked up",
                "Start Atoll as root, for example with sudo",
            ));
        }
        if options.try_kvm {
            kvm::usable().map_err(|reason| {
                unsupported(
                    &format!("the `firecracker` driver needs KVM: {reason}"),
                    "Enable virtualisation in the firmware, or use the `qemu` driver",
                )
            })?;
        }
        let hierarchies = Hierarchies::find().map_err(doing("read the mount table"))?;
        let missing = hierarchies.missing();
        if !missing.is_empty() {
            return Err(unsupported(
                &format!(
                    "control group controllers are missing: {}",
                    missing.join(", ")
                ),
                "Boot with them enabled, or in a container mount /sys/fs/cgroup writable",
            ));
        }
        let version = version_of(&options.program)?.check()?;
        let jailer = version_of(&options.jailer)?;
        if jailer != version {
            return Err(unsupported(
                &format!("Firecracker is {version} and its jailer {jailer}"),
                "Install both from one release",
            ));
        }
        let program_name = options
            .program
            .file_name()
            .filter(|name| name.to_string_lossy().contains("firecracker"))
            .ok_or_else(|| {
                unsupported(
                    "the jailer starts only programs named `firecracker`",
                    "Give the path of a file whose name holds `firecracker`",
                )
            })?
            .to_owned();
        let facts = facts(&options, version);
        let make = |name: &str| -> Result<PathBuf, DriverError> {
            let path = options.data_directory.join(name);
            make_private(&path)?;
            path.canonicalize()
                .map_err(doing(format!("find {}", path.display())))
        };
        Ok(Self {
            inner: Arc::new(Inner {
                jails: make("jails")?,
                layers: Layers::open(make("layers")?)?,
                hierarchies,
                version,
                facts,
                program_name,
                options,
                held: Mutex::default(),
                clearing: watch::channel(0).0,
            }),
        })
    }

    /// Firecracker's version.
    pub fn version(&self) -> Version {
        self.inner.version
    }

    /// What snapshots made here are bound to.
    pub fn facts(&self) -> &HostFacts {
        &self.inner.facts
    }
}

fn unsupported(cause: &str, remedy: &str) -> DriverError {
    DriverError::Unsupported {
        cause: cause.into(),
        remedy: remedy.into(),
    }
}

/// What a program prints when it is asked.
fn ask(program: &Path, question: &str) -> io::Result<String> {
    let output = Command::new(program)
        .arg(question)
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn version_of(program: &Path) -> Result<Version, DriverError> {
    let name = program.display();
    let remedy = "Install Firecracker and its jailer from one release: \
                  https://github.com/firecracker-microvm/firecracker/releases";
    let text = ask(program, "--version").map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => unsupported(&format!("{name} is not there"), remedy),
        _ => unsupported(&format!("{name} does not start: {error}"), remedy),
    })?;
    parse_first_line(&text)
        .ok_or_else(|| unsupported(&format!("{name} does not tell its version"), remedy))
}

/// What snapshots are bound to: the format of their files is the version's, and what a processor
/// can is part of them, unless a template hides it.
fn facts(options: &FirecrackerOptions, version: Version) -> HostFacts {
    let format = ask(&options.program, "--snapshot-version").unwrap_or_default();
    let format: String = format.trim().chars().take(20).collect();
    let short = |digest: &str| digest.chars().take(32).collect::<String>();
    HostFacts {
        program: format!("Firecracker {version}, snapshots {format}"),
        accelerator: "kvm".into(),
        processor: match &options.cpu_template {
            Some(template) => format!("template {template}"),
            None => Accelerator::Kvm.processor_facts(),
        },
        kernel: format!(
            "{}, {}",
            options.kernel.release,
            short(&options.kernel.digest)
        ),
        guest: short(&options.kernel.guest_digest),
    }
}

impl Inner {
    pub(super) fn user_of(&self, slot: u32) -> u32 {
        self.options.first_id + slot
    }

    pub(super) fn jail_of(&self, slot: u32) -> Jail {
        let path = self.jails.join(&self.program_name).join(slot.to_string());
        Jail::at(path, self.user_of(slot))
    }

    pub(super) fn no_jailer(&self) -> DriverError {
        unsupported(
            &format!("{} is not there", self.options.jailer.display()),
            "Install Firecracker's jailer, of the same release as Firecracker",
        )
    }

    fn held(&self) -> MutexGuard<'_, HashSet<u32>> {
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

    fn limits(resources: &Resources) -> Limits {
        Limits {
            memory: resources.memory.0 + (OWN_MEMORY << 20),
            vcpus: resources.vcpus,
            processes: resources.vcpus + OWN_THREADS,
        }
    }

    /// The files of a machine, and its group. Blocks.
    fn furnish(&self, slot: u32, plan: &Plan) -> Result<(Group, Jail), DriverError> {
        let jail = self.jail_of(slot);
        jail.make()?;
        let root = plan.origin.root().disk.as_ref();
        let root = root.ok_or_else(|| {
            unsupported(
                "the template has no disk image",
                "Build the template for the `firecracker` driver",
            )
        })?;
        jail.show(root, ROOT)?;
        match &plan.origin {
            Origin::Fresh(_) => drop(
                self.layers
                    .create_image(&jail.layer(), plan.resources.disk)?,
            ),
            Origin::Saved(state) => File::open(state.disk())
                .and_then(|disk| sparse::copy_to(&disk, &jail.layer()).map(drop))
                .map_err(|error| full_or(error, "copy a disk"))?,
        }
        jail.show_layer(LAYER)?;
        match &plan.origin {
            Origin::Saved(state) if state.memory.is_some() => self.show_memory(&jail, state)?,
            _ => {
                jail.show(&self.options.kernel.image, KERNEL)?;
                jail.show(&self.options.kernel.initramfs, INITRAMFS)?;
            }
        }
        let create = || Group::create(&self.hierarchies, &self.options.instance, slot);
        let group = create()
            .or_else(|_| {
                Group::of(&self.hierarchies, &self.options.instance, slot).kill_all()?;
                create()
            })
            .and_then(|group| group.limit(&Self::limits(&plan.resources)).map(|()| group))
            .map_err(doing(format!("make the control group of slot {slot}")))?;
        Ok((group, jail))
    }

    fn show_memory(&self, jail: &Jail, state: &SavedState) -> Result<(), DriverError> {
        jail.show(&memory::file_of(state)?, MEMORY)?;
        jail.show(&state.directory.join(memory::DEVICES), DEVICES)?;
        let based = state
            .memory
            .as_ref()
            .is_some_and(|memory| memory.base.is_some());
        if based && self.options.track_dirty_pages {
            // Kept here too, as the state may be gone when this machine is saved.
            link_or_copy(
                &state.directory.join(memory::DIFFERENCE),
                &jail.difference(),
            )
            .map_err(|error| full_or(error, "keep what differs of a memory"))?;
        }
        Ok(())
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
        let mut removed = existed;
        // Also those of a Firecracker that had another name.
        for (program, _) in self
            .jailed()
            .into_iter()
            .filter(|(_, number)| *number == slot)
        {
            let path = program.join(slot.to_string());
            removed |= Jail::at(path, self.user_of(slot)).remove()?;
        }
        Ok(removed)
    }

    /// All jails: the folder of the program, and the slot.
    fn jailed(&self) -> Vec<(PathBuf, u32)> {
        let read = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
        read(&self.jails)
            .flat_map(|program| read(&program.path()).map(move |slot| (program.path(), slot)))
            .filter_map(|(program, slot)| Some((program, slot.file_name().to_str()?.parse().ok()?)))
            .collect()
    }

    /// Starts a machine and brings it to where only its identity, or its state, is missing.
    async fn prepare(
        self: &Arc<Self>,
        slot: &Arc<NetworkSlot>,
        plan: &Plan,
    ) -> Result<Parts, DriverError> {
        let mut phases = Stopwatch::start();
        let number = slot.number;
        if plan.resources.vcpus > MOST_PROCESSORS {
            return Err(unsupported(
                &format!("a machine with {} processors", plan.resources.vcpus),
                &format!("Firecracker gives a machine at most {MOST_PROCESSORS}"),
            ));
        }
        let loaded = match &plan.origin {
            Origin::Saved(state) => state.memory.as_ref().map(|memory| (state, memory)),
            Origin::Fresh(_) => None,
        };
        if let Some((state, _)) = loaded {
            self.check(state)?;
        }
        let (inner, furnishing) = (Arc::clone(self), plan.clone());
        let (group, jail) = blocking(move || inner.furnish(number, &furnishing)).await?;
        phases.mark("files and control group");
        let limits = Self::limits(&plan.resources);
        let launched = launch::launch(self, slot, &jail, &group, &limits).await?;
        phases.mark("Firecracker");
        let network = slot
            .namespace
            .try_clone()
            .map_err(doing("keep a network"))?;
        let guest = Guest::new(network);
        guest.provide().map_err(doing("enter a network"))?;
        let token = match loaded {
            Some((_, memory)) => memory.control_token.clone(),
            None => random_token()?,
        };
        let hold = Hold::of_launched(Arc::clone(self), number, launched, (group, jail), guest);
        if loaded.is_none()
            && let Err(error) = self
                .boot(&hold, slot, &plan.resources, &token, &mut phases)
                .await
        {
            let _ = hold.end().await;
            return Err(error);
        }
        let base = loaded
            .filter(|_| self.options.track_dirty_pages)
            .map(|(state, memory)| {
                memory
                    .base
                    .clone()
                    .unwrap_or_else(|| state.directory.clone())
            });
        let notes = Notes {
            root: plan.origin.root().clone(),
            resources: plan.resources,
            base,
            control_token: token,
        };
        Ok(Parts {
            hold,
            notes,
            booted: loaded.is_none(),
            phases,
        })
    }

    /// Describes a machine to Firecracker, starts it, and waits until its guest waits.
    async fn boot(
        &self,
        hold: &Hold,
        slot: &NetworkSlot,
        resources: &Resources,
        token: &Secret,
        phases: &mut Stopwatch,
    ) -> Result<(), DriverError> {
        let client = &hold.client;
        let template = self.options.cpu_template.as_deref();
        let source = BootSource::new(command_line(Hypervisor::Firecracker, token));
        let interface = Interface::new(slot.tap.as_deref().unwrap_or(TAP));
        let describe = async {
            let config = MachineConfig::new(resources, template);
            client.put("/machine-config", &config, PATIENCE).await?;
            client.put("/boot-source", &source, PATIENCE).await?;
            for drive in &DRIVES {
                let path = format!("/drives/{}", drive.drive_id);
                client.put(&path, drive, PATIENCE).await?;
            }
            let path = format!("/network-interfaces/{}", interface.iface_id);
            client.put(&path, &interface, PATIENCE).await?;
            let balloon = Balloon::new(self.version);
            client.put("/balloon", &balloon, PATIENCE).await?;
            client.put("/entropy", &Entropy {}, PATIENCE).await?;
            client.put("/actions", &Action::START, PATIENCE).await
        };
        hold.unless_ended(describe).await?;
        phases.mark("describe and start");
        hold.wait_for_guest(BOOT_PATIENCE).await?;
        phases.mark("boot");
        Ok(())
    }

    fn check(&self, state: &SavedState) -> Result<(), DriverError> {
        let Some(memory) = &state.memory else {
            return Ok(());
        };
        let mut reasons = Vec::new();
        if state.driver != DriverKind::Firecracker {
            reasons.push("it was saved by another driver".to_owned());
        }
        reasons.extend(memory.host.differences(&self.facts));
        if reasons.is_empty() {
            return Ok(());
        }
        Err(unsupported(
            &format!(
                "its memory cannot be resumed on this machine: {}",
                reasons.join(", ")
            ),
            "Resume it where it was saved, or start from its disk; a template is built anew",
        ))
    }
}

#[async_trait::async_trait]
impl Driver for Firecracker {
    fn kind(&self) -> DriverKind {
        DriverKind::Firecracker
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
        let number = slot.number;
        if number >= MOST_SLOTS {
            return Err(DriverError::Exhausted {
                what: "slots",
                cause: format!("slot {number} is beyond the last of {MOST_SLOTS}"),
            });
        }
        self.inner.held().insert(number);
        match self.inner.prepare(&slot, plan).await {
            Ok(parts) => Ok(Box::new(PreparedMachine::new(parts, slot))),
            Err(error) => {
                let inner = Arc::clone(&self.inner);
                if let Err(error) = blocking(move || inner.clear_slot(number).map(drop)).await {
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
        let directory = self.inner.jail_of(record.slot).path().to_owned();
        let Some(notes) = blocking(move || Notes::find(&directory)).await? else {
            return Ok(None);
        };
        let inner = Arc::clone(&self.inner);
        let hold = Hold::of_adopted(
            Arc::clone(&inner),
            record.slot,
            (record.pid, record.start_time),
            process,
        )?;
        let alive: Result<messages::InstanceInfo, _> = hold.client.get("/", PATIENCE).await;
        alive?;
        inner.held().insert(record.slot);
        Ok(Some(Box::new(FirecrackerMachine::new(
            hold,
            notes,
            Stopwatch::start(),
        ))))
    }

    async fn sweep(&self, keep: &[u32]) -> Result<Vec<String>, DriverError> {
        let inner = Arc::clone(&self.inner);
        let keep = keep.to_vec();
        blocking(move || {
            let mut slots = Group::slots(&inner.hierarchies, &inner.options.instance);
            slots.extend(inner.jailed().into_iter().map(|(_, slot)| slot));
            slots.sort_unstable();
            slots.dedup();
            let mut removed = Vec::new();
            for slot in slots {
                let kept = keep.contains(&slot) || inner.held().contains(&slot);
                if !kept && inner.clear_slot(slot)? {
                    removed.push(format!("sandbox in slot {slot}"));
                }
            }
            Ok(removed)
        })
        .await
    }

    async fn shutdown(&self) {
        let mut clearing = self.inner.clearing.subscribe();
        let cleared = clearing.wait_for(|count| *count == 0);
        let _ = tokio::time::timeout(END_PATIENCE, cleared).await;
        Group::remove_instance(&self.inner.hierarchies, &self.inner.options.instance);
    }
}
