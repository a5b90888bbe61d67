use super::*;

/// A root with these files, and what is found there under a name.
fn look(
    files: &[(&str, &str)],
    open_files: Option<u64>,
    name: &str,
) -> (tempfile::TempDir, Advice) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = below(root.path(), Path::new(path));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let found = check(root.path(), open_files);
    let advice = found.into_iter().find(|advice| advice.finding.name == name);
    (root, advice.unwrap())
}

/// Checks status, a word of the detail, and the commands.
fn expect(files: &[(&str, &str)], name: &str, status: FindingStatus, word: &str, fix: &[&str]) {
    let (_root, advice) = look(files, Some(1 << 20), name);
    let Advice {
        finding,
        fix: found,
    } = advice;
    assert_eq!(finding.status, status, "{finding:?}");
    assert!(finding.detail.contains(word), "{finding:?}");
    assert_eq!(
        finding.remedy.is_empty(),
        status == FindingStatus::Ok,
        "{finding:?}"
    );
    let steps = found.map(|fix| fix.steps).unwrap_or_default();
    let commands: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert_eq!(commands, fix);
}

use FindingStatus::{Ok as Good, Warning};

#[test]
fn threads_of_a_core() {
    let active = "/sys/devices/system/cpu/smt/active";
    expect(&[(active, "1\n")], "SMT", Warning, "share a core", &[]);
    expect(&[(active, "0\n")], "SMT", Good, "off", &[]);
    expect(&[], "SMT", Good, "does not tell", &[]);
}

#[test]
fn pages_that_are_the_same() {
    let run = "/sys/kernel/mm/ksm/run";
    let shared = "/sys/kernel/mm/ksm/pages_shared";
    let off = ["printf '2\\n' > /sys/kernel/mm/ksm/run"];
    expect(&[(run, "1\n")], "KSM", Warning, "on", &off);
    expect(
        &[(run, "0\n"), (shared, "7\n")],
        "KSM",
        Warning,
        "still shared",
        &off,
    );
    expect(&[(run, "0\n"), (shared, "0\n")], "KSM", Good, "off", &[]);
    expect(&[(run, "2\n")], "KSM", Good, "off", &[]);
    expect(&[], "KSM", Good, "not in this kernel", &[]);
}

#[test]
fn swap() {
    let head = "Filename\tType\tSize\tUsed\tPriority\n";
    let lines = |places: &[&str]| {
        let rest: String = places
            .iter()
            .map(|place| format!("{place} partition 1 0 -2\n"))
            .collect();
        format!("{head}{rest}")
    };
    expect(&[("/proc/swaps", head)], "swap", Good, "off", &[]);
    let open = lines(&["/dev/sda2", "/swap\\040file"]);
    let fix = ["swapoff /dev/sda2", "swapoff /swap file"];
    expect(
        &[("/proc/swaps", &open)],
        "swap",
        Warning,
        "/dev/sda2",
        &fix,
    );
    let closed = lines(&["/dev/dm-3", "/dev/zram0"]);
    let uuid = ("/sys/block/dm-3/dm/uuid", "CRYPT-LUKS2-0a\n");
    expect(
        &[("/proc/swaps", &closed), uuid],
        "swap",
        Good,
        "encrypted",
        &[],
    );
    let plain = ("/sys/block/dm-3/dm/uuid", "LVM-0a\n");
    let fix = ["swapoff /dev/dm-3"];
    expect(
        &[("/proc/swaps", &closed), plain],
        "swap",
        Warning,
        "dm-3",
        &fix,
    );
}

#[test]
fn vulnerabilities() {
    let name = "CPU vulnerabilities";
    let file = |name: &str| format!("/sys/devices/system/cpu/vulnerabilities/{name}");
    let (mds, spectre, old) = (file("mds"), file("spectre_v2"), file("old_microcode"));
    let fine = [
        (&*mds, "Not affected\n"),
        (&*spectre, "Mitigation: IBRS; BHI: BHI_DIS_S\n"),
    ];
    expect(&fine, name, Good, "mitigated", &[]);
    let open = [
        (
            &*mds,
            "Vulnerable: Clear CPU buffers attempted, no microcode\n",
        ),
        (&*spectre, "Mitigation: IBRS; BHI: Vulnerable\n"),
    ];
    expect(
        &open,
        name,
        Warning,
        "mds, spectre_v2 (BHI: Vulnerable)",
        &[],
    );
    expect(
        &[(&*old, "Vulnerable\n")],
        name,
        Warning,
        "microcode is old",
        &[],
    );
}

