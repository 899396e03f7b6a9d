//! A plot of lines with marks.

use super::{Axis, Frame, Panel, mark};

/// One line, its points in order.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Series {
    pub(in crate::sim) name: String,
    /// Points that are not numbers are left out.
    pub(in crate::sim) points: Vec<(f64, f64)>,
}

/// A plot of at most [`super::MAX_SERIES`] lines.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Lines {
    pub(in crate::sim) title: String,
    pub(in crate::sim) x: Axis,
    pub(in crate::sim) y: Axis,
    pub(in crate::sim) series: Vec<Series>,
}

impl Panel for Lines {
    fn title(&self) -> &str {
        &self.title
    }

    fn legend(&self) -> Vec<&str> {
        self.series.iter().map(|series| series.name.as_str()).collect()
    }

    fn draw(&self, frame: Frame, out: &mut String) {
        self.x.draw_below(frame, out);
        self.y.draw_left(frame, out);
        for (number, series) in self.series.iter().enumerate() {
            let known = series.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
            let places: Vec<(f64, f64)> =
                known.map(|(x, y)| (frame.x(self.x.part(*x)), frame.y(self.y.part(*y)))).collect();
            let points: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            if !points.is_empty() {
                let class = format!("line s{number}");
                out.push_str(&format!("<polyline class=\"{class}\" points=\"{}\"/>\n", points.join(" ")));
            }
            for (x, y) in places {
                mark(out, number, x, y);
            }
        }
    }
}
