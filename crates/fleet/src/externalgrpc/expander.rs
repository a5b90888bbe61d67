//! Which of several ways to scale up takes least energy, money or carbon for what it brings.

use super::{Settings, kubernetes as k8s, price, wire};
use crate::{
    amount::Amount,
    inventory::Watts,
    moment::{Moment, Span},
    targets::Snapshot,
};
use prost::Message;

/// Nodes are taken to stay for so long: what they draw meanwhile is compared.
const HORIZON: Span = Span::hours(1);
/// Options that differ by less are equally good.
const SAME: f64 = 1e-9;

/// What an option takes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Score {
    /// Machines that would be needed and are not there.
    missing: usize,
    /// What it costs for each unit of what it brings.
    cost: f64,
}

/// The best options: one, or several that are equally good.
pub(super) fn best(
    question: &wire::BestOptionsQuestion,
    snapshot: &Snapshot,
    settings: &Settings,
    now: Moment,
) -> Vec<wire::ExpansionOption> {
    let scored: Vec<(Score, &wire::ExpansionOption)> = question
        .options
        .iter()
        .map(|option| (score(option, question, snapshot, settings, now), option))
        .collect();
    let order = |a: &Score, b: &Score| {
        let cost = a.cost.total_cmp(&b.cost);
        a.missing.cmp(&b.missing).then(cost)
    };
    let Some(least) = scored.iter().map(|(score, _)| *score).min_by(order) else {
        return Vec::new();
    };
    let good = scored.into_iter().filter(|(score, _)| {
        score.missing == least.missing && score.cost <= least.cost * (1.0 + SAME)
    });
    good.map(|(score, option)| wire::ExpansionOption {
        debug: format!("{:.4} for each processor that it brings", score.cost),
        ..option.clone()
    })
    .collect()
}

fn score(
    option: &wire::ExpansionOption,
    question: &wire::BestOptionsQuestion,
    snapshot: &Snapshot,
    settings: &Settings,
    now: Moment,
) -> Score {
    let count = usize::try_from(option.node_count).unwrap_or(0).max(1);
    let pods = if option.pods.is_empty() {
        &option.pods_legacy
    } else {
        &option.pods
    };
    let requests: Amount = pods
        .iter()
        .filter_map(|bytes| k8s::Pod::decode(bytes.as_slice()).ok())
        .map(|pod| pod.request(&settings.gpu_resource))
        .sum();
    let group = snapshot.group(&option.node_group_id);
    let free = group.map_or(usize::MAX, |one| one.most().saturating_sub(one.target()));
    let machine = group.and_then(|one| one.next(now)).map(|index| {
        let machine = &snapshot.catalogue().machine(index).machine;
        (machine.capacity, machine.watts, machine.cycle_watt_hours())
    });
    let (capacity, watts, cycle) = machine.unwrap_or_else(|| {
        let capacity = capacity(option, question, settings);
        (capacity, Watts::guess(&capacity), 0.0)
    });
    let share = requests.share_of(&capacity.times(count as u64));
    let drawn = (watts.loaded(share) - watts.off).max(0.0) * count as f64;
    let held = price::cost(&settings.tariff, drawn, now, HORIZON);
    let cycles = price::cost(&settings.tariff, cycle * count as f64, now, Span::hours(1));
    Score {
        missing: count.saturating_sub(free),
        cost: (held + cycles) / brings(&requests, pods.len()),
    }
}

/// How much a set of pods is, in processors; memory and accelerators are turned into them.
fn brings(requests: &Amount, pods: usize) -> f64 {
    let processors = requests.cpu_millis as f64 / 1000.0;
    let memory = requests.memory_bytes as f64 / (4_u64 << 30) as f64;
    let largest = processors.max(memory).max(requests.gpus as f64 * 8.0);
    largest.max(0.01 * pods.max(1) as f64)
}

/// What a node has of which nothing is known here.
fn capacity(
    option: &wire::ExpansionOption,
    question: &wire::BestOptionsQuestion,
    settings: &Settings,
) -> Amount {
    let id = &option.node_group_id;
    let bytes = question
        .nodes
        .get(id)
        .or_else(|| question.nodes_legacy.get(id));
    let node = bytes.and_then(|bytes| k8s::Node::decode(bytes.as_slice()).ok());
    let status = node.and_then(|node| node.status).unwrap_or_default();
    k8s::amount(&status.allocatable, &settings.gpu_resource)
}
