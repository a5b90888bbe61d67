//! Wake-on-LAN: a packet wakes the machine, a command switches it off or suspends it, and nobody
//! can be asked.

use super::command::{no_suspension, run};
use crate::{
    config::parse_mac,
    power::{PowerDriver, PowerError, Reading, Switch},
};
use api::{ErrorCode, Problem};
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::UdpSocket;

/// Packets get lost: each wake-up is so many of them.
const PACKETS: usize = 3;

/// Wakes with magic packets.
pub struct WakeOnLanDriver {
    mac: [u8; 6],
    broadcast: SocketAddr,
    off: Vec<String>,
    suspend: Option<Vec<String>>,
}

impl WakeOnLanDriver {
    /// Wakes the card with this address.
    ///
    /// # Errors
    /// When that is no card's address.
    pub fn open(
        mac: &str,
        broadcast: Option<SocketAddr>,
        off: Vec<String>,
    ) -> Result<Self, Problem> {
        let Some(mac) = parse_mac(mac) else {
            return Err(Problem::new(
                ErrorCode::InvalidArgument,
                format!("`{}` is not a card's address", mac.escape_debug()),
                "write six bytes such as 00:11:22:33:44:55",
            ));
        };
        let everywhere = SocketAddr::from((Ipv4Addr::BROADCAST, 9));
        Ok(Self {
            mac,
            broadcast: broadcast.unwrap_or(everywhere),
            off,
            suspend: None,
        })
    }

    /// Also suspends the machine, with this command.
    #[must_use]
    pub fn suspending(mut self, command: Option<Vec<String>>) -> Self {
        self.suspend = command;
        self
    }
}

/// Six bytes of ones, and the card's address sixteen times (AMD, *Magic Packet Technology*, 1995).
pub fn magic_packet(mac: [u8; 6]) -> [u8; 102] {
    let mut packet = [0xff; 102];
    for place in packet[6..].chunks_exact_mut(6) {
        place.copy_from_slice(&mac);
    }
    packet
}

#[async_trait::async_trait]
impl PowerDriver for WakeOnLanDriver {
    fn name(&self) -> &'static str {
        "wake-on-lan"
    }

    fn suspends(&self) -> bool {
        self.suspend.is_some()
    }

    async fn switch(&self, switch: Switch) -> Result<(), PowerError> {
        let command = match switch {
            Switch::On => None,
            Switch::Off | Switch::ForceOff => Some(&self.off),
            Switch::Suspend => Some(self.suspend.as_ref().ok_or_else(no_suspension)?),
        };
        if let Some(command) = command {
            run(command, None, &[]).await?;
            return Ok(());
        }
        let failed = |error: std::io::Error| PowerError::Failed(format!("no packet: {error}"));
        let unspecified = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let local = match self.broadcast {
            SocketAddr::V4(_) => unspecified,
            SocketAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(local).await.map_err(failed)?;
        if self.broadcast.is_ipv4() {
            socket.set_broadcast(true).map_err(failed)?;
        }
        for _ in 0..PACKETS {
            let packet = magic_packet(self.mac);
            socket
                .send_to(&packet, self.broadcast)
                .await
                .map_err(failed)?;
        }
        Ok(())
    }

    async fn read(&self) -> Result<Reading, PowerError> {
        Ok(Reading::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_suspends_if_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("suspended");
        let driver = WakeOnLanDriver::open("00:11:22:aa:bb:cc", None, Vec::new()).unwrap();
        assert!(!driver.suspends());
        assert_eq!(driver.switch(Switch::Suspend).await, Err(no_suspension()));
        let command = vec!["touch".to_owned(), path.to_str().unwrap().to_owned()];
        let driver = driver.suspending(Some(command));
        assert!(driver.suspends());
        driver.switch(Switch::Suspend).await.unwrap();
        assert!(path.exists());
    }

    #[tokio::test]
    async fn the_packet_arrives() {
        let listener = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let driver = WakeOnLanDriver::open("00:11:22:aa:bb:cc", Some(address), Vec::new()).unwrap();
        driver.switch(Switch::On).await.unwrap();
        let mut buffer = [0; 200];
        let (length, _) = listener.recv_from(&mut buffer).await.unwrap();
        assert_eq!(length, 102);
        assert_eq!(buffer[..6], [0xff; 6]);
        for copy in buffer[6..102].chunks(6) {
            assert_eq!(copy, [0, 0x11, 0x22, 0xaa, 0xbb, 0xcc]);
        }
    }
}
