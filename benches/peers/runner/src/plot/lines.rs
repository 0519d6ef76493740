//! How figures change along something, a line for each contender.

use super::svg::{Anchor, FAINT, GRID, INK, Svg, short, ticks};

pub struct Panel {
    pub title: String,
    pub x: Axis,
    pub unit: &'static str,
    pub lines: Vec<Line>,
}

/// What lies along the bottom.
pub enum Axis {
    /// Points at 0, 1, 2 … of these names.
    Named { title: String, names: Vec<String> },
    /// So many seconds.
    Seconds(f64),
}

pub struct Line {
    pub title: String,
    pub colour: &'static str,
    pub bold: bool,
    pub points: Vec<(f64, f64)>,
}

/// Something that happened at a second.
pub struct Mark {
    pub at: f64,
    pub what: String,
}

const WIDTH: f64 = 960.0;
const PLOT: f64 = 230.0;
const LEFT: f64 = 62.0;
const TOP: f64 = 48.0;
/// Title above, axis below.
const AROUND: f64 = 84.0;
const LEGEND: f64 = 240.0;

/// Panels in so many columns under one title and over one legend.
pub fn lines(title: &str, panels: &[Panel], marks: &[Mark], place: &str, columns: usize) -> String {
    let legend = legend(panels);
    let columns = columns.min(panels.len()).max(1);
    let rows = panels.len().div_ceil(columns) as f64;
    let each = (WIDTH - 20.0) / columns as f64;
    let per_row = (WIDTH / LEGEND) as usize;
    let legend_rows = legend.len().div_ceil(per_row) as f64;
    let below = TOP + rows * (PLOT + AROUND);
    let height = below + legend_rows * 20.0 + 34.0;
    let mut svg = Svg::new(WIDTH, height);
    svg.bold((16.0, 28.0), 16.0, INK, Anchor::Start, title);
    for (n, panel) in panels.iter().enumerate() {
        let (row, column) = ((n / columns) as f64, (n % columns) as f64);
        let frame = Frame {
            left: LEFT + column * each,
            top: TOP + row * (PLOT + AROUND) + 36.0,
            width: each - LEFT - 14.0,
            // Marks are named where there is room for it once.
            named: n == 0,
        };
        frame.draw(&mut svg, panel, marks);
    }
    for (n, (title, colour)) in legend.iter().enumerate() {
        let (row, column) = ((n / per_row) as f64, (n % per_row) as f64);
        let (x, y) = (LEFT + column * (LEGEND - 10.0), below + row * 20.0 + 4.0);
        svg.line(&[(x, y - 4.0), (x + 22.0, y - 4.0)], colour, 3.0);
        svg.text((x + 28.0, y), 12.0, INK, Anchor::Start, title);
    }
    svg.text((16.0, height - 12.0), 11.0, FAINT, Anchor::Start, place);
    svg.done()
}

fn legend(panels: &[Panel]) -> Vec<(&str, &'static str)> {
    let mut legend = Vec::new();
    for line in panels.iter().flat_map(|panel| &panel.lines) {
        if !legend.iter().any(|(title, _)| *title == line.title) {
            legend.push((line.title.as_str(), line.colour));
        }
    }
    legend
}

struct Frame {
    left: f64,
    top: f64,
    width: f64,
    named: bool,
}

impl Frame {
    fn draw(&self, svg: &mut Svg, panel: &Panel, marks: &[Mark]) {
        let points = panel.lines.iter().flat_map(|line| &line.points);
        let highest = points.fold(0.0, |highest, (_, y)| y.max(highest));
        let ticks = ticks(highest);
        let top_tick = ticks.last().copied().unwrap_or(1.0);
        let y = |value: f64| self.top + PLOT * (1.0 - value / top_tick);
        let title = format!("{}, {}", panel.title, panel.unit);
        let title = if panel.title.contains("calls a second") {
            &panel.title
        } else {
            &title
        };
        svg.text(
            (self.left, self.top - 22.0),
            13.0,
            INK,
            Anchor::Start,
            title,
        );
        for tick in &ticks {
            let end = (self.left + self.width, y(*tick));
            svg.rule((self.left, y(*tick)), end, GRID, false);
            let at = (self.left - 6.0, y(*tick) + 4.0);
            svg.text(at, 11.0, FAINT, Anchor::End, &short(*tick));
        }
        let span = self.bottom(svg, &panel.x);
        let x = |value: f64| self.left + self.width * (value + span.0) / span.1;
        for mark in marks {
            let (at, end) = ((x(mark.at), self.top), (x(mark.at), self.top + PLOT));
            svg.rule(at, end, FAINT, true);
            if self.named {
                svg.text(
                    (at.0 + 4.0, at.1 - 6.0),
                    11.0,
                    FAINT,
                    Anchor::Start,
                    &mark.what,
                );
            }
        }
        // Ours last, and so on top.
        let (ours, theirs): (Vec<_>, Vec<_>) = panel.lines.iter().partition(|line| line.bold);
        for line in theirs.into_iter().chain(ours) {
            let points: Vec<_> = line.points.iter().map(|p| (x(p.0), y(p.1))).collect();
            svg.line(&points, line.colour, if line.bold { 3.0 } else { 1.5 });
            if matches!(panel.x, Axis::Named { .. }) {
                points.iter().for_each(|at| svg.dot(*at, 3.0, line.colour));
            }
        }
    }

    /// Names the axis; gives what is left free before its first point, and how much it spans.
    fn bottom(&self, svg: &mut Svg, axis: &Axis) -> (f64, f64) {
        let under = self.top + PLOT;
        let middle = self.left + self.width / 2.0;
        let end = (self.left + self.width, under);
        svg.rule((self.left, under), end, FAINT, false);
        let (title, span, names): (&str, _, Vec<(f64, String)>) = match axis {
            Axis::Named { title, names } => {
                let span = (0.25, names.len() as f64 - 0.5);
                let places = names.iter().enumerate();
                (
                    title,
                    span,
                    places.map(|(n, name)| (n as f64, name.clone())).collect(),
                )
            }
            Axis::Seconds(all) => {
                let all_ticks = ticks(*all).into_iter().filter(|tick| tick <= all);
                (
                    "seconds",
                    (0.0, *all),
                    all_ticks.map(|tick| (tick, short(tick))).collect(),
                )
            }
        };
        for (at, name) in names {
            let x = self.left + self.width * (at + span.0) / span.1;
            svg.text((x, under + 16.0), 11.0, FAINT, Anchor::Middle, &name);
        }
        svg.text((middle, under + 32.0), 11.0, FAINT, Anchor::Middle, title);
        span
    }
}
