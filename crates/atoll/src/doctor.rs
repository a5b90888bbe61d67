//! What this machine can do for sandboxes: what the driver and the network find, and what belongs
//! to neither. Nothing is changed but by [`fix`].

use api::{Bytes, finding::Finding, finding::FindingStatus};
use driver::{
    advice::Advice,
    kvm::{self, Kvm},
    probe,
};
use mesh::node::{NamespaceRefusal, Step, device_allowed, namespace_device_allowed};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What one sandbox of the usual size may use.
const MEMORY_MIN: Bytes = Bytes::mebibytes(512);
/// What the template `base` takes while it is built.
const DISK_MIN: Bytes = Bytes::gibibytes(2);

/// What was found on this machine.
#[derive(Debug)]
pub(crate) struct Report {
    /// What is to be had of KVM.
    pub(crate) kvm: Kvm,
    /// Which way into the mesh there is.
    pub(crate) mesh: Entrance,
    /// Everything, and what commands can change.
    pub(crate) advice: Vec<Advice>,
}

impl Report {
    /// Whether sandboxes can run.
    pub(crate) fn able(&self) -> bool {
        self.findings()
            .all(|finding| finding.status != FindingStatus::Missing)
    }

    /// What was found.
    pub(crate) fn findings(&self) -> impl Iterator<Item = &Finding> + Clone {
        self.advice.iter().map(|advice| &advice.finding)
    }
}

/// Looks at everything; takes some seconds at most, if the package manager is slow to answer. Needs
/// a Tokio runtime.
pub(crate) async fn examine(data_dir: &Path) -> Report {
    let place = data_dir.to_owned();
    let machine = tokio::task::spawn_blocking(move || look(&place));
    let (machine, network) = tokio::join!(machine, agent::network::check(&[]));
    let mut report = machine.unwrap_or_else(|error| Report {
        kvm: Kvm::Absent,
        mesh: Entrance::None,
        advice: vec![Finding::missing("machine", format!("the check failed: {error}"), "").into()],
    });
    report.advice.extend(network.into_iter().map(Advice::from));
    report
}

/// All but the network. Blocks.
fn look(data_dir: &Path) -> Report {
    let kvm = kvm::look();
    let mut findings = probe::check(&kvm);
    let device = device_allowed().map_err(|error| error.to_string());
    let (mesh, finding) = judge_mesh(device, namespace_device_allowed());
    findings.extend([
        driver::kernel::check(data_dir, None),
        judge_builder(find_program("mmdebstrap").as_deref()),
        judge_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        judge_disk(data_dir, free_space(data_dir)),
        probe::check_data_directory(data_dir),
        finding,
    ]);
    let mut advice: Vec<Advice> = findings.into_iter().map(Advice::from).collect();
    let open_files = getrlimit(Resource::Nofile).maximum;
    advice.extend(driver::advice::check(Path::new("/"), open_files));
    Report { kvm, mesh, advice }
}

/// Something that a command changed, or would.
#[derive(Debug, Serialize)]
pub(crate) struct Change {
    /// The finding's name.
    pub(crate) name: String,
    /// The commands.
    pub(crate) commands: Vec<String>,
    /// Whether they were run and agreed.
    pub(crate) done: bool,
    /// Why not, if one failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Changes what commands can change below `root`, or with `dry` only says what they would be.
/// Blocks.
pub(crate) fn fix(advice: &[Advice], root: &Path, dry: bool) -> Vec<Change> {
    advice
        .iter()
        .filter_map(|advice| Some((&advice.finding, advice.fix.as_ref()?)))
        .map(|(finding, fix)| {
            let tried = (!dry).then(|| fix.apply(root));
            Change {
                name: finding.name.clone(),
                commands: fix.steps.iter().map(ToString::to_string).collect(),
                done: matches!(tried, Some(Ok(()))),
                error: tried.and_then(Result::err).map(|error| error.to_string()),
            }
        })
        .collect()
}

/// How a machine gets into the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entrance {
    /// With a network device.
    Device,
    /// With one in a user namespace, for programs that run in there; the machine itself has none.
    Namespace,
    /// By loopback addresses and a proxy.
    None,
}

/// What to do for a device in a user namespace.
fn remedy(refusal: &NamespaceRefusal) -> &'static str {
    match (refusal.step, refusal.source.raw_os_error()) {
        (Step::Namespace, Some(28)) => "sysctl -w user.max_user_namespaces=10000",
        (Step::Namespace, _) => {
            "allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in a container, its seccomp profile"
        }
        (Step::Open, _) => {
            "`modprobe tun` as root and `chmod 666 /dev/net/tun`; in a container, hand the device in"
        }
        (Step::Make | Step::Try, _) => {
            "see whether AppArmor, SELinux or a container's seccomp profile forbid it"
        }
    }
}

