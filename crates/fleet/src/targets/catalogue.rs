//! The machines and groups that can be promised, and how they are found.

use crate::{
    config::File,
    inventory::{Group, Machine, MachineIndex, Role},
    moment::Moment,
};
use api::{ErrorCode, Problem};
use std::collections::HashMap;

/// What a template's provider id begins with; the group's name follows.
const TEMPLATE: &str = "atoll-template://";

/// A machine with what its node's `spec.providerID` is.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The machine. Only what does not change of itself is looked at.
    pub machine: Machine,
    /// What its node's `spec.providerID` is, and so its instance's id.
    pub provider_id: String,
}

/// All machines and groups, with indices to find them by.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    groups: Vec<Group>,
    machines: Vec<Listed>,
    members: Vec<Vec<MachineIndex>>,
    bases: Vec<usize>,
    group_names: HashMap<String, usize>,
    names: HashMap<String, MachineIndex>,
    provider_ids: HashMap<String, MachineIndex>,
}

impl Catalogue {
    /// Of these groups, to which the machines' group indices refer.
    ///
    /// # Errors
    /// When two machines have the same name or provider id.
    pub fn new(groups: Vec<Group>, machines: Vec<Listed>) -> Result<Self, Problem> {
        let mut catalogue = Self {
            members: vec![Vec::new(); groups.len()],
            bases: vec![0; groups.len()],
            ..Self::default()
        };
        for (at, group) in groups.iter().enumerate() {
            catalogue.group_names.insert(group.name.clone(), at);
        }
        for (at, listed) in machines.iter().enumerate() {
            let (index, name) = (MachineIndex(at as u32), &listed.machine.name);
            let group = listed.machine.group.at();
            if group >= groups.len() {
                return Err(Problem::new(
                    ErrorCode::InvalidArgument,
                    format!("machine `{name}` belongs to no group"),
                    "name a group that exists",
                ));
            }
            catalogue.members[group].push(index);
            catalogue.bases[group] += usize::from(listed.machine.role == Role::Base);
            let id = &listed.provider_id;
            if let Some(other) = catalogue.provider_ids.insert(id.clone(), index) {
                let other = &machines[other.at()].machine.name;
                return Err(Problem::new(
                    ErrorCode::InvalidArgument,
                    format!("machines `{other}` and `{name}` have the same provider id `{id}`"),
                    "give each the `provider_id` that its node has as spec.providerID",
                ));
            }
            if catalogue.names.insert(name.clone(), index).is_some() {
                return Err(Problem::new(
                    ErrorCode::InvalidArgument,
                    format!("two machines are called `{name}`"),
                    "rename one of them",
                ));
            }
        }
        (catalogue.groups, catalogue.machines) = (groups, machines);
        Ok(catalogue)
    }

    /// What a configuration says.
    ///
    /// # Errors
    /// When two machines have the same provider id.
    pub fn of(file: &File) -> Result<Self, Problem> {
        let inventory = file.inventory(Moment(0));
        let ids: HashMap<&str, String> = file
            .machines
            .iter()
            .map(|entry| (entry.name.as_str(), entry.provider_id()))
            .collect();
        let machines = inventory.machines().iter().map(|machine| Listed {
            machine: machine.clone(),
            provider_id: ids.get(machine.name.as_str()).cloned().unwrap_or_default(),
        });
        Self::new(inventory.groups().to_vec(), machines.collect())
    }

    /// All groups.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// All machines.
    pub fn machines(&self) -> &[Listed] {
        &self.machines
    }

    /// A machine.
    pub fn machine(&self, index: MachineIndex) -> &Listed {
        &self.machines[index.at()]
    }

    /// A group's machines.
    pub fn members(&self, group: usize) -> &[MachineIndex] {
        &self.members[group]
    }

    /// The place of the group of this name.
    pub fn group_named(&self, name: &str) -> Option<usize> {
        self.group_names.get(name).copied()
    }

    /// The machine of this name.
    pub fn named(&self, name: &str) -> Option<MachineIndex> {
        self.names.get(name).copied()
    }

    /// The machine of a node. Its provider id counts first. A node that never registered has its
    /// instance's id as its name.
    pub fn find(&self, provider_id: &str, name: &str) -> Option<MachineIndex> {
        let by_id = |id: &str| self.provider_ids.get(id).copied();
        by_id(provider_id)
            .or_else(|| self.named(name))
            .or_else(|| by_id(name))
            .or_else(|| self.named(provider_id))
    }

    /// How few machines a group can be left with: its least, and all that are never switched off.
    pub fn least(&self, group: usize) -> usize {
        let min = self.groups[group].min as usize;
        min.max(self.bases[group]).min(self.most(group))
    }

    /// How many machines a group can have on: its most, and no more than there are.
    pub fn most(&self, group: usize) -> usize {
        let max = self.groups[group].max as usize;
        max.min(self.members[group].len())
    }

    /// The provider id of a group's template, which stands for a machine that is still to come.
    pub fn template_id(group: &str) -> String {
        format!("{TEMPLATE}{group}")
    }

    /// The group of a template.
    pub fn template_group(&self, provider_id: &str) -> Option<usize> {
        self.group_named(provider_id.strip_prefix(TEMPLATE)?)
    }
}
