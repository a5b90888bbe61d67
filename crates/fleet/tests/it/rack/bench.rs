//! A fleet whose machines are behind a simulated controller, and whose demand is a file.

use bmc::{Bmc, Machine, Power};
use fleet::{
    config,
    moment::{Moment, Span},
    power::transition::Patience,
    serve::{FileSource, Fleet, Setup},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use store::{SqliteOptions, SqliteStore, Store, clock::ManualClock};

pub(crate) const USER: &str = "admin";
pub(crate) const PASSWORD: &str = "password";
/// Time between ticks.
pub(crate) const STEP: Span = Span(10);
/// When everything begins.
pub(crate) const START: Moment = Moment(1_000_000);

/// Tests run beside each other: each has addresses of its own.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// An address of this machine's own that no other test has: 127.0.0.0/8 is all ours.
pub(crate) fn node_address(number: u32, at: u32) -> SocketAddr {
    let process = std::process::id();
    let address = [
        127,
        128 | ((process >> 8) & 127) as u8,
        process as u8,
        1 + at as u8,
    ];
    (address, 2300 + number as u16).into()
}

/// Machines with their controllers.
pub(crate) struct Rack {
    /// Of all machines but those that [`Rack::give_own`] gave their own.
    pub(crate) bmc: Bmc,
    pub(crate) own: BTreeMap<String, Bmc>,
    pub(crate) names: Vec<String>,
    pub(crate) now: Moment,
    /// Workloads and where they run; nowhere while they wait.
    pub(crate) work: BTreeMap<String, Option<String>>,
    pub(crate) folder: tempfile::TempDir,
    /// Machines that are too small for any work that waits; they have a group of their own.
    pub(crate) small: BTreeSet<String>,
    /// How machines are switched, if not through their controllers.
    pub(crate) power: BTreeMap<String, String>,
    /// How long controllers may take to answer, in seconds.
    pub(crate) timeout: u64,
    number: u32,
}

impl Rack {
    /// So many machines, `m0` being a base machine. All of them are as `on` says.
    pub(crate) async fn new(count: u32, on: bool) -> Self {
        let number = NEXT.fetch_add(1, Relaxed);
        let machines = (0..count).map(|at| {
            let mut machine = Machine::new(format!("m{at}"), Some(node_address(number, at)));
            machine.mac = format!("02:00:00:00:00:{at:02x}");
            if on || at == 0 {
                machine.power = Power::On;
            }
            machine
        });
        let machines: Vec<Machine> = machines.collect();
        let names = machines.iter().map(|one| one.name.clone()).collect();
        let bmc = Bmc::start(USER, PASSWORD, machines).await.unwrap();
        // In memory, where there is such a place: what is killed here is the process, not the machine.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let rack = Self {
            bmc,
            own: BTreeMap::new(),
            names,
            now: START,
            work: BTreeMap::new(),
            folder: folder.unwrap(),
            small: BTreeSet::new(),
            power: BTreeMap::new(),
            timeout: 10,
            number,
        };
        std::fs::write(rack.path("password"), PASSWORD).unwrap();
        rack.pass(Span(0));
        rack.write_demand();
        rack
    }

    /// Puts a machine behind a controller of its own.
    pub(crate) async fn give_own(&mut self, name: &str) {
        let at = self.names.iter().position(|one| one == name).unwrap() as u32;
        let mut machine = Machine::new(name, Some(node_address(self.number, at)));
        machine.power = self.bmc.with(name, |one| one.power).unwrap();
        self.bmc.with(name, |one| {
            // What it was before is nothing any more.
            (one.node, one.power) = (None, Power::Off);
        });
        let own = Bmc::start(USER, PASSWORD, vec![machine]).await.unwrap();
        self.own.insert(name.to_owned(), own);
        self.now = self.now.plus(Span(1));
        self.tell_time();
    }

    pub(crate) fn controller(&self, name: &str) -> &Bmc {
        self.own.get(name).unwrap_or(&self.bmc)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The configuration.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            r#"
wakes_per_second = 100
[policy]
debounce = "1m"
[demand]
source = "file"
path = "{}"
[[groups]]
name = "pool"
capacity = {{ cpu = 4, memory = "16GiB" }}
watts = {{ off = 5, idle = 120, peak = 300 }}
boot = "60s"
[[groups]]
name = "small"
capacity = {{ cpu = 2, memory = "16GiB" }}
watts = {{ off = 5, idle = 120, peak = 300 }}
boot = "60s"
"#,
            self.path("demand").display()
        );
        for (at, name) in self.names.iter().enumerate() {
            let role = if at == 0 { "base" } else { "auto" };
            let group = if self.small.contains(name) {
                "small"
            } else {
                "pool"
            };
            let node = node_address(self.number, at as u32);
            let power = self.power.get(name).cloned().unwrap_or_else(|| {
                let bmc = self.controller(name);
                format!(
                    r#"{{ driver = "redfish", address = "{}", system = "/redfish/v1/Systems/{name}", user = "{USER}", password = {{ file = "{}" }}, certificate_sha256 = "{}", timeout = "{}s" }}"#,
                    bmc.url(),
                    self.path("password").display(),
                    bmc.fingerprint(),
                    self.timeout
                )
            });
            write!(
                text,
                "[[machines]]\nname = \"{name}\"\ngroup = \"{group}\"\nrole = \"{role}\"\nnode = {{ address = \"{node}\" }}\npower = {power}\n"
            )
            .unwrap();
        }
        text
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, _: Span) {
        self.tell_time();
    }

    pub(crate) fn tell_time(&self) {
        let since = Duration::from_secs(self.now.since(START).0);
        for bmc in std::iter::once(&self.bmc).chain(self.own.values()) {
            bmc.pass(since);
        }
    }

    /// Work that waits goes to machines that are up and carry none, as a scheduler would.
    pub(crate) fn schedule(&mut self) {
        for name in self.names.clone() {
            let up = self.is_up(&name);
            let taken = self.work.values().flatten().any(|one| *one == name);
            if up && !taken && !self.stops(&name) && !self.small.contains(&name) {
                let waiting = self.work.values_mut().find(|one| one.is_none());
                if let Some(place) = waiting {
                    *place = Some(name.clone());
                }
            }
        }
        self.write_demand();
    }

    /// Whether a machine is shutting down: its kubelet takes nothing more.
    fn stops(&self, name: &str) -> bool {
        let bmc = self.controller(name);
        bmc.with(name, |one| matches!(one.power, Power::Stopping { .. }))
            .unwrap()
    }

    /// Writes down what is asked for, and tells machines whether they carry work.
    pub(crate) fn write_demand(&self) {
        let mut text = String::new();
        for (workload, place) in &self.work {
            let place = place.as_deref().unwrap_or_default();
            writeln!(text, "{workload},3000,3000,{place},never").unwrap();
        }
        std::fs::write(self.path("next"), text).unwrap();
        std::fs::rename(self.path("next"), self.path("demand")).unwrap();
        for name in &self.names {
            let working = self.work.values().flatten().any(|one| one == name);
            self.controller(name)
                .with(name, |one| one.working = working);
        }
    }

    pub(crate) fn is_up(&self, name: &str) -> bool {
        let bmc = self.controller(name);
        bmc.with(name, |one| one.is_up()).unwrap()
    }

    pub(crate) fn is_off(&self, name: &str) -> bool {
        let bmc = self.controller(name);
        bmc.with(name, |one| one.power == Power::Off).unwrap()
    }

    /// What a machine was told.
    pub(crate) fn told(&self, name: &str) -> Vec<String> {
        let all = self.controller(name).events().into_iter();
        all.filter(|one| one.machine == name)
            .map(|one| one.reset)
            .collect()
    }

    /// Fails if a machine was ever switched off under its work.
    pub(crate) fn nothing_was_taken_from_work(&self) {
        for bmc in std::iter::once(&self.bmc).chain(self.own.values()) {
            let wrong: Vec<_> = bmc.events().into_iter().filter(|one| one.at_work).collect();
            assert!(wrong.is_empty(), "{wrong:?}");
        }
    }
}

