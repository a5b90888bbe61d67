//! What a file may not say, although it is well written.

use super::{
    Mistake,
    file::{File, GroupEntry, MachineEntry, PowerEntry, Traits},
    place::{Step, line},
};
use crate::{
    externalgrpc::GroupOptions,
    inventory::{Role, Watts},
    tariff::Curve,
};
use std::collections::{HashMap, HashSet};

const MOST_MACHINES: usize = 20_000;
const MOST_GROUPS: usize = 2_000;
/// As Kubernetes bounds the names of nodes.
const LONGEST_NAME: usize = 253;

struct Findings<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
}

impl Findings<'_> {
    fn add(&mut self, steps: &[Step<'_>], cause: impl Into<String>, remedy: impl Into<String>) {
        self.mistakes.push(Mistake {
            line: line(self.text, steps),
            cause: cause.into(),
            remedy: remedy.into(),
        });
    }
}

/// Every mistake, in the order of lines.
pub(super) fn check(text: &str, file: &File) -> Vec<Mistake> {
    let mut findings = Findings {
        text,
        mistakes: Vec::new(),
    };
    if file.machines.len() > MOST_MACHINES || file.groups.len() > MOST_GROUPS {
        findings.add(
            &[Step::Key("machines")],
            format!("there are more than {MOST_MACHINES} machines or {MOST_GROUPS} groups"),
            "split the fleet",
        );
        return findings.mistakes;
    }
    check_policy(&mut findings, file);
    let mut groups: HashMap<&str, &GroupEntry> = HashMap::new();
    for (at, group) in file.groups.iter().enumerate() {
        let here = [Step::Key("groups"), Step::At(at)];
        check_name(&mut findings, &here, &group.name);
        if groups.insert(&group.name, group).is_some() {
            let at = [here[0], here[1], Step::Key("name")];
            findings.add(
                &at,
                format!("there are two groups named `{}`", group.name),
                "give each its own name",
            );
        }
        check_group(&mut findings, &here, file, group);
        check_traits(&mut findings, &here, &group.traits());
    }
    let mut known = Known::default();
    for (at, machine) in file.machines.iter().enumerate() {
        let here = [Step::Key("machines"), Step::At(at)];
        check_machine(&mut findings, &here, machine, &groups, &mut known);
    }
    findings.mistakes.sort_by_key(|one| one.line);
    findings.mistakes
}

fn check_policy(findings: &mut Findings<'_>, file: &File) {
    let policy = &file.policy;
    let shares = [
        ("reserve_quantile", policy.reserve_quantile, 1.0),
        ("reserve_share", policy.reserve_share, 10.0),
        ("reserve_most", policy.reserve_most, 10.0),
        ("late_chance", policy.late_chance, 1.0),
        ("move_watt_hours", policy.move_watt_hours, 1e6),
        ("wear_watt_hours", policy.wear_watt_hours, 1e6),
    ];
    for (name, value, most) in shares {
        if !(0.0..=most).contains(&value) {
            findings.add(
                &[Step::Key("policy"), Step::Key(name)],
                format!("`{name}` is {value}"),
                format!("write a number from 0 to {most}"),
            );
        }
    }
    let threshold = &policy.threshold;
    if !(0.0..=1.0).contains(&threshold.min_load)
        || !(0.0..=1.0).contains(&threshold.max_load)
        || threshold.min_load >= threshold.max_load
    {
        findings.add(
            &[Step::Key("policy"), Step::Key("threshold")],
            "`min_load` is not below `max_load`, or one of them is not between 0 and 1",
            "write shares such as 0.18 and 0.70",
        );
    }
    let clock = &policy.clock;
    if clock.wake_hour >= clock.sleep_hour
        || clock.sleep_hour > 24
        || !(0.0..=1.0).contains(&clock.night_share)
    {
        findings.add(
            &[Step::Key("policy"), Step::Key("clock")],
            "the clock does not wake before it sleeps, or its share is not between 0 and 1",
            "write hours such as 8 and 20, and a share such as 0.5",
        );
    }
    let curves = [
        ("price_per_kwh", &policy.tariff.price_per_kwh),
        ("carbon_grams_per_kwh", &policy.tariff.carbon_grams_per_kwh),
    ];
    for (name, Curve(figures)) in curves {
        let bad = |value: &f64| !value.is_finite() || *value < 0.0;
        if ![1, 24].contains(&figures.len()) || figures.iter().any(bad) {
            findings.add(
                &[Step::Key("policy"), Step::Key("tariff"), Step::Key(name)],
                format!(
                    "`{name}` has {} figures, or one that is below 0",
                    figures.len()
                ),
                "write one figure, or one for each of the 24 hours of the day",
            );
        }
    }
    if !(0.001..=1000.0).contains(&file.wakes_per_second) {
        findings.add(
            &[Step::Key("wakes_per_second")],
            format!("`wakes_per_second` is {}", file.wakes_per_second),
            "write a number from 0.001 to 1000",
        );
    }
}

