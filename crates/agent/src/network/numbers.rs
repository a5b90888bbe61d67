//! Which slot numbers are free.

use driver::NetworkSlot;
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

/// The numbers of a node's slots. Each is in exactly one place: free, used, retired, or left over
/// from an earlier run.
///
/// Free numbers are handed out oldest first, so that an address rests as long as possible before
/// somebody else gets it: late packets and stale entries in tables then meet nobody.
#[derive(Debug)]
pub(super) struct Numbers {
    free: VecDeque<u32>,
    used: BTreeSet<u32>,
    left_over: BTreeSet<u32>,
    retired: Vec<Arc<NetworkSlot>>,
}

impl Numbers {
    /// All numbers below `count` are free but those in `left_over`.
    pub(super) fn new(count: u32, left_over: BTreeSet<u32>) -> Self {
        Self {
            free: (0..count)
                .filter(|number| !left_over.contains(number))
                .collect(),
            used: BTreeSet::new(),
            left_over,
            retired: Vec::new(),
        }
    }

    /// Takes a free number.
    pub(super) fn claim(&mut self) -> Option<u32> {
        self.reclaim();
        let number = self.free.pop_front()?;
        self.used.insert(number);
        Some(number)
    }

    /// Takes a number that an earlier run left. False if it is not one.
    pub(super) fn adopt(&mut self, number: u32) -> bool {
        self.left_over.remove(&number) && self.used.insert(number)
    }

    /// Undoes [`Numbers::adopt`].
    pub(super) fn disown(&mut self, number: u32) {
        if self.used.remove(&number) {
            self.left_over.insert(number);
        }
    }

    /// Whether a slot of this number is in use.
    pub(super) fn is_used(&self, number: u32) -> bool {
        self.used.contains(&number)
    }

    /// Gives back a number for which no slot exists.
    pub(super) fn free(&mut self, number: u32) {
        if self.used.remove(&number) {
            self.free.push_back(number);
        }
    }

    /// Gives back a slot. Its number is free again when nobody else holds a handle of it. A slot
    /// that was given back already, or is not of this node, changes nothing.
    pub(super) fn retire(&mut self, slot: Arc<NetworkSlot>) {
        if self.used.contains(&slot.number)
            && !self
                .retired
                .iter()
                .any(|retired| retired.number == slot.number)
        {
            self.retired.push(slot);
        }
    }

    /// Frees the numbers of earlier runs that are not in `keep`.
    pub(super) fn sweep(&mut self, keep: &BTreeSet<u32>) {
        let (kept, swept) = self
            .left_over
            .iter()
            .partition(|number| keep.contains(number));
        self.left_over = kept;
        let swept: BTreeSet<u32> = swept;
        self.free.extend(swept);
    }

    fn reclaim(&mut self) {
        let Self {
            retired,
            used,
            free,
            ..
        } = self;
        retired.retain(|slot| {
            // A strong count of one is ours: nobody can make another from it.
            let held = Arc::strong_count(slot) > 1;
            if !held && used.remove(&slot.number) {
                free.push_back(slot.number);
            }
            held
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn slot(number: u32) -> Arc<NetworkSlot> {
        Arc::new(NetworkSlot {
            number,
            namespace: std::fs::File::open("/dev/null").unwrap().into(),
            host_interface: String::new(),
            address: Ipv4Addr::LOCALHOST,
            gateway: Ipv4Addr::LOCALHOST,
            tap: None,
        })
    }

    #[test]
    fn a_number_is_free_only_after_every_handle_is_closed() {
        let mut numbers = Numbers::new(1, BTreeSet::new());
        let first = slot(numbers.claim().unwrap());
        let handle = Arc::clone(&first);
        numbers.retire(first);
        assert_eq!(numbers.claim(), None);
        drop(handle);
        assert_eq!(numbers.claim(), Some(0));
    }

    #[test]
    fn the_number_that_rested_longest_comes_first() {
        let mut numbers = Numbers::new(3, BTreeSet::new());
        assert_eq!(numbers.claim(), Some(0));
        numbers.free(0);
        assert_eq!(numbers.claim(), Some(1));
        assert_eq!(numbers.claim(), Some(2));
        assert_eq!(numbers.claim(), Some(0));
        assert_eq!(numbers.claim(), None);
    }

    #[test]
    fn giving_back_twice_frees_once() {
        let mut numbers = Numbers::new(2, BTreeSet::new());
        let first = slot(numbers.claim().unwrap());
        numbers.retire(Arc::clone(&first));
        numbers.retire(first);
        numbers.retire(slot(7));
        assert_eq!(numbers.claim(), Some(1));
        assert_eq!(numbers.claim(), Some(0));
        assert_eq!(numbers.claim(), None);
    }

    #[test]
    fn what_an_earlier_run_left_is_adopted_or_swept_but_never_handed_out() {
        let mut numbers = Numbers::new(4, BTreeSet::from([0, 1, 2]));
        assert_eq!(numbers.claim(), Some(3));
        assert!(numbers.adopt(1));
        assert!(!numbers.adopt(1));
        assert!(!numbers.adopt(3));
        numbers.sweep(&BTreeSet::from([1, 2]));
        assert_eq!(numbers.claim(), Some(0));
        assert_eq!(numbers.claim(), None);
        numbers.sweep(&BTreeSet::new());
        assert_eq!(numbers.claim(), Some(2));
    }
}
