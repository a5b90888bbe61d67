//! A picture of a comparison: what is asked for and what is awake, and what is drawn from the
//! wall, over time.

use super::report::{Comparison, Sample};
use std::fmt::Write;

const WIDTH: f64 = 1200.0;
const PANEL: f64 = 260.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 50.0;
const GAP: f64 = 70.0;
/// More points than pixels show nothing more.
const POINTS: usize = 1000;

/// Colours that people with any sight can tell apart (Okabe and Ito, 2008).
const COLOURS: [&str; 8] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#777777", "#000000",
];

/// Draws the comparison as SVG.
pub fn plot(comparison: &Comparison) -> String {
    let height = TOP + 2.0 * PANEL + GAP + 50.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let cpu = |sample: &Sample| sample.awake_cpu;
    let watts = |sample: &Sample| sample.watts / 1000.0;
    panel(
        &mut svg,
        comparison,
        TOP,
        "Processors awake, and asked for (grey)",
        cpu,
        true,
    );
    let second = TOP + PANEL + GAP;
    panel(
        &mut svg,
        comparison,
        second,
        "Power in kilowatts",
        watts,
        false,
    );
    svg.push_str("</svg>\n");
    svg
}

fn panel(
    svg: &mut String,
    comparison: &Comparison,
    top: f64,
    title: &str,
    figure: impl Fn(&Sample) -> f64,
    with_demand: bool,
) {
    let rows = comparison.rows.iter().filter(|row| !row.samples.is_empty());
    let rows: Vec<_> = rows.collect();
    let samples = rows.iter().flat_map(|row| &row.samples);
    let (mut most, mut first, mut last) = (0.0_f64, u64::MAX, 0);
    for sample in samples {
        most = most.max(figure(sample));
        if with_demand {
            most = most.max(sample.demand_cpu);
        }
        (first, last) = (first.min(sample.at.0), last.max(sample.at.0));
    }
    let span = last.saturating_sub(first).max(1) as f64;
    let scale = if most > 0.0 { most } else { 1.0 };
    let width = WIDTH - LEFT - RIGHT;
    let x = |sample: &Sample| LEFT + width * (sample.at.0.saturating_sub(first)) as f64 / span;
    let y = |value: f64| top + PANEL * (1.0 - value / scale);
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.0}\" font-weight=\"bold\">{title}</text>",
        top - 12.0
    );
    for part in 0..=4 {
        let value = scale * f64::from(part) / 4.0;
        let at = y(value);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{value:.0}</text>",
            LEFT + width,
            LEFT - 8.0,
            at + 4.0
        );
    }
    let hours = span / 3600.0;
    let every = if hours > 48.0 { 24.0 } else { 3.0 };
    let mut hour = 0.0;
    while hour <= hours {
        let at = LEFT + width * hour / hours.max(f64::MIN_POSITIVE);
        let label = if every > 12.0 {
            format!("day {:.0}", hour / 24.0 + 1.0)
        } else {
            format!("{hour:.0} h")
        };
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{label}</text>",
            top + PANEL + 18.0
        );
        hour += every;
    }
    if with_demand && let Some(row) = rows.first() {
        line(svg, &row.samples, "#999999", 0.8, &x, |one| {
            y(one.demand_cpu)
        });
    }
    for (at, row) in rows.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        line(svg, &row.samples, colour, 1.4, &x, |one| y(figure(one)));
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" fill=\"{colour}\">{}</text>",
            LEFT + width + 14.0,
            top + 14.0 + 18.0 * at as f64,
            escaped(&row.policy)
        );
    }
}

fn line(
    svg: &mut String,
    samples: &[Sample],
    colour: &str,
    width: f64,
    x: &impl Fn(&Sample) -> f64,
    y: impl Fn(&Sample) -> f64,
) {
    let every = samples.len().div_ceil(POINTS).max(1);
    let mut points = String::new();
    for sample in samples.iter().step_by(every) {
        let _ = write!(points, "{:.1},{:.1} ", x(sample), y(sample));
    }
    let _ = writeln!(
        svg,
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" points=\"{}\"/>",
        points.trim_end()
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
