//! What members of the mesh, its administrators and its coordinator may sign or write: records, frames, tokens, policies.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        mesh::fuzzing::record(text);
    }
});
