//! [`Container`]: prepare, adopt, sweep, shut down.

use super::{
    connection::{Connection, Launch},
    keeper::IDS,
    machine::{Cell, ContainerMachine},
    prepared::PreparedCell,
    privileges::{Answers, SetUserId},
    process,
    protocol::{Answer, Prepare, Request},
    save::{self, DISK},
};
use crate::{
    Capabilities, Driver, DriverError, DriverKind, Machine, MachineRecord, NetworkSlot, Plan,
    Prepared, SavedState,
    blocking::blocking,
    cannot,
    cgroup::{Group, Hierarchies, IoLimits, Limits},
    directory::make_private,
    doing,
    layer::{self, Layer, Layers},
    phases::Stopwatch,
};
use api::{Bytes, Resources, boot::CellSetup};
use rustix::fs::{Mode, OFlags};
use std::{
    collections::HashSet,
    ffi::OsString,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// Slots that an instance may have; their users come one range after another.
const MOST_SLOTS: u32 = 4094;

/// Where users of sandboxes may begin, best first. The first lies above what systemd gives to
/// containers and below what it reserves (systemd.io/UIDS-GIDS).
const FIRST_IDS: [u32; 4] = [0x7000_0000, 0x5000_0000, 0x6000_0000, 0x4000_0000];

/// How long preparing may take.
const PREPARE_PATIENCE: Duration = Duration::from_secs(30);

/// How long shutting down waits for each thing.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// How a node runs containers.
#[derive(Debug, Clone)]
pub struct ContainerOptions {
    /// The data directory: layers are in `layers`, the keeper's socket in `run`.
    pub data_directory: PathBuf,
    /// Names what this instance makes on the machine: four hexadecimal digits.
    pub instance: String,
    /// The program, with arguments, that becomes the keeper: its `main` calls
    /// [`run_if_asked`](super::keeper::run_if_asked) first thing.
    pub keeper_command: Vec<OsString>,
    /// The host's number for the first user of the first slot; None chooses.
    pub first_id: Option<u32>,
    /// The size of writable layers that are made beforehand. A sandbox that wants another one
    /// starts a few milliseconds later.
    pub disk: Bytes,
    /// The most processes and threads of one sandbox.
    pub processes: u32,
    /// Limits on what each sandbox reads and writes of its layer; none for no limit. Where the
    /// machine's control groups cannot hold them, there are none, and the log says so.
    pub io: Option<IoLimits>,
    /// Whether set-user-id programs such as sudo gain privileges.
    pub set_user_id: SetUserId,
}

impl ContainerOptions {
    /// The usual options: this program itself is the keeper.
    pub fn new(data_directory: impl Into<PathBuf>, instance: impl Into<String>) -> Self {
        Self {
            data_directory: data_directory.into(),
            instance: instance.into(),
            keeper_command: vec!["/proc/self/exe".into(), "keeper".into()],
            first_id: None,
            disk: Resources::default().disk,
            processes: 2048,
            io: Some(IoLimits::default()),
            set_user_id: SetUserId::default(),
        }
    }
}

/// The `container` driver.
#[derive(Debug)]
pub struct Container {
    inner: Arc<Inner>,
}

/// What the driver and its sandboxes share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) options: ContainerOptions,
    pub(super) hierarchies: Hierarchies,
    pub(super) layers: Layers,
    pub(super) privileges: Answers,
    /// Set once the machine turned out to have no control groups that limit disk traffic.
    unlimited: AtomicBool,
    first_id: u32,
    launch: Launch,
    connection: tokio::sync::Mutex<Option<Arc<Connection>>>,
    /// Slots that have a prepared or running sandbox in this program.
    held: Mutex<HashSet<u32>>,
    /// How much is being cleared away in the background.
    clearing: watch::Sender<usize>,
}

