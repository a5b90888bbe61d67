//! Demand in a file: for tests, and for sites whose own scripts know what runs where.

use super::source::{Asked, Demand, Source, SourceError};
use crate::{amount::Amount, inventory::Moving};
use std::{collections::HashSet, path::PathBuf};

/// The first line, which may be left out.
const HEADER: &str = "name,cpu_millis,memory_mebibytes,machine,moving";
/// A larger file is refused, in bytes.
const LARGEST: u64 = 64 << 20;
const MOST_WORKLOADS: usize = 500_000;
const LONGEST_NAME: usize = 253;

/// Reads a file with a line for each workload. It is read anew each time: write it elsewhere and
/// rename it, so that nobody sees half of it.
#[derive(Debug, Clone)]
pub struct FileSource {
    path: PathBuf,
}

impl FileSource {
    /// The file at this path.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

#[async_trait::async_trait]
impl Source for FileSource {
    fn name(&self) -> &'static str {
        "file"
    }

    async fn read(&self) -> Result<Demand, SourceError> {
        let name = self.path.display();
        let refuse = |cause: &dyn std::fmt::Display| SourceError(format!("{name}: {cause}"));
        let size = tokio::fs::metadata(&self.path).await;
        let size = size.map_err(|error| refuse(&error))?.len();
        if size > LARGEST {
            return Err(refuse(&format!("it is larger than {} MiB", LARGEST >> 20)));
        }
        let text = tokio::fs::read_to_string(&self.path).await;
        parse(&text.map_err(|error| refuse(&error))?).map_err(|error| refuse(&error))
    }
}

/// Reads lines of `name,cpu_millis,memory_mebibytes,machine,moving`. A workload without a machine
/// waits. `moving` is as in a trace, and may be left out.
fn parse(text: &str) -> Result<Demand, String> {
    let mut demand = Demand::default();
    let mut names = HashSet::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || at == 0 && line == HEADER {
            continue;
        }
        let asked = parse_line(line).map_err(|cause| format!("line {}: {cause}", at + 1))?;
        if !names.insert(asked.name.clone()) {
            return Err(format!("line {}: `{}` comes twice", at + 1, asked.name));
        }
        if demand.workloads.len() == MOST_WORKLOADS {
            return Err(format!("there are more than {MOST_WORKLOADS} workloads"));
        }
        demand.workloads.push(asked);
    }
    Ok(demand)
}

fn parse_line(line: &str) -> Result<Asked, String> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    if !(3..=5).contains(&fields.len()) {
        return Err(format!("it has {} fields; write {HEADER}", fields.len()));
    }
    let name = fields[0];
    if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
        return Err(format!("a name has 1 to {LONGEST_NAME} printable bytes"));
    }
    let number = |at: usize| -> Result<u64, String> {
        let value: Option<u64> = fields[at].parse().ok();
        value
            .filter(|value| *value <= 1 << 40)
            .ok_or_else(|| format!("`{}` is no amount", fields[at]))
    };
    let moving = match fields.get(4).copied().unwrap_or_default() {
        "free" | "" => Moving::Free,
        "on_completion" => Moving::OnCompletion,
        "local_state" => Moving::LocalState,
        "never" => Moving::Never,
        other => {
            return Err(format!(
                "`{other}` is not free, on_completion, local_state or never"
            ));
        }
    };
    let machine = fields.get(3).filter(|machine| !machine.is_empty());
    Ok(Asked {
        name: name.to_owned(),
        request: Amount::workload(number(1)?, number(2)?),
        machine: machine.map(|machine| (*machine).to_owned()),
        moving,
        set: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_workload() {
        let demand = parse(&format!("{HEADER}\na,500,256,m1,never\n# none\nb,1000,1\n")).unwrap();
        assert_eq!(demand.workloads.len(), 2);
        assert_eq!(demand.workloads[0].machine.as_deref(), Some("m1"));
        assert_eq!(demand.workloads[0].moving, Moving::Never);
        assert_eq!(demand.workloads[1].machine, None);
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, word) in [
            ("a,1", "fields"),
            ("a,1,2\na,1,2", "line 2: `a` comes twice"),
            ("a,x,2", "amount"),
            (",1,2", "name"),
            ("a,1,2,m,perhaps", "perhaps"),
        ] {
            assert!(parse(text).unwrap_err().contains(word), "{text}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_says_nothing() {
        let source = FileSource::new("/no/such/file".into());
        assert!(source.read().await.is_err());
        assert_eq!(source.carries_work("m1").await, None);
    }
}
