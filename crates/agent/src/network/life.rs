//! The start and the end of an instance's network, and the repair of what crashes left.

use super::{
    NetworkOptions,
    build::{PREFIX, Plan},
    error::NetworkError,
    guard::Guard,
    link::{self, Occupied},
    namespace,
    netlink::Socket,
    range::{self, Ipv4Range},
    registry::{self, Entry, Registry},
    rules::{self, Rules},
};
use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::DirBuilderExt,
};
use tokio::runtime::Handle;

/// Interface groups in which an instance gathers what it deletes, one for each instance.
const CONDEMNED: u32 = 0x4155_0000;
/// The longest packet that a slot takes, in bytes, where the uplink allows it; and the shortest,
/// where the uplink is odd.
const MTU: std::ops::RangeInclusive<u32> = 1280..=1500;

/// What [`start`] decided and found.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) plan: Plan,
    /// Slots of an earlier run that still have their interface.
    pub(super) left_over: BTreeSet<u32>,
    /// Keeps the rules loaded while it lives.
    pub(super) guard: Guard,
}

/// Sets up the host for an instance.
pub(super) fn start(
    runtime: &Handle,
    options: &NetworkOptions,
    name_servers: &[IpAddr],
) -> Result<Started, NetworkError> {
    let instance = &options.instance;
    if !registry::is_instance(instance) {
        return Err(NetworkError::Instance(instance.chars().take(40).collect()));
    }
    let registry = Registry::lock(&options.shared)?;
    repair(runtime, &registry, instance)?;
    let mut socket = Socket::route(0)?;
    let range = choose_range(options, &registry, &mut socket)?;
    let mut plan = Plan {
        instance: instance.clone(),
        range,
        mtu: *MTU.end(),
        group: rules::OPEN,
        machines: options.machines,
    };
    if let Some(uplink) = link::uplink(&mut socket)? {
        let links = link::links(&mut socket)?;
        let mtu = links
            .iter()
            .find(|link| link.index == uplink)
            .map(|link| link.mtu);
        plan.mtu = mtu.unwrap_or(*MTU.end()).clamp(*MTU.start(), *MTU.end());
    }
    let left_over = numbers(&plan, &mut socket)?;
    let rules = Rules {
        instance: instance.clone(),
        range,
        resolvers: private_resolvers(name_servers),
        connections: rules::connection_limit(host_connections()),
    };
    let mut set_up = || {
        registry.put(&Entry::of_this_program(instance, range))?;
        link::reserve(&mut socket, range)?;
        // Rules before forwarding: there is no moment in which a packet passes unseen.
        let loaded = rules.load(runtime)?;
        registry.forward()?;
        Guard::start(runtime.clone(), rules.clone(), loaded)
    };
    match set_up() {
        Ok(guard) => Ok(Started {
            plan,
            left_over,
            guard,
        }),
        Err(error) => {
            // Sandboxes of an earlier run that go on need what is there.
            if left_over.is_empty()
                && let Err(error) = take_down(runtime, &registry, instance, range)
            {
                tracing::warn!(%error, "a start that failed left something behind");
            }
            Err(error)
        }
    }
}

/// Removes an instance from the host.
pub(super) fn stop(
    runtime: &Handle,
    options: &NetworkOptions,
    plan: &Plan,
) -> Result<(), NetworkError> {
    let registry = Registry::lock(&options.shared)?;
    remove_interfaces(plan, |_| true)?;
    repair(runtime, &registry, &options.instance)?;
    take_down(runtime, &registry, &options.instance, plan.range)
}

/// Removes an instance that has no interface any more.
fn take_down(
    runtime: &Handle,
    registry: &Registry,
    instance: &str,
    range: Ipv4Range,
) -> Result<(), NetworkError> {
    link::unreserve(&mut Socket::route(0)?, range)?;
    // The file goes after what it stands for, so that a crash in between is repaired. Forwarding
    // goes before the rules only in name: without interfaces there is nothing to forward.
    let unloaded = rules::unload(runtime, instance);
    registry.remove(instance)?;
    let others = rules::list(runtime, "ruleset").is_ok_and(|text| translates_for_others(&text));
    registry.restore_forwarding(others)?;
    unloaded.map(|_| ())
}

/// Whether somebody else on the host translates addresses of what it forwards. If that began while
/// we ran, it found forwarding on and counts on it.
fn translates_for_others(ruleset: &str) -> bool {
    let mut ours = false;
    ruleset.lines().any(|line| {
        if let Some(table) = line.strip_prefix("table ") {
            ours = table.starts_with("inet atoll_");
        }
        !ours && (line.contains("masquerade") || line.contains("snat"))
    })
}

/// Removes other instances that crashed and of which no sandbox is left.
fn repair(runtime: &Handle, registry: &Registry, except: &str) -> Result<(), NetworkError> {
    let links = link::links(&mut Socket::route(0)?)?;
    for entry in registry.entries()? {
        let prefix = format!("at{}.", entry.instance);
        let populated = links.iter().any(|link| link.name.starts_with(&prefix));
        if entry.instance == except || entry.is_alive() || populated {
            continue;
        }
        tracing::info!(
            instance = entry.instance,
            "removing what a crashed instance left"
        );
        link::unreserve(&mut Socket::route(0)?, entry.range)?;
        rules::unload(runtime, &entry.instance)?;
        registry.remove(&entry.instance)?;
    }
    Ok(())
}

