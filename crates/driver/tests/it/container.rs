//! What only the `container` driver promises: that its keeper may die, and what a sandbox cannot
//! see or do.

#![allow(clippy::unwrap_used, clippy::panic)]

use crate::support;

use driver::{Driver, DriverError, Exit};
use std::{fs, time::Duration};
use support::{World, inside, is_healthy, report, wait_for};

/// Runs a script inside, and returns what it printed.
async fn run(world: &World, script: &str) -> String {
    let driver = world.container();
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
    let driver = world.container();
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
    let driver = world.container();
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
    let driver = world.container();
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
async fn set_user_id_works_where_sudo_is_unless_it_is_forbidden() {
    use driver::container::SetUserId::{Always, Never, WhereWanted};
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let program = world.root.join("bin/id-of-owner");
    fs::copy(world.root.join("bin/id"), &program).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
    let shared = world.root.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, PermissionsExt::from_mode(0o1777)).unwrap();
    // A root file system with and one without a `sudo` that works.
    let sudo = world.directory.path().join("sudo");
    fs::create_dir_all(sudo.join("usr/bin")).unwrap();
    fs::copy(&program, sudo.join("usr/bin/sudo")).unwrap();
    fs::set_permissions(sudo.join("usr/bin/sudo"), PermissionsExt::from_mode(0o4755)).unwrap();
    let plain = vec![world.root.clone()];
    let wanted = vec![sudo, world.root.clone()];
    for (layers, choice, gains) in [
        (&plain, Always, true),
        (&wanted, Never, false),
        (&plain, WhereWanted, false),
        (&wanted, WhereWanted, true),
    ] {
        let mut options = world.options();
        options.set_user_id = choice;
        let driver = driver::container::Container::new(options).unwrap();
        let command = "exec > /shared/report; /bin/id-of-owner; echo done";
        let mut spec = world.spec(command);
        spec.origin = support::origin(layers.clone());
        spec.identity.default_user = "user".into();
        let machine = world.prepare(&driver).await.start(spec).await.unwrap();
        let text = report(&*machine, "/shared/report").await;
        assert!(text.contains("uid=1000(user) gid=1000(user)"), "{text}");
        assert_eq!(text.contains("euid=0(root)"), gains, "{choice:?}: {text}");
        machine.destroy().await.unwrap();
        driver.shutdown().await;
    }
}

#[tokio::test]
async fn the_uppermost_layer_wins() {
    let world = World::new();
    let driver = world.container();
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

#[tokio::test]
async fn a_sandbox_that_runs_out_of_memory_says_so() {
    let world = World::new();
    let driver = world.container();
    let mut spec = world.spec("");
    // Too little even for the guest once its cache is written to.
    spec.resources.memory = api::Bytes::mebibytes(24);
    // The first process itself is made the one to go.
    let machine = world.prepare(&driver).await.start(spec).await.unwrap();
    let pid = machine.record().pid;
    fs::write(format!("/proc/{pid}/oom_score_adj"), "1000").unwrap();
    let group = driver::cgroup::Group::of(
        &driver::cgroup::Hierarchies::find().unwrap(),
        &world.instance,
        machine.record().slot,
    );
    // A child of the test, moved into the sandbox's groups, uses up what there is: two, so that neither is
    // larger than the one that is marked.
    let mut child = std::process::Command::new("sh")
        .args(["-c", "read go; tail /dev/zero & exec tail /dev/zero"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    for directory in group
        .legacy()
        .iter()
        .map(AsRef::as_ref)
        .chain(group.unified())
    {
        fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    drop(child.stdin.take());
    let exit = tokio::time::timeout(Duration::from_secs(20), machine.wait())
        .await
        .unwrap();
    assert_eq!(exit, Exit::OutOfMemory);
    let _ = child.kill();
    child.wait().unwrap();
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

#[tokio::test]
async fn the_limit_on_processes_holds() {
    let world = World::new();
    let mut options = world.options();
    options.processes = 40;
    let driver = driver::container::Container::new(options).unwrap();
    let command = "{ for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 \
                   26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50; do \
                   sleep 1000 & done; } 2> /refused; touch /over";
    let machine = world.start(&driver, command).await;
    wait_for("the limit", || {
        fs::read_to_string(inside(&*machine, "/refused")).is_ok_and(|text| {
            let text = text.to_lowercase();
            text.contains("cannot fork") || text.contains("resource temporarily unavailable")
        })
    })
    .await;
    assert!(machine.usage().unwrap().processes <= 40);
    assert!(is_healthy(&*machine));
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

#[tokio::test]
async fn what_cannot_start_leaves_nothing() {
    let world = World::new();
    let driver = world.container();
    let mut spec = world.spec("");
    spec.origin = support::origin(vec![world.root.join("absent")]);
    match world.prepare(&driver).await.start(spec).await {
        Err(DriverError::System { doing, .. }) => assert!(doing.contains("absent"), "{doing}"),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it started without a root"),
    }
    // A hostile image: its /proc points elsewhere.
    let hostile = world.directory.path().join("hostile");
    fs::create_dir_all(&hostile).unwrap();
    std::os::unix::fs::symlink("/tmp", hostile.join("proc")).unwrap();
    let mut spec = world.spec("");
    spec.origin = support::origin(vec![hostile]);
    match world.prepare(&driver).await.start(spec).await {
        Err(DriverError::Guest(message)) => assert!(message.contains("/proc"), "{message}"),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it followed a link"),
    }
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_at_once() {
    let world = World::new();
    let driver = world.container();
    let mut prepared = Vec::new();
    for _ in 0..100 {
        prepared.push(world.prepare(&driver).await);
    }
    let begin = std::time::Instant::now();
    let starts = prepared.into_iter().map(|prepared| {
        let spec = world.spec("");
        tokio::spawn(async move { prepared.start(spec).await.unwrap() })
    });
    let starts: Vec<_> = starts.collect();
    let mut machines = Vec::new();
    for start in starts {
        machines.push(start.await.unwrap());
    }
    println!("100 starts in {:?}", begin.elapsed());
    assert!(machines.iter().all(|machine| is_healthy(&**machine)));
    let begin = std::time::Instant::now();
    for machine in &machines {
        machine.destroy().await.unwrap();
    }
    println!("100 ends in {:?}", begin.elapsed());
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

#[tokio::test]
async fn another_disk_than_the_prepared_one_has_its_own_limit() {
    let world = World::new();
    let driver = world.container();
    let command = "{ dd if=/dev/zero of=/big bs=1M count=200 2>&1; echo done; } > /dev/shm/report";
    let mut spec = world.spec(command);
    spec.resources.disk = api::Bytes::mebibytes(128);
    let machine = world.prepare(&driver).await.start(spec).await.unwrap();
    report(&*machine, "/dev/shm/report").await;
    let used = machine.usage().unwrap().disk;
    assert!((100 << 20..=128 << 20).contains(&used), "{used}");
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}
