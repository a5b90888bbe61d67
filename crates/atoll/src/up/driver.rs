//! Which driver runs the sandboxes.

use ::driver::{DriverKind, kvm, probe};

/// What the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    /// The strongest boundary that this machine can give
    Auto,
    /// Namespaces, seccomp, control groups and a user namespace; the kernel is shared
    Container,
    /// QEMU microVMs, under KVM or, where that cannot be used, by translation
    Qemu,
    /// Firecracker microVMs, under KVM
    Firecracker,
}

/// The driver to use and what to say about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// Which one.
    pub(crate) kind: DriverKind,
    /// One line for the operator.
    pub(crate) reason: String,
}

/// What a choice depends on.
#[derive(Debug, Clone)]
struct Machine {
    /// Why KVM cannot be used, if it cannot.
    kvm: Result<(), String>,
    qemu: bool,
    firecracker: bool,
}

impl Machine {
    /// Looks at this one; runs a few instructions under KVM, for at most some 100 ms.
    fn look() -> Self {
        let installed = |name: &str| probe::find_program(name).is_some();
        Self {
            kvm: kvm::usable().map_err(|why| why.to_string()),
            qemu: installed("qemu-system-x86_64"),
            firecracker: installed("firecracker") && installed("jailer"),
        }
    }
}

/// Chooses. What was asked for is given or, when it is opened, refused; never replaced in silence.
pub(crate) fn choose(choice: Choice) -> Chosen {
    // A choice that depends on nothing costs nothing.
    let machine = match choice {
        Choice::Container => Machine {
            kvm: Ok(()),
            qemu: false,
            firecracker: false,
        },
        _ => Machine::look(),
    };
    decide(choice, &machine)
}

fn decide(choice: Choice, machine: &Machine) -> Chosen {
    let chosen = |kind, reason: String| Chosen { kind, reason };
    let container = "driver container: sandboxes share this machine's kernel";
    let by_kvm = |name| format!("driver {name}: each sandbox is a virtual machine, under KVM");
    match (choice, &machine.kvm) {
        (Choice::Container, _) => chosen(DriverKind::Container, container.into()),
        (Choice::Firecracker, _) => chosen(DriverKind::Firecracker, by_kvm("firecracker")),
        (Choice::Qemu, Ok(())) => chosen(DriverKind::Qemu, by_kvm("qemu")),
        (Choice::Qemu, Err(why)) => chosen(
            DriverKind::Qemu,
            format!(
                "driver qemu: each sandbox is a virtual machine, by translation, which is slow, as \
                 KVM cannot be used: {why}"
            ),
        ),
        (Choice::Auto, Ok(())) if machine.firecracker => {
            chosen(DriverKind::Firecracker, by_kvm("firecracker"))
        }
        (Choice::Auto, Ok(())) if machine.qemu => chosen(DriverKind::Qemu, by_kvm("qemu")),
        (Choice::Auto, Ok(())) => chosen(
            DriverKind::Container,
            format!("{container}, as neither firecracker nor qemu-system-x86_64 is installed"),
        ),
        (Choice::Auto, Err(why)) => chosen(
            DriverKind::Container,
            format!("{container}, as KVM cannot be used: {why}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_given() {
        let bare = Machine {
            kvm: Err("there is no /dev/kvm".into()),
            qemu: false,
            firecracker: false,
        };
        for (choice, kind) in [
            (Choice::Container, DriverKind::Container),
            (Choice::Qemu, DriverKind::Qemu),
            (Choice::Firecracker, DriverKind::Firecracker),
        ] {
            assert_eq!(decide(choice, &bare).kind, kind);
        }
    }

    #[test]
    fn auto_takes_the_strongest_boundary_that_is_there() {
        let machine = |kvm: bool, qemu, firecracker| Machine {
            kvm: kvm.then_some(()).ok_or("KVM runs no code here".into()),
            qemu,
            firecracker,
        };
        let check = |machine: Machine, kind, reason: &str| {
            let chosen = decide(Choice::Auto, &machine);
            assert_eq!(chosen.kind, kind, "{machine:?}");
            assert!(chosen.reason.contains(reason), "{chosen:?}");
        };
        check(machine(true, true, true), DriverKind::Firecracker, "KVM");
        check(machine(true, true, false), DriverKind::Qemu, "KVM");
        check(
            machine(true, false, false),
            DriverKind::Container,
            "neither",
        );
        check(
            machine(false, true, true),
            DriverKind::Container,
            "runs no code",
        );
    }
}
