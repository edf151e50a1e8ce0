//! Reference faces: found, aligned and embedded once, remembered by content or by id.

use super::pipeline::Pipeline;
use super::targets::{Known, Targets};
use crate::config::ReferenceMode;
use crate::error::{Result, bail};
use crate::log::warn_host;
use crate::tensor::content_hash;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use tch::Tensor;

/// The face of one reference image.
#[derive(Debug)]
pub struct ReferenceFace {
    /// `[D]`, normalised.
    pub embedding: Tensor,
    /// Where the face is in the reference image.
    pub place: Known,
    /// Width and height of the reference image, pixels.
    pub size: [f64; 2],
}

impl ReferenceFace {
    /// The face's place in an image of `width`×`height` that shows the same picture.
    pub fn place_in(&self, width: f64, height: f64) -> Known {
        let (sx, sy) = (width / self.size[0], height / self.size[1]);
        // Pixel centres lie at integers, so a picture of W pixels spans -0.5 to W - 0.5.
        let x = |v: f64| (v + 0.5) * sx - 0.5;
        let y = |v: f64| (v + 0.5) * sy - 0.5;
        Known {
            bbox: self
                .place
                .bbox
                .map(|b| [x(b[0]), y(b[1]), x(b[2]), y(b[3])]),
            landmarks: self
                .place
                .landmarks
                .map(|points| points.map(|p| [x(p[0]), y(p[1])])),
        }
    }
}

/// The embedding is shared.
impl Clone for ReferenceFace {
    fn clone(&self) -> ReferenceFace {
        ReferenceFace {
            embedding: self.embedding.shallow_clone(),
            place: self.place,
            size: self.size,
        }
    }
}

/// What a sample is compared with.
pub struct Reference {
    /// `[K,D]`, normalised rows; the similarity is the largest over the rows.
    pub embeddings: Tensor,
    /// The face, where it comes from one image.
    pub face: Option<ReferenceFace>,
}

/// The embeddings are shared.
impl Clone for Reference {
    fn clone(&self) -> Reference {
        Reference {
            embeddings: self.embeddings.shallow_clone(),
            face: self.face.clone(),
        }
    }
}

#[derive(PartialEq, Eq, Hash, Clone, Serialize, Deserialize)]
struct Key {
    content: u128,
    /// Bits of the given box and landmarks: the same picture may be used with another face.
    place: Vec<u64>,
}

/// Registered references and the cache.
pub struct References {
    mode: ReferenceMode,
    capacity: usize,
    registered: HashMap<String, Tensor>,
    cache: HashMap<Key, (u64, Option<ReferenceFace>)>,
    clock: u64,
}

impl References {
    /// An empty store that remembers up to `capacity` faces.
    pub fn new(mode: ReferenceMode, capacity: usize) -> Self {
        Self {
            mode,
            capacity,
            registered: HashMap::new(),
            cache: HashMap::new(),
            clock: 0,
        }
    }

    /// Registers `id` with the faces of one or several images `[K,3,H,W]`; replaces an earlier one.
    /// Images without a face are left out with a warning; it is an error when none has one.
    /// Returns how many images are used.
    pub fn register(
        &mut self,
        pipeline: &Pipeline,
        id: &str,
        images: &Tensor,
        known: &[Known],
    ) -> Result<usize> {
        let count = images.size().first().map_or(0, |&n| n as usize);
        let rows: Vec<usize> = (0..count).collect();
        let faces = self.faces(pipeline, images, known, &rows)?;
        for (row, _) in faces.iter().enumerate().filter(|(_, face)| face.is_none()) {
            warn_host!("reference \"{id}\": no face was found in image {row}; it is left out");
        }
        let embeddings: Vec<Tensor> = faces
            .into_iter()
            .flatten()
            .map(|face| face.embedding)
            .collect();
        if embeddings.is_empty() {
            bail!(
                Argument,
                "reference \"{id}\": no face was found in any of its {count} image(s)"
            );
        }
        let used = embeddings.len();
        let stacked = Tensor::f_stack(&embeddings, 0)?;
        let rows = match self.mode {
            ReferenceMode::Best => stacked,
            ReferenceMode::Mean => {
                normalised(&stacked.f_mean_dim([0i64].as_slice(), true, None)?)?
            }
        };
        self.registered.insert(id.to_string(), rows);
        Ok(used)
    }

    /// Forgets `id`; false where it was not registered.
    pub fn remove(&mut self, id: &str) -> bool {
        self.registered.remove(id).is_some()
    }

    /// The references of `samples`, in their order; `None` where no face is found.
    pub fn resolve(
        &mut self,
        pipeline: &Pipeline,
        targets: &Targets,
        samples: &[usize],
    ) -> Result<Vec<Option<Reference>>> {
        let mut rows: Vec<usize> = samples
            .iter()
            .filter(|&&s| targets.reference_id(s).is_none())
            .map(|&s| targets.reference_row(s))
            .collect();
        rows.sort_unstable();
        rows.dedup();
        let faces = match &targets.references {
            Some(images) => self.faces(pipeline, images, &targets.reference_faces, &rows)?,
            None => vec![],
        };
        samples
            .iter()
            .map(|&sample| {
                if let Some(id) = targets.reference_id(sample) {
                    let Some(embeddings) = self.registered.get(id) else {
                        bail!(
                            Argument,
                            "reference_ids[{sample}]: \"{id}\" was not registered; call set_reference first"
                        );
                    };
                    return Ok(Some(Reference {
                        embeddings: embeddings.shallow_clone(),
                        face: None,
                    }));
                }
                let at = rows.binary_search(&targets.reference_row(sample));
                let face = at.ok().and_then(|at| faces[at].as_ref());
                Ok(match face {
                    None => None,
                    Some(face) => Some(Reference {
                        embeddings: face.embedding.f_unsqueeze(0)?,
                        face: Some(face.clone()),
                    }),
                })
            })
            .collect()
    }

