//! [`Qemu`]: prepare, adopt, sweep, shut down.

use super::{
    accelerator::Accelerator,
    arguments::{Begin, Description, LAYOUT, TRANSLATIONS, memory_size},
    hold::Hold,
    launch::{self, Launch},
    machine::QemuMachine,
    memory,
    options::QemuOptions,
    restore,
    runtime::Runtime,
    save,
};
use crate::{
    DriverError, DriverKind, MachineRecord, NetworkSlot, Origin, Plan, SaveOptions, SavedState,
    cgroup::{Group, Limits},
    directory::{self, make_private},
    doing,
    kernel::{command_line, time_stamp_khz},
    microvm::{self, Host, MicroVms, Vmm, console::Console, notes::Notes},
    phases::Stopwatch,
    sparse,
    state::HostFacts,
};
use api::{Resources, boot::Identity};
use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub(super) use crate::{blocking::blocking, full_or};

/// What QEMU itself may use beside the machine's memory, in mebibytes.
const OWN_MEMORY: u64 = 128;

/// Threads that QEMU may have beside the processors.
const OWN_THREADS: u32 = 96;

/// How long a machine may take to boot. Translation is slow, and many may boot at once.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);

/// How long QEMU may take for an ordinary command.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The `qemu` driver.
#[derive(Debug)]
pub struct Qemu {
    inner: Arc<Inner>,
}

/// What the driver and its machines share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(super) options: QemuOptions,
    pub(super) host: Arc<Host>,
    pub(super) runtime: Runtime,
    pub(super) accelerator: Accelerator,
    pub(super) facts: HostFacts,
    machines: PathBuf,
}

impl MicroVms for Qemu {
    type Vmm = Inner;

