//! Builds the guest's static binary, which this crate embeds.
//!
//! `ATOLL_GUEST_BINARY` names a file to embed instead, for whoever builds it elsewhere;
//! `ATOLL_GUEST_PROFILE` the profile to build it with, if not the usual one. Where
//! `ATOLL_TEST_FIRECRACKER` names Firecracker, the tests that need it are not ignored.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The only target that sandboxes run on today.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    println!("cargo::rerun-if-env-changed=ATOLL_GUEST_BINARY");
    println!("cargo::rerun-if-env-changed=ATOLL_GUEST_PROFILE");
    println!("cargo::rerun-if-env-changed=ATOLL_TEST_FIRECRACKER");
    println!("cargo::rustc-check-cfg=cfg(firecracker_given)");
    if env::var_os("ATOLL_TEST_FIRECRACKER").is_some() {
        println!("cargo::rustc-cfg=firecracker_given");
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    let embedded = out.join("atoll-guest");
    let built = match env::var_os("ATOLL_GUEST_BINARY") {
        Some(given) => {
            println!("cargo::rerun-if-changed={}", Path::new(&given).display());
            PathBuf::from(given)
        }
        None => build_guest(&out),
    };
    if let Err(error) = fs::copy(&built, &embedded) {
        fail(&format!("cannot copy {}: {error}", built.display()));
    }
}

fn build_guest(out: &Path) -> PathBuf {
    let crates = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    for changed in [
        "guest/src",
        "guest/Cargo.toml",
        "api/src",
        "api/Cargo.toml",
        "../Cargo.lock",
        "../Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", crates.join(changed).display());
    }
    // Its own target directory: the outer cargo holds the lock of its one. OUT_DIR is
    // TARGET/PROFILE/build/driver-HASH/out, where HASH may change; what lies beside PROFILE stays, and
    // is the same for all profiles.
    let target = out
        .ancestors()
        .nth(4)
        .unwrap_or_else(|| fail("OUT_DIR has an unknown shape"))
        .join("guest-target");
    // Small where it is shipped; quick to build where it is developed.
    let usual = match variable("PROFILE").as_str() {
        "release" => "guest",
        _ => "dev",
    };
    let profile = env::var("ATOLL_GUEST_PROFILE").unwrap_or_else(|_| usual.to_owned());

    let mut cargo = Command::new(variable("CARGO"));
    // What the outer cargo sets is about the outer build; what the user sets about registries,
    // proxies and folders stays.
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let kept = [
            "CARGO_HOME",
            "CARGO_NET_",
            "CARGO_HTTP_",
            "CARGO_REGISTRIES_",
            "CARGO_REGISTRY_",
            "CARGO_SOURCE_",
        ];
        let outer = [
            "CARGO",
            "RUSTC",
            "RUSTDOC",
            "RUSTFLAGS",
            "CLIPPY",
            "DEP_",
            "__CARGO",
            "LD_LIBRARY_PATH",
        ];
        let of_build_scripts = [
            "OUT_DIR",
            "TARGET",
            "HOST",
            "PROFILE",
            "OPT_LEVEL",
            "DEBUG",
            "NUM_JOBS",
            "MAKEFLAGS",
            "MFLAGS",
        ];
        if of_build_scripts.contains(&name)
            || outer.iter().any(|prefix| name.starts_with(prefix))
                && !kept.iter().any(|prefix| name.starts_with(prefix))
        {
            cargo.env_remove(name);
        }
    }
    let output = cargo
        .current_dir(&crates)
        .args([
            "build",
            "--locked",
            "--package",
            "guest",
            "--bin",
            "atoll-guest",
        ])
        .args(["--profile", &profile, "--target", TARGET, "--target-dir"])
        .arg(&target)
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=symbols",
        )
        .output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => fail(&format!(
            "building the guest failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        )),
        Err(error) => fail(&format!("cannot start cargo: {error}")),
    }
    let folder = if profile == "dev" { "debug" } else { &profile };
    target.join(TARGET).join(folder).join("atoll-guest")
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("{name} is not set")))
}

fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    std::process::exit(1)
}
