//! Machines and routers in network namespaces. They need root, and `miniupnpd`.

use std::sync::Mutex;
use std::time::Instant;

use super::*;
use crate::Namespace;

fn on_this_thread(action: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(action);
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let mut command = std::process::Command::new(words.next().unwrap());
    let done = command.args(words).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {said}");
}

#[test]
fn what_is_told_of_a_port_is_said_forwarded_or_had() {
    let news = News {
        hosts: vec!["10.0.0.2".parse().unwrap(), "2001:db8::2".parse().unwrap()],
        mapped: vec![MappedPort {
            port: 700,
            outside: "203.0.113.5:1700".parse().unwrap(),
            by: MappingProtocol::NatPmp,
        }],
        moved: false,
    };
    let said: Vec<SocketAddr> = vec!["10.0.0.2:700".parse().unwrap()];
    let texts = |port| {
        let all = news.candidates(port, &said);
        let all: Vec<_> = all.iter().map(ToString::to_string).collect();
        all.join(" ")
    };
    assert_eq!(
        texts(700),
        "10.0.0.2:700 203.0.113.5:1700 [2001:db8::2]:700"
    );
    assert_eq!(texts(701), "10.0.0.2:700 10.0.0.2:701 [2001:db8::2]:701");
}

/// Needs root, as all tests with namespaces.
#[test]
fn a_change_of_addresses_is_told_at_once() {
    let space = Namespace::unnamed().unwrap();
    let action = || {
        for line in [
            "ip link set lo up",
            "ip link add one type veth peer name two",
            "ip link set one up",
            "ip link set two up",
            "ip address add 192.0.2.7/24 dev one",
            "ip address add 100.64.0.7/10 dev two",
        ] {
            run(line);
        }
        on_this_thread(async {
            let told = Arc::new(Mutex::new(Vec::new()));
            let place = Arc::clone(&told);
            let own = vec!["100.64.0.7".parse().unwrap()];
            let tell = move |news: News| place.lock().unwrap().push(news);
            let surroundings = Surroundings::start(own, &[], tell);
            let has = async |addresses: &str, moved: bool| {
                let addresses = addresses.split(' ').map(|text| text.parse().unwrap());
                let addresses: Vec<IpAddr> = addresses.collect();
                let began = Instant::now();
                loop {
                    let all: Vec<News> = told.lock().unwrap().clone();
                    let right = all.last().is_some_and(|news| {
                        let v4 = news.hosts.iter().copied().filter(IpAddr::is_ipv4);
                        v4.collect::<Vec<_>>() == addresses
                    });
                    if right {
                        assert_eq!(all.iter().any(|news| news.moved), moved, "{all:?}");
                        told.lock().unwrap().clear();
                        return;
                    }
                    assert!(began.elapsed() < Duration::from_secs(5), "{all:?}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            has("192.0.2.7", false).await;
            run("ip address del 192.0.2.7/24 dev one");
            run("ip address add 198.51.100.7/24 dev one");
            has("198.51.100.7", true).await;
            // What a sandbox or a container would have leads nowhere, and is not told beside what does.
            run("ip route add default via 198.51.100.1");
            has("198.51.100.7", true).await;
            run("ip address add 10.9.9.1/30 dev two");
            run("ip address add 198.51.100.8/24 dev one");
            has("198.51.100.7 198.51.100.8", false).await;
            run("ip address del 198.51.100.8/24 dev one");
            has("198.51.100.7", true).await;
            surroundings.stop().await;
        });
        Ok(())
    };
    space.within(action).unwrap();
}

/// A machine behind a router, and one beyond it.
struct House {
    machine: Namespace,
    router: Namespace,
    outside: Namespace,
}

impl House {
    fn new() -> Self {
        let [machine, router, outside] = [(); 3].map(|()| Namespace::unnamed().unwrap());
        let paths = [machine.path(), outside.path()];
        let lines = [
            format!("ip link add lan type veth peer name eth0 netns {}", paths[0]),
            format!("ip link add wan type veth peer name eth0 netns {}", paths[1]),
            "ip link set lan up".to_owned(),
            "ip link set wan up".to_owned(),
            "ip address add 10.0.7.1/24 dev lan".to_owned(),
            "ip address add 203.0.7.2/24 dev wan".to_owned(),
            "nft add table inet filter".to_owned(),
            "nft add chain inet filter miniupnpd".to_owned(),
            "nft add chain inet filter prerouting_miniupnpd".to_owned(),
            "nft add chain inet filter postrouting_miniupnpd".to_owned(),
            "nft add chain inet filter forward { type filter hook forward priority 0 ; policy drop ; }".to_owned(),
            "nft add rule inet filter forward ct state established,related accept".to_owned(),
            "nft add rule inet filter forward jump miniupnpd".to_owned(),
            "nft add chain inet filter prerouting { type nat hook prerouting priority -100 ; }"
                .to_owned(),
            "nft add rule inet filter prerouting jump prerouting_miniupnpd".to_owned(),
            "nft add chain inet filter postrouting { type nat hook postrouting priority 100 ; }"
                .to_owned(),
            "nft add rule inet filter postrouting oifname wan masquerade".to_owned(),
        ];
        let all = || {
            lines.iter().for_each(|line| run(line));
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            Ok(())
        };
        router.within(all).unwrap();
        for (space, address) in [(&machine, "10.0.7.2"), (&outside, "203.0.7.1")] {
            let both = || {
                run("ip link set lo up");
                run("ip link set eth0 up");
                run(&format!("ip address add {address}/24 dev eth0"));
                Ok(())
            };
            space.within(both).unwrap();
        }
        let route = || {
            run("ip route add default via 10.0.7.1");
            Ok(())
        };
        machine.within(route).unwrap();
        Self {
            machine,
            router,
            outside,
        }
    }
}

/// What forwards ports on the router, of Debian's package; it ends with this.
struct Forwarder {
    child: std::process::Child,
    _directory: tempfile::TempDir,
}

impl Forwarder {
    fn start(house: &House, options: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("conf");
        let text = format!(
            "ext_ifname=wan\nlistening_ip=lan\nsecure_mode=yes\nuuid=00000000-0000-0000-0000-000000000007\n\
             upnp_table_name=filter\nupnp_nat_table_name=filter\nmin_lifetime=120\n{options}\n\
             allow 1024-65535 10.0.7.0/24 1024-65535\n"
        );
        std::fs::write(&file, text).unwrap();
        let start = || {
            let mut command = std::process::Command::new("miniupnpd");
            command.arg("-d").arg("-f").arg(&file);
            command.arg("-P").arg(directory.path().join("pid"));
            command.stdout(std::process::Stdio::null());
            command.stderr(std::process::Stdio::null());
            Ok(command
                .spawn()
                .expect("scripts/setup.sh installs miniupnpd"))
        };
        let child = house.router.within(start).unwrap();
        Self {
            child,
            _directory: directory,
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a datagram from beyond the router reaches the machine's port.
fn gets_through(house: &House, port: u16, to: SocketAddr) -> bool {
    let bind = |space: &Namespace, port| {
        let bound = || Ok(std::net::UdpSocket::bind(("0.0.0.0", port)).unwrap());
        space.within(bound).unwrap()
    };
    let (inside, outside) = (bind(&house.machine, port), bind(&house.outside, 0));
    let patience = Some(Duration::from_millis(300));
    inside.set_read_timeout(patience).unwrap();
    outside.send_to(b"?", to).unwrap();
    let mut buffer = [0; 8];
    inside.recv(&mut buffer).is_ok_and(|length| length == 1)
}

/// Needs root and `miniupnpd`.
#[test]
fn a_router_forwards_ports_to_who_asks_until_it_stops() {
    const PORT: u16 = 51_820;
    for (options, by) in [
        ("enable_natpmp=yes\nenable_upnp=no", MappingProtocol::Pcp),
        ("enable_natpmp=no\nenable_upnp=yes", MappingProtocol::Upnp),
    ] {
        let house = House::new();
        let forwarder = Forwarder::start(&house, options);
        let there: SocketAddr = ([203, 0, 7, 2], PORT).into();
        assert!(!gets_through(&house, PORT, there));
        let action = || {
            on_this_thread(async {
                let told = Arc::new(Mutex::new(News::default()));
                let place = Arc::clone(&told);
                let tell = move |news: News| *place.lock().unwrap() = news;
                let began = Instant::now();
                // The router's program takes a moment to listen; who finds none looks again only minutes later.
                let surroundings = loop {
                    let surroundings = Surroundings::start(Vec::new(), &[PORT], tell.clone());
                    let look = Instant::now();
                    while surroundings.mapped().is_empty()
                        && look.elapsed() < Duration::from_secs(12)
                    {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    if !surroundings.mapped().is_empty() {
                        break surroundings;
                    }
                    assert!(began.elapsed() < Duration::from_secs(40), "nothing by {by}");
                };
                let expected = MappedPort {
                    port: PORT,
                    outside: there,
                    by,
                };
                assert_eq!(surroundings.mapped(), [expected]);
                while told.lock().unwrap().mapped.is_empty() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let told = told.lock().unwrap().clone();
                let candidates = told.candidates(PORT, &[]);
                assert_eq!(candidates, [there, ([10, 0, 7, 2], PORT).into()]);
                assert!(gets_through(&house, PORT, there), "it forwards by {by}");
                surroundings.stop().await;
            });
            Ok(())
        };
        house.machine.within(action).unwrap();
        assert!(
            !gets_through(&house, PORT, there),
            "it was given back by {by}"
        );
        drop(forwarder);
    }
}
