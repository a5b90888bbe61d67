//! A machine that is suspended by a command and woken by a packet, by the drivers as they are.

use super::bench::{Bench, STEP, bench};
use fleet::{
    config::PowerEntry,
    moment::{Moment, Span},
};
use std::path::{Path, PathBuf};
use tokio::net::UdpSocket;

/// How long a machine takes to suspend and to resume, in seconds.
const TAKES: u64 = 15;

struct Asleep {
    bench: Bench,
    folder: tempfile::TempDir,
    card: UdpSocket,
    /// What m1 was told, the first first.
    told: Vec<(Moment, &'static str)>,
}

fn appends(path: &Path) -> Vec<String> {
    let script = format!("echo x >> {}", path.display());
    ["sh", "-c", &script].map(str::to_owned).to_vec()
}

impl Asleep {
    /// Two machines; m1 can be suspended, and draws this much then.
    async fn new(suspended: f64) -> Self {
        let mut bench = bench(2).await;
        let folder = tempfile::tempdir().unwrap();
        let card = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let path = |name: &str| folder.path().join(name);
        bench.file.groups[0].watts.as_mut().unwrap().suspended = Some(suspended);
        let m1 = &mut bench.file.machines[1];
        m1.power = Some(PowerEntry::WakeOnLan {
            mac: "02:00:00:00:00:01".to_owned(),
            broadcast: Some(card.local_addr().unwrap()),
            off: appends(&path("off")),
            suspend: Some(appends(&path("suspend"))),
        });
        let boot = path("boot").display().to_string();
        m1.node.as_mut().unwrap().boot_id = Some(vec!["cat".to_owned(), boot]);
        bench.restart().await;
        bench.ask("a", 4, Some("m0"));
        let asleep = Self {
            bench,
            folder,
            card,
            told: Vec::new(),
        };
        asleep.boot("one");
        asleep
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn boot(&self, id: &str) {
        std::fs::write(self.path("boot"), id).unwrap();
    }

    /// Ticks once, and lets m1 do what it was told.
    async fn tick(&mut self) {
        self.bench.run(STEP).await;
        self.obey();
    }

    fn obey(&mut self) {
        let now = self.bench.now();
        let before = self.told.len();
        for what in ["suspend", "off"] {
            if let Ok(lines) = std::fs::read_to_string(self.path(what)) {
                std::fs::remove_file(self.path(what)).unwrap();
                self.told.extend(lines.lines().map(|_| (now, what)));
            }
        }
        let mut packet = [0; 200];
        let mut packets = 0;
        while let Ok(length) = self.card.try_recv(&mut packet) {
            assert_eq!(length, 102);
            packets += 1;
        }
        if packets > 0 {
            self.told.push((now, "wake"));
        }
        if let Some((_, what)) = self.told.get(before..).and_then(<[_]>::last) {
            let up = *what == "wake";
            self.bench.with(|world| {
                let machine = world.machines.get_mut("m1").unwrap();
                if machine.up != up {
                    machine.changes = Some((now.plus(Span(TAKES)), up));
                }
            });
        }
    }

    fn power(&self) -> String {
        let machines = self.bench.fleet.shared().machines();
        let m1 = machines.into_iter().find(|one| one.name == "m1");
        m1.map(|one| one.power.to_string()).unwrap_or_default()
    }

    /// Ticks until m1's power is so.
    async fn until(&mut self, power: &str) -> Span {
        let start = self.bench.now();
        while self.power() != power {
            let waited = self.bench.now().since(start);
            assert!(waited < Span::hours(1), "{} {:?}", self.power(), self.told);
            self.tick().await;
        }
        self.bench.now().since(start)
    }

    fn told(&self) -> Vec<&'static str> {
        self.told.iter().map(|(_, what)| *what).collect()
    }
}

#[tokio::test]
async fn a_machine_is_suspended_while_that_pays_and_off_when_that_is_better() {
    let mut asleep = Asleep::new(60.0).await;
    asleep.until("suspended").await;
    assert_eq!(asleep.told(), ["suspend"]);
    let status = asleep.bench.fleet.shared().status();
    assert_eq!(status.machines["suspended"], 1);
    // m0 under full load, and m1 asleep.
    assert!((status.watts - 360.0).abs() < 1.0, "{}", status.watts);
    // It is needed: it wakes as it was, and that is quick.
    asleep.bench.ask("b", 3, None);
    let took = asleep.until("on").await;
    assert!(took <= Span(60), "{took}");
    assert_eq!(asleep.told(), ["suspend", "wake"]);
    asleep.bench.ask("b", 3, Some("m1"));
    asleep.tick().await;
    asleep.bench.end("b");
    asleep.until("suspended").await;
    // It is not needed for long: it is woken, and switched off as it should be.
    asleep.until("off").await;
    assert_eq!(asleep.told(), ["suspend", "wake", "suspend", "wake", "off"]);
    assert!(asleep.bench.with(|world| world.violations.is_empty()));
}

#[tokio::test]
async fn what_did_not_come_back_as_it_was_is_switched_off_instead_for_a_while() {
    let mut asleep = Asleep::new(9.0).await;
    asleep.until("suspended").await;
    asleep.boot("two");
    asleep.bench.ask("b", 3, None);
    asleep.until("on").await;
    asleep.tick().await;
    let why = asleep.bench.fleet.shared().explain("m1", None).await;
    let trouble = why.unwrap().trouble.unwrap();
    assert!(trouble.contains("another boot"), "{trouble}");
    asleep.bench.end("b");
    asleep.until("off").await;
    assert_eq!(asleep.told(), ["suspend", "wake", "off"]);
}

#[tokio::test]
async fn killed_while_a_machine_falls_asleep_or_sleeps_nothing_is_told_twice() {
    let mut asleep = Asleep::new(9.0).await;
    asleep.until("stopping").await;
    assert_eq!(asleep.told(), ["suspend"]);
    asleep.bench.kill(Span(30)).await;
    asleep.until("suspended").await;
    asleep.bench.kill(Span::minutes(30)).await;
    asleep.tick().await;
    assert_eq!(asleep.power(), "suspended");
    asleep.bench.ask("b", 3, None);
    asleep.until("waking").await;
    asleep.bench.kill(Span(10)).await;
    asleep.until("on").await;
    assert_eq!(asleep.told(), ["suspend", "wake"]);
}

#[tokio::test]
async fn who_ignores_being_told_to_suspend_is_switched_off() {
    let mut asleep = Asleep::new(9.0).await;
    let mut told = Vec::new();
    while !told.contains(&"off") {
        assert!(told.len() < 10, "{told:?}");
        asleep.bench.run(STEP).await;
        let before = asleep.told.len();
        asleep.obey();
        told.extend(asleep.told[before..].iter().map(|(_, what)| *what));
        if !told.contains(&"off") {
            let ignore = |world: &mut super::bench::World| {
                world.machines.get_mut("m1").unwrap().changes = None;
            };
            asleep.bench.with(ignore);
        }
    }
    assert_eq!(told, ["suspend", "suspend", "suspend", "suspend", "off"]);
    asleep.until("off").await;
}