impl Container {
    /// Looks at the machine and makes the directories. Starts nothing yet. Blocks.
    pub fn new(options: ContainerOptions) -> Result<Self, DriverError> {
        let unsupported = |cause: &str, remedy: &str| DriverError::Unsupported {
            cause: cause.into(),
            remedy: remedy.into(),
        };
        if !rustix::process::geteuid().is_root() {
            return Err(unsupported(
                "sandboxes with the `container` driver need root",
                "Start Atoll as root, for example with sudo",
            ));
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
        let run = options.data_directory.join("run");
        make_private(&run)?;
        let run = run
            .canonicalize()
            .map_err(doing("find the run directory"))?;
        let layers = options.data_directory.join("layers");
        make_private(&layers)?;
        let first_id = match options.first_id {
            Some(first_id) => first_id,
            None => choose_first_id(&taken_ids()).ok_or_else(|| {
                unsupported(
                    "all ranges of user ids are given away in /etc/subuid or /etc/subgid",
                    "Free 268,304,384 ids from 1,879,048,192 on",
                )
            })?,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                launch: Launch {
                    command: options.keeper_command.clone(),
                    directory: run,
                },
                layers: Layers::open(layers)?,
                privileges: Answers::default(),
                unlimited: AtomicBool::new(false),
                options,
                hierarchies,
                first_id,
                connection: tokio::sync::Mutex::default(),
                held: Mutex::default(),
                clearing: watch::channel(0).0,
            }),
        })
    }

    /// The keeper's pid, if this program started it.
    pub async fn keeper_pid(&self) -> Option<u32> {
        self.inner.connection.lock().await.as_ref()?.child_pid()
    }
}

