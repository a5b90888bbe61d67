//! The distribution's kernel for virtual machines, out of its package.

use super::{PARTIAL, Parts};
use crate::{DriverError, doing};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Always depends on the newest kernel.
const NAME: &str = "linux-image-cloud-amd64";

/// A package that was unpacked into a directory, which goes when this is dropped.
pub(super) struct Package {
    directory: PathBuf,
    name: String,
    version: String,
}

impl Drop for Package {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Name and version of the kernel's package, as the machine's package lists have it.
pub(super) fn look() -> Result<(String, String), DriverError> {
    let about = run(Command::new("apt-cache").args(["show", "--no-all-versions", NAME]))?;
    newest(&about)
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .ok_or_else(|| unavailable(&format!("{NAME} names no kernel that it depends on")))
}

/// Downloads and unpacks the package below `folder`.
pub(super) fn fetch(
    folder: &Path,
    progress: &mut impl FnMut(&str),
) -> Result<Package, DriverError> {
    let (name, version) = look()?;
    let directory = folder.join(format!("{PARTIAL}package-{}", std::process::id()));
    let package = Package {
        directory: directory.clone(),
        name: name.clone(),
        version: version.clone(),
    };
    let root = directory.join("root");
    fs::create_dir_all(&root).map_err(doing(format!("make {}", root.display())))?;
    progress(&format!("downloading {name} {version}"));
    // As the user who runs this, since no other may write here.
    run(Command::new("apt-get")
        .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
        .arg(format!("{name}={version}"))
        .current_dir(&directory))?;
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    let file = entries
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| unavailable("apt-get downloaded no file"))?;
    progress(&format!("unpacking {name} {version}"));
    run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&root))?;
    Ok(package)
}

impl Package {
    /// What of it is needed.
    pub(super) fn parts(&self) -> Result<Parts, DriverError> {
        let release = self.name.trim_start_matches("linux-image-");
        let root = self.directory.join("root");
        let image = root.join("boot").join(format!("vmlinuz-{release}"));
        let config = root.join("boot").join(format!("config-{release}"));
        // Where everything below / is in /usr, so are modules.
        let places = ["lib/modules", "usr/lib/modules"];
        let modules = places.map(|place| root.join(place).join(release));
        Ok(Parts {
            image: fs::read(&image).map_err(doing(format!("read {}", image.display())))?,
            config: fs::read_to_string(config).ok(),
            modules: modules
                .into_iter()
                .find(|place| place.join("kernel").is_dir()),
            origin: format!(
                "the kernel is Debian's package {} {}",
                self.name, self.version
            ),
            given: None,
        })
    }
}

/// Name and version of the kernel that the text of `apt-cache show` depends on.
fn newest(about: &str) -> Option<(&str, &str)> {
    let depends = about
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?;
    depends.split(',').find_map(|dependency| {
        let (name, rest) = dependency.trim().split_once(' ')?;
        let version = rest.trim().strip_prefix("(=")?.strip_suffix(')')?.trim();
        let plain = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".+-:~".contains(&byte))
        };
        (name.starts_with("linux-image-") && plain(name) && plain(version))
            .then_some((name, version))
    })
}

fn run(command: &mut Command) -> Result<String, DriverError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .map_err(|error| unavailable(&format!("{program} cannot be run: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.trim().lines().next_back().unwrap_or("it said nothing");
    Err(unavailable(&format!("{program} failed: {last}")))
}

fn unavailable(why: &str) -> DriverError {
    DriverError::Unsupported {
        cause: format!("there is no kernel for microVMs: {why}"),
        remedy: format!(
            "name a kernel, or make the package `{NAME}` available: on Debian run `apt-get update`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_what_the_package_depends_on() {
        let about = "Package: linux-image-cloud-amd64\nDepends: linux-base, \
                     linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        assert_eq!(
            newest(about),
            Some(("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"))
        );
        assert_eq!(newest("Depends: linux-image-x$(y) (= 1)\n"), None);
        assert_eq!(newest(""), None);
    }
}
