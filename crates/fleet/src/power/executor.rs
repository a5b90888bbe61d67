//! Carries out what is wanted of machines, one step at a time.

use super::{
    NodeLook, PowerDriver, PowerError, Reading, Switch,
    journal::{Journal, JournalError, Leadership},
    transition::{
        Intent, Next, Observed, Outcome, Patience, Wanted, next, note_result, note_sending,
        note_sight,
    },
};
use crate::moment::{Moment, Span};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use store::Stored;

/// No call of a driver takes longer.
const DEADLINE: Duration = Duration::from_secs(30);

/// A machine that can be switched.
#[derive(Clone)]
pub struct Switchable {
    /// Its name.
    pub name: String,
    /// Its drivers, the first to be used first.
    pub drivers: Vec<Arc<dyn PowerDriver>>,
    /// How its node is looked at.
    pub look: Arc<dyn NodeLook>,
}

/// Lets only so many machines draw their inrush current at a time.
#[derive(Debug)]
pub struct Stagger {
    recent: VecDeque<Moment>,
    most: usize,
    within: Span,
}

impl Stagger {
    /// So many wake-ups in a second, as one in so many seconds if that is less than one.
    pub fn per_second(rate: f64) -> Self {
        let (most, within) = if rate >= 1.0 {
            (rate as usize, Span(1))
        } else {
            (1, Span((1.0 / rate.max(0.001)).ceil() as u64))
        };
        Self {
            recent: VecDeque::new(),
            most,
            within,
        }
    }

    /// Whether one more may be woken now. It counts if it may.
    pub fn admits(&mut self, now: Moment) -> bool {
        while let Some(first) = self.recent.front()
            && now.since(*first) >= self.within
        {
            self.recent.pop_front();
        }
        let admitted = self.recent.len() < self.most;
        if admitted {
            self.recent.push_back(now);
        }
        admitted
    }
}

/// Carries out what is wanted. One for a fleet; it acts only while it holds the right to.
pub struct Executor {
    journal: Journal,
    leadership: Leadership,
    patience: Patience,
    stagger: Mutex<Stagger>,
}

impl Executor {
    /// Acts by this journal.
    pub fn new(
        journal: Journal,
        leadership: Leadership,
        patience: Patience,
        stagger: Stagger,
    ) -> Self {
        Self {
            journal,
            leadership,
            patience,
            stagger: Mutex::new(stagger),
        }
    }