impl Inner {
    /// The connection to the keeper; made if there is none, or none any more.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, DriverError> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = connection
            .as_ref()
            .filter(|connection| connection.is_alive())
        {
            return Ok(Arc::clone(connection));
        }
        *connection = None;
        let (opened, _) = Connection::open(&self.launch).await?;
        let opened = Arc::new(opened);
        *connection = Some(Arc::clone(&opened));
        Ok(opened)
    }

    pub(super) fn hold(&self, slot: u32) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(slot);
    }

    pub(super) fn let_go(&self, slot: u32) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&slot);
    }

    fn holds(&self, slot: u32) -> bool {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&slot)
    }

    /// Clears something away in the background; [`Driver::shutdown`] waits for it.
    pub(super) fn clear_away(self: &Arc<Self>, work: impl FnOnce() + Send + 'static) {
        let inner = Arc::clone(self);
        inner.begin_clearing();
        let work = move || {
            work();
            inner.end_clearing();
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(work)),
            Err(_) => work(),
        }
    }

    pub(super) fn begin_clearing(&self) {
        self.clearing.send_modify(|count| *count += 1);
    }

    pub(super) fn end_clearing(&self) {
        self.clearing
            .send_modify(|count| *count = count.saturating_sub(1));
    }

    /// What needs no keeper: the layer and the control group. Blocks.
    fn furnish(&self, slot: u32) -> Result<Furniture, DriverError> {
        let layer = self.layers.create(slot, self.options.disk)?;
        let furnish = || -> io::Result<Furniture> {
            let group = self.make_group(slot)?;
            self.limit_io(&group, &layer)?;
            let unified = group.unified().map(open_directory).transpose()?;
            let legacy: io::Result<Vec<_>> = group
                .legacy()
                .iter()
                .map(|group| open_members(group))
                .collect();
            Ok(Furniture {
                mount: layer.mount()?,
                unified,
                legacy: legacy?,
                layer: None,
            })
        };
        match furnish() {
            Ok(furniture) => Ok(Furniture {
                layer: Some(layer),
                ..furniture
            }),
            Err(error) => {
                layer.discard();
                let _ = Group::of(&self.hierarchies, &self.options.instance, slot).remove();
                Err(doing(format!("furnish slot {slot}"))(error))
            }
        }
    }

    /// Limits what a group may read and write of a layer.
    pub(super) fn limit_io(&self, group: &Group, layer: &Layer) -> io::Result<()> {
        let Some(limits) = &self.options.io else {
            return Ok(());
        };
        match group.limit_io(&layer.device(), limits) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                if !self.unlimited.swap(true, Ordering::Relaxed) {
                    tracing::warn!("disk traffic of sandboxes is not limited: {error}");
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Shuts a slot's layer if it is at the same time the disk of a saved state: what its processes
    /// do while they are killed must not reach it. Blocks.
    pub(super) fn shut_shared(&self, slot: u32) -> Result<(), DriverError> {
        if self.layers.is_shared(slot)
            && let Some(layer) = self.layers.reopen(slot)?
        {
            layer.release();
        }
        Ok(())
    }

    /// A fresh control group, even if an earlier sandbox of the slot left one with processes.
    fn make_group(&self, slot: u32) -> io::Result<Group> {
        let create = || Group::create(&self.hierarchies, &self.options.instance, slot);
        create().or_else(|_| {
            Group::of(&self.hierarchies, &self.options.instance, slot).kill_all()?;
            create()
        })
    }

    /// Ends and removes whatever is left in a slot. Blocks. True if there was anything.
    fn clear_slot(&self, slot: u32) -> Result<bool, DriverError> {
        let group = Group::of(&self.hierarchies, &self.options.instance, slot);
        let existed = group.exists();
        if existed {
            self.shut_shared(slot)?;
            group
                .kill_all()
                .map_err(doing(format!("end what is left in slot {slot}")))?;
            remove_group(&group).map_err(doing(format!("remove the group of slot {slot}")))?;
        }
        Ok(existed | self.layers.forget(slot)?)
    }
}

/// Removes a group whose processes are gone; the kernel may take a moment to notice.
pub(crate) fn remove_group(group: &Group) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match group.remove() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < 2000 => {
                tries += 1;
                std::thread::park_timeout(Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

/// What a cell is made with.
struct Furniture {
    layer: Option<Layer>,
    mount: OwnedFd,
    unified: Option<OwnedFd>,
    legacy: Vec<OwnedFd>,
}

#[async_trait::async_trait]
impl Driver for Container {
    fn kind(&self) -> DriverKind {
        DriverKind::Container
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            memory_snapshot: false,
            needs_disk: false,
            prepares_anything: true,
        }
    }

    async fn prepare(
        &self,
        slot: Arc<NetworkSlot>,
        _: &Plan,
    ) -> Result<Box<dyn Prepared>, DriverError> {
        let mut phases = Stopwatch::start();
        let number = slot.number;
        if number >= MOST_SLOTS {
            return Err(DriverError::Exhausted {
                what: "slots",
                cause: format!("slot {number} is beyond the last of {MOST_SLOTS}"),
            });
        }
        let connection = self.inner.connection().await?;
        self.inner.hold(number);
        let inner = Arc::clone(&self.inner);
        let furnished = blocking(move || inner.furnish(number)).await;
        let Furniture {
            layer,
            mount,
            unified,
            legacy,
        } = match furnished {
            Ok(furniture) => furniture,
            Err(error) => {
                self.inner.let_go(number);
                return Err(error);
            }
        };
        phases.mark("layer and control group");
        let request = Request::Prepare(Prepare {
            slot: number,
            first_id: self.inner.first_id + number * IDS,
            unified: unified.is_some(),
            setup: CellSetup {
                cgroups: self.inner.hierarchies.view(),
            },
        });
        let mut descriptors = vec![&slot.namespace, &mount];
        descriptors.extend(&unified);
        descriptors.extend(&legacy);
        let answer = connection
            .ask(request, &descriptors, PREPARE_PATIENCE)
            .await;
        drop((mount, unified, legacy));
        let made = match answer {
            Ok((
                Answer::Prepared {
                    pid,
                    start_time,
                    phases: steps,
                },
                descriptors,
            )) => {
                phases.insert(steps);
                match descriptors.into_iter().next() {
                    Some(process) => {
                        let inner = Arc::clone(&self.inner);
                        Cell::new(inner, number, (pid, start_time), process, Some(connection))
                    }
                    None => Err(DriverError::Guest("the keeper sent no process".into())),
                }
            }
            Ok((other, _)) => Err(DriverError::Guest(format!("unexpected answer: {other:?}"))),
            Err(error) => Err(error),
        };
        match made {
            Ok(mut cell) => {
                cell.layer = Mutex::new(layer);
                Ok(Box::new(PreparedCell::new(cell, slot, phases)))
            }
            Err(error) => {
                let inner = Arc::clone(&self.inner);
                let cleared = blocking(move || {
                    if let Some(layer) = layer {
                        layer.discard();
                    }
                    inner.clear_slot(number).map(drop)
                });
                if let Err(error) = cleared.await {
                    tracing::warn!(%error, slot = number, "half a sandbox is left");
                }
                self.inner.let_go(number);
                Err(error)
            }
        }
    }

    fn check(&self, state: &SavedState) -> Result<(), DriverError> {
        if state.memory.is_some() {
            return Err(cannot("resume a state with memory", "qemu or firecracker"));
        }
        match layer::complaint(&state.directory.join(DISK)) {
            None => Ok(()),
            Some(cause) => Err(DriverError::Unsupported {
                cause,
                remedy: "Start from another state, or from the template".into(),
            }),
        }
    }

    async fn adopt(&self, record: &MachineRecord) -> Result<Option<Box<dyn Machine>>, DriverError> {
        let found = process::find(record.pid, record.start_time)
            .map_err(doing(format!("look for process {}", record.pid)))?;
        let Some(process) = found else {
            return Ok(None);
        };
        let connection = self.inner.connection().await?;
        self.inner.hold(record.slot);
        let cell = Cell::new(
            Arc::clone(&self.inner),
            record.slot,
            (record.pid, record.start_time),
            process,
            Some(connection),
        )?;
        save::recover(&self.inner, &cell.group, record.slot)
            .map_err(doing(format!("let slot {} go on", record.slot)))?;
        Ok(Some(Box::new(ContainerMachine::new(
            cell,
            Stopwatch::start(),
        ))))
    }

    async fn sweep(&self, keep: &[u32]) -> Result<Vec<String>, DriverError> {
        let inner = Arc::clone(&self.inner);
        let keep = keep.to_vec();
        blocking(move || {
            let kept = |slot: &u32| keep.contains(slot) || inner.holds(*slot);
            let mut removed = Vec::new();
            let mut slots = Group::slots(&inner.hierarchies, &inner.options.instance);
            slots.extend(inner.layers.slots()?);
            slots.sort_unstable();
            slots.dedup();
            for slot in slots.iter().filter(|slot| !kept(slot)) {
                if inner.clear_slot(*slot)? {
                    removed.push(format!("sandbox in slot {slot}"));
                }
            }
            let mut kept: Vec<u32> = keep.clone();
            kept.extend(
                inner
                    .held
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .iter(),
            );
            for device in inner.layers.detach_stale(&kept) {
                removed.push(format!("loop device {}", device.display()));
            }
            Ok(removed)
        })
        .await
    }

    async fn clear(&self, slot: u32) -> Result<(), DriverError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            inner.clear_slot(slot)?;
            inner.let_go(slot);
            Ok(())
        })
        .await
    }

    async fn shutdown(&self) {
        let mut clearing = self.inner.clearing.subscribe();
        let cleared = clearing.wait_for(|count| *count == 0);
        let _ = tokio::time::timeout(END_PATIENCE, cleared).await;
        let Some(connection) = self.inner.connection.lock().await.take() else {
            return;
        };
        let again = Request::Hello {
            version: super::protocol::VERSION,
        };
        let empty = match connection.ask(again, &[], END_PATIENCE).await {
            Ok((Answer::Hello { pids }, _)) => pids.is_empty(),
            _ => false,
        };
        connection.close(empty).await;
        if empty {
            let inner = Arc::clone(&self.inner);
            let _ = blocking(move || {
                inner.clear_up();
                Ok(())
            })
            .await;
        }
    }
}

