//! Where a machine's memory is in Firecracker: what it says when it connects.
//!
//! Firecracker runs a hostile guest, so nothing is taken as said: every region must lie in the
//! memory file, on whole pages, and beside all others.

use crate::sparse::PAGE;
use serde::Deserialize;
use std::io;

/// The most regions that a machine may have: it has one or two, for the hole below 4 GiB.
const MOST_REGIONS: usize = 64;

/// A huge page.
const HUGE: u64 = 2 << 20;

/// As Firecracker writes it. Version 1.10 named the size of pages otherwise, though it was in bytes.
#[derive(Debug, Deserialize)]
struct Said {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    page_size_kib: Option<u64>,
}

/// Memory side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    /// In Firecracker.
    pub(super) start: u64,
    pub(super) length: u64,
    /// In the memory file.
    pub(super) offset: u64,
    /// How much comes at once.
    pub(super) page: u64,
}

/// All of a machine's memory.
#[derive(Debug)]
pub(super) struct Layout(Vec<Region>);

impl Layout {
    /// From what Firecracker says, for a memory file of a length.
    pub(super) fn parse(text: &[u8], length: u64) -> io::Result<Self> {
        let said: Vec<Said> = serde_json::from_slice(text)?;
        let odd = || io::Error::new(io::ErrorKind::InvalidData, "memory that cannot be");
        if said.is_empty() || said.len() > MOST_REGIONS {
            return Err(odd());
        }
        let mut regions = Vec::with_capacity(said.len());
        for said in said {
            let region = Region {
                start: said.base_host_virt_addr,
                length: said.size,
                offset: said.offset,
                page: said.page_size.or(said.page_size_kib).unwrap_or(PAGE),
            };
            let fits = |from: u64, most: u64| {
                from.checked_add(region.length)
                    .is_some_and(|end| end <= most)
            };
            let whole = [region.start, region.length, region.offset];
            if ![PAGE, HUGE].contains(&region.page)
                || region.length == 0
                || whole.iter().any(|number| number % region.page != 0)
                || !fits(region.offset, length)
                || !fits(region.start, i64::MAX as u64)
            {
                return Err(odd());
            }
            regions.push(region);
        }
        let overlap = |from: fn(&Region) -> u64| {
            let mut spans: Vec<_> = regions
                .iter()
                .map(|region| (from(region), region.length))
                .collect();
            spans.sort_unstable();
            spans.windows(2).any(|two| two[0].0 + two[0].1 > two[1].0)
        };
        if overlap(|region| region.start) || overlap(|region| region.offset) {
            return Err(odd());
        }
        Ok(Self(regions))
    }

    /// All regions; at least one.
    pub(super) fn regions(&self) -> &[Region] {
        &self.0
    }

    /// The region that an address lies in.
    pub(super) fn region_of(&self, address: u64) -> Option<&Region> {
        self.0
            .iter()
            .find(|region| (region.start..region.start + region.length).contains(&address))
    }

    /// The parts of the memory file that lie between two addresses.
    pub(super) fn offsets(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().filter_map(move |region| {
            let from = start.max(region.start);
            let to = end.min(region.start + region.length);
            let offset = |address: u64| address - region.start + region.offset;
            (from < to).then(|| (offset(from), offset(to)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(regions: &str) -> io::Result<Layout> {
        Layout::parse(regions.as_bytes(), 8 << 20)
    }

    fn region(start: u64, size: u64, offset: u64, page: u64) -> String {
        format!(
            "{{\"base_host_virt_addr\":{start},\"size\":{size},\"offset\":{offset},\
             \"page_size\":{page},\"page_size_kib\":{page}}}"
        )
    }

    #[test]
    fn regions_are_found_by_address() {
        let (low, high) = (
            region(4 << 20, 2 << 20, 0, PAGE),
            region(16 << 20, 4 << 20, 2 << 20, HUGE),
        );
        let layout = parse(&format!("[{low},{high}]")).unwrap();
        assert_eq!(layout.region_of((4 << 20) + 5).unwrap().page, PAGE);
        assert_eq!(layout.region_of(17 << 20).unwrap().offset, 2 << 20);
        assert_eq!(layout.region_of(6 << 20), None);
        let removed: Vec<_> = layout.offsets(5 << 20, 17 << 20).collect();
        assert_eq!(removed, [(1 << 20, 2 << 20), (2 << 20, 3 << 20)]);
        // As the oldest version says it, and one that says nothing of pages.
        let old =
            "[{\"base_host_virt_addr\":4096,\"size\":4096,\"offset\":0,\"page_size_kib\":4096}]";
        assert!(parse(old).is_ok());
        assert!(parse(&old.replace(",\"page_size_kib\":4096", "")).is_ok());
    }

    #[test]
    fn memory_that_cannot_be_is_refused() {
        let good = region(4 << 20, 4 << 20, 0, PAGE);
        assert!(parse(&format!("[{good}]")).is_ok());
        for odd in [
            "[]".to_owned(),
            "{".to_owned(),
            format!("[{good},{good}]"),
            format!("[{good},{}]", region(64 << 20, 4 << 20, 2 << 20, PAGE)),
            format!("[{good},{}]", region(6 << 20, 4 << 20, 4 << 20, PAGE)),
            format!("[{}]", region(4 << 20, 4 << 20, 6 << 20, PAGE)),
            format!("[{}]", region(4 << 20, u64::MAX - 4095, 4096, PAGE)),
            format!("[{}]", region(u64::MAX - 4095, 4096, 0, PAGE)),
            format!("[{}]", region((4 << 20) + 1, 4096, 0, PAGE)),
            format!("[{}]", region(4 << 20, 4096, 1, PAGE)),
            format!("[{}]", region(4 << 20, 4095, 0, PAGE)),
            format!("[{}]", region(4 << 20, 0, 0, PAGE)),
            format!("[{}]", region(4 << 20, 4096, 0, HUGE)),
            format!("[{}]", region(4 << 20, 4096, 0, 1)),
            format!("[{}]", region(4 << 20, 4096, 0, 0)),
            format!("[{}]", vec![good.as_str(); 100].join(",")),
        ] {
            assert!(parse(&odd).is_err(), "{odd}");
        }
    }
}
