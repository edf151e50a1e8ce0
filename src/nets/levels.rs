//! The levels of a recogniser on which faces are compared.

use super::recogniser::{EMBEDDING, Recogniser, unit};
use crate::config::LevelWeights;
use crate::error::Result;
use tch::{Kind, Tensor};

/// Names, weights and lengths of the levels. A row of features holds all levels one after the other, each flattened and
/// scaled to length 1.
pub struct Levels {
    names: Vec<String>,
    weights: Vec<f64>,
    lengths: Vec<i64>,
}

impl Levels {
    /// The levels of a configuration, and the embedding with weight 0 where it is not among them. Without a
    /// configuration, the embedding alone, with weight 1.
    ///
    /// # Errors
    /// `Config` for a level that the network does not have.
    pub fn new(config: Option<&LevelWeights>, recogniser: &Recogniser) -> Result<Self> {
        let mut chosen = match config {
            Some(config) => config.0.clone(),
            None => vec![(EMBEDDING.to_string(), 1.0)],
        };
        if chosen.iter().all(|(name, _)| name != EMBEDDING) {
            chosen.push((EMBEDDING.to_string(), 0.0));
        }
        let (names, weights): (Vec<String>, Vec<f64>) = chosen.into_iter().unzip();
        let mut levels = Self {
            lengths: vec![recogniser.dim()],
            names,
            weights,
        };
        if levels.names.len() > 1 {
            let _frozen = tch::no_grad_guard();
            let side = recogniser.input_size();
            let crop = Tensor::f_zeros([1, 3, side, side], (Kind::Float, recogniser.device()))?;
            let features = recogniser.features(&crop, &levels.names())?;
            levels.lengths = features.iter().map(|f| f.numel() as i64).collect();
        }
        Ok(levels)
    }

    fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    /// The weights of the levels.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The index of the embedding among the levels.
    pub fn embedding(&self) -> usize {
        let found = self.names.iter().position(|name| name == EMBEDDING);
        found.unwrap_or_default()
    }

    /// Whether there are levels beside the embedding.
    pub fn several(&self) -> bool {
        self.names.len() > 1
    }

    /// The length of a row of features.
    pub fn width(&self) -> i64 {
        self.lengths.iter().sum()
    }

    /// The features of crops `[M,3,S,S]`, RGB in [0, 1]: `[M,width]` float32. The gradient flows back to the crops.
    pub fn features(&self, recogniser: &Recogniser, crops: &Tensor) -> Result<Tensor> {
        if !self.several() {
            return recogniser.embed(crops);
        }
        let features = recogniser.features(crops, &self.names())?;
        let rows = features.iter().map(unit).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&rows, 1)?)
    }

    /// The cosines `[M,L]` per level from `[M,width]`, the elementwise products of two rows of features.
    pub fn cosines(&self, products: &Tensor) -> Result<Tensor> {
        let sums = self.parts(products)?;
        let sums = sums
            .iter()
            .map(|part| Ok(part.f_sum_dim_intlist([-1i64].as_slice(), false, None)?));
        Ok(Tensor::f_stack(&sums.collect::<Result<Vec<_>>>()?, -1)?)
    }

    /// `[M,width]` with every level scaled to length 1.
    pub fn unit(&self, rows: &Tensor) -> Result<Tensor> {
        let parts = self.parts(rows)?;
        let parts = parts.iter().map(unit).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&parts, 1)?)
    }

    fn parts(&self, rows: &Tensor) -> Result<Vec<Tensor>> {
        Ok(rows.f_split_with_sizes(self.lengths.as_slice(), 1)?)
    }
}
