//! Ranges, signatures, accounts, labels, codings, forms and paths, as the guest reads them.
#![no_main]

use guest::{
    accounts::{self, User},
    encoding, metadata,
    multipart::{Multipart, Piece},
    paths,
    range::{self, Selection},
    signature::{Claim, Operation, sign, verify},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use std::path::{Component, Path};

fuzz_target!(|data: &[u8]| {
    check_form(data);
    let Some([header, path, user, accept, rest]) = fuzz::texts(data) else { return };
    check_range(header, rest.len() as u64);
    check_path(path, user);
    check_signature(path, user, accept);
    let _ = encoding::choose(Some(accept));
    let _ = encoding::of_request(Some(accept));
    check_accounts(rest);
    check_labels(rest);
});

fn check_range(header: &str, size: u64) {
    for size in [size, 0, 1, u64::MAX] {
        if let Selection::Part { start, end } = range::parse(header, size) {
            assert!(start < end && end <= size, "{header:?} of {size}");
        }
    }
}

fn check_path(text: &str, home: &str) {
    let user = User {
        name: "user".into(),
        uid: 1000,
        gid: 1000,
        home: Path::new("/home").join(home.trim_start_matches('/')),
    };
    if user.home.as_os_str().len() > 1000 || home.contains('\0') {
        return;
    }
    let Ok(path) = paths::resolve(text, &user, "/home/user") else { return };
    let mut parts = path.components();
    assert_eq!(parts.next(), Some(Component::RootDir));
    assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{text:?} became {path:?}");
    assert_eq!(paths::clean(&path), path);
}

fn check_signature(path: &str, user: &str, forged: &str) {
    let claim = Claim { path, operation: Operation::Read, user, expiration: Some(100) };
    let signature = sign(claim, "token");
    assert_eq!(verify(claim, "token", &signature, 100), Ok(()));
    assert!(verify(claim, "token", &signature, 101).is_err());
    assert!(verify(claim, "other", &signature, 0).is_err());
    let other = Claim { operation: Operation::Write, ..claim };
    assert!(verify(other, "token", &signature, 0).is_err());
    assert!(forged == signature || verify(claim, "token", forged, 0).is_err());
}

fn check_accounts(text: &str) {
    for user in accounts::parse_users(text) {
        assert!(!user.name.contains([':', '\n']));
        let groups = accounts::group_ids(&user, text);
        assert!(groups.contains(&user.gid));
        let mut once = groups.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), groups.len(), "each once");
    }
    for group in accounts::parse_groups(text) {
        assert!(!group.name.contains([':', '\n']));
    }
}

fn check_labels(text: &str) {
    let mut headers = HeaderMap::new();
    for line in text.lines().take(64) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
            headers.append(name, value);
        }
    }
    let Ok(labels) = metadata::parse(&headers) else { return };
    let total: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert!(total <= 4096);
    for (key, value) in &labels {
        assert!((1..=246).contains(&key.len()) && value.is_ascii());
    }
}

fn check_form(data: &[u8]) {
    let size = data.first().map_or(1, |byte| usize::from(*byte % 32) + 1);
    let whole = read_form(std::iter::once(data));
    let pieces = read_form(data.chunks(size));
    assert_eq!(pieces, whole, "cut into pieces of {size}");
}

/// What a form says: parts with their content, and whether it ended well.
fn read_form<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<(String, Vec<u8>)>, bool) {
    let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
    let Ok(mut form) = Multipart::new("multipart/form-data; boundary=b") else {
        unreachable!("the boundary is there")
    };
    for chunk in chunks {
        form.push(chunk);
        loop {
            match form.take() {
                Ok(Some(Piece::Head(head))) => parts.push((head.name, Vec::new())),
                Ok(Some(Piece::Data(bytes))) => match parts.last_mut() {
                    Some((_, content)) => content.extend_from_slice(&bytes),
                    None => panic!("content without a part"),
                },
                Ok(Some(Piece::End)) => {}
                Ok(None) => break,
                // How much was read before an error depends on the pieces, and nobody cares.
                Err(_) => return (Vec::new(), false),
            }
        }
    }
    (parts, form.finish().is_ok())
}
