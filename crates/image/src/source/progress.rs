//! Reading how far mmdebstrap, apt and dpkg have come out of what they print. Pure.

/// What a line tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A step has begun; the number is its total, in bytes or packages.
    Step(String, Option<u64>),
    /// So much more is done.
    Done(u64),
    /// Nothing about progress.
    Nothing,
}

/// Where the tools are.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    packages: u64,
    downloading: bool,
    installing: bool,
}

impl Progress {
    /// Reads the next line.
    pub fn read(&mut self, line: &str) -> Told {
        if let Some(message) = line.strip_prefix("I: ") {
            let message = message.trim_end_matches('.');
            // Hooks, arguments and temporary names are of no interest.
            let known = [
                "downloading",
                "extracting",
                "installing",
                "cleaning",
                "creating",
            ];
            if message.starts_with("running apt-get update") {
                (self.downloading, self.installing) = (false, false);
                return Told::Step("reading package lists".into(), None);
            }
            if known.iter().any(|word| message.starts_with(word)) {
                self.downloading = false;
                self.installing = message.starts_with("installing");
                let total = (self.installing && self.packages > 0).then_some(self.packages);
                return Told::Step(message.replace("tarball", "layer"), total);
            }
            return Told::Nothing;
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            [_, "upgraded,", count, "newly", "installed,", ..] => {
                self.packages = count.parse().unwrap_or_default();
                Told::Nothing
            }
            // `Need to get 1234 kB/56.7 MB of archives`: the first is what is not in the cache.
            ["Need", "to", "get", number, unit, ..] => {
                let unit = unit.split('/').next().unwrap_or_default();
                let total = amount(number, unit);
                self.downloading = total != Some(0);
                self.installing = !self.downloading;
                match self.downloading {
                    true => Told::Step("downloading packages".into(), total),
                    false => Told::Step("installing packages".into(), Some(self.packages)),
                }
            }
            ["Fetched", ..] if self.downloading => {
                self.downloading = false;
                self.installing = true;
                Told::Step("installing packages".into(), Some(self.packages))
            }
            [first, .., number, unit] if self.downloading && first.starts_with("Get:") => {
                amount(number.trim_start_matches('['), unit.trim_end_matches(']'))
                    .map_or(Told::Nothing, Told::Done)
            }
            ["Setting", "up", ..] if self.installing => Told::Done(1),
            _ => Told::Nothing,
        }
    }
}

/// apt's amounts: `37.6 kB`, powers of a thousand.
fn amount(number: &str, unit: &str) -> Option<u64> {
    let factor = match unit {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    let number: f64 = number.replace(',', "").parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_are_understood() {
        let mut progress = Progress::default();
        let mut check = |line: &str, expected: Told| {
            assert_eq!(progress.read(line), expected, "{line}");
        };
        let step = |name: &str, total| Told::Step(name.into(), total);
        check(
            "I: running apt-get update...",
            step("reading package lists", None),
        );
        check(
            "Get:2 http://x bookworm/main amd64 Packages [8790 kB]",
            Told::Nothing,
        );
        check(
            "I: downloading packages with apt...",
            step("downloading packages with apt", None),
        );
        check(
            "0 upgraded, 69 newly installed, 0 to remove and 0 not upgraded.",
            Told::Nothing,
        );
        check(
            "Need to get 29.7 MB of archives.",
            step("downloading packages", Some(29_700_000)),
        );
        check(
            "Get:1 http://x bookworm/main amd64 gcc-12-base amd64 12.2 [37.6 kB]",
            Told::Done(37_600),
        );
        check(
            "Fetched 29.7 MB in 0s (92 MB/s)",
            step("installing packages", Some(69)),
        );
        check(
            "I: installing essential packages...",
            step("installing essential packages", Some(69)),
        );
        check("Setting up dash (0.5.12-2) ...", Told::Done(1));
        let cached = "Need to get 0 B/29.7 MB of archives.";
        check(cached, step("installing packages", Some(69)));
        check("I: success in 34.4566 seconds", Told::Nothing);
    }
}
