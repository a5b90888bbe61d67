//! How slots and instances come and go, and that they leave nothing behind.

use super::lab::{Lab, assert_reaches, connect, in_lab, inside, ip, run, serve};
use agent::network::{Network, NetworkError};
use std::{
    process::{Child, Command},
    sync::Arc,
    time::Instant,
};

fn interfaces(lab: &Lab) -> String {
    inside(&lab.host, || ip("-oneline link"))
}

fn tables(lab: &Lab) -> String {
    inside(&lab.host, || run("nft", "list tables"))
}

struct Sleeper(Child);

impl Sleeper {
    fn inside(slot: &driver::NetworkSlot) -> Self {
        Self(inside(slot, || {
            Command::new("sleep").arg("600").spawn().unwrap()
        }))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_released_slot_leaves_no_interface() {
    in_lab(|lab| {
        let network = lab.start("b001");
        let slot = Arc::new(lab.claim(&network));
        assert!(interfaces(lab).contains("atb001.0"));
        lab.wait(network.release(Arc::clone(&slot))).unwrap();
        assert!(!interfaces(lab).contains("atb001.0"));
        lab.wait(network.release(slot)).unwrap();
        assert_eq!(lab.claim(&network).number, 1);
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn a_slot_whose_handle_is_closed_vanishes_by_itself() {
    in_lab(|lab| {
        let network = lab.start("b002");
        drop(lab.claim(&network));
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        // The kernel takes namespaces down in a worker; there is no event to wait for here.
        while interfaces(lab).contains("atb002.0") {
            assert!(Instant::now() < deadline, "{}", interfaces(lab));
            std::thread::yield_now();
        }
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn a_claim_that_nobody_waits_for_leaves_nothing() {
    in_lab(|lab| {
        let network = lab.start("b003");
        let claims = async {
            for _ in 0..20 {
                let claim = network.claim_slot();
                let _ = tokio::time::timeout(std::time::Duration::from_micros(700), claim).await;
            }
        };
        lab.wait(claims);
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        while interfaces(lab).contains("atb003.") {
            assert!(Instant::now() < deadline, "{}", interfaces(lab));
            std::thread::yield_now();
        }
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn sandboxes_of_a_crashed_run_are_adopted_and_the_rest_is_swept() {
    in_lab(|lab| {
        let network = lab.start("b004");
        let slots = [
            lab.claim(&network),
            lab.claim(&network),
            lab.claim(&network),
        ];
        let range = network.range();
        let sleeper = Sleeper::inside(&slots[1]);
        let stranger = Sleeper::inside(&slots[2]);
        drop(network);

        let network = lab.start("b004");
        assert_eq!(network.range(), range);
        let wrong = lab.wait(network.adopt(1, stranger.0.id())).unwrap_err();
        assert!(
            matches!(wrong, NetworkError::NotAdopted { number: 1, .. }),
            "{wrong}"
        );
        assert!(lab.wait(network.adopt(9, sleeper.0.id())).is_err());
        let adopted = lab.wait(network.adopt(1, sleeper.0.id())).unwrap();
        assert_eq!(
            (adopted.address, adopted.gateway),
            (slots[1].address, slots[1].gateway)
        );
        assert_eq!(lab.claim(&network).number, 3);
        let mut swept = lab.wait(network.sweep(&[1])).unwrap();
        swept.sort();
        assert_eq!(swept, ["atb004.0", "atb004.2"]);
        assert_reaches(&adopted, "8.8.8.8", 80);
        lab.wait(network.set_internet(1, false)).unwrap();
        lab.wait(network.stop(false)).unwrap();
        assert!(!interfaces(lab).contains("atb004"));
    });
}

#[test]
fn two_instances_share_the_host_and_the_last_restores_it() {
    in_lab(|lab| {
        let before = (interfaces(lab), tables(lab), ip("route"), lab.forwarding());
        assert_eq!(before.3, "0");
        let both = async {
            tokio::join!(
                Network::start(lab.options("b005")),
                Network::start(lab.options("b105"))
            )
        };
        let (first, second) = lab.wait(both);
        let (first, second) = (first.unwrap(), second.unwrap());
        assert!(!first.range().overlaps(second.range()));
        lab.claim(&first);
        let kept = lab.claim(&second);
        assert_eq!(lab.forwarding(), "1");
        lab.wait(first.stop(false)).unwrap();
        assert_eq!(lab.forwarding(), "1");
        assert!(!tables(lab).contains("atoll_b005"));
        assert_reaches(&kept, "8.8.8.8", 80);
        lab.wait(second.stop(true)).unwrap();
        assert_reaches(&kept, "8.8.8.8", 80);
        lab.wait(second.stop(false)).unwrap();
        let after = (interfaces(lab), tables(lab), ip("route"), lab.forwarding());
        assert_eq!(before, after);
    });
}

#[test]
fn what_a_crashed_instance_left_is_removed_by_the_next() {
    in_lab(|lab| {
        let crashed = lab.start("b006");
        let file = lab.shared().join("b006.instance");
        let text = std::fs::read_to_string(&file).unwrap();
        let mut entry: serde_json::Value = serde_json::from_str(&text).unwrap();
        entry["start_time"] = 1.into();
        std::fs::write(&file, entry.to_string()).unwrap();
        drop(crashed);
        let next = lab.start("b106");
        assert!(!tables(lab).contains("atoll_b006"));
        lab.wait(next.stop(false)).unwrap();
        assert_eq!(lab.forwarding(), "0");
        assert_eq!(tables(lab), "");
    });
}

#[test]
fn forwarding_stays_if_it_was_on_or_if_others_use_it() {
    in_lab(|lab| {
        let network = lab.start("b007");
        run(
            "nft",
            "add table ip nat; add chain ip nat post { type nat hook postrouting priority \
                    100; }; add rule ip nat post oifname other0 masquerade",
        );
        lab.wait(network.stop(false)).unwrap();
        assert_eq!(lab.forwarding(), "1");
        run("nft", "delete table ip nat");
        let network = lab.start("b007");
        lab.wait(network.stop(false)).unwrap();
        assert_eq!(lab.forwarding(), "1");
    });
}

#[test]
fn addresses_in_use_are_avoided_even_at_a_restart() {
    in_lab(|lab| {
        let network = lab.start("b008");
        let range = network.range();
        lab.wait(network.stop(false)).unwrap();
        ip(&format!("route add {}/24 dev lan0", range.first()));
        let network = lab.start("b008");
        assert!(!network.range().overlaps(range));
        lab.wait(network.stop(false)).unwrap();
        ip("route add 10.0.0.0/8 dev lan0");
        let network = lab.start("b008");
        assert_eq!(network.range().first().octets()[0], 172);
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn a_name_that_is_no_instance_is_refused() {
    in_lab(|lab| {
        for name in ["", "AB12", "ab123", "ab1", "../x", "ab1\""] {
            let error = lab.wait(Network::start(lab.options(name))).unwrap_err();
            assert!(matches!(error, NetworkError::Instance(_)), "{error}");
        }
        let mut options = lab.options("b009");
        options.name_servers = vec!["127.0.0.1".parse().unwrap()];
        assert!(lab.wait(Network::start(options)).is_err());
        assert_eq!(tables(lab), "");
    });
}

#[test]
fn the_check_finds_a_firewall_that_is_in_the_way() {
    in_lab(|lab| {
        let find = |name: &str| {
            let findings = lab.wait(agent::network::check(&[]));
            let found = findings.iter().find(|finding| finding.name == name);
            found
                .map(|finding| (format!("{:?}", finding.status), finding.detail.clone()))
                .unwrap()
        };
        for name in ["network slots", "firewall", "forwarding", "name servers"] {
            assert_eq!(find(name).0, "Ok", "{:?}", find(name));
        }
        run(
            "nft",
            "add table ip filter; add chain ip filter FORWARD { type filter hook forward \
                    priority 0; policy drop; }",
        );
        assert_eq!(find("forwarding").0, "Warning");
        assert_eq!(interfaces(lab).matches("at0000").count(), 0);
    });
}

#[test]
fn slots_are_made_quickly() {
    in_lab(|lab| {
        let began = Instant::now();
        let network = lab.start("b010");
        println!("start: {:?}", began.elapsed());
        let mut slots = Vec::new();
        let mut times: Vec<_> = (0..50)
            .map(|_| {
                let began = Instant::now();
                slots.push(lab.claim(&network));
                began.elapsed()
            })
            .collect();
        times.sort();
        let began = Instant::now();
        let many = async { futures::future::join_all((0..50).map(|_| network.claim_slot())).await };
        let many = lab.wait(many);
        println!(
            "one slot: median {:?}, slowest {:?}; 50 at once: {:?}",
            times[25],
            times[49],
            began.elapsed()
        );
        let began = Instant::now();
        lab.wait(network.set_internet(3, false)).unwrap();
        println!("closing the internet: {:?}", began.elapsed());
        let began = Instant::now();
        let slot = Arc::new(slots.pop().unwrap());
        lab.wait(network.release(slot)).unwrap();
        println!("giving back: {:?}", began.elapsed());
        assert!(many.iter().all(Result::is_ok));
        let began = Instant::now();
        lab.wait(network.stop(false)).unwrap();
        println!("stop with 99 slots: {:?}", began.elapsed());
        // A bound that a busy machine keeps, too; the goal is three milliseconds.
        assert!(
            times[25] < std::time::Duration::from_millis(50),
            "{:?}",
            times[25]
        );
    });
}

#[test]
fn rules_that_somebody_flushes_come_back_at_once() {
    in_lab(|lab| {
        let network = lab.start("b011");
        let slot = lab.claim(&network);
        for command in [
            "flush ruleset",
            "delete table inet atoll_b011",
            "flush chain inet atoll_b011 host",
            "delete chain inet atoll_b011 host",
        ] {
            run("nft", command);
            let deadline = Instant::now() + std::time::Duration::from_secs(60);
            let whole = || {
                let listed = run("nft", "list ruleset");
                listed.matches("hook ").count() == 5 && listed.matches("drop").count() > 10
            };
            while !whole() {
                assert!(Instant::now() < deadline, "{command}");
            }
            assert_reaches(&slot, "8.8.8.8", 80);
        }
        lab.wait(network.stop(false)).unwrap();
        assert_eq!(tables(lab), "");
    });
}

#[test]
fn connections_of_a_released_slot_are_forgotten() {
    in_lab(|lab| {
        let network = lab.start("b012");
        let slot = Arc::new(lab.claim(&network));
        let count = || {
            let path = "/proc/sys/net/netfilter/nf_conntrack_count";
            std::fs::read_to_string(path)
                .unwrap()
                .trim()
                .parse::<u32>()
                .unwrap()
        };
        let outgoing = connect(&slot, "8.8.8.8", 80).unwrap();
        let server = serve(&slot, "0.0.0.0:80");
        let incoming = connect(&lab.host, &slot.address.to_string(), server.port()).unwrap();
        assert!(count() >= 2);
        lab.wait(network.release(slot)).unwrap();
        assert_eq!(count(), 0);
        drop((outgoing, incoming));
        lab.wait(network.stop(false)).unwrap();
    });
}

#[test]
fn packets_are_no_longer_than_the_uplink_takes() {
    in_lab(|lab| {
        ip("link set up0 mtu 1400");
        let network = lab.start("b013");
        let slot = lab.claim(&network);
        assert!(inside(&slot, || ip("link show eth0")).contains("mtu 1400"));
        lab.wait(network.stop(false)).unwrap();
    });
}
