//! `atoll fleet power`: switches one machine and waits until that is seen.

use super::keep;
use crate::{
    data_dir,
    failure::{FAILED, Failure},
    style,
};
use fleet::{
    config::MachineEntry,
    moment::Moment,
    power::{
        drivers::switchable,
        executor::{Executor, Stagger, Switchable},
        journal::{Journal, LEASE, Leadership},
        transition::{Intent, Outcome, Patience, Wanted},
    },
};
use serde::Serialize;
use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const EXAMPLES: &str = "\
Examples:
  atoll fleet power m7 status --config fleet.toml
  atoll fleet power m7 off --config fleet.toml     only if its node carries no work
  atoll fleet power m7 suspend --config fleet.toml

What is sent is written down first: interrupted, the same command carries on where it was. A
machine counts as on when its node answers, and as off when its node is gone and its controller
does not say otherwise.

Exit status: 0 if it is as wanted, else 1.";

/// Time between two looks at the machine.
const EVERY: Duration = Duration::from_secs(2);
/// Time between two tries to be the one who acts.
const AGAIN: Duration = Duration::from_millis(200);

/// Switch a machine, or show what is known of its power
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The machine's name
    #[arg(value_name = "NODE")]
    machine: String,

    /// What to do
    #[arg(value_enum)]
    action: Action,

    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Where it is written down what was sent; in the data directory if left out
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,

    /// Atoll's data directory [default: /var/lib/atoll for root, else ~/.local/share/atoll]
    #[arg(
        long,
        value_name = "DIR",
        env = "ATOLL_DATA_DIR",
        hide_env_values = true
    )]
    data_dir: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Action {
    /// Switch it on
    On,
    /// Switch it off
    Off,
    /// Suspend it, if its configuration says how; `on` wakes it
    Suspend,
    /// Ask its controllers and look at its node
    Status,
}

/// What is known of a machine's power.
#[derive(Debug, Serialize)]
struct Status {
    machine: String,
    node_answers: bool,
    node_carries_work: bool,
    controllers: Vec<Controller>,
    last: Option<Intent>,
}

/// What one of its controllers says.
#[derive(Debug, Serialize)]
struct Controller {
    driver: &'static str,
    says: String,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let file = super::file::read(&arguments.config)?;
    let found = file.machines.iter();
    let entry: &MachineEntry = found
        .clone()
        .find(|one| one.name == arguments.machine)
        .ok_or_else(|| {
            let names: Vec<&str> = found.take(10).map(|one| one.name.as_str()).collect();
            Failure::new(
                format!(
                    "there is no machine `{}`",
                    style::harmless(&arguments.machine)
                ),
                format!("the first of those that there are: {}", names.join(", ")),
            )
        })?;
    let machine = switchable(entry)?;
    let path = arguments.journal.clone();
    let path = path.unwrap_or_else(|| {
        let folder = arguments.data_dir.clone();
        folder
            .unwrap_or_else(data_dir::default_path)
            .join(keep::FILE)
    });
    let kept = keep::open(&path).await?;
    let journal = kept.as_ref().map(|kept| Journal::new(kept.store.clone()));
    let suspends = machine.drivers.first().is_some_and(|one| one.suspends());
    if matches!(arguments.action, Action::Suspend) && !suspends {
        return Err(Failure::new(
            format!("nothing says how {} is suspended", machine.name),
            "add `suspend` to its `power` in the configuration: drivers `wake-on-lan` and `command` know it",
        )
        .into());
    }
    let wanted = match arguments.action {
        Action::On => Wanted::On,
        Action::Off => Wanted::Off,
        Action::Suspend => Wanted::Suspended,
        Action::Status => return show(&machine, journal.as_ref(), arguments.json).await,
    };
    let journal = journal.ok_or_else(|| keep::in_use(&path))?;
    let outcome = switch(&machine, journal.clone(), wanted, file.wakes_per_second).await?;
    if arguments.json {
        style::print_json(&outcome)?;
    } else {
        style::note(&format!("{}: {}", machine.name, words(wanted, outcome)));
    }
    Ok(if outcome == Outcome::Done { 0 } else { FAILED })
}

