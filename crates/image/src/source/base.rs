//! `base`: what users of E2B's SDKs expect to find.
//!
//! All that it is stands here and in `base.sh`. Change either and the next build makes it anew.

use super::debian::{Definition, bootstrap};
use crate::{
    build::{Build, Made},
    error::ImageError,
    store::ImageConfig,
};

/// Raise it to have `base` made anew although nothing here changed.
const VERSION: u32 = 1;
const SUITE: &str = "bookworm";
const PACKAGES: [&str; 14] = [
    "bash",
    "ca-certificates",
    "curl",
    "git",
    "iproute2",
    "less",
    "nodejs",
    "procps",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
    "sudo",
    "tzdata",
];
/// As in Debian's own slim images: what nobody reads in a sandbox.
const EXCLUDED: [&str; 8] = [
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/doc/*",
    "!/usr/share/doc/*/copyright",
    "/usr/share/locale/*",
    "!/usr/share/locale/locale.alias",
    "/usr/share/lintian/*",
    "/usr/share/groff/*",
];
const ENVIRONMENT: [(&str, &str); 3] = [
    ("LANG", "C.UTF-8"),
    (
        "PATH",
        "/home/user/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    // For programs that call pip with a configuration of their own.
    ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
];

pub(super) async fn make(build: &Build) -> Result<Made, ImageError> {
    let definition = Definition {
        version: VERSION,
        suite: SUITE.to_owned(),
        packages: PACKAGES.map(str::to_owned).to_vec(),
        excluded: &EXCLUDED,
        script: include_str!("base.sh").to_owned(),
        config: ImageConfig {
            environment: ENVIRONMENT
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into_iter()
                .collect(),
            user: Some("user".into()),
            working_directory: Some("/home/user".into()),
            command: Vec::new(),
        },
    };
    bootstrap(build, definition).await
}
