//! Runs `mkfs.erofs` over an image's layers.

use crate::error::ImageError;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const PROGRAM: &str = "mkfs.erofs";

/// Lays `$3` and following (layers, uppermost first) over each other in `$2`, in a mount namespace
/// of its own, and makes the disk `$1` of what is to be seen there. The layers get short names
/// first: a mount's options have to fit into one page.
const SCRIPT: &str = "
set -eu
disk=$1 view=$2
shift 2
if [ $# -gt 1 ]; then
    mount -t tmpfs -o mode=700,size=1m atoll-view \"$view\"
    lower= number=0
    for layer; do
        number=$((number + 1))
        ln -s -- \"$layer\" \"$view/$number\"
        lower=\"${lower:+$lower:}$number\"
    done
    mkdir \"$view/root\"
    cd \"$view\"
    mount -t overlay -o \"ro,lowerdir=$lower\" atoll-view root
    set -- \"$view/root\"
fi
exec mkfs.erofs \"$disk\" \"$1\"
";

/// Makes the disk `file` of `layers`, uppermost first. `view` is a directory to be made and used.
/// Blocks. Owners, modes, times, hard links and extended attributes are kept.
pub(super) fn make(layers: &[PathBuf], file: &Path, view: &Path) -> Result<(), ImageError> {
    fs::create_dir(view).map_err(ImageError::path("create", view))?;
    // The tools end with this program, so that none writes into a directory that is cleared up.
    let output = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .args(["unshare", "--mount", "--propagation", "private", "--"])
        .args(["sh", "-c", SCRIPT, "sh"])
        .args([file, view])
        .args(layers)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    let failed = |why: &str, remedy: &str| ImageError::Tool {
        cause: format!("the image's disk cannot be made: {why}"),
        remedy: remedy.to_owned(),
    };
    let install = "install what makes it: apt-get install erofs-utils util-linux";
    let output = output.map_err(|error| failed(&format!("`setpriv`: {error}"), install))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.trim().lines().next_back().unwrap_or_default();
    if output.status.code() == Some(127) {
        return Err(failed(&format!("`{PROGRAM}` is not installed"), install));
    }
    if said.contains("No space left on device") {
        let full = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        return Err(ImageError::path("write", file)(full));
    }
    let why = match last {
        "" => format!("`{PROGRAM}` ended with {}", output.status),
        last => format!("`{PROGRAM}` says: {last}"),
    };
    Err(failed(
        &why,
        "check that Atoll runs as root on a host with overlayfs",
    ))
}
