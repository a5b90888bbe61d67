//! Firecracker's published API, as data, and what it refuses.
//!
//! After `src/firecracker/swagger/firecracker.yaml` and `docs/snapshotting/snapshot-support.md` of
//! its releases. Only calls that the driver could make are here; all others are refused.

use serde_json::{Map, Value};

/// A version: major, minor.
pub type Version = (u32, u32);

/// What a field holds.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Text,
    Number,
    Flag,
    OneOf(&'static [&'static str]),
    Object(&'static [Field]),
    List(&'static [Field]),
    Texts,
}

/// A field of a body.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
    /// The version that brought it.
    pub since: Version,
}

const fn field(name: &'static str, kind: Kind, required: bool) -> Field {
    Field {
        name,
        kind,
        required,
        since: (1, 0),
    }
}

const fn since(name: &'static str, kind: Kind, since: Version) -> Field {
    Field {
        name,
        kind,
        required: false,
        since,
    }
}

/// When a call is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Always,
    /// Before the machine starts.
    NotStarted,
    /// Before anything but logger and metrics is configured.
    NothingConfigured,
    /// Once it runs, or stands still.
    Started,
    /// While it stands still.
    Paused,
}

/// A call.
#[derive(Debug)]
pub struct Call {
    pub method: &'static str,
    /// `{}` stands for the id that the body names in the field of `id`.
    pub path: &'static str,
    pub id: Option<&'static str>,
    pub body: &'static [Field],
    pub when: When,
}

const fn get(path: &'static str) -> Call {
    Call {
        method: "GET",
        path,
        id: None,
        body: &[],
        when: When::Always,
    }
}

const fn call(
    method: &'static str,
    path: &'static str,
    body: &'static [Field],
    when: When,
) -> Call {
    Call {
        method,
        path,
        id: None,
        body,
        when,
    }
}

const RATE_LIMITER: Kind = Kind::Object(&[
    field("bandwidth", Kind::Object(BUCKET), false),
    field("ops", Kind::Object(BUCKET), false),
]);
const BUCKET: &[Field] = &[
    field("size", Kind::Number, true),
    field("refill_time", Kind::Number, true),
    field("one_time_burst", Kind::Number, false),
];
const HUGE_PAGES: Kind = Kind::OneOf(&["None", "2M", "Transparent"]);

/// A body that may be any object.
const ANYTHING: &[Field] = &[field("*", Kind::Text, false)];

/// The calls.
pub const CALLS: &[Call] = &[
    get("/"),
    get("/version"),
    get("/balloon/statistics"),
    call(
        "PUT",
        "/boot-source",
        &[
            field("kernel_image_path", Kind::Text, true),
            field("initrd_path", Kind::Text, false),
            field("boot_args", Kind::Text, false),
        ],
        When::NotStarted,
    ),
    call(
        "PUT",
        "/machine-config",
        &[
            field("vcpu_count", Kind::Number, true),
            field("mem_size_mib", Kind::Number, true),
            field("smt", Kind::Flag, false),
            field(
                "cpu_template",
                Kind::OneOf(&["C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"]),
                false,
            ),
            field("track_dirty_pages", Kind::Flag, false),
            field("huge_pages", HUGE_PAGES, false),
        ],
        When::NotStarted,
    ),
    Call {
        method: "PUT",
        path: "/drives/{}",
        id: Some("drive_id"),
        body: &[
            field("drive_id", Kind::Text, true),
            field("is_root_device", Kind::Flag, true),
            field("path_on_host", Kind::Text, false),
            field("is_read_only", Kind::Flag, false),
            field("partuuid", Kind::Text, false),
            field("cache_type", Kind::OneOf(&["Unsafe", "Writeback"]), false),
            field("io_engine", Kind::OneOf(&["Sync", "Async"]), false),
            field("rate_limiter", RATE_LIMITER, false),
            field("socket", Kind::Text, false),
        ],
        when: When::NotStarted,
    },
    Call {
        method: "PUT",
        path: "/network-interfaces/{}",
        id: Some("iface_id"),
        body: &[
            field("iface_id", Kind::Text, true),
            field("host_dev_name", Kind::Text, true),
            field("guest_mac", Kind::Text, false),
            field("mtu", Kind::Number, false),
            field("rx_rate_limiter", RATE_LIMITER, false),
            field("tx_rate_limiter", RATE_LIMITER, false),
        ],
        when: When::NotStarted,
    },
    call(
        "PUT",
        "/balloon",
        &[
            field("amount_mib", Kind::Number, true),
            field("deflate_on_oom", Kind::Flag, true),
            field("stats_polling_interval_s", Kind::Number, false),
            since("free_page_hinting", Kind::Flag, (1, 14)),
            since("free_page_reporting", Kind::Flag, (1, 14)),
        ],
        When::NotStarted,
    ),
    call(
        "PUT",
        "/entropy",
        &[field("rate_limiter", RATE_LIMITER, false)],
        When::NotStarted,
    ),
    call(
        "PUT",
        "/logger",
        &[
            field("log_path", Kind::Text, false),
            field(
                "level",
                Kind::OneOf(&["Error", "Warning", "Info", "Debug", "Trace", "Off"]),
                false,
            ),
            field("show_level", Kind::Flag, false),
            field("show_log_origin", Kind::Flag, false),
        ],
        When::NotStarted,
    ),
    call(
        "PUT",
        "/mmds/config",
        &[
            field("network_interfaces", Kind::Texts, true),
            field("version", Kind::OneOf(&["V1", "V2"]), false),
            field("ipv4_address", Kind::Text, false),
        ],
        When::NotStarted,
    ),
    call("PUT", "/mmds", ANYTHING, When::Always),
    call(
        "PUT",
        "/actions",
        &[field(
            "action_type",
            Kind::OneOf(&["InstanceStart", "FlushMetrics", "SendCtrlAltDel"]),
            true,
        )],
        When::Always,
    ),
    call(
        "PATCH",
        "/vm",
        &[field("state", Kind::OneOf(&["Paused", "Resumed"]), true)],
        When::Started,
    ),
    call(
        "PUT",
        "/snapshot/create",
        &[
            field("snapshot_path", Kind::Text, true),
            field("mem_file_path", Kind::Text, true),
            field("snapshot_type", Kind::OneOf(&["Full", "Diff"]), false),
        ],
        When::Paused,
    ),
    call(
        "PUT",
        "/snapshot/load",
        &[
            field("snapshot_path", Kind::Text, true),
            field(
                "mem_backend",
                Kind::Object(&[
                    field("backend_type", Kind::OneOf(&["File", "Uffd"]), true),
                    field("backend_path", Kind::Text, true),
                ]),
                false,
            ),
            field("mem_file_path", Kind::Text, false),
            field("enable_diff_snapshots", Kind::Flag, false),
            since("track_dirty_pages", Kind::Flag, (1, 13)),
            field("resume_vm", Kind::Flag, false),
            since("clock_realtime", Kind::Flag, (1, 16)),
            since(
                "network_overrides",
                Kind::List(&[
                    field("iface_id", Kind::Text, true),
                    field("host_dev_name", Kind::Text, true),
                ]),
                (1, 12),
            ),
        ],
        When::NothingConfigured,
    ),
];

