//! Running mmdebstrap: arguments, output, and the end of it.

use super::progress::{Progress, Told};
use crate::{
    build::{Content, Counter, Report, unpack_only},
    error::ImageError,
    store::{Inner, LayerUse, Temporary},
};
use api::node::LogLevel;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

/// Everything in the archive is at most as young as this (20 June 2025), so that two builds from
/// the same packages are the same.
const EPOCH: &str = "1750377600";
/// Lines of output that an error repeats.
const LAST_LINES: usize = 12;
/// The longest line that is taken from the tool's output.
const LINE_MAX: u64 = 64 << 10;

/// An error if mmdebstrap is missing or may not be run.
pub(super) async fn find() -> Result<(), ImageError> {
    let lookup = |program: &str| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).any(|path| path.join(program).is_file())
    };
    for (program, package) in [
        ("mmdebstrap", "mmdebstrap"),
        ("unshare", "util-linux"),
        ("setpriv", "util-linux"),
    ] {
        if !lookup(program) {
            return Err(ImageError::Tool {
                cause: format!("building a Debian image needs `{program}`, which is not installed"),
                remedy: format!("install it: apt-get install {package}"),
            });
        }
    }
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::Tool {
            cause: "building a Debian image needs root".into(),
            remedy: "run Atoll as root, or use a docker://, oci: or tar: source".into(),
        });
    }
    Ok(())
}

/// What to install.
pub(super) struct Bootstrap {
    pub(super) suite: String,
    pub(super) packages: Vec<String>,
    pub(super) excluded: &'static [&'static str],
    /// Lines for apt; none for mmdebstrap's own choice.
    pub(super) sources: Option<super::apt_sources::Sources>,
    /// Run with the root file system as `$1` when all is installed.
    pub(super) script: String,
}

impl Bootstrap {
    /// Installs into a new layer of the store. Blocks until every process is gone.
    pub(super) fn run(self, store: &Arc<Inner>, report: &Report) -> Result<LayerUse, ImageError> {
        // Seen as /tmp by mmdebstrap, and by nobody else: the store itself is closed to others.
        let work = store.layout.temporary()?;
        self.furnish(&work)?;
        let counter = report.step(format!("preparing Debian {}", self.suite), None);
        let mut child = self
            .command(work.path(), &store.layout.packages())
            .spawn()
            .map_err(|error| ImageError::Tool {
                cause: format!("can't start mmdebstrap: {error}"),
                remedy: "check that util-linux and mmdebstrap are installed".into(),
            })?;
        let output = child.stdout.take();
        let messages = child.stderr.take();
        let lines: Mutex<VecDeque<String>> = Mutex::default();
        let (unpacked, status) = std::thread::scope(|scope| {
            let killer = Killer::new(&child, report);
            if let Some(messages) = messages {
                scope.spawn(|| listen(messages, report, &counter, &lines));
            }
            let content: Content = Box::new(move || match output {
                Some(output) => Ok(Box::new(output) as Box<dyn Read + Send>),
                None => Err(std::io::Error::other("mmdebstrap has no output")),
            });
            let unpacked = unpack_only(store, report, content);
            if unpacked.is_err() {
                killer.kill();
            }
            // Not waited for before its output has ended, so that its id stays its own.
            let status = killer.wait(&mut child);
            (unpacked, status)
        });
        drop(work);
        if report.cancel().is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        let lines = lines.into_inner().unwrap_or_else(PoisonError::into_inner);
        match status {
            Ok(status) if status.success() => unpacked,
            // A layer that is whole may still be of a system that is not.
            Ok(status) if unpacked.is_ok() || !lines.is_empty() => Err(failed(status, &lines)),
            Ok(status) => Err(unpacked.err().unwrap_or_else(|| failed(status, &lines))),
            Err(error) => Err(ImageError::store("can't wait for mmdebstrap")(error)),
        }
    }

    /// Writes what mmdebstrap finds in its /tmp.
    fn furnish(&self, work: &Temporary) -> Result<(), ImageError> {
        let place = |name: &str, content: &str, mode: u32| {
            let path = work.path().join("upper").join(name);
            fs::write(&path, content)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
                .map_err(ImageError::path("write", &path))
        };
        for (name, mode) in [
            ("lower", 0o1777),
            ("upper", 0o1777),
            ("work", 0o700),
            ("merged", 0o755),
        ] {
            let path = work.path().join(name);
            fs::create_dir(&path)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
                .map_err(ImageError::path("create", &path))?;
        }
        let mut script = self.script.clone();
        if let Some(sources) = &self.sources {
            // Credentials for a mirror do not belong on a command line; mmdebstrap reads the file.
            place("atoll-sources.list", &sources.lines, 0o600)?;
            place("atoll-sources-public.list", &sources.public_lines, 0o644)?;
            // mmdebstrap has put the whole file there, password and all.
            script.push_str(
                "rm -f \"$root\"/etc/apt/sources.list.d/*\n\
                 cp /tmp/atoll-sources-public.list \"$root/etc/apt/sources.list\"\n",
            );
        }
        place("atoll-script", &script, 0o755)
    }

