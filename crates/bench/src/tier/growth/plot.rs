//! Lines over steps, one panel per figure.

use std::path::Path;

use plotters::prelude::*;

/// A server's figures, one per step.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) points: Vec<f64>,
}

/// One figure of all servers.
pub(super) struct Panel {
    pub(super) caption: &'static str,
    pub(super) lines: Vec<Line>,
}

const WIDTH: u32 = 720;
const PANEL_HEIGHT: u32 = 260;
const COLORS: [RGBColor; 2] = [RGBColor(40, 120, 160), RGBColor(190, 110, 40)];

/// Writes an SVG. `labels` name the steps, which lie at equal distances.
pub(super) fn draw(path: &Path, what: &str, labels: &[String], panels: &[Panel]) -> anyhow::Result<()> {
    try_draw(path, what, labels, panels).map_err(|error| anyhow::anyhow!("{} can't be drawn: {error}", path.display()))
}

fn try_draw(path: &Path, what: &str, labels: &[String], panels: &[Panel]) -> Result<(), Box<dyn std::error::Error>> {
    let height = PANEL_HEIGHT * u32::try_from(panels.len())?;
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    for (panel, area) in panels.iter().zip(area.split_evenly((panels.len(), 1))) {
        let greatest = panel.lines.iter().flat_map(|line| &line.points).copied().fold(f64::MIN_POSITIVE, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .caption(panel.caption, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0..labels.len().saturating_sub(1).max(1), 0.0..greatest * 1.1)?;
        chart
            .configure_mesh()
            .x_desc(what)
            .x_labels(labels.len().min(16))
            .x_label_formatter(&|at| labels.get(*at).cloned().unwrap_or_default())
            .draw()?;
        for (line, color) in panel.lines.iter().zip(COLORS) {
            let points = || line.points.iter().copied().enumerate();
            chart
                .draw_series(LineSeries::new(points(), color.stroke_width(2)))?
                .label(line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
            chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled())))?;
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    }
    area.present()?;
    Ok(())
}