fn check_name(findings: &mut Findings<'_>, here: &[Step<'_>], name: &str) {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(fine) {
        let mut at = here.to_vec();
        at.push(Step::Key("name"));
        findings.add(
            &at,
            format!("`{}` is not a name", name.escape_debug()),
            format!("write letters, digits, `-`, `.` and `_`, at most {LONGEST_NAME}"),
        );
    }
}

fn check_group(findings: &mut Findings<'_>, here: &[Step<'_>], file: &File, group: &GroupEntry) {
    let mut at = here.to_vec();
    at.push(Step::Key("min"));
    if group.max.is_some_and(|max| group.min > max) {
        findings.add(
            &at,
            format!("group `{}` has a larger `min` than `max`", group.name),
            "lower `min` or raise `max`",
        );
    }
    let machines = file.machines.iter();
    let count = machines.filter(|one| one.group == group.name).count();
    if group.min as usize > count {
        findings.add(
            &at,
            format!(
                "group `{}` keeps {} machines on, and has {count}",
                group.name, group.min
            ),
            "lower `min` or add machines",
        );
    }
    check_options(findings, here, group);
}

fn check_options(findings: &mut Findings<'_>, here: &[Step<'_>], group: &GroupEntry) {
    let options = &group.options;
    let at = [here, &[Step::Key("options")]].concat();
    if *options != GroupOptions::default() && !group.cluster_autoscaler {
        findings.add(
            &at,
            format!("nobody reads the options of group `{}`", group.name),
            "they are Cluster Autoscaler's: write `cluster_autoscaler = true`, or leave them out",
        );
    }
    for (name, share) in [
        ("utilization", options.utilization),
        ("gpu_utilization", options.gpu_utilization),
    ] {
        if share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            let at = [at.as_slice(), &[Step::Key(name)]].concat();
            findings.add(
                &at,
                format!("`{name}` is a share"),
                "write a number from 0 to 1",
            );
        }
    }
}

fn check_traits(findings: &mut Findings<'_>, here: &[Step<'_>], traits: &Traits) {
    let below = |key| [here, &[Step::Key(key)]].concat();
    if let Some(capacity) = traits.capacity
        && (!capacity.cpu.is_finite()
            || capacity.cpu <= 0.0
            || capacity.cpu > 1e6
            || capacity.memory.0.0 == 0
            || capacity.places == 0)
    {
        findings.add(
            &below("capacity"),
            "a machine without processors, memory or places carries nothing",
            "write what it has, such as { cpu = 64, memory = \"256GiB\" }",
        );
    }
    if let Some(watts) = traits.watts
        && !in_order(&watts)
    {
        findings.add(
            &below("watts"),
            "watts do not rise from `off` over `suspended` and `idle` to `peak`",
            "write what was measured, such as { off = 5, idle = 120, peak = 300 }",
        );
    }
    for (key, span) in [
        ("boot", traits.boot),
        ("resume", traits.resume),
        ("shutdown", traits.shutdown),
    ] {
        if span.is_some_and(|span| span.0 == 0 || span.0 > 86_400) {
            findings.add(
                &below(key),
                format!("`{key}` is nothing, or longer than a day"),
                "write a length of time such as \"5m\"",
            );
        }
    }
}

