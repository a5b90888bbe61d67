//! Measures the data plane beside `wireguard-go`, with a device and without: two network namespaces on one machine, a cable between
//! them, the same `iperf3` and the same congestion control through all, in turns.
//!
//! ```text
//! cargo run --release -p mesh --example throughput -- [--rounds 3] [--seconds 3] [--congestion reno] [--buffer 2097152] [--only tun|flows]
//! ```
//!
//! Needs root, `ip`, `ping`, `iperf3`, `wireguard-go` and `wg` (`scripts/setup.sh bench`). Prints medians, and for the
//! processor's time and memory what both daemons took together. Nothing is left behind: the namespaces have no names.

#[allow(dead_code, reason = "each program uses a part")]
mod lab;

use std::process::Command;

use lab::pair::{Kind, Pair, cable};
use lab::verdict::Verdicts;
use lab::{Options, Outcome, daemon, machine, median};

/// Where the figures that are judged stand among those that are measured.
#[derive(Clone, Copy)]
enum Figure {
    There = 0,
    Back = 1,
    Four = 2,
    Processor = 3,
    Loaded = 5,
    LoadedByFour = 6,
    Peak = 8,
}

const HEADINGS: [&str; 9] = [
    "tcp 1 >", "tcp 1 <", "tcp 4 >", "cpu s/Gb", "ping", "loaded", "loaded4", "retr/GB", "peak MB",
];

type Row = [f64; 9];

fn main() -> Outcome<()> {
    let options = Options::read();
    if let Some(arguments) = options.after("node") {
        return daemon::serve(arguments);
    }
    let rounds: usize = options.get("--rounds", 3)?;
    let seconds: u64 = options.get("--seconds", 3)?;
    let congestion: String = options.get("--congestion", "reno".to_owned())?;
    let buffer: u32 = options.get("--buffer", 2 << 20)?;
    let only: String = options.get("--only", String::new())?;
    let mut verdicts = Verdicts::begin()?;
    let version = version()?;
    println!(
        "{rounds} rounds of {seconds} s, {congestion}, {}; {version}",
        machine()?
    );
    let mut kinds = vec![Kind::Reference, Kind::Tun, Kind::Flows];
    kinds.retain(|kind| match only.as_str() {
        "tun" => *kind != Kind::Flows,
        "flows" => *kind != Kind::Tun,
        _ => true,
    });
    let mut rows: Vec<Vec<Row>> = vec![Vec::new(); kinds.len()];
    for round in 0..rounds {
        for turn in 0..kinds.len() {
            // In turns, so that what else the machine does meets all.
            let at = (turn + round) % kinds.len();
            rows[at].push(measure(kinds[at], seconds, &congestion, buffer)?);
        }
    }
    let headings: String = HEADINGS.map(|heading| format!("{heading:>9}")).concat();
    println!("{:<14}{headings}", "median");
    let mut medians = Vec::new();
    for (kind, rows) in kinds.iter().zip(&rows) {
        let all: Row = std::array::from_fn(|at| median(rows.iter().map(|row| row[at])));
        let shown: String = all.map(|value| format!("{value:>9.2}")).concat();
        println!("{:<14}{shown}", kind.name());
        medians.push(all);
    }
    for (kind, figures) in kinds.iter().zip(&medians) {
        match kind {
            Kind::Tun => judge_tun(&mut verdicts, figures, &medians[0], &version),
            Kind::Flows => judge_flows(&mut verdicts, figures, &medians[0]),
            Kind::Plain | Kind::Reference => {}
        }
    }
    verdicts.tell()
}

/// Of `wireguard-go`.
fn version() -> Outcome<String> {
    let output = Command::new("wireguard-go").arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn measure(kind: Kind, seconds: u64, congestion: &str, buffer: u32) -> Outcome<Row> {
    let mut pair = Pair::new(congestion, cable)?;
    pair.join(kind, buffer)?;
    let _server = pair.listen(kind)?;
    // Flows carry no pings.
    let pings = kind != Kind::Flows;
    let idle = if pings { pair.ping(kind, 1)? } else { f64::NAN };
    let before = pair.processor_seconds()?;
    let there = pair.iperf(kind, seconds, "")?;
    let back = pair.iperf(kind, seconds, "-R")?;
    let four = pair.iperf(kind, seconds, "-P 4")?;
    let spent = pair.processor_seconds()? - before;
    let gigabits = (there.0 + back.0 + four.0) * seconds as f64;
    let again = (there.1 + back.1 + four.1) / (gigabits / 8.0);
    let mut loaded = [f64::NAN; 2];
    for (loaded, streams) in loaded.iter_mut().zip(["", "-P 4"]).filter(|_| pings) {
        let mut load = pair.load(kind, seconds + 1, streams)?;
        *loaded = pair.ping(kind, seconds)?;
        load.wait()?;
    }
    Ok([
        there.0,
        back.0,
        four.0,
        spent / gigabits,
        idle,
        loaded[0],
        loaded[1],
        again,
        pair.peak()?,
    ])
}

fn judge_tun(verdicts: &mut Verdicts, ours: &Row, reference: &Row, version: &str) {
    // The version with offloads, of Debian 13, is about twice as fast as that of Debian 12.
    let least = if version.contains("0.0.2022") {
        4.0
    } else {
        2.0
    };
    let ratio = |at: Figure| ours[at as usize] / reference[at as usize];
    let busy = "both ends share the processors with iperf3";
    for (what, at) in [
        ("TUN, 1 flow, beside wireguard-go", Figure::There),
        ("TUN, 1 flow back, beside wireguard-go", Figure::Back),
        ("TUN, 4 flows, beside wireguard-go", Figure::Four),
    ] {
        verdicts.at_least(what, ratio(at), least, "x", busy);
    }
    let figure = |at: Figure| ours[at as usize];
    let cpu = "TUN, processor time of both ends";
    verdicts.at_most(cpu, figure(Figure::Processor), 0.45, "s/Gbit", busy);
    let loaded = "TUN, mean ping beside 1 flow";
    verdicts.at_most(loaded, figure(Figure::Loaded), 3.0, "ms", busy);
    let loaded = "TUN, mean ping beside 4 flows";
    verdicts.at_most(loaded, figure(Figure::LoadedByFour), 3.0, "ms", busy);
    let peak = "TUN, memory of each end at most";
    verdicts.at_most(peak, figure(Figure::Peak), 32.0, "MB", "");
}

fn judge_flows(verdicts: &mut Verdicts, ours: &Row, reference: &Row) {
    let ratio = |at: Figure| ours[at as usize] / reference[at as usize];
    let why = "QUIC encrypts and copies each byte in user space";
    for (what, at, least) in [
        ("no TUN, 1 flow, beside wireguard-go", Figure::There, 1.2),
        (
            "no TUN, 1 flow back, beside wireguard-go",
            Figure::Back,
            1.2,
        ),
        ("no TUN, 4 flows, beside wireguard-go", Figure::Four, 1.0),
    ] {
        verdicts.at_least(what, ratio(at), least, "x", why);
    }
}
