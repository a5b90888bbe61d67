//! `bmc COUNT`: a controller with so many machines, until its input ends. User `admin`, password
//! `password`. It prints its address and its certificate's SHA-256, and takes lines from its input:
//! `fault MACHINE FAULT…` (`*` for the controller itself; without a fault, it is in order again),
//! `reboot SECONDS`, `end-sessions`, `power MACHINE`. It answers each with a line.

#![forbid(unsafe_code)]

use bmc::{Bmc, Fault, Machine};
use std::{error::Error, time::Duration};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let count: u32 = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 1,
    };
    let machines = (0..count).map(|at| {
        let mut machine = Machine::new(format!("m{at}"), None);
        machine.mac = format!("02:00:00:00:{:02x}:{:02x}", (at >> 8) & 255, at & 255);
        (machine.boot, machine.stop) = (Duration::from_secs(2), Duration::from_secs(1));
        machine
    });
    let bmc = Bmc::start("admin", "password", machines.collect()).await?;
    println!("ready {} {}", bmc.url(), bmc.fingerprint());
    tokio::select! {
        result = obey(&bmc) => result,
        () = bmc.keep_time() => Ok(()),
    }
}

async fn obey(bmc: &Bmc) -> Result<(), Box<dyn Error>> {
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match obey_line(bmc, &line) {
            Ok(said) => println!("{said}"),
            Err(error) => println!("error {error}"),
        }
    }
    Ok(())
}

fn obey_line(bmc: &Bmc, line: &str) -> Result<String, Box<dyn Error>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["fault", machine, faults @ ..] => {
            let faults: Result<Vec<Fault>, _> = faults.iter().map(|one| one.parse()).collect();
            match *machine {
                "*" => bmc.set_own_faults(&faults?),
                name => bmc.set_faults(name, &faults?),
            }
        }
        ["reboot", seconds] => bmc.reboot(Duration::from_secs(seconds.parse()?)),
        ["end-sessions"] => bmc.end_sessions(),
        ["power", machine] => {
            let power = bmc.with(machine, |one| format!("{:?} {} W", one.power, one.draws()));
            return power.ok_or_else(|| format!("there is no `{machine}`").into());
        }
        _ => return Err(format!("`{line}` is not understood").into()),
    }
    Ok("ok".to_owned())
}
