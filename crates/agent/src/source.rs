//! What a new sandbox starts from.

use crate::{
    create::driver_name,
    parts::Parts,
    problems,
    states::{About, Lease, Purpose, StateKey},
    templates::{self, BOOT_DEADLINE},
};
use api::{ErrorCode, Problem, Resources, node::TemplateBuild};
use driver::{Origin, Plan, RootFiles};
use std::{any::Any, sync::Arc, time::Duration};

/// What a sandbox starts from, and what keeps it from being removed.
pub(crate) struct Source {
    pub(crate) origin: Origin,
    pub(crate) lease: Option<Lease>,
    pub(crate) pin: Option<Box<dyn Any + Send + Sync>>,
    /// The build's state for which sandboxes may be prepared ahead; none if this is for once.
    pub(crate) shelf: Option<StateKey>,
    /// Whose shell may be run in what is prepared ahead, as nothing else runs there.
    pub(crate) shell_of: Option<String>,
}

impl Source {
    /// A build's state.
    fn shelved(parts: &Parts, lease: Lease) -> Self {
        Self {
            shelf: Some(lease.key().clone()),
            shell_of: shell_of(parts, &lease),
            ..Self::once(lease)
        }
    }

    /// A state, for one sandbox only.
    pub(crate) fn once(lease: Lease) -> Self {
        Self {
            origin: lease.origin(),
            lease: Some(lease),
            pin: None,
            shelf: None,
            shell_of: None,
        }
    }

    /// How long a sandbox may take to start from it, where what is resumed may take `usual`: one
    /// that has no memory boots, if the driver runs machines.
    pub(crate) fn deadline(&self, parts: &Parts, usual: Duration) -> Duration {
        let has_memory = match &self.origin {
            Origin::Fresh(_) => false,
            Origin::Saved(state) => state.memory.is_some(),
        };
        match parts.driver.capabilities().memory_snapshot && !has_memory {
            true => usual.max(BOOT_DEADLINE),
            false => usual,
        }
    }

    /// What a driver prepares for it.
    pub(crate) fn plan(&self, resources: Resources) -> Plan {
        Plan {
            origin: self.origin.clone(),
            resources,
        }
    }
}

/// Finds what a sandbox of a build starts from; where that is a state that is not there, or that
/// this host cannot resume, makes it first.
pub(crate) async fn find(
    parts: &Arc<Parts>,
    template: &TemplateBuild,
    resources: Resources,
    given: Option<Lease>,
    deadline: Duration,
) -> Result<Source, Problem> {
    if let Some(lease) = given {
        return Ok(Source::once(lease));
    }
    if let Some(lease) = parts.states.lease_build(&template.build) {
        if let Some(source) = usable(parts, lease, resources)? {
            return Ok(source);
        }
        // Nor can what was prepared from it be used.
        parts.pool.clear(&template.build).await;
    }
    if parts.states.is_lost(&template.build) {
        return Err(Problem::new(
            ErrorCode::NotFound,
            format!(
                "the state of snapshot {} is not there any more",
                template.build
            ),
            "take another snapshot; `atoll node list` tells the node, whose log says more",
        ));
    }
    if parts.driver.capabilities().memory_snapshot {
        let making = templates::make(parts, template.clone(), resources);
        let lease = tokio::time::timeout(deadline, making).await.map_err(|_| {
            Problem::new(
                ErrorCode::Unavailable,
                format!(
                    "template {} is being started for the first time",
                    template.template
                ),
                "try again in a moment",
            )
        })??;
        return Ok(Source::shelved(parts, lease));
    }
    fresh(parts, template).await
}

/// Whose shell may be run in a machine of this state before it is a sandbox: nobody's if something
/// of a tenant's would run too.
fn shell_of(parts: &Parts, lease: &Lease) -> Option<String> {
    let About { build, purpose, .. } = parts.states.about(lease.key())?;
    is_quiet(purpose, build.start_command.as_deref()).then_some(build.user)
}

/// Whether nothing but the guest runs in a state's memory.
fn is_quiet(purpose: Purpose, start_command: Option<&str>) -> bool {
    purpose == Purpose::Template && start_command.is_none_or(str::is_empty)
}

/// A template's root and an empty writable layer.
pub(crate) async fn fresh(parts: &Parts, template: &TemplateBuild) -> Result<Source, Problem> {
    let root = parts.images.root(&template.image).await?;
    let disk = match parts.driver.capabilities().needs_disk {
        true => Some(parts.images.disk(&template.image).await?),
        false => None,
    };
    Ok(Source {
        origin: Origin::Fresh(RootFiles {
            layers: root.layers,
            disk,
        }),
        lease: None,
        pin: Some(root.pin),
        shelf: None,
        shell_of: None,
    })
}

/// A build's state if it can be used here, be it outdated; none if it is to be made again first.
fn usable(parts: &Parts, lease: Lease, resources: Resources) -> Result<Option<Source>, Problem> {
    let state = lease.state();
    if state.memory.is_some() && state.resources != resources {
        return Err(Problem::new(
            ErrorCode::InvalidArgument,
            format!(
                "a sandbox that starts from this state with memory has {} processors, {} of memory \
                 and {} of disk, and {}, {} and {} were asked for",
                state.resources.vcpus,
                state.resources.memory,
                state.resources.disk,
                resources.vcpus,
                resources.memory,
                resources.disk
            ),
            "ask for what the snapshot or the template's build says",
        ));
    }
    let Err(error) = parts.driver.check(state) else {
        return Ok(Some(Source::shelved(parts, lease)));
    };
    let key = lease.key();
    let purpose = parts.states.about(key).map(|about| about.purpose);
    if purpose == Some(Purpose::Template) {
        if parts.driver.capabilities().memory_snapshot {
            tracing::warn!("the {key} is made again: {}", problems::chain(&error));
        } else {
            tracing::info!("the {key} is of no use to this driver, and goes");
            lease.doom();
        }
        return Ok(None);
    }
    Err(refused(parts, &error))
}

/// Why a state cannot be resumed here.
pub(crate) fn refused(parts: &Parts, error: &driver::DriverError) -> Problem {
    Problem::new(
        ErrorCode::Unsupported,
        format!(
            "the {} driver of this node cannot resume this state: {}",
            driver_name(parts.driver.kind()),
            problems::chain(error)
        ),
        "resume it where it was saved, on a host with the same processor and the same versions",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tenant_runs_is_not_quiet() {
        assert!(is_quiet(Purpose::Template, None));
        assert!(!is_quiet(Purpose::Template, Some("serve")));
        assert!(!is_quiet(Purpose::Snapshot, None));
    }
}
