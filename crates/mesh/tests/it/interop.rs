//! The same wire as the reference implementation in Go, and as another one in Rust, with the tools that configure them.

use std::process::{Child, Command, Stdio};

use mesh::{Namespace, PeerOptions, PresharedKey};

use crate::lab::{
    Cable, Node, NodeOptions, allowed, echo, exchange, inner, key, run, udp, wait_for,
};

/// Another implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    /// The one in Go, by WireGuard's makers.
    WireguardGo,
    /// The one in Rust, by Cloudflare.
    Boringtun,
}

impl Other {
    /// What it is called, what it is told, and who installs it.
    fn program(self) -> (String, &'static [&'static str], &'static str) {
        match self {
            Self::WireguardGo => (
                "wireguard-go".to_owned(),
                &["-f"],
                "scripts/setup.sh test installs it",
            ),
            Self::Boringtun => {
                let name = "boringtun-cli";
                let home = std::env::var("HOME").unwrap_or_default();
                let caches = std::env::var("XDG_CACHE_HOME");
                let caches = caches.unwrap_or_else(|_| format!("{home}/.cache"));
                let built = format!("{caches}/atoll/tools/bin/{name}");
                let found = std::path::Path::new(&built).exists();
                (
                    if found { built } else { name.to_owned() },
                    &["--foreground", "--disable-drop-privileges"],
                    "scripts/tool.sh boringtun-cli builds it",
                )
            }
        }
    }
}

/// Another implementation that runs; it is ended with this.
struct Reference {
    child: Child,
    name: String,
}

impl Reference {
    fn start(other: Other, outside: &Namespace, name: &str) -> Self {
        let (program, flags, remedy) = other.program();
        let words: Vec<_> = flags.iter().copied().chain([name]).collect();
        let child = crate::lab::program(outside, &program, &words)
            .env("LOG_LEVEL", "error")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; {remedy}"));
        let reference = Self {
            child,
            name: name.to_owned(),
        };
        let socket = format!("/var/run/wireguard/{name}.sock");
        wait_for("the socket of the other implementation", || {
            std::path::Path::new(&socket).exists().then_some(())
        });
        reference
    }

    /// `wg` with these arguments; its output.
    fn wg(&self, arguments: &str) -> String {
        let mut command = Command::new("wg");
        let (verb, rest) = arguments.split_once(' ').unwrap_or((arguments, ""));
        command
            .args([verb, &self.name])
            .args(rest.split_whitespace());
        let output = command
            .output()
            .expect("wg is missing: scripts/setup.sh test installs it");
        assert!(
            output.status.success(),
            "wg {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // Asked to, it removes its socket.
        // SAFETY: a signal to a child that was not waited for, so the number is still its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let _ = self.child.wait();
        let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.name));
    }
}

/// One of our nodes and one of theirs; `ours_first` says who begins.
fn check(other: Other, v6_outside: bool, ours_first: bool) {
    let cable = Cable::new(1500);
    let ours = Node::new(1, &cable.spaces[0], &NodeOptions::default());
    let name = format!(
        "wgt{:x}{}{}{}",
        std::process::id(),
        other as u8,
        u8::from(v6_outside),
        u8::from(ours_first)
    );
    let theirs = Reference::start(other, &cable.spaces[1], &name);
    let secret = PresharedKey::from_bytes([8; 32]);
    let files = Secrets::new(&[("key", key(2).to_base64()), ("psk", secret.to_base64())]);
    let port: u16 = theirs
        .wg(&format!(
            "set private-key {} listen-port 0",
            files.path("key")
        ))
        .len() as u16;
    assert_eq!(port, 0, "nothing is printed");
    let endpoint =
        |at: usize, port: u16| std::net::SocketAddr::new(Cable::address(at, v6_outside), port);
    let begin = if ours_first {
        String::new()
    } else {
        format!(" endpoint {}", endpoint(0, ours.engine.port()))
    };
    theirs.wg(&format!(
        "set peer {} preshared-key {} allowed-ips 10.7.0.1/32,fd07::1/128{begin}",
        ours.engine.public_key(),
        files.path("psk"),
    ));
    for address in ["10.7.0.2/24", "fd07::2/64"] {
        run(
            &cable.spaces[1],
            &format!("ip address add {address} dev {name}"),
        );
    }
    run(&cable.spaces[1], &format!("ip link set {name} mtu 1420 up"));
    let port: u16 = theirs.wg("show listen-port").trim().parse().unwrap();
    ours.engine
        .set_peer(&PeerOptions {
            preshared_key: Some(secret),
            endpoint: ours_first.then(|| endpoint(1, port)),
            ..PeerOptions::new(key(2).public(), allowed(2))
        })
        .unwrap();
    let there = &cable.spaces[1];
    for v6 in [false, true] {
        let (near, far) = (udp(&ours.inside, inner(1, v6)), udp(there, inner(2, v6)));
        if ours_first {
            echo(&near, &far, 1000);
        } else {
            echo(&far, &near, 1000);
        }
        run(
            &ours.inside,
            &format!("ping -c 2 -i 0.05 -W 5 -s 3000 {}", inner(2, v6)),
        );
        exchange(&ours.inside, there, inner(2, v6), 2 << 20);
        exchange(there, &ours.inside, inner(1, v6), 2 << 20);
    }
    let shaken = theirs.wg("show latest-handshakes");
    let (peer, seconds) = shaken.trim().split_once('\t').unwrap();
    assert_eq!(peer, ours.engine.public_key().to_string());
    // Boringtun tells how long ago that was, and not when.
    let seconds: u64 = seconds.parse().unwrap();
    assert!(seconds > 0 || other == Other::Boringtun);
    let moved = theirs.wg("show transfer");
    let moved: Vec<u64> = moved
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(moved.len() == 2 && moved.iter().all(|bytes| *bytes > 4 << 20));
    let status = ours.engine.peer(&key(2).public()).unwrap();
    assert_eq!(
        (status.rejected, status.foreign_source),
        (0, 0),
        "{status:?}"
    );
}

/// Keys in files, as `wg` wants them.
struct Secrets(std::path::PathBuf);

impl Secrets {
    fn new(files: &[(&str, String)]) -> Self {
        let stamp = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_nanos();
        let folder =
            std::env::temp_dir().join(format!("atoll-mesh-{}-{stamp}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn wireguard_go_is_called_over_ipv4() {
    check(Other::WireguardGo, false, true);
}

#[test]
fn wireguard_go_calls_over_ipv6() {
    check(Other::WireguardGo, true, false);
}

#[test]
fn boringtun_is_called_over_ipv6() {
    check(Other::Boringtun, true, true);
}

#[test]
fn boringtun_calls_over_ipv4() {
    check(Other::Boringtun, false, false);
}
