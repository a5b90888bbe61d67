//! Looking at a node: whether it answers on a port, and whether a command says that it is idle.

use super::command::run;
use crate::power::{NodeLook, PowerError, Sight};
use std::time::Duration;
use tokio::net::TcpStream;

/// A node that does not answer within this time does not answer.
const DEADLINE: Duration = Duration::from_secs(3);
/// What tells boots apart is no longer, in bytes.
const LONGEST_ID: usize = 200;

/// Looks at a node over TCP.
pub struct TcpLook {
    address: String,
    idle: Option<Vec<String>>,
    boot_id: Option<Vec<String>>,
}

impl TcpLook {
    /// A node answers if something listens at `address`, as `HOST:PORT`. It carries work unless the
    /// command `idle` ends with status 0; without one, it always does.
    pub fn new(address: String, idle: Option<Vec<String>>) -> Self {
        Self {
            address,
            idle,
            boot_id: None,
        }
    }

    /// Also asks which boot of its system the node is in, with this command.
    #[must_use]
    pub fn telling_boots(mut self, command: Option<Vec<String>>) -> Self {
        self.boot_id = command;
        self
    }
}

#[async_trait::async_trait]
impl NodeLook for TcpLook {
    async fn look(&self) -> Sight {
        let connected = tokio::time::timeout(DEADLINE, TcpStream::connect(&self.address)).await;
        let answers = matches!(connected, Ok(Ok(_)));
        let idle = match &self.idle {
            Some(command) => run(command, None, &[]).await.is_ok(),
            None => false,
        };
        Sight {
            answers,
            carries_work: !idle,
        }
    }

    async fn boot_id(&self) -> Result<Option<String>, PowerError> {
        let Some(command) = &self.boot_id else {
            return Ok(None);
        };
        let said = run(command, None, &[]).await?;
        let said = said.trim();
        if said.is_empty() || said.len() > LONGEST_ID {
            return Err(PowerError::Failed(
                "the command that tells boots apart printed nothing, or too much".to_owned(),
            ));
        }
        Ok(Some(said.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_is_seen_when_it_listens() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let idle = |status: &str| Some(vec!["sh".into(), "-c".into(), format!("exit {status}")]);
        let sight = TcpLook::new(address.clone(), idle("0")).look().await;
        assert!(sight.answers && !sight.carries_work);
        assert!(
            TcpLook::new(address.clone(), idle("1"))
                .look()
                .await
                .carries_work
        );
        assert!(
            TcpLook::new(address.clone(), None)
                .look()
                .await
                .carries_work
        );
        let boots = |text: &str| Some(vec!["printf".into(), text.into()]);
        let look = TcpLook::new(address.clone(), None);
        assert_eq!(look.boot_id().await, Ok(None));
        let look = look.telling_boots(boots("one\\n"));
        assert_eq!(look.boot_id().await, Ok(Some("one".to_owned())));
        assert!(look.telling_boots(boots("")).boot_id().await.is_err());
        drop(listener);
        assert!(!TcpLook::new(address, None).look().await.answers);
    }
}
