//! What only the `container` driver promises: that its keeper may die, and what a sandbox cannot
//! see or do.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use driver::Driver;
use std::fs;
use support::{World, inside, is_healthy, report, wait_for};

/// Not a test: what the driver under test starts as its keeper.
#[test]
fn keeper_process() {
    driver::container::keeper::run_if_asked();
}

/// Runs a script inside, and returns what it printed.
async fn run(world: &World, script: &str) -> String {
    let driver = world.driver();
    let command = format!("exec > /dev/shm/report 2>&1\n{script}\necho done");
    let machine = world.start(&driver, &command).await;
    let text = report(&*machine, "/dev/shm/report").await;
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
    text
}

#[tokio::test]
async fn sandboxes_outlive_a_killed_keeper() {
    let world = World::new();
    let driver = world.driver();
    let running = world.start(&driver, "").await;
    let waiting = world.prepare(&driver).await;
    let keeper = driver.keeper_pid().await.unwrap();
    let keeper = rustix::process::Pid::from_raw(i32::try_from(keeper).unwrap()).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();

    wait_for("the prepared one to leave", || !waiting.is_alive()).await;
    assert!(waiting.start(world.spec("")).await.is_err());
    assert!(is_healthy(&*running));
    // A new keeper serves new sandboxes, and the old one is still ended without a trace.
    let other = world.start(&driver, "").await;
    assert!(is_healthy(&*other));
    other.destroy().await.unwrap();
    let record = running.record();
    drop(running);
    let running = driver.adopt(&record).await.unwrap().expect("it still runs");
    running.destroy().await.unwrap();
    driver.shutdown().await;
    world.expect_nothing_left().await;
}

#[tokio::test]
async fn names_are_as_told() {
    let world = World::new();
    let text = run(
        &world,
        "cat /etc/hostname /etc/hosts /etc/resolv.conf; uname -n",
    )
    .await;
    assert!(text.starts_with("sandbox-of-test\n"), "{text}");
    assert!(text.contains("127.0.1.1\tsandbox-of-test"), "{text}");
    assert!(text.contains("nameserver 192.0.2.53"), "{text}");
    assert!(text.ends_with("sandbox-of-test\ndone\n"), "{text}");
}

#[tokio::test]
async fn root_inside_is_nobody_outside() {
    let world = World::new();
    let driver = world.driver();
    let machine = world.start(&driver, "id -u > /who; sleep 1000").await;
    wait_for("the file", || {
        fs::read_to_string(inside(&*machine, "/who")).is_ok()
    })
    .await;
    let status = fs::read_to_string(format!("/proc/{}/status", machine.record().pid)).unwrap();
    let line = |name: &str| {
        status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default()
            .to_owned()
    };
    let user: u32 = line("Uid:")
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!(user >= 0x4000_0000, "{user}");
    // Docker's set without MKNOD and NET_RAW.
    for name in ["CapEff:", "CapPrm:", "CapBnd:"] {
        let set = u64::from_str_radix(line(name).split_whitespace().nth(1).unwrap(), 16).unwrap();
        assert_eq!(set & !0xa004_05fb, 0, "{}", line(name));
    }
    assert!(line("Seccomp:").ends_with('2'), "{}", line("Seccomp:"));
    let executable = fs::read_link(format!("/proc/{}/exe", machine.record().pid)).unwrap();
    assert!(
        executable.to_str().unwrap().contains("memfd:atoll-guest"),
        "{executable:?}"
    );
    machine.destroy().await.unwrap();
    driver.shutdown().await;
}

