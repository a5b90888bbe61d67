//! A machine behind a controller: a small state machine over time.
//!
//! ```text
//! Off ──On──▶ Starting ──boot──▶ On ──GracefulShutdown──▶ Stopping ──stop──▶ Off
//!  ▲              │               │                           │
//!  └──────────────┴──ForceOff─────┴───────────────────────────┘
//! ```
//!
//! The node listens while the machine is `On` or `Stopping`. A machine that starts has nobody yet who
//! could shut it down in order, so only `ForceOff` ends that.

use crate::Fault;
use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

/// What a machine's power is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// No power.
    Off,
    /// It boots; `up` is when its node will answer, if ever.
    Starting {
        /// When.
        up: Option<Duration>,
    },
    /// Its node answers.
    On,
    /// It shuts down.
    Stopping {
        /// When it will be off.
        off: Duration,
    },
}

/// A machine. Times are counted from when its controller began.
#[derive(Debug)]
pub struct Machine {
    /// Its name: the system's id.
    pub name: String,
    /// The address of its network card.
    pub mac: String,
    /// Where its node listens while it is up; nowhere if absent.
    pub node: Option<SocketAddr>,
    /// How long it boots.
    pub boot: Duration,
    /// How long it takes to switch itself off.
    pub stop: Duration,
    /// What it draws while it is off, idle and at work.
    pub watts: [u32; 3],
    /// Whether it carries work: nobody may switch it off then.
    pub working: bool,
    /// What its power is.
    pub power: Power,
    /// What is wrong with it.
    pub faults: Vec<Fault>,
    /// Changes with everything that Redfish shows of it.
    pub(crate) revision: u64,
    listener: Option<TcpListener>,
}

impl Machine {
    /// A machine that is off, boots for 45 s and stops within 12 s.
    pub fn new(name: impl Into<String>, node: Option<SocketAddr>) -> Self {
        Self {
            name: name.into(),
            mac: "02:00:00:00:00:01".to_owned(),
            node,
            boot: Duration::from_secs(45),
            stop: Duration::from_secs(12),
            watts: [5, 120, 300],
            working: false,
            power: Power::Off,
            faults: Vec::new(),
            revision: 1,
            listener: None,
        }
    }

    /// Whether its node answers.
    pub fn is_up(&self) -> bool {
        matches!(self.power, Power::On | Power::Stopping { .. })
    }

    /// What it draws now, in watts.
    pub fn draws(&self) -> u32 {
        let [off, idle, peak] = self.watts;
        match self.power {
            Power::Off => off,
            Power::Starting { .. } => peak,
            Power::On if self.working => peak,
            Power::On | Power::Stopping { .. } => idle,
        }
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// What Redfish says of its power: not always the truth.
    pub(crate) fn says(&self) -> &'static str {
        if self.has(Fault::SaysOn) {
            return "On";
        }
        match self.power {
            _ if self.has(Fault::SaysOff) => "Off",
            Power::Off => "Off",
            Power::Starting { .. } | Power::On | Power::Stopping { .. } => "On",
        }
    }

    /// Does what a reset asks for, if it can.
    pub(crate) fn reset(&mut self, how: &str, now: Duration) {
        if self.has(Fault::IgnoresResets) {
            return;
        }
        match (how, self.power) {
            ("On", Power::Off) => self.start(now),
            ("GracefulShutdown", Power::On) if !self.has(Fault::IgnoresGraceful) => {
                let off = now + self.stop;
                self.enter(Power::Stopping { off });
            }
            ("ForceOff", _) if !self.has(Fault::IgnoresForce) => self.enter(Power::Off),
            ("ForceRestart", power) if power != Power::Off => {
                self.enter(Power::Off);
                self.start(now);
            }
            _ => {}
        }
    }

    pub(crate) fn start(&mut self, now: Duration) {
        let up = (!self.has(Fault::NeverComesUp)).then(|| now + self.boot);
        self.enter(Power::Starting { up });
    }

    fn enter(&mut self, power: Power) {
        self.power = power;
        self.revision += 1;
        self.listen();
    }

    /// Lets time pass until `now`.
    pub(crate) fn pass(&mut self, now: Duration) {
        match self.power {
            Power::Starting { up: Some(up) } if up <= now => self.enter(Power::On),
            Power::Stopping { off } if off <= now => self.enter(Power::Off),
            _ => self.listen(),
        }
        if let Some(listener) = &self.listener {
            // Whoever knocked has seen what there is to see.
            while listener.accept().is_ok() {}
        }
    }

    fn listen(&mut self) {
        match (self.is_up(), self.node) {
            (true, Some(node)) if self.listener.is_none() => {
                let listener = TcpListener::bind(node);
                let quiet = listener.and_then(|one| one.set_nonblocking(true).map(|()| one));
                // It is tried again with the next step of time.
                self.listener = quiet.ok();
            }
            (false, _) => self.listener = None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_machine_takes_its_time() {
        let mut machine = Machine::new("m", None);
        assert_eq!((machine.says(), machine.draws()), ("Off", 5));
        machine.reset("On", seconds(10));
        machine.pass(seconds(54));
        assert_eq!(
            (machine.says(), machine.is_up(), machine.draws()),
            ("On", false, 300)
        );
        machine.reset("GracefulShutdown", seconds(54));
        machine.pass(seconds(55));
        assert!(machine.is_up(), "nobody was there to shut it down");
        machine.reset("GracefulShutdown", seconds(60));
        machine.pass(seconds(71));
        assert_eq!((machine.is_up(), machine.draws()), (true, 120));
        machine.pass(seconds(72));
        assert_eq!(machine.power, Power::Off);
    }

    #[test]
    fn faults_are_the_machines_own() {
        let mut machine = Machine::new("m", None);
        machine.faults = vec![Fault::NeverComesUp, Fault::IgnoresGraceful];
        machine.reset("On", seconds(0));
        machine.pass(seconds(100_000));
        assert!(!machine.is_up());
        machine.reset("GracefulShutdown", seconds(100_000));
        assert_ne!(machine.power, Power::Off);
        machine.faults.push(Fault::SaysOff);
        assert_eq!(machine.says(), "Off");
        machine.reset("ForceOff", seconds(100_000));
        machine.faults = vec![Fault::SaysOn];
        assert_eq!((machine.says(), machine.power), ("On", Power::Off));
    }
}
