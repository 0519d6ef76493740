//! What has been compared, in pictures.

use std::fmt::Write;

use crate::compare::Compared;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 70.0;
const COLOURS: [&str; 8] = [
    "#868e96", "#1971c2", "#e03131", "#2f9e44", "#f08c00", "#9c36b5", "#0c8599", "#5c3c1e",
];

/// Names of files, and what is in them.
pub fn all(compared: &[Compared]) -> Vec<(String, String)> {
    let mut pictures = vec![(String::from("tails.svg"), tails(compared))];
    let with_bad = compared
        .iter()
        .filter(|one| one.rows.iter().any(|row| row.mean.share > 0.0));
    pictures.extend(with_bad.map(|one| (format!("share-{}.svg", one.scenario), shares(one))));
    pictures
}

/// The p99 of each policy against the base: a line for each scenario, a dot for each policy.
fn tails(compared: &[Compared]) -> String {
    let (height, top, names) = (26.0, 92.0, 250.0);
    let bottom = top + compared.len() as f64 * height;
    let mut svg = begin(bottom + 30.0);
    let rows = compared.first().map_or(&[][..], |one| &one.rows);
    let base = rows.first().map_or("the base", |row| row.policy.as_str());
    let what = format!("p99 against that of {base}, less is better");
    text(&mut svg, 12.0, 24.0, &what);
    for (n, row) in rows.iter().enumerate() {
        let at = 12.0 + n as f64 * 160.0;
        dot(&mut svg, at + 6.0, 46.0, n);
        text(&mut svg, at + 18.0, 50.0, &row.policy);
    }
    // From a twentieth to twenty times, logarithmic.
    let (middle, step) = ((names + WIDTH - 20.0) / 2.0, (WIDTH - 20.0 - names) / 2.0);
    let x = |ratio: f64| middle + ratio.clamp(0.05, 20.0).ln() / 20_f64.ln() * step;
    for mark in [0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0] {
        let (at, colour) = (x(mark), if mark == 1.0 { "#868e96" } else { "#e9ecef" });
        let _ = writeln!(
            svg,
            r#"<line x1="{at:.1}" y1="{top}" x2="{at:.1}" y2="{bottom}" stroke="{colour}"/>"#
        );
        text(&mut svg, at - 8.0, top - 10.0, &format!("{mark}"));
    }
    for (line, one) in compared.iter().enumerate() {
        let y = top + (line as f64 + 0.5) * height;
        let what = format!("{}: {}", one.scenario, one.asks);
        text(&mut svg, 12.0, y + 4.0, &what);
        for (n, row) in one.rows.iter().enumerate() {
            dot(&mut svg, x(row.p99.mean), y, n);
        }
    }
    svg + "</svg>\n"
}

fn dot(svg: &mut String, x: f64, y: f64, nth: usize) {
    let colour = COLOURS[nth % COLOURS.len()];
    let _ = writeln!(
        svg,
        r#"<circle cx="{x:.1}" cy="{y:.1}" r="6" fill="{colour}" fill-opacity="0.85"/>"#
    );
}

/// What the bad servers were given, twice a second.
fn shares(compared: &Compared) -> String {
    let (top, bottom) = (50.0, 350.0);
    let mut svg = begin(bottom + 60.0);
    let what = format!(
        "{}: {}; share of the bad ones, 1 is fair",
        compared.scenario, compared.asks
    );
    text(&mut svg, LEFT, 24.0, &what);
    let most = 2.5;
    let y = |share: f64| bottom - share.min(most) / most * (bottom - top);
    for mark in [0.0, 1.0, 2.0] {
        let at = y(mark);
        let _ = writeln!(
            svg,
            r##"<line x1="{LEFT}" y1="{at:.1}" x2="{WIDTH}" y2="{at:.1}" stroke="#e9ecef"/>"##
        );
        text(&mut svg, 30.0, at + 4.0, &format!("{mark}"));
    }
    for (n, row) in compared.rows.iter().enumerate() {
        let shares = &row.mean.shares;
        let step = (WIDTH - LEFT - 20.0) / shares.len().max(1) as f64;
        let point =
            |(n, share): (usize, &f64)| format!("{:.1},{:.1}", LEFT + n as f64 * step, y(*share));
        let points: Vec<String> = shares.iter().enumerate().map(point).collect();
        let colour = COLOURS[n % COLOURS.len()];
        let _ = writeln!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            points.join(" ")
        );
        let at = LEFT + n as f64 * 150.0;
        let _ = writeln!(
            svg,
            r#"<rect x="{at:.1}" y="{:.1}" width="12" height="12" fill="{colour}"/>"#,
            bottom + 28.0
        );
        text(&mut svg, at + 18.0, bottom + 39.0, &row.policy);
    }
    svg + "</svg>\n"
}

fn begin(height: f64) -> String {
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13"><rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
"##
    )
}

fn text(svg: &mut String, x: f64, y: f64, what: &str) {
    let what = what.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}">{what}</text>"#);
}
