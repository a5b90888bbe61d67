//! Whether targets are met: one line for each, on standard output and in the file that `ATOLL_VERDICTS` names.

use std::io::Write;

use super::{Outcome, load};

/// The load from which on it is said that others were at work.
const QUIET: f64 = 1.0;

/// Figures beside their targets.
pub(crate) struct Verdicts {
    rows: Vec<[String; 5]>,
    /// The machine's load when measuring began.
    load: f64,
}

impl Verdicts {
    /// Make it before anything is measured.
    pub(crate) fn begin() -> Outcome<Self> {
        Ok(Self {
            rows: Vec::new(),
            load: load()?,
        })
    }

    /// A figure that is to be at least so much.
    pub(crate) fn at_least(&mut self, what: &str, figure: f64, least: f64, unit: &str, why: &str) {
        self.note(what, figure, figure >= least, ">=", least, unit, why);
    }

    /// A figure that is to be at most so much.
    pub(crate) fn at_most(&mut self, what: &str, figure: f64, most: f64, unit: &str, why: &str) {
        self.note(what, figure, figure <= most, "<=", most, unit, why);
    }

    #[allow(clippy::too_many_arguments, reason = "a row of a table")]
    fn note(
        &mut self,
        what: &str,
        figure: f64,
        met: bool,
        sign: &str,
        bound: f64,
        unit: &str,
        why: &str,
    ) {
        let why = match why {
            why if met || self.load < QUIET => why.to_owned(),
            why => {
                let load = format!("the load was {:.1} when this began", self.load);
                [why, &load].join(if why.is_empty() { "" } else { "; " })
            }
        };
        self.rows.push([
            what.to_owned(),
            format!("{sign} {} {unit}", shown(bound)),
            format!("{} {unit}", shown(figure)),
            if met { "met" } else { "NOT MET" }.to_owned(),
            if met { String::new() } else { why },
        ]);
    }

    /// Prints them, and adds them to the file.
    pub(crate) fn tell(&self) -> Outcome<()> {
        println!();
        for [what, target, figure, met, why] in &self.rows {
            println!("{what:<58} {target:>16} {figure:>16}  {met:<7} {why}");
        }
        if let Some(path) = std::env::var_os("ATOLL_VERDICTS") {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.append(true).create(true).open(path)?;
            for row in &self.rows {
                writeln!(file, "{}", row.join("\t"))?;
            }
        }
        Ok(())
    }
}

fn shown(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}
