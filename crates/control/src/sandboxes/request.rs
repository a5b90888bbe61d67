//! What a caller asks for when he creates a sandbox: checked, and refused where it cannot be had.

use crate::{
    error::{invalid, shorten},
    names::Reference,
};
use api::{
    Bytes, ErrorCode, Problem, Resources,
    node::{NetworkPolicy, OnTimeout},
    rest::{
        DEFAULT_TIMEOUT_V1, DEFAULT_TIMEOUT_V2,
        network::{EgressConfig, NetworkConfig},
        sandbox::{NewMeshIdentity, NewSandbox},
    },
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

/// The most labels, and the most variables, of a sandbox.
const MAX_PAIRS: usize = 256;

/// The longest name of a label or variable, in bytes.
const MAX_NAME: usize = 256;

/// The longest value, in bytes.
const MAX_VALUE: usize = 64 << 10;

/// The least memory that a sandbox may ask for, as for templates.
const LEAST_MEMORY: Bytes = Bytes::mebibytes(32);

/// Everything that leaves.
const EVERYTHING: &str = "0.0.0.0/0";

/// Which path a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// `/sandboxes`.
    V1,
    /// `/v2/sandboxes`.
    V2,
}

/// A request that can be carried out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) template: Reference,
    pub(crate) timeout: Duration,
    pub(crate) secure: bool,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) on_timeout: OnTimeout,
    /// Whether memory is kept then.
    pub(crate) pause_memory: bool,
    /// Whether traffic wakes it when it is paused.
    pub(crate) auto_resume: bool,
    pub(crate) network: NetworkPolicy,
    /// The template's if absent.
    pub(crate) vcpus: Option<u32>,
    /// The template's if absent.
    pub(crate) memory: Option<Bytes>,
    /// The template's if absent.
    pub(crate) mesh: Option<NewMeshIdentity>,
}

impl Wanted {
    /// What the sandbox may use: what was asked for where it was, else what the template says.
    pub(crate) fn resources(
        &self,
        template: &Resources,
        most: &Resources,
    ) -> Result<Resources, Problem> {
        let vcpus = self.vcpus.unwrap_or(template.vcpus);
        let memory = self.memory.unwrap_or(template.memory);
        if self.vcpus.is_some() && !(1..=most.vcpus).contains(&vcpus) {
            let most = most.vcpus;
            return Err(invalid(format!(
                "cpuCount is {vcpus}: expected 1 to {most}"
            )));
        }
        if self.memory.is_some() && !(LEAST_MEMORY..=most.memory).contains(&memory) {
            return Err(invalid(format!(
                "memoryMB is {}: expected {} to {}",
                memory.as_mebibytes(),
                LEAST_MEMORY.as_mebibytes(),
                most.memory.as_mebibytes()
            )));
        }
        Ok(Resources {
            vcpus,
            memory,
            disk: template.disk,
        })
    }
}

/// Checks a request.
pub(crate) fn check(
    request: NewSandbox,
    family: Family,
    timeout_max: Duration,
) -> Result<Wanted, Problem> {
    let default = match family {
        Family::V1 => DEFAULT_TIMEOUT_V1,
        Family::V2 => DEFAULT_TIMEOUT_V2,
    };
    let timeout = request.timeout.unwrap_or(default);
    if timeout <= 0 {
        return Err(invalid("Timeout must be greater than 0"));
    }
    let timeout = check_timeout(timeout, timeout_max)?;
    let template = Reference::parse(&request.template_id)?;
    let metadata = request.metadata.unwrap_or_default();
    check_pairs("metadata", &metadata)?;
    let environment = request.env_vars.unwrap_or_default();
    check_environment(&environment)?;

    let auto_pause = request.auto_pause.unwrap_or(false);
    let auto_resume = request
        .auto_resume
        .as_ref()
        .is_some_and(|resume| resume.enabled);
    if request.auto_pause_memory == Some(false) {
        if !auto_pause {
            return Err(invalid(
                "autoPauseMemory can only be false when autoPause is true",
            ));
        }
        if auto_resume {
            return Err(invalid(
                "autoPauseMemory cannot be false when autoResume is enabled",
            ));
        }
    }
    let network = check_network(
        request.network.unwrap_or_default(),
        request.allow_internet_access.unwrap_or(true),
    )?;

    if auto_resume && !auto_pause {
        return Err(invalid(
            "autoResume can only be enabled when autoPause is true",
        ));
    }
    let unsupported = |what: &str| {
        Problem::new(
            ErrorCode::Unsupported,
            format!("{what} are not supported"),
            format!("create the sandbox without `{}`", what_field(what)),
        )
    };
    if request
        .mcp
        .as_ref()
        .is_some_and(|mcp| !mcp.is_null() && !is_empty(mcp))
    {
        return Err(unsupported("MCP servers"));
    }
    if request
        .iam
        .as_ref()
        .is_some_and(|iam| !iam.is_null() && !is_empty(iam))
    {
        return Err(unsupported("Workload identities"));
    }
    if request
        .volume_mounts
        .as_ref()
        .is_some_and(|mounts| !mounts.is_empty())
    {
        return Err(unsupported("Volumes"));
    }
    Ok(Wanted {
        template,
        timeout,
        secure: family == Family::V2 || request.secure == Some(true),
        metadata,
        environment,
        on_timeout: if auto_pause {
            OnTimeout::Pause
        } else {
            OnTimeout::Kill
        },
        pause_memory: request.auto_pause_memory.unwrap_or(true),
        auto_resume,
        network,
        vcpus: request.cpu_count,
        memory: request
            .memory_mb
            .map(|count| Bytes(count.saturating_mul(1 << 20))),
        mesh: request.mesh,
    })
}

