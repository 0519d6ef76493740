//! Lines over seconds, as SVG.

use std::{fmt::Write as _, ops::Range};

/// One diagram.
pub(crate) struct Panel {
    title: &'static str,
    pub(crate) lines: Vec<Line>,
}

pub(crate) struct Line {
    name: String,
    values: Vec<f64>,
}

const COLOURS: [&str; 3] = ["#888888", "#c0392b", "#2471a3"];
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 60.0;

impl Panel {
    pub(crate) fn new(title: &'static str) -> Self {
        let lines = Vec::new();
        Self { title, lines }
    }
}

impl Line {
    pub(crate) fn new(name: &str, values: impl Iterator<Item = f64>) -> Self {
        Self {
            name: name.into(),
            values: values.collect(),
        }
    }
}

/// The panels below each other, with the bad time shaded.
pub(crate) fn svg(title: &str, panels: &[Panel], bad: Range<f64>) -> String {
    let height = TOP + panels.len() as f64 * (HEIGHT + 60.0) + 20.0;
    let width = LEFT + WIDTH + 20.0;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#fff"/><text x="{LEFT}" y="20" font-size="15">{title}</text>
"##
    );
    for (n, panel) in panels.iter().enumerate() {
        draw(&mut svg, panel, TOP + n as f64 * (HEIGHT + 60.0), &bad);
    }
    for (n, line) in panels[0].lines.iter().enumerate() {
        let x = LEFT + n as f64 * 200.0;
        let colour = COLOURS[n % COLOURS.len()];
        let _ = writeln!(
            svg,
            r#"<text x="{x}" y="38" fill="{colour}">{}</text>"#,
            line.name
        );
    }
    svg + "</svg>\n"
}

fn draw(svg: &mut String, panel: &Panel, top: f64, bad: &Range<f64>) {
    let all = panel.lines.iter().flat_map(|line| &line.values);
    let most = all.fold(1.0_f64, |most, value| most.max(*value)) * 1.05;
    let seconds = panel.lines.iter().map(|line| line.values.len()).max();
    let seconds = seconds.unwrap_or(1).max(2) as f64 - 1.0;
    let x = |second: f64| LEFT + WIDTH * second / seconds;
    let y = |value: f64| top + HEIGHT * (1.0 - value / most);
    let (from, span) = (x(bad.start), x(bad.end) - x(bad.start));
    let _ = writeln!(
        svg,
        r##"<rect x="{from:.1}" y="{top}" width="{span:.1}" height="{HEIGHT}" fill="#f4e6c3"/>
<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#444"/>
<text x="{LEFT}" y="{:.1}">{}</text>"##,
        top - 6.0,
        panel.title
    );
    for mark in 0..=4 {
        let value = most / 1.05 * f64::from(mark) / 4.0;
        let _ = writeln!(
            svg,
            r#"<text x="8" y="{:.1}">{value:.1}</text>"#,
            y(value) + 4.0
        );
    }
    for second in (0..=seconds as usize).step_by(5) {
        let (at, below) = (x(second as f64), top + HEIGHT + 16.0);
        let _ = writeln!(svg, r#"<text x="{at:.1}" y="{below:.1}">{second} s</text>"#);
    }
    for (n, line) in panel.lines.iter().enumerate() {
        let points = line.values.iter().enumerate();
        let points =
            points.map(|(second, value)| format!("{:.1},{:.1}", x(second as f64), y(*value)));
        let points = points.collect::<Vec<_>>().join(" ");
        let colour = COLOURS[n % COLOURS.len()];
        let _ = writeln!(
            svg,
            r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>"#
        );
    }
}
