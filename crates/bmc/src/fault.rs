//! What a controller or its machine does wrong.

use std::{str::FromStr, time::Duration};

/// A fault, of one machine or of the whole controller. All but the last four concern the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Every answer takes so long, in the system's time.
    Slow(Duration),
    /// Every answer has this status, and nothing is done.
    Status(u16),
    /// The connection is cut before anything is done.
    Cut,
    /// The connection is cut after a reset was done: nobody hears of it.
    CutAfter,
    /// It says that the machine is on, whatever it is.
    SaysOn,
    /// It says that the machine is off, whatever it is.
    SaysOff,
    /// A reset needs the tag of what was read (`If-Match`).
    WantsTag,
    /// Resets are accepted, and nothing happens.
    IgnoresResets,
    /// The machine does not switch itself off when it is asked to.
    IgnoresGraceful,
    /// The machine cannot even have its power taken away.
    IgnoresForce,
    /// The machine gets power, and its node never answers.
    NeverComesUp,
}

/// No fault is called so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no fault `{0}`")]
pub struct UnknownFault(String);

impl FromStr for Fault {
    type Err = UnknownFault;

    /// The fault's name in words with `-`; `slow:MILLISECONDS` and `status:CODE`.
    fn from_str(text: &str) -> Result<Self, UnknownFault> {
        let unknown = || UnknownFault(text.to_owned());
        let (name, argument) = text.split_once(':').unwrap_or((text, ""));
        Ok(match name {
            "slow" => Self::Slow(Duration::from_millis(
                argument.parse().map_err(|_| unknown())?,
            )),
            "status" => {
                let code: u16 = argument.parse().map_err(|_| unknown())?;
                let known = (200..600).contains(&code);
                Self::Status(known.then_some(code).ok_or_else(unknown)?)
            }
            "cut" => Self::Cut,
            "cut-after" => Self::CutAfter,
            "says-on" => Self::SaysOn,
            "says-off" => Self::SaysOff,
            "wants-tag" => Self::WantsTag,
            "ignores-resets" => Self::IgnoresResets,
            "ignores-graceful" => Self::IgnoresGraceful,
            "ignores-force" => Self::IgnoresForce,
            "never-comes-up" => Self::NeverComesUp,
            _ => return Err(unknown()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_have_names() {
        let slow = Fault::Slow(Duration::from_millis(250));
        assert_eq!("slow:250".parse(), Ok(slow));
        assert_eq!("status:500".parse(), Ok(Fault::Status(500)));
        assert_eq!("never-comes-up".parse(), Ok(Fault::NeverComesUp));
        for wrong in ["", "slow", "status:9", "status:x", "explodes"] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }
}
