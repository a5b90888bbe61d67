//! Boots a machine: describes it, starts it, and waits for its guest.

use super::{
    driver::PATIENCE,
    hold::Hold,
    messages::{
        Action, Balloon, BootSource, DRIVES, Entropy, Interface, MachineConfig, MetadataConfig,
    },
};
use crate::{
    DriverError, NetworkSlot,
    kernel::{Hypervisor, command_line},
    phases::Stopwatch,
    slot::machine::TAP,
};
use api::{Resources, Secret};
use std::time::Duration;

/// How long a machine may take to boot; many may boot at once.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// Describes a machine to Firecracker, starts it, and waits until its guest waits.
pub(super) async fn boot(
    hold: &Hold,
    slot: &NetworkSlot,
    resources: &Resources,
    token: &Secret,
    phases: &mut Stopwatch,
) -> Result<(), DriverError> {
    let client = &hold.client;
    let options = &hold.inner.options;
    let template = options.cpu_template.as_deref();
    let source = BootSource::new(command_line(Hypervisor::Firecracker, token));
    let interface = Interface::new(slot.tap.as_deref().unwrap_or(TAP));
    let describe = async {
        let config = MachineConfig::new(resources, template, options.huge_pages);
        client.put("/machine-config", &config, PATIENCE).await?;
        client.put("/boot-source", &source, PATIENCE).await?;
        for drive in &DRIVES {
            let path = format!("/drives/{}", drive.drive_id);
            client.put(&path, drive, PATIENCE).await?;
        }
        let path = format!("/network-interfaces/{}", interface.iface_id);
        client.put(&path, &interface, PATIENCE).await?;
        if options.metadata {
            let on = MetadataConfig::ON;
            client.put("/mmds/config", &on, PATIENCE).await?;
        }
        let statistics = options.balloon_statistics;
        let balloon = Balloon::new(hold.inner.version, statistics, options.huge_pages);
        client.put("/balloon", &balloon, PATIENCE).await?;
        client.put("/entropy", &Entropy {}, PATIENCE).await?;
        client.put("/actions", &Action::START, PATIENCE).await
    };
    hold.unless_ended(describe).await?;
    phases.mark("describe and start");
    hold.unless_ended(hold.wait_for_guest(BOOT_PATIENCE))
        .await?;
    phases.mark("boot");
    Ok(())
}
