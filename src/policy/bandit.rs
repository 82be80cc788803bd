//! What the model does not see: a discounted bandit over (action, temperature) that learns how far predictions were off.
//!
//! A cell keeps a discounted mean of realised over predicted benefit; its upper confidence bound weighs the index of
//! the next plan of that kind. Source: D-UCB, Garivier & Moulines 2011; cells and prior are ours.

/// Share of old evidence that is kept per observation.
const GAMMA: f64 = 0.98;
/// Width of the confidence bound: narrow, since the model is right in most cells.
const XI: f64 = 0.05;
/// A ratio beyond this says nothing more.
const CLIP: f64 = 3.0;
/// Evidence that a cell starts with: three observations of "as predicted".
const PRIOR: Cell = Cell { weight: 3.0, sum: 1.0 };

/// Kinds of work that are learned apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Merge,
    EagerMerge,
    Promote,
    Cleanup,
    Guard,
}

/// How much a slot is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Temperature {
    Cold,
    Warm,
    Hot,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Cell {
    weight: f64,
    sum: f64,
}

/// The cells, one for each kind and temperature.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bandit {
    cells: [[Cell; 3]; 5],
}

impl Default for Bandit {
    fn default() -> Self {
        Self { cells: [[PRIOR; 3]; 5] }
    }
}

impl Bandit {
    /// Factor by which the predicted benefit of such an action should be multiplied, 0..=3.
    pub(crate) fn factor(&self, kind: Kind, temperature: Temperature) -> f64 {
        let cell = self.cells[kind as usize][temperature as usize];
        let total: f64 = self.cells.iter().flatten().map(|cell| cell.weight).sum();
        let bound = (XI * total.max(1.0).ln() / cell.weight.max(1e-3)).sqrt();
        CLIP * (cell.sum / cell.weight.max(1e-3) + bound).min(1.0)
    }

    /// Learns from an action that brought `realised` where `predicted` was hoped for.
    pub(crate) fn learn(
        &mut self,
        kind: Kind,
        temperature: Temperature,
        predicted: f64,
        realised: f64,
    ) {
        if predicted <= 0.0 || !realised.is_finite() {
            return;
        }
        for cell in self.cells.iter_mut().flatten() {
            cell.weight *= GAMMA;
            cell.sum *= GAMMA;
        }
        let cell = &mut self.cells[kind as usize][temperature as usize];
        cell.weight += 1.0;
        cell.sum += (realised / predicted).clamp(0.0, CLIP) / CLIP;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bandit_that_saw_nothing_has_no_favourite_and_some_hope() {
        let bandit = Bandit::default();
        let factor = bandit.factor(Kind::Merge, Temperature::Cold);
        assert!((1.0..2.0).contains(&factor), "{factor}");
        assert!((bandit.factor(Kind::Guard, Temperature::Hot) - factor).abs() < 1e-12);
    }

    #[test]
    fn a_cell_learns_its_own_residual_only() {
        let mut bandit = Bandit::default();
        for _ in 0..50 {
            bandit.learn(Kind::Merge, Temperature::Hot, 1.0, 2.0);
            bandit.learn(Kind::Promote, Temperature::Hot, 1.0, 0.2);
        }
        let merge = bandit.factor(Kind::Merge, Temperature::Hot);
        let promote = bandit.factor(Kind::Promote, Temperature::Hot);
        assert!(merge > 1.3 && promote < 0.7, "{merge} {promote}");
    }

    #[test]
    fn a_changed_world_is_learned_again() {
        let mut bandit = Bandit::default();
        for _ in 0..200 {
            bandit.learn(Kind::Merge, Temperature::Cold, 1.0, 0.0);
        }
        let before = bandit.factor(Kind::Merge, Temperature::Cold);
        for _ in 0..200 {
            bandit.learn(Kind::Merge, Temperature::Cold, 1.0, 2.0);
        }
        assert!(bandit.factor(Kind::Merge, Temperature::Cold) > 4.0 * before);
    }

    #[test]
    fn nonsense_teaches_nothing() {
        let mut bandit = Bandit::default();
        bandit.learn(Kind::Merge, Temperature::Cold, 0.0, 1.0);
        bandit.learn(Kind::Merge, Temperature::Cold, 1.0, f64::NAN);
        assert_eq!(bandit, Bandit::default());
    }
}