/// A fleet in this process that looks after a rack.
pub(crate) struct Kept {
    pub(crate) rack: Rack,
    pub(crate) fleet: Fleet,
    leases: ManualClock,
}

impl Kept {
    pub(crate) async fn new(rack: Rack) -> Self {
        let leases = ManualClock::default();
        let options = SqliteOptions {
            clock: Arc::new(leases.clone()),
            ..SqliteOptions::default()
        };
        let path = rack.path("fleet.sqlite");
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open_with(path, options).await.unwrap());
        let setup = Setup {
            file: config::parse(&rack.text()).unwrap(),
            store,
            source: Arc::new(FileSource::new(rack.path("demand"))),
            patience: Patience::default(),
            dry_run: false,
        };
        let mut fleet = Fleet::open(setup).unwrap();
        assert!(fleet.try_lead(rack.now).await.unwrap());
        Self {
            rack,
            fleet,
            leases,
        }
    }

    pub(crate) async fn step(&mut self) {
        self.step_by(STEP).await;
    }

    pub(crate) async fn step_by(&mut self, span: Span) {
        self.rack.now = self.rack.now.plus(span);
        self.rack.tell_time();
        self.rack.schedule();
        self.leases.advance(Duration::from_secs(5));
        self.fleet.tick(self.rack.now).await.unwrap();
    }

    pub(crate) async fn run(&mut self, span: Span) {
        let end = self.rack.now.plus(span);
        while self.rack.now < end {
            self.step().await;
        }
    }

    /// Goes on until something holds, for at most so long; returns how long that took.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        most: Span,
        holds: impl Fn(&Self) -> bool,
    ) -> Span {
        let start = self.rack.now;
        while !holds(self) {
            let waited = self.rack.now.since(start);
            let told = self.rack.names.iter().map(|one| (one, self.rack.told(one)));
            let told: Vec<_> = told.collect();
            assert!(waited < most, "{what}: not within {most}; {told:?}");
            self.step().await;
        }
        self.rack.now.since(start)
    }

    pub(crate) fn reason(&self, machine: &str) -> String {
        let machines = self.fleet.shared().machines();
        let found = machines.into_iter().find(|one| one.name == machine);
        found.unwrap().reason
    }

    /// What is said of a machine: everything that `atoll fleet explain` would print.
    pub(crate) async fn explained(&self, machine: &str) -> String {
        let said = self.fleet.shared().explain(machine, None).await.unwrap();
        format!("{said:?}")
    }
}
