//! Simulated network slots and images.

use super::world::{Faults, World};
use crate::{Images, Root, Slots};
use api::{
    Bytes, ErrorCode, ImageDigest, Problem,
    node::{BuildEvent, BuiltImage},
    template::{Requester, TemplateSource},
};
use driver::NetworkSlot;
use futures::stream::BoxStream;
use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

/// Slots without interfaces, whose addresses are of the loopback. For tests only.
pub struct SimulatedNetwork(pub Arc<World>);

fn problem(code: ErrorCode, cause: impl Into<String>) -> Problem {
    Problem::new(code, cause, "stop simulating")
}

fn slot(world: &World, number: u32) -> Result<Arc<NetworkSlot>, Problem> {
    let namespace = File::open("/dev/null")
        .map_err(|error| problem(ErrorCode::Internal, error.to_string()))?
        .into();
    let [_, high, middle, low] = number.to_be_bytes();
    Ok(Arc::new(NetworkSlot {
        number,
        namespace,
        host_interface: format!("simulated{number}"),
        address: Ipv4Addr::new(127, 64 + high, middle, low),
        gateway: Ipv4Addr::LOCALHOST,
        tap: world
            .snapshots
            .then(|| driver::slot::machine::TAP.to_owned()),
    }))
}

#[async_trait::async_trait]
impl Slots for SimulatedNetwork {
    async fn claim(&self) -> Result<Arc<NetworkSlot>, Problem> {
        let mut contents = self.0.contents();
        let free = (1..=self.0.slots_max).find(|number| !contents.slots.contains(number));
        let Some(number) = free.filter(|_| !Faults::strike(&self.0.faults.claim)) else {
            return Err(problem(
                ErrorCode::OutOfCapacity,
                "all network slots are in use",
            ));
        };
        World::note(&mut contents, format!("claim {number}"));
        contents.slots.insert(number);
        drop(contents);
        slot(&self.0, number)
    }

    async fn set_internet(&self, number: u32, open: bool) -> Result<(), Problem> {
        if Faults::strike(&self.0.faults.set_internet) {
            return Err(problem(ErrorCode::Internal, "simulated fault"));
        }
        let mut contents = self.0.contents();
        if open {
            contents.closed.remove(&number);
        } else {
            contents.closed.insert(number);
        }
        Ok(())
    }

    async fn join(
        &self,
        slot: &NetworkSlot,
        devices: &str,
        address: Ipv4Addr,
    ) -> Result<(), Problem> {
        let number = slot.number;
        let event = format!("join {number} by {devices} as {address}");
        World::note(&mut self.0.contents(), event);
        Ok(())
    }

    async fn adopt(&self, number: u32, _pid: u32) -> Result<Arc<NetworkSlot>, Problem> {
        if Faults::strike(&self.0.faults.adopt_slot) || !self.0.contents().slots.contains(&number) {
            return Err(problem(
                ErrorCode::NotFound,
                format!("slot {number} is gone"),
            ));
        }
        slot(&self.0, number)
    }

    async fn release(&self, slot: Arc<NetworkSlot>) {
        let mut contents = self.0.contents();
        World::note(&mut contents, format!("release {}", slot.number));
        contents.slots.remove(&slot.number);
        contents.closed.remove(&slot.number);
    }

    async fn sweep(&self, keep: &[u32]) -> Result<Vec<String>, Problem> {
        let mut contents = self.0.contents();
        let gone: Vec<u32> = contents
            .slots
            .iter()
            .copied()
            .filter(|slot| !keep.contains(slot))
            .collect();
        for slot in &gone {
            contents.slots.remove(slot);
            contents.closed.remove(slot);
        }
        Ok(gone.iter().map(|slot| format!("slot {slot}")).collect())
    }

    async fn stop(&self, keep_sandboxes: bool) {
        World::note(
            &mut self.0.contents(),
            format!("network stop, keep {keep_sandboxes}"),
        );
    }

    fn name_servers(&self) -> Vec<IpAddr> {
        vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]
    }
}

/// Images without files. For tests only.
pub struct SimulatedImages;

#[async_trait::async_trait]
impl Images for SimulatedImages {
    async fn root(&self, _digest: &ImageDigest) -> Result<Root, Problem> {
        Ok(Root {
            layers: vec!["/".into()],
            pin: Box::new(()),
        })
    }

    async fn build(
        &self,
        _source: TemplateSource,
        _requester: Requester,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem> {
        let digest = format!("sha256:{}", "0".repeat(64))
            .parse()
            .map_err(|error| problem(ErrorCode::Internal, format!("{error}")))?;
        let image = BuiltImage {
            digest,
            size: Bytes(0),
            environment: BTreeMap::new(),
            user: None,
            working_directory: None,
            command: Vec::new(),
        };
        Ok(Box::pin(futures::stream::iter([BuildEvent::Ready(image)])))
    }

    async fn remove(&self, _digest: &ImageDigest) -> Result<(), Problem> {
        Ok(())
    }
}