    fn command(&self, work: &Path, packages: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                "unshare",
                "--mount",
                "--propagation",
                "private",
            ])
            .args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"])
            .args(["sh", "-c", ENTER, "sh"])
            .args([packages, work])
            .args([
                "mmdebstrap",
                "--verbose",
                "--mode=root",
                "--variant=minbase",
                "--format=tar",
            ])
            .arg("--dpkgopt=force-unsafe-io")
            .arg("--skip=essential/unlink,download/empty")
            .arg(SETUP_HOOK)
            .arg("--customize-hook=umount \"$1/var/cache/apt/archives\"")
            .arg("--customize-hook=/tmp/atoll-script");
        for pattern in self.excluded {
            command.arg(match pattern.strip_prefix('!') {
                Some(kept) => format!("--dpkgopt=path-include={kept}"),
                None => format!("--dpkgopt=path-exclude={pattern}"),
            });
        }
        if !self.packages.is_empty() {
            command.arg(format!("--include={}", self.packages.join(",")));
        }
        command.args([&self.suite, "-"]);
        if self.sources.is_some() {
            command.arg("/tmp/atoll-sources.list");
        }
        command
            .env("TMPDIR", "/tmp")
            .env("LC_ALL", "C.UTF-8")
            .env("SOURCE_DATE_EPOCH", EPOCH)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// `$2` becomes /tmp and `$1` becomes /tmp/packages, in this mount namespace only.
///
/// dpkg waits for the disk after every package; on a volatile overlay (Linux 5.10) it need not.
/// Nothing is lost by that: what lies there is thrown away anyhow. All is put together below `$2`
/// first, because the store may itself lie in /tmp.
const ENTER: &str = "set -e; cd \"$2\"; \
     mount -t overlay -o volatile,lowerdir=lower,upperdir=upper,workdir=work overlay merged \
     2>/dev/null || mount --bind upper merged; \
     mkdir merged/packages; mount --bind \"$1\" merged/packages; \
     mount --rbind merged /tmp; shift 2; cd /; exec \"$@\"";
const SETUP_HOOK: &str = "--setup-hook=mkdir -p \"$1/var/cache/apt/archives\" && \
     mount --bind /tmp/packages \"$1/var/cache/apt/archives\"";

fn failed(status: ExitStatus, lines: &VecDeque<String>) -> ImageError {
    let lines = lines
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("\n");
    ImageError::Tool {
        cause: format!("mmdebstrap failed ({status}):\n{lines}"),
        remedy: "check that the suite and the packages exist and that the Debian mirror in \
                 /etc/apt can be reached, and that debian-archive-keyring is installed; packages \
                 that were downloaded are kept"
            .into(),
    }
}

/// Passes on what mmdebstrap prints.
fn listen(
    messages: impl Read,
    report: &Report,
    counter: &Counter,
    lines: &Mutex<VecDeque<String>>,
) {
    let mut counter = counter.clone();
    let mut progress = Progress::default();
    let mut messages = BufReader::new(messages);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut messages).take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        // What a terminal would show last of a line that was written over.
        let text = text.trim_end().rsplit('\r').next().unwrap_or_default();
        if text.is_empty() {
            continue;
        }
        match progress.read(text) {
            Told::Step(name, total) => counter = report.step(name, total),
            Told::Done(count) => counter.add(count),
            Told::Nothing => {}
        }
        let level = match text.get(..2) {
            Some("W:") => LogLevel::Warn,
            Some("E:") => LogLevel::Error,
            _ => LogLevel::Info,
        };
        report.log(level, text);
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(text.to_owned());
    }
}

/// Kills the tool when the build is cancelled.
struct Killer {
    process: Option<Arc<rustix::fd::OwnedFd>>,
    watch: Option<tokio::task::JoinHandle<()>>,
}

impl Killer {
    fn new(child: &Child, report: &Report) -> Self {
        let process = rustix::process::Pid::from_raw(child.id() as i32)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .map(Arc::new);
        let watch = tokio::runtime::Handle::try_current()
            .ok()
            .zip(process.clone())
            .map(|(runtime, process)| {
                let cancel = report.cancel().clone();
                runtime.spawn(async move {
                    cancel.cancelled().await;
                    _ = pidfd_send_signal(&process, Signal::KILL);
                })
            });
        Self { process, watch }
    }

    fn kill(&self) {
        if let Some(process) = &self.process {
            _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    fn wait(self, child: &mut Child) -> std::io::Result<ExitStatus> {
        let status = child.wait();
        if let Some(watch) = self.watch {
            watch.abort();
        }
        status
    }
}
