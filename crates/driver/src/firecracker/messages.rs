//! What the API is told, as it names it.

use super::version::Version;
use crate::slot::machine::MAC;
use api::{Resources, boot::Identity};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where things are as Firecracker sees them. Paths of drives are part of a snapshot, so they are
/// the same in every jail.
pub(super) const KERNEL: &str = "/kernel";
pub(super) const INITRAMFS: &str = "/initramfs";
pub(super) const ROOT: &str = "/root.img";
pub(super) const LAYER: &str = "/layer.img";
/// What is loaded.
pub(super) const MEMORY: &str = "/memory";
pub(super) const DEVICES: &str = "/devices";
/// Where pages are asked for; in the root.
const PAGES: &str = "/pages.socket";
/// What is saved.
pub(super) const SAVED_MEMORY: &str = "/save/memory";
pub(super) const SAVED_DEVICES: &str = "/save/devices";

/// The interface's name, in the API and in snapshots.
const INTERFACE: &str = "net";

/// `PUT /boot-source`.
#[derive(Debug, Serialize)]
pub(super) struct BootSource {
    kernel_image_path: &'static str,
    initrd_path: &'static str,
    boot_args: String,
}

impl BootSource {
    pub(super) fn new(boot_args: String) -> Self {
        Self {
            kernel_image_path: KERNEL,
            initrd_path: INITRAMFS,
            boot_args,
        }
    }
}

/// `PUT /machine-config`.
#[derive(Debug, Serialize)]
pub(super) struct MachineConfig {
    vcpu_count: u32,
    mem_size_mib: u64,
    track_dirty_pages: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_template: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    huge_pages: Option<&'static str>,
}

impl MachineConfig {
    pub(super) fn new(resources: &Resources, cpu_template: Option<&str>, huge_pages: bool) -> Self {
        Self {
            vcpu_count: resources.vcpus.max(1),
            mem_size_mib: resources.memory.as_mebibytes().max(1),
            // What a machine that boots touches is saved whole.
            track_dirty_pages: false,
            cpu_template: cpu_template.map(str::to_owned),
            huge_pages: huge_pages.then_some("2M"),
        }
    }
}

/// `PUT /drives/{drive_id}`.
#[derive(Debug, Serialize)]
pub(super) struct Drive {
    pub(super) drive_id: &'static str,
    path_on_host: &'static str,
    is_root_device: bool,
    is_read_only: bool,
    cache_type: &'static str,
}

/// The machine's disks, in the order in which the guest sees them.
pub(super) const DRIVES: [Drive; 2] = [
    Drive {
        drive_id: "root",
        path_on_host: ROOT,
        is_root_device: false,
        is_read_only: true,
        cache_type: "Unsafe",
    },
    Drive {
        drive_id: "layer",
        path_on_host: LAYER,
        is_root_device: false,
        is_read_only: false,
        // A sandbox that runs while the host loses power is lost; what is saved is written through
        // when it is saved.
        cache_type: "Unsafe",
    },
];

/// `PUT /network-interfaces/{iface_id}`.
#[derive(Debug, Serialize)]
pub(super) struct Interface<'a> {
    pub(super) iface_id: &'static str,
    host_dev_name: &'a str,
    guest_mac: String,
}

impl<'a> Interface<'a> {
    pub(super) fn new(tap: &'a str) -> Self {
        Self {
            iface_id: INTERFACE,
            host_dev_name: tap,
            guest_mac: MAC.map(|byte| format!("{byte:02x}")).join(":"),
        }
    }
}

/// `PUT /balloon`: nothing is taken from the guest, but what it frees may be given back.
#[derive(Debug, Serialize)]
pub(super) struct Balloon {
    amount_mib: u32,
    deflate_on_oom: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats_polling_interval_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    free_page_reporting: Option<bool>,
}

impl Balloon {
    /// With `statistics`, the guest is asked for them that often. What is freed is told page by page,
    /// which does not give back `huge_pages`.
    pub(super) fn new(version: Version, statistics: Option<Duration>, huge_pages: bool) -> Self {
        let reports = version.reports_free_pages() && !huge_pages;
        Self {
            amount_mib: 0,
            deflate_on_oom: true,
            stats_polling_interval_s: statistics.map(|interval| interval.as_secs().max(1)),
            free_page_reporting: reports.then_some(true),
        }
    }
}

/// The answer to `GET /balloon/statistics`: what the guest says of its memory, in bytes. It may say
/// what it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct GuestMemory {
    /// All that it has.
    #[serde(rename = "total_memory")]
    pub total: Option<u64>,
    /// Not used for anything.
    #[serde(rename = "free_memory")]
    pub free: Option<u64>,
    /// Estimated to be there for new programs.
    #[serde(rename = "available_memory")]
    pub available: Option<u64>,
    /// Caches of files, which can be given back quickly.
    #[serde(rename = "disk_caches")]
    pub caches: Option<u64>,
}

/// `PUT /mmds/config`: the second version, which wants a token first, so that a program that can be
/// made to fetch an address does not get at it.
#[derive(Debug, Serialize)]
pub(super) struct MetadataConfig {
    network_interfaces: [&'static str; 1],
    version: &'static str,
}

impl MetadataConfig {
    pub(super) const ON: Self = Self {
        network_interfaces: [INTERFACE],
        version: "V2",
    };
}

/// `PUT /mmds`: who the sandbox is, and nothing secret.
#[derive(Debug, Serialize)]
pub(super) struct Metadata {
    #[serde(rename = "instanceID")]
    sandbox: String,
    #[serde(rename = "envID")]
    template: String,
}

impl Metadata {
    pub(super) fn new(identity: &Identity) -> Self {
        Self {
            sandbox: identity.sandbox.to_string(),
            template: identity.template.to_string(),
        }
    }
}

/// `PUT /entropy`: no limit on its rate.
#[derive(Debug, Serialize)]
pub(super) struct Entropy {}

/// `PUT /actions`.
#[derive(Debug, Serialize)]
pub(super) struct Action {
    action_type: &'static str,
}

impl Action {
    pub(super) const START: Self = Self {
        action_type: "InstanceStart",
    };
}

/// `PATCH /vm`.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    state: &'static str,
}