#[tokio::test]
async fn a_sandbox_holds_nothing_of_the_host() {
    let world = World::new();
    let driver = world.driver();
    let machine = world.start(&driver, "").await;
    let pid = machine.record().pid;
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let data = world.directory.path().to_str().unwrap();
    assert!(!mounts.contains(data), "{mounts}");
    let places: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    assert_eq!(
        places.iter().filter(|place| **place == "/").count(),
        1,
        "{mounts}"
    );
    for place in places {
        let known = ["/proc", "/sys", "/dev"]
            .iter()
            .any(|top| place.starts_with(top));
        assert!(place == "/" || known, "{place}\n{mounts}");
    }
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        let target = target.to_str().unwrap();
        let harmless = target == "/dev/null"
            || ["socket:", "anon_inode:", "pipe:"]
                .iter()
                .any(|kind| target.starts_with(kind));
        assert!(harmless, "the guest holds {target}");
    }
    machine.destroy().await.unwrap();
    driver.shutdown().await;
}

#[tokio::test]
async fn attacks_from_inside_fail() {
    let world = World::new();
    let attacks = [
        ("mount", "mount -t tmpfs none /tmp"),
        ("device", "mknod /tmp/disk b 254 0"),
        ("user namespace", "unshare -U /bin/sh -c true"),
        ("network namespace", "unshare -n /bin/sh -c true"),
        ("kernel memory", "head -c 1 /proc/kcore | grep . "),
        ("sysctl", "echo 1 > /proc/sys/kernel/panic"),
        ("sysrq", "echo h > /proc/sysrq-trigger"),
        (
            "sysfs",
            "echo 0 > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        (
            "control groups",
            "mkdir /sys/fs/cgroup/mine || mkdir /sys/fs/cgroup/memory/mine",
        ),
        ("own program", "echo x > /proc/1/exe"),
        ("host processes", "ls -d /proc/[0-9][0-9][0-9][0-9][0-9]"),
    ];
    let script: String = attacks
        .iter()
        .map(|(name, attack)| {
            format!("if ( {attack} ) > /dev/null 2>&1; then echo 'SUCCEEDED {name}'; fi\n")
        })
        .collect();
    let text = run(&world, &script).await;
    assert_eq!(text, "done\n");
}

#[tokio::test]
async fn the_usual_devices_work() {
    let world = World::new();
    let script = "head -c 4 /dev/urandom > /dev/null && echo x > /dev/null && ls /dev/pts/ptmx \
                  && ls /dev/fd/ > /dev/null && touch /dev/shm/x && head -c 2 /dev/zero > /tmp/z \
                  && echo fine";
    let text = run(&world, script).await;
    assert!(text.contains("fine"), "{text}");
}

#[tokio::test]
async fn set_user_id_works_unless_forbidden() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let program = world.root.join("bin/id-of-owner");
    fs::copy(world.root.join("bin/id"), &program).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
    let shared = world.root.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, PermissionsExt::from_mode(0o1777)).unwrap();
    for (forbidden, expected) in [
        (false, "euid=0(root)"),
        (true, "uid=1000(user) gid=1000(user)"),
    ] {
        let mut options = world.options();
        options.no_new_privileges = forbidden;
        let driver = driver::container::Container::new(options).unwrap();
        let command = "exec > /shared/report; /bin/id-of-owner; echo done";
        let mut spec = world.spec(command);
        spec.identity.default_user = "user".into();
        let machine = world.prepare(&driver).await.start(spec).await.unwrap();
        let text = report(&*machine, "/shared/report").await;
        assert!(text.contains(expected), "{text}");
        assert_eq!(text.contains("euid=0"), !forbidden, "{text}");
        machine.destroy().await.unwrap();
        driver.shutdown().await;
    }
}

#[tokio::test]
async fn the_uppermost_layer_wins() {
    let world = World::new();
    let driver = world.driver();
    let upper = world.directory.path().join("upper");
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/told"), "upper\n").unwrap();
    fs::write(world.root.join("etc/told"), "lower\n").unwrap();
    let mut spec = world.spec("cat /etc/told > /dev/shm/report; echo done >> /dev/shm/report");
    spec.origin = support::origin(vec![upper, world.root.clone()]);
    let machine = world.prepare(&driver).await.start(spec).await.unwrap();
    assert_eq!(report(&*machine, "/dev/shm/report").await, "upper\ndone\n");
    machine.destroy().await.unwrap();
    driver.shutdown().await;
}