/// The block of this instance: the one of earlier runs if it is still free, else a new one.
fn choose_range(
    options: &NetworkOptions,
    registry: &Registry,
    socket: &mut Socket,
) -> Result<Ipv4Range, NetworkError> {
    let fail =
        |source| NetworkError::system(format!("making {}", options.directory.display()), source);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&options.directory)
        .map_err(fail)?;
    let memory = options.directory.join("range");
    let before: Option<Ipv4Range> = registry::load(&memory)?;
    let links = link::links(socket)?;
    let prefix = format!("at{}.", options.instance);
    let own: BTreeSet<u32> = links
        .iter()
        .filter(|link| link.name.starts_with(&prefix))
        .map(|link| link.index)
        .collect();
    let others = registry
        .entries()?
        .into_iter()
        .filter(|entry| entry.instance != options.instance);
    let foreign = |occupied: &Occupied| {
        let by_us = occupied.interface.is_some_and(|index| own.contains(&index))
            || (occupied.reservation && Some(occupied.range) == before);
        !by_us
    };
    let taken: Vec<Ipv4Range> = link::occupied(socket)?
        .into_iter()
        .filter(foreign)
        .map(|occupied| occupied.range)
        .chain(others.map(|entry| entry.range))
        .collect();
    if let Some(range) = before {
        // Sandboxes that go on have addresses in it already.
        if !own.is_empty() || !taken.iter().any(|other| other.overlaps(range)) {
            return Ok(range);
        }
        tracing::warn!(%range, "the addresses of earlier runs are in use: choosing others");
        link::unreserve(socket, range)?;
    } else if !own.is_empty() {
        // Nobody knows their addresses any more, so nobody can adopt them.
        condemn(
            socket,
            &options.instance,
            links.iter().filter(|link| own.contains(&link.index)),
        )?;
    }
    let seed = u32::from_str_radix(&options.instance, 16).unwrap_or_default();
    let range = range::choose(&options.ranges, PREFIX, &taken, seed).ok_or_else(|| {
        let ranges: Vec<String> = options.ranges.iter().map(Ipv4Range::to_string).collect();
        NetworkError::NoRange(ranges.join(", "))
    })?;
    registry::save(&memory, &range)?;
    Ok(range)
}

fn numbers(plan: &Plan, socket: &mut Socket) -> Result<BTreeSet<u32>, NetworkError> {
    Ok(link::links(socket)?
        .iter()
        .filter_map(|link| plan.number(&link.name))
        .collect())
}

/// Deletes the interfaces of an instance's slots that `unwanted` holds for; returns their names.
pub(super) fn remove_interfaces(
    plan: &Plan,
    unwanted: impl Fn(u32) -> bool,
) -> Result<Vec<String>, NetworkError> {
    let mut socket = Socket::route(0)?;
    let links = link::links(&mut socket)?;
    let chosen = links
        .iter()
        .filter(|link| plan.number(&link.name).is_some_and(&unwanted));
    condemn(&mut socket, &plan.instance, chosen)
}

fn condemn<'a>(
    socket: &mut Socket,
    instance: &str,
    links: impl Iterator<Item = &'a link::Link>,
) -> Result<Vec<String>, NetworkError> {
    let group = CONDEMNED | u32::from_str_radix(instance, 16).unwrap_or_default();
    let mut condemned = Vec::new();
    for link in links {
        // It may have vanished meanwhile, with the last process of its sandbox.
        if link::set_group(socket, &link.name, group)? {
            condemned.push(link.name.clone());
        }
    }
    if !condemned.is_empty() {
        link::delete_group(socket, group)?;
    }
    Ok(condemned)
}

fn private_resolvers(name_servers: &[IpAddr]) -> Vec<Ipv4Addr> {
    let mut private: Vec<Ipv4Addr> = name_servers
        .iter()
        .filter_map(|address| match address {
            IpAddr::V4(address) if !rules::is_public(*address) => Some(*address),
            _ => None,
        })
        .collect();
    private.sort_unstable();
    private.dedup();
    private
}

/// How many connections the host can remember.
pub(super) fn host_connections() -> u32 {
    namespace::get("net/netfilter/nf_conntrack_max")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(65536)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_that_translate_addresses_are_noticed() {
        let ours = "table inet atoll_ab12 {\n\tchain translation {\n\t\tmasquerade\n\t}\n}\n";
        assert!(!translates_for_others(ours));
        let docker = "table ip nat {\n\tchain POSTROUTING {\n\t\tcounter masquerade\n\t}\n}\n";
        assert!(translates_for_others(&format!("{ours}{docker}")));
        assert!(translates_for_others(&format!("{docker}{ours}")));
        assert!(!translates_for_others(
            "table inet filter {\n\tchain input {\n\t}\n}\n"
        ));
    }
}