    fn vmm(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Qemu {
    /// Looks at this host and makes the directories. Runs QEMU once for its version, and a few
    /// instructions under KVM. Blocks.
    pub fn new(options: QemuOptions) -> Result<Self, DriverError> {
        let hierarchies = Host::look()?;
        let accelerator = options.accelerator.unwrap_or_else(Accelerator::choose);
        let runtime = Runtime::find(options.program.as_deref(), accelerator)?;
        let facts = HostFacts {
            counter_khz: match accelerator {
                Accelerator::Tcg => Some(time_stamp_khz()),
                // Told to the guest by KVM, which scales it where it must.
                Accelerator::Kvm => None,
            },
            ..HostFacts::here(
                runtime.version.clone(),
                accelerator.name(),
                accelerator.processor_facts(),
                &options.kernel,
                LAYOUT,
            )
        };
        let host = Host::open(
            hierarchies,
            &options.data_directory,
            &options.instance,
            options.first_id,
        )?;
        Ok(Self {
            inner: Arc::new(Inner {
                machines: host.folder("machines")?,
                host: Arc::new(host),
                runtime,
                accelerator,
                facts,
                options,
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

/// What a machine is made with.
struct Furniture {
    root: File,
    layer: File,
    memory: File,
    group: Group,
}

impl Inner {
    pub(super) fn directory_of(&self, slot: u32) -> PathBuf {
        self.machines.join(slot.to_string())
    }

    /// The files of a machine, and its group. Blocks.
    fn furnish(&self, slot: u32, plan: &Plan) -> Result<Furniture, DriverError> {
        let directory = self.directory_of(slot);
        directory::remove(&directory)?;
        make_private(&directory)?;
        let open =
            |path: &Path| File::open(path).map_err(doing(format!("open {}", path.display())));
        let root = open(microvm::root_disk(plan, Self::KIND)?)?;
        let layer = self.host.make_disk(plan, &directory.join(Self::DISK))?;
        let memory = match &plan.origin {
            Origin::Saved(state) => match &state.memory {
                Some(saved) => {
                    let whole = saved.base.as_ref().unwrap_or(&state.directory);
                    open(&whole.join(memory::WHOLE))?
                }
                None => self.empty_memory(&directory, &plan.resources)?,
            },
            Origin::Fresh(_) => self.empty_memory(&directory, &plan.resources)?,
        };
        Ok(Furniture {
            root,
            layer,
            memory,
            group: self.host.make_group(slot, &self.limits(&plan.resources))?,
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
}

#[async_trait::async_trait]
impl Vmm for Inner {
    type Hold = Hold;

    const KIND: DriverKind = DriverKind::Qemu;
    const DISK: &'static str = "disk.img";
    const WARMS_UP: bool = true;

    fn host(&self) -> &Arc<Host> {
        &self.host
    }

    fn facts(&self) -> &HostFacts {
        &self.facts
    }

    fn limits(&self, resources: &Resources) -> Limits {
        let translations = match self.accelerator {
            Accelerator::Kvm => 0,
            Accelerator::Tcg => TRANSLATIONS,
        };
        Limits {
            memory: resources.memory.0 + ((OWN_MEMORY + translations) << 20),
            vcpus: resources.vcpus,
            processes: resources.vcpus + OWN_THREADS,
        }
    }

    fn directories_of(&self, slot: u32) -> Vec<PathBuf> {
        vec![self.directory_of(slot)]
    }

    fn slots(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.machines).into_iter().flatten();
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect()
    }

    async fn prepare(
        this: &Arc<Self>,
        slot: &Arc<NetworkSlot>,
        plan: &Plan,
        phases: &mut Stopwatch,
    ) -> Result<(Hold, Notes), DriverError> {
        let number = slot.number;
        let (inner, furnishing) = (Arc::clone(this), plan.clone());
        let furniture = blocking(move || inner.furnish(number, &furnishing)).await?;
        phases.mark("files and control group");
        let resumed = match &plan.origin {
            Origin::Saved(state) => state.memory.as_ref().map(|memory| (state, memory)),
            Origin::Fresh(_) => None,
        };
        let token = match resumed {
            Some((_, memory)) => memory.control_token.clone(),
            None => microvm::random_token()?,
        };
        let description = Description {
            accelerator: this.accelerator,
            stale_code: this.runtime.has_stale_code(),
            resources: plan.resources,
            begin: match resumed {
                Some(_) => Begin::Incoming,
                None => Begin::Boot {
                    parameters: command_line(this.accelerator.hypervisor(), &token),
                },
            },
        };
        let launched = launch::launch(
            this,
            Launch {
                slot,
                directory: &this.directory_of(number),
                description: &description,
                group: &furniture.group,
                root: furniture.root.into(),
                layer: furniture.layer.into(),
                memory: furniture.memory.into(),
            },
        )
        .await?;
        phases.insert(launched.phases.clone());
        let hold = Hold::of_launched(this, slot, launched, furniture.group)?;
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
        Ok((hold, Notes::of_plan(&**this, plan, true, token)))
    }

    async fn adopt(
        this: &Arc<Self>,
        record: &MachineRecord,
        process: OwnedFd,
    ) -> Result<Option<(Hold, Notes)>, DriverError> {
        let directory = this.directory_of(record.slot);
        let notes = Notes::read(&directory, this.host.data_directory())?;
        let console = Console::connect(&directory, launch::SERIAL).ok();
        let hold = Hold::of_adopted(this, record, process, console).await?;
        Ok(Some((hold, notes)))
    }

    async fn go(
        hold: &Hold,
        _: &NetworkSlot,
        _: &Identity,
        _: &Notes,
        _: Duration,
        phases: &mut Stopwatch,
    ) -> Result<(), DriverError> {
        // One that has booted runs already, and takes no notice.
        hold.go_on().await?;
        phases.mark("go");
        Ok(())
    }

    async fn stands(hold: &Hold) -> Result<bool, DriverError> {
        hold.stands().await
    }

    async fn stop(hold: &Hold) -> Result<(), DriverError> {
        hold.stop().await
    }

    async fn go_on(hold: &Hold) -> Result<(), DriverError> {
        hold.go_on().await
    }

    async fn save(
        hold: &Hold,
        notes: &mut Notes,
        directory: &Path,
        options: SaveOptions,
        stands: bool,
    ) -> Result<SavedState, DriverError> {
        save::save(&QemuMachine { hold, notes }, directory, options, stands).await
    }

    /// Pages of its own, and those that it has written to the file that is its memory.
    fn own_memory(hold: &Hold) -> io::Result<Option<u64>> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", hold.pid))?;
        let own = field(&rollup, "Anonymous:").max(field(&rollup, "Private_Dirty:"));
        Ok(Some(own))
    }
}

async fn boot(hold: &Hold) -> Result<(), DriverError> {
    hold.go_on().await?;
    hold.wait_for_guest(BOOT_PATIENCE).await
}

/// A line `name: value kB` in bytes; 0 if there is none.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter_map(|value| value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .next()
        .unwrap_or(0)
        << 10
}