fn what_field(what: &str) -> &'static str {
    match what {
        "MCP servers" => "mcp",
        "Workload identities" => "iam",
        _ => "volumeMounts",
    }
}

/// Whether a JSON object asks for nothing: every value in it is null or asks for nothing.
fn is_empty(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null => true,
        serde_json::Value::Object(fields) => fields.values().all(is_empty),
        serde_json::Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Seconds that are not too many.
pub(crate) fn check_timeout(seconds: i64, most: Duration) -> Result<Duration, Problem> {
    let Ok(seconds) = u64::try_from(seconds) else {
        return Err(invalid("Timeout cannot be negative"));
    };
    let timeout = Duration::from_secs(seconds);
    if timeout > most {
        let hours = most.as_secs() / 3600;
        return Err(invalid(format!(
            "Timeout cannot be greater than {hours} hours"
        )));
    }
    Ok(timeout)
}

fn check_pairs(what: &str, pairs: &BTreeMap<String, String>) -> Result<(), Problem> {
    if pairs.len() > MAX_PAIRS {
        return Err(invalid(format!("{what} has more than {MAX_PAIRS} entries")));
    }
    for (name, value) in pairs {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(invalid(format!(
                "{what}: the name `{}` does not have 1 to {MAX_NAME} bytes",
                shorten(name)
            )));
        }
        if value.len() > MAX_VALUE {
            return Err(invalid(format!(
                "{what}: the value of `{}` has more than {MAX_VALUE} bytes",
                shorten(name)
            )));
        }
    }
    Ok(())
}

/// Refuses variables that no process can have.
pub(crate) fn check_environment(variables: &BTreeMap<String, String>) -> Result<(), Problem> {
    check_pairs("envVars", variables)?;
    for (name, value) in variables {
        if name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(format!(
                "envVars: `{}` holds a character that a variable cannot have",
                shorten(name)
            )));
        }
    }
    Ok(())
}

fn check_network(config: NetworkConfig, internet: bool) -> Result<NetworkPolicy, Problem> {
    let denied = check_egress(&config.egress)?;
    if config
        .https_ports
        .as_ref()
        .is_some_and(|ports| !ports.is_empty())
    {
        return Err(no_such_rule("httpsPorts"));
    }
    if let Some(host) = &config.mask_request_host {
        let plain = host.replace("${PORT}", "1");
        if plain.is_empty() || plain.len() > 255 || !plain.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(invalid("maskRequestHost is not a host name"));
        }
    }
    Ok(NetworkPolicy {
        internet: internet && !denied,
        allow_public_traffic: config.allow_public_traffic.unwrap_or(true),
        mask_request_host: config.mask_request_host,
    })
}

/// Checks egress rules. True if they deny everything; false if there are none; a problem if they
/// are wrong, or finer than what can be enforced.
pub(crate) fn check_egress(egress: &EgressConfig) -> Result<bool, Problem> {
    let deny = egress.deny_out.as_deref().unwrap_or_default();
    let allow = egress.allow_out.as_deref().unwrap_or_default();
    for rule in deny {
        if !is_address_range(rule) {
            return Err(invalid(format!(
                "denyOut takes IP addresses and CIDR ranges only, not `{}`",
                shorten(rule)
            )));
        }
    }
    let everything = deny.iter().any(|rule| rule == EVERYTHING);
    let names = allow.iter().any(|rule| !is_address_range(rule));
    if names && !everything {
        return Err(invalid(format!(
            "Host names in allowOut require `{EVERYTHING}` in denyOut"
        )));
    }
    let servers = egress.dns_servers.as_deref().unwrap_or_default();
    if servers.len() > 10 || servers.iter().any(|text| text.parse::<Ipv4Addr>().is_err()) {
        return Err(invalid("dnsServers takes at most 10 IPv4 addresses"));
    }
    let rules = egress.rules.as_ref().is_some_and(|rules| !rules.is_empty());
    for (name, used) in [
        ("allowOut", !allow.is_empty()),
        ("denyOut", !deny.is_empty() && !everything),
        ("dnsServers", !servers.is_empty()),
        (
            "egressProxy",
            egress
                .egress_proxy
                .as_ref()
                .is_some_and(|proxy| !proxy.is_null()),
        ),
        ("rules", rules),
    ] {
        if used {
            return Err(no_such_rule(name));
        }
    }
    Ok(everything)
}

