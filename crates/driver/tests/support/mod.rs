//! What the tests of drivers share: a small root file system, networks, a data directory.

// Not every test file uses all of it.
#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::panic)]

use api::{Bytes, Resources, SandboxId, Secret, TemplateId, boot::Identity};
use driver::{
    Driver, Machine, NetworkSlot, Origin, Plan, Prepared, RootFiles, StartSpec,
    container::{Container, ContainerOptions},
};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// The port that guests serve on in tests.
pub const PORT: u16 = 49983;

/// Programs that the root file system has.
const PROGRAMS: [&str; 15] = [
    "bash", "sh", "cat", "dd", "head", "id", "ls", "mkdir", "mknod", "mount", "sleep", "tail",
    "touch", "unshare", "uname",
];

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// A data directory with an instance of its own, and a root file system.
pub struct World {
    pub directory: tempfile::TempDir,
    pub instance: String,
    pub root: PathBuf,
    slots: AtomicU32,
}

impl World {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        build_root(&root);
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let instance = format!("{:04x}", (std::process::id() * 37 + number * 7919) & 0xffff);
        Self {
            directory,
            instance,
            root,
            slots: AtomicU32::new(0),
        }
    }

    pub fn options(&self) -> ContainerOptions {
        let mut options = ContainerOptions::new(self.directory.path().join("data"), &self.instance);
        let own = std::env::current_exe().unwrap();
        options.keeper_command = vec![own.into()];
        let arguments = [
            "keeper_process",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ];
        options.keeper_command.extend(arguments.map(Into::into));
        options.disk = Bytes::mebibytes(64);
        options
    }

    pub fn driver(&self) -> Container {
        Container::new(self.options()).unwrap()
    }

    /// A network with nothing but its loopback interface.
    pub fn network(&self) -> Arc<NetworkSlot> {
        let number = self.slots.fetch_add(1, Ordering::Relaxed);
        let namespace = std::thread::spawn(new_network).join().unwrap();
        Arc::new(NetworkSlot {
            number,
            namespace,
            host_interface: "none".into(),
            address: Ipv4Addr::LOCALHOST,
            gateway: Ipv4Addr::LOCALHOST,
            tap: None,
        })
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
            deadline: Duration::from_secs(20),
            renew: true,
        }
    }

    /// The root file system that all sandboxes of a test share.
    pub fn origin(&self) -> Origin {
        origin(vec![self.root.clone()])
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

    /// All that this instance has on the machine; empty if there is nothing.
    pub fn leftovers(&self) -> Vec<String> {
        let data = self.directory.path().join("data").canonicalize().unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir(data.join("layers")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.starts_with("pristine-") {
                found.push(format!("layer {name}"));
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
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a sandbox's file holds, once it ends with a line `done`.
pub async fn report(machine: &dyn Machine, path: &str) -> String {
    let path = inside(machine, path);
    let mut text = String::new();
    wait_for("a report from inside", || {
        text = fs::read_to_string(&path).unwrap_or_default();
        text.ends_with("done\n")
    })
    .await;
    text
}

/// A path inside, as the host reaches it. Only for sandboxes whose content the test made.
pub fn inside(machine: &dyn Machine, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", machine.record().pid))
}

/// Asks the guest for its health, from inside its network.
pub fn is_healthy(machine: &dyn Machine) -> bool {
    let namespace = format!("/proc/{}/ns/net", machine.record().pid);
    let ask = move || -> std::io::Result<bool> {
        let namespace = fs::File::open(namespace)?;
        // SAFETY: moves this thread alone, which ends with the question.
        if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 64];
        let length = stream.read(&mut answer)?;
        Ok(answer[..length].starts_with(b"HTTP/1.1 204"))
    };
    std::thread::spawn(ask).join().unwrap().unwrap_or(false)
}

fn new_network() -> OwnedFd {
    // SAFETY: gives this thread alone, which ends after this, another network.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(unshared, 0, "needs root");
    // SAFETY: an ordinary socket and a zeroed request that names the loopback interface.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        assert_eq!(
            libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request),
            0
        );
        libc::close(socket);
    }
    fs::File::open("/proc/thread-self/ns/net").unwrap().into()
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
