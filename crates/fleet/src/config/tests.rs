use super::*;
use crate::inventory::Role;

const GOOD: &str = r#"
[policy]
debounce = "3m"

[policy.tariff]
price_per_kwh = [0.31]

[[groups]]
name = "pool"
max = 2
capacity = { cpu = 64, memory = "256GiB" }
watts = { off = 5, idle = 120, peak = 300 }
labels = { zone = "a" }

[[machines]]
name = "m1"
group = "pool"
role = "base"

[[machines]]
name = "m2"
group = "pool"
boot = "2m30s"
power = { driver = "redfish", address = "https://10.0.0.7", user = "root", password = { file = "/run/p" } }
fallback = { driver = "wake-on-lan", mac = "00:11:22:33:44:55", off = ["ssh", "m2", "poweroff"] }
"#;

#[test]
fn a_file_becomes_an_inventory() {
    let file = parse(GOOD).unwrap();
    assert_eq!(file.policy.debounce, Span::minutes(3));
    let inventory = file.inventory(Moment(7));
    assert_eq!(inventory.machines().len(), 2);
    let two = inventory.machine(inventory.find("m2").unwrap());
    assert_eq!((two.role, two.power), (Role::Auto, Power::Off));
    assert_eq!(two.capacity, Amount::new(64_000, 256 << 30, 0, 110));
    assert_eq!(two.boot.median(), Span(150));
    assert_eq!(two.labels["zone"], "a");
    assert_eq!(file.machines[1].provider_id(), "atoll://m2");
}

#[test]
fn a_group_says_how_cluster_autoscaler_scales_it() {
    let lines =
        "max = 2\ncluster_autoscaler = true\noptions = { unneeded = \"5m\", utilization = 0.7 }";
    let file = parse(&GOOD.replacen("max = 2", lines, 1)).unwrap();
    let options = &file.groups[0].options;
    assert_eq!(options.unneeded, Some(Span::minutes(5)));
    assert_eq!((options.utilization, options.unready), (Some(0.7), None));
    assert_eq!(file.options().len(), 1);
    assert!(parse(GOOD).unwrap().options().is_empty());
}

/// The file with one line replaced has a mistake in that line, and the words say which.
fn check(line: &str, instead: &str, words: &str) {
    assert!(GOOD.contains(line), "{line}");
    let text = GOOD.replacen(line, instead, 1);
    let error = parse(&text).unwrap_err();
    let found = error.mistakes.iter().find(|one| one.cause.contains(words));
    let mistake = found.unwrap_or_else(|| panic!("`{words}` is missing in {error:?}"));
    assert!(!mistake.remedy.is_empty());
    let start = GOOD.find(line).unwrap();
    let first = GOOD[..start].matches('\n').count() + 1;
    let last = first + instead.matches('\n').count();
    assert!(
        (first..=last).contains(&mistake.line),
        "{mistake:?}, not {first}"
    );
    let problem = error.problem("fleet.toml");
    assert!(
        problem
            .cause
            .contains(&format!("fleet.toml:{}", mistake.line))
    );
}

