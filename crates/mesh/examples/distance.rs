//! Measures how much of plain TCP is left inside the mesh over a long way: a shim delays and loses packets of both alike.
//!
//! ```text
//! cargo run --release -p mesh --example distance -- [--pairs 6] [--seconds 25] [--round-trip 60] [--loss 0.001] [--congestion cubic] [--flows 1] [--rate MBIT]
//! ```
//!
//! With so little loss a flow loses a packet every few seconds, so chance decides much: several pairs of machines run at the same time, each with a
//! shim of its own, and the sums are compared. Over each shim plain TCP, a tunnel and a flow without a device run side by side; nothing but the
//! way's length and losses bounds them, unless `--rate` bounds what all three carry together. Needs root, `ip` and `iperf3`.

#[allow(dead_code, reason = "each program uses a part")]
mod lab;

use std::sync::atomic::Ordering;
use std::time::Duration;

use lab::pair::{Kind, Pair};
use lab::programs::run;
use lab::shim::{Distance, cable};
use lab::verdict::Verdicts;
use lab::{Options, Outcome, daemon, machine, median};

const KINDS: [Kind; 3] = [Kind::Plain, Kind::Tun, Kind::Flows];

fn main() -> Outcome<()> {
    let options = Options::read();
    if let Some(arguments) = options.after("node") {
        return daemon::serve(arguments);
    }
    let pairs: u64 = options.get("--pairs", 6)?;
    let seconds: u64 = options.get("--seconds", 25)?;
    let flows: u64 = options.get("--flows", 1)?;
    let congestion: String = options.get("--congestion", "cubic".to_owned())?;
    let round_trip = Duration::from_millis(options.get("--round-trip", 60)?);
    let loss: f64 = options.get("--loss", 0.001)?;
    let rate: u64 = options.get("--rate", 0)?;
    println!(
        "{pairs} pairs, {seconds} s, {flows} flow(s) each, {congestion}, {} ms there and back, {} % lost each way, {}",
        round_trip.as_millis(),
        loss * 100.0,
        machine()?
    );
    let mut verdicts = Verdicts::begin()?;
    let mut results: Vec<[f64; 3]> = Vec::new();
    let (mut packets, mut lost) = (0, 0);
    std::thread::scope(|scope| -> Outcome<()> {
        let (congestion, mut running) = (&congestion, Vec::new());
        for seed in 0..pairs {
            let distance = Distance {
                round_trip,
                loss,
                seed,
            };
            running.push(scope.spawn(move || measure(distance, congestion, seconds, flows, rate)));
        }
        for one in running {
            let (rates, carried) = one.join().map_err(|_| "a pair failed")??;
            results.push(rates);
            packets += carried.0;
            lost += carried.1;
        }
        Ok(())
    })?;
    println!("{packets} packets on the cables, {lost} of them lost");
    println!("{:<14}{:>10}{:>12}{:>12}", "Mb/s", "sum", "median", "each");
    let sum = |at: usize| results.iter().map(|row| row[at]).sum::<f64>();
    for (at, kind) in KINDS.iter().enumerate() {
        let each: Vec<_> = results
            .iter()
            .map(|row| format!("{:.1}", row[at]))
            .collect();
        let middle = median(results.iter().map(|row| row[at]));
        let each = each.join(" ");
        println!(
            "{:<14}{:>10.1}{middle:>12.1}        {each}",
            kind.name(),
            sum(at)
        );
    }
    let way = format!(
        "{} ms, {} % lost, {flows} flow(s)",
        round_trip.as_millis(),
        loss * 100.0
    );
    for (at, mode) in [(1, "TUN"), (2, "no TUN")] {
        let what = format!("{mode}, {way}, of plain TCP");
        let why = match mode {
            "no TUN" if congestion == "bbr" => "QUIC's congestion control is CUBIC",
            _ => "",
        };
        verdicts.at_least(&what, 100.0 * sum(at) / sum(0), 80.0, "%", why);
    }
    verdicts.tell()
}

/// Mb/s of each kind, and what the cable carried and lost.
fn measure(
    distance: Distance,
    congestion: &str,
    seconds: u64,
    flows: u64,
    rate: u64,
) -> Outcome<([f64; 3], (u64, u64))> {
    let mut carried = None;
    let mut pair = Pair::new(congestion, |spaces| {
        carried = Some(cable(spaces, distance)?);
        for space in spaces.iter().filter(|_| rate > 0) {
            let bound = format!("rate {rate}mbit burst 64kb latency 60ms");
            run(space, &format!("tc qdisc add dev eth0 root tbf {bound}"))?;
        }
        Ok(())
    })?;
    let mut servers = Vec::new();
    for kind in KINDS {
        pair.join(kind, 2 << 20)?;
        servers.push(pair.listen(kind)?);
    }
    // Not the first seconds, in which all look for the way's limits.
    let line = format!("-O 3 -P {flows}");
    let (pair, line) = (&pair, &line);
    let rates = std::thread::scope(|scope| -> Outcome<[f64; 3]> {
        let running = KINDS.map(|kind| scope.spawn(move || pair.iperf(kind, seconds, line)));
        let mut rates = [0.0; 3];
        for (rate, one) in rates.iter_mut().zip(running) {
            *rate = one.join().map_err(|_| "a measurement failed")??.0 * 1000.0;
        }
        Ok(rates)
    })?;
    let carried = carried.ok_or("no cable")?;
    let packets = carried.packets.load(Ordering::Relaxed);
    Ok((rates, (packets, carried.lost.load(Ordering::Relaxed))))
}
