//! The few shapes that our pictures are made of.

use std::fmt::Write;

pub const INK: &str = "#212529";
pub const FAINT: &str = "#868e96";
pub const GRID: &str = "#e9ecef";

/// A picture in the making; the origin is its upper left corner.
pub struct Svg(String);

#[derive(Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    pub fn new(width: f64, height: f64) -> Self {
        let mut text = String::new();
        let _ = writeln!(
            text,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="system-ui, 'DejaVu Sans', sans-serif"><rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>"##
        );
        Self(text)
    }

    pub fn text(&mut self, at: (f64, f64), size: f64, colour: &str, anchor: Anchor, text: &str) {
        self.any_text(at, size, colour, anchor, "", text);
    }

    pub fn bold(&mut self, at: (f64, f64), size: f64, colour: &str, anchor: Anchor, text: &str) {
        self.any_text(at, size, colour, anchor, r#" font-weight="bold""#, text);
    }

    fn any_text(
        &mut self,
        (x, y): (f64, f64),
        size: f64,
        colour: &str,
        anchor: Anchor,
        more: &str,
        text: &str,
    ) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = text
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        let _ = writeln!(
            self.0,
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{more}>{text}</text>"#
        );
    }

    pub fn bar(&mut self, (x, y): (f64, f64), width: f64, height: f64, colour: &str) {
        let _ = writeln!(
            self.0,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2" fill="{colour}"/>"#
        );
    }

    pub fn rule(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, dashed: bool) {
        let dashes = if dashed {
            r#" stroke-dasharray="4 3""#
        } else {
            ""
        };
        let _ = writeln!(
            self.0,
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="{colour}"{dashes}/>"#,
            from.0, from.1, to.0, to.1
        );
    }

    pub fn line(&mut self, points: &[(f64, f64)], colour: &str, width: f64) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let points = points.join(" ");
        let _ = writeln!(
            self.0,
            r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>"#
        );
    }

    pub fn dot(&mut self, (x, y): (f64, f64), radius: f64, colour: &str) {
        let _ = writeln!(
            self.0,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" fill="{colour}"/>"#
        );
    }

    pub fn done(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

/// `950`, `12.5`, `93 k`, `1.2 M`.
pub fn short(number: f64) -> String {
    let trimmed = |number: f64| {
        let digits = usize::from(number < 100.0);
        let digits = if number < 10.0 && number > 0.0 {
            2
        } else {
            digits
        };
        let text = format!("{number:.digits$}");
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text,
        }
    };
    match number {
        n if n >= 1e6 => format!("{} M", trimmed(n / 1e6)),
        n if n >= 1e4 => format!("{} k", trimmed(n / 1e3)),
        n => trimmed(n),
    }
}

/// From zero to a round number at or above the highest, in four to eight steps.
pub fn ticks(highest: f64) -> Vec<f64> {
    let highest = if highest > 0.0 { highest } else { 1.0 };
    let power = 10_f64.powf((highest / 4.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|n| n * power)
        .find(|step| highest / step <= 6.0)
        .unwrap_or(power * 10.0);
    let steps = (highest / step).ceil() as u32;
    (0..=steps).map(|n| f64::from(n) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let said = [0.0, 3.256, 12.5, 100.4, 950.0, 93_412.0, 1_234_567.0].map(short);

        assert_eq!(
            said,
            ["0", "3.26", "12.5", "100", "950", "93.4 k", "1.23 M"]
        );
    }

    #[test]
    fn ticks_are_round_and_reach_the_highest() {
        for highest in [0.7, 1.0, 9.9, 12.0, 180_000.0] {
            let ticks = ticks(highest);

            assert!((4..=8).contains(&ticks.len()), "{ticks:?}");
            assert!(
                ticks.last().is_some_and(|last| *last >= highest),
                "{ticks:?}"
            );
        }
    }

    #[test]
    fn what_is_said_cannot_break_the_picture() {
        let mut svg = Svg::new(10.0, 10.0);
        svg.text((0.0, 0.0), 10.0, INK, Anchor::Start, "a < b & c");

        assert!(svg.done().contains(">a &lt; b &amp; c<"));
    }
}
