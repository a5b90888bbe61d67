//! Software that tells others its own address: three members of a real etcd, each on a machine that has nothing but loopback.

use std::process::{Child, Command};
use std::thread::JoinHandle;

use super::*;
use crate::namespace::Namespace;

const ALL: Allowed<'_> = &[
    (0, 1, "*"),
    (0, 2, "*"),
    (1, 0, "*"),
    (1, 2, "*"),
    (2, 0, "*"),
    (2, 1, "*"),
];

/// A machine without a network: what carries the flows is a socket that was made elsewhere.
struct Machine {
    space: Namespace,
    etcd: Child,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn command(space: &Namespace, words: &[&str]) -> Result<String, String> {
    let run = || {
        let mut command = Command::new(words[0]);
        let output = command.args(&words[1..]).env("ETCDCTL_API", "3").output();
        output.map_err(|error| Error::io("run a program", error))
    };
    let output = space.within(run).map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

impl Machine {
    fn start(members: &[Member], at: usize, socket: UdpSocket, data: &std::path::Path) -> Self {
        let space = Namespace::unnamed().unwrap();
        command(&space, &["ip", "link", "set", "lo", "up"]).unwrap();
        let url = |member: &Member, port| format!("http://{}:{port}", loopback(member.v4).unwrap());
        let own = &members[at];
        let cluster = members
            .iter()
            .map(|member| format!("{}={}", member.name, url(member, 2380)));
        let etcd = || {
            Command::new("etcd")
                .args([
                    "--name",
                    &own.name,
                    "--log-level",
                    "error",
                    "--logger",
                    "zap",
                ])
                .args(["--data-dir".as_ref(), data.join(&own.name).as_os_str()])
                // So that a busy machine does not elect without end.
                .args(["--heartbeat-interval", "300", "--election-timeout", "3000"])
                .args(["--listen-peer-urls", &url(own, 2380)])
                .args(["--initial-advertise-peer-urls", &url(own, 2380)])
                .args(["--listen-client-urls", &url(own, 2379)])
                .args(["--advertise-client-urls", &url(own, 2379)])
                .args(["--initial-cluster", &cluster.collect::<Vec<_>>().join(",")])
                .spawn()
                .map_err(|error| {
                    Error::io("start etcd, which scripts/setup.sh test installs", error)
                })
        };
        let etcd = space.within(etcd).unwrap();
        let gate = Arc::new(FilterGate::closed(Instant::now()));
        gate.set(filter(members, at, ALL));
        let number = own.v4.to_bits() & 0x3f_ffff;
        let mut options = UserspaceOptions::new(identity(number), directory(members, at), gate);
        options.door_ports = vec![2379, 2380];
        options.services = vec![
            Service {
                port: 2379,
                target: None,
            },
            Service {
                port: 2380,
                target: None,
            },
        ];
        let (end, ended) = tokio::sync::oneshot::channel();
        let inside = space.again().unwrap();
        let thread = std::thread::spawn(move || {
            inside.enter().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let socket = TokioRuntime.wrap_udp_socket(socket).unwrap();
                let node = Userspace::start_over(options, socket).await.unwrap();
                let _ = ended.await;
                in_time("a node stops", node.stop()).await;
            });
        });
        Self {
            space,
            etcd,
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// Asks the member of another machine, or this one's, until it answers.
    async fn etcdctl(&self, member: &Member, words: &[&str]) -> String {
        let endpoint = format!("--endpoints=http://{}:2379", loopback(member.v4).unwrap());
        let first = ["etcdctl", &endpoint, "--command-timeout=20s"];
        let words = [&first[..], words].concat();
        in_time("etcd answers", async {
            loop {
                match command(&self.space, &words) {
                    Ok(text) => break text,
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
        })
        .await
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
        drop(self.end.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()));
    }
}

#[tokio::test]
async fn etcd_forms_a_cluster_and_outlives_a_member() {
    let data = tempfile::tempdir().unwrap();
    let mut members: Vec<_> = (1..=3).map(member).collect();
    let mut sockets = Vec::new();
    for member in &mut members {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        member.endpoints = vec![socket.local_addr().unwrap()];
        sockets.push(socket);
    }
    let machines = sockets.into_iter().enumerate();
    let mut machines: Vec<_> = machines
        .map(|(at, socket)| Machine::start(&members, at, socket, data.path()))
        .collect();
    // Each machine reaches each member at the same address, its own too.
    for (at, machine) in machines.iter().enumerate() {
        for (to, member) in members.iter().enumerate() {
            let key = format!("from{at}to{to}");
            assert_eq!(machine.etcdctl(member, &["put", &key, "kept"]).await, "OK");
        }
    }
    drop(machines.remove(0));
    assert_eq!(
        machines[0]
            .etcdctl(&members[2], &["put", "after", "kept"])
            .await,
        "OK"
    );
    let keys = machines[1]
        .etcdctl(&members[1], &["get", "--prefix", "", "--keys-only"])
        .await;
    assert_eq!(keys.split_whitespace().count(), 10, "{keys}");
}
