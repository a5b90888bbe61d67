//! The addresses of services: given once, the same everywhere, and a service's for as long as a policy has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::book::{Book, Plan, Subject, Write, put};
use super::record::{is_service_v4, service_v4};
use crate::policy::Policy;

/// Which service has which address.
pub type ServiceAddresses = BTreeMap<String, Ipv4Addr>;

/// The numbers of services as the coordinator keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServiceNumbers {
    /// The last that was given out. Numbers count up, so one that is free again is not soon another service's, whom old answers would lead to.
    last: u16,
    numbers: BTreeMap<String, u16>,
}

impl ServiceNumbers {
    /// The same for these services: those that are there keep what they have, new ones get the next, and who is gone gives its own back. Addresses in
    /// `taken` are nobody's.
    pub(super) fn for_services<'a>(
        &self,
        services: impl IntoIterator<Item = &'a String>,
        taken: &BTreeSet<Ipv4Addr>,
    ) -> Self {
        let mut next = Self {
            last: self.last,
            numbers: BTreeMap::new(),
        };
        let mut new = Vec::new();
        for service in services {
            match self.numbers.get(service) {
                Some(number) => {
                    next.numbers.insert(service.clone(), *number);
                }
                None => new.push(service.clone()),
            }
        }
        let mut used: BTreeSet<u16> = next.numbers.values().copied().collect();
        for service in new {
            let turns = (1..=u16::MAX).map(|step| next.last.wrapping_add(step));
            let free = |number: &u16| {
                !used.contains(number)
                    && service_v4(*number).is_some_and(|address| !taken.contains(&address))
            };
            // A policy has fewer services than there are numbers; without one, a service is its nodes, as ever.
            if let Some(number) = turns.into_iter().find(free) {
                next.last = number;
                used.insert(number);
                next.numbers.insert(service, number);
            }
        }
        next
    }

    /// Their addresses.
    pub(super) fn addresses(&self) -> ServiceAddresses {
        let numbers = self.numbers.iter();
        numbers
            .filter_map(|(service, number)| Some((service.clone(), service_v4(*number)?)))
            .collect()
    }
}

impl Book {
    /// What to write so that each service of the policy has an address; nothing if they have.
    pub(super) fn number_services(&self, policy: &Policy) -> Option<Write> {
        let nodes = self.nodes.values().map(|node| node.voucher.v4);
        // There may be such nodes where more than four million joined before services had addresses.
        let taken = nodes.filter(|v4| is_service_v4(*v4)).collect();
        let services = policy.services().keys();
        let numbers = self.services.for_services(services, &taken);
        (numbers != self.services).then(|| put("services".to_owned(), &numbers))
    }

    /// Gives addresses to the services of a policy that an older version took, which knew of none; `None` if there is nothing to do.
    pub fn settle(&self) -> Option<Plan<()>> {
        if !self.unsettled.load(Ordering::Relaxed) {
            return None;
        }
        let policy = Policy::parse(self.policy()?).ok()?;
        let Some(write) = self.number_services(&policy) else {
            self.unsettled.store(false, Ordering::Relaxed);
            return None;
        };
        Some(Plan {
            answer: (),
            writes: self.change(Subject::Policy, self.head.number, vec![write]),
        })
    }

    /// The addresses of services.
    pub fn services(&self) -> ServiceAddresses {
        self.services.addresses()
    }

    /// What is told of services with a policy. Without any there is nothing to tell, so the signed bytes are as they ever were.
    pub(super) fn told_services(&self, with_policy: bool) -> Option<ServiceAddresses> {
        let services = Some(self.services.addresses()).filter(|_| with_policy);
        services.filter(|services| !services.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_number_is_kept_and_not_soon_given_to_another() {
        let none = BTreeSet::new();
        let first = ServiceNumbers::default().for_services(&names("web db"), &none);
        let of = |numbers: &ServiceNumbers, name: &str| numbers.addresses().get(name).copied();
        assert_eq!(of(&first, "web"), Some([100, 127, 0, 1].into()));
        assert_eq!(of(&first, "db"), Some([100, 127, 0, 2].into()));
        let second = first.for_services(&names("cache web"), &none);
        assert_eq!(of(&second, "web"), Some([100, 127, 0, 1].into()));
        assert_eq!(of(&second, "cache"), Some([100, 127, 0, 3].into()));
        assert_eq!(of(&second, "db"), None);
        // What somebody else has is left out, and at the end it begins anew.
        let taken = BTreeSet::from([[100, 127, 255, 254].into(), [100, 127, 0, 2].into()]);
        let late = ServiceNumbers {
            last: 0xfffd,
            ..second
        };
        let third = late.for_services(&names("cache web db"), &taken);
        assert_eq!(of(&third, "db"), Some([100, 127, 0, 4].into()));
    }

    proptest! {
        #[test]
        fn no_two_have_one_address_and_none_changes(
            steps in proptest::collection::vec(proptest::collection::btree_set("[a-f]", 0..6), 1..12),
            last: u16,
        ) {
            let mut now = ServiceNumbers { last, numbers: BTreeMap::new() };
            for services in steps {
                let before = now.addresses();
                now = now.for_services(&services, &BTreeSet::new());
                let after = now.addresses();
                prop_assert_eq!(after.keys().cloned().collect::<BTreeSet<_>>(), services);
                prop_assert_eq!(after.values().collect::<BTreeSet<_>>().len(), after.len());
                for (service, address) in &after {
                    prop_assert!(before.get(service).is_none_or(|old| old == address));
                    prop_assert!(super::super::is_service_v4(*address));
                }
            }
        }
    }
}
