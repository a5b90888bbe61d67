//! Commands that switch and ask, for whatever else there is.

use crate::power::{PowerDriver, PowerError, Reading, Switch};
use std::{path::PathBuf, process::Stdio, time::Duration};
use tokio::{io::AsyncReadExt, process::Command};

/// A command that takes longer is ended.
const DEADLINE: Duration = Duration::from_secs(25);
/// More output than this is not read.
const LONGEST: u64 = 64 << 10;

/// Switches with commands.
pub struct CommandDriver {
    on: Vec<String>,
    off: Vec<String>,
    status: Vec<String>,
    suspend: Option<Vec<String>>,
    folder: Option<PathBuf>,
}

impl CommandDriver {
    /// Commands to switch on and off, and one that prints `on` or `off`.
    pub fn new(
        on: Vec<String>,
        off: Vec<String>,
        status: Vec<String>,
        folder: Option<PathBuf>,
    ) -> Self {
        Self {
            on,
            off,
            status,
            suspend: None,
            folder,
        }
    }

    /// Also suspends the machine, with this command; the one that asks prints `suspended` then.
    #[must_use]
    pub fn suspending(mut self, command: Option<Vec<String>>) -> Self {
        self.suspend = command;
        self
    }
}

#[async_trait::async_trait]
impl PowerDriver for CommandDriver {
    fn name(&self) -> &'static str {
        "command"
    }

    fn suspends(&self) -> bool {
        self.suspend.is_some()
    }

    async fn switch(&self, switch: Switch) -> Result<(), PowerError> {
        let (command, how) = match switch {
            Switch::On => (&self.on, "on"),
            Switch::Off => (&self.off, "off"),
            Switch::ForceOff => (&self.off, "force-off"),
            Switch::Suspend => match &self.suspend {
                Some(command) => (command, "suspend"),
                None => return Err(no_suspension()),
            },
        };
        run(command, self.folder.as_ref(), &[("ATOLL_SWITCH", how)]).await?;
        Ok(())
    }

    async fn read(&self) -> Result<Reading, PowerError> {
        let said = run(&self.status, self.folder.as_ref(), &[]).await?;
        match said.trim().to_ascii_lowercase().as_str() {
            "on" => Ok(Reading::On),
            "off" => Ok(Reading::Off),
            "changing" => Ok(Reading::Changing),
            "suspended" => Ok(Reading::Suspended),
            _ => Err(PowerError::Failed(
                "the status command printed neither on, off, suspended nor changing".to_owned(),
            )),
        }
    }
}

/// What a driver says that cannot suspend its machine.
pub(super) fn no_suspension() -> PowerError {
    PowerError::Unsupported("nothing says how it is suspended".to_owned())
}

/// Runs a command and returns what it printed. Its arguments are a list; no shell reads them.
pub(super) async fn run(
    command: &[String],
    folder: Option<&PathBuf>,
    variables: &[(&str, &str)],
) -> Result<String, PowerError> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(PowerError::Unsupported("there is no command".to_owned()));
    };
    let failed = |error: std::io::Error| PowerError::Failed(format!("{program}: {error}"));
    let mut process = Command::new(program);
    process
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    if let Some(folder) = folder {
        process.current_dir(folder);
    }
    let mut child = process.spawn().map_err(failed)?;
    let output = child.stdout.take();
    let finish = async {
        let mut said = Vec::new();
        if let Some(output) = output {
            output.take(LONGEST).read_to_end(&mut said).await?;
        }
        let status = child.wait().await?;
        std::io::Result::Ok((status, said))
    };
    let (status, said) = tokio::time::timeout(DEADLINE, finish)
        .await
        .map_err(|_| PowerError::TimedOut(DEADLINE))?
        .map_err(failed)?;
    if !status.success() {
        return Err(PowerError::Failed(format!("{program} ended with {status}")));
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn commands_switch_and_answer() {
        let folder = tempfile::tempdir().unwrap();
        let driver = CommandDriver::new(
            shell("echo on > state"),
            shell("echo off > state; echo $ATOLL_SWITCH > how"),
            shell("cat state"),
            Some(folder.path().to_owned()),
        );
        assert!(driver.read().await.is_err());
        driver.switch(Switch::On).await.unwrap();
        assert_eq!(driver.read().await, Ok(Reading::On));
        driver.switch(Switch::ForceOff).await.unwrap();
        assert_eq!(driver.read().await, Ok(Reading::Off));
        let how = std::fs::read_to_string(folder.path().join("how")).unwrap();
        assert_eq!(how, "force-off\n");
        assert!(!driver.suspends());
        assert!(driver.switch(Switch::Suspend).await.is_err());
        let command = shell("echo suspended > state; echo $ATOLL_SWITCH > how");
        let driver = driver.suspending(Some(command));
        assert!(driver.suspends());
        driver.switch(Switch::Suspend).await.unwrap();
        assert_eq!(driver.read().await, Ok(Reading::Suspended));
        let how = std::fs::read_to_string(folder.path().join("how")).unwrap();
        assert_eq!(how, "suspend\n");
    }

    #[tokio::test]
    async fn a_command_that_fails_or_is_missing_says_so() {
        let failing = shell("exit 3");
        assert!(matches!(
            run(&failing, None, &[]).await,
            Err(PowerError::Failed(_))
        ));
        let missing = vec!["/no/such/program".to_owned()];
        assert!(matches!(
            run(&missing, None, &[]).await,
            Err(PowerError::Failed(_))
        ));
        assert!(matches!(
            run(&[], None, &[]).await,
            Err(PowerError::Unsupported(_))
        ));
    }
}
