//! What the measuring programs share: options, programs in namespaces, medians, and a verdict on each target.

pub(crate) mod daemon;
pub(crate) mod pair;
pub(crate) mod programs;
pub(crate) mod shim;
pub(crate) mod verdict;

use std::error::Error;
use std::str::FromStr;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What the program was started with: `--name value`.
pub(crate) struct Options(Vec<String>);

impl Options {
    pub(crate) fn read() -> Self {
        Self(std::env::args().skip(1).collect())
    }

    /// The arguments after `word`, if that is the first.
    pub(crate) fn after(&self, word: &str) -> Option<&[String]> {
        let (first, rest) = self.0.split_first()?;
        (first == word).then_some(rest)
    }

    pub(crate) fn get<T: FromStr>(&self, name: &str, default: T) -> Outcome<T>
    where
        T::Err: Error + Send + Sync + 'static,
    {
        let at = self.0.iter().position(|argument| argument == name);
        match at.and_then(|at| self.0.get(at + 1)) {
            Some(value) => Ok(value.parse()?),
            None => Ok(default),
        }
    }
}

pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The value below which so much of them lies.
pub(crate) fn quantile(values: impl IntoIterator<Item = f64>, part: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * part) as usize;
    let last = values.len().saturating_sub(1);
    values.get(at.min(last)).copied().unwrap_or(f64::NAN)
}

/// The machine, and what else it does.
pub(crate) fn machine() -> Outcome<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let processors = std::thread::available_parallelism()?;
    Ok(format!(
        "Linux {}, {processors} processors, load {:.1}",
        kernel.trim(),
        load()?
    ))
}

/// How many wanted to run, in the mean of the last minute.
pub(crate) fn load() -> Outcome<f64> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(load.split(' ').next().unwrap_or_default().parse()?)
}
