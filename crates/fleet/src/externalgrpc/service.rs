//! What is answered to each call.

use super::{
    Call, GroupOptions, Metrics, expander, kubernetes as k8s, options, price, refusal::unreadable,
    template, wire,
};
use crate::{
    inventory::MachineIndex,
    moment::{Moment, Span},
    targets::{FailureClass, GroupView, Instance, NodeName, Phase, Snapshot, Targets},
    tariff::Tariff,
};
use bytes::Bytes;
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, Once, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tonic::Status;

/// The annotation of nodes that Cluster Autoscaler made up for instances without a node.
pub const FAKE_NODE_REASON: &str = "k8s.io/cluster-autoscaler/fake-node-reason";

/// Says what time it is.
pub type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

/// What the operator says about the service.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What energy costs; it also says whether energy, money or carbon counts.
    pub tariff: Tariff,
    /// How groups are scaled, by their names, where that differs from what Cluster Autoscaler has
    /// by default.
    pub options: BTreeMap<String, GroupOptions>,
    /// The label that nodes with accelerators have; its values are their kinds.
    pub gpu_label: String,
    /// The resource by which pods ask for accelerators.
    pub gpu_resource: String,
    /// Whether all that would change something is refused.
    pub dry_run: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tariff: Tariff::default(),
            options: BTreeMap::new(),
            gpu_label: "nvidia.com/gpu.product".to_owned(),
            gpu_resource: "nvidia.com/gpu".to_owned(),
            dry_run: false,
        }
    }
}

/// Answers Cluster Autoscaler's calls.
pub struct Service {
    targets: Targets,
    settings: Settings,
    clock: Clock,
    metrics: Metrics,
    /// Machines whose nodes have another provider id than the configuration says.
    mismatches: Mutex<BTreeMap<String, String>>,
    /// Whether it was said that options of one's own have a price.
    warned: Once,
}

