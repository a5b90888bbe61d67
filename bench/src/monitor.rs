//! The peer of the microVM scenarios: QEMU alone, started by hand from the very files that Atoll
//! starts a sandbox from, with the command line that Atoll gave it.
//!
//! Nothing of Atoll runs here: no jail, no control group, no network namespace. QEMU opens its files
//! by name, reads the saved state at its start, and goes on by itself.

use crate::{api::Client, host};
use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

/// What every machine sees of its network.
const GUEST: &str = "169.254.0.21";
const GUEST_MAC: &str = "02:a7:01:1a:00:02";
const HOST: &str = "169.254.0.22/30";
const HOST_MAC: &str = "02:a7:01:1a:00:01";
const PORT: u16 = 49983;

/// How long a machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A state of a template, and how Atoll runs machines that start from it.
pub(crate) struct Peer {
    arguments: Vec<String>,
    root: PathBuf,
    state: PathBuf,
    control: String,
    folder: PathBuf,
    tap: String,
}

/// How long the same guest took when QEMU ran alone.
pub(crate) struct Restored {
    /// Until the guest answered at all.
    pub(crate) answered: Duration,
    /// Until it had been told who it is.
    pub(crate) claimed: Duration,
    /// Until the first command's result.
    pub(crate) done: Duration,
}

