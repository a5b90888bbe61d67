//! Ids, template sources, and the envelopes of the Connect protocol.
#![no_main]

use api::{
    BuildId, ImageDigest, SandboxId, TemplateId, TenantId,
    envd::connect::{EnvelopeReader, seal},
    template::TemplateSource,
};
use libfuzzer_sys::fuzz_target;
use std::{fmt::Display, str::FromStr};

/// Longest message that the reader takes here.
const LIMIT: usize = 1000;

fuzz_target!(|data: &[u8]| {
    check_envelopes(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    check_round_trip::<SandboxId>(text, true);
    check_round_trip::<TemplateId>(text, true);
    check_round_trip::<TenantId>(text, true);
    check_round_trip::<BuildId>(text, true);
    check_round_trip::<ImageDigest>(text, true);
    check_source(text);
});

fn check_round_trip<T: FromStr + Display + PartialEq>(text: &str, one_word: bool) {
    let Ok(parsed) = text.parse::<T>() else { return };
    let printed = parsed.to_string();
    assert!(printed.parse::<T>().is_ok_and(|again| again == parsed), "{text:?}");
    if one_word {
        assert_eq!(printed, text, "there is one way to write it");
        assert!(!text.contains(['/', '.', '\\', '\0', ' ']), "{text:?} is no file name");
    }
}

fn check_source(text: &str) {
    check_round_trip::<TemplateSource>(text, false);
    if let Ok(TemplateSource::Debian { suite, packages }) = text.parse() {
        for word in packages.iter().chain([&suite]) {
            assert!(!word.starts_with('-'), "{word:?} is an option");
            assert!(!word.contains(['/', ' ', '\n', ';', '$', ',']), "{word:?}");
        }
    }
}

fn check_envelopes(data: &[u8]) {
    // Whole or in pieces, the same envelopes come out.
    let size = data.first().map_or(1, |byte| usize::from(*byte % 16) + 1);
    let whole = read(std::iter::once(data));
    assert_eq!(read(data.chunks(size)), whole);
    // Written again, they are the input's beginning.
    let sealed: Vec<u8> =
        whole.iter().flat_map(|(flags, message)| seal(*flags, message)).collect();
    assert!(data.starts_with(&sealed));
}

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<(u8, Vec<u8>)> {
    let mut reader = EnvelopeReader::new(LIMIT);
    let mut envelopes = Vec::new();
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.take() {
                Ok(Some(envelope)) => {
                    assert!(envelope.message.len() <= LIMIT);
                    envelopes.push((envelope.flags, envelope.message.to_vec()));
                }
                Ok(None) => break,
                Err(_) => return envelopes,
            }
        }
    }
    envelopes
}
