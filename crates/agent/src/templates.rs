//! Templates that are started once, so that their sandboxes are only resumed.
//!
//! For drivers that save memory: a machine boots from the template's root, runs the start command,
//! runs the ready command until it succeeds, gives back the memory that it does not need, and is
//! saved under the build's id. Several that want the same build share the work, and nobody who
//! goes away stops it. A state that this host has outgrown gives its name to the one that is made
//! anew, and goes when nothing needs it any more.

use crate::{
    create::random_token,
    guest_call::GuestCall,
    parts::Parts,
    problems, renewal, source,
    states::{About, Lease, Purpose, StateKey},
};
use api::{
    BuildId, ErrorCode, Problem, Resources, SandboxId, Secret,
    boot::Identity,
    node::{BuildEvent, TemplateBuild},
};
use driver::{Machine, NetworkSlot, SaveOptions, SavedState, StartSpec};
use futures::{StreamExt, stream::BoxStream};
use jiff::Timestamp;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_stream::wrappers::WatchStream;

/// How long a machine may take to boot.
pub(crate) const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// How long it may take to prepare one, in which it boots where the driver can do that beforehand.
const PREPARE_DEADLINE: Duration = Duration::from_secs(180);

/// How long it may take until its ready command succeeds.
const READY_DEADLINE: Duration = Duration::from_secs(300);

/// Between two runs of the ready command.
const READY_PAUSE: Duration = Duration::from_millis(500);

/// A start command without a ready command has this long to do what it does at its start.
const START_PAUSE: Duration = Duration::from_secs(10);

/// How far a template has come.
#[derive(Debug, Clone)]
struct Progress {
    step: &'static str,
    outcome: Option<Result<(), Problem>>,
}

/// Templates that are being started.
#[derive(Default)]
pub(crate) struct Making(Mutex<HashMap<BuildId, watch::Receiver<Progress>>>);

/// Makes a build's state ready, and tells of it; see [`api::node::Node::prepare_template`].
pub(crate) fn prepare(
    parts: &Arc<Parts>,
    build: TemplateBuild,
    resources: Resources,
) -> BoxStream<'static, BuildEvent> {
    let parts = parts.clone();
    let abilities = parts.driver.capabilities();
    if !abilities.needs_disk && !abilities.memory_snapshot {
        return Box::pin(futures::stream::empty());
    }
    if abilities.memory_snapshot && parts.states.lease_build(&build.build).is_some() {
        return Box::pin(futures::stream::empty());
    }
    let progress = WatchStream::new(begin(&parts, build, resources));
    let events = progress.filter_map(|progress| async move {
        match progress.outcome {
            None => Some(BuildEvent::Step {
                name: progress.step.into(),
                total: None,
            }),
            Some(Ok(())) => None,
            Some(Err(problem)) => Some(BuildEvent::Failed {
                cause: problem.cause,
                remedy: problem.remedy,
            }),
        }
    });
    Box::pin(events)
}

/// Makes a build's state, or waits for whoever is at it. One that is there is made anew unless this
/// host would make the same again.
pub(crate) async fn make(
    parts: &Arc<Parts>,
    build: TemplateBuild,
    resources: Resources,
) -> Result<Lease, Problem> {
    let id = build.build.clone();
    let mut progress = begin(parts, build, resources);
    let outcome = match progress.wait_for(|now| now.outcome.is_some()).await {
        Ok(last) => last.outcome.clone(),
        Err(_) => None,
    };
    outcome.unwrap_or_else(|| Err(problems::stopping()))?;
    parts.states.lease_build(&id).ok_or_else(|| {
        Problem::new(
            ErrorCode::Conflict,
            format!("build {id} was removed while it was started"),
            "use another build",
        )
    })
}

fn begin(
    parts: &Arc<Parts>,
    build: TemplateBuild,
    resources: Resources,
) -> watch::Receiver<Progress> {
    let mut making = parts
        .making
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(progress) = making.get(&build.build) {
        return progress.clone();
    }
    let first = Progress {
        step: "preparing the disk",
        outcome: None,
    };
    let (sender, progress) = watch::channel(first);
    making.insert(build.build.clone(), progress.clone());
    drop(making);
    let parts = parts.clone();
    parts.tasks.clone().spawn(async move {
        let id = build.build.clone();
        let former = parts.states.lease_build(&id);
        let outcome = match &former {
            // Somebody was faster.
            Some(lease) if renewal::reasons(&parts, lease.state()).is_empty() => Ok(()),
            _ => {
                Template::new(&parts, build, resources)
                    .make(&sender, former.as_ref())
                    .await
            }
        };
        drop(former);
        if let Err(problem) = &outcome {
            tracing::warn!(build = %id, "the template is not ready: {problem}");
        }
        let mut making = parts
            .making
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        making.remove(&id);
        drop(making);
        sender.send_modify(|progress| progress.outcome = Some(outcome));
    });
    progress
}

/// A template on its way.
struct Template<'a> {
    parts: &'a Arc<Parts>,
    build: TemplateBuild,
    resources: Resources,
    access_token: Secret,
    control_token: Secret,
}

impl<'a> Template<'a> {
    fn new(parts: &'a Arc<Parts>, build: TemplateBuild, resources: Resources) -> Self {
        Self {
            parts,
            build,
            resources,
            access_token: random_token(),
            control_token: random_token(),
        }
    }

