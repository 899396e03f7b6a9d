//! A plot of bars in groups.

use super::{Axis, Frame, Panel, line, text};

/// Groups of bars; every series has one bar in each group.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Bars {
    pub(in crate::sim) title: String,
    pub(in crate::sim) y: Axis,
    /// What stands below each group.
    pub(in crate::sim) groups: Vec<String>,
    /// Names, and a value for each group; at most [`super::MAX_SERIES`].
    pub(in crate::sim) series: Vec<(String, Vec<f64>)>,
}

impl Panel for Bars {
    fn title(&self) -> &str {
        &self.title
    }

    fn legend(&self) -> Vec<&str> {
        self.series.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn draw(&self, frame: Frame, out: &mut String) {
        self.y.draw_left(frame, out);
        let group = 1.0 / self.groups.len().max(1) as f64;
        // A fifth of each group stays empty.
        let bar = group * 0.8 / self.series.len().max(1) as f64;
        for (at, name) in self.groups.iter().enumerate() {
            let left = (at as f64 + 0.1) * group;
            for (number, (_, values)) in self.series.iter().enumerate() {
                let Some(value) = values.get(at).filter(|value| value.is_finite()) else { continue };
                let (x, y) = (frame.x(left + number as f64 * bar), frame.y(self.y.part(*value)));
                let (width, height) = (bar * frame.width - 4.0, frame.y(0.0) - y);
                out.push_str(&format!(
                    "<rect class=\"f{number}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>\n"
                ));
                text(out, "ink", x + width / 2.0, y - 5.0, "middle", &format!("{value:.2}"));
            }
            text(out, "dim", frame.x((at as f64 + 0.5) * group), frame.y(0.0) + 20.0, "middle", name);
        }
        line(out, "frame", (frame.x(0.0), frame.y(0.0)), (frame.x(1.0), frame.y(0.0)));
    }
}
