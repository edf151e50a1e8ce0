//! Embedding: the crops of all groups go through the recogniser together.

use super::Loss;
use super::group::FaceGroup;
use crate::align::align_within;
use crate::error::Result;
use crate::shared::lock;
use tch::Tensor;

impl Loss {
    /// Features `[M,D]`, every level normalised, of the faces of all groups, group after group. `images` holds the pixels of
    /// each group; the gradient flows back to them.
    pub(super) fn embed(&self, groups: &[FaceGroup], images: &[Tensor]) -> Result<Tensor> {
        if self.pipeline.is_score {
            // Of whole images: a score is not computed in windows.
            let rows = groups.iter().zip(images);
            let rows = rows.map(|(group, images)| self.pipeline.embed(images, &group.crops()));
            return Ok(Tensor::f_cat(&rows.collect::<Result<Vec<_>>>()?, 0)?);
        }
        let recogniser = lock(&self.pipeline.recogniser);
        let size = recogniser.input_size();
        let mut crops = vec![];
        for (group, images) in groups.iter().zip(images) {
            crops.push(align_within(images, &group.crops(), &group.frames, size)?);
        }
        let crops = Tensor::f_cat(&crops, 0)?;
        self.pipeline.levels.features(&recogniser, &crops)
    }
}