impl Change {
    pub(super) const PAUSE: Self = Self { state: "Paused" };
    pub(super) const RESUME: Self = Self { state: "Resumed" };
}

/// `PUT /snapshot/create`.
#[derive(Debug, Serialize)]
pub(super) struct Create {
    snapshot_type: &'static str,
    snapshot_path: &'static str,
    mem_file_path: &'static str,
}

impl Create {
    /// All of the memory, or what was written since the last snapshot.
    pub(super) fn new(difference: bool) -> Self {
        Self {
            snapshot_type: if difference { "Diff" } else { "Full" },
            snapshot_path: SAVED_DEVICES,
            mem_file_path: SAVED_MEMORY,
        }
    }
}

/// `PUT /snapshot/load`.
#[derive(Debug, Serialize)]
pub(super) struct Load<'a> {
    snapshot_path: &'static str,
    mem_backend: Backend,
    resume_vm: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    track_dirty_pages: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enable_diff_snapshots: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_realtime: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    network_overrides: Vec<Override<'a>>,
}

/// Where a machine's memory comes from.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Backend {
    backend_type: &'static str,
    backend_path: &'static str,
}

impl Backend {
    /// A file, which Firecracker maps.
    pub(super) const FILE: Self = Self {
        backend_type: "File",
        backend_path: MEMORY,
    };
    /// A server of pages.
    pub(super) const PAGES: Self = Self {
        backend_type: "Uffd",
        backend_path: PAGES,
    };
}

#[derive(Debug, Serialize)]
struct Override<'a> {
    iface_id: &'static str,
    host_dev_name: &'a str,
}

/// How a machine is loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct How<'a> {
    pub(super) backend: Backend,
    /// Whether pages that it writes are counted.
    pub(super) track: bool,
    /// Whether its clock goes on from the time that it is, and not from when it was saved.
    pub(super) advance_clock: bool,
    /// The tap, if it is not the one of the snapshot.
    pub(super) other_tap: Option<&'a str>,
}

impl<'a> Load<'a> {
    /// Loads and goes on. What a version does not know is left out.
    pub(super) fn new(version: Version, how: How<'a>) -> Self {
        let new = version.says_track_dirty_pages();
        Self {
            snapshot_path: DEVICES,
            mem_backend: how.backend,
            resume_vm: true,
            track_dirty_pages: new.then_some(how.track),
            enable_diff_snapshots: (!new).then_some(how.track),
            clock_realtime: (how.advance_clock && version.advances_clock()).then_some(true),
            network_overrides: how
                .other_tap
                .map(|tap| Override {
                    iface_id: INTERFACE,
                    host_dev_name: tap,
                })
                .into_iter()
                .collect(),
        }
    }
}

/// The answer to `GET /`.
#[derive(Debug, Deserialize)]
pub(super) struct InstanceInfo {
    pub(super) state: String,
}

/// The answer to `GET /version`.
#[derive(Debug, Deserialize)]
pub(super) struct VersionInfo {
    pub(super) firecracker_version: String,
}

/// What a refusal says.
#[derive(Debug, Deserialize)]
pub(super) struct Fault {
    pub(super) fault_message: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, to_value};

    #[test]
    fn loading_is_said_as_each_version_knows_it() {
        let how = How {
            backend: Backend::FILE,
            track: true,
            advance_clock: true,
            other_tap: Some("tap7"),
        };
        let new = to_value(Load::new(Version(1, 16, 0), how)).unwrap();
        assert_eq!(
            new,
            json!({
                "snapshot_path": "/devices",
                "mem_backend": { "backend_type": "File", "backend_path": "/memory" },
                "resume_vm": true,
                "track_dirty_pages": true,
                "clock_realtime": true,
                "network_overrides": [{ "iface_id": "net", "host_dev_name": "tap7" }],
            })
        );
        let how = How {
            backend: Backend::PAGES,
            track: false,
            other_tap: None,
            ..how
        };
        let old = to_value(Load::new(Version(1, 10, 0), how)).unwrap();
        assert_eq!(old["enable_diff_snapshots"], json!(false));
        assert_eq!(
            old["mem_backend"],
            json!({ "backend_type": "Uffd", "backend_path": "/pages.socket" })
        );
        for newer in ["track_dirty_pages", "network_overrides", "clock_realtime"] {
            assert!(old.get(newer).is_none(), "{newer}");
        }
    }

    #[test]
    fn a_balloon_reports_where_the_version_can() {
        let old = to_value(Balloon::new(Version(1, 10, 0), None, false)).unwrap();
        assert_eq!(old, json!({ "amount_mib": 0, "deflate_on_oom": true }));
        let interval = Some(Duration::from_millis(1));
        let new = to_value(Balloon::new(Version(1, 14, 1), interval, false)).unwrap();
        assert_eq!(new["free_page_reporting"], json!(true));
        assert_eq!(new["stats_polling_interval_s"], json!(1));
        let huge = to_value(Balloon::new(Version(1, 14, 1), None, true)).unwrap();
        assert!(huge.get("free_page_reporting").is_none());
    }
}
