//! All that a controller knows: machines, sessions, what is wrong, and what happened.

use crate::{Fault, Machine, Pause};
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::oneshot;

/// Something that a controller was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Duration,
    /// Which machine.
    pub machine: String,
    /// What it was told, as Redfish calls it; `Wake` for a packet to its network card.
    pub reset: String,
    /// Whether its power was as it was told already, or on the way there.
    pub needless: bool,
    /// Whether it was switched off under its work.
    pub at_work: bool,
}

/// A moment in the life of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Somebody asks for a session.
    Session,
    /// Somebody asks for a system.
    Read,
    /// A reset has come, and is not done.
    BeforeReset,
    /// A reset is done, and not answered.
    AfterReset,
}

/// What is known of a session.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) token: String,
    pub(crate) user: String,
}

#[derive(Debug, Default)]
pub(crate) struct Rack {
    pub(crate) now: Duration,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) machines: Vec<Machine>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) made_sessions: u64,
    /// Whether it takes name and password with each request.
    pub(crate) basic: bool,
    /// Faults of the controller itself.
    pub(crate) faults: Vec<Fault>,
    /// It boots until then, and knows nobody.
    pub(crate) boots_until: Duration,
    pub(crate) events: Vec<Event>,
    /// The next request that gets there stays there.
    pub(crate) pause: Option<(Point, oneshot::Sender<()>)>,
}

impl Rack {
    pub(crate) fn machine(&self, name: &str) -> Option<&Machine> {
        self.machines.iter().find(|one| one.name == name)
    }

    /// A controller that boots does not listen.
    pub(crate) fn listens(&self) -> bool {
        self.now >= self.boots_until
    }

    pub(crate) fn pass(&mut self, now: Duration) {
        self.now = self.now.max(now);
        for machine in &mut self.machines {
            machine.pass(self.now);
        }
    }

    /// Tells a machine to do something, and writes that down; returns whether there is one.
    pub(crate) fn reset(&mut self, name: &str, how: &str) -> bool {
        let now = self.now;
        let Some(machine) = self.machines.iter_mut().find(|one| one.name == name) else {
            return false;
        };
        self.events.push(event(machine, how, now));
        machine.reset(how, now);
        true
    }

    /// A packet that wakes every machine with this network card.
    pub(crate) fn wake(&mut self, mac: &str) {
        let now = self.now;
        for machine in &mut self.machines {
            if machine.mac.eq_ignore_ascii_case(mac) {
                self.events.push(event(machine, "Wake", now));
                machine.reset("On", now);
            }
        }
    }

    /// Takes the pause for this point, if somebody waits for one here.
    pub(crate) fn reaches(&mut self, point: Point) -> bool {
        match self.pause.take() {
            Some((at, told)) if at == point => {
                // Whoever waited may be gone.
                let _ = told.send(());
                true
            }
            other => {
                self.pause = other;
                false
            }
        }
    }

    pub(crate) fn pause(&mut self, point: Point) -> Pause {
        let (told, reached) = oneshot::channel();
        self.pause = Some((point, told));
        reached
    }
}

fn event(machine: &Machine, how: &str, now: Duration) -> Event {
    use crate::Power::{Off, On, Starting, Stopping};
    let off = how.ends_with("Off") || how == "GracefulShutdown";
    let needless = match machine.power {
        Off => off,
        // Its power may be taken away until it is gone.
        Stopping { .. } => off && how != "ForceOff",
        Starting { .. } | On => !off,
    };
    Event {
        at: now,
        machine: machine.name.clone(),
        reset: how.to_owned(),
        needless,
        at_work: machine.working && off,
    }
}
