//! Medians and percentiles of a few numbers.

/// Figures of one kind.
#[derive(Default)]
pub(super) struct Figures(Vec<f64>);

impl Figures {
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Returns how many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the value below which `part` of the figures are.
    pub(super) fn at(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(clippy::cast_precision_loss, reason = "a count of figures")]
        let index = (sorted.len() as f64 * part).ceil().max(1.0);
        #[expect(clippy::cast_sign_loss, reason = "at least 1")]
        let index = index as usize;
        sorted.get(index - 1).copied().unwrap_or(f64::NAN)
    }

    /// Returns `p50 12.3 p99 45.6 max 50.0 us (n 100)`.
    pub(super) fn line(&self, unit: &str) -> String {
        format!(
            "p50 {:.1}, p99 {:.1}, max {:.1} {unit} (n {})",
            self.at(0.5),
            self.at(0.99),
            self.at(1.0),
            self.0.len()
        )
    }
}
