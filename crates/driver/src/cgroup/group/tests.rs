//! Groups on this machine's hierarchies, whatever they are.

use super::*;
use std::process::Command;

/// A group of an instance that nothing else has, removed at the end.
struct Scratch(Hierarchies, String, Group);

impl Scratch {
    fn new(name: &str) -> Self {
        Self::on(Hierarchies::find().unwrap(), name)
    }

    fn on(hierarchies: Hierarchies, name: &str) -> Self {
        let instance = format!("test-{name}-{}", std::process::id());
        let group = Group::create(&hierarchies, &instance, 7).unwrap();
        Self(hierarchies, instance, group)
    }

    fn join(&self, pid: u32) {
        for directory in self.2.directories() {
            fs::write(directory.join("cgroup.procs"), pid.to_string()).unwrap();
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.2.kill_all();
        let _ = self.2.remove();
        Group::remove_instance(&self.0, &self.1);
    }
}

#[test]
fn limits_are_taken_and_usage_is_read() {
    let scratch = Scratch::new("limits");
    let group = &scratch.2;
    group
        .limit(&Limits {
            memory: 64 << 20,
            vcpus: 2,
            processes: 10,
        })
        .unwrap();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    scratch.join(child.id());
    assert_eq!(group.usage().unwrap().processes, 1);
    assert_eq!(group.memory_kills(), 0);
    assert_eq!(Group::slots(&scratch.0, &scratch.1), [7]);
    // The zombie must be reaped before the kernel forgets it.
    let killer = std::thread::spawn({
        let group = group.clone();
        move || group.kill_all()
    });
    child.wait().unwrap();
    killer.join().unwrap().unwrap();
    group.remove().unwrap();
    assert!(!group.exists());
}

#[test]
fn who_weighs_least_takes_what_is_left() {
    let scratch = Scratch::new("weight");
    let other = Group::create(&scratch.0, &scratch.1, 8).unwrap();
    let allowed = fs::read_to_string("/proc/self/status").unwrap();
    let allowed = allowed
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap();
    let processor = allowed.trim().split([',', '-']).next().unwrap();
    // Both want the same processor all the time.
    let mut spinning = Vec::new();
    for group in [&scratch.2, &other] {
        let child = Command::new("taskset")
            .args(["-c", processor, "sh", "-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        for directory in group.directories() {
            fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        spinning.push(child);
    }
    let used = |group: &Group| group.usage().unwrap().cpu_time;
    // What each used until the second one has used so much more.
    let share = || {
        let (before, since, begin) = (used(&other), used(&scratch.2), Instant::now());
        while used(&other) - before < Duration::from_millis(200) {
            assert!(begin.elapsed() < Duration::from_secs(60));
            std::thread::park_timeout(Duration::from_millis(5));
        }
        (used(&scratch.2) - since).as_secs_f64() / (used(&other) - before).as_secs_f64()
    };
    scratch.2.weigh(Weight::Least).unwrap();
    let least = share();
    scratch.2.weigh(Weight::Usual).unwrap();
    // What it had while it weighed least counts for a moment more.
    let begin = Instant::now();
    let mut usual = share();
    while usual < 0.5 && begin.elapsed() < Duration::from_secs(60) {
        usual = share();
    }
    for child in &mut spinning {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    other.remove().unwrap();
    assert!(least < 0.3 && usual > 0.5, "{least} {usual}");
}

#[test]
fn an_end_by_memory_is_counted() {
    let scratch = Scratch::new("memory");
    let group = &scratch.2;
    group
        .limit(&Limits {
            memory: 8 << 20,
            vcpus: 1,
            processes: 10,
        })
        .unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "read go; exec tail /dev/zero"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    scratch.join(child.id());
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(group.memory_kills(), 1);
}

#[test]
fn a_forking_process_does_not_escape_its_end() {
    let scratch = Scratch::new("forks");
    let group = scratch.2.clone();
    let mut child = Command::new("sh")
        .args(["-c", "read go; while :; do sleep 1000 & done"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    group
        .limit(&Limits {
            memory: 64 << 20,
            vcpus: 1,
            processes: 30,
        })
        .unwrap();
    scratch.join(child.id());
    drop(child.stdin.take());
    while group.usage().unwrap().processes < 30 {
        std::thread::yield_now();
    }
    let killer = std::thread::spawn({
        let group = group.clone();
        move || group.kill_all()
    });
    child.wait().unwrap();
    killer.join().unwrap().unwrap();
    assert!(group.members().unwrap().is_empty());
}

#[test]
fn fields_of_flat_files() {
    let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
    assert_eq!(field(text, "oom_kill"), 3);
    assert_eq!(field(text, "absent"), 0);
}

/// The hierarchies of this machine as if version 2 were not mounted. None where the freezer of
/// version 1 is not.
fn without_version_2() -> Option<Hierarchies> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = mounts.lines().filter(|line| !line.contains(" - cgroup2 "));
    let found = Hierarchies::parse(&lines.collect::<Vec<_>>().join("\n"), |_| unreachable!());
    let freezes = |legacy: &crate::cgroup::Legacy| {
        let mut controllers = legacy.controllers.iter();
        controllers.any(|have| have == "freezer")
    };
    found.legacy.iter().any(freezes).then_some(found)
}

/// A process that counts in a file stands still, goes on, and dies while it stands still.
fn check_freezing(hierarchies: Hierarchies, name: &str) {
    let scratch = Scratch::on(hierarchies, name);
    let group = &scratch.2;
    let file = tempfile::NamedTempFile::new().unwrap();
    let script = format!(
        "n=0; while :; do n=$((n+1)); echo $n > {}; sleep 0.001; done",
        file.path().display()
    );
    let mut child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    scratch.join(child.id());
    let count = || fs::read_to_string(file.path()).unwrap();
    let moves = |patience| {
        let (before, begin) = (count(), Instant::now());
        while count() == before && begin.elapsed() < patience {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        count() != before
    };
    let (short, long) = (Duration::from_millis(20), Duration::from_secs(20));
    for _ in 0..10 {
        assert!(moves(long));
        group.freeze().unwrap();
        group.freeze().unwrap();
        assert!(group.is_frozen().unwrap());
        assert!(!moves(short));
        group.thaw().unwrap();
        group.thaw().unwrap();
        assert!(!group.is_frozen().unwrap());
    }
    group.freeze().unwrap();
    let killer = std::thread::spawn({
        let group = group.clone();
        move || group.kill_all()
    });
    child.wait().unwrap();
    killer.join().unwrap().unwrap();
    group.remove().unwrap();
}

#[test]
fn a_frozen_group_stands_still_goes_on_and_can_be_killed() {
    check_freezing(Hierarchies::find().unwrap(), "freeze");
}

#[test]
fn so_does_one_of_version_1() {
    if let Some(hierarchies) = without_version_2() {
        check_freezing(hierarchies, "freeze-1");
    }
}
