//! The ways to switch a machine, each behind [`super::PowerDriver`].

mod command;
mod ipmi;
mod node;
mod redfish;
mod wake_on_lan;

pub use command::CommandDriver;
pub use ipmi::IpmiDriver;
pub use node::TcpLook;
pub use redfish::RedfishDriver;
pub use wake_on_lan::{WakeOnLanDriver, magic_packet};

use super::{PowerDriver, executor::Switchable};
use crate::config::{MachineEntry, PowerEntry};
use api::{ErrorCode, Problem};
use std::sync::Arc;

/// The driver that a configuration describes. Its secret is read now.
///
/// # Errors
/// When the secret cannot be read, or the driver cannot be made.
pub fn open(entry: &PowerEntry) -> Result<Arc<dyn PowerDriver>, Problem> {
    Ok(match entry {
        PowerEntry::Redfish { .. } => Arc::new(RedfishDriver::open(entry)?),
        PowerEntry::Ipmi {
            address,
            port,
            user,
            password,
        } => Arc::new(IpmiDriver::new(
            address.clone(),
            port.unwrap_or(623),
            user.clone(),
            password.read()?,
        )),
        PowerEntry::WakeOnLan {
            mac,
            broadcast,
            off,
            suspend,
        } => {
            let driver = WakeOnLanDriver::open(mac, *broadcast, off.clone())?;
            Arc::new(driver.suspending(suspend.clone()))
        }
        PowerEntry::Command {
            on,
            off,
            status,
            suspend,
            folder,
        } => {
            let driver =
                CommandDriver::new(on.clone(), off.clone(), status.clone(), folder.clone());
            Arc::new(driver.suspending(suspend.clone()))
        }
    })
}

/// A machine with its drivers and the way to look at its node.
///
/// # Errors
/// When nothing says how it is switched or looked at, or a driver cannot be made.
pub fn switchable(machine: &MachineEntry) -> Result<Switchable, Problem> {
    let missing = |what: &str, remedy: &str| {
        Problem::new(
            ErrorCode::InvalidArgument,
            format!("nothing says how {} is {what}", machine.name),
            remedy,
        )
    };
    let power = machine
        .power
        .as_ref()
        .ok_or_else(|| missing("switched", "add `power` to it in the configuration"))?;
    let node = machine.node.as_ref().ok_or_else(|| {
        missing(
            "looked at, and a controller's word is not enough",
            "add `node` with an `address` to it in the configuration",
        )
    })?;
    let mut drivers = vec![open(power)?];
    if let Some(fallback) = &machine.fallback {
        drivers.push(open(fallback)?);
    }
    Ok(Switchable {
        name: machine.name.clone(),
        drivers,
        look: Arc::new(
            TcpLook::new(node.address.clone(), node.idle.clone())
                .telling_boots(node.boot_id.clone()),
        ),
    })
}
