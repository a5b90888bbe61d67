//! Measures how long it takes from the start of `atoll mesh up` with a token to the first byte of a connection to another node's service, with the real
//! program: two namespaces on one machine, the coordinator and a node with a service in one, each time a new node in the other.
//!
//! ```text
//! cargo run --release -p mesh --example joining -- --atoll PROGRAM [--times 7]
//! ```
//!
//! The client tries anew every few milliseconds, as the first address that it could use is there some time after the start. Needs root.

#[allow(dead_code, reason = "each program uses a part")]
mod lab;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lab::pair::cable;
use lab::programs::{command, run};
use lab::verdict::Verdicts;
use lab::{Options, Outcome, machine, median};
use mesh::Namespace;

const KEY: &str = "e2b_b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4";
const URL: &str = "http://192.0.2.1:3000";
const PORT: u16 = 7000;
const POLICY: &str =
    "[[allow]]\nfrom = [\"tag:lab\"]\nto = [\"tag:lab\"]\nports = [\"tcp/7000\"]\n";
/// How often a client begins anew, and how long the whole may take.
const EVERY: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Outcome<()> {
    let options = Options::read();
    let program: PathBuf = options.get("--atoll", PathBuf::from("atoll"))?;
    let times: usize = options.get("--times", 7)?;
    println!("{times} joins each, {}", machine()?);
    let folder = std::env::temp_dir().join(format!("atoll-joining-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let measured = measure(&program, &folder, times);
    let _ = std::fs::remove_dir_all(&folder);
    measured?.tell()
}

fn measure(program: &Path, folder: &Path, times: usize) -> Outcome<Verdicts> {
    let mut verdicts = Verdicts::begin()?;
    let spaces = [Namespace::unnamed()?, Namespace::unnamed()?];
    for space in &spaces {
        run(space, "ip link set lo up")?;
    }
    cable(&spaces)?;
    let lab = Lab {
        program: program.display().to_string(),
        folder: folder.to_owned(),
    };
    let up = format!(
        "up --driver container --no-base --pool-min 1 --pool-max 1 --listen 192.0.2.1:3000 --data-dir {}",
        folder.join("data").display()
    );
    let _coordinator = lab.start(&spaces[0], &up, "", "ready")?;
    std::fs::write(folder.join("policy.toml"), POLICY)?;
    let set = format!("mesh policy set {}", folder.join("policy.toml").display());
    lab.ask(&spaces[0], &set)?;
    let token = lab.ask(
        &spaces[0],
        &format!("mesh token create --reuse --tags lab --address {URL}"),
    )?;
    let token = token.trim();
    for mode in ["tun", "userspace"] {
        let state = folder.join(format!("service-{mode}"));
        let up = format!(
            "mesh up --mode {mode} --name service-{mode} --state {}",
            state.display()
        );
        let service = lab.start(&spaces[0], &up, token, "up ")?;
        let at: Ipv4Addr = service
            .line
            .split_whitespace()
            .nth(2)
            .ok_or("no address")?
            .parse()?;
        listen(&spaces[0], (at, PORT).into())?;
        let mut found = Vec::new();
        for time in 0..times {
            let state = folder.join(format!("{mode}-{time}"));
            let up = format!(
                "mesh up --mode {mode} --name {mode}-{time} --state {}",
                state.display()
            );
            found.push(lab.join(&spaces[1], &up, token, (at, PORT).into())?);
        }
        let middle = |at: fn(&(f64, f64)) -> f64| median(found.iter().map(at));
        println!(
            "{mode}: up after {:.0} ms, first byte after {:.0} ms; each: {}",
            middle(|found| found.0),
            middle(|found| found.1),
            found
                .iter()
                .map(|found| format!("{:.0}", found.1))
                .collect::<Vec<_>>()
                .join(" ")
        );
        let what = format!("join to first byte, {mode}, median");
        verdicts.at_most(&what, middle(|found| found.1), 500.0, "ms", "");
    }
    Ok(verdicts)
}

/// A program of ours that runs, until it is dropped.
struct Running {
    child: Child,
    /// What it said when it was ready.
    line: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let process = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

struct Lab {
    program: String,
    folder: PathBuf,
}

impl Lab {
    fn spawn(&self, space: &Namespace, line: &str, token: &str) -> Outcome<Child> {
        let mut command = command(space, &format!("{} {line}", self.program));
        command.env("ATOLL_API_KEY", KEY).env("ATOLL_LOG", "warn");
        if !token.is_empty() {
            command.env("ATOLL_MESH_TOKEN", token);
        }
        let mut options = std::fs::OpenOptions::new();
        let log = options
            .append(true)
            .create(true)
            .open(self.folder.join("log"))?;
        let child = command.stdout(Stdio::piped()).stderr(log).spawn();
        child.map_err(|error| format!("{}: {error}", self.program).into())
    }

    /// Starts it and waits until it says that it is there.
    fn start(&self, space: &Namespace, line: &str, token: &str, word: &str) -> Outcome<Running> {
        let mut child = self.spawn(space, line, token)?;
        let output = child.stdout.take().ok_or("no standard output")?;
        let mut running = Running {
            child,
            line: String::new(),
        };
        BufReader::new(output).read_line(&mut running.line)?;
        if !running.line.starts_with(word) {
            let log = std::fs::read_to_string(self.folder.join("log"))?;
            return Err(format!("{line}: {log}").into());
        }
        Ok(running)
    }

    /// What an administrator's command says.
    fn ask(&self, space: &Namespace, line: &str) -> Outcome<String> {
        let mut command = command(space, &format!("{} {line}", self.program));
        let output = command
            .env("ATOLL_API_KEY", KEY)
            .env("ATOLL_URL", URL)
            .output()?;
        if !output.status.success() {
            return Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Milliseconds until a new node said that it is up, and until the first byte came.
    fn join(
        &self,
        space: &Namespace,
        line: &str,
        token: &str,
        to: SocketAddr,
    ) -> Outcome<(f64, f64)> {
        let began = Instant::now();
        let after = || began.elapsed().as_secs_f64() * 1000.0;
        std::thread::scope(|scope| {
            let byte = scope.spawn(|| first_byte(space, to).map(|()| after()));
            let running = self.start(space, line, token, "up ")?;
            let up = after();
            let byte = byte.join().map_err(|_| "the client failed")??;
            drop(running);
            Ok((up, byte))
        })
    }
}

/// Answers each connection with a byte, for as long as the program runs.
fn listen(space: &Namespace, at: SocketAddr) -> Outcome<()> {
    let listener = space.within(|| Ok(TcpListener::bind(at)))??;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.write_all(b"!");
        }
    });
    Ok(())
}

/// Waits for a byte from there: begins a connection every few milliseconds, and takes the first that brings one.
fn first_byte(space: &Namespace, from: SocketAddr) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    let (tell, told) = mpsc::channel();
    while Instant::now() < deadline {
        let tell = tell.clone();
        let space = Namespace::open(Path::new(&space.path()))?;
        std::thread::spawn(move || {
            let came = space.enter().and_then(|()| {
                let mut stream = TcpStream::connect_timeout(&from, Duration::from_millis(900))?;
                stream.set_read_timeout(Some(Duration::from_millis(900)))?;
                stream.read_exact(&mut [0])
            });
            if came.is_ok() {
                let _ = tell.send(());
            }
        });
        if told.recv_timeout(EVERY).is_ok() {
            return Ok(());
        }
    }
    Err("no byte came".into())
}
