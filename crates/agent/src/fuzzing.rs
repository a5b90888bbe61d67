//! What fuzzers reach of the private parts.

use crate::journal::{Ledger, Record};

/// Takes lines of a journal into account as the agent does at its start: lines that make no sense
/// are left out. Then writes the result down as compaction does, reads that, and says whether
/// nothing was lost.
pub fn journal_survives_rewriting(bytes: &[u8]) -> bool {
    let read = |lines: &mut dyn Iterator<Item = Vec<u8>>| {
        let mut ledger = Ledger::default();
        for line in lines {
            if let Ok(record) = serde_json::from_slice::<Record>(&line) {
                // An illegal record changes nothing.
                let _ = ledger.apply(&record);
            }
        }
        ledger
    };
    let ledger = read(&mut bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
    let records = ledger.records();
    let mut lines = records
        .iter()
        .filter_map(|record| serde_json::to_vec(record).ok());
    read(&mut lines) == ledger
}
