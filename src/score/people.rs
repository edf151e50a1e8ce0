//! The registered people, and the similarity of a face to a person.

use crate::config::Pooling;
use crate::error::{Result, bail};
use std::collections::HashMap;

/// An embedding of norm 1.
pub(super) type Embedding = Vec<f32>;

/// The embeddings of registered people by id.
pub(super) struct People {
    pooling: Pooling,
    registered: HashMap<String, Vec<Embedding>>,
}

impl People {
    /// No people. `pooling` says how several embeddings of one person are compared.
    pub fn new(pooling: Pooling) -> Self {
        Self {
            pooling,
            registered: HashMap::new(),
        }
    }

    /// Registers a person with at least one embedding, and replaces an earlier one.
    pub fn register(&mut self, id: &str, embeddings: Vec<Embedding>) {
        let rows = self.pooled(embeddings);
        self.registered.insert(id.to_string(), rows);
    }

    /// Removes a registered id; false where it was not registered.
    pub fn remove(&mut self, id: &str) -> bool {
        self.registered.remove(id).is_some()
    }

    /// The rows that represent a person.
    ///
    /// # Errors
    /// `Argument` for an id that was not registered.
    pub fn get(&self, id: &str) -> Result<&[Embedding]> {
        match self.registered.get(id) {
            Some(rows) => Ok(rows),
            None => bail!(
                Argument,
                "the reference \"{id}\" was not registered; call set_reference first"
            ),
        }
    }

    /// The rows that represent a person with these embeddings, as `pooling` says.
    fn pooled(&self, rows: Vec<Embedding>) -> Vec<Embedding> {
        if self.pooling != Pooling::Centroid {
            return rows;
        }
        let mut sum = vec![0.0f64; rows[0].len()];
        for row in &rows {
            sum.iter_mut()
                .zip(row)
                .for_each(|(s, v)| *s += f64::from(*v));
        }
        let norm = sum.iter().map(|s| s * s).sum::<f64>().sqrt().max(1e-12);
        vec![sum.iter().map(|s| (s / norm) as f32).collect()]
    }

    /// The similarity of a face with this embedding to a person, in [-1, 1].
    pub fn similarity(&self, person: &[Embedding], embedding: &Embedding) -> f64 {
        let cosines = person.iter().map(|row| {
            let pairs = row.iter().zip(embedding);
            pairs
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum::<f64>()
        });
        let cosine = match self.pooling {
            Pooling::Max => cosines.fold(f64::NEG_INFINITY, f64::max),
            Pooling::Centroid | Pooling::Mean => cosines.sum::<f64>() / person.len() as f64,
        };
        // The product of two rows of length 1 may be rounded to more than 1.
        cosine.clamp(-1.0, 1.0)
    }
}
