//! What made-up weeks need under our policy, beside an oracle that knows the future, somebody who
//! knows all of it but when requests end, and a proven lower bound:
//! `cargo run --release -p fleet --example weeks`; the number of machines may follow.

use fleet::{
    moment::Moment,
    policy::{Kind, Policy},
    simulate::{Options, Shape, compare, generate, knowing_arrivals, uniform_fleet},
};

const SEEDS: u64 = 5;

fn main() {
    let given = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let machines: u32 = given.unwrap_or(100);
    println!(
        "{machines} machines for a week, {SEEDS} weeks of each shape; shares of the oracle's energy"
    );
    println!(
        "{:<8} {:>5} {:>10} {:>9} {:>16} {:>8} {:>7} {:>7} {:>8} {:>12}",
        "shape",
        "week",
        "oracle",
        "ours",
        "knowing arrivals",
        "bound",
        "cycles",
        "moves",
        "waited",
        "longest wait"
    );
    let policy = Policy::of(Kind::Atoll);
    let options = Options {
        start: Moment(4 * 86_400),
        ..Options::default()
    };
    let inventory = uniform_fleet(machines);
    for shape in Shape::ALL {
        let mut sum = 0.0;
        for seed in 1..=SEEDS {
            let trace = generate(shape, &inventory, options.start, options.length, seed);
            let options = Options { seed, ..options };
            let policies = std::slice::from_ref(&policy);
            let comparison = compare(&inventory, &trace, policies, options);
            let knowing = knowing_arrivals(&inventory, &trace, &policy.tariff, options);
            let [ours, oracle] = comparison.rows.as_slice() else {
                continue;
            };
            let share = |energy: f64| energy / oracle.energy_kwh * 100.0;
            sum += share(ours.energy_kwh);
            println!(
                "{:<8} {seed:>5} {:>6.0} kWh {:>7.1} % {:>14.1} % {:>6.1} % {:>7} {:>7} {:>6.1} % {:>10} s",
                shape.name(),
                oracle.energy_kwh,
                share(ours.energy_kwh),
                share(knowing.energy_kwh),
                share(comparison.bound_kwh),
                ours.cycles,
                ours.moves,
                ours.waited as f64 / ours.requests.max(1) as f64 * 100.0,
                ours.longest_wait.0,
            );
        }
        println!("{:<8}  mean {:>17.1} %", shape.name(), sum / SEEDS as f64);
    }
}