/// What a machine's life has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    NotStarted,
    Running,
    Paused,
}

impl State {
    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotStarted => "Not started",
            Self::Running => "Running",
            Self::Paused => "Paused",
        }
    }
}

/// Refuses a request that the description does not allow.
pub fn check(
    (method, path, body): (&str, &str, Option<&Value>),
    state: State,
    configured: bool,
    version: Version,
) -> Result<&'static Call, String> {
    let found = CALLS
        .iter()
        .find(|call| call.method == method && matches(call.path, path))
        .ok_or_else(|| format!("Invalid request method and/or path: {method} {path}."))?;
    let allowed = match found.when {
        When::Always => true,
        When::NotStarted => state == State::NotStarted,
        When::NothingConfigured => state == State::NotStarted && !configured,
        When::Started => state != State::NotStarted,
        When::Paused => state == State::Paused,
    };
    if !allowed {
        return Err(match (found.when, state) {
            (When::NothingConfigured, State::NotStarted) => {
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring \
                 boot-specific resources."
                    .into()
            }
            (When::NotStarted | When::NothingConfigured, _) => {
                "The requested operation is not supported after starting the microVM.".into()
            }
            (When::Paused, State::Running) => "The microVM must be paused first.".to_owned(),
            _ => "The requested operation is not supported before starting the microVM.".into(),
        });
    }
    match (body, found.body.is_empty()) {
        (None, true) => {}
        (Some(_), true) => return Err("GET request cannot have a body.".into()),
        (None, false) => return Err("Empty request.".into()),
        (Some(body), false) => check_object(body, found.body, version)?,
    }
    if let (Some(id), Some(body)) = (found.id, body) {
        let last = path.rsplit('/').next();
        if body.get(id).and_then(Value::as_str) != last {
            return Err("The id from the path does not match the id from the body!".into());
        }
    }
    if found.path == "/snapshot/load"
        && let Some(body) = body
        && body.get("mem_backend").is_some() == body.get("mem_file_path").is_some()
    {
        return Err("Either mem_backend or mem_file_path must be given, and not both".into());
    }
    Ok(found)
}

fn matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix("{}") {
        Some(before) => path
            .strip_prefix(before)
            .is_some_and(|id| !id.is_empty() && !id.contains('/')),
        None => pattern == path,
    }
}

fn check_object(value: &Value, fields: &[Field], version: Version) -> Result<(), String> {
    let invalid = |what: String| format!("An error occurred when deserializing the json: {what}");
    let empty = Map::new();
    let object = match value {
        Value::Object(object) => object,
        Value::Null => &empty,
        other => return Err(invalid(format!("{other} is no object"))),
    };
    for (name, value) in object {
        if fields.iter().any(|field| field.name == "*") {
            continue;
        }
        let field = fields
            .iter()
            .find(|field| field.name == name && field.since <= version)
            .ok_or_else(|| invalid(format!("unknown field `{name}`")))?;
        let fits = match field.kind {
            Kind::Text => value.is_string(),
            Kind::Number => value.is_u64(),
            Kind::Flag => value.is_boolean(),
            Kind::OneOf(choices) => value.as_str().is_some_and(|text| choices.contains(&text)),
            Kind::Texts => value
                .as_array()
                .is_some_and(|all| all.iter().all(Value::is_string)),
            Kind::Object(fields) => {
                check_object(value, fields, version)?;
                true
            }
            Kind::List(fields) => {
                let all = value
                    .as_array()
                    .ok_or_else(|| invalid(format!("`{name}` is no list")))?;
                for each in all {
                    check_object(each, fields, version)?;
                }
                true
            }
        };
        if !fits {
            return Err(invalid(format!("`{name}` cannot be {value}")));
        }
    }
    missing(object, fields).map_or(Ok(()), |name| {
        Err(invalid(format!("missing field `{name}`")))
    })
}

fn missing(object: &Map<String, Value>, fields: &[Field]) -> Option<&'static str> {
    fields
        .iter()
        .find(|field| field.required && !object.contains_key(field.name))
        .map(|field| field.name)
}
