//! The guest as the first process of a machine, without a driver: QEMU with its own network, and
//! the guest's API through a forwarded port.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(unused_imports)]
use crate::support;

use api::{
    Secret,
    boot::{IDENTITY_PATH, Identity, MachineClaim, SERIAL_FAILED, SERIAL_WAITING, SETTLE_PATH},
};
use driver::{
    DriverKind,
    kernel::{Hypervisor, Kernel, command_line},
};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};
use support::World;

/// How long anything may take: under emulation, beside other tests.
const PATIENCE: Duration = Duration::from_secs(60);

fn kernel() -> Kernel {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-kernel");
    fs::create_dir_all(&directory).unwrap();
    let lock = fs::File::create(directory.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let given = std::env::var_os("ATOLL_TEST_KERNEL").map(std::path::PathBuf::from);
    Kernel::find(&directory, given.as_deref(), |_| ()).unwrap()
}

struct Machine {
    process: Child,
    port: u16,
    console: mpsc::Receiver<String>,
}

impl Machine {
    /// Starts one with these disks, and the token `first`.
    fn start(disks: &[(&Path, bool)]) -> Self {
        let kernel = kernel();
        let port = {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.local_addr().unwrap().port()
        };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-M",
                "microvm,accel=tcg,acpi=on,isa-serial=on,rtc=on,pit=off,pic=off",
            ])
            .args(["-cpu", "max", "-m", "128", "-nodefaults", "-no-user-config"])
            .args([
                "-display",
                "none",
                "-no-reboot",
                "-serial",
                "stdio",
                "-kernel",
            ])
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&kernel.initramfs)
            .arg("-append")
            .arg(command_line(Hypervisor::QemuTcg, &Secret::new("first")))
            .arg("-netdev")
            .arg(format!(
                "user,id=n,net=169.254.0.20/30,host=169.254.0.22,dhcpstart=169.254.0.21,\
                 restrict=on,hostfwd=tcp:127.0.0.1:{port}-169.254.0.21:49983"
            ))
            .args(["-device", "virtio-net-device,netdev=n"]);
        for (number, (path, read_only)) in disks.iter().enumerate() {
            let access = if *read_only { ",readonly=on" } else { "" };
            let path = path.display();
            command
                .arg("-drive")
                .arg(format!(
                    "if=none,id=d{number},format=raw,file={path}{access}"
                ))
                .arg("-device")
                .arg(format!("virtio-blk-device,drive=d{number}"));
        }
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, console) = mpsc::channel();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self {
            process,
            port,
            console,
        }
    }

    /// The first line on the console that begins so.
    fn line(&self, begin: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut before = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.console.recv_timeout(left) {
                Ok(line) if line.starts_with(begin) => return line,
                Ok(line) => before.push(line),
                Err(error) => panic!("no `{begin}`: {error}; {before:?}"),
            }
        }
    }

    fn send(&self, request: &str, token: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-atoll-control: {token}\r\n\
             x-access-token: {token}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// Status and the rest of the answer.
    fn ask(&self, request: &str, token: &str, body: &str) -> (u16, String) {
        let mut answer = String::new();
        let _ = self.send(request, token, body).read_to_string(&mut answer);
        let status = answer.get(9..12).and_then(|status| status.parse().ok());
        (status.unwrap_or(0), answer)
    }

    fn claim(&self, token: &str, new: &str, renew: bool, host_name: &str) -> u16 {
        let claim = MachineClaim {
            identity: Identity {
                sandbox: "i11111111111111111111".parse().unwrap(),
                template: "11111111111111111111".parse().unwrap(),
                access_token: Some(Secret::new(new)),
                control_token: Secret::new(new),
                environment: [("WHO".to_owned(), new.to_owned())].into(),
                default_user: "root".into(),
                working_directory: "/".into(),
                start_command: Some(
                    "echo told-by-$WHO >> /root/started; echo told-by-$WHO; sleep 900".into(),
                ),
                port: 49983,
            },
            host_name: host_name.into(),
            search: None,
            name_servers: vec!["192.0.2.53".parse().unwrap()],
            unix_time_ns: 1_000_000_000_000_000_000,
            // 64 bytes of nothing: what counts here is that they are taken.
            entropy: Secret::new("AAAA".repeat(21) + "AA=="),
            renew,
        };
        let body = serde_json::to_string(&claim).unwrap();
        self.ask(&format!("PUT {IDENTITY_PATH}"), token, &body).0
    }

    fn file(&self, path: &str, token: &str) -> Option<String> {
        let (status, answer) = self.ask(&format!("GET /files?path={path}"), token, "");
        let body = answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned());
        body.filter(|_| status == 200)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn layer(world: &World) -> std::path::PathBuf {
    let path = world.directory.path().join("layer.img");
    fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&path).status();
    assert!(made.unwrap().success());
    path
}

