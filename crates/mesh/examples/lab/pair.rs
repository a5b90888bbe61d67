//! Two machines: network namespaces with a cable between them, and what joins them over it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use mesh::Namespace;
use mesh::userspace::loopback;

use super::Outcome;
use super::daemon::{TUNNELS, key, outside};
use super::programs::{again, processor_seconds, rate, run, start, status};

/// How the two reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By the cable itself.
    Plain,
    /// By tunnels of ours.
    Tun,
    /// By flows of ours, without a device.
    Flows,
    /// By `wireguard-go`.
    Reference,
}

impl Kind {
    /// Where the second machine is found.
    pub(crate) fn target(self) -> Ipv4Addr {
        match self {
            Self::Plain => outside(2),
            Self::Tun | Self::Reference => [10, 7, 0, 2].into(),
            Self::Flows => loopback([100, 64, 0, 2].into()).unwrap_or(Ipv4Addr::LOCALHOST),
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain TCP",
            Self::Tun => "atoll, TUN",
            Self::Flows => "atoll, no TUN",
            Self::Reference => "wireguard-go",
        }
    }
}

/// A cable of the kernel's between two namespaces.
pub(crate) fn cable(spaces: &[Namespace; 2]) -> Outcome<()> {
    let line = format!(
        "ip link add eth0 type veth peer name eth0 netns {}",
        spaces[1].path()
    );
    run(&spaces[0], &line)?;
    for (number, space) in (1..).zip(spaces) {
        run(space, "ip link set eth0 up")?;
        let line = format!("ip address add {}/24 dev eth0", outside(number));
        run(space, &line)?;
    }
    Ok(())
}

/// Two machines that reach each other, in one way or several.
pub(crate) struct Pair {
    spaces: [Namespace; 2],
    /// The congestion control of all TCP that is measured.
    congestion: String,
    daemons: Vec<Child>,
    sockets: Vec<String>,
}

impl Pair {
    /// Two machines; `cable` joins them.
    pub(crate) fn new(
        congestion: &str,
        cable: impl FnOnce(&[Namespace; 2]) -> Outcome<()>,
    ) -> Outcome<Self> {
        let spaces = [Namespace::unnamed()?, Namespace::unnamed()?];
        for space in &spaces {
            run(space, "ip link set lo up")?;
        }
        cable(&spaces)?;
        Ok(Self {
            spaces,
            congestion: congestion.to_owned(),
            daemons: Vec::new(),
            sockets: Vec::new(),
        })
    }

    /// Starts the daemons of this kind at both ends. `buffer` is for the sockets of tunnels.
    pub(crate) fn join(&mut self, kind: Kind, buffer: u32) -> Outcome<()> {
        for number in [1, 2] {
            let space = &self.spaces[usize::from(number) - 1];
            let own = std::env::current_exe()?;
            let own = own.display();
            match kind {
                Kind::Plain => {}
                Kind::Tun => {
                    let line = format!("{own} node tun {number} {buffer}");
                    self.daemons.push(start(space, &line)?);
                }
                Kind::Flows => {
                    let line = format!("{own} node flows {number} {buffer}");
                    self.daemons.push(start(space, &line)?);
                }
                Kind::Reference => self.start_reference(number)?,
            }
        }
        Ok(())
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
            "wg set {name} private-key {} listen-port {} peer {} endpoint {}:{} allowed-ips 10.7.0.{other}/32",
            file.display(),
            TUNNELS + u16::from(number),
            key(other).public(),
            outside(other),
            TUNNELS + u16::from(other),
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

    /// A server for [`Pair::iperf`] on the second machine, and a first exchange with it, so that the way is there.
    pub(crate) fn listen(&self, kind: Kind) -> Outcome<Server> {
        let line = format!("iperf3 -s -B {}", kind.target());
        // A device of ours gets its address a moment after its daemon was started.
        let server = again(|| {
            let mut server = start(&self.spaces[1], &line)?;
            std::thread::park_timeout(Duration::from_millis(300));
            match server.try_wait()? {
                None => Ok(server),
                Some(_) => Err("iperf3 ends at once".into()),
            }
        })?;
        let server = Server(server);
        let line = format!("iperf3 -c {} -n 1M", kind.target());
        again(|| run(&self.spaces[0], &line))?;
        Ok(server)
    }

    fn client(&self, kind: Kind) -> String {
        format!("iperf3 -c {} -C {}", kind.target(), self.congestion)
    }

    /// Gb/s received, and segments sent again.
    pub(crate) fn iperf(&self, kind: Kind, seconds: u64, options: &str) -> Outcome<(f64, f64)> {
        let line = format!("{} -f m -t {seconds} {options}", self.client(kind));
        rate(&again(|| run(&self.spaces[0], &line))?)
    }

    /// A load of so many streams, which ends by itself.
    pub(crate) fn load(&self, kind: Kind, seconds: u64, options: &str) -> Outcome<Child> {
        let line = format!("{} -t {seconds} {options}", self.client(kind));
        again(|| {
            let mut load = start(&self.spaces[0], &line)?;
            std::thread::park_timeout(Duration::from_millis(500));
            match load.try_wait()? {
                None => Ok(load),
                Some(_) => Err("the load ended at once".into()),
            }
        })
    }

    /// The mean of pings for so long, in milliseconds.
    pub(crate) fn ping(&self, kind: Kind, seconds: u64) -> Outcome<f64> {
        let line = format!("ping -q -i 0.02 -w {seconds} {}", kind.target());
        let text = run(&self.spaces[0], &line)?;
        let line = text.lines().find(|line| line.starts_with("rtt"));
        let mean = line.and_then(|line| line.split('/').nth(4));
        Ok(mean.ok_or("no ping came back")?.parse()?)
    }

    /// What the daemons took of the processors so far, in seconds.
    pub(crate) fn processor_seconds(&self) -> Outcome<f64> {
        let each = self.daemons.iter();
        each.map(|daemon| processor_seconds(daemon.id())).sum()
    }

    /// What the larger daemon took of memory at most, in MB.
    pub(crate) fn peak(&self) -> Outcome<f64> {
        let mut peak = 0.0_f64;
        for daemon in &self.daemons {
            peak = peak.max(status(daemon.id(), "VmHWM:")? * 1024.0 / 1e6);
        }
        Ok(peak)
    }
}

impl Drop for Pair {
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

/// A server that ends with this.
pub(crate) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