fn in_order(watts: &Watts) -> bool {
    let suspended = watts.suspended.unwrap_or(watts.off);
    let steps = [0.0, watts.off, suspended, watts.idle, watts.peak, 1e6];
    steps.windows(2).all(|pair| pair[0] <= pair[1])
}

/// What no two machines may share.
#[derive(Default)]
struct Known<'a> {
    names: HashSet<&'a str>,
    provider_ids: HashSet<String>,
    addresses: HashMap<String, &'a str>,
}

fn check_machine<'a>(
    findings: &mut Findings<'_>,
    here: &[Step<'_>],
    machine: &'a MachineEntry,
    groups: &HashMap<&str, &GroupEntry>,
    known: &mut Known<'a>,
) {
    let below = |key| [here, &[Step::Key(key)]].concat();
    check_name(findings, here, &machine.name);
    if !known.names.insert(&machine.name) {
        findings.add(
            &below("name"),
            format!("there are two machines named `{}`", machine.name),
            "give each its own name",
        );
    } else if !known.provider_ids.insert(machine.provider_id()) {
        findings.add(
            &below("provider_id"),
            format!(
                "another machine has the same provider id as `{}`",
                machine.name
            ),
            "give each its own",
        );
    }
    let group = groups.get(machine.group.as_str());
    if group.is_none() {
        findings.add(
            &below("group"),
            format!("there is no group `{}`", machine.group),
            "add it under [[groups]], or correct the name",
        );
    }
    let inherited = group.is_some_and(|group| group.capacity.is_some());
    if group.is_some() && machine.capacity.is_none() && !inherited {
        findings.add(
            here,
            format!("nothing says what `{}` has for workloads", machine.name),
            "write `capacity` for it or for its group",
        );
    }
    check_traits(findings, here, &machine.traits());
    if machine.role == Role::Auto && machine.power.is_none() {
        findings.add(
            here,
            format!("nothing says how `{}` is switched", machine.name),
            "add `power`, or write role = \"base\"",
        );
    }
    let suspends = matches!(
        &machine.power,
        Some(
            PowerEntry::WakeOnLan {
                suspend: Some(_),
                ..
            } | PowerEntry::Command {
                suspend: Some(_),
                ..
            }
        )
    );
    let watts = machine.watts.or(group.and_then(|group| group.watts));
    if suspends && watts.is_none_or(|watts| watts.suspended.is_none()) {
        findings.add(
            &[here, &[Step::Key("power"), Step::Key("suspend")]].concat(),
            format!("nothing says what `{}` draws while it is suspended", machine.name),
            "write `watts` with `suspended`, such as { off = 5, suspended = 9, idle = 120, peak = 300 }",
        );
    }
    for (key, power) in [("power", &machine.power), ("fallback", &machine.fallback)] {
        if let Some(power) = power {
            check_power(findings, &below(key), machine, power, known);
        }
    }
}

