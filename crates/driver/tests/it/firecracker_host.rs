//! A host whose Firecracker and jailer are stand-ins.

// Not every test file uses all of it.
#![allow(dead_code)]

use crate::{
    firecracker_api::{self, Behaviour, requests},
    support::{self, World, network},
};
use api::Bytes;
use driver::{
    Driver, DriverError, Machine, NetworkSlot, Origin, Plan, RootFiles, SavedState, StartSpec,
    firecracker::{Firecracker, FirecrackerOptions},
    kernel::Kernel,
};
use serde_json::Value;
use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

/// A host with a stand-in.
pub(crate) struct Host {
    pub(crate) world: World,
    pub(crate) program: PathBuf,
    pub(crate) jailer: PathBuf,
    pub(crate) slots: AtomicU32,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::that(Behaviour::default())
    }

    pub(crate) fn that(behaviour: Behaviour) -> Self {
        let world = World::new();
        for name in ["vmlinux", "initramfs", "root.img"] {
            fs::write(world.directory.path().join(name), name).unwrap();
        }
        let (program, jailer) = firecracker_api::install(world.directory.path(), &behaviour);
        Self {
            world,
            program,
            jailer,
            slots: AtomicU32::new(0),
        }
    }

    /// From now on it behaves in another way.
    pub(crate) fn becomes(&self, behaviour: &Behaviour) {
        firecracker_api::install(self.world.directory.path(), behaviour);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.world.directory.path().join(name)
    }

    pub(crate) fn options(&self) -> FirecrackerOptions {
        let kernel = Kernel {
            release: "6.1.0".into(),
            image: self.path("vmlinux"),
            initramfs: self.path("initramfs"),
            digest: "kernel".into(),
            guest_digest: "guest".into(),
            notes: Vec::new(),
        };
        let programs = (self.program.clone(), self.jailer.clone());
        let mut options =
            FirecrackerOptions::new(self.path("data"), &self.world.instance, programs, kernel);
        options.try_kvm = false;
        options.pages_command = support::own_test("pages_process");
        options
    }

    pub(crate) fn driver(&self) -> Firecracker {
        Firecracker::new(self.options()).unwrap()
    }

    pub(crate) fn slot(&self) -> Arc<NetworkSlot> {
        let number = self.slots.fetch_add(1, Ordering::Relaxed);
        network::slot(number, Some(self.world.user_of(number)))
    }

    pub(crate) fn origin(&self) -> Origin {
        Origin::Fresh(RootFiles {
            layers: Vec::new(),
            disk: Some(self.path("root.img")),
        })
    }

    pub(crate) fn plan(&self) -> Plan {
        Plan {
            origin: self.origin(),
            resources: self.spec().resources,
        }
    }

    pub(crate) fn spec(&self) -> StartSpec {
        let mut spec = self.world.spec("");
        spec.origin = self.origin();
        spec.resources.memory = Bytes::mebibytes(4);
        spec
    }

    pub(crate) async fn start(&self, driver: &Firecracker) -> Box<dyn Machine> {
        let prepared = driver.prepare(self.slot(), &self.plan()).await.unwrap();
        prepared.start(self.spec()).await.unwrap()
    }

    pub(crate) async fn load(
        &self,
        driver: &Firecracker,
        slot: Arc<NetworkSlot>,
        state: &SavedState,
    ) -> Result<Box<dyn Machine>, DriverError> {
        let plan = Plan {
            origin: Origin::Saved(Arc::new(state.clone())),
            resources: state.resources,
        };
        driver.prepare(slot, &plan).await?.start(self.spec()).await
    }

    /// What the machine in a slot sees as its root.
    pub(crate) fn root(&self, slot: u32) -> PathBuf {
        self.path(&format!("data/jails/firecracker/{slot}/root"))
    }

    pub(crate) fn calls(&self, slot: u32) -> Vec<String> {
        let requests = requests(&self.root(slot));
        requests.into_iter().map(|(request, _)| request).collect()
    }

    pub(crate) fn body(&self, slot: u32, request: &str) -> Value {
        let requests = requests(&self.root(slot));
        let found = requests.into_iter().find(|(made, _)| made == request);
        found.unwrap_or_else(|| panic!("no {request}")).1
    }

    pub(crate) async fn expect_nothing_left(&self, driver: &Firecracker) {
        driver.shutdown().await;
        let jails = self.path("data/jails/firecracker");
        let left: Vec<_> = fs::read_dir(jails)
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(self.world.leftovers(), [""; 0]);
    }
}

/// The request to the guest of a machine, from inside its network.
pub(crate) fn tell_guest(machine: &dyn Machine, token: &str, path: &str) {
    let namespace = format!("--net=/proc/{}/ns/net", machine.record().pid);
    let url = format!("http://{}:49983{path}", driver::slot::machine::ADDRESS);
    let token = format!("x-atoll-control: {token}");
    let arguments = ["curl", "-sf", "-X", "PUT", "-H", &token, &url];
    let status = Command::new("nsenter")
        .arg(namespace)
        .args(arguments)
        .status();
    assert!(status.unwrap().success());
}

pub(crate) fn text(error: &DriverError) -> String {
    let source = std::error::Error::source(error);
    let remedy = match error {
        DriverError::Unsupported { remedy, .. } => remedy.as_str(),
        _ => "",
    };
    format!(
        "{error}: {} {remedy}",
        source.map(ToString::to_string).unwrap_or_default()
    )
}

pub(crate) fn failed<T>(result: Result<T, DriverError>) -> DriverError {
    match result {
        Ok(_) => panic!("it did not fail"),
        Err(error) => error,
    }
}
