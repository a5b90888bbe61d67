//! IPMI 2.0 over LAN+, by `ipmitool`.
//!
//! No crate does it well enough yet. `ipmi` 0.1.2 speaks cipher suite 3 only, and goes on without encryption
//! and signatures if a controller refuses that; `ipmi-rs` 0.6.0 blocks and stops the program at suite 17;
//! `rust-ipmi` has a licence that we cannot take.

use super::command::{no_suspension, run};
use crate::power::{PowerDriver, PowerError, Reading, Switch};
use api::Secret;

/// Cipher suites that are tried: HMAC-SHA256 first, then what older controllers have.
const SUITES: [&str; 2] = ["17", "3"];

/// Switches with `ipmitool`. The password is handed over in the environment, where other users of
/// this machine do not see it.
pub struct IpmiDriver {
    address: String,
    port: u16,
    user: String,
    password: Secret,
}

impl IpmiDriver {
    /// The controller at an address.
    pub fn new(address: String, port: u16, user: String, password: Secret) -> Self {
        Self {
            address,
            port,
            user,
            password,
        }
    }

    fn arguments(&self, suite: &str, what: &[&str]) -> Vec<String> {
        let port = self.port.to_string();
        let fixed = [
            "ipmitool",
            "-I",
            "lanplus",
            "-C",
            suite,
            "-H",
            &self.address,
            "-p",
            &port,
            "-U",
            &self.user,
            "-E",
            "-N",
            "2",
            "-R",
            "2",
        ];
        let all = fixed.iter().chain(what);
        all.map(|one| (*one).to_owned()).collect()
    }

    async fn call(&self, what: &[&str]) -> Result<String, PowerError> {
        let variables = [("IPMI_PASSWORD", self.password.expose())];
        let mut last = PowerError::Failed("no cipher suite is left".to_owned());
        for suite in SUITES {
            match run(&self.arguments(suite, what), None, &variables).await {
                Ok(said) => return Ok(said),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

#[async_trait::async_trait]
impl PowerDriver for IpmiDriver {
    fn name(&self) -> &'static str {
        "ipmi"
    }

    async fn switch(&self, switch: Switch) -> Result<(), PowerError> {
        let what = match switch {
            Switch::On => ["power", "on"],
            Switch::Off => ["power", "soft"],
            Switch::ForceOff => ["power", "off"],
            Switch::Suspend => return Err(no_suspension()),
        };
        self.call(&what).await?;
        Ok(())
    }

    async fn read(&self) -> Result<Reading, PowerError> {
        let said = self.call(&["power", "status"]).await?;
        match said.trim().rsplit(' ').next() {
            Some("on") => Ok(Reading::On),
            Some("off") => Ok(Reading::Off),
            _ => Err(PowerError::Failed("ipmitool printed no state".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_no_argument() {
        let password = Secret::new("hunter2");
        let driver = IpmiDriver::new("10.0.0.1".into(), 623, "root".into(), password);
        let arguments = driver.arguments("17", &["power", "on"]);
        assert!(!arguments.iter().any(|one| one.contains("hunter2")));
        assert_eq!(arguments[arguments.len() - 2..], ["power", "on"]);
    }
}
