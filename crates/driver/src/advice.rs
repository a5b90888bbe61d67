//! What Firecracker's advice for production hosts asks of this one, and what a command can change.
//!
//! <https://github.com/firecracker-microvm/firecracker/blob/main/docs/prod-host-setup.md>. Each
//! check reads files below a root directory, `/` but for tests, and judges what they say. A
//! finding may come with a [`Fix`]; nothing is changed before [`Fix::apply`].
//!
//! All of it matters where tenants do not trust each other, and for microVMs more than for
//! containers; none of it keeps sandboxes from running. So what is not as advised is a warning.

use api::finding::{Finding, FindingStatus};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// As many files as one process may have open at the kernel's default for `fs.nr_open`.
const OPEN_FILES: u64 = 1 << 20;

/// Fewer than this, and a busy node runs out of them.
const OPEN_FILES_MIN: u64 = 4096;

/// A finding, and what a command can do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// What was found.
    pub finding: Finding,
    /// What changes it; none if nothing needs doing, or if no command can.
    pub fix: Option<Fix>,
}

impl From<Finding> for Advice {
    fn from(finding: Finding) -> Self {
        let fix = fix_for(&finding);
        Self { finding, fix }
    }
}

/// Commands that remove the cause of a finding, until the next boot or for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    /// Done one after another.
    pub steps: Vec<Step>,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Writes a text to a file, which is made if it is not there.
    Write {
        /// The file.
        path: PathBuf,
        /// Its content.
        text: String,
    },
    /// Runs a program.
    Run {
        /// Its name.
        program: &'static str,
        /// Its arguments.
        arguments: Vec<String>,
    },
}

impl Step {
    fn write(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self::Write {
            path: path.into(),
            text: text.into(),
        }
    }

    fn sysctl(name: &str, value: impl fmt::Display) -> Self {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        Self::write(path, value.to_string())
    }
}

/// As one would type it.
impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { path, text } => match path.strip_prefix("/proc/sys") {
                Ok(name) => {
                    let name = name.display().to_string().replace('/', ".");
                    write!(formatter, "sysctl -w {name}={text}")
                }
                Err(_) => {
                    let text = text.trim_end().replace('\n', "\\n");
                    write!(formatter, "printf '{text}\\n' > {}", path.display())
                }
            },
            Self::Run { program, arguments } => {
                write!(formatter, "{program} {}", arguments.join(" "))
            }
        }
    }
}

impl Fix {
    /// Does it, below `root`. Blocks.
    ///
    /// # Errors
    /// What the first step that failed said. Those before it are done.
    pub fn apply(&self, root: &Path) -> io::Result<()> {
        self.steps.iter().try_for_each(|step| match step {
            Step::Write { path, text } => {
                let path = below(root, path);
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder)?;
                }
                fs::write(path, text)
            }
            Step::Run { program, arguments } => run(program, arguments),
        })
    }
}

fn run(program: &str, arguments: &[String]) -> io::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text: String = text.trim().chars().take(300).collect();
    Err(io::Error::other(format!("{}: {text}", output.status)))
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Looks at everything below `root`; `open_files` is the hard limit of this process, none if there
/// is none. Blocks, but not for long.
pub fn check(root: &Path, open_files: Option<u64>) -> Vec<Advice> {
    let host = Host { root };
    vec![
        host.check_threads(),
        host.check_same_pages(),
        host.check_swap(),
        host.check_mitigations(),
        host.check_huge_code(),
        host.check_open_files(open_files),
        host.check_group_version(),
        host.check_huge_pages(),
    ]
}

/// What a command does about findings of [`probe`](crate::probe).
fn fix_for(finding: &Finding) -> Option<Fix> {
    if finding.status == FindingStatus::Ok {
        return None;
    }
    let step = match finding.name.as_str() {
        "user namespaces" if finding.detail.contains("max_user_namespaces is 0") => {
            Step::sysctl("user.max_user_namespaces", 15_000)
        }
        "memfd" => Step::sysctl("vm.memfd_noexec", 1),
        _ => return None,
    };
    Some(Fix { steps: vec![step] })
}

fn fixed_by(finding: Finding, steps: impl IntoIterator<Item = Step>) -> Advice {
    Advice {
        finding,
        fix: Some(Fix {
            steps: steps.into_iter().collect(),
        }),
    }
}

fn unfixed(finding: Finding) -> Advice {
    Advice { finding, fix: None }
}

struct Host<'a> {
    root: &'a Path,
}