impl Inner {
    /// After the last sandbox: files of the keeper, the instance's control group.
    fn clear_up(&self) {
        let deadline = std::time::Instant::now() + END_PATIENCE;
        // The kernel clears a loop device after its last user is gone.
        while self.layers.attached() > 0 && std::time::Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        Group::remove_instance(&self.hierarchies, &self.options.instance);
        for name in ["keeper.sock", "keeper.log"] {
            let _ = fs::remove_file(self.launch.directory.join(name));
        }
        let _ = fs::remove_dir(self.launch.directory.join("stage"));
    }
}

pub(super) fn limits(resources: &Resources, processes: u32) -> Limits {
    Limits {
        memory: resources.memory.0,
        vcpus: resources.vcpus,
        processes,
    }
}

/// The file through which a process joins a control group of version 1.
fn open_members(group: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        group.join("cgroup.procs"),
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The contents of `/etc/subuid` and `/etc/subgid`, where they exist.
fn taken_ids() -> String {
    ["/etc/subuid", "/etc/subgid"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The first of [`FIRST_IDS`] whose range overlaps none in `taken` (`name:first:count` lines).
fn choose_first_id(taken: &str) -> Option<u32> {
    let ranges: Vec<(u64, u64)> = taken
        .lines()
        .filter_map(|line| {
            let mut fields = line
                .split(':')
                .skip(1)
                .map(|field| field.trim().parse::<u64>());
            let (first, count) = (fields.next()?.ok()?, fields.next()?.ok()?);
            Some((first, first.saturating_add(count)))
        })
        .collect();
    FIRST_IDS.into_iter().find(|first| {
        let (begin, end) = (
            u64::from(*first),
            u64::from(*first) + u64::from(MOST_SLOTS * IDS),
        );
        ranges
            .iter()
            .all(|(first, last)| *last <= begin || end <= *first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_never_overlap_those_given_away() {
        assert_eq!(choose_first_id(""), Some(0x7000_0000));
        assert_eq!(
            choose_first_id("root:100000:65536\nnonsense\n"),
            Some(0x7000_0000)
        );
        assert_eq!(choose_first_id("a:1879048192:1"), Some(0x5000_0000));
        assert_eq!(choose_first_id("a:0:4294967295"), None);
    }
}
