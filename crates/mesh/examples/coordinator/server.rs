//! The coordinator under measurement: a process that is started, killed and started again.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::lab::{Outcome, programs};

/// The key of the administrator.
pub(crate) const KEY: &str = "e2b_b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3";

/// What is started.
#[derive(Clone)]
pub(crate) enum Program {
    /// `atoll up`.
    Atoll(PathBuf),
    /// The control plane alone, `control`'s example `coordinate`.
    Alone(PathBuf),
}

/// A coordinator that runs.
pub(crate) struct Server(Child);

impl Server {
    /// Starts it and waits until it serves.
    pub(crate) fn start(program: &Program, directory: &Path, at: SocketAddr) -> Outcome<Self> {
        let mut command = match program {
            Program::Atoll(path) => {
                let mut command = Command::new(path);
                command.args(["up", "--driver", "container", "--no-base"]);
                command.args(["--pool-min", "1", "--pool-max", "1", "--listen"]);
                command.arg(at.to_string()).arg("--data-dir").arg(directory);
                command
            }
            Program::Alone(path) => {
                let mut command = Command::new(path);
                command.arg(directory).arg(at.to_string());
                command
            }
        };
        let mut child = command
            .env("ATOLL_API_KEY", KEY)
            .env("ATOLL_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{program}: {error}", program = program.path().display()))?;
        let output = child.stdout.take().ok_or("no standard output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let server = Self(child);
        if !line.starts_with("ready") {
            return Err("the coordinator ended before it was ready".into());
        }
        Ok(server)
    }

    /// What it took of the processors so far, in seconds.
    pub(crate) fn processor_seconds(&self) -> Outcome<f64> {
        programs::processor_seconds(self.0.id())
    }

    /// What it holds of memory, in MB.
    pub(crate) fn memory(&self) -> Outcome<f64> {
        Ok(programs::status(self.0.id(), "VmRSS:")? * 1024.0 / 1e6)
    }

    /// Ends it at once.
    pub(crate) fn kill(mut self) -> Outcome<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Program {
    fn path(&self) -> &Path {
        match self {
            Self::Atoll(path) | Self::Alone(path) => path,
        }
    }
}

impl Drop for Server {
    /// Ends it in order, so that nothing is left on this machine.
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let process = rustix::process::Pid::from_child(&self.0);
            let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
            let _ = self.0.wait();
        }
    }
}
