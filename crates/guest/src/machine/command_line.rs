//! What the kernel's command line says to the guest: `atoll.NAME=VALUE`, and where the virtio
//! devices are.

use api::Secret;
use std::net::Ipv4Addr;

/// The port that a guest serves on if it is not told another.
const PORT: u16 = 49983;

/// Why a command line cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is missing or has no usable value")]
pub(super) struct CommandLineError {
    name: &'static str,
}

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandLine {
    /// `atoll.address=169.254.0.21/30`.
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    /// `atoll.gateway=169.254.0.22`.
    pub(super) gateway: Ipv4Addr,
    /// `atoll.mtu=1500`; the device's own if absent.
    pub(super) mtu: Option<u16>,
    /// `atoll.control=TOKEN`: opens the guest until it is told who it is.
    pub(super) control_token: Secret,
    /// `atoll.port=49983`.
    pub(super) port: u16,
    /// `virtio_mmio.device=SIZE@ADDRESS:INTERRUPT`, each as it stands, without `virtio_mmio.`.
    pub(super) virtio_devices: Vec<String>,
}

impl CommandLine {
    pub(super) fn parse(text: &str) -> Result<Self, CommandLineError> {
        let words = || text.split_ascii_whitespace();
        let value = |name: &'static str| {
            words().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let wrong = |name| CommandLineError { name };
        let (address, prefix) = value("atoll.address")
            .and_then(|text| text.split_once('/'))
            .and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)))
            .filter(|(_, prefix)| *prefix <= 32)
            .ok_or(wrong("atoll.address"))?;
        let parsed = |name: &'static str| match value(name) {
            Some(text) => text.parse::<u16>().map(Some).map_err(|_| wrong(name)),
            None => Ok(None),
        };
        let devices = words().filter_map(|word| word.strip_prefix("virtio_mmio."));
        Ok(Self {
            address,
            prefix,
            gateway: value("atoll.gateway")
                .and_then(|text| text.parse().ok())
                .ok_or(wrong("atoll.gateway"))?,
            mtu: parsed("atoll.mtu")?,
            control_token: value("atoll.control")
                .filter(|token| !token.is_empty())
                .map(Secret::new)
                .ok_or(wrong("atoll.control"))?,
            port: parsed("atoll.port")?.unwrap_or(PORT),
            virtio_devices: devices
                .filter(|word| word.starts_with("device="))
                .map(str::to_owned)
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "quiet atoll.address=169.254.0.21/30 atoll.gateway=169.254.0.22 \
         atoll.control=secret virtio_mmio.device=512@0xfeb00e00:12 \
         virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.other=1";

    #[test]
    fn a_line_is_understood() {
        let line = CommandLine::parse(LINE).unwrap();
        assert_eq!(line.address, Ipv4Addr::new(169, 254, 0, 21));
        assert_eq!((line.prefix, line.mtu, line.port), (30, None, 49983));
        assert_eq!(line.control_token.expose(), "secret");
        let devices = ["device=512@0xfeb00e00:12", "device=4K@0xd0000000:5"];
        assert_eq!(line.virtio_devices, devices);
        let line = CommandLine::parse(&format!("{LINE} atoll.mtu=1400 atoll.port=80")).unwrap();
        assert_eq!((line.mtu, line.port), (Some(1400), 80));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (text, name) in [
            ("", "atoll.address"),
            ("atoll.address=1.2.3.4/33", "atoll.address"),
            ("atoll.address=1.2.3.4/30", "atoll.gateway"),
            (
                "atoll.address=1.2.3.4/30 atoll.gateway=1.2.3.5 atoll.control=",
                "atoll.control",
            ),
            (&LINE.replace("quiet", "atoll.port=x"), "atoll.port"),
        ] {
            assert_eq!(
                CommandLine::parse(text),
                Err(CommandLineError { name }),
                "{text}"
            );
        }
    }
}
