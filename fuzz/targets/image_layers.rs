//! Whole layers, unpacked for real: nothing outside the root may change.
//!
//! The input is a script that becomes a tar archive, so that the fuzzer need not learn checksums;
//! the raw bytes are read as an archive as well.
#![no_main]

use image::{Limits, archive::ArchiveReader, unpack::unpack};
use libfuzzer_sys::fuzz_target;
use std::{
    fs,
    io::Read,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

fuzz_target!(|data: &[u8]| {
    read(data);
    read(&archive(data));
    unpack_beside_a_witness(&archive(data));
});

/// Names that are worth trying; a script picks from them.
const NAMES: [&str; 16] = [
    "a", "a/b", "a/b/c", "link", "link/x", "../witness/file", "/../witness/x", "a/../../witness",
    ".wh.a", "a/.wh..wh..opq", ".wh...", ".wh..", "link/../x", "./a/", "", "a/link/b",
];

/// Where links point to.
const AIMS: [&str; 8] =
    ["../witness", "/witness", "..", "/", "a", "../../witness/file", ".", "link"];

/// Makes an archive out of a script: three bytes for each entry.
fn archive(script: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for step in script.chunks_exact(3).take(40) {
        let name = NAMES[usize::from(step[0]) % NAMES.len()];
        let aim = AIMS[usize::from(step[1]) % AIMS.len()];
        let kind = b"0125346L"[usize::from(step[2]) % 8];
        let content: &[u8] = if matches!(kind, b'0' | b'L') { b"../witness/new" } else { b"" };
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(if step[2] & 8 == 0 { b"0000755" } else { b"0006777" });
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[136..147].copy_from_slice(b"00000000000");
        block[156] = kind;
        block[157..157 + aim.len()].copy_from_slice(aim.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.extend_from_slice(&block);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn read(bytes: &[u8]) {
    let mut reader = ArchiveReader::new(bytes);
    let mut content = Vec::new();
    for _ in 0..100 {
        let Ok(Some(_)) = reader.next() else { break };
        content.clear();
        let _ = (&mut reader).take(1 << 20).read_to_end(&mut content);
        assert!(content.len() <= bytes.len());
    }
    assert!(reader.position() <= bytes.len() as u64);
}

/// A directory as text: names, kinds, permissions, contents.
fn describe(directory: &Path) -> String {
    let mut lines: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let metadata = entry.metadata().map(|found| (found.permissions().mode(), found.len()));
            let content = fs::read(entry.path()).unwrap_or_default();
            format!("{:?} {metadata:?} {content:?}", entry.file_name())
        })
        .collect();
    lines.sort();
    let own = fs::metadata(directory).map(|found| found.permissions().mode());
    format!("{own:?} {lines:?}")
}

fn unpack_beside_a_witness(archive: &[u8]) {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let Ok(base) = base else { return };
    let (witness, lower, root) =
        (base.path().join("witness"), base.path().join("lower"), base.path().join("root"));
    for directory in [&witness, &lower, &root] {
        if fs::create_dir(directory).is_err() {
            return;
        }
    }
    let prepared = fs::write(witness.join("file"), "untouched")
        .and_then(|()| fs::create_dir(lower.join("a")))
        .and_then(|()| symlink("../witness", lower.join("link")))
        .and_then(|()| symlink("../../witness", lower.join("a/link")));
    if prepared.is_err() {
        return;
    }
    let before = (describe(&witness), describe(&lower), describe(&lower.join("a")));
    let limits = Limits { entries: 100, bytes: 1 << 20, ..Limits::default() };
    let _ = unpack(archive, &root, &[], limits);
    let second = base.path().join("second");
    if fs::create_dir(&second).is_ok() {
        let _ = unpack(archive, &second, std::slice::from_ref(&lower), limits);
    }
    let after = (describe(&witness), describe(&lower), describe(&lower.join("a")));
    assert_eq!(before, after, "something outside the root was touched");
    let beside = fs::read_dir(base.path()).into_iter().flatten().count();
    assert_eq!(beside, 4, "something was made beside the root");
}
