//! How long a plan takes for 1,000 machines and 15,000 workloads, and how far it is from the lower
//! bound on 200 machines: `cargo run --release -p fleet --example speed`.

use fleet::{
    amount::Amount,
    counterfactual::carry_out,
    forecast::Forecast,
    inventory::{Group, Inventory, Machine, MachineIndex, Power, Workload},
    moment::{Moment, Span},
    planner::{Memory, Situation, gap, plan},
    policy::Policy,
};
use std::time::{Duration, Instant};

const SAMPLES: usize = 21;

/// Machines of several sizes, and workloads that are spread over them.
fn fleet(machines: u32, workloads: u32, waiting: bool) -> Inventory {
    let mut inventory = Inventory::default();
    let group = inventory.add_group(Group::new("pool"));
    for at in 0..machines {
        let processors = [16, 32, 64][at as usize % 3];
        let capacity = Amount::new(processors * 1000, processors << 32, 0, 110);
        let mut machine = Machine::new(format!("m{at}"), group, capacity);
        if waiting {
            machine.power = Power::Off;
        }
        inventory.add_machine(machine);
    }
    let mut state = 1_u64;
    for at in 0..workloads {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let millis = 200 + (state >> 33) % 1800;
        let mut workload = Workload::new("w", Amount::workload(millis, millis * 3));
        workload.machine = (!waiting).then_some(MachineIndex(at % machines));
        inventory.add_workload(workload);
    }
    inventory
}

fn measure(name: &str, inventory: &Inventory) {
    let policy = Policy::default();
    let mut forecast = Forecast::default();
    forecast.observe(inventory, Moment(1_000_000));
    let mut times: Vec<Duration> = (0..SAMPLES)
        .map(|_| {
            let situation = Situation {
                inventory,
                forecast: Some(&forecast),
                policy: &policy,
                now: Moment(1_000_600),
            };
            let start = Instant::now();
            std::hint::black_box(plan(situation, &Memory::default()));
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!(
        "{name}: median {:?}, longest {:?} of {SAMPLES}",
        times[SAMPLES / 2],
        times[SAMPLES - 1]
    );
}

fn main() {
    measure(
        "1,000 machines with 15,000 workloads",
        &fleet(1000, 15_000, false),
    );
    measure(
        "the same, all asleep and all waiting",
        &fleet(1000, 15_000, true),
    );
    let mut inventory = fleet(200, 1200, false);
    let policy = Policy {
        tries: 1000,
        max_power_offs: 1000,
        ..Policy::default()
    };
    let (mut memory, mut now, mut longest) = (Memory::default(), Moment(1_000_000), Duration::ZERO);
    loop {
        let situation = Situation {
            inventory: &inventory,
            forecast: None,
            policy: &policy,
            now,
        };
        let start = Instant::now();
        let (decided, remembered) = plan(situation, &memory);
        longest = longest.max(start.elapsed());
        memory = remembered;
        carry_out(&mut inventory, &decided, now);
        now = now.plus(Span(60));
        if now >= Moment(1_000_000 + 4 * 3600) {
            let found = gap(&inventory, &decided);
            println!(
                "200 machines: {:.0} W idle, at least {:.0} W, gap {:.2} %, longest plan {longest:?}",
                found.watts,
                found.bound_watts,
                found.share() * 100.0
            );
            return;
        }
    }
}
