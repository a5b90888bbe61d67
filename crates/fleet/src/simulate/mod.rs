//! A fleet that exists only here: a trace of requests, machines that take time to boot, and a
//! policy that decides, minute by minute.
//!
//! What is simulated is only the world: boots, requests that come and go, and what is drawn from
//! the wall. Every decision is made by [`crate::planner::plan`], the one that real fleets are run
//! with. The clock moves in steps; what happens within a step is seen at its end, by every policy
//! alike.

mod chance;
mod generate;
mod oracle;
mod plot;
mod report;
mod trace;
mod world;

pub use generate::{Shape, generate};
pub use oracle::{knowing_arrivals, oracle};
pub use plot::plot;
pub use report::{Comparison, Row, Sample, compare};
pub use trace::{Request, Trace, TraceError};
pub use world::{Options, simulate};

use crate::{
    amount::Amount,
    inventory::{Group, Inventory, Machine, Role},
};

/// A fleet of equal machines with 64 processors and 256 GiB, of which one in fifty is never
/// switched off.
pub fn uniform_fleet(machines: u32) -> Inventory {
    let mut inventory = Inventory::default();
    let group = inventory.add_group(Group::new("pool"));
    for at in 0..machines {
        let capacity = Amount::new(64_000, 256 << 30, 0, 250);
        let mut machine = Machine::new(format!("m{at:04}"), group, capacity);
        if at < machines.div_ceil(50) {
            machine.role = Role::Base;
        }
        inventory.add_machine(machine);
    }
    inventory
}
