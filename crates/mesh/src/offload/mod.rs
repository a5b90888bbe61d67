//! What a network card would do for the kernel: cut large packets, join small ones, add checksums.
//!
//! With `IFF_VNET_HDR`, the kernel puts a header before each packet that it reads or writes at a TUN device
//! (`struct virtio_net_hdr`, virtio 1.2 section 5.1.6) and passes up to 64 KiB at once. [`segment`] cuts what
//! comes from the kernel into packets of the tunnel's MTU; [`coalesce`] joins what came out of the tunnel. Both ways, the
//! network stack above is passed once for some forty packets.

pub(crate) mod checksum;
pub(crate) mod coalesce;
pub(crate) mod segment;

/// The length of the header; in the host's byte order.
pub(crate) const VIRTIO_HEADER: usize = 10;

/// Flag: the checksum from `checksum_start` on is still to be made.
pub(crate) const NEEDS_CHECKSUM: u8 = 1;

/// How a packet is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Not,
    Tcp4,
    Tcp6,
    Udp,
}

/// The header before a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VirtioHeader {
    pub(crate) needs_checksum: bool,
    pub(crate) cut: Cut,
    /// How long all headers are.
    pub(crate) header_length: u16,
    /// The payload of each packet after cutting.
    pub(crate) segment: u16,
    /// Where TCP's or UDP's header begins.
    pub(crate) checksum_start: u16,
    /// Where in that header the checksum is.
    pub(crate) checksum_offset: u16,
}

const ECN: u8 = 0x80;

impl VirtioHeader {
    /// The header of a packet that is complete.
    pub(crate) const PLAIN: Self = Self {
        needs_checksum: false,
        cut: Cut::Not,
        header_length: 0,
        segment: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// Reads a header; `None` if it is too short or of a kind that was not asked for.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; VIRTIO_HEADER] = bytes.get(..VIRTIO_HEADER)?.try_into().ok()?;
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let cut = match bytes[1] & !ECN {
            0 => Cut::Not,
            1 => Cut::Tcp4,
            4 => Cut::Tcp6,
            5 => Cut::Udp,
            _ => return None,
        };
        Some(Self {
            needs_checksum: bytes[0] & NEEDS_CHECKSUM != 0,
            cut,
            header_length: number(2),
            segment: number(4),
            checksum_start: number(6),
            checksum_offset: number(8),
        })
    }

    /// Writes the header.
    pub(crate) fn write(&self) -> [u8; VIRTIO_HEADER] {
        let mut bytes = [0; VIRTIO_HEADER];
        bytes[0] = if self.needs_checksum {
            NEEDS_CHECKSUM
        } else {
            0
        };
        bytes[1] = match self.cut {
            Cut::Not => 0,
            Cut::Tcp4 => 1,
            Cut::Tcp6 => 4,
            Cut::Udp => 5,
        };
        let numbers = [
            self.header_length,
            self.segment,
            self.checksum_start,
            self.checksum_offset,
        ];
        for (place, number) in bytes[2..].chunks_exact_mut(2).zip(numbers) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests;