#[test]
fn every_kind_of_mistake_has_its_line_and_its_remedy() {
    check(
        "debounce = \"3m\"",
        "debounce = \"soon\"",
        "not a length of time",
    );
    check("debounce = \"3m\"", "debounse = \"3m\"", "unknown field");
    check("debounce = \"3m\"", "late_chance = 2.0", "late_chance");
    check("debounce = \"3m\"", "kind = \"best\"", "unknown variant");
    check("debounce = \"3m\"", "clock = { wake_hour = 30 }", "clock");
    check(
        "debounce = \"3m\"",
        "threshold = { min_load = 0.9 }",
        "min_load",
    );
    check(
        "price_per_kwh = [0.31]",
        "price_per_kwh = [0.3, 0.2]",
        "2 figures",
    );
    check("max = 2", "max = 2\nmin = 3", "larger `min`");
    check("max = 2", "min = 3", "keeps 3 machines on, and has 2");
    let read = "max = 2\ncluster_autoscaler = true";
    check(
        "max = 2",
        "max = 2\noptions = { unneeded = \"5m\" }",
        "nobody reads",
    );
    check(
        "max = 2",
        &format!("{read}\noptions = {{ utilization = 50 }}"),
        "`utilization` is a share",
    );
    check(
        "max = 2",
        &format!("{read}\noptions = {{ uneeded = \"5m\" }}"),
        "unknown field",
    );
    check("cpu = 64,", "cpu = 0,", "carries nothing");
    check(
        "memory = \"256GiB\"",
        "memory = \"much\"",
        "is not an amount",
    );
    check("idle = 120", "idle = 3", "watts do not rise");
    check("name = \"m2\"", "name = \"m1\"", "two machines named `m1`");
    check("name = \"m2\"", "name = \"m 2\"", "is not a name");
    check("boot = \"2m30s\"", "boot = 0", "`boot` is nothing");
    check("https://10.0.0.7", "10.0.0.7", "begins with https://");
    check(
        "00:11:22:33:44:55",
        "00:11:22:33:44",
        "not a card's address",
    );
    let also = "off = [\"ssh\", \"m2\", \"poweroff\"], suspend = [\"s\"]";
    let off = "off = [\"ssh\", \"m2\", \"poweroff\"]";
    check(off, also, "whether `m2` was suspended or crashed");
    check(off, also, "only the first way to switch `m2`");
    let power = "power = { driver = \"redfish\", address = \"https://10.0.0.7\", user = \"root\", password = { file = \"/run/p\" } }";
    let command = "power = { driver = \"command\", on = [\"a\"], off = [\"b\"], status = [\"c\"], suspend = [\"d\"] }";
    check(power, command, "draws while it is suspended");
    check(
        "off = [\"ssh\", \"m2\", \"poweroff\"]",
        "off = []",
        "command is empty",
    );
    check(
        "[policy]",
        "wakes_per_second = 0\n[policy]",
        "wakes_per_second",
    );
    check("user = \"root\", ", "", "missing field `user`");
    check(
        "user = \"root\", ",
        "user = \"root\", timeout = \"1m\", ",
        "longer than 10 s",
    );
    check("max = 2", "max = ", "");
}

#[test]
fn a_machine_names_a_group_that_there_is() {
    let text = GOOD.replace("group = \"pool\"\nboot", "group = \"pond\"\nboot");
    let error = parse(&text).unwrap_err();
    assert!(error.mistakes[0].cause.contains("`pond`"), "{error:?}");
}

#[test]
fn an_auto_machine_says_how_it_is_switched() {
    let text = GOOD.replace("role = \"base\"", "");
    let error = parse(&text).unwrap_err();
    assert!(error.mistakes[0].cause.contains("how `m1` is switched"));
}

#[test]
fn two_machines_are_never_switched_by_one_address() {
    for mac in ["00:11:22:33:44:55", "00-11-22-33-44-55"] {
        let power =
            format!("power = {{ driver = \"wake-on-lan\", mac = \"{mac}\", off = [\"x\"] }}");
        let text = GOOD.replace("role = \"base\"", &power);
        let error = parse(&text).unwrap_err();
        assert!(
            error.mistakes[0].cause.contains("by the same mac"),
            "{error:?}"
        );
    }
}

#[test]
fn a_secret_in_the_file_is_refused_and_not_repeated() {
    for secret in ["\"hunter2\"", "4711", "{ text = \"hunter2\" }"] {
        let text = GOOD.replace("{ file = \"/run/p\" }", secret);
        let error = parse(&text).unwrap_err();
        let said = format!("{error:?} {}", error.problem("f"));
        assert!(said.contains("not written into this file"), "{said}");
        assert!(
            !said.contains("hunter2") && !said.contains("4711"),
            "{said}"
        );
    }
}

#[test]
fn the_schema_knows_the_fields() {
    let schema = schema();
    assert!(schema["properties"]["machines"].is_object());
    let text = schema.to_string();
    for word in [
        "certificate_sha256",
        "reserve_quantile",
        "wake-on-lan",
        "provider_id",
    ] {
        assert!(text.contains(word), "{word}");
    }
}
