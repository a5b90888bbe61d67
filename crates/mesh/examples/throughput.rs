//! Measures the engine beside `wireguard-go`: two network namespaces on one machine, a cable between them, the same
//! `iperf3` and the same congestion control through both, in turns.
//!
//! ```text
//! cargo run --release -p mesh --example throughput -- [--rounds 3] [--seconds 3] [--congestion reno] [--buffer 2097152]
//! ```
//!
//! Needs root, `ip`, `ping`, `iperf3`, `wireguard-go` and `wg` (`scripts/setup.sh bench`). Prints medians, and for the
//! processor's time and memory what both daemons took together. Nothing is left behind: the namespaces have no names.

use std::error::Error;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::{
    Engine, Namespace, PeerOptions, PrivateKey, SystemClock, Tun, TunOptions, Wire, WireOptions,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().map(String::as_str) == Some("node") {
        return serve(&arguments[1..]);
    }
    let option = |name: &str, default: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1))
            .map_or(default, String::as_str)
            .to_owned()
    };
    let rounds: usize = option("--rounds", "3").parse()?;
    let seconds: u64 = option("--seconds", "3").parse()?;
    let congestion = option("--congestion", "reno");
    let buffer: u32 = option("--buffer", "2097152").parse()?;
    let reference = Command::new("wireguard-go").arg("--version").output()?;
    let version = String::from_utf8_lossy(&reference.stdout)
        .lines()
        .next()
        .unwrap_or("")
        .to_owned();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!(
        "{rounds} rounds of {seconds} s, {congestion}, Linux {}, {} processors; {version}",
        kernel.trim(),
        std::thread::available_parallelism()?,
    );
    let mut results = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for which in 0..2 {
            // In turns, so that what else the machine does meets both.
            let ours = (which + round) % 2 == 0;
            let lab = Lab::new(ours, &congestion, buffer)?;
            results[usize::from(!ours)].push(lab.measure(seconds)?);
        }
    }
    println!(
        "{:<14}{:>9}{:>9}{:>9}{:>11}{:>9}{:>9}{:>9}{:>11}{:>10}",
        "median",
        "tcp 1 >",
        "tcp 1 <",
        "tcp 4 >",
        "cpu s/Gbit",
        "ping",
        "loaded",
        "loaded4",
        "retrans/GB",
        "peak MiB"
    );
    let mut medians = Vec::new();
    for (name, result) in ["atoll", "wireguard-go"].iter().zip(&results) {
        let median: Vec<f64> = (0..9)
            .map(|at| median(result.iter().map(|row| row[at])))
            .collect();
        println!(
            "{name:<14}{:>9.2}{:>9.2}{:>9.2}{:>11.3}{:>9.2}{:>9.2}{:>9.2}{:>11.0}{:>10.1}",
            median[0],
            median[1],
            median[2],
            median[3],
            median[4],
            median[5],
            median[6],
            median[7],
            median[8],
        );
        medians.push(median);
    }
    let ratios: Vec<String> = (0..3)
        .map(|at| format!("{:>9.2}", medians[0][at] / medians[1][at]))
        .collect();
    println!("{:<14}{}", "ratio", ratios.concat());
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One node of ours in a process of its own, as the other daemon is: `node NUMBER BUFFER`, in the namespace it is in.
fn serve(arguments: &[String]) -> Outcome<()> {
    let number: u8 = arguments.first().ok_or("no number")?.parse()?;
    let buffer: u32 = arguments.get(1).ok_or("no buffer")?.parse()?;
    let port = |number: u8| 51_820 + u16::from(number);
    let tun = TunOptions {
        name: "wg0".to_owned(),
        addresses: vec![([10, 7, 0, number].into(), 24)],
        ..TunOptions::default()
    };
    let tun = Tun::create(&tun, None)?;
    let wire = Wire::bind(
        &WireOptions {
            port: port(number),
            buffer,
            ..WireOptions::default()
        },
        None,
    )?;
    let clock = Arc::new(SystemClock);
    let core = mesh::crypto::NoiseCore::new(&key(number), 500, clock.clone());
    let engine = Engine::start(tun, wire, Arc::new(core), clock)?;
    let other = 3 - number;
    engine.set_peer(&PeerOptions {
        endpoint: Some(([192, 0, 2, other], port(other)).into()),
        ..PeerOptions::new(
            key(other).public(),
            vec![std::net::IpAddr::from([10, 7, 0, other]).into()],
        )
    })?;
    // Until it is killed, as the other is.
    while engine.running() {
        std::thread::park_timeout(Duration::from_secs(1));
    }
    Ok(())
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

/// Two machines with a tunnel between them.
struct Lab {
    spaces: [Namespace; 2],
    daemons: Vec<Child>,
    sockets: Vec<String>,
}

impl Lab {
    fn new(ours: bool, congestion: &str, buffer: u32) -> Outcome<Self> {
        let spaces = [Namespace::unnamed()?, Namespace::unnamed()?];
        let cable = format!(
            "ip link add eth0 type veth peer name eth0 netns {}",
            spaces[1].path()
        );
        run(&spaces[0], &cable)?;
        let mut lab = Self {
            spaces,
            daemons: Vec::new(),
            sockets: Vec::new(),
        };
        for number in [1u8, 2] {
            let space = &lab.spaces[usize::from(number) - 1];
            run(space, "ip link set lo up")?;
            run(space, "ip link set eth0 up")?;
            run(
                space,
                &format!("ip address add 192.0.2.{number}/24 dev eth0"),
            )?;
            run(
                space,
                &format!("sysctl -qw net.ipv4.tcp_congestion_control={congestion}"),
            )?;
            if ours {
                let own = std::env::current_exe()?;
                let line = format!("{} node {number} {buffer}", own.display());
                lab.daemons.push(start(space, &line)?);
            } else {
                lab.start_reference(number)?;
            }
        }
        lab.wait()?;
        Ok(lab)
    }

    fn start_reference(&mut self, number: u8) -> Outcome<()> {
        let space = &self.spaces[usize::from(number) - 1];
        let name = format!("wgb{:x}{number}", std::process::id());
        self.daemons
            .push(start(space, &format!("wireguard-go -f {name}"))?);
        let socket = format!("/var/run/wireguard/{name}.sock");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !Path::new(&socket).exists() {
            if Instant::now() > deadline {
                return Err("wireguard-go does not start".into());
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        self.sockets.push(socket);
        let file = std::env::temp_dir().join(format!("{name}.key"));
        std::fs::write(&file, key(number).to_base64())?;
        let other = 3 - number;
        let set = format!(
            "wg set {name} private-key {} listen-port {} peer {} endpoint 192.0.2.{other}:{} allowed-ips 10.7.0.{other}/32",
            file.display(),
            51_820 + u16::from(number),
            key(other).public(),
            51_820 + u16::from(other),
        );
        let done = run(space, &set);
        std::fs::remove_file(&file)?;
        done?;
        run(
            space,
            &format!("ip address add 10.7.0.{number}/24 dev {name}"),
        )?;
        run(space, &format!("ip link set {name} mtu 1420 up"))?;
        Ok(())
    }

    /// Waits until the tunnel carries something.
    fn wait(&self) -> Outcome<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        while run(&self.spaces[0], "ping -c 1 -W 1 10.7.0.2").is_err() {
            if Instant::now() > deadline {
                return Err("the tunnel carries nothing".into());
            }
        }
        Ok(())
    }

    /// Gb/s with 1 stream there, back, with 4 there; CPU seconds a gigabit; ping idle, loaded by 1 and by 4, ms;
    /// retransmissions a gigabyte; peak memory of the larger daemon, MiB.
    fn measure(&self, seconds: u64) -> Outcome<[f64; 9]> {
        let mut server = start(&self.spaces[1], "iperf3 -s")?;
        std::thread::park_timeout(Duration::from_millis(300));
        let measured = self.measure_with_server(seconds);
        server.kill()?;
        server.wait()?;
        measured
    }

    fn measure_with_server(&self, seconds: u64) -> Outcome<[f64; 9]> {
        let idle = self.ping(1)?;
        let before = self.processor_seconds()?;
        let there = self.iperf(seconds, "")?;
        let back = self.iperf(seconds, "-R")?;
        let four = self.iperf(seconds, "-P 4")?;
        let spent = self.processor_seconds()? - before;
        let gigabits = (there.0 + back.0 + four.0) * seconds as f64;
        let retransmitted = (there.1 + back.1 + four.1) / (gigabits / 8.0);
        let mut loaded = [0.0; 2];
        for (loaded, streams) in loaded.iter_mut().zip(["", "-P 4"]) {
            let line = format!("iperf3 -c 10.7.0.2 -t {} {streams}", seconds + 1);
            let mut load = self.again(|| {
                let mut load = start(&self.spaces[0], &line)?;
                std::thread::park_timeout(Duration::from_millis(500));
                match load.try_wait()? {
                    None => Ok(load),
                    Some(_) => Err("the load ended at once".into()),
                }
            })?;
            *loaded = self.ping(seconds)?;
            load.wait()?;
        }
        let mut peak = 0.0_f64;
        for daemon in &self.daemons {
            peak = peak.max(status(daemon, "VmHWM:")? / 1024.0);
        }
        Ok([
            there.0,
            back.0,
            four.0,
            spent / gigabits,
            idle,
            loaded[0],
            loaded[1],
            retransmitted,
            peak,
        ])
    }

    /// Tries until it works: `iperf3` takes a moment between two clients.
    fn again<T>(&self, mut attempt: impl FnMut() -> Outcome<T>) -> Outcome<T> {
        for _ in 0..10 {
            if let Ok(result) = attempt() {
                return Ok(result);
            }
            std::thread::park_timeout(Duration::from_millis(200));
        }
        attempt()
    }

    /// Gb/s received, and segments sent again.
    fn iperf(&self, seconds: u64, options: &str) -> Outcome<(f64, f64)> {
        let line = format!("iperf3 -c 10.7.0.2 -f m -t {seconds} {options}");
        let text = self.again(|| run(&self.spaces[0], &line))?;
        // The sums, if there are several streams.
        let find = |end: &str| {
            let mut lines = text.lines().filter(|line| line.trim_end().ends_with(end));
            lines
                .next_back()
                .map(str::to_owned)
                .ok_or(format!("no {end} in {text}"))
        };
        let rate = |line: &str| -> Outcome<f64> {
            let words: Vec<_> = line.split_whitespace().collect();
            let unit = words
                .iter()
                .position(|word| *word == "Mbits/sec")
                .ok_or("no rate")?;
            Ok(words.get(unit - 1).ok_or("no rate")?.parse::<f64>()? / 1000.0)
        };
        let sender = find("sender")?;
        let again = sender
            .split_whitespace()
            .rev()
            .nth(1)
            .and_then(|word| word.parse().ok());
        Ok((rate(&find("receiver")?)?, again.unwrap_or(0.0)))
    }

    /// The mean of pings for so long, in milliseconds.
    fn ping(&self, seconds: u64) -> Outcome<f64> {
        let text = run(
            &self.spaces[0],
            &format!("ping -q -i 0.02 -w {seconds} 10.7.0.2"),
        )?;
        let line = text
            .lines()
            .find(|line| line.starts_with("rtt"))
            .ok_or("no ping came back")?;
        let mean = line.split('/').nth(4).ok_or("no mean")?;
        Ok(mean.parse()?)
    }

    /// What the daemons took so far.
    fn processor_seconds(&self) -> Outcome<f64> {
        let mut ticks = 0.0;
        for daemon in &self.daemons {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.id()))?;
            let rest = stat.rsplit(')').next().ok_or("no name")?;
            let fields: Vec<_> = rest.split_whitespace().collect();
            for at in [11, 12] {
                ticks += fields.get(at).ok_or("too few fields")?.parse::<f64>()?;
            }
        }
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// A number from a process's status.
fn status(process: &Child, field: &str) -> Outcome<f64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = text
        .lines()
        .find(|line| line.starts_with(field))
        .ok_or("no such field")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}

/// A program in the namespace.
fn command(space: &Namespace, line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("true"));
    command
        .args(words)
        .stdin(Stdio::null())
        .env("LOG_LEVEL", "error");
    let space = space.as_fd().as_raw_fd();
    // SAFETY: setns and prctl are system calls and nothing else; the descriptor is open until the child was started.
    unsafe {
        command.pre_exec(move || {
            if libc::setns(space, libc::CLONE_NEWNET) != 0
                || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command
}

fn start(space: &Namespace, line: &str) -> Outcome<Child> {
    let mut command = command(space, line);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    child.map_err(|error| format!("{line}: {error}; scripts/setup.sh bench installs it").into())
}

fn run(space: &Namespace, line: &str) -> Outcome<String> {
    let output = command(space, line)
        .output()
        .map_err(|error| format!("{line}: {error}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{line}: {error}{}", String::from_utf8_lossy(&output.stdout)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
