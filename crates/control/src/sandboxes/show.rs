//! Sandboxes the way clients read them.

use super::{Sandboxes, sizes};
use api::{
    node::{MeshPlace, OnTimeout, SandboxStatus},
    rest::{
        ENVD_VERSION,
        listing::{is_paused, microseconds},
        network::NetworkConfig,
        sandbox::{Lifecycle, ListedSandbox, ListedState, MeshIdentity, Sandbox, SandboxDetail},
    },
};

fn mesh(status: &SandboxStatus) -> Option<MeshIdentity> {
    let MeshPlace {
        name,
        addresses,
        tags,
    } = status.mesh.clone()?;
    Some(MeshIdentity {
        name,
        addresses,
        tags,
    })
}

/// What lists show of a sandbox.
pub(crate) fn listed(status: &SandboxStatus) -> ListedSandbox {
    let (cpu_count, memory_mb, disk_size_mb) = sizes(&status.resources);
    ListedSandbox {
        template_id: status.template.template.to_string(),
        sandbox_id: status.id.to_string(),
        client_id: status.id.node().to_string(),
        started_at: microseconds(status.started_at),
        end_at: microseconds(status.deadline),
        cpu_count,
        memory_mb,
        disk_size_mb,
        state: match is_paused(status) {
            true => ListedState::Paused,
            false => ListedState::Running,
        },
        envd_version: ENVD_VERSION.to_owned(),
        alias: status.template.alias.clone(),
        metadata: status.metadata.clone(),
        pause_mode: status.paused_with_memory.map(|memory| {
            let mode = if memory { "full" } else { "filesystem" };
            mode.to_owned()
        }),
        mesh: mesh(status),
    }
}

impl Sandboxes {
    /// What the creator of a sandbox, and whoever connects to it, is told.
    pub(crate) fn sandbox(&self, status: &SandboxStatus) -> Sandbox {
        Sandbox {
            template_id: status.template.template.to_string(),
            sandbox_id: status.id.to_string(),
            client_id: status.id.node().to_string(),
            envd_version: ENVD_VERSION.to_owned(),
            alias: status.template.alias.clone(),
            envd_access_token: self
                .access_token(status)
                .map(|token| token.expose().to_owned()),
            traffic_access_token: self
                .traffic_token(status)
                .map(|token| token.expose().to_owned()),
            domain: self.domain(),
            mesh: mesh(status),
        }
    }

    /// Everything about a sandbox.
    pub(crate) fn detail(&self, status: &SandboxStatus) -> SandboxDetail {
        SandboxDetail {
            listed: listed(status),
            envd_access_token: self
                .access_token(status)
                .map(|token| token.expose().to_owned()),
            allow_internet_access: Some(status.network.internet),
            domain: self.domain(),
            network: Some(NetworkConfig {
                allow_public_traffic: Some(status.network.allow_public_traffic),
                mask_request_host: status.network.mask_request_host.clone(),
                ..NetworkConfig::default()
            }),
            lifecycle: Some(Lifecycle {
                auto_resume: status.auto_resume,
                on_timeout: match status.on_timeout {
                    OnTimeout::Kill => "kill".to_owned(),
                    OnTimeout::Pause => "pause".to_owned(),
                },
            }),
        }
    }
}
