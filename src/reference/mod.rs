//! References: the people that generated faces are compared with. Their faces are found and embedded once,
//! then kept by registered id or by the content of their image.

mod cache;
mod extract;
pub(crate) mod saved;

pub use extract::ReferenceFace;

use crate::batch::Targets;
use crate::config::ReferenceMode;
use crate::error::{Result, bail};
use crate::face::FacePlace;
use crate::log::warn_host;
use crate::pipeline::Pipeline;
use crate::tensor::in_use;
use cache::FaceCache;
use std::collections::HashMap;
use tch::Tensor;

/// What a sample is compared with.
pub struct Reference {
    /// `[K,D]`, features of which every level is normalised. The row that is most similar counts.
    pub embeddings: Tensor,
    /// The reference's face where the reference is one image; `None` for a registered id.
    pub face: Option<ReferenceFace>,
}

/// The clone shares the embeddings.
impl Clone for Reference {
    fn clone(&self) -> Reference {
        Reference {
            embeddings: self.embeddings.shallow_clone(),
            face: self.face.clone(),
        }
    }
}

/// The registered references, and a cache of the faces of reference images.
pub struct References {
    pooling: ReferenceMode,
    /// Per id: `[K,D]`, normalised rows.
    registered: HashMap<String, Tensor>,
    cache: FaceCache,
}

impl References {
    /// No references. The cache holds up to `capacity` faces; 0 turns it off.
    pub fn new(pooling: ReferenceMode, capacity: usize) -> Self {
        Self {
            pooling,
            registered: HashMap::new(),
            cache: FaceCache::new(capacity),
        }
    }

    /// Registers `id` with the faces of `images` `[K,3,H,W]` (RGB in [0, 1]) and replaces an earlier one.
    /// `places` is empty or says per image where its face is. Images without a face are left out with a warning.
    /// Returns how many images are used.
    ///
    /// # Errors
    /// `Argument` where no image has a face.
    pub fn register(
        &mut self,
        pipeline: &Pipeline,
        id: &str,
        images: &Tensor,
        places: &[FacePlace],
    ) -> Result<usize> {
        let count = images.size().first().map_or(0, |&n| n as usize);
        let rows: Vec<usize> = (0..count).collect();
        let faces = self.faces(pipeline, images, places, &rows)?;
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
        let rows = Tensor::f_stack(&embeddings, 0)?;
        let rows = match self.pooling {
            ReferenceMode::Best => rows,
            ReferenceMode::Centroid => {
                let mean = rows.f_mean_dim([0i64].as_slice(), true, None)?;
                pipeline.levels.unit(&mean)?
            }
        };
        self.registered.insert(id.to_string(), rows);
        Ok(used)
    }

    /// Removes a registered id; false where it was not registered.
    pub fn remove(&mut self, id: &str) -> bool {
        self.registered.remove(id).is_some()
    }

    /// The references of `samples`, in their order; `None` where the reference image shows no face.
    ///
    /// # Errors
    /// `Argument` for an id that was not registered.
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
                    in_use(embeddings)?;
                    return Ok(Some(Reference {
                        embeddings: embeddings.shallow_clone(),
                        face: None,
                    }));
                }
                let at = rows.binary_search(&targets.reference_row(sample));
                let face = at.ok().and_then(|at| faces[at].as_ref());
                let Some(face) = face else {
                    return Ok(None);
                };
                in_use(&face.embedding)?;
                Ok(Some(Reference {
                    embeddings: face.embedding.f_unsqueeze(0)?,
                    face: Some(face.clone()),
                }))
            })
            .collect()
    }

    /// The faces of some rows of `images`, from the cache where their content was seen before.
    fn faces(
        &mut self,
        pipeline: &Pipeline,
        images: &Tensor,
        places: &[FacePlace],
        rows: &[usize],
    ) -> Result<Vec<Option<ReferenceFace>>> {
        let places: Vec<FacePlace> = rows
            .iter()
            .map(|&row| places.get(row).copied().unwrap_or_default())
            .collect();
        self.cache.faces(images, rows, &places, |images, places| {
            extract::faces(pipeline, images, places)
        })
    }
}
