//! What anybody may send to a node of the mesh: datagrams, packets in tunnels, questions for names, words to a proxy.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 3 {
        0 => mesh::fuzzing::datagram(rest),
        1 => mesh::fuzzing::packet(rest),
        _ => mesh::fuzzing::question(rest),
    }
});