fn no_such_rule(name: &str) -> Problem {
    Problem::new(
        ErrorCode::Unsupported,
        format!("The network setting `{name}` is not supported"),
        "use `allow_internet_access`: false cuts a sandbox off from everything, true lets it reach \
         public addresses and no private ones",
    )
}

fn is_address_range(text: &str) -> bool {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return false;
    };
    let most = if address.is_ipv4() { 32 } else { 128 };
    length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const DAY: Duration = Duration::from_secs(86_400);

    fn check_json(mut body: Value, family: Family) -> Result<Wanted, (u16, String)> {
        let fields = body.as_object_mut().unwrap();
        fields.entry("templateID").or_insert(json!("base"));
        let request: NewSandbox = serde_json::from_value(body).unwrap();
        check(request, family, DAY).map_err(|p| (p.code.status(), p.cause))
    }

    #[test]
    fn defaults_differ_by_family() {
        let v1 = check_json(json!({}), Family::V1).unwrap();
        let v2 = check_json(json!({}), Family::V2).unwrap();
        assert_eq!((v1.timeout.as_secs(), v1.secure), (15, false));
        assert_eq!((v2.timeout.as_secs(), v2.secure), (300, true));
        assert_eq!(v2.network, NetworkPolicy::default());
    }

    #[test]
    fn the_wrong_is_refused_in_the_clients_words() {
        let check = |body: Value, status: u16, text: &str| {
            let (code, cause) = check_json(body.clone(), Family::V2).unwrap_err();
            assert_eq!(code, status, "{body}: {cause}");
            assert!(cause.contains(text), "{body}: {cause}");
        };
        check(json!({"timeout": 0}), 400, "Timeout must be greater than 0");
        check(
            json!({"timeout": -5}),
            400,
            "Timeout must be greater than 0",
        );
        check(
            json!({"timeout": 86_401}),
            400,
            "Timeout cannot be greater than 24 hours",
        );
        check(json!({"autoPauseMemory": false}), 400, "autoPause is true");
        check(
            json!({"autoPause": true, "autoPauseMemory": false, "autoResume": {"enabled": true}}),
            400,
            "autoResume",
        );
        check(
            json!({"network": {"denyOut": ["example.com"]}}),
            400,
            "IP addresses and CIDR",
        );
        check(
            json!({"network": {"allowOut": ["example.com"]}}),
            400,
            "0.0.0.0/0",
        );
        check(json!({"network": {"dnsServers": ["dns"]}}), 400, "IPv4");
        check(json!({"envVars": {"A=B": "c"}}), 400, "envVars");
        check(json!({"templateID": ""}), 400, "template");
        check(
            json!({"autoResume": {"enabled": true}}),
            400,
            "autoPause is true",
        );
        check(
            json!({"network": {"allowOut": ["1.1.1.1"]}}),
            501,
            "allowOut",
        );
        check(
            json!({"network": {"denyOut": ["10.0.0.0/8"]}}),
            501,
            "denyOut",
        );
        check(json!({"network": {"rules": {"a.b": []}}}), 501, "rules");
        check(
            json!({"network": {"egressProxy": {"address": "x"}}}),
            501,
            "egressProxy",
        );
        check(json!({"network": {"httpsPorts": [443]}}), 501, "httpsPorts");
        check(json!({"mcp": {"github": {"token": "x"}}}), 501, "MCP");
        check(
            json!({"iam": {"tokens": {"a": {"audience": "b"}}}}),
            501,
            "identities",
        );
        check(
            json!({"volumeMounts": [{"name": "a", "path": "/a"}]}),
            501,
            "Volumes",
        );
    }

    #[test]
    fn what_asks_for_nothing_is_accepted() {
        let body = json!({
            "autoPause": false, "autoResume": {"enabled": false}, "mcp": null, "iam": {"tokens": {}},
            "volumeMounts": [], "network": {
                "allowOut": [], "denyOut": [], "egressProxy": null, "rules": {},
                "allowPublicTraffic": null,
            },
        });
        assert_eq!(
            check_json(body, Family::V2).unwrap().network,
            NetworkPolicy::default()
        );
    }

    #[test]
    fn denying_everything_is_no_internet() {
        for body in [
            json!({"allow_internet_access": false}),
            json!({"network": {"denyOut": ["0.0.0.0/0"]}}),
        ] {
            assert!(!check_json(body, Family::V2).unwrap().network.internet);
        }
    }
}