async fn switch(
    machine: &Switchable,
    journal: Journal,
    wanted: Wanted,
    wakes_per_second: f64,
) -> anyhow::Result<Outcome> {
    let leadership = lead(&journal).await?;
    let stagger = Stagger::per_second(wakes_per_second);
    let mut executor = Executor::new(journal, leadership, Patience::default(), stagger);
    let result = carry_out(&mut executor, machine, wanted).await;
    executor.resign().await?;
    result
}

/// Takes the right to act. Whoever was killed with it has it for a lease's time, which passes only
/// while a process has the store open: so it is waited for here, and not by whoever tries again.
async fn lead(journal: &Journal) -> anyhow::Result<Leadership> {
    let deadline = Instant::now() + Duration::from_secs(LEASE.0) + EVERY;
    loop {
        if let Some(leadership) = journal.lead().await? {
            return Ok(leadership);
        }
        if Instant::now() > deadline {
            return Err(Failure::new(
                "another instance of Atoll acts for this fleet",
                "wait until it is done",
            )
            .into());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn carry_out(
    executor: &mut Executor,
    machine: &Switchable,
    wanted: Wanted,
) -> anyhow::Result<Outcome> {
    executor.want(&machine.name, wanted, now()?).await?;
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
        executor.renew().await?;
        if let Some(outcome) = executor.step(machine, now()?).await? {
            return Ok(outcome);
        }
    }
}

async fn show(machine: &Switchable, journal: Option<&Journal>, json: bool) -> anyhow::Result<u8> {
    let sight = machine.look.look().await;
    let mut controllers = Vec::new();
    for driver in &machine.drivers {
        let says = match driver.read().await {
            Ok(reading) => format!("{reading:?}").to_lowercase(),
            Err(error) => error.to_string(),
        };
        let driver = driver.name();
        controllers.push(Controller { driver, says });
    }
    let last = match journal {
        Some(journal) => journal.get(&machine.name).await?.map(|one| one.record),
        // Whoever uses the store meanwhile knows: `atoll fleet status` asks it.
        None => None,
    };
    let status = Status {
        machine: machine.name.clone(),
        node_answers: sight.answers,
        node_carries_work: sight.carries_work,
        controllers,
        last,
    };
    if json {
        style::print_json(&status)?;
        return Ok(0);
    }
    let mut table = style::Table::new(&["WHAT", "STATE"]);
    let node = match (status.node_answers, status.node_carries_work) {
        (false, _) => "does not answer",
        (true, true) => "answers, and carries work or may",
        (true, false) => "answers, and carries no work",
    };
    table.row(["node".to_owned(), node.to_owned()]);
    for one in status.controllers {
        table.row([one.driver.to_owned(), one.says]);
    }
    if let Some(last) = status.last {
        let end = last
            .outcome
            .map_or("under way", |one| words(last.wanted, one));
        table.row(["last action".to_owned(), end.to_owned()]);
    }
    table.print()?;
    Ok(0)
}

fn words(wanted: Wanted, outcome: Outcome) -> &'static str {
    match (outcome, wanted) {
        (Outcome::Done, Wanted::On) => "on, its node answers",
        (Outcome::Done, Wanted::Off) => "off",
        (Outcome::Done, Wanted::Suspended) => "suspended",
        (Outcome::NeverCame, _) => "told to switch on, and its node never answered",
        (Outcome::WouldNotStop, _) => "could not be switched off",
        (Outcome::CarriesWork, _) => "left on, as its node carries work or may",
        (Outcome::WouldNotSuspend, _) => "could not be suspended",
        (Outcome::WentOff, _) => "was to be suspended, and is off",
    }
}

fn now() -> anyhow::Result<Moment> {
    Ok(Moment(
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    ))
}
