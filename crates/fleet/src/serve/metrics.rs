//! Figures for Prometheus, in its text format.

use super::{
    counts::Counts,
    view::{Standing, View},
};
use std::{
    fmt::{Display, Write},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

struct Text(String);

impl Text {
    /// Begins a metric.
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{}\"", escape(value)))
            .collect();
        let _ = match labels.as_slice() {
            [] => writeln!(self.0, "{name} {value}"),
            _ => writeln!(self.0, "{name}{{{}}} {value}", labels.join(",")),
        };
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.begin(name, kind, help);
        self.value(name, &[], value);
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// All figures.
pub(super) fn text(view: &View, counts: &Counts) -> String {
    let mut text = Text(String::new());
    let status = &view.status;
    let acting = u8::from(status.standing == Standing::Acting);
    text.single(
        "atoll_fleet_acting",
        "gauge",
        "Whether this instance acts.",
        acting,
    );
    if status.at.is_some() {
        show_fleet(&mut text, view);
    }
    show_counts(&mut text, counts);
    text.0
}

fn show_fleet(text: &mut Text, view: &View) {
    let status = &view.status;
    text.begin(
        "atoll_fleet_machines",
        "gauge",
        "Machines by the state of their power.",
    );
    for (power, count) in &status.machines {
        text.value("atoll_fleet_machines", &[("state", power)], count);
    }
    let watts = "What all machines draw, by what is known of them.";
    text.single("atoll_fleet_watts", "gauge", watts, status.watts);
    let help = "Workloads on machines of the fleet, and those that wait.";
    text.begin("atoll_fleet_workloads", "gauge", help);
    text.value(
        "atoll_fleet_workloads",
        &[("state", "running")],
        status.running,
    );
    text.value(
        "atoll_fleet_workloads",
        &[("state", "waiting")],
        status.waiting,
    );
    let help = "Machines by the reason of what is decided about them.";
    text.begin("atoll_fleet_decisions", "gauge", help);
    for (reason, count) in &view.plan.reasons {
        text.value("atoll_fleet_decisions", &[("reason", reason)], count);
    }
    text.begin(
        "atoll_fleet_unplaced",
        "gauge",
        "Workloads without any place.",
    );
    text.value("atoll_fleet_unplaced", &[], view.plan.unplaced.len());
    let help = "Whether a group's forecast has proven better than none.";
    text.begin("atoll_fleet_forecast_used", "gauge", help);
    for group in &status.groups {
        let used = u8::from(group.forecast_used);
        text.value("atoll_fleet_forecast_used", &[("group", &group.name)], used);
    }
    let help = "Machines with whose controllers something is wrong.";
    let failing = status.controllers_failing;
    text.single("atoll_fleet_controllers_failing", "gauge", help, failing);
    let at = status.at.map_or(0, |at| at.0);
    let help = "When the fleet was looked at last.";
    text.single("atoll_fleet_last_tick_seconds", "gauge", help, at);
    let help = "When demand was read last.";
    let at = status.demand.read_at.map_or(0, |at| at.0);
    text.single("atoll_fleet_demand_read_seconds", "gauge", help, at);
}

fn show_counts(text: &mut Text, counts: &Counts) {
    let get = |counter: &AtomicU64| counter.load(Relaxed);
    let name = "atoll_fleet_power_actions_total";
    text.begin(name, "counter", "What was sent to power drivers.");
    for (action, counter) in [
        ("on", &counts.on),
        ("off", &counts.off),
        ("force_off", &counts.force_off),
        ("suspend", &counts.suspend),
    ] {
        text.value(name, &[("action", action)], get(counter));
    }
    let help = "What was sent to power drivers and failed.";
    let name = "atoll_fleet_power_failures_total";
    text.single(name, "counter", help, get(&counts.failures));
    let name = "atoll_fleet_power_outcomes_total";
    text.begin(name, "counter", "How switching machines ended.");
    for (outcome, counter) in [
        ("done", &counts.done),
        ("never_came", &counts.never_came),
        ("would_not_stop", &counts.would_not_stop),
        ("carries_work", &counts.carries_work),
        ("would_not_suspend", &counts.would_not_suspend),
        ("went_off", &counts.went_off),
    ] {
        text.value(name, &[("outcome", outcome)], get(counter));
    }
    let seconds = |counter: &AtomicU64| get(counter) as f64 / 1e6;
    let name = "atoll_fleet_plan_seconds";
    text.begin(name, "summary", "How long plans took.");
    text.value(&format!("{name}_sum"), &[], seconds(&counts.plan_micros));
    text.value(&format!("{name}_count"), &[], get(&counts.plans));
    let help = "How long the last plan took.";
    let last = seconds(&counts.last_plan_micros);
    text.single("atoll_fleet_last_plan_seconds", "gauge", help, last);
    for (name, help, counter) in [
        (
            "atoll_fleet_demand_failures_total",
            "How often demand could not be read.",
            &counts.demand_failures,
        ),
        (
            "atoll_fleet_tick_failures_total",
            "Ticks that did not end.",
            &counts.tick_failures,
        ),
    ] {
        text.single(name, "counter", help, get(counter));
    }
}