impl Peer {
    /// Takes over what is needed while a machine of this instance runs.
    pub(crate) fn of(data_dir: &Path, instance: &str) -> Result<Self> {
        let (root, state, control) = template_state(data_dir)?;
        let arguments = host::processes_in_group(&format!("atoll-{instance}"))
            .into_iter()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok())
            .map(|text| {
                text.split_terminator('\0')
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .find(|arguments| arguments.iter().any(|argument| argument == "-incoming"))
            .context("no machine that was restored runs")?;
        let id = std::process::id();
        let folder = std::env::temp_dir().join(format!("atoll-bench-{id}"));
        fs::create_dir_all(&folder)?;
        let peer = Self {
            arguments: by_name(arguments, &state.join("memory")),
            root,
            state,
            control,
            folder,
            tap: format!("atb{id}"),
        };
        peer.make_tap()?;
        Ok(peer)
    }

    fn make_tap(&self) -> Result<()> {
        let tap = self.tap.as_str();
        ip(&["tuntap", "add", tap, "mode", "tap", "vnet_hdr"])?;
        ip(&["link", "set", tap, "address", HOST_MAC, "up"])?;
        ip(&["address", "add", HOST, "dev", tap])?;
        let neighbour = [
            "neigh",
            "replace",
            GUEST,
            "lladdr",
            GUEST_MAC,
            "dev",
            tap,
            "nud",
            "permanent",
        ];
        ip(&neighbour)
    }

    /// Restores the template's state and runs one command in the guest.
    pub(crate) async fn restore(&self, command: &str) -> Result<Restored> {
        let disk = self.folder.join("disk.img");
        let copied = std::process::Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .args([&self.state.join("disk.img"), &disk])
            .status()?;
        ensure!(copied.success(), "cannot copy the disk of the template");
        let mut child = self.spawn(&disk)?;
        let mut start = child.stdin.take().context("no standard input")?;
        // The shell is there and has opened nothing yet: the clock starts with QEMU.
        let began = Instant::now();
        start.write_all(b"go\n").await?;
        let outcome = timeout(PATIENCE, self.ask(began, command)).await;
        child.kill().await?;
        match outcome {
            Ok(restored) => restored,
            Err(_) => {
                let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                anyhow::bail!("QEMU alone did not answer within {PATIENCE:?}: {log}")
            }
        }
    }

    fn spawn(&self, disk: &Path) -> Result<Child> {
        let shell = "read -r _; exec 12<\"$1\" 13<>\"$2\" 15<\"$3\"; shift 3; exec \"$@\"";
        let sockets = ["-chardev", "null,id=qmp", "-chardev", "null,id=serial"];
        Ok(Command::new("bash")
            .args(["-c", shell, "bash"])
            .arg(&self.root)
            .arg(disk)
            .arg(self.state.join("devices.state"))
            .args(
                self.arguments
                    .iter()
                    .map(|argument| argument.replace("TAP", &self.tap)),
            )
            .args(sockets)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.folder.join("log"))?)
            .kill_on_drop(true)
            .spawn()?)
    }

    async fn ask(&self, began: Instant, command: &str) -> Result<Restored> {
        let stream = connect(format!("{GUEST}:{PORT}").parse()?).await?;
        let answered = began.elapsed();
        let mut guest = Client::over(stream, "").await?;
        let token = "b3".repeat(20);
        guest
            .put("/_atoll/identity", &self.control, &claim(&token)?)
            .await?;
        let claimed = began.elapsed();
        // As for a sandbox: the user's connection is another one.
        let stream = TcpStream::connect(format!("{GUEST}:{PORT}")).await?;
        let mut guest = Client::over(stream, "").await?;
        guest.run_inside(&token, command).await?;
        Ok(Restored {
            answered,
            claimed,
            done: began.elapsed(),
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let removed = ip(&["link", "delete", self.tap.as_str()]);
        let cleared = fs::remove_dir_all(&self.folder);
        if removed.is_err() || cleared.is_err() {
            eprintln!("{} or {} is left", self.tap, self.folder.display());
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let done = std::process::Command::new("ip")
        .args(arguments)
        .status()
        .context("starting ip: install Debian's package iproute2")?;
    ensure!(done.success(), "ip {} failed", arguments.join(" "));
    Ok(())
}

/// The root disk, the state's directory and the control token of the only template.
fn template_state(data_dir: &Path) -> Result<(PathBuf, PathBuf, String)> {
    let states = data_dir.join("states");
    let found = fs::read_dir(&states)
        .with_context(|| format!("reading {}", states.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.join("devices.state").exists())
        .with_context(|| format!("no state below {}", states.display()))?;
    let text = fs::read_to_string(found.join("state.json"))?;
    let about: Value = serde_json::from_str(&text)?;
    let field = |value: &Value| value.as_str().map(str::to_owned);
    let root = field(&about["root"]["disk"]).context("the state names no disk")?;
    let control =
        field(&about["memory"]["control_token"]).context("the state has no control token")?;
    // Paths in the data directory are relative to it.
    Ok((data_dir.join(root), found, control))
}

/// The command line with files by name where Atoll hands descriptors over, and without waiting for
/// anybody's commands.
fn by_name(arguments: Vec<String>, memory: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "-S" => {}
            "-chardev" => drop(rest.next()),
            "-incoming" => {
                rest.next();
                all.extend(["-incoming".into(), "fd:15".into()]);
            }
            _ if argument.starts_with("tap,") => {
                all.push("tap,id=net,ifname=TAP,script=no,downscript=no,vhost=off".to_owned())
            }
            _ => all.push(argument.replace(
                "mem-path=/memory",
                &format!("mem-path={}", memory.display()),
            )),
        }
    }
    all
}

/// Connects as soon as somebody listens. What is sent before the guest moves may be lost, so a try
/// begins every few milliseconds, and the first that is answered counts.
async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let mut tries = FuturesUnordered::new();
    let mut again = tokio::time::interval(Duration::from_millis(4));
    loop {
        tokio::select! {
            _ = again.tick() => tries.push(TcpStream::connect(address)),
            Some(outcome) = tries.next(), if !tries.is_empty() => {
                if let Ok(stream) = outcome {
                    return Ok(stream);
                }
            }
        }
    }
}

/// What a guest is told that becomes a sandbox.
fn claim(token: &str) -> Result<Value> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(json!({
        "identity": {
            "sandbox": format!("i{}", "0".repeat(20)),
            "template": "0".repeat(20),
            "access_token": token,
            "control_token": "c4".repeat(16),
            "environment": {},
            "default_user": "user",
            "working_directory": "",
            "start_command": null,
            "port": PORT,
        },
        "host_name": format!("i{}", "0".repeat(20)),
        "name_servers": [],
        "unix_time_ns": u64::try_from(now.as_nanos())?,
        "entropy": "A".repeat(86) + "==",
        "renew": true,
    }))
}
