//! Networks of tests: a namespace with a loopback interface and, for machines, a tap device.

use driver::{NetworkSlot, slot::machine};
use std::{
    fs,
    io::Write,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    process::{Command, Stdio},
    sync::Arc,
};

/// A slot. With the user who may open its tap device it has what a machine needs.
pub fn slot(number: u32, owner: Option<u32>) -> Arc<NetworkSlot> {
    let namespace = std::thread::spawn(move || make(owner)).join().unwrap();
    Arc::new(NetworkSlot {
        number,
        namespace,
        host_interface: "none".into(),
        address: Ipv4Addr::LOCALHOST,
        gateway: Ipv4Addr::LOCALHOST,
        tap: owner.map(|_| machine::TAP.into()),
    })
}

fn make(owner: Option<u32>) -> OwnedFd {
    // SAFETY: gives this thread alone, which ends after this, another network.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(unshared, 0, "needs root");
    let mut commands = String::from("link set lo up\n");
    if let Some(owner) = owner {
        let mac = machine::TAP_MAC.map(|byte| format!("{byte:02x}")).join(":");
        let (name, gateway, prefix) = (machine::TAP, machine::GATEWAY, machine::PREFIX);
        commands.push_str(&format!(
            "tuntap add {name} mode tap user {owner}\nlink set {name} address {mac}\n\
             addr add {gateway}/{prefix} dev {name}\nlink set {name} up\n"
        ));
    }
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    ip.stdin
        .take()
        .unwrap()
        .write_all(commands.as_bytes())
        .unwrap();
    assert!(ip.wait().unwrap().success(), "{commands}");
    fs::File::open("/proc/thread-self/ns/net").unwrap().into()
}
