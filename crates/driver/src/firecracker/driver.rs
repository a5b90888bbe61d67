//! [`Firecracker`]: prepare, adopt, sweep, shut down.

use super::{
    boot::boot,
    client::Client,
    hold::Hold,
    jail::Jail,
    launch::{self, Launched},
    memory,
    messages::{
        Backend, Change, DEVICES, GuestMemory, INITRAMFS, KERNEL, LAYER, MEMORY, Metadata, ROOT,
    },
    options::FirecrackerOptions,
    pages::{self, Pages},
    restore,
    runtime::{facts, serves_pages, version_of},
    save,
    version::Version,
};
use crate::{
    DriverError, DriverKind, MachineRecord, NetworkSlot, Origin, Plan, SaveOptions, SavedState,
    blocking::blocking,
    cgroup::{Group, Limits},
    full_or, kvm,
    microvm::{self, Host, MicroVms, Vmm, notes::Notes, unsupported},
    phases::Stopwatch,
    state::HostFacts,
};
use api::{Resources, boot::Identity};
use std::{
    ffi::OsString,
    fs::{self, File},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// What Firecracker itself may use beside the machine's memory, in mebibytes.
const OWN_MEMORY: u64 = 64;

/// Threads that Firecracker may have beside the processors.
const OWN_THREADS: u32 = 16;

/// How long Firecracker may take for an ordinary request.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The most processors that Firecracker gives a machine.
const MOST_PROCESSORS: u32 = 32;

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
}

#[async_trait::async_trait]
impl Vmm for Inner {
    type Hold = Hold;

    const KIND: DriverKind = DriverKind::Firecracker;
    const DISK: &'static str = Jail::LAYER;
    // Its machines are resumed when they become somebody's, and nothing is translated.
    const WARMS_UP: bool = false;

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
            && let Err(error) = boot(&hold, slot, &plan.resources, &token, phases).await
        {
            let _ = hold.end().await;
            return Err(error);
        }
        let notes = Notes::of_plan(&**this, plan, this.options.track_dirty_pages, token);
        Ok((hold, notes))
    }

    async fn adopt(
        this: &Arc<Self>,
        record: &MachineRecord,
        process: OwnedFd,
    ) -> Result<Option<(Hold, Notes)>, DriverError> {
        let directory = this.jail_of(record.slot).path().to_owned();
        let host = Arc::clone(&this.host);
        let find = move || Notes::find(&directory, host.data_directory());
        let Some(notes) = blocking(find).await? else {
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
