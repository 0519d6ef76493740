//! One figure of each contender beside the other, a panel for each kind of figure.

use super::svg::{Anchor, FAINT, INK, Svg, short};

pub struct Bars {
    pub title: String,
    pub bars: Vec<Bar>,
}

pub struct Bar {
    pub title: String,
    pub colour: &'static str,
    pub bold: bool,
    /// None where there is no figure that counts.
    pub value: Option<f64>,
}

const LABELS: f64 = 180.0;
const PANEL: f64 = 190.0;
const ROW: f64 = 26.0;
const TOP: f64 = 76.0;
/// For the number behind the longest bar.
const ROOM: f64 = 58.0;

pub fn bars(title: &str, panels: &[Bars], place: &str) -> String {
    let rows = panels.first().map_or(0, |panel| panel.bars.len());
    let width = LABELS + PANEL * panels.len() as f64 + 20.0;
    let height = TOP + ROW * rows as f64 + 34.0;
    let mut svg = Svg::new(width, height);
    svg.bold((16.0, 28.0), 16.0, INK, Anchor::Start, title);
    for (n, bar) in panels.first().into_iter().flat_map(|p| &p.bars).enumerate() {
        let at = (LABELS - 8.0, TOP + ROW * n as f64 + 16.0);
        if bar.bold {
            svg.bold(at, 13.0, INK, Anchor::End, &bar.title);
        } else {
            svg.text(at, 13.0, INK, Anchor::End, &bar.title);
        }
    }
    for (n, panel) in panels.iter().enumerate() {
        one(&mut svg, panel, LABELS + PANEL * n as f64);
    }
    svg.text((16.0, height - 12.0), 11.0, FAINT, Anchor::Start, place);
    svg.done()
}

fn one(svg: &mut Svg, panel: &Bars, left: f64) {
    svg.text((left, TOP - 14.0), 12.0, FAINT, Anchor::Start, &panel.title);
    let values = panel.bars.iter().filter_map(|bar| bar.value);
    let highest = values.fold(f64::MIN_POSITIVE, f64::max);
    for (n, bar) in panel.bars.iter().enumerate() {
        let top = TOP + ROW * n as f64;
        let Some(value) = bar.value else {
            svg.text((left, top + 16.0), 12.0, FAINT, Anchor::Start, "void");
            continue;
        };
        let long = (PANEL - ROOM) * value / highest;
        svg.bar((left, top + 3.0), long.max(1.0), ROW - 8.0, bar.colour);
        let at = (left + long + 6.0, top + 16.0);
        svg.text(at, 12.0, INK, Anchor::Start, &short(value));
    }
}
