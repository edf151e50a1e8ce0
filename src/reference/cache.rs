//! A cache of the faces of reference images, by the content of the image. The least recently used are dropped first.

use super::extract::ReferenceFace;
use crate::error::Result;
use crate::face::FacePlace;
use crate::tensor::{content_hashes, select_rows};
use lru::LruCache;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use tch::Tensor;

/// The key of a cached face.
#[derive(PartialEq, Eq, Hash, Clone, Serialize, Deserialize)]
pub(super) struct CacheKey {
    /// Hash of the image.
    content: u128,
    /// Bits of the given box and landmarks, because one image may be used with several faces.
    place: Vec<u64>,
}

impl CacheKey {
    fn new(content: u128, place: &FacePlace) -> Self {
        let bbox = place.bbox.iter().flatten();
        let points = place.landmarks.iter().flatten().flatten();
        let mut bits = vec![
            place.bbox.is_some() as u64,
            place.landmarks.is_some() as u64,
        ];
        bits.extend(bbox.chain(points).map(|v| v.to_bits()));
        Self {
            content,
            place: bits,
        }
    }
}

/// The cache; `None` inside where it is turned off.
pub(super) struct FaceCache(Option<LruCache<CacheKey, Option<ReferenceFace>>>);

impl FaceCache {
    /// An empty cache of up to `capacity` faces; 0 turns it off.
    pub(super) fn new(capacity: usize) -> Self {
        Self(NonZeroUsize::new(capacity).map(|capacity| {
            // `LruCache::new` would allocate the whole capacity at once.
            let mut cache = LruCache::unbounded();
            cache.resize(capacity);
            cache
        }))
    }

    /// An empty cache of the same capacity.
    pub(super) fn emptied(&self) -> Self {
        Self::new(self.0.as_ref().map_or(0, |cache| cache.cap().get()))
    }

    /// The faces of some rows of `images`, each with the place that is known of it. `extract` finds those that
    /// are not in the cache.
    pub(super) fn faces(
        &mut self,
        images: &Tensor,
        rows: &[usize],
        places: &[FacePlace],
        extract: impl FnOnce(&Tensor, &[FacePlace]) -> Result<Vec<Option<ReferenceFace>>>,
    ) -> Result<Vec<Option<ReferenceFace>>> {
        let Some(cache) = &mut self.0 else {
            return match rows {
                [] => Ok(vec![]),
                _ => extract(&select_rows(images, rows)?, places),
            };
        };
        let mut faces: Vec<Option<Option<ReferenceFace>>> = vec![];
        let mut missing = vec![];
        let contents = content_hashes(images, rows)?;
        for (at, (content, place)) in contents.into_iter().zip(places).enumerate() {
            let key = CacheKey::new(content, place);
            faces.push(cache.get(&key).cloned());
            if faces[at].is_none() {
                missing.push((at, key));
            }
        }
        if !missing.is_empty() {
            let picked: Vec<usize> = missing.iter().map(|(at, _)| rows[*at]).collect();
            let places: Vec<FacePlace> = missing.iter().map(|(at, _)| places[*at]).collect();
            let extracted = extract(&select_rows(images, &picked)?, &places)?;
            for ((at, key), face) in missing.into_iter().zip(extracted) {
                cache.put(key, face.clone());
                faces[at] = Some(face);
            }
        }
        Ok(faces.into_iter().flatten().collect())
    }

    /// The entries, the least recently used first.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = (&CacheKey, &Option<ReferenceFace>)> {
        self.0.iter().flat_map(|cache| cache.iter().rev())
    }

    /// Puts an entry in, as the most recently used one.
    pub(super) fn put(&mut self, key: CacheKey, face: Option<ReferenceFace>) {
        if let Some(cache) = &mut self.0 {
            cache.put(key, face);
        }
    }
}