fn judge_mesh(
    device: Result<(), String>,
    namespace: Result<(), NamespaceRefusal>,
) -> (Entrance, Finding) {
    const FOR_A_DEVICE: &str = "for a device here: `sudo atoll mesh up`; in a container, hand /dev/net/tun in and add CAP_NET_ADMIN";
    match (device, namespace) {
        (Ok(()), _) => {
            let detail = "as a node with a network device (tun)";
            (Entrance::Device, Finding::ok("mesh", detail))
        }
        (Err(here), Ok(())) => {
            let detail = format!(
                "as a node without a network device here ({here}), by loopback addresses and a proxy (userspace); programs may have one in a user namespace"
            );
            let finding = Finding::warning("mesh", detail, FOR_A_DEVICE);
            (Entrance::Namespace, finding)
        }
        (Err(here), Err(there)) => {
            let detail = format!(
                "as a node without a network device, by loopback addresses and a proxy (userspace): {here}; nor in a user namespace: {there}"
            );
            let remedy = format!(
                "{FOR_A_DEVICE}; for one in a user namespace: {}",
                remedy(&there)
            );
            (Entrance::None, Finding::warning("mesh", detail, remedy))
        }
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn judge_builder(program: Option<&Path>) -> Finding {
    match program {
        Some(path) => Finding::ok("mmdebstrap", path.display().to_string()),
        None => Finding::warning(
            "mmdebstrap",
            "not installed; the templates `base` and `debian:` are built with it",
            "install the package mmdebstrap",
        ),
    }
}

fn judge_memory(meminfo: &str) -> Finding {
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .map(|count| Bytes(count.saturating_mul(1024)));
    match available {
        Some(available) if available >= MEMORY_MIN => {
            Finding::ok("memory", format!("{available} available"))
        }
        Some(available) => Finding::warning(
            "memory",
            format!("{available} available"),
            format!("leave {MEMORY_MIN} free, which one sandbox of the usual size may use"),
        ),
        None => Finding::warning("memory", "what is available cannot be read", "mount /proc"),
    }
}

fn judge_disk(data_dir: &Path, free: Option<u64>) -> Finding {
    let place = data_dir.display();
    match free.map(Bytes) {
        Some(free) if free >= DISK_MIN => Finding::ok("disk", format!("{free} free for {place}")),
        Some(free) => Finding::warning(
            "disk",
            format!("{free} free for {place}"),
            format!("make {DISK_MIN} free, or choose another --data-dir"),
        ),
        None => Finding::warning(
            "disk",
            format!("the free space for {place} cannot be read"),
            "choose another --data-dir",
        ),
    }
}

/// Free space where the data directory is or would be made.
fn free_space(data_dir: &Path) -> Option<u64> {
    let existing = data_dir.ancestors().find(|path| path.exists())?;
    let facts = rustix::fs::statvfs(existing).ok()?;
    facts.f_bavail.checked_mul(facts.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(finding: Finding, status: FindingStatus) {
        assert_eq!(finding.status, status, "{finding:?}");
        assert_eq!(
            finding.remedy.is_empty(),
            status == FindingStatus::Ok,
            "{finding:?}"
        );
    }

    #[test]
    fn the_way_into_the_mesh_is_told_with_why_and_what_to_do() {
        let refused = |step, code| {
            Err(NamespaceRefusal {
                step,
                source: std::io::Error::from_raw_os_error(code),
            })
        };
        let here = || Err("cannot open /dev/net/tun: no".to_owned());
        let (way, finding) = judge_mesh(Ok(()), refused(Step::Namespace, 1));
        assert_eq!((way, finding.status), (Entrance::Device, FindingStatus::Ok));
        let (way, finding) = judge_mesh(here(), Ok(()));
        assert_eq!(way, Entrance::Namespace);
        assert_eq!(finding.status, FindingStatus::Warning);
        assert!(finding.detail.contains("cannot open /dev/net/tun: no"));
        for (step, code, remedy) in [
            (Step::Namespace, 28, "user.max_user_namespaces"),
            (Step::Namespace, 1, "kernel.unprivileged_userns_clone"),
            (Step::Open, 2, "modprobe tun"),
            (Step::Make, 1, "AppArmor"),
        ] {
            let (way, finding) = judge_mesh(here(), refused(step, code));
            assert_eq!(way, Entrance::None);
            assert!(finding.remedy.contains(remedy), "{}", finding.remedy);
            assert!(finding.remedy.contains("sudo atoll mesh up"));
        }
    }

    #[test]
    fn each_lack_is_told_with_its_remedy() {
        use FindingStatus::{Ok, Warning};
        check(judge_builder(None), Warning);
        check(judge_builder(Some(Path::new("/usr/bin/mmdebstrap"))), Ok);
        check(
            judge_memory("MemTotal: 9 kB\nMemAvailable:    2 kB\n"),
            Warning,
        );
        check(judge_memory("MemAvailable:  8000000 kB\n"), Ok);
        check(judge_memory(""), Warning);
        check(judge_disk(Path::new("/x"), Some(1)), Warning);
        check(judge_disk(Path::new("/x"), None), Warning);
        check(judge_disk(Path::new("/x"), Some(1 << 40)), Ok);
    }

    #[test]
    fn a_fix_is_shown_or_done_and_says_what_it_did() {
        let root = tempfile::tempdir().unwrap();
        let ksm = root.path().join("sys/kernel/mm/ksm");
        fs::create_dir_all(&ksm).unwrap();
        fs::write(ksm.join("run"), "1\n").unwrap();
        let advice = driver::advice::check(root.path(), None);
        let shown = fix(&advice, root.path(), true);
        assert_eq!(shown.len(), 1);
        assert_eq!((&*shown[0].name, shown[0].done), ("KSM", false));
        assert!(shown[0].commands[0].ends_with("> /sys/kernel/mm/ksm/run"));
        assert_eq!(fs::read_to_string(ksm.join("run")).unwrap(), "1\n");
        let done = fix(&advice, root.path(), false);
        assert!(done[0].done && done[0].error.is_none());
        assert_eq!(fs::read_to_string(ksm.join("run")).unwrap(), "2");
        // What cannot be done is said, and does not end the rest.
        fs::remove_dir_all(root.path().join("sys")).unwrap();
        fs::write(root.path().join("sys"), "").unwrap();
        let failed = fix(&advice, root.path(), false);
        assert!(!failed[0].done && failed[0].error.is_some());
    }
}
