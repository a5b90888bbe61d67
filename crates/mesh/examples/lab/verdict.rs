//! Whether targets are met: one line for each, on standard output and in the file that `ATOLL_VERDICTS` names.

use std::io::Write;

use super::Outcome;

/// Figures beside their targets.
#[derive(Default)]
pub(crate) struct Verdicts(Vec<[String; 5]>);

impl Verdicts {
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
        self.0.push([
            what.to_owned(),
            format!("{sign} {} {unit}", shown(bound)),
            format!("{} {unit}", shown(figure)),
            if met { "met" } else { "NOT MET" }.to_owned(),
            if met { "" } else { why }.to_owned(),
        ]);
    }

    /// Prints them, and adds them to the file.
    pub(crate) fn tell(&self) -> Outcome<()> {
        println!();
        for [what, target, figure, met, why] in &self.0 {
            println!("{what:<58} {target:>16} {figure:>16}  {met:<7} {why}");
        }
        if let Some(path) = std::env::var_os("ATOLL_VERDICTS") {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.append(true).create(true).open(path)?;
            for row in &self.0 {
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