impl Service {
    /// Answers for these promises, by the machine's clock.
    pub fn new(targets: Targets, settings: Settings) -> Self {
        let clock = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            Moment(since.map_or(0, |one| one.as_secs()))
        };
        Self::with_clock(targets, settings, Arc::new(clock))
    }

    /// The same by another clock.
    pub fn with_clock(targets: Targets, settings: Settings, clock: Clock) -> Self {
        Self {
            targets,
            settings,
            clock,
            metrics: Metrics::default(),
            mismatches: Mutex::default(),
            warned: Once::new(),
        }
    }

    /// What was counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Machines whose nodes have another `spec.providerID` than the configuration says, with what
    /// they have. Cluster Autoscaler takes such nodes for strangers, and gives their machines back
    /// after a quarter of an hour.
    pub fn mismatches(&self) -> BTreeMap<String, String> {
        let all = self.mismatches.lock();
        all.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers a call whose message is given as bytes with a message as bytes.
    ///
    /// # Errors
    /// With what Cluster Autoscaler is to show to people.
    pub async fn call(&self, call: Call, message: Bytes) -> Result<Bytes, Status> {
        let start = Instant::now();
        let answer = self.answer(call, message).await;
        let code = answer
            .as_ref()
            .err()
            .map_or(0, |status| status.code() as i32);
        self.metrics.note(call.name(), code, start.elapsed());
        if let Err(status) = &answer
            && status.code() != tonic::Code::Unimplemented
        {
            tracing::info!(
                call = call.name(),
                code,
                cause = status.message(),
                "refused"
            );
        }
        answer
    }

    async fn answer(&self, call: Call, message: Bytes) -> Result<Bytes, Status> {
        match call {
            Call::Refresh => self.refresh(),
            Call::NodeGroups => Ok(self.node_groups()),
            Call::NodeGroupForNode => self.node_group_for_node(message),
            Call::NodeGroupTargetSize => self.target_size(message),
            Call::NodeGroupIncreaseSize => self.increase(message).await,
            Call::NodeGroupDeleteNodes => self.delete(message).await,
            Call::NodeGroupDecreaseTargetSize => self.decrease(message).await,
            Call::NodeGroupNodes => self.nodes(message),
            Call::NodeGroupTemplateNodeInfo => self.template(message),
            Call::NodeGroupGetOptions => self.options(message),
            Call::PricingNodePrice => self.node_price(message),
            Call::PricingPodPrice => self.pod_price(message),
            Call::GpuLabel => Ok(bytes(&wire::GpuLabel {
                label: self.settings.gpu_label.clone(),
            })),
            Call::GetAvailableGpuTypes => Ok(self.gpu_types()),
            // What was promised stays promised: the next Cluster Autoscaler goes on with it.
            Call::Cleanup => Ok(Bytes::new()),
            Call::BestOptions => self.best_options(message),
        }
    }

    /// The first call of a loop is where it is said that there is nothing to rely on yet.
    fn refresh(&self) -> Result<Bytes, Status> {
        if self.targets.snapshot().observed() {
            return Ok(Bytes::new());
        }
        Err(Status::unavailable(
            "Atoll has just been started and has not looked at its machines yet",
        ))
    }

    fn node_groups(&self) -> Bytes {
        let snapshot = self.targets.snapshot();
        let node_groups = snapshot.groups().map(|one| group(&one)).collect();
        bytes(&wire::NodeGroups { node_groups })
    }

    fn node_group_for_node(&self, message: Bytes) -> Result<Bytes, Status> {
        let question: wire::ForNode = read(message)?;
        let snapshot = self.targets.snapshot();
        let node = question.node.unwrap_or_default();
        let catalogue = snapshot.catalogue();
        let found = catalogue.find(&node.provider_id, &node.name);
        let view = if let Some(index) = found {
            self.compare(&snapshot, index, &node);
            Some(snapshot.group_of(index))
        } else {
            let template = catalogue.template_group(&node.provider_id);
            template.and_then(|at| snapshot.group(&catalogue.groups()[at].name))
        };
        // A node that is not ours is a good question, with an answer: an empty name.
        let node_group = Some(view.map_or_else(wire::NodeGroup::default, |one| group(&one)));
        Ok(bytes(&wire::GroupOfNode { node_group }))
    }

    /// Notes whether a node has the provider id that its instance is listed with.
    fn compare(&self, snapshot: &Snapshot, index: MachineIndex, node: &wire::Node) {
        let listed = snapshot.catalogue().machine(index);
        let name = &listed.machine.name;
        if node.annotations.contains_key(FAKE_NODE_REASON) || node.name != *name {
            return;
        }
        let mut all = self
            .mismatches
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if node.provider_id == listed.provider_id {
            if !all.is_empty() {
                all.remove(name);
            }
        } else if all.insert(name.clone(), node.provider_id.clone()).as_ref()
            != Some(&node.provider_id)
        {
            tracing::warn!(
                machine = name,
                node = node.provider_id,
                configuration = listed.provider_id,
                "the node's spec.providerID is not the machine's `provider_id`; \
                 Cluster Autoscaler will not recognise it: make them the same"
            );
        }
    }

    fn target_size(&self, message: Bytes) -> Result<Bytes, Status> {
        let question: wire::Id = read(message)?;
        let snapshot = self.targets.snapshot();
        let target = self.view(&snapshot, &question.id)?.target();
        Ok(bytes(&wire::TargetSize {
            target_size: number(target),
        }))
    }

    async fn increase(&self, message: Bytes) -> Result<Bytes, Status> {
        let question: wire::Delta = read(message)?;
        self.permitted()?;
        let (group, delta) = (&question.id, question.delta);
        let machines = self.targets.increase(group, delta, (self.clock)()).await?;
        tracing::info!(group, ?machines, "Cluster Autoscaler asked for machines");
        Ok(Bytes::new())
    }

    async fn delete(&self, message: Bytes) -> Result<Bytes, Status> {
        let question: wire::DeleteNodes = read(message)?;
        self.permitted()?;
        let nodes = question.nodes.into_iter().map(|node| NodeName {
            provider_id: node.provider_id,
            name: node.name,
        });
        let (group, nodes) = (&question.id, nodes.collect());
        let machines = self.targets.delete(group, nodes, (self.clock)()).await?;
        tracing::info!(group, ?machines, "Cluster Autoscaler gave machines back");
        Ok(Bytes::new())
    }

    async fn decrease(&self, message: Bytes) -> Result<Bytes, Status> {
        let question: wire::Delta = read(message)?;
        self.permitted()?;
        let (group, delta) = (&question.id, question.delta);
        let machines = self.targets.decrease(group, delta, (self.clock)()).await?;
        tracing::info!(
            group,
            ?machines,
            "Cluster Autoscaler no longer waits for machines"
        );
        Ok(Bytes::new())
    }

    fn nodes(&self, message: Bytes) -> Result<Bytes, Status> {
        let question: wire::Id = read(message)?;
        let snapshot = self.targets.snapshot();
        let view = self.view(&snapshot, &question.id)?;
        let instances = view.instances().map(|one| instance(&one)).collect();
        Ok(bytes(&wire::Instances { instances }))
    }

    fn template(&self, message: Bytes) -> Result<Bytes, Status> {
        let question: wire::Id = read(message)?;
        let snapshot = self.targets.snapshot();
        let view = self.view(&snapshot, &question.id)?;
        let Some(index) = view.next((self.clock)()) else {
            return Err(Status::not_found(format!(
                "group `{}` has no machines",
                question.id
            )));
        };
        let listed = snapshot.catalogue().machine(index);
        let node = template::node(view.name(), listed, &self.settings).encode_to_vec();
        Ok(bytes(&wire::Template {
            node_info: node.clone(),
            node_bytes: node,
        }))
    }

    fn options(&self, message: Bytes) -> Result<Bytes, Status> {
        let question: wire::OptionsQuestion = read(message)?;
        let snapshot = self.targets.snapshot();
        let view = self.view(&snapshot, &question.id)?;
        let none = GroupOptions::default();
        let changes = self.settings.options.get(&question.id).unwrap_or(&none);
        let answer = options::answer(question.defaults.as_deref(), changes, view.atomic());
        match answer.map_err(|error| unreadable(&error))? {
            Some(answer) => {
                if answer.forgets_startup {
                    self.warned.call_once(|| {
                        tracing::warn!(
                            group = question.id,
                            "this version of Cluster Autoscaler takes a node that is not ready yet \
                             for a broken one in groups with options of their own"
                        );
                    });
                }
                Ok(bytes(&wire::OptionsAnswer {
                    options: Some(answer.options),
                }))
            }
            None => Err(Status::unimplemented(
                "this group is scaled as Cluster Autoscaler does by default",
            )),
        }
    }

    fn node_price(&self, message: Bytes) -> Result<Bytes, Status> {
        let question: wire::NodePrice = read(message)?;
        let snapshot = self.targets.snapshot();
        let catalogue = snapshot.catalogue();
        let node = question.node.unwrap_or_default();
        let index = catalogue.find(&node.provider_id, &node.name).or_else(|| {
            let at = catalogue.template_group(&node.provider_id)?;
            snapshot
                .group(&catalogue.groups()[at].name)?
                .next((self.clock)())
        });
        let Some(index) = index else {
            return Err(Status::not_found(format!(
                "no machine has the provider id or name `{}`: nothing is known about its power",
                node.name
            )));
        };
        let watts = price::machine_watts(&catalogue.machine(index).machine);
        let span = time(
            question.start.or(question.start_legacy),
            question.end.or(question.end_legacy),
        )?;
        Ok(self.priced(watts, span))
    }

    fn pod_price(&self, message: Bytes) -> Result<Bytes, Status> {
        let question: wire::PodPrice = read(message)?;
        let pod = if question.pod.is_empty() {
            question.pod_legacy
        } else {
            question.pod
        };
        let pod = k8s::Pod::decode(pod.as_slice()).map_err(|error| unreadable(&error))?;
        let request = pod.request(&self.settings.gpu_resource);
        let snapshot = self.targets.snapshot();
        let watts = price::pod_watts(snapshot.catalogue(), &request);
        let span = time(
            question.start.or(question.start_legacy),
            question.end.or(question.end_legacy),
        )?;
        Ok(self.priced(watts, span))
    }

    fn priced(&self, watts: f64, (from, span): (Moment, Span)) -> Bytes {
        let price = price::cost(&self.settings.tariff, watts, from, span);
        bytes(&wire::Price { price })
    }

    fn gpu_types(&self) -> Bytes {
        let snapshot = self.targets.snapshot();
        let machines = snapshot.catalogue().machines().iter();
        let kinds: BTreeSet<&String> = machines
            .filter(|one| one.machine.capacity.gpus > 0)
            .filter_map(|one| one.machine.labels.get(&self.settings.gpu_label))
            .collect();
        let types = kinds.into_iter().map(|kind| (kind.clone(), wire::Empty {}));
        bytes(&wire::GpuTypes {
            gpu_types: types.collect(),
        })
    }

    fn best_options(&self, message: Bytes) -> Result<Bytes, Status> {
        let question: wire::BestOptionsQuestion = read(message)?;
        let snapshot = self.targets.snapshot();
        let now = (self.clock)();
        let options = expander::best(&question, &snapshot, &self.settings, now);
        Ok(bytes(&wire::BestOptionsAnswer { options }))
    }

    fn view<'a>(&self, snapshot: &'a Snapshot, id: &str) -> Result<GroupView<'a>, Status> {
        let missing = || crate::targets::TargetError::UnknownGroup(id.to_owned());
        Ok(snapshot.group(id).ok_or_else(missing)?)
    }

    fn permitted(&self) -> Result<(), Status> {
        if self.settings.dry_run {
            return Err(Status::failed_precondition(
                "Atoll runs with --dry-run and changes nothing",
            ));
        }
        Ok(())
    }
}