    /// The faces of some rows of `images`, from the cache where their content was seen before.
    fn faces(
        &mut self,
        pipeline: &Pipeline,
        images: &Tensor,
        known: &[Known],
        rows: &[usize],
    ) -> Result<Vec<Option<ReferenceFace>>> {
        let mut found: Vec<Option<Option<ReferenceFace>>> = Vec::with_capacity(rows.len());
        let mut keys = Vec::with_capacity(rows.len());
        for &row in rows {
            let place = known.get(row).copied().unwrap_or_default();
            let key = match self.capacity {
                0 => None,
                _ => Some(Key {
                    content: content_hash(&images.f_select(0, row as i64)?)?,
                    place: place_bits(&place),
                }),
            };
            found.push(key.as_ref().and_then(|key| self.recall(key)));
            keys.push(key);
        }
        let missing: Vec<usize> = (0..rows.len()).filter(|&at| found[at].is_none()).collect();
        if !missing.is_empty() {
            let picked: Vec<i64> = missing.iter().map(|&at| rows[at] as i64).collect();
            let batch = images.f_index_select(
                0,
                &Tensor::f_from_slice(&picked)?.f_to_device(images.device())?,
            )?;
            let places: Vec<Known> = missing
                .iter()
                .map(|&at| known.get(rows[at]).copied().unwrap_or_default())
                .collect();
            for (at, face) in missing
                .into_iter()
                .zip(pipeline.reference_faces(&batch, &places)?)
            {
                if let Some(key) = keys[at].take() {
                    self.remember(key, face.clone());
                }
                found[at] = Some(face);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    fn recall(&mut self, key: &Key) -> Option<Option<ReferenceFace>> {
        self.clock += 1;
        let (used, face) = self.cache.get_mut(key)?;
        *used = self.clock;
        Some(face.clone())
    }

    fn remember(&mut self, key: Key, face: Option<ReferenceFace>) {
        if self.cache.len() >= self.capacity
            && let Some(oldest) = self
                .cache
                .iter()
                .min_by_key(|(_, (used, _))| *used)
                .map(|(key, _)| key.clone())
        {
            self.cache.remove(&oldest);
        }
        self.cache.insert(key, (self.clock, face));
    }
}

/// All that is remembered but the embeddings, whose rows are those of the registered ids, then those of the
/// faces that were found.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedReferences {
    registered: Vec<(String, i64)>,
    /// From the one that was used longest ago.
    cache: Vec<SavedFace>,
}

#[derive(Serialize, Deserialize)]
struct SavedFace {
    key: Key,
    /// The face's place, and the image's width and height; `None` where it shows no face.
    found: Option<(Known, [f64; 2])>,
}

impl References {
    /// What is remembered, and the embeddings `[M,D]` where there are any.
    pub(super) fn save(&self) -> Result<(SavedReferences, Option<Tensor>)> {
        let mut rows = vec![];
        let mut registered = vec![];
        for (id, embeddings) in &self.registered {
            registered.push((id.clone(), embeddings.size()[0]));
            rows.push(embeddings.shallow_clone());
        }
        let mut by_use: Vec<_> = self.cache.iter().collect();
        by_use.sort_by_key(|(_, (used, _))| *used);
        let mut cache = vec![];
        for (key, (_, face)) in by_use {
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

    /// The number of embeddings that [`SavedReferences`] speaks of; `None` where a count cannot be true.
    pub(super) fn rows(saved: &SavedReferences) -> Option<i64> {
        let found = saved.cache.iter().filter(|face| face.found.is_some());
        let registered = saved.registered.iter().map(|(_, count)| *count);
        registered
            .chain(found.map(|_| 1))
            .try_fold(0i64, |sum, count| {
                (count > 0).then_some(sum)?.checked_add(count)
            })
    }

    /// Remembers what was saved and nothing else. `embeddings` has [`References::rows`] rows.
    pub(super) fn restore(&mut self, saved: SavedReferences, embeddings: &Tensor) -> Result<()> {
        let mut next = Self::new(self.mode, self.capacity);
        let mut row = 0;
        for (id, count) in saved.registered {
            let rows = embeddings.f_narrow(0, row, count)?;
            next.registered.insert(id, rows);
            row += count;
        }
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
            if next.capacity > 0 {
                next.clock += 1;
                next.remember(key, face);
            }
        }
        *self = next;
        Ok(())
    }
}

fn place_bits(known: &Known) -> Vec<u64> {
    let bbox = known.bbox.iter().flatten();
    let points = known.landmarks.iter().flatten().flatten();
    let mut bits = vec![
        known.bbox.is_some() as u64,
        known.landmarks.is_some() as u64,
    ];
    bits.extend(bbox.chain(points).map(|v| v.to_bits()));
    bits
}

fn normalised(rows: &Tensor) -> Result<Tensor> {
    let norm = rows
        .f_norm_scalaropt_dim(2.0, [-1i64].as_slice(), true)?
        .f_clamp_min(1e-12)?;
    Ok(rows.f_div(&norm)?)
}
