//! What code in a sandbox tries, even as real root of its slot's namespace, and must not achieve.

use super::lab::{
    ELSEWHERE, HOST, LAN, assert_blocked, assert_reaches, connect, echoes, in_lab, inside, ip,
    serve,
};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto};
use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

#[test]
fn the_internet_is_reached_under_the_hosts_address() {
    in_lab(|lab| {
        let network = lab.start("a001");
        let slot = lab.claim(&network);
        assert_eq!(assert_reaches(&slot, "8.8.8.8", 80), HOST);
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn closing_the_internet_blocks_new_and_breaks_open_connections() {
    in_lab(|lab| {
        let network = lab.start("a002");
        let (slot, other) = (lab.claim(&network), lab.claim(&network));
        let (_, mut open) = connect(&slot, "8.8.8.8", 80).unwrap();
        assert!(echoes(&mut open));
        lab.wait(network.set_internet(slot.number, false)).unwrap();
        assert!(!echoes(&mut open));
        assert_blocked(&slot, "8.8.8.8", 80);
        assert_reaches(&other, "8.8.8.8", 80);
        let inner = serve(&slot, "0.0.0.0:8000");
        assert_reaches(&lab.host, &slot.address.to_string(), inner.port());
        lab.wait(network.set_internet(slot.number, true)).unwrap();
        assert_reaches(&slot, "8.8.8.8", 80);
        assert!(lab.wait(network.set_internet(77, true)).is_err());
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn another_sandbox_is_not_reached() {
    in_lab(|lab| {
        let (first, second) = (lab.start("a003"), lab.start("a103"));
        let (one, two, three) = (lab.claim(&first), lab.claim(&first), lab.claim(&second));
        for target in [&two, &three] {
            let bound = serve(target, "0.0.0.0:8000");
            assert_reaches(&lab.host, &target.address.to_string(), bound.port());
            assert_blocked(&one, &target.address.to_string(), bound.port());
            assert_blocked(&one, &target.gateway.to_string(), bound.port());
        }
        lab.wait(first.stop(false)).unwrap();
        lab.wait(second.stop(false)).unwrap();
    });
}

#[test]
fn no_address_of_the_host_is_reached() {
    in_lab(|lab| {
        let network = lab.start("a004");
        let (slot, other) = (lab.claim(&network), lab.claim(&network));
        let bound = serve(&lab.host, "0.0.0.0:0");
        for address in [
            HOST.to_owned(),
            LAN.to_owned(),
            slot.gateway.to_string(),
            other.gateway.to_string(),
        ] {
            assert_reaches(&lab.host, &address, bound.port());
            assert_blocked(&slot, &address, bound.port());
        }
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn the_host_is_not_reached_through_its_own_translation_of_ports() {
    in_lab(|lab| {
        let network = lab.start("a005");
        let slot = lab.claim(&network);
        serve(&lab.host, "0.0.0.0:8100");
        super::lab::run(
            "nft",
            "add table ip test; add chain ip test in { type nat hook prerouting priority -100; }; \
             add rule ip test in tcp dport 8200 redirect to :8100",
        );
        assert_reaches(&lab.internet, HOST, 8200);
        assert_blocked(&slot, HOST, 8200);
        assert_blocked(&slot, "8.8.8.8", 8200);
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn metadata_and_private_addresses_are_not_reached() {
    in_lab(|lab| {
        let network = lab.start("a006");
        let slot = lab.claim(&network);
        for address in ELSEWHERE {
            assert_reaches(&lab.host, address, 80);
            if address != "8.8.8.8" {
                assert_blocked(&slot, address, 80);
            }
        }
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn only_the_operators_private_name_server_is_reached_and_only_for_names() {
    in_lab(|lab| {
        let mut options = lab.options("a007");
        options.name_servers = vec!["10.99.0.1".parse().unwrap()];
        let network = lab.wait(agent::network::Network::start(options)).unwrap();
        let slot = lab.claim(&network);
        serve(&lab.internet, "0.0.0.0:53");
        assert_reaches(&slot, "10.99.0.1", 53);
        assert_blocked(&slot, "10.99.0.1", 80);
        assert_blocked(&slot, "172.16.5.5", 53);
        lab.wait(network.set_internet(slot.number, false)).unwrap();
        assert_blocked(&slot, "10.99.0.1", 53);
        assert_eq!(
            network.name_servers(),
            ["10.99.0.1".parse::<std::net::IpAddr>().unwrap()]
        );
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn nothing_passes_over_ipv6() {
    in_lab(|lab| {
        let network = lab.start("a008");
        let slot = lab.claim(&network);
        ip(&format!(
            "address add fd00:7::1/64 dev {} nodad",
            slot.host_interface
        ));
        let bound = serve(&lab.host, "[::]:0");
        assert_reaches(&lab.host, "fd00:7::1", bound.port());
        assert_blocked(&slot, "fd00:7::1", bound.port());
        // Even if somebody inside could turn it on.
        inside(&slot, || {
            std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0").unwrap();
            ip("address add fd00:7::2/64 dev eth0 nodad");
        });
        assert_blocked(&slot, "fd00:7::1", bound.port());
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn only_the_host_opens_connections_to_a_sandbox() {
    in_lab(|lab| {
        let network = lab.start("a009");
        let slot = lab.claim(&network);
        let bound = serve(&slot, "0.0.0.0:80");
        let seen = assert_reaches(&lab.host, &slot.address.to_string(), bound.port());
        assert_eq!(seen, slot.gateway.to_string());
        assert_blocked(&lab.internet, &slot.address.to_string(), bound.port());
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn a_forged_source_is_dropped() {
    in_lab(|lab| {
        let network = lab.start("a010");
        let (slot, other) = (lab.claim(&network), lab.claim(&network));
        let bind = |address| inside(&lab.internet, move || UdpSocket::bind(address).unwrap());
        let server = bind("0.0.0.0:5353");
        server
            .set_read_timeout(Some(Duration::from_millis(400)))
            .unwrap();
        let host = inside(&lab.host, || UdpSocket::bind("0.0.0.0:5353").unwrap());
        host.set_read_timeout(Some(Duration::from_millis(400)))
            .unwrap();
        let target = Ipv4Addr::new(8, 8, 8, 8);
        let send = |source: Ipv4Addr, target: Ipv4Addr| {
            inside(&slot, || send_raw(source, target, 5353));
        };
        send(slot.address, target);
        let mut buffer = [0; 16];
        assert_eq!(server.recv(&mut buffer).unwrap(), 4);
        for source in [
            other.address,
            slot.gateway,
            other.gateway,
            Ipv4Addr::new(8, 8, 4, 4),
            Ipv4Addr::LOCALHOST,
            HOST.parse().unwrap(),
        ] {
            send(source, target);
            assert!(server.recv(&mut buffer).is_err(), "{source} passed");
            send(source, slot.gateway);
            assert!(
                host.recv(&mut buffer).is_err(),
                "{source} passed to the host"
            );
        }
        lab.wait(network.stop(false)).unwrap();
    });
}

/// Sends a UDP packet of four bytes with a source of one's choice.
fn send_raw(source: Ipv4Addr, target: Ipv4Addr, port: u16) {
    let socket =
        rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).unwrap();
    let mut packet = vec![0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&target.octets());
    packet.extend_from_slice(&[0x30, 0x39]);
    packet.extend_from_slice(&port.to_be_bytes());
    packet.extend_from_slice(&[0, 12, 0, 0, 1, 2, 3, 4]);
    let address = SocketAddrV4::new(target, port);
    rustix::net::sendto(&socket, &packet, SendFlags::empty(), &address).unwrap();
}

#[test]
fn a_flood_of_connections_fills_no_table_of_the_hosts() {
    in_lab(|lab| {
        let network = lab.start("a011");
        let (slot, other) = (lab.claim(&network), lab.claim(&network));
        inside(&slot, || {
            for port in 0..12_000 {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                // Refused sends are what this is about.
                let _ = socket.send_to(b"x", (Ipv4Addr::new(8, 8, 8, 8), 10_000 + port));
            }
        });
        let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
        let count: u32 = count.trim().parse().unwrap();
        assert!((1000..4200).contains(&count), "{count}");
        assert_reaches(&other, "8.8.8.8", 80);
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn any_user_inside_opens_low_ports_and_pings() {
    in_lab(|lab| {
        let network = lab.start("a012");
        let slot = lab.claim(&network);
        let read = |name: &str| {
            let path = format!("/proc/sys/net/{name}");
            inside(&slot, move || {
                std::fs::read_to_string(path).unwrap().trim().to_owned()
            })
        };
        assert_eq!(read("ipv4/ip_unprivileged_port_start"), "0");
        assert_eq!(read("ipv4/ping_group_range"), "0\t2147483647");
        assert_eq!(read("ipv6/conf/eth0/disable_ipv6"), "1");
        let interfaces = inside(&slot, || ip("-brief link"));
        assert_eq!(
            interfaces
                .lines()
                .filter(|line| line.contains("UP"))
                .count(),
            2,
            "{interfaces}"
        );
        lab.wait(network.stop(false)).unwrap();
    });
}