#[test]
fn huge_pages_of_code() {
    let name = "kvm.nx_huge_pages";
    let parameter = "/sys/module/kvm/parameters/nx_huge_pages";
    let multihit = "/sys/devices/system/cpu/vulnerabilities/itlb_multihit";
    let affected = (multihit, "KVM: Mitigation: Split huge pages\n");
    let unaffected = (multihit, "Not affected\n");
    let fix = ["printf 'auto\\n' > /sys/module/kvm/parameters/nx_huge_pages"];
    expect(&[(parameter, "Y\n"), affected], name, Good, "on", &[]);
    expect(&[(parameter, "N\n"), unaffected], name, Good, "off", &[]);
    expect(&[(parameter, "N\n"), affected], name, Warning, "off", &fix);
    expect(
        &[(parameter, "Y\n"), unaffected],
        name,
        Warning,
        "slower",
        &fix,
    );
    expect(&[affected], name, Good, "no KVM", &[]);
}

#[test]
fn open_files() {
    let commands = |files: &[(&str, &str)], limit| {
        let (_root, advice) = look(files, limit, "open files");
        let steps = advice.fix.map(|fix| fix.steps).unwrap_or_default();
        let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
        (advice.finding.status, steps.join("\n"))
    };
    assert_eq!(commands(&[], None), (Good, String::new()));
    assert_eq!(commands(&[], Some(4096)), (Good, String::new()));
    assert_eq!(commands(&[], Some(1024)), (Warning, String::new()));
    let unit = ("/etc/systemd/system/atoll.service", "[Service]\n");
    let (status, text) = commands(&[unit, ("/proc/sys/fs/nr_open", "65536\n")], Some(1024));
    assert_eq!(status, Warning);
    assert_eq!(
        text,
        "sysctl -w fs.nr_open=1048576\n\
         printf '[Service]\\nLimitNOFILE=1048576\\n' > \
         /etc/systemd/system/atoll.service.d/open-files.conf\n\
         systemctl daemon-reload"
    );
}

#[test]
fn control_groups() {
    let name = "control group version";
    let two = [(
        "/proc/self/mounts",
        "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n",
    )];
    expect(&two, name, Good, "2", &[]);
    let hybrid = [(
        "/proc/self/mounts",
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
         cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n",
    )];
    expect(&hybrid, name, Warning, "slower", &[]);
}

#[test]
fn huge_pages() {
    let meminfo = |all: u32, free: u32| format!("HugePages_Total: {all}\nHugePages_Free: {free}\n");
    let (none, used, idle) = (meminfo(0, 0), meminfo(8, 0), meminfo(8, 5));
    expect(&[("/proc/meminfo", &none)], "huge pages", Good, "none", &[]);
    expect(
        &[("/proc/meminfo", &used)],
        "huge pages",
        Good,
        "others",
        &[],
    );
    expect(
        &[("/proc/meminfo", &idle)],
        "huge pages",
        Warning,
        "5 of 8",
        &[],
    );
}

#[test]
fn a_fix_changes_what_was_found_and_then_it_is_well() {
    let run = "/sys/kernel/mm/ksm/run";
    let (root, advice) = look(&[(run, "1\n")], None, "KSM");
    advice.fix.unwrap().apply(root.path()).unwrap();
    assert_eq!(
        fs::read_to_string(below(root.path(), Path::new(run))).unwrap(),
        "2"
    );
    let again = check(root.path(), None);
    assert!(
        again
            .iter()
            .all(|advice| advice.finding.status == Good && advice.fix.is_none())
    );
    let unit = ("/lib/systemd/system/atoll.service", "[Service]\n");
    let (root, advice) = look(&[unit], Some(9), "open files");
    let fix = Fix {
        // Without the program, which would ask this machine's systemd.
        steps: advice.fix.unwrap().steps.into_iter().take(1).collect(),
    };
    fix.apply(root.path()).unwrap();
    let conf = "/etc/systemd/system/atoll.service.d/open-files.conf";
    let text = fs::read_to_string(below(root.path(), Path::new(conf))).unwrap();
    assert_eq!(text, "[Service]\nLimitNOFILE=1048576\n");
    let failed = Fix {
        steps: vec![Step::Run {
            program: "false",
            arguments: Vec::new(),
        }],
    };
    assert!(failed.apply(root.path()).is_err());
}

#[test]
fn findings_of_the_probe_are_fixed_too() {
    let found = Finding::missing("user namespaces", "user.max_user_namespaces is 0", "x");
    let steps = Advice::from(found).fix.unwrap().steps;
    assert_eq!(
        steps[0].to_string(),
        "sysctl -w user.max_user_namespaces=15000"
    );
    let found = Finding::missing("memfd", "forbidden", "x");
    let steps = Advice::from(found).fix.unwrap().steps;
    assert_eq!(steps[0].to_string(), "sysctl -w vm.memfd_noexec=1");
    assert_eq!(Advice::from(Finding::ok("memfd", "fine")).fix, None);
    assert_eq!(Advice::from(Finding::missing("root", "no", "x")).fix, None);
}

#[test]
fn this_machine_is_judged() {
    for advice in check(Path::new("/"), Some(1 << 20)) {
        println!("{advice:?}");
        let well = advice.finding.status == Good;
        assert_eq!(advice.finding.remedy.is_empty(), well);
        assert!(!well || advice.fix.is_none());
        assert!(!advice.finding.detail.is_empty());
    }
}
