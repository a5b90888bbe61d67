//! What the tests of drivers share: a small root file system, networks, a data directory.

// Not every test file uses all of it.
#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod guest;
pub mod network;

use api::{Bytes, Resources, SandboxId, Secret, TemplateId, boot::Identity};
use driver::{
    Driver, DriverKind, Machine, NetworkSlot, Origin, Plan, Prepared, RootFiles, SavedState,
    StartSpec,
    container::{Container, ContainerOptions},
    firecracker::{Firecracker, FirecrackerOptions},
    kernel::Kernel,
    qemu::{Qemu, QemuOptions},
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

#[allow(unused_imports)]
pub use guest::is_healthy;

/// The port that guests serve on in tests.
pub const PORT: u16 = 49983;

/// Programs that the root file system has.
const PROGRAMS: [&str; 18] = [
    "base64", "bash", "sh", "cat", "cksum", "dd", "head", "id", "ls", "mkdir", "mknod", "mount",
    "mv", "sleep", "tail", "touch", "unshare", "uname",
];

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// A data directory with an instance of its own, and a root file system.
pub struct World {
    pub kind: DriverKind,
    pub directory: tempfile::TempDir,
    pub instance: String,
    /// Given to drivers.
    pub data: PathBuf,
    /// As a disk image it lies beside it.
    pub root: PathBuf,
    slots: AtomicU32,
}

impl World {
    /// One for containers.
    pub fn new() -> Self {
        Self::of(DriverKind::Container)
    }

    pub fn of(kind: DriverKind) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        build_root(&root);
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let instance = format!("{:04x}", (std::process::id() * 37 + number * 7919) & 0xffff);
        if kind != DriverKind::Container {
            build_disk(&root, &root.with_extension("img"));
        }
        Self {
            kind,
            data: directory.path().join("data"),
            directory,
            instance,
            root,
            slots: AtomicU32::new(0),
        }
    }

    pub fn options(&self) -> ContainerOptions {
        let mut options = ContainerOptions::new(&self.data, &self.instance);
        options.keeper_command = own_test("keeper_process");
        options.disk = Bytes::mebibytes(64);
        options
    }

    pub fn container(&self) -> Container {
        Container::new(self.options()).unwrap()
    }

    /// The driver under test.
    pub fn driver(&self) -> Box<dyn Driver> {
        match self.kind {
            DriverKind::Container => Box::new(self.container()),
            DriverKind::Qemu => {
                let mut options = QemuOptions::new(&self.data, &self.instance, kernel());
                options.jail_command = own_test("jail_process");
                Box::new(Qemu::new(options).unwrap())
            }
            DriverKind::Firecracker => {
                let program = firecracker();
                let jailer = program.with_file_name("jailer");
                let programs = (program, jailer);
                let options =
                    FirecrackerOptions::new(&self.data, &self.instance, programs, kernel());
                Box::new(Firecracker::new(options).unwrap())
            }
        }
    }

    /// Puts the root file system into the data directory, where images are.
    pub fn keep_root_with_data(&mut self) {
        let images = self.data.join("images");
        fs::create_dir_all(&images).unwrap();
        let root = images.join("root");
        fs::rename(&self.root, &root).unwrap();
        if self.kind != DriverKind::Container {
            fs::rename(self.root.with_extension("img"), root.with_extension("img")).unwrap();
        }
        self.root = root;
    }

    /// Moves the data directory. Nothing may run.
    pub fn move_data(&mut self, name: &str) {
        let moved = self.directory.path().join(name);
        fs::rename(&self.data, &moved).unwrap();
        if let Ok(below) = self.root.strip_prefix(&self.data) {
            self.root = moved.join(below);
        }
        self.data = moved;
    }

    /// A network that has what a sandbox needs, and no way out.
    pub fn network(&self) -> Arc<NetworkSlot> {
        let number = self.slots.fetch_add(1, Ordering::Relaxed);
        let is_machine = self.kind != DriverKind::Container;
        network::slot(number, is_machine.then(|| self.user_of(number)))
    }

    /// The user whom a slot's machine runs as.
    pub fn user_of(&self, slot: u32) -> u32 {
        driver::slot::machine::first_user(&self.instance) + slot
    }

    /// What to start, with a command that root runs once the guest serves.
    pub fn spec(&self, command: &str) -> StartSpec {
        let mut random = rand::rng();
        let sandbox: SandboxId = format!("i{:020}", random_number(&mut random))
            .parse()
            .unwrap();
        StartSpec {
            origin: self.origin(),
            resources: Resources {
                vcpus: 1,
                memory: Bytes::mebibytes(128),
                disk: Bytes::mebibytes(64),
            },
            identity: Identity {
                sandbox,
                template: TemplateId::random(&mut random),
                access_token: None,
                control_token: Secret::new("control"),
                environment: BTreeMap::new(),
                default_user: "root".into(),
                working_directory: "/".into(),
                start_command: (!command.is_empty()).then(|| command.to_owned()),
                port: PORT,
            },
            host_name: "sandbox-of-test".into(),
            name_servers: vec!["192.0.2.53".parse().unwrap()],
            search: None,
            deadline: Duration::from_secs(20),
            renew: true,
        }
    }

    /// The root file system that all sandboxes of a test share.
    pub fn origin(&self) -> Origin {
        Origin::Fresh(RootFiles {
            layers: vec![self.root.clone()],
            disk: (self.kind != DriverKind::Container).then(|| self.root.with_extension("img")),
        })
    }

    pub fn plan(&self) -> Plan {
        Plan {
            origin: self.origin(),
            resources: self.spec("").resources,
        }
    }

    pub async fn prepare(&self, driver: &dyn Driver) -> Box<dyn Prepared> {
        driver.prepare(self.network(), &self.plan()).await.unwrap()
    }

    pub async fn start(&self, driver: &dyn Driver, command: &str) -> Box<dyn Machine> {
        self.prepare(driver)
            .await
            .start(self.spec(command))
            .await
            .unwrap()
    }

    /// A sandbox that goes on where a state was saved.
    pub async fn resume(
        &self,
        driver: &dyn Driver,
        state: &Arc<SavedState>,
        renew: bool,
    ) -> Box<dyn Machine> {
        let plan = Plan {
            origin: Origin::Saved(Arc::clone(state)),
            resources: state.resources,
        };
        let prepared = driver.prepare(self.network(), &plan).await.unwrap();
        let mut spec = self.spec("");
        spec.origin = plan.origin;
        spec.resources = plan.resources;
        spec.renew = renew;
        prepared.start(spec).await.unwrap()
    }

    /// All that this instance has on the machine; empty if there is nothing.
    pub fn leftovers(&self) -> Vec<String> {
        let data = self.data.canonicalize().unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir(data.join("layers")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.starts_with("pristine-") {
                found.push(format!("layer {name}"));
            }
        }
        for folder in ["machines", "jails/firecracker"] {
            for entry in fs::read_dir(data.join(folder)).into_iter().flatten() {
                found.push(format!("machine {}", entry.unwrap().path().display()));
            }
        }
        for (device, file) in driver::layer::attached_below(&data) {
            found.push(format!("{} on {}", device.display(), file.display()));
        }
        let hierarchies = driver::cgroup::Hierarchies::find().unwrap();
        for slot in driver::cgroup::Group::slots(&hierarchies, &self.instance) {
            found.push(format!("control group of slot {slot}"));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = data.to_str().unwrap();
        found.extend(
            mounts
                .lines()
                .filter(|line| line.contains(here))
                .map(String::from),
        );
        found
    }

    /// Waits until nothing is left, but not long.
    pub async fn expect_nothing_left(&self) {
        wait_for("nothing to be left", || self.leftovers().is_empty()).await;
    }
}

/// A test that failed leaves nothing either.
impl Drop for World {
    fn drop(&mut self) {
        let Ok(hierarchies) = driver::cgroup::Hierarchies::find() else {
            return;
        };
        for slot in driver::cgroup::Group::slots(&hierarchies, &self.instance) {
            let group = driver::cgroup::Group::of(&hierarchies, &self.instance, slot);
            let _ = group.kill_all();
            let _ = group.remove();
        }
        driver::cgroup::Group::remove_instance(&hierarchies, &self.instance);
    }
}

fn random_number(random: &mut impl rand::Rng) -> u64 {
    random.random()
}

/// Polls until it holds, for what the kernel has no event for.
pub async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a sandbox's file holds, once it ends with a line `done`.
pub async fn report(machine: &dyn Machine, path: &str) -> String {
    let mut text = String::new();
    wait_for("a report from inside", || {
        text = guest::read(machine, path).unwrap_or_default();
        text.ends_with("done\n")
    })
    .await;
    text
}

/// A path inside, as the host reaches it. Only for containers whose content the test made.
pub fn inside(machine: &dyn Machine, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", machine.record().pid))
}

/// The host's shell and a few tools with their libraries.
fn build_root(root: &Path) {
    for name in [
        "bin", "dev", "etc", "lib", "lib64", "proc", "root", "sys", "tmp", "usr", "var/tmp",
    ] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
    for program in PROGRAMS {
        let found = ["/bin", "/usr/bin", "/sbin", "/usr/sbin"]
            .map(|folder| Path::new(folder).join(program))
            .into_iter()
            .find(|path| path.exists());
        let Some(found) = found else { continue };
        fs::copy(&found, root.join("bin").join(program)).unwrap();
        let libraries = Command::new("ldd").arg(&found).output().unwrap();
        for word in String::from_utf8_lossy(&libraries.stdout).split_whitespace() {
            if let Some(inside) = word.strip_prefix('/') {
                let target = root.join(inside);
                if !target.exists() {
                    fs::create_dir_all(target.parent().unwrap()).unwrap();
                    fs::copy(word, target).unwrap();
                }
            }
        }
    }
}

/// Layers as what a sandbox starts from.
pub fn origin(layers: Vec<PathBuf>) -> Origin {
    Origin::Fresh(RootFiles { layers, disk: None })
}

/// A disk image with what is in a directory.
fn build_disk(root: &Path, image: &Path) {
    fs::File::create(image).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-O", "^has_journal", "-d"])
        .args([root, image])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// This test's own program, as what a driver starts for one of its helpers.
pub fn own_test(name: &str) -> Vec<OsString> {
    let mut command = vec![std::env::current_exe().unwrap().into()];
    command.extend([name, "--exact", "--nocapture", "--test-threads=1"].map(Into::into));
    command
}

/// The real Firecracker, with its jailer beside it.
fn firecracker() -> PathBuf {
    std::env::var_os("ATOLL_TEST_FIRECRACKER")
        .map(PathBuf::from)
        .expect("ATOLL_TEST_FIRECRACKER names Firecracker")
}

/// The kernel of microVMs: `ATOLL_TEST_KERNEL`, or the distribution's, unpacked once for all tests.
fn kernel() -> Kernel {
    // Examples have none.
    let directory = option_env!("CARGO_TARGET_TMPDIR").unwrap_or("/tmp");
    let directory = Path::new(directory).join("guest-kernel");
    fs::create_dir_all(&directory).unwrap();
    let lock = fs::File::create(directory.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let given = std::env::var_os("ATOLL_TEST_KERNEL").map(PathBuf::from);
    Kernel::find(&directory, given.as_deref(), |_| ()).unwrap()
}