    /// Gives the right to act back: whatever is tried afterwards is refused.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn resign(&self) -> Result<(), store::StoreError> {
        self.journal.resign(self.leadership.clone()).await
    }

    /// Keeps the right to act; call it several times within [`super::journal::LEASE`].
    ///
    /// # Errors
    /// [`JournalError::NotLeader`] if it was lost.
    pub async fn renew(&self) -> Result<(), JournalError> {
        self.journal.renew(&self.leadership).await
    }

    /// Writes down what is wanted of a machine. What is wanted already goes on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn want(
        &self,
        machine: &str,
        wanted: Wanted,
        now: Moment,
    ) -> Result<Stored<Intent>, JournalError> {
        let before = self.journal.get(machine).await?;
        if let Some(stored) = &before
            && stored.record.wanted == wanted
            && stored.record.outcome.is_none()
        {
            return Ok(stored.clone());
        }
        let mut intent = Intent::new(wanted, now);
        if let Some(stored) = &before {
            intent.follow(&stored.record);
        }
        self.journal
            .write(&self.leadership, machine, before.as_ref(), &intent)
            .await
    }

    /// Does the next step for a machine, if there is one; returns how it ended, if it did. Several
    /// machines may be stepped at a time, each of them once.
    ///
    /// What is sent is written down first. After a crash in between it is not sent again before
    /// its time has come, and what was seen meanwhile may make it needless.
    ///
    /// # Errors
    /// When it cannot be written down; nothing is sent then.
    pub async fn step(
        &self,
        machine: &Switchable,
        now: Moment,
    ) -> Result<Option<Outcome>, JournalError> {
        let Some(stored) = self.journal.get(&machine.name).await? else {
            return Ok(None);
        };
        if stored.record.outcome.is_some() {
            return Ok(stored.record.outcome);
        }
        let mut intent = stored.record.clone();
        let driver = match machine.drivers.get(intent.driver) {
            Some(driver) => driver.clone(),
            None => {
                intent.last_error = Some("nothing says how it is switched".to_owned());
                intent.outcome = Some(match intent.wanted {
                    Wanted::On => Outcome::NeverCame,
                    Wanted::Off => Outcome::WouldNotStop,
                    Wanted::Suspended => Outcome::WouldNotSuspend,
                });
                self.write(machine, &stored, &intent).await?;
                return Ok(intent.outcome);
            }
        };
        let reading = match bounded(driver.read()).await {
            Ok(reading) => reading,
            Err(error) => {
                intent.last_error = Some(error.to_string());
                Reading::Unknown
            }
        };
        // The last look is the newest: work may have come meanwhile.
        let sight = machine.look.look().await;
        let observed = Observed {
            reading,
            sight,
            now,
        };
        note_sight(&mut intent, &observed);
        match next(&intent, &observed, &self.patience) {
            Next::End(outcome) => end(&mut intent, machine, outcome).await,
            Next::Send(Switch::On) if !self.admits(now) => {}
            Next::Send(switch) => {
                note_sending(&mut intent, switch, now);
                let told = match switch {
                    // What is to come back is written down before it goes.
                    Switch::Suspend => bounded(machine.look.boot_id()).await,
                    Switch::On | Switch::Off | Switch::ForceOff => Ok(intent.boot_id.take()),
                };
                let (boot_id, unknown) = match told {
                    Ok(boot_id) => (boot_id, None),
                    Err(error) => (None, Some(error)),
                };
                intent.boot_id = boot_id;
                let written = self.write(machine, &stored, &intent).await?;
                let result = match unknown {
                    // Nobody could tell afterwards whether it was suspended.
                    Some(error) => Err(error),
                    None => bounded(driver.switch(switch)).await,
                };
                let error = result.err().map(|error| error.to_string());
                note_result(&mut intent, switch, error, machine.drivers.len());
                self.write(machine, &written, &intent).await?;
                return Ok(None);
            }
            Next::Wait => {}
        }
        if intent != stored.record {
            self.write(machine, &stored, &intent).await?;
        }
        Ok(intent.outcome)
    }

    fn admits(&self, now: Moment) -> bool {
        let mut stagger = self.stagger.lock().unwrap_or_else(PoisonError::into_inner);
        stagger.admits(now)
    }

    async fn write(
        &self,
        machine: &Switchable,
        before: &Stored<Intent>,
        intent: &Intent,
    ) -> Result<Stored<Intent>, JournalError> {
        self.journal
            .write(&self.leadership, &machine.name, Some(before), intent)
            .await
    }
}

/// Notes how it ended, and of a machine that woke in which boot it is.
async fn end(intent: &mut Intent, machine: &Switchable, outcome: Outcome) {
    intent.outcome = Some(outcome);
    match outcome {
        Outcome::Done if intent.wanted == Wanted::On && intent.boot_id.is_some() => {
            let found = bounded(machine.look.boot_id()).await.ok().flatten();
            intent.note_boot(found.as_deref());
        }
        Outcome::WouldNotSuspend => {
            let unclear = || "it was told to suspend itself, and did not".to_owned();
            intent.last_error.get_or_insert_with(unclear);
        }
        Outcome::WentOff => {
            intent.last_error = Some("it was to be suspended, and is off".to_owned());
        }
        _ => {}
    }
}

async fn bounded<T>(call: impl Future<Output = Result<T, PowerError>>) -> Result<T, PowerError> {
    tokio::time::timeout(DEADLINE, call)
        .await
        .unwrap_or(Err(PowerError::TimedOut(DEADLINE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_machines_do_not_wake_at_once() {
        let mut stagger = Stagger::per_second(2.0);
        let mut woken = Vec::new();
        for second in 0..30 {
            while stagger.admits(Moment(second)) {
                woken.push(second);
            }
        }
        assert_eq!(woken.len(), 60);
        let mut slow = Stagger::per_second(0.1);
        let count = (0..30)
            .filter(|second| slow.admits(Moment(*second)))
            .count();
        assert_eq!(count, 3);
    }
}
