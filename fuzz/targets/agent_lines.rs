//! Lines that guests send as their logs, and lines of the agent's journal.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let lines = agent::count_guest_lines(data);
    assert!(lines <= data.iter().filter(|byte| **byte == b'\n').count() + 1);
    assert!(agent::fuzzing::journal_survives_rewriting(data));
});
