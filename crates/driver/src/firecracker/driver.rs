//! [`Firecracker`]: prepare, adopt, sweep, shut down.

use super::{
    client::Client,
    hold::Hold,
    jail::Jail,
    launch::{self, Launched},
    memory,
    messages::{
        Action, Backend, Balloon, BootSource, Change, DEVICES, DRIVES, Entropy, GuestMemory,
        INITRAMFS, Interface, KERNEL, LAYER, MEMORY, MachineConfig, Metadata, MetadataConfig, ROOT,
    },
    pages::{self, Pages},
    restore, save,
    version::{Version, parse_first_line},
};
use crate::{
    DriverError, DriverKind, MachineRecord, NetworkSlot, Origin, Plan, SaveOptions, SavedState,
    blocking::blocking,
    cgroup::{Group, Limits},
    full_or,
    kernel::{Hypervisor, Kernel, command_line},
    kvm,
    microvm::{self, Host, MicroVms, Vmm, notes::Notes, unsupported},
    phases::Stopwatch,
    slot::machine::{self, TAP},
    state::HostFacts,
};
use api::{Resources, Secret, boot::Identity};
use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

/// What Firecracker itself may use beside the machine's memory, in mebibytes.
const OWN_MEMORY: u64 = 64;

/// Threads that Firecracker may have beside the processors.
const OWN_THREADS: u32 = 16;

/// How long a machine may take to boot; many may boot at once.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// How long Firecracker may take for an ordinary request.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The most processors that Firecracker gives a machine.
const MOST_PROCESSORS: u32 = 32;