fn check_power<'a>(
    findings: &mut Findings<'_>,
    here: &[Step<'_>],
    machine: &'a MachineEntry,
    power: &'a PowerEntry,
    known: &mut Known<'a>,
) {
    let below = |key| [here, &[Step::Key(key)]].concat();
    let (key, address) = match power {
        PowerEntry::Redfish {
            address,
            system,
            certificate_sha256,
            timeout,
            ..
        } => {
            if timeout.is_some_and(|span| !(1..=10).contains(&span.0)) {
                findings.add(
                    &below("timeout"),
                    "`timeout` is nothing, or longer than 10 s",
                    "write a length of time such as \"5s\"",
                );
            }
            if !(address.starts_with("https://") || address.starts_with("http://")) {
                findings.add(
                    &below("address"),
                    "a Redfish address begins with https://",
                    "write it such as \"https://10.0.0.7\"",
                );
            }
            let hexadecimal = |text: &String| {
                let digits: String = text.chars().filter(|c| *c != ':').collect();
                digits.len() == 64 && digits.chars().all(|c| c.is_ascii_hexdigit())
            };
            if certificate_sha256
                .as_ref()
                .is_some_and(|text| !hexadecimal(text))
            {
                findings.add(
                    &below("certificate_sha256"),
                    "a SHA-256 has 64 hexadecimal digits",
                    "write what `openssl x509 -noout -fingerprint -sha256` prints",
                );
            }
            let system = system.as_deref().unwrap_or_default();
            let address = address.trim_end_matches('/').to_ascii_lowercase();
            let system = system.trim_end_matches('/');
            ("address", format!("redfish {address} {system}"))
        }
        PowerEntry::Ipmi { address, port, .. } => {
            ("address", format!("ipmi {address} {}", port.unwrap_or(623)))
        }
        PowerEntry::WakeOnLan {
            mac, off, suspend, ..
        } => {
            if parse_mac(mac).is_none() {
                findings.add(
                    &below("mac"),
                    format!("`{}` is not a card's address", mac.escape_debug()),
                    "write six bytes such as 00:11:22:33:44:55",
                );
            }
            check_command(findings, &below("off"), off);
            check_suspension(findings, &below("suspend"), suspend.as_deref(), machine);
            let tells = machine
                .node
                .as_ref()
                .is_some_and(|node| node.boot_id.is_some());
            if suspend.is_some() && !tells {
                findings.add(
                    &below("suspend"),
                    format!("nobody could tell whether `{}` was suspended or crashed", machine.name),
                    "add `boot_id` to its `node`: a command that prints which boot its system is in",
                );
            }
            // However it is written: `-` or `:`, small letters or not.
            let bytes = parse_mac(mac).map(|bytes| format!("{bytes:02x?}"));
            (
                "mac",
                format!("mac {}", bytes.unwrap_or_else(|| mac.clone())),
            )
        }
        PowerEntry::Command {
            on,
            off,
            status,
            suspend,
            ..
        } => {
            check_suspension(findings, &below("suspend"), suspend.as_deref(), machine);
            for (key, command) in [("on", on), ("off", off), ("status", status)] {
                check_command(findings, &below(key), command);
            }
            return;
        }
    };
    if let Some(other) = known.addresses.insert(address, &machine.name)
        && other != machine.name
    {
        findings.add(
            &below(key),
            format!(
                "`{}` and `{other}` would be switched by the same {key}",
                machine.name
            ),
            "give each machine its own; otherwise one would be switched off in the other's place",
        );
    }
}

fn check_suspension(
    findings: &mut Findings<'_>,
    here: &[Step<'_>],
    suspend: Option<&[String]>,
    machine: &MachineEntry,
) {
    let Some(command) = suspend else { return };
    check_command(findings, here, command);
    if machine.fallback.as_ref().is_some_and(|other| {
        matches!(
            other,
            PowerEntry::WakeOnLan {
                suspend: Some(_),
                ..
            } | PowerEntry::Command {
                suspend: Some(_),
                ..
            }
        )
    }) {
        findings.add(
            here,
            format!(
                "only the first way to switch `{}` suspends it",
                machine.name
            ),
            "leave `suspend` out of its `fallback`, or make that its `power`",
        );
    }
}

fn check_command(findings: &mut Findings<'_>, here: &[Step<'_>], command: &[String]) {
    if command.first().is_none_or(String::is_empty) {
        findings.add(
            here,
            "the command is empty",
            "write the program and its arguments as a list",
        );
    }
}

/// The six bytes of a network card's address, separated by `:` or `-`.
pub(crate) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}
