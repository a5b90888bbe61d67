//! Image references, Docker's configuration file, challenges of registries, names in layers.
#![no_main]

use image::{
    registry::{
        challenge::parse_challenges,
        credentials::{Found, look_up},
        reference::Reference,
    },
    unpack::path::{EntryPath, NameMeaning, meaning},
};
use libfuzzer_sys::fuzz_target;
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Component};

/// Longest path that is taken here.
const LONGEST: usize = 1000;

fuzz_target!(|data: &[u8]| {
    check_name(data);
    let Some([reference, challenge, config]) = fuzz::texts(data) else { return };
    check_reference(reference);
    for challenge in parse_challenges(challenge) {
        assert_eq!(challenge.scheme, challenge.scheme.to_ascii_lowercase());
    }
    let registry = reference.parse::<Reference>().map_or("r.example".into(), |r| r.registry);
    if let Ok(Found::Helper { name, .. }) = look_up(config.as_bytes(), &registry) {
        assert!(!name.contains(['/', ' ', '\0']), "{name:?} is started as a program");
    }
});

fn check_reference(text: &str) {
    let Ok(reference) = text.parse::<Reference>() else { return };
    let printed = reference.to_string();
    assert!(printed.parse::<Reference>().is_ok_and(|again| again == reference), "{text:?}");
    // Host, repository and manifest go into URLs as they are.
    for part in [reference.api_host(), &reference.repository, &reference.manifest()] {
        assert!(!part.is_empty() && !part.contains(['?', '#', '@', '%', '\\', ' ']), "{part:?}");
        assert!(!part.split('/').any(|piece| matches!(piece, "" | "." | "..")), "{part:?}");
        assert!(part.bytes().all(|byte| byte.is_ascii_graphic()));
    }
}

fn check_name(name: &[u8]) {
    if let Ok(path) = EntryPath::parse(name, LONGEST) {
        assert!(path.as_path().as_os_str().len() <= LONGEST);
        let mut parts = path.as_path().components();
        assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{name:?} leaves the root");
        assert_eq!(path.is_root(), path.split().is_none());
        if let Some((directory, last)) = path.split() {
            assert_eq!(directory.join(last), path.as_path());
            if let NameMeaning::Whiteout(hidden) = meaning(last) {
                assert!(!matches!(hidden.as_bytes(), b"" | b"." | b".."));
                assert!(!hidden.as_bytes().contains(&b'/'));
            }
        }
    }
    let _ = meaning(OsStr::from_bytes(name));
}
