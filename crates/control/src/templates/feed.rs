//! What a build tells while it is under way, to any number of listeners.

use api::{
    Problem,
    node::{BuildEvent, LogLine},
};
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{broadcast, watch};

/// How many log lines of a build are kept while it runs, and afterwards until the next start.
const LINES: usize = 1000;

/// How many events a listener may fall behind before he misses some.
const BACKLOG: usize = 256;

/// Progress within a step is told this often.
const INTERVAL: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Now {
    step: Option<String>,
    total: Option<u64>,
    done: u64,
    told: Option<Instant>,
    lines: VecDeque<LogLine>,
}

/// One build under way.
pub(crate) struct Feed {
    now: Mutex<Now>,
    events: broadcast::Sender<BuildEvent>,
    end: watch::Sender<Option<Result<(), Problem>>>,
}

impl Feed {
    pub(crate) fn new() -> Self {
        Self {
            now: Mutex::default(),
            events: broadcast::Sender::new(BACKLOG),
            end: watch::Sender::new(None),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody who listens.
    pub(crate) fn tell(&self, event: BuildEvent) {
        {
            let mut now = self.lock();
            match &event {
                BuildEvent::Step { name, total } => {
                    now.step = Some(name.clone());
                    (now.total, now.done, now.told) = (*total, 0, None);
                }
                BuildEvent::Progress { done } => {
                    now.done = *done;
                    let moment = Instant::now();
                    let recent = now.told.is_some_and(|told| moment - told < INTERVAL);
                    if recent && now.total != Some(*done) {
                        return;
                    }
                    now.told = Some(moment);
                }
                BuildEvent::Log(line) => {
                    if now.lines.len() == LINES {
                        now.lines.pop_front();
                    }
                    now.lines.push_back(line.clone());
                }
                BuildEvent::Ready(_) | BuildEvent::Failed { .. } => {}
            }
        }
        // Nobody may be listening: that is fine.
        let _ = self.events.send(event);
    }

    /// The build is over, and what came of it is in the store.
    pub(crate) fn end(&self, result: Result<(), Problem>) {
        self.end.send_replace(Some(result));
    }

    /// What is being done, for people: `unpacking packages, 63 %`.
    pub(crate) fn describe(&self) -> Option<String> {
        let now = self.lock();
        let step = now.step.as_ref()?;
        Some(match now.total {
            Some(total) if total > 0 => {
                let percent = (u128::from(now.done) * 100 / u128::from(total)).min(100);
                format!("{step}, {percent} %")
            }
            _ => step.clone(),
        })
    }

    /// The log so far.
    pub(crate) fn lines(&self) -> Vec<LogLine> {
        self.lock().lines.iter().cloned().collect()
    }

    /// Listens from now on.
    pub(crate) fn subscribe(&self) -> Subscription {
        Subscription {
            events: self.events.subscribe(),
            end: self.end.subscribe(),
        }
    }
}

/// A listener.
pub(crate) struct Subscription {
    events: broadcast::Receiver<BuildEvent>,
    end: watch::Receiver<Option<Result<(), Problem>>>,
}

impl Subscription {
    /// The next event; at last, what came of the build.
    pub(crate) async fn next(&mut self) -> Result<BuildEvent, Result<(), Problem>> {
        loop {
            // Events first: the end is told after the last of them.
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Ok(event) => return Ok(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => {}
                },
                _ = self.end.wait_for(Option::is_some) => {}
            }
            return Err(self.end.borrow().clone().unwrap_or_else(|| Err(stopped())));
        }
    }
}

fn stopped() -> Problem {
    Problem::new(
        api::ErrorCode::Unavailable,
        "Atoll stopped during the build",
        "build it again when it is back",
    )
}