impl Host<'_> {
    /// A file's text without the end of its line; none if it cannot be read.
    fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(below(self.root, Path::new(path))).ok()?;
        Some(text.trim_end().to_owned())
    }

    fn check_threads(&self) -> Advice {
        let name = "SMT";
        unfixed(
            match self.read("/sys/devices/system/cpu/smt/active").as_deref() {
                Some("1") => Finding::warning(
                    name,
                    "on: two sandboxes may share a core, and learn of each other through it",
                    "Boot with nosmt, or: echo off > /sys/devices/system/cpu/smt/control. It halves the \
                 processors, so --fix leaves it to you",
                ),
                Some(_) => Finding::ok(name, "off, or not in these processors"),
                None => Finding::ok(name, "the kernel does not tell of any"),
            },
        )
    }

    fn check_same_pages(&self) -> Advice {
        const RUN: &str = "/sys/kernel/mm/ksm/run";
        let name = "KSM";
        let shared = self.read("/sys/kernel/mm/ksm/pages_shared");
        let shared = shared.is_some_and(|count| count != "0");
        let detail = match (self.read(RUN).as_deref(), shared) {
            (None, _) => return unfixed(Finding::ok(name, "not in this kernel")),
            (Some("1"), _) => "on: a sandbox can tell by the time that it takes what others hold",
            (Some(_), true) => "off, but pages are still shared from before",
            (Some(_), false) => return unfixed(Finding::ok(name, "off")),
        };
        let finding = Finding::warning(name, detail, format!("Run: echo 2 > {RUN}"));
        fixed_by(finding, [Step::write(RUN, "2")])
    }

    fn check_swap(&self) -> Advice {
        let name = "swap";
        let Some(text) = self.read("/proc/swaps") else {
            return unfixed(Finding::ok(name, "not in this kernel"));
        };
        let open: Vec<String> = text
            .lines()
            .skip(1)
            .filter_map(|line| line.split_ascii_whitespace().next())
            .filter(|place| !self.is_unwritten(place))
            .map(unescape)
            .collect();
        if open.is_empty() {
            return unfixed(Finding::ok(name, "off, encrypted, or in memory"));
        }
        let finding = Finding::warning(
            name,
            format!(
                "{}: what sandboxes hold may stay on the disk",
                open.join(", ")
            ),
            format!(
                "Run: swapoff {}, and take it out of /etc/fstab; or encrypt it",
                open.join(" ")
            ),
        );
        let steps = open.into_iter().map(|place| Step::Run {
            program: "swapoff",
            arguments: vec![place],
        });
        fixed_by(finding, steps)
    }

    /// Whether what is swapped to a place never stays on a disk as it is.
    fn is_unwritten(&self, place: &str) -> bool {
        let device = place.rsplit('/').next().unwrap_or_default();
        let encrypted = self
            .read(&format!("/sys/block/{device}/dm/uuid"))
            .is_some_and(|kind| kind.starts_with("CRYPT-"));
        encrypted || device.starts_with("zram")
    }

    fn check_mitigations(&self) -> Advice {
        let name = "CPU vulnerabilities";
        let folder = below(
            self.root,
            Path::new("/sys/devices/system/cpu/vulnerabilities"),
        );
        let mut open: Vec<String> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let text = fs::read_to_string(entry.path()).ok()?;
                let name = entry.file_name().to_string_lossy().into_owned();
                // Parts of a mitigation are told apart by semicolons.
                let part = text
                    .trim()
                    .split("; ")
                    .find(|part| part.contains("Vulnerable"))?;
                Some(match part.strip_prefix("Vulnerable") {
                    Some(_) => name,
                    None => format!("{name} ({part})"),
                })
            })
            .collect();
        open.sort_unstable();
        unfixed(match &open[..] {
            [] => Finding::ok(name, "none, or mitigated"),
            [only] if only == "old_microcode" => Finding::warning(
                name,
                "the microcode is old",
                "Install the package intel-microcode or amd64-microcode, and boot again",
            ),
            _ => Finding::warning(
                name,
                format!("not mitigated: {}", open.join(", ")),
                "Install current microcode and a current kernel, and boot without mitigations=off; \
                 in a virtual machine it is up to its host",
            ),
        })
    }

    fn check_huge_code(&self) -> Advice {
        const PARAMETER: &str = "/sys/module/kvm/parameters/nx_huge_pages";
        let name = "kvm.nx_huge_pages";
        let Some(value) = self.read(PARAMETER) else {
            return unfixed(Finding::ok(name, "no KVM that needs it"));
        };
        let on = matches!(value.as_str(), "Y" | "1");
        let affected = self
            .read("/sys/devices/system/cpu/vulnerabilities/itlb_multihit")
            .is_some_and(|text| !text.starts_with("Not affected"));
        let finding = match (affected, on) {
            (true, true) => Finding::ok(name, "on, as these processors need it"),
            (false, false) => Finding::ok(name, "off, as these processors do without"),
            (true, false) => Finding::warning(
                name,
                "off, and a guest can stop these processors (iTLB multihit)",
                format!("Run: echo auto > {PARAMETER}"),
            ),
            (false, true) => Finding::warning(
                name,
                "on, which makes starts slower, and these processors do without",
                format!("Run: echo auto > {PARAMETER}"),
            ),
        };
        match finding.status {
            FindingStatus::Ok => unfixed(finding),
            // What is right for the processor, now and after an update.
            _ => fixed_by(finding, [Step::write(PARAMETER, "auto")]),
        }
    }

    fn check_open_files(&self, limit: Option<u64>) -> Advice {
        let name = "open files";
        let few = match limit {
            None => return unfixed(Finding::ok(name, "without limit")),
            Some(limit) if limit >= OPEN_FILES_MIN => {
                return unfixed(Finding::ok(name, format!("at most {limit}")));
            }
            Some(limit) => limit,
        };
        let finding = Finding::warning(
            name,
            format!("at most {few}; each sandbox takes several"),
            format!("raise the hard limit: ulimit -Hn {OPEN_FILES}, or LimitNOFILE= in the unit"),
        );
        let mut steps = Vec::new();
        let most = self.read("/proc/sys/fs/nr_open");
        if most
            .and_then(|text| text.parse().ok())
            .is_some_and(|most: u64| most < OPEN_FILES)
        {
            steps.push(Step::sysctl("fs.nr_open", OPEN_FILES));
        }
        let units = [
            "/etc/systemd/system",
            "/usr/lib/systemd/system",
            "/lib/systemd/system",
        ];
        let unit = |folder: &&str| self.read(&format!("{folder}/atoll.service")).is_some();
        if units.iter().any(unit) {
            steps.push(Step::write(
                "/etc/systemd/system/atoll.service.d/open-files.conf",
                format!("[Service]\nLimitNOFILE={OPEN_FILES}\n"),
            ));
            steps.push(Step::Run {
                program: "systemctl",
                arguments: vec!["daemon-reload".into()],
            });
        }
        match steps.is_empty() {
            // A limit of the shell that Atoll is started from is that shell's to change.
            true => unfixed(finding),
            false => fixed_by(finding, steps),
        }
    }

    fn check_group_version(&self) -> Advice {
        let name = "control group version";
        let mounts = self.read("/proc/self/mounts").unwrap_or_default();
        let kinds = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(2);
            Some((fields.next()?, fields.next()?))
        });
        let legacy = |(kind, options): (&str, &str)| {
            kind == "cgroup" && options.split(',').any(|option| option == "memory")
        };
        unfixed(match kinds.clone().any(legacy) {
            true => Finding::warning(
                name,
                "1 for memory: loading a microVM's snapshot is slower than with version 2",
                "Boot with systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1=all",
            ),
            false if kinds.clone().any(|(kind, _)| kind == "cgroup2") => Finding::ok(name, "2"),
            false => Finding::ok(name, "none; see control groups"),
        })
    }

    fn check_huge_pages(&self) -> Advice {
        let name = "huge pages";
        let meminfo = self.read("/proc/meminfo").unwrap_or_default();
        let field = |wanted: &str| -> u64 {
            meminfo
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| *key == wanted)
                .and_then(|(_, value)| value.trim().parse().ok())
                .unwrap_or(0)
        };
        let (all, free) = (field("HugePages_Total"), field("HugePages_Free"));
        unfixed(match (all, free) {
            (0, _) => Finding::ok(name, "none reserved; sandboxes use none"),
            (_, 0) => Finding::ok(name, format!("{all} reserved, and others use them")),
            _ => Finding::warning(
                name,
                format!("{free} of {all} reserved lie idle; sandboxes use none"),
                "Run: sysctl vm.nr_hugepages=0, unless another program waits for them",
            ),
        })
    }
}

/// Blanks in names are written as `\040` in the kernel's tables.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
}

#[cfg(test)]
mod tests;