    /// `former` is the state that has the build's name until this one is there.
    async fn make(
        self,
        progress: &watch::Sender<Progress>,
        former: Option<&Lease>,
    ) -> Result<(), Problem> {
        let began = Instant::now();
        let source = source::fresh(self.parts, &self.build).await?;
        if !self.parts.driver.capabilities().memory_snapshot {
            return Ok(());
        }
        self.parts.admission.has_room_for_a_state()?;
        let step = |step| progress.send_modify(|progress| progress.step = step);
        step("booting");
        let pool = &self.parts.pool;
        let prepared = tokio::select! {
            claimed = pool.claim(&source, self.resources, PREPARE_DEADLINE) => claimed?.prepared,
            // The pool takes down what nobody waits for, before it closes.
            () = self.parts.stopping.cancelled() => return Err(problems::stopping()),
        };
        let preparer = pool.preparer();
        let slot = prepared.slot().clone();
        let spec = self.spec(source.origin.clone())?;
        let machine = match prepared.start(spec).await {
            Ok(machine) => machine,
            Err(error) => {
                preparer.release(slot).await;
                return Err(problems::from_driver(&error));
            }
        };
        let outcome = tokio::select! {
            outcome = self.settle_and_save(&*machine, &slot, &step) => outcome,
            // What is half made then goes at the next start.
            () = self.parts.stopping.cancelled() => Err(problems::stopping()),
        };
        while let Err(error) = machine.destroy().await {
            let error = problems::chain(&error);
            tracing::warn!(build = %self.build.build, "cannot take the template's machine down: {error}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        preparer.release(slot).await;
        let (key, state, about) = outcome?;
        let states = &self.parts.states;
        let lease = states.add(key.clone(), state, Some(about), source.pin);
        if let Some(former) = former {
            states.hand_over(former.key(), &key);
            self.parts.pool.clear(&self.build.build).await;
        }
        drop(lease);
        tracing::info!(
            build = %self.build.build,
            took = ?began.elapsed(),
            size = %api::Bytes(states.size(&key)),
            "the template is ready: its sandboxes are resumed from memory"
        );
        Ok(())
    }

    fn spec(&self, origin: driver::Origin) -> Result<StartSpec, Problem> {
        let nobody = format!("i{}", "0".repeat(20));
        let sandbox: SandboxId = nobody
            .parse()
            .map_err(|error| Problem::new(ErrorCode::Internal, format!("{error}"), ""))?;
        Ok(StartSpec {
            origin,
            resources: self.resources,
            identity: Identity {
                sandbox,
                template: self.build.template.clone(),
                access_token: Some(self.access_token.clone()),
                control_token: self.control_token.clone(),
                environment: self.build.environment.clone(),
                default_user: self.build.user.clone(),
                working_directory: self.build.working_directory.clone(),
                start_command: self.build.start_command.clone(),
                port: self.parts.guest_port,
            },
            host_name: "template".into(),
            name_servers: self.parts.network.name_servers(),
            search: None,
            deadline: BOOT_DEADLINE,
            renew: true,
        })
    }

    async fn settle_and_save(
        &self,
        machine: &dyn Machine,
        slot: &NetworkSlot,
        step: &impl Fn(&'static str),
    ) -> Result<(StateKey, SavedState, About), Problem> {
        let guest = GuestCall {
            address: (slot.address, self.parts.guest_port).into(),
            control_token: self.control_token.clone(),
            access_token: self.access_token.clone(),
        };
        let crashed = |exit: driver::Exit| {
            Problem::new(
                ErrorCode::InvalidArgument,
                format!("the template's machine ended while it was started: {exit:?}"),
                "look at what the start command does",
            )
        };
        tokio::select! {
            exit = machine.wait() => return Err(crashed(exit)),
            ready = self.until_ready(&guest, step) => ready?,
        }
        step("settling");
        tokio::select! {
            exit = machine.wait() => return Err(crashed(exit)),
            settled = guest.settle() => settled.map_err(|error| Problem::new(
                ErrorCode::Internal,
                format!("the guest cannot write back what it holds: {error}"),
                "look at the node's log",
            ))?,
        }
        step("saving");
        let about = About {
            build: self.build.clone(),
            resources: self.resources,
            purpose: Purpose::Template,
            made_at: Timestamp::now(),
        };
        let key = self.parts.states.announce(&about)?;
        let options = SaveOptions {
            memory: true,
            goes_on: false,
            lasts: true,
        };
        let directory = self.parts.states.directory(&key);
        match machine.save(&directory, options).await {
            Ok(state) => Ok((key, state, about)),
            Err(error) => {
                self.parts.states.abandon(&key);
                Err(problems::from_driver(&error))
            }
        }
    }

    async fn until_ready(
        &self,
        guest: &GuestCall,
        step: &impl Fn(&'static str),
    ) -> Result<(), Problem> {
        let Some(command) = &self.build.ready_command else {
            if self.build.start_command.is_some() {
                step("waiting for the start command");
                tokio::time::sleep(START_PAUSE).await;
            }
            return Ok(());
        };
        step("waiting for the ready command");
        let began = Instant::now();
        loop {
            let outcome = guest.run(command, READY_DEADLINE).await;
            let what = match outcome {
                Ok(0) => return Ok(()),
                Ok(code) => format!("it ends with {code}"),
                Err(error) => error.to_string(),
            };
            if began.elapsed() > READY_DEADLINE {
                return Err(Problem::new(
                    ErrorCode::InvalidArgument,
                    format!("the ready command did not succeed in {READY_DEADLINE:?}: {what}"),
                    "run the start command and the ready command in a sandbox to see why",
                ));
            }
            tokio::time::sleep(READY_PAUSE).await;
        }
    }
}
