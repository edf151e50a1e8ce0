//! References as part of a saved state: a JSON index, and all embeddings as rows of one tensor.

use super::References;
use super::cache::CacheKey;
use super::extract::ReferenceFace;
use crate::error::Result;
use crate::face::FacePlace;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use tch::Tensor;

/// Everything but the embeddings. Their rows are those of the registered ids, then those of the cached faces.
#[derive(Serialize, Deserialize)]
pub(crate) struct SavedReferences {
    /// Every id with its number of rows.
    registered: Vec<(String, i64)>,
    /// The least recently used first.
    cache: Vec<SavedFace>,
}

#[derive(Serialize, Deserialize)]
struct SavedFace {
    key: CacheKey,
    /// The face's place, and the image's width and height; `None` where it shows no face.
    found: Option<(FacePlace, [f64; 2])>,
}

impl SavedReferences {
    /// The number of embeddings that belong to this index; `None` where it holds an impossible count.
    pub(crate) fn rows(&self) -> Option<i64> {
        let faces = self.cache.iter().filter(|face| face.found.is_some());
        let registered = self.registered.iter().map(|(_, count)| *count);
        registered
            .chain(faces.map(|_| 1))
            .try_fold(0i64, |sum, count| {
                (count > 0).then_some(sum)?.checked_add(count)
            })
    }
}

impl References {
    /// The index, and the embeddings `[M,D]`; `None` where there are none.
    pub(crate) fn save(&self) -> Result<(SavedReferences, Option<Tensor>)> {
        let mut rows = vec![];
        let mut registered = vec![];
        for (id, embeddings) in &self.registered {
            registered.push((id.clone(), embeddings.size()[0]));
            rows.push(embeddings.shallow_clone());
        }
        let mut cache = vec![];
        for (key, face) in self.cache.oldest_first() {
            if let Some(face) = face {
                rows.push(face.embedding.f_unsqueeze(0)?);
            }
            cache.push(SavedFace {
                key: key.clone(),
                found: face.as_ref().map(|face| (face.place, face.size)),
            });
        }
        let rows = (!rows.is_empty()).then(|| Tensor::f_cat(&rows, 0));
        Ok((SavedReferences { registered, cache }, rows.transpose()?))
    }

    /// Replaces all references by saved ones. `embeddings` has [`SavedReferences::rows`] rows.
    pub(crate) fn restore(&mut self, saved: SavedReferences, embeddings: &Tensor) -> Result<()> {
        let mut row = 0;
        let mut registered = HashMap::new();
        for (id, count) in saved.registered {
            registered.insert(id, embeddings.f_narrow(0, row, count)?);
            row += count;
        }
        let mut cache = self.cache.emptied();
        for SavedFace { key, found } in saved.cache {
            let face = match found {
                None => None,
                Some((place, size)) => {
                    row += 1;
                    Some(ReferenceFace {
                        embedding: embeddings.f_select(0, row - 1)?,
                        place,
                        size,
                    })
                }
            };
            cache.put(key, face);
        }
        (self.registered, self.cache) = (registered, cache);
        Ok(())
    }
}
