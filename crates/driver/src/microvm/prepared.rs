//! A machine that is nobody's yet.

use super::{
    Held, Vmm, machine::RunningMachine, notes::Notes, random_bytes, random_token, unsupported,
};
use crate::{
    DriverError, Machine, NetworkSlot, Prepared, StartSpec, blocking::blocking, cgroup::Weight,
    doing, phases::Stopwatch,
};
use api::{
    Resources, Secret,
    boot::{Identity, MachineClaim},
};
use base64::Engine;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// How long each step of warming up may take.
const WARM_UP_PATIENCE: Duration = Duration::from_secs(20);

/// A prepared machine. Dropping it ends it in the background.
pub(super) struct PreparedMachine<V: Vmm> {
    /// None once it is somebody's.
    parts: Option<(V::Hold, Notes, Stopwatch)>,
    slot: Arc<NetworkSlot>,
}

impl<V: Vmm> PreparedMachine<V> {
    pub(super) fn new(
        hold: V::Hold,
        notes: Notes,
        slot: Arc<NetworkSlot>,
        phases: Stopwatch,
    ) -> Self {
        Self {
            parts: Some((hold, notes, phases)),
            slot,
        }
    }
}

#[async_trait::async_trait]
impl<V: Vmm> Prepared for PreparedMachine<V> {
    fn slot(&self) -> &Arc<NetworkSlot> {
        &self.slot
    }

    fn is_alive(&self) -> bool {
        self.parts
            .as_ref()
            .is_some_and(|(hold, ..)| hold.is_alive())
    }

    async fn warm_up(&mut self, user: &str) -> Result<(), DriverError> {
        match &mut self.parts {
            Some((hold, notes, phases)) if V::WARMS_UP && notes.base.is_some() => {
                warm_up::<V>(hold, notes, user).await?;
                phases.mark("warming up");
                Ok(())
            }
            // It runs already, or gains nothing.
            _ => Ok(()),
        }
    }

    async fn start(mut self: Box<Self>, spec: StartSpec) -> Result<Box<dyn Machine>, DriverError> {
        let Some((hold, mut notes, mut phases)) = self.parts.take() else {
            return Err(DriverError::Guest("it has been started already".into()));
        };
        phases.insert(Vec::new());
        match start::<V>(&hold, &self.slot, &mut notes, spec, &mut phases).await {
            Ok(()) => Ok(Box::new(RunningMachine::<V>::new(hold, notes, phases))),
            Err(error) => {
                if let Err(error) = hold.end().await {
                    tracing::warn!(%error, "a machine that did not start is not gone");
                }
                Err(error)
            }
        }
    }

    async fn discard(mut self: Box<Self>) {
        if let Some((hold, ..)) = self.parts.take()
            && let Err(error) = hold.end().await
        {
            tracing::warn!(%error, "a prepared machine is not gone");
        }
    }
}

impl<V: Vmm> Drop for PreparedMachine<V> {
    fn drop(&mut self) {
        if let Some((hold, ..)) = self.parts.take() {
            Held::end_in_background(hold);
        }
    }
}

/// Makes the guest somebody that nobody knows, runs a shell in it twice, and lets it stand still
/// again: after the second time a user's first command takes a quarter less than after the first.
/// Nobody waits for it, so those that somebody waits for come first.
async fn warm_up<V: Vmm>(hold: &V::Hold, notes: &mut Notes, user: &str) -> Result<(), DriverError> {
    let weigh = |weight| hold.group.weigh(weight).map_err(doing("weigh a machine"));
    weigh(Weight::Least)?;
    let warmed = run_in::<V>(hold, notes, user).await;
    weigh(Weight::Usual)?;
    warmed
}

async fn run_in<V: Vmm>(hold: &V::Hold, notes: &mut Notes, user: &str) -> Result<(), DriverError> {
    let (access_token, control_token) = (random_token()?, random_token()?);
    let odd = |error: api::id::ParseIdError| DriverError::Guest(error.to_string());
    let identity = Identity {
        sandbox: format!("i{}", "0".repeat(20)).parse().map_err(odd)?,
        template: "0".repeat(20).parse().map_err(odd)?,
        access_token: Some(access_token.clone()),
        control_token: control_token.clone(),
        environment: BTreeMap::new(),
        default_user: user.to_owned(),
        working_directory: String::new(),
        start_command: None,
        port: api::envd::PORT,
    };
    let nowhere = (Vec::new(), None);
    let claim = describe(identity, "prepared".into(), nowhere, true)?;
    V::go_on(hold).await?;
    let former = std::mem::replace(&mut notes.control_token, control_token);
    hold.unless_ended(hold.guest.claim(&claim, &former, WARM_UP_PATIENCE))
        .await?;
    for _ in 0..2 {
        hold.unless_ended(hold.guest.run_shell(&access_token, user, WARM_UP_PATIENCE))
            .await?;
    }
    V::stop(hold).await?;
    hold.guest.provide().map_err(doing("enter a network"))
}

async fn start<V: Vmm>(
    hold: &V::Hold,
    slot: &NetworkSlot,
    notes: &mut Notes,
    spec: StartSpec,
    phases: &mut Stopwatch,
) -> Result<(), DriverError> {
    let begin = Instant::now();
    let StartSpec {
        resources,
        identity,
        host_name,
        name_servers,
        search,
        renew,
        deadline,
        ..
    } = spec;
    same_resources(&notes.resources, &resources)?;
    if identity.port != api::envd::PORT {
        return Err(unsupported(
            format!("a guest that serves on port {}", identity.port),
            format!("Guests of machines serve on port {}", api::envd::PORT),
        ));
    }
    let former = std::mem::replace(&mut notes.control_token, identity.control_token.clone());
    // Whoever finds it running must be able to open it. Both end before this does: nothing writes
    // to the directory of a machine that is gone.
    let (directory, noted) = (hold.directory.clone(), notes.clone());
    let note = blocking(move || noted.write(&directory));
    let go = V::go(hold, slot, &identity, notes, deadline, phases);
    let (noted, went) = tokio::join!(note, go);
    went?;
    noted?;
    let claim = describe(identity, host_name, (name_servers, search), renew)?;
    let left = deadline.saturating_sub(begin.elapsed());
    hold.unless_ended(hold.guest.claim(&claim, &former, left))
        .await?;
    phases.mark("identity");
    Ok(())
}

/// What a guest is told that becomes somebody now.
fn describe(
    identity: Identity,
    host_name: String,
    (name_servers, search): (Vec<IpAddr>, Option<String>),
    renew: bool,
) -> Result<MachineClaim, DriverError> {
    Ok(MachineClaim {
        identity,
        host_name,
        name_servers,
        search,
        unix_time_ns: now()?,
        entropy: Secret::new(
            base64::engine::general_purpose::STANDARD.encode(random_bytes::<64>()?),
        ),
        renew,
    })
}

/// A machine's processors and memory are part of its state.
fn same_resources(prepared: &Resources, wanted: &Resources) -> Result<(), DriverError> {
    if prepared == wanted {
        return Ok(());
    }
    Err(unsupported(
        format!(
            "a machine prepared with {} processors, {} of memory and {} of disk cannot have others",
            prepared.vcpus, prepared.memory, prepared.disk
        ),
        "Prepare one with the resources that are wanted",
    ))
}

fn now() -> Result<u64, DriverError> {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos())
        .map_err(std::io::Error::other)
        .map_err(doing("tell the time"))
}
