//! What the `container` driver does with states: it stops sandboxes in place, saves their disks,
//! and starts from disks that any driver saved.

#![allow(clippy::unwrap_used, clippy::panic)]

use crate::support;

use driver::{Driver, DriverError, DriverKind, Machine, Origin, Plan, SaveOptions, SavedState};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use support::{World, inside, is_healthy, wait_for};

const GOES_ON: SaveOptions = SaveOptions {
    memory: false,
    goes_on: true,
    lasts: true,
};

const STAYS: SaveOptions = SaveOptions {
    memory: false,
    goes_on: false,
    lasts: true,
};

/// Counts in a file, in memory that no state holds.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n > /dev/shm/count; sleep 0.01; done";

fn count(machine: &dyn Machine) -> u64 {
    let text = fs::read_to_string(inside(machine, "/dev/shm/count")).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

async fn goes_on(machine: &dyn Machine) {
    let before = count(machine);
    wait_for("the counter", || count(machine) > before + 1).await;
}

async fn stands_still(machine: &dyn Machine) {
    let before = count(machine);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(count(machine), before);
}

async fn written(machine: &dyn Machine, path: &str) -> String {
    let mut text = String::new();
    wait_for(path, || {
        text = fs::read_to_string(inside(machine, path)).unwrap_or_default();
        text.ends_with('\n')
    })
    .await;
    text
}

#[tokio::test]
async fn a_frozen_sandbox_stands_still_until_it_is_thawed() {
    let world = World::new();
    let driver = world.container();
    let machine = world.start(&driver, COUNTER).await;
    goes_on(&*machine).await;
    for _ in 0..3 {
        machine.freeze().await.unwrap();
        machine.freeze().await.unwrap();
        stands_still(&*machine).await;
        machine.thaw().await.unwrap();
        machine.thaw().await.unwrap();
        goes_on(&*machine).await;
    }
    machine.freeze().await.unwrap();
    machine.destroy().await.unwrap();
    assert!(machine.freeze().await.is_err());
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

#[tokio::test]
async fn a_frozen_sandbox_stays_so_when_it_is_adopted() {
    let world = World::new();
    let (thawed, ended) = {
        let driver = world.container();
        let machines = [
            world.start(&driver, COUNTER).await,
            world.start(&driver, COUNTER).await,
        ];
        for machine in &machines {
            goes_on(&**machine).await;
            machine.freeze().await.unwrap();
        }
        (machines[0].record(), machines[1].record())
    };
    let driver = world.container();
    let machine = driver.adopt(&thawed).await.unwrap().unwrap();
    stands_still(&*machine).await;
    machine.thaw().await.unwrap();
    goes_on(&*machine).await;
    machine.destroy().await.unwrap();
    let machine = driver.adopt(&ended).await.unwrap().unwrap();
    stands_still(&*machine).await;
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    world.expect_nothing_left().await;
}

#[tokio::test]
async fn a_frozen_sandbox_that_nobody_keeps_is_swept() {
    let world = World::new();
    {
        let driver = world.container();
        let machine = world.start(&driver, COUNTER).await;
        machine.freeze().await.unwrap();
    }
    let driver = world.container();
    assert!(!driver.sweep(&[]).await.unwrap().is_empty());
    driver.shutdown().await;
    world.expect_nothing_left().await;
}

#[tokio::test]
async fn a_disk_is_saved_while_its_sandbox_goes_on() {
    let world = World::new();
    let driver = world.container();
    let command = format!("echo one > /kept; {COUNTER}");
    let machine = world.start(&driver, &command).await;
    written(&*machine, "/kept").await;
    goes_on(&*machine).await;
    let saved = world.directory.path().join("saved");
    let begin = Instant::now();
    let state = machine.save(&saved, GOES_ON).await.unwrap();
    println!("saved in {:?}", begin.elapsed());
    assert_eq!(state.driver, DriverKind::Container);
    assert!(state.memory.is_none());
    assert_eq!(state.resources, world.spec("").resources);
    assert_eq!(SavedState::load(&saved, &world.data).unwrap(), state);
    let disk = saved.join("disk.img");
    let about = fs::metadata(&disk).unwrap();
    assert_eq!(about.len(), 64 << 20);
    assert!(
        about.blocks() * 512 < 4 << 20,
        "it is sparse: {}",
        about.blocks()
    );
    goes_on(&*machine).await;
    fs::write(inside(&*machine, "/kept"), "two\n").unwrap();

    driver::qemu::verify(&state).unwrap();

    // Many start from it, each with a disk of its own.
    driver.check(&state).unwrap();
    let state = Arc::new(state);
    for round in 0..3 {
        let begin = Instant::now();
        let child = world.resume(&driver, &state, true).await;
        println!(
            "started from it in {:?}: {:?}",
            begin.elapsed(),
            child.phases()
        );
        assert!(is_healthy(&*child));
        assert_eq!(
            fs::read_to_string(inside(&*child, "/kept")).unwrap(),
            "one\n"
        );
        assert_eq!(count(&*child), 0, "the process is not there");
        fs::write(inside(&*child, "/kept"), format!("{round}\n")).unwrap();
        let names = fs::read_to_string(inside(&*child, "/etc/hostname")).unwrap();
        assert_eq!(names, "sandbox-of-test\n");
        child.destroy().await.unwrap();
    }
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

/// What was saved is exactly what there was when it was stopped, however its processes end.
#[tokio::test]
async fn a_sandbox_that_is_saved_for_good_stands_still() {
    let world = World::new();
    let driver = world.container();
    // Files that are open and removed: the kernel frees them when their process is killed.
    let command = format!(
        "dd if=/dev/urandom of=/random bs=1k count=4096 2>/dev/null; cksum < /random > /sum
         dd if=/dev/zero of=/removed bs=1k count=4096 2>/dev/null; exec 9< /removed; mv /removed /tmp/
         {COUNTER}"
    );
    let mut machine = world.start(&driver, &command).await;
    let sum = written(&*machine, "/sum").await;
    goes_on(&*machine).await;
    for round in 0..3 {
        fs::remove_file(inside(&*machine, "/tmp/removed")).unwrap_or_default();
        let saved = world.directory.path().join(format!("saved-{round}"));
        let state = machine.save(&saved, STAYS).await.unwrap();
        let after = count(&*machine);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(count(&*machine), after);
        machine.destroy().await.unwrap();
        check_file_system(&state);
        machine = world.resume(&driver, &Arc::new(state), false).await;
        let read = fs::read(inside(&*machine, "/random")).unwrap();
        assert_eq!(read.len(), 4 << 20);
        assert_eq!(fs::read_to_string(inside(&*machine, "/sum")).unwrap(), sum);
        let told = std::process::Command::new("cksum")
            .stdin(fs::File::open(inside(&*machine, "/random")).unwrap())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(told.stdout).unwrap(), sum);
        fs::remove_dir_all(&saved).unwrap();
    }
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

/// Nothing is wrong with its tables but what a mounted file system always has: the mark that it was
/// not unmounted, counters, and files that were removed while open.
fn check_file_system(state: &SavedState) {
    let checked = std::process::Command::new("e2fsck")
        .args(["-fn"])
        .arg(state.directory.join("disk.img"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&checked.stdout);
    let wrong = [
        "Duplicate",
        "multiply-claimed",
        "invalid",
        "Illegal",
        "corrupt",
        "checksum",
    ];
    for word in wrong {
        assert!(!text.contains(word), "{text}");
    }
}

#[tokio::test]
async fn a_frozen_or_adopted_sandbox_can_be_saved() {
    let world = World::new();
    let record = {
        let driver = world.container();
        let machine = world
            .start(&driver, &format!("echo one > /kept; {COUNTER}"))
            .await;
        written(&*machine, "/kept").await;
        machine.freeze().await.unwrap();
        let saved = world.directory.path().join("frozen");
        machine.save(&saved, GOES_ON).await.unwrap();
        stands_still(&*machine).await;
        machine.thaw().await.unwrap();
        machine.record()
    };
    let driver = world.container();
    let machine = driver.adopt(&record).await.unwrap().unwrap();
    let saved = world.directory.path().join("adopted");
    machine.save(&saved, STAYS).await.unwrap();
    machine.destroy().await.unwrap();
    for name in ["frozen", "adopted"] {
        let state = SavedState::load(&world.directory.path().join(name), &world.data).unwrap();
        let machine = world.resume(&driver, &Arc::new(state), true).await;
        assert_eq!(
            fs::read_to_string(inside(&*machine, "/kept")).unwrap(),
            "one\n"
        );
        machine.destroy().await.unwrap();
    }
    driver.shutdown().await;
    world.expect_nothing_left().await;
}

/// The program died while it saved a sandbox that was to go on.
#[tokio::test]
async fn a_save_that_was_cut_off_leaves_no_sandbox_standing() {
    let world = World::new();
    let record = {
        let driver = world.container();
        let machine = world.start(&driver, COUNTER).await;
        goes_on(&*machine).await;
        machine.freeze().await.unwrap();
        let slot = machine.record().slot;
        let mark = format!("data/layers/{slot}.saving");
        fs::write(world.directory.path().join(mark), "").unwrap();
        machine.record()
    };
    let driver = world.container();
    let machine = driver.adopt(&record).await.unwrap().unwrap();
    goes_on(&*machine).await;
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    world.expect_nothing_left().await;
}

#[tokio::test]
async fn what_cannot_be_saved_or_started_is_refused_in_words() {
    let world = World::new();
    let driver = world.container();
    let machine = world.start(&driver, COUNTER).await;
    goes_on(&*machine).await;
    let saved = world.directory.path().join("saved");
    let memory = SaveOptions {
        memory: true,
        goes_on: true,
        lasts: true,
    };
    match machine.save(&saved, memory).await {
        Err(DriverError::Unsupported { cause, remedy }) => {
            assert!(cause.contains("memory"), "{cause}");
            assert!(remedy.contains("qemu or firecracker"), "{remedy}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!saved.exists());
    // Where it cannot be written: the sandbox goes on, and nothing is left.
    let nowhere = world.directory.path().join("absent/saved");
    assert!(machine.save(&nowhere, STAYS).await.is_err());
    fs::create_dir(&saved).unwrap();
    assert!(
        machine.save(&saved, STAYS).await.is_err(),
        "it is there already"
    );
    fs::remove_dir(&saved).unwrap();
    goes_on(&*machine).await;

    let state = machine.save(&saved, GOES_ON).await.unwrap();
    fs::write(saved.join("disk.img"), vec![0; 1 << 20]).unwrap();
    match driver.check(&state) {
        Err(DriverError::Unsupported { cause, .. }) => assert!(cause.contains("ext4"), "{cause}"),
        other => panic!("{other:?}"),
    }
    let origin = Origin::Saved(Arc::new(state));
    let plan = Plan {
        origin: origin.clone(),
        ..world.plan()
    };
    let prepared = driver.prepare(world.network(), &plan).await.unwrap();
    let mut spec = world.spec("");
    spec.origin = origin;
    assert!(prepared.start(spec).await.is_err());
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

/// A state's files are the sandbox's own: what lies there instead of the names that the node writes
/// leads nowhere.
#[tokio::test]
async fn names_are_written_through_no_link() {
    let world = World::new();
    let driver = world.container();
    let target = world.directory.path().join("target");
    fs::write(&target, "untouched").unwrap();
    std::os::unix::fs::symlink(&target, world.root.join("etc/link")).unwrap();
    let command = "cd /etc; mv link hostname; mv hosts old; mkdir hosts; mv resolv.conf hosts/
                   echo done > /ready";
    let machine = world.start(&driver, command).await;
    written(&*machine, "/ready").await;
    assert!(inside(&*machine, "/etc/hostname").is_symlink());
    let saved = world.directory.path().join("saved");
    let state = Arc::new(machine.save(&saved, STAYS).await.unwrap());
    machine.destroy().await.unwrap();
    let machine = world.resume(&driver, &state, true).await;
    let etc = inside(&*machine, "/etc");
    assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
    assert_eq!(
        fs::read_to_string(etc.join("hostname")).unwrap(),
        "sandbox-of-test\n"
    );
    assert!(etc.join("hosts").is_dir());
    assert!(
        fs::read_to_string(etc.join("resolv.conf"))
            .unwrap()
            .contains("192.0.2.53")
    );
    machine.destroy().await.unwrap();
    driver.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

/// Writes a file as uid 1000 with one driver; with the other it belongs to uid 1000.
async fn check_owner(from: DriverKind, to: DriverKind) {
    // With both a directory and a disk as its root file system.
    let mut world = World::of(DriverKind::Qemu);
    allow_all(&world.root, &world.directory.path().join("root.img"));
    let root = world.origin();
    world.kind = from;
    let saving = world.driver();
    let mut spec = world.spec("echo mine > /tmp/mine; exec sleep 1000");
    spec.origin = root.clone();
    spec.identity.default_user = "user".into();
    let plan = Plan {
        origin: root,
        ..world.plan()
    };
    let prepared = saving.prepare(world.network(), &plan).await.unwrap();
    let machine = prepared.start(spec).await.unwrap();
    wait_for("the file", || {
        support::guest::read(&*machine, "/tmp/mine").is_some_and(|text| text == "mine\n")
    })
    .await;
    let saved = world.directory.path().join("saved");
    let state = Arc::new(machine.save(&saved, STAYS).await.unwrap());
    machine.destroy().await.unwrap();
    saving.shutdown().await;

    world.kind = to;
    let starting = world.driver();
    starting.check(&state).unwrap();
    let plan = Plan {
        resources: state.resources,
        origin: Origin::Saved(state),
    };
    let prepared = starting.prepare(world.network(), &plan).await.unwrap();
    let mut spec = world.spec("ls -ln /tmp/mine > /tmp/owner; id -u >> /tmp/owner");
    spec.origin = plan.origin;
    spec.resources = plan.resources;
    let machine = prepared.start(spec).await.unwrap();
    let mut text = String::new();
    wait_for("the owner", || {
        text = support::guest::read(&*machine, "/tmp/owner").unwrap_or_default();
        text.ends_with("\n0\n")
    })
    .await;
    let fields: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(fields[2..4], ["1000", "1000"], "{text}");
    machine.destroy().await.unwrap();
    starting.shutdown().await;
    assert_eq!(world.leftovers(), [""; 0]);
}

/// `/tmp` that everybody may write to, in the directory and in the disk made of it.
fn allow_all(root: &Path, disk: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    fs::write(disk, "").unwrap();
    fs::File::create(disk).unwrap().set_len(64 << 20).unwrap();
    let made = std::process::Command::new("mkfs.ext4")
        .args(["-q", "-F", "-O", "^has_journal", "-d"])
        .args([root, disk])
        .status()
        .unwrap();
    assert!(made.success());
}

#[tokio::test]
async fn owners_are_the_same_in_another_container() {
    check_owner(DriverKind::Container, DriverKind::Container).await;
}

#[tokio::test]
async fn owners_are_the_same_in_a_container_after_a_machine() {
    check_owner(DriverKind::Qemu, DriverKind::Container).await;
}

#[tokio::test]
async fn owners_are_the_same_in_a_machine_after_a_container() {
    check_owner(DriverKind::Container, DriverKind::Qemu).await;
}
