//! The real program as these tests start it, with a small template made of this machine's files.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Long enough for a machine that does many other things at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const PROGRAM: &str = env!("CARGO_BIN_EXE_atoll");

/// What sandboxes of these tests have.
const TOOLS: [&str; 13] = [
    "bash", "dash", "cat", "cp", "echo", "env", "id", "ls", "mkdir", "pwd", "sleep", "stty", "tar",
];

/// One running `atoll up` with a data directory of its own.
pub(crate) struct Atoll {
    pub(crate) data_dir: tempfile::TempDir,
    pub(crate) url: String,
    child: Child,
}

impl Atoll {
    /// Starts it and returns when it serves.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), arguments)
    }

    /// Starts it with a data directory that an earlier one may have used.
    pub(crate) fn start_in(data_dir: tempfile::TempDir, arguments: &[&str]) -> Self {
        let log = fs::File::create(data_dir.path().with_extension("log")).unwrap();
        let mut child = Command::new(PROGRAM)
            .args([
                "up",
                "--no-base",
                "--listen",
                "127.0.0.1:0",
                "--driver",
                "container",
            ])
            .args(["--pool-min", "2", "--pool-max", "8", "--data-dir"])
            .arg(data_dir.path())
            .args(arguments)
            .env_remove("ATOLL_API_KEY")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let Some(url) = line.trim_end().strip_prefix("ready ") else {
            let _ = child.wait();
            let log = fs::read_to_string(data_dir.path().with_extension("log")).unwrap();
            panic!("no `ready` line but `{line}`; the log:\n{log}");
        };
        Self {
            url: url.to_owned(),
            child,
            data_dir,
        }
    }

    /// Starts it and builds the template `small`.
    pub(crate) fn with_template() -> Self {
        let atoll = Self::start(&[]);
        atoll.build_template();
        atoll
    }

    /// Builds the template `small`: a shell and a few tools.
    pub(crate) fn build_template(&self) {
        let root = tempfile::tempdir().unwrap();
        make_root(root.path());
        let source = format!("dir:{}", root.path().display());
        let built = self.run(&["template", "build", "small", &source]);
        assert!(built.status.success(), "{}", text(&built.stderr));
    }

    /// A command of the program against this Atoll.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env("ATOLL_DATA_DIR", self.data_dir.path())
            .env_remove("ATOLL_URL")
            .env_remove("E2B_API_URL")
            .env_remove("E2B_SANDBOX_URL")
            .env_remove("ATOLL_API_KEY")
            .env_remove("E2B_API_KEY")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command of the program to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command of the program that must succeed; returns its standard output without the
    /// last line's end.
    pub(crate) fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout).trim_end().to_owned()
    }

    /// The sandboxes that run.
    pub(crate) fn sandboxes(&self) -> Vec<String> {
        self.good(&["ls", "--quiet"])
            .lines()
            .map(String::from)
            .collect()
    }

    /// Sends a signal to the program.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        send(&self.child, signal);
    }

    /// Ends it as a service manager would; returns its exit status and its data directory.
    pub(crate) fn stop(mut self) -> (Option<i32>, tempfile::TempDir) {
        self.signal(libc::SIGTERM);
        let status = wait(&mut self.child);
        let unused = tempfile::tempdir().unwrap();
        (status, std::mem::replace(&mut self.data_dir, unused))
    }

    /// Ends it; it must have ended well and left nothing.
    pub(crate) fn stop_clean(self) {
        let (status, data_dir) = self.stop();
        let log = fs::read_to_string(data_dir.path().with_extension("log")).unwrap();
        assert_eq!(status, Some(0), "{log}");
        assert_eq!(traces(data_dir.path()), Vec::<String>::new(), "{log}");
    }
}

impl Drop for Atoll {
    fn drop(&mut self) {
        // A test that failed must leave nothing either.
        if let Ok(None) = self.child.try_wait() {
            self.signal(libc::SIGTERM);
            wait(&mut self.child);
        }
        let _ = fs::remove_file(self.data_dir.path().with_extension("log"));
    }
}

/// Sends a signal to a process that this test started.
pub(crate) fn send(child: &Child, signal: libc::c_int) {
    // SAFETY: kill only sends a signal, and the child is not reaped while it is borrowed.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

/// Waits for a process to end; kills it when patience is over.
pub(crate) fn wait(child: &mut Child) -> Option<i32> {
    let ended = wait_for(|| child.try_wait().unwrap());
    match ended {
        Some(status) => status.code(),
        None => {
            let _ = child.kill();
            let _ = child.wait();
            None
        }
    }
}

/// What `condition` brings, asked again and again until patience is over.
pub(crate) fn wait_for<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    let (_never, pause) = std::sync::mpsc::channel::<()>();
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() > deadline {
            return None;
        }
        let _ = pause.recv_timeout(Duration::from_millis(10));
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A small root file system out of this machine's own programs and their libraries.
fn make_root(root: &Path) {
    for folder in [
        "bin",
        "etc",
        "tmp",
        "root",
        "home/user",
        "proc",
        "sys",
        "dev",
        "run",
        "var",
    ] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let mut files = BTreeSet::new();
    for tool in TOOLS {
        let path = PathBuf::from("/bin").join(tool);
        let libraries = Command::new("ldd").arg(&path).output().unwrap();
        let words = text(&libraries.stdout);
        files.extend(
            words
                .split_whitespace()
                .filter(|word| word.starts_with('/'))
                .map(PathBuf::from),
        );
        fs::copy(&path, root.join("bin").join(tool)).unwrap();
    }
    for file in files {
        let target = root.join(file.strip_prefix("/").unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, target).unwrap();
    }
    symlink("dash", root.join("bin/sh")).unwrap();
    fs::create_dir_all(root.join("usr")).unwrap();
    symlink("../bin", root.join("usr/bin")).unwrap();
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
    std::os::unix::fs::chown(root.join("home/user"), Some(1000), Some(1000)).unwrap();
}

/// What the instance of a data directory has on this machine, seen from outside.
pub(crate) fn traces(data_dir: &Path) -> Vec<String> {
    let data_dir = data_dir.canonicalize().unwrap();
    let instance = instance(&data_dir);
    let group = format!("atoll-{instance}");
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let groups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        let mounts = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        if groups.contains(&group) {
            found.push(format!("process {}", process.path().display()));
        }
        if mounts.contains(&*data_dir.to_string_lossy()) {
            found.push(format!("mount of {}", process.path().display()));
        }
    }
    for interface in fs::read_dir("/sys/class/net").unwrap().flatten() {
        let name = interface.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("at{instance}.")) {
            found.push(format!("interface {name}"));
        }
    }
    let rules = Command::new("nft")
        .args(["list", "tables"])
        .output()
        .unwrap();
    if text(&rules.stdout).contains(&format!("atoll_{instance}")) {
        found.push("nftables table".to_owned());
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        if hierarchy.path().join(&group).exists() {
            found.push(format!("control group in {}", hierarchy.path().display()));
        }
    }
    for device in fs::read_dir("/sys/block").unwrap().flatten() {
        let backing = device.path().join("loop/backing_file");
        let backing = fs::read_to_string(backing).unwrap_or_default();
        if backing.starts_with(&*data_dir.to_string_lossy()) {
            found.push(format!("loop device on {backing}"));
        }
    }
    found
}

/// The name that all of an instance's things carry.
fn instance(data_dir: &Path) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    child
        .stdin
        .take()
        .unwrap()
        .write_all(data_dir.as_os_str().as_encoded_bytes())
        .unwrap();
    text(&child.wait_with_output().unwrap().stdout)[..4].to_owned()
}