/// Where the memory of a machine that is loaded comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MemoryBackend {
    /// Firecracker maps the file: machines of one state share the pages that they only read.
    #[default]
    File,
    /// A process of this program's brings each page that the machine touches; see
    /// [`pages`](super::pages). Where the host has no userfaultfd, it is the file.
    Pages,
}

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
    /// Where the memory of a machine that is loaded comes from.
    pub memory: MemoryBackend,
    /// Whether memory is in pages of 2 MiB from the host's pool of them
    /// (`/proc/sys/vm/nr_hugepages`), which control groups do not count as memory. They are always
    /// brought by a process; states with and without them are not exchanged.
    pub huge_pages: bool,
    /// The program, with arguments, that brings pages: its `main` calls
    /// [`run_if_asked`](super::pages::run_if_asked) first thing.
    pub pages_command: Vec<OsString>,
    /// Whether a loaded machine's clocks go on from the time that it is. The guest is told the time
    /// anyway; this moves its monotonic clock, too, so that timers that were set before it was saved
    /// are up. Firecracker 1.16 or newer on Linux 5.16 or newer; others let them go on.
    pub advance_clock: bool,
    /// How often guests are asked what their memory holds, for
    /// [`guest_memory`](Firecracker::guest_memory). It wakes them each time.
    pub balloon_statistics: Option<Duration>,
    /// Whether programs inside can ask Firecracker at 169.254.169.254 for the ids of sandbox and
    /// template (MMDS, version 2).
    pub metadata: bool,
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
        let instance = instance.into();
        Self {
            data_directory: data_directory.into(),
            first_id: machine::first_user(&instance),
            instance,
            program,
            jailer,
            kernel,
            cpu_template: None,
            track_dirty_pages: true,
            memory: MemoryBackend::default(),
            huge_pages: false,
            pages_command: vec!["/proc/self/exe".into(), "pages".into()],
            advance_clock: false,
            balloon_statistics: None,
            metadata: false,
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
pub(crate) struct Inner {
    pub(super) options: FirecrackerOptions,
    pub(super) host: Arc<Host>,
    pub(super) version: Version,
    pub(super) facts: HostFacts,
    /// The folder above all jails.
    pub(super) jails: PathBuf,
    /// What the jailer names files and folders after.
    pub(super) program_name: OsString,
    /// Whether memory is brought page by page.
    serves_pages: bool,
}

impl MicroVms for Firecracker {
    type Vmm = Inner;

    fn vmm(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Firecracker {
    /// Looks at this host and makes the directories. Runs Firecracker and jailer for their
    /// versions, and a few instructions under KVM. Blocks.
    ///
    /// # Errors
    /// [`DriverError::Unsupported`] if something is missing, or too old.
    pub fn new(options: FirecrackerOptions) -> Result<Self, DriverError> {
        let hierarchies = Host::look()?;
        if options.try_kvm {
            kvm::usable().map_err(|reason| {
                unsupported(
                    format!("the `firecracker` driver needs KVM: {reason}"),
                    "Enable virtualisation in the firmware, or use the `qemu` driver",
                )
            })?;
        }
        let version = version_of(&options.program)?.check()?;
        let jailer = version_of(&options.jailer)?;
        if jailer != version {
            return Err(unsupported(
                format!("Firecracker is {version} and its jailer {jailer}"),
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
        let serves_pages = serves_pages(&options)?;
        let facts = facts(&options, version);
        let host = Host::open(
            hierarchies,
            &options.data_directory,
            &options.instance,
            options.first_id,
        )?;
        Ok(Self {
            inner: Arc::new(Inner {
                jails: host.folder("jails")?,
                host: Arc::new(host),
                version,
                facts,
                program_name,
                serves_pages,
                options,
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

    /// What the guest in a slot says of its memory; none of it is to be trusted.
    ///
    /// # Errors
    /// If it was started without
    /// [`balloon_statistics`](FirecrackerOptions::balloon_statistics), or does not run.
    pub async fn guest_memory(&self, slot: u32) -> Result<GuestMemory, DriverError> {
        Client::new(self.inner.jail_of(slot).root())
            .get("/balloon/statistics", PATIENCE)
            .await
    }
}

/// Whether memory is to be brought page by page, and can be.
fn serves_pages(options: &FirecrackerOptions) -> Result<bool, DriverError> {
    if !options.huge_pages && options.memory == MemoryBackend::File {
        return Ok(false);
    }
    match pages::is_usable() {
        Ok(()) => Ok(true),
        Err(error) if options.huge_pages => Err(unsupported(
            format!("huge pages need userfaultfd, and /dev/userfaultfd cannot be used: {error}"),
            "Start Linux 6.1 or newer with CONFIG_USERFAULTFD, or set vm.unprivileged_userfaultfd to 1",
        )),
        Err(error) => {
            tracing::warn!(%error, "memory comes from files, as userfaultfd cannot be used");
            Ok(false)
        }
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
        io::ErrorKind::NotFound => unsupported(format!("{name} is not there"), remedy),
        _ => unsupported(format!("{name} does not start: {error}"), remedy),
    })?;
    parse_first_line(&text)
        .ok_or_else(|| unsupported(format!("{name} does not tell its version"), remedy))
}

/// What snapshots are bound to: the format of their files is the version's, and what a processor
/// can is part of them, unless a template hides it.
fn facts(options: &FirecrackerOptions, version: Version) -> HostFacts {
    let format = ask(&options.program, "--snapshot-version").unwrap_or_default();
    let format: String = format.trim().chars().take(20).collect();
    let processor = match &options.cpu_template {
        Some(template) => format!("template {template}"),
        None => microvm::host_processor(),
    };
    let huge = if options.huge_pages {
        ", huge pages"
    } else {
        ""
    };
    let program = format!("Firecracker {version}, snapshots {format}{huge}");
    HostFacts::here(program, "kvm", processor, &options.kernel)
}

/// What a machine is made with.
struct Furniture {
    group: Group,
    jail: Jail,
    /// Where its pages are asked for, and the files that they are in, if they will be served.
    pages: Option<(OwnedFd, Vec<File>)>,
}

impl Inner {
    pub(super) fn jail_of(&self, slot: u32) -> Jail {
        let path = self.jails.join(&self.program_name).join(slot.to_string());
        Jail::at(path, self.host.user_of(slot))
    }

    pub(super) fn no_jailer(&self) -> DriverError {
        unsupported(
            format!("{} is not there", self.options.jailer.display()),
            "Install Firecracker's jailer, of the same release as Firecracker",
        )
    }

    /// The files of a machine, and its group. Blocks.
    fn furnish(&self, slot: u32, plan: &Plan) -> Result<Furniture, DriverError> {
        let jail = self.jail_of(slot);
        jail.make()?;
        jail.show(microvm::root_disk(plan, Self::KIND)?, ROOT)?;
        self.host.make_disk(plan, &jail.layer())?;
        jail.show_layer(LAYER)?;
        let mut pages = None;
        match &plan.origin {
            Origin::Saved(state) if state.memory.is_some() => {
                self.show_memory(&jail, state)?;
                if self.serves_pages {
                    pages = Some((pages::listen(&jail)?, memory::files_of(state)?));
                }
            }
            _ => {
                jail.show(&self.options.kernel.image, KERNEL)?;
                jail.show(&self.options.kernel.initramfs, INITRAMFS)?;
            }
        }
        Ok(Furniture {
            group: self.host.make_group(slot, &self.limits(&plan.resources))?,
            jail,
            pages,
        })
    }

    fn show_memory(&self, jail: &Jail, state: &SavedState) -> Result<(), DriverError> {
        if !self.serves_pages {
            jail.show(&memory::file_of(state)?, MEMORY)?;
        }
        jail.show(&state.directory.join(memory::DEVICES), DEVICES)?;
        let based = state
            .memory
            .as_ref()
            .is_some_and(|memory| memory.base.is_some());
        if based && self.options.track_dirty_pages {
            // Kept here too, as the state may be gone when this machine is saved.
            save::link_or_copy(
                &state.directory.join(memory::DIFFERENCE),
                &jail.difference(),
            )
            .map_err(|error| full_or(error, "keep what differs of a memory"))?;
        }
        Ok(())
    }

    /// All jails: the folder of the program, and the slot.
    fn jailed(&self) -> Vec<(PathBuf, u32)> {
        let read = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
        read(&self.jails)
            .flat_map(|program| read(&program.path()).map(move |slot| (program.path(), slot)))
            .filter_map(|(program, slot)| Some((program, slot.file_name().to_str()?.parse().ok()?)))
            .collect()
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
        let options = &self.options;
        let template = options.cpu_template.as_deref();
        let source = BootSource::new(command_line(Hypervisor::Firecracker, token));
        let interface = Interface::new(slot.tap.as_deref().unwrap_or(TAP));
        let describe = async {
            let config = MachineConfig::new(resources, template, options.huge_pages);
            client.put("/machine-config", &config, PATIENCE).await?;
            client.put("/boot-source", &source, PATIENCE).await?;
            for drive in &DRIVES {
                let path = format!("/drives/{}", drive.drive_id);
                client.put(&path, drive, PATIENCE).await?;
            }
            let path = format!("/network-interfaces/{}", interface.iface_id);
            client.put(&path, &interface, PATIENCE).await?;
            if options.metadata {
                let on = MetadataConfig::ON;
                client.put("/mmds/config", &on, PATIENCE).await?;
            }
            let statistics = options.balloon_statistics;
            let balloon = Balloon::new(self.version, statistics, options.huge_pages);
            client.put("/balloon", &balloon, PATIENCE).await?;
            client.put("/entropy", &Entropy {}, PATIENCE).await?;
            client.put("/actions", &Action::START, PATIENCE).await
        };
        hold.unless_ended(describe).await?;
        phases.mark("describe and start");
        hold.unless_ended(hold.wait_for_guest(BOOT_PATIENCE))
            .await?;
        phases.mark("boot");
        Ok(())
    }
}

#[async_trait::async_trait]
impl Vmm for Inner {
    type Hold = Hold;

    const KIND: DriverKind = DriverKind::Firecracker;
    const DISK: &'static str = Jail::LAYER;

    fn host(&self) -> &Arc<Host> {
        &self.host
    }

    fn facts(&self) -> &HostFacts {
        &self.facts
    }

    fn limits(&self, resources: &Resources) -> Limits {
        Limits {
            memory: resources.memory.0 + (OWN_MEMORY << 20),
            vcpus: resources.vcpus,
            processes: resources.vcpus + OWN_THREADS,
        }
    }

    /// Also those of a Firecracker that had another name.
    fn directories_of(&self, slot: u32) -> Vec<PathBuf> {
        let of_slot = self.jailed().into_iter();
        of_slot
            .filter(|(_, number)| *number == slot)
            .map(|(program, _)| program.join(slot.to_string()))
            .collect()
    }

    fn slots(&self) -> Vec<u32> {
        self.jailed().into_iter().map(|(_, slot)| slot).collect()
    }

    fn refuse(&self, resources: &Resources) -> Result<(), DriverError> {
        if resources.vcpus > MOST_PROCESSORS {
            return Err(unsupported(
                format!("a machine with {} processors", resources.vcpus),
                format!("Firecracker gives a machine at most {MOST_PROCESSORS}"),
            ));
        }
        if self.options.huge_pages && !resources.memory.as_mebibytes().is_multiple_of(2) {
            return Err(unsupported(
                format!(
                    "a machine on huge pages with {} of memory",
                    resources.memory
                ),
                "Ask for an even number of mebibytes",
            ));
        }
        Ok(())
    }

    async fn prepare(
        this: &Arc<Self>,
        slot: &Arc<NetworkSlot>,
        plan: &Plan,
        phases: &mut Stopwatch,
    ) -> Result<(Hold, Notes), DriverError> {
        let number = slot.number;
        let loaded = match &plan.origin {
            Origin::Saved(state) => state.memory.as_ref(),
            Origin::Fresh(_) => None,
        };
        let (inner, furnishing) = (Arc::clone(this), plan.clone());
        let furniture = blocking(move || inner.furnish(number, &furnishing)).await?;
        let Furniture { group, jail, pages } = furniture;
        phases.mark("files and control group");
        let limits = this.limits(&plan.resources);
        let launched: Launched = launch::launch(this, slot, &jail, &group, &limits).await?;
        phases.mark("Firecracker");
        let token = match loaded {
            Some(memory) => memory.control_token.clone(),
            None => microvm::random_token()?,
        };
        let loads = loaded.map(|_| match pages {
            Some(_) => Backend::PAGES,
            None => Backend::FILE,
        });
        if let Some((listener, memory)) = pages {
            let pages = Pages {
                command: &this.options.pages_command,
                slot,
                jail: &jail,
                group: &group,
                listener,
                memory,
            };
            pages.start(launched.process.descriptor.get_ref()).await?;
            phases.mark("server of pages");
        }
        let hold = Hold::of_launched(this, slot, launched, (group, jail), loads)?;
        if loads.is_none()
            && let Err(error) = this
                .boot(&hold, slot, &plan.resources, &token, phases)
                .await
        {
            let _ = hold.end().await;
            return Err(error);
        }
        let notes = Notes::of_plan(plan, this.options.track_dirty_pages, token);
        Ok((hold, notes))
    }

    async fn adopt(
        this: &Arc<Self>,
        record: &MachineRecord,
        process: OwnedFd,
    ) -> Result<Option<(Hold, Notes)>, DriverError> {
        let directory = this.jail_of(record.slot).path().to_owned();
        let Some(notes) = blocking(move || Notes::find(&directory)).await? else {
            return Ok(None);
        };
        let hold = Hold::of_adopted(this, record, process)?;
        hold.stands().await?;
        Ok(Some((hold, notes)))
    }

    async fn go(
        hold: &Hold,
        slot: &NetworkSlot,
        identity: &Identity,
        notes: &Notes,
        patience: Duration,
        phases: &mut Stopwatch,
    ) -> Result<(), DriverError> {
        if let Some(backend) = hold.loads {
            restore::load(hold, backend, slot, notes, patience).await?;
            phases.mark("load");
        }
        if hold.inner.options.metadata {
            // Firecracker saves that it answers, and not what.
            let metadata = Metadata::new(identity);
            let asked = hold.client.put("/mmds", &metadata, PATIENCE);
            hold.unless_ended(asked).await?;
        }
        Ok(())
    }

    async fn stands(hold: &Hold) -> Result<bool, DriverError> {
        hold.stands().await
    }

    async fn stop(hold: &Hold) -> Result<(), DriverError> {
        hold.change(Change::PAUSE).await
    }

    async fn go_on(hold: &Hold) -> Result<(), DriverError> {
        hold.change(Change::RESUME).await
    }

    async fn save(
        hold: &Hold,
        notes: &mut Notes,
        directory: &Path,
        options: SaveOptions,
        stands: bool,
    ) -> Result<SavedState, DriverError> {
        save::save(hold, notes, directory, options, stands).await
    }
}
