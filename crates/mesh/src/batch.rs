//! Many packets in one piece of memory.

/// Packets one after the other, without gaps: what was sealed into a batch can be handed to the kernel as one
/// datagram to be cut. The memory is kept when the batch is cleared.
#[derive(Debug, Default)]
pub struct Batch {
    /// Initialised memory; what lies beyond the last packet's end is left over from before.
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Batch {
    /// An empty batch that takes this many bytes without growing.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: vec![0; bytes],
            ends: Vec::with_capacity(bytes / 512 + 1),
        }
    }

    /// Forgets the packets.
    pub fn clear(&mut self) {
        self.ends.clear();
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many bytes the packets have together.
    pub fn size(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// One packet.
    pub fn get(&self, at: usize) -> Option<&[u8]> {
        let end = *self.ends.get(at)?;
        self.bytes.get(self.start(at)..end)
    }

    /// One packet, to be changed in place.
    pub fn get_mut(&mut self, at: usize) -> Option<&mut [u8]> {
        let end = *self.ends.get(at)?;
        let start = self.start(at);
        self.bytes.get_mut(start..end)
    }

    /// All packets in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|at| self.get(at))
    }

    /// The bytes of packets `from` up to but without `to`, in one piece.
    pub fn slice(&self, from: usize, to: usize) -> &[u8] {
        let end = to
            .checked_sub(1)
            .and_then(|last| self.ends.get(last))
            .copied()
            .unwrap_or(0);
        self.bytes.get(self.start(from)..end).unwrap_or(&[])
    }

    /// Adds a copy of the packet.
    pub fn push(&mut self, packet: &[u8]) {
        self.append(packet.len(), |space| {
            space.copy_from_slice(packet);
            Some(packet.len())
        });
    }

    /// Adds a packet of at most `room` bytes, which `write` fills in; it returns how many it wrote, or `None` if there
    /// is no packet after all. Returns whether there is one. What `space` holds before is not defined.
    pub fn append(&mut self, room: usize, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let start = self.size();
        let end = start + room;
        if self.bytes.len() < end {
            self.bytes.resize(end.next_power_of_two(), 0);
        }
        match write(&mut self.bytes[start..end]) {
            Some(written) => {
                self.ends.push(start + written.min(room));
                true
            }
            None => false,
        }
    }

    fn start(&self, at: usize) -> usize {
        at.checked_sub(1)
            .and_then(|before| self.ends.get(before))
            .copied()
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_lie_side_by_side() {
        let mut batch = Batch::with_capacity(4);
        batch.push(b"one");
        assert!(!batch.append(10, |_| None));
        assert!(batch.append(10, |space| {
            space[..4].copy_from_slice(b"four");
            Some(4)
        }));
        batch.push(b"");
        assert_eq!(
            batch.iter().collect::<Vec<_>>(),
            [&b"one"[..], b"four", b""]
        );
        assert_eq!(batch.slice(0, 2), b"onefour");
        assert_eq!(batch.slice(1, 2), b"four");
        assert_eq!(batch.slice(1, 1), b"");
        assert_eq!((batch.len(), batch.size(), batch.get(3)), (3, 7, None));
        batch.clear();
        assert!(batch.is_empty());
        assert_eq!(batch.size(), 0);
    }
}
