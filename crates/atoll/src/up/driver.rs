//! Which driver runs the sandboxes.

use crate::failure::Failure;

/// What the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    /// The strongest boundary that this machine and this version can give
    Auto,
    /// Namespaces, seccomp, control groups and a user namespace; the kernel is shared
    Container,
    /// QEMU microVMs (not in this version)
    Qemu,
    /// Firecracker microVMs (not in this version)
    Firecracker,
}

/// The driver to use and what to say about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// Which one.
    pub(crate) kind: driver::DriverKind,
    /// One line for the operator.
    pub(crate) reason: &'static str,
}

/// Chooses. What was asked for is given or refused, never replaced in silence.
///
/// # Errors
/// When the driver asked for is not in this version.
pub(crate) fn choose(choice: Choice) -> anyhow::Result<Chosen> {
    let name = match choice {
        Choice::Auto => {
            return Ok(Chosen {
                kind: driver::DriverKind::Container,
                reason: "driver container: sandboxes share this machine's kernel, as this version \
                         has no microVM driver",
            });
        }
        Choice::Container => {
            return Ok(Chosen {
                kind: driver::DriverKind::Container,
                reason: "driver container: sandboxes share this machine's kernel",
            });
        }
        Choice::Qemu => "qemu",
        Choice::Firecracker => "firecracker",
    };
    Err(Failure::new(
        format!("the driver `{name}` is not in this version"),
        "use --driver container, if a shared kernel is isolation enough for the code you run",
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_given_or_refused() {
        assert!(choose(Choice::Qemu).is_err());
        assert!(choose(Choice::Firecracker).is_err());
        assert_eq!(
            choose(Choice::Auto).unwrap().kind,
            driver::DriverKind::Container
        );
    }
}
