//! Small pictures as SVG: panels with axes, lines or bars, and a legend. The same figures give the same bytes.

mod axis;
mod bars;
mod lines;

pub(super) use axis::Axis;
pub(super) use bars::Bars;
pub(super) use lines::{Lines, Series};

/// Width of every picture, in pixels.
const WIDTH: f64 = 760.0;
/// What lies left of a plot: its numbers and their label.
const LEFT: f64 = 84.0;
/// What lies right of a plot.
const RIGHT: f64 = 24.0;
/// What lies above a plot: its title.
const TOP: f64 = 44.0;
/// Height of a plot.
const PLOT: f64 = 260.0;
/// What lies between a plot and its legend: numbers and their label.
const BELOW: f64 = 62.0;
/// Height of a row of the legend, which has two columns.
const LEGEND_ROW: f64 = 22.0;
/// Most series of one plot: each has its own colour.
pub(super) const MAX_SERIES: usize = 5;

/// Colours for light and dark surroundings; told apart by those who don't see all of them.
const STYLE: &str = "\
<style>
.paper{fill:#ffffff}.ink{fill:#1f2328}.dim{fill:#59636e}.grid{stroke:#d1d9e0}.frame{stroke:#818b98}
.f0{fill:#0072b2}.f1{fill:#c44e00}.f2{fill:#00805c}.f3{fill:#b0508a}.f4{fill:#6a6a00}
.s0{stroke:#0072b2}.s1{stroke:#c44e00}.s2{stroke:#00805c}.s3{stroke:#b0508a}.s4{stroke:#6a6a00}
@media (prefers-color-scheme:dark){
.paper{fill:#0d1117}.ink{fill:#f0f6fc}.dim{fill:#9198a1}.grid{stroke:#2a313c}.frame{stroke:#656c76}
.f0{fill:#56b4e9}.f1{fill:#f0984f}.f2{fill:#2ec99b}.f3{fill:#e59ac6}.f4{fill:#d6d356}
.s0{stroke:#56b4e9}.s1{stroke:#f0984f}.s2{stroke:#2ec99b}.s3{stroke:#e59ac6}.s4{stroke:#d6d356}
}
text{font-family:system-ui,-apple-system,'Segoe UI',sans-serif;font-size:13px}
.title{font-size:15px;font-weight:600}
.line{fill:none;stroke-width:2}
</style>
";

/// One plot of a picture.
pub(super) trait Panel {
    /// What stands above it.
    fn title(&self) -> &str;

    /// The names of its series, at most [`MAX_SERIES`], in order.
    fn legend(&self) -> Vec<&str>;

    /// Draws axes and series into the frame.
    fn draw(&self, frame: Frame, out: &mut String);
}

/// Where a plot lies in the picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Frame {
    /// The pixel of a place between 0 (left) and 1 (right).
    fn x(&self, part: f64) -> f64 {
        self.left + part * self.width
    }

    /// The pixel of a place between 0 (bottom) and 1 (top).
    fn y(&self, part: f64) -> f64 {
        self.top + (1.0 - part) * self.height
    }
}

/// A picture of panels, one below the other. `about` says in a sentence what it shows, for those who can't see it.
pub(super) fn picture(about: &str, panels: &[&dyn Panel]) -> String {
    let height: f64 = panels.iter().map(|panel| panel_height(*panel)).sum();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" width=\"{WIDTH:.0}\" \
         height=\"{height:.0}\" role=\"img\">\n<title>{}</title>\n{STYLE}\
         <rect class=\"paper\" x=\"0\" y=\"0\" width=\"{WIDTH:.0}\" height=\"{height:.0}\"/>\n",
        escaped(about)
    );
    let mut top = 0.0;
    for panel in panels {
        let frame = Frame { left: LEFT, top: top + TOP, width: WIDTH - LEFT - RIGHT, height: PLOT };
        text(&mut out, "ink title", LEFT, top + 26.0, "start", panel.title());
        panel.draw(frame, &mut out);
        for (number, name) in panel.legend().into_iter().enumerate() {
            let x = LEFT + (number % 2) as f64 * frame.width / 2.0;
            let y = top + TOP + PLOT + BELOW + (number / 2) as f64 * LEGEND_ROW;
            mark(&mut out, number, x + 6.0, y - 4.0);
            text(&mut out, "ink", x + 18.0, y, "start", name);
        }
        top += panel_height(*panel);
    }
    out.push_str("</svg>\n");
    out
}

fn panel_height(panel: &dyn Panel) -> f64 {
    TOP + PLOT + BELOW + panel.legend().len().div_ceil(2) as f64 * LEGEND_ROW
}

/// Text at a point; `anchor` is `start`, `middle` or `end`.
fn text(out: &mut String, class: &str, x: f64, y: f64, anchor: &str, words: &str) {
    let words = escaped(words);
    out.push_str(&format!(
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n"
    ));
}

/// A series' mark: each has a shape of its own, so that colour is not all that tells them apart.
fn mark(out: &mut String, series: usize, x: f64, y: f64) {
    let class = format!("f{}", series % MAX_SERIES);
    let corners: &[(f64, f64)] = match series % MAX_SERIES {
        0 => {
            return out
                .push_str(&format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>\n"));
        }
        1 => &[(-4.0, -4.0), (4.0, -4.0), (4.0, 4.0), (-4.0, 4.0)],
        2 => &[(0.0, -5.0), (5.0, 4.0), (-5.0, 4.0)],
        3 => &[(0.0, -5.5), (5.5, 0.0), (0.0, 5.5), (-5.5, 0.0)],
        _ => &[(-5.0, -4.0), (5.0, -4.0), (0.0, 5.0)],
    };
    let points: Vec<String> = corners.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
    out.push_str(&format!("<polygon class=\"{class}\" points=\"{}\"/>\n", points.join(" ")));
}

fn line(out: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    out.push_str(&format!(
        "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>\n",
        from.0, from.1, to.0, to.1
    ));
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
pub(super) mod tests;
