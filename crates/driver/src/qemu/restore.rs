//! Brings a machine to where another one was saved.

use super::{
    driver::{PATIENCE, blocking},
    hold::Hold,
    memory::{INDEX, Index, Live, Mapped, PAGES, WHOLE},
};
use crate::{DriverError, SavedState, doing, phases::Stopwatch, sparse::PAGE, state::SavedMemory};
use serde_json::json;
use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

/// The file that holds the state of the devices.
pub(super) const DEVICES: &str = "devices.state";

/// How long QEMU may take to read the state of the devices.
const INCOMING_PATIENCE: Duration = Duration::from_secs(30);

/// Puts the difference into the memory, and reads the state of the devices. The machine then stands
/// where the saved one stood.
pub(super) async fn restore(
    hold: &Hold,
    state: &SavedState,
    memory: &SavedMemory,
    phases: &mut Stopwatch,
) -> Result<(), DriverError> {
    if let Some(base) = memory.base.clone() {
        let (pid, directory) = (hold.pid, state.directory.clone());
        blocking(move || {
            apply(pid, &base, &directory).map_err(doing("put saved pages into a machine's memory"))
        })
        .await?;
        phases.mark("memory that differs");
    }
    incoming(hold, state.directory.join(DEVICES)).await?;
    phases.mark("devices");
    Ok(())
}

fn apply(pid: u32, base: &Path, directory: &Path) -> io::Result<()> {
    let about = fs::metadata(base.join(WHOLE))?;
    let index = Index::decode(&fs::read(directory.join(INDEX))?, about.len() / PAGE)?;
    let pages = Mapped::new(&File::open(directory.join(PAGES))?)?;
    if index.stored() * PAGE != pages.bytes().len() as u64 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "saved pages are missing",
        ));
    }
    Live::find(pid, &about)?.apply(&index, pages.bytes())
}

async fn incoming(hold: &Hold, devices: PathBuf) -> Result<(), DriverError> {
    let qmp = &hold.qmp;
    let file = File::open(&devices).map_err(doing(format!("open {}", devices.display())))?;
    let mut events = qmp.events();
    let capabilities = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    qmp.call("migrate-set-capabilities", capabilities, PATIENCE)
        .await?;
    let named = json!({ "fdname": "devices" });
    qmp.call_with("getfd", named, &[file.as_fd()], PATIENCE)
        .await?;
    qmp.call("migrate-incoming", json!({ "uri": "fd:devices" }), PATIENCE)
        .await?;
    let arrived = async {
        loop {
            match events.recv().await {
                Ok(event) if event.name == "MIGRATION" => match event.data["status"].as_str() {
                    Some("completed") => return true,
                    Some("failed") => return false,
                    _ => {}
                },
                Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return false,
            }
        }
    };
    // QEMU ends when it does not understand the state.
    let arrived = tokio::time::timeout(INCOMING_PATIENCE, async {
        tokio::select! {
            arrived = arrived => arrived,
            _ = hold.process.readable() => false,
        }
    });
    match arrived.await {
        Ok(true) => Ok(()),
        Ok(false) if !hold.is_alive() => Err(DriverError::Guest(format!(
            "QEMU cannot resume it: {}",
            hold.wait().await
        ))),
        Ok(false) => Err(DriverError::Guest("QEMU cannot resume it".into())),
        Err(_) => Err(DriverError::Guest(format!(
            "QEMU did not resume it within {INCOMING_PATIENCE:?}"
        ))),
    }
}
