//! What drivers of microVMs have in common: a machine is one process of a hypervisor, held in a
//! jail, with a guest inside that is told who it is.
//!
//! A driver of its own, such as [`qemu`](crate::qemu), is only what differs: how its hypervisor is
//! started and spoken to, and how its state is saved and comes back. It says so as a [`Vmm`]; the
//! crate's [`Driver`](crate::Driver), [`Prepared`](crate::Prepared) and
//! [`Machine`](crate::Machine) are written here, once.
//!
//! | file | what |
//! | --- | --- |
//! | `vmm` | [`Vmm`]: what differs |
//! | `driver` | prepare, adopt, sweep, shut down |
//! | `prepared`, `machine` | a machine before and after it is somebody's |
//! | `held` | what both have: the process, its group and files |
//! | `host` | what a driver has on this host: users, groups, layers, slots in use |
//! | `console`, `guest`, `socket` | how the guest and the hypervisor are reached |
//! | `child`, `confined` | processes of this program's own that lock themselves up |
//! | `notes`, `exit` | what is remembered of a machine, and how its process ended |
//! | `facts` | what a snapshot is bound to |

pub(crate) mod child;
pub(crate) mod confined;
pub(crate) mod console;
mod driver;
mod exit;
mod facts;
pub(crate) mod guest;
mod held;
mod host;
mod machine;
pub(crate) mod notes;
mod prepared;
pub(crate) mod socket;
mod vmm;

pub(crate) use driver::MicroVms;
pub(crate) use facts::host_processor;
pub(crate) use held::{Held, Process};
pub(crate) use host::{Host, MOST_SLOTS, members, root_disk, unsupported};
pub(crate) use vmm::Vmm;

use crate::{DriverError, doing};
use api::Secret;

/// 32 random hexadecimal digits.
pub(crate) fn random_token() -> Result<Secret, DriverError> {
    let bytes = random_bytes::<16>()?;
    Ok(Secret::new(hexadecimal(&bytes)))
}

/// Bytes from the kernel's generator.
pub(crate) fn random_bytes<const COUNT: usize>() -> Result<[u8; COUNT], DriverError> {
    let mut bytes = [0; COUNT];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(doing("get random bytes"))?;
    Ok(bytes)
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
