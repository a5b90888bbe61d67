//! Slots of microVMs: what a machine behind the tap reaches, and who reaches it. The machine is
//! played by another namespace, whose interface is joined to the tap frame by frame.

use super::lab::{
    ELSEWHERE, HOST, LAN, Lab, assert_blocked, assert_reaches, connect, echoes, in_lab, inside, ip,
    run, serve,
};
use agent::network::{MachineSlots, Network, NetworkOptions};
use driver::{NetworkSlot, slot::machine};
use rustix::thread::UnshareFlags;
use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::Command,
    sync::Arc,
};

fn start(lab: &Lab, instance: &str) -> Network {
    let options = NetworkOptions {
        machines: Some(MachineSlots {
            first_owner: Some(1234),
        }),
        ..lab.options(instance)
    };
    lab.wait(Network::start(options)).unwrap()
}

/// Opens a tap device of the calling thread's namespace, or makes one.
fn open_tap(name: &str) -> File {
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let kind = (libc::IFF_TAP | libc::IFF_NO_PI) as u16;
    request[16..18].copy_from_slice(&kind.to_ne_bytes());
    // SAFETY: TUNSETIFF takes a pointer to a `struct ifreq`, which outlives the call.
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), 0x4004_54ca, request.as_mut_ptr()) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    tap
}

/// A machine in a slot: a namespace that has the machine's addresses.
fn machine_in(slot: &NetworkSlot) -> OwnedFd {
    let namespace = std::thread::spawn(|| {
        // SAFETY: unsafe only because of `FILES`, which is not used.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
    })
    .join()
    .unwrap();
    let outside = inside(slot, || open_tap(slot.tap.as_deref().unwrap()));
    let card = inside(&namespace, || {
        let card = open_tap("eth0");
        let hardware: Vec<String> = machine::MAC
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        ip(&format!("link set eth0 address {}", hardware.join(":")));
        ip(&format!(
            "address add {}/{} dev eth0",
            machine::ADDRESS,
            machine::PREFIX
        ));
        ip("link set lo up");
        ip("link set eth0 up");
        ip(&format!("route add default via {}", machine::GATEWAY));
        card
    });
    let (outside, card) = (Arc::new(outside), Arc::new(card));
    for (from, to) in [(outside.clone(), card.clone()), (card, outside)] {
        std::thread::spawn(move || {
            let mut frame = [0; 65536];
            while let Ok(length) = (&*from).read(&mut frame) {
                if (&*to).write_all(&frame[..length]).is_err() {
                    return;
                }
            }
        });
    }
    namespace
}

#[test]
fn a_machine_reaches_the_internet_and_is_reached_under_its_slots_address() {
    in_lab(|lab| {
        let network = start(lab, "b001");
        let (slot, other) = (lab.claim(&network), lab.claim(&network));
        let (machine, second) = (machine_in(&slot), machine_in(&other));
        assert_eq!(assert_reaches(&machine, "8.8.8.8", 80), HOST);
        for (slot, machine) in [(&slot, &machine), (&other, &second)] {
            let bound = serve(machine, "0.0.0.0:8000");
            let address = slot.address.to_string();
            let seen = assert_reaches(&lab.host, &address, bound.port());
            assert_eq!(seen, slot.gateway.to_string());
        }
        let (_, mut open) = connect(&machine, "8.8.8.8", 80).unwrap();
        assert!(echoes(&mut open));
        lab.wait(network.set_internet(slot.number, false)).unwrap();
        assert!(!echoes(&mut open));
        assert_blocked(&machine, "8.8.8.8", 80);
        assert_reaches(&second, "8.8.8.8", 80);
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn a_machine_reaches_neither_others_nor_the_host_nor_private_addresses() {
    in_lab(|lab| {
        let network = start(lab, "b002");
        let (slot, other) = (lab.claim(&network), lab.claim(&network));
        let (machine, second) = (machine_in(&slot), machine_in(&other));
        let bound = serve(&second, "0.0.0.0:8000");
        let on_host = serve(&lab.host, "0.0.0.0:8001");
        assert_blocked(&machine, &other.address.to_string(), bound.port());
        for address in [
            HOST.to_owned(),
            LAN.to_owned(),
            slot.gateway.to_string(),
            other.gateway.to_string(),
        ] {
            assert_blocked(&machine, &address, on_host.port());
        }
        for address in ELSEWHERE {
            if address != "8.8.8.8" {
                assert_blocked(&machine, address, 80);
            }
        }
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn a_machine_that_takes_other_addresses_gets_nowhere() {
    in_lab(|lab| {
        let network = start(lab, "b003");
        let (slot, other) = (lab.claim(&network), lab.claim(&network));
        let machine = machine_in(&slot);
        for address in [
            other.address.to_string(),
            slot.address.to_string(),
            machine::GATEWAY.to_string(),
            "8.8.4.4".to_owned(),
        ] {
            inside(&machine, || {
                ip(&format!("address add {address}/32 dev eth0"));
                ip(&format!(
                    "route change default via {} src {address}",
                    machine::GATEWAY
                ));
            });
            assert_blocked(&machine, "8.8.8.8", 80);
            inside(&machine, || {
                ip(&format!("route change default via {}", machine::GATEWAY));
                ip(&format!("address del {address}/32 dev eth0"));
            });
        }
        assert_reaches(&machine, "8.8.8.8", 80);
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn a_slot_is_as_machines_expect_it_and_is_taken_over_with_its_tap() {
    in_lab(|lab| {
        let network = start(lab, "b004");
        let (slot, other) = (lab.claim(&network), lab.claim(&network));
        assert_eq!(slot.tap.as_deref(), Some(machine::TAP));
        // Each belongs to its own slot's user.
        assert_ne!(slot.number, other.number);
        for slot in [&slot, &other] {
            let links = inside(slot, || ip("-d link show tap0"));
            let owner = format!("user {} ", 1234 + slot.number);
            assert!(
                links.contains(&owner) && links.contains("persist on"),
                "{links}"
            );
        }
        let tap = inside(&slot, || ip("address show dev tap0"));
        assert!(tap.contains("169.254.0.22/30"), "{tap}");
        let neighbours = inside(&slot, || ip("neighbour show dev tap0"));
        assert!(neighbours.contains("169.254.0.21 lladdr 02:a7:01:1a:00:02 PERMANENT"));
        let rules = inside(&slot, || run("nft", "list ruleset"));
        assert!(
            rules.contains(&format!("snat to {}", slot.address)),
            "{rules}"
        );

        let mut process = inside(&slot, || Command::new("sleep").arg("60").spawn().unwrap());
        drop(network);
        let next = start(lab, "b004");
        let again = lab.wait(next.adopt(slot.number, process.id())).unwrap();
        assert_eq!(
            (again.tap.clone(), again.address),
            (slot.tap.clone(), slot.address)
        );
        process.kill().unwrap();
        process.wait().unwrap();
        // Another instance without machines does not mind.
        let plain = lab.start("b104");
        assert_eq!(lab.claim(&plain).tap, None);
        lab.wait(plain.stop(false)).unwrap();
        lab.wait(next.stop(false)).unwrap();
        let _ = lab.host.as_fd();
    });
}
