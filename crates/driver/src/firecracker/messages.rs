//! What the API is told, as it names it.

use super::version::Version;
use crate::slot::machine::MAC;
use api::Resources;
use serde::{Deserialize, Serialize};

/// Where things are as Firecracker sees them. Paths of drives are part of a snapshot, so they are
/// the same in every jail.
pub(super) const KERNEL: &str = "/kernel";
pub(super) const INITRAMFS: &str = "/initramfs";
pub(super) const ROOT: &str = "/root.img";
pub(super) const LAYER: &str = "/layer.img";
/// What is loaded.
pub(super) const MEMORY: &str = "/memory";
pub(super) const DEVICES: &str = "/devices";
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
}

impl MachineConfig {
    pub(super) fn new(resources: &Resources, cpu_template: Option<&str>) -> Self {
        Self {
            vcpu_count: resources.vcpus.max(1),
            mem_size_mib: resources.memory.as_mebibytes().max(1),
            // What a machine that boots touches is saved whole.
            track_dirty_pages: false,
            cpu_template: cpu_template.map(str::to_owned),
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
    free_page_reporting: Option<bool>,
}

impl Balloon {
    pub(super) fn new(version: Version) -> Self {
        Self {
            amount_mib: 0,
            deflate_on_oom: true,
            free_page_reporting: version.reports_free_pages().then_some(true),
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    network_overrides: Vec<Override<'a>>,
}

#[derive(Debug, Serialize)]
struct Backend {
    backend_type: &'static str,
    backend_path: &'static str,
}

#[derive(Debug, Serialize)]
struct Override<'a> {
    iface_id: &'static str,
    host_dev_name: &'a str,
}

impl<'a> Load<'a> {
    /// Loads and goes on; `other_tap` if it is not the one of the snapshot.
    pub(super) fn new(version: Version, track: bool, other_tap: Option<&'a str>) -> Self {
        let new = version.says_track_dirty_pages();
        Self {
            snapshot_path: DEVICES,
            mem_backend: Backend {
                backend_type: "File",
                backend_path: MEMORY,
            },
            resume_vm: true,
            track_dirty_pages: new.then_some(track),
            enable_diff_snapshots: (!new).then_some(track),
            network_overrides: other_tap
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
        let new = to_value(Load::new(Version(1, 14, 0), true, Some("tap7"))).unwrap();
        assert_eq!(
            new,
            json!({
                "snapshot_path": "/devices",
                "mem_backend": { "backend_type": "File", "backend_path": "/memory" },
                "resume_vm": true,
                "track_dirty_pages": true,
                "network_overrides": [{ "iface_id": "net", "host_dev_name": "tap7" }],
            })
        );
        let old = to_value(Load::new(Version(1, 10, 0), false, None)).unwrap();
        assert_eq!(old["enable_diff_snapshots"], json!(false));
        assert!(old.get("track_dirty_pages").is_none());
        assert!(old.get("network_overrides").is_none());
    }

    #[test]
    fn a_balloon_reports_where_the_version_can() {
        let old = to_value(Balloon::new(Version(1, 10, 0))).unwrap();
        assert_eq!(old, json!({ "amount_mib": 0, "deflate_on_oom": true }));
        let new = to_value(Balloon::new(Version(1, 14, 1))).unwrap();
        assert_eq!(new["free_page_reporting"], json!(true));
    }
}