#[test]
fn a_guest_becomes_one_sandbox_and_then_another() {
    let world = World::of(DriverKind::Qemu);
    let (root, layer) = (world.directory.path().join("root.img"), layer(&world));
    // Hypervisors number disks as they please.
    let machine = Machine::start(&[(&layer, false), (&root, true)]);
    machine.line(SERIAL_WAITING);

    // Nobody's: only the node's token opens anything.
    assert_eq!(machine.ask("GET /health", "", "").0, 204);
    assert_eq!(machine.ask("GET /metrics", "first", "").0, 503);
    assert_eq!(machine.claim("wrong", "a", true, "host-a"), 503);
    assert_eq!(machine.claim("first", "a", true, "host-a"), 204);
    assert_eq!(machine.claim("first", "x", true, "host-x"), 401);
    let deadline = Instant::now() + PATIENCE;
    while machine
        .file("/root/started", "a")
        .is_none_or(|text| text.is_empty())
    {
        assert!(Instant::now() < deadline, "the start command did not run");
    }
    assert_eq!(machine.file("/etc/hostname", "a").unwrap(), "host-a\n");
    assert_eq!(
        machine.file("/etc/resolv.conf", "a").unwrap(),
        "nameserver 192.0.2.53\n"
    );
    let (status, metrics) = machine.ask("GET /metrics", "a", "");
    assert_eq!(status, 200);
    assert!(
        metrics.contains("\"ts\":10000000"),
        "the clock was set: {metrics}"
    );

    // The same one again: what is open stays open.
    let mut following = machine.send("GET /_atoll/logs?follow=1", "a", "");
    assert_eq!(machine.claim("a", "b", false, "host-a"), 204);
    let mut start = [0; 12];
    following.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    assert!(
        machine
            .ask("GET /_atoll/logs", "b", "")
            .1
            .contains("told-by-a")
    );

    // Somebody else: no trace of the former one but its files.
    assert_eq!(machine.claim("b", "c", true, "host-c"), 204);
    let mut rest = Vec::new();
    let _ = following.read_to_end(&mut rest);
    for old in ["first", "a", "b"] {
        assert_eq!(machine.ask("GET /metrics", old, "").0, 401, "{old}");
        assert_ne!(machine.ask("GET /_atoll/logs", old, "").0, 200, "{old}");
    }
    let (status, logs) = machine.ask("GET /_atoll/logs", "c", "");
    assert_eq!(status, 200);
    assert!(!logs.contains("told-by-a"), "{logs}");
    assert_eq!(machine.file("/etc/hostname", "c").unwrap(), "host-c\n");
    assert_eq!(
        machine.file("/root/started", "c").unwrap(),
        "told-by-a\n",
        "it runs once"
    );

    for path in [
        SETTLE_PATH.to_owned(),
        format!("{SETTLE_PATH}?keep-cache=1"),
    ] {
        assert_eq!(machine.ask(&format!("POST {path}"), "c", "").0, 204);
    }
    assert_ne!(machine.ask(&format!("POST {SETTLE_PATH}"), "b", "").0, 204);
}

#[test]
fn a_guest_that_cannot_start_says_why_and_switches_off() {
    let world = World::of(DriverKind::Qemu);
    let root = world.directory.path().join("root.img");
    let mut machine = Machine::start(&[(&root, true)]);
    let line = machine.line(SERIAL_FAILED);
    assert!(line.contains("1 read-only and 0 writable disks"), "{line}");
    assert!(machine.process.wait().unwrap().success());
}
