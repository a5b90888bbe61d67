//! Looking at a node: whether it answers on a port, and whether a command says that it is idle.

use super::command::run;
use crate::power::{NodeLook, Sight};
use std::time::Duration;
use tokio::net::TcpStream;

/// A node that does not answer within this time does not answer.
const DEADLINE: Duration = Duration::from_secs(3);

/// Looks at a node over TCP.
pub struct TcpLook {
    address: String,
    idle: Option<Vec<String>>,
}

impl TcpLook {
    /// A node answers if something listens at `address`, as `HOST:PORT`. It carries work unless the
    /// command `idle` ends with status 0; without one, it always does.
    pub fn new(address: String, idle: Option<Vec<String>>) -> Self {
        Self { address, idle }
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
        drop(listener);
        assert!(!TcpLook::new(address, None).look().await.answers);
    }
}