fn read<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|error| unreadable(&error))
}

fn bytes(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn group(view: &GroupView<'_>) -> wire::NodeGroup {
    wire::NodeGroup {
        id: view.name().to_owned(),
        min_size: number(view.least()),
        max_size: number(view.most()),
        debug: format!(
            "{} ({} of {} machines promised, at least {}, at most {})",
            view.name(),
            view.target(),
            view.machines(),
            view.least(),
            view.most()
        ),
    }
}

fn instance(one: &Instance<'_>) -> wire::Instance {
    let failure = one.failure.filter(|_| one.phase == Phase::Creating);
    wire::Instance {
        id: one.provider_id.to_owned(),
        status: Some(wire::InstanceStatus {
            instance_state: match one.phase {
                Phase::Running => wire::RUNNING,
                Phase::Creating => wire::CREATING,
                // Until it is off it is the old instance that goes, and nobody waits for it to come.
                Phase::Deleting | Phase::Returning => wire::DELETING,
            },
            error_info: failure.map(|failure| wire::InstanceError {
                error_code: failure.code.clone(),
                error_message: failure.message.clone(),
                instance_error_class: match failure.class {
                    FailureClass::OutOfResources => wire::OUT_OF_RESOURCES,
                    FailureClass::Other => wire::OTHER,
                },
            }),
        }),
    }
}

/// From when on, and for how long.
fn time(
    start: Option<wire::Timestamp>,
    end: Option<wire::Timestamp>,
) -> Result<(Moment, Span), Status> {
    match (start, end) {
        (Some(start), Some(end)) if start.seconds <= end.seconds => {
            Ok((start.moment(), end.moment().since(start.moment())))
        }
        _ => Err(Status::invalid_argument(
            "a price is asked for from a moment until a later one",
        )),
    }
}
