//! Other programs, in network namespaces: started, waited for, measured.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mesh::Namespace;

use super::Outcome;

/// A program in the namespace, which ends with this one.
pub(crate) fn command(space: &Namespace, line: &str) -> Command {
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

pub(crate) fn start(space: &Namespace, line: &str) -> Outcome<Child> {
    let mut command = command(space, line);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    child.map_err(|error| format!("{line}: {error}; scripts/setup.sh bench installs it").into())
}

/// Runs a program to its end; what it printed.
pub(crate) fn run(space: &Namespace, line: &str) -> Outcome<String> {
    let output = command(space, line)
        .output()
        .map_err(|error| format!("{line}: {error}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{line}: {error}{}", String::from_utf8_lossy(&output.stdout)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Tries until it works: `iperf3` takes a moment between two clients.
pub(crate) fn again<T>(mut attempt: impl FnMut() -> Outcome<T>) -> Outcome<T> {
    for _ in 0..20 {
        if let Ok(result) = attempt() {
            return Ok(result);
        }
        std::thread::park_timeout(Duration::from_millis(200));
    }
    attempt()
}

/// Gb/s received, and segments sent again, out of what `iperf3 -f m` printed.
pub(crate) fn rate(text: &str) -> Outcome<(f64, f64)> {
    // The sums, if there are several streams.
    let find = |end: &str| {
        let mut lines = text.lines().filter(|line| line.trim_end().ends_with(end));
        lines.next_back().ok_or(format!("no {end} in {text}"))
    };
    let receiver: Vec<_> = find("receiver")?.split_whitespace().collect();
    let unit = receiver.iter().position(|word| *word == "Mbits/sec");
    let value = unit.and_then(|unit| receiver.get(unit.checked_sub(1)?));
    let again = find("sender")?.split_whitespace().rev().nth(1);
    let again = again.and_then(|word| word.parse().ok());
    Ok((
        value.ok_or("no rate")?.parse::<f64>()? / 1000.0,
        again.unwrap_or(0.0),
    ))
}

/// A number from a process's status.
pub(crate) fn status(process: u32, field: &str) -> Outcome<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find(|line| line.starts_with(field));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.ok_or("no such field")?.parse()?)
}

/// What a process took of the processors so far, in seconds.
pub(crate) fn processor_seconds(process: u32) -> Outcome<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let rest = stat.rsplit(')').next().ok_or("no name")?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let mut ticks = 0.0;
    for at in [11, 12] {
        ticks += fields.get(at).ok_or("too few fields")?.parse::<f64>()?;
    }
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}
