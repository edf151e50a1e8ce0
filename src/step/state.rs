//! Saving and restoring what a loss keeps from step to step, so that a training that was stopped continues with the
//! same numbers.

use super::StepLoss;
use super::audit::WindowTrust;
use super::norm_cache::SavedNormCache;
use super::norm_model::{NormModel, SavedNormModel};
use crate::error::{Error, Result, bail, shorten};
use crate::nets::Recogniser;
use crate::nets::vae::{Decoder, Statistics};
use crate::reference::saved::SavedReferences;
use crate::shared::{Shared, lock};
use crate::tensor::{from_array, to_array};
use crate::weights::{self, Array, Dtype, Weights};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::{Device, Kind, Tensor};

const VERSION: u32 = 1;
/// The largest index of a saved state, in bytes: more than the names of a hundred thousand references take.
const MAX_INDEX: usize = 16 << 20;
/// The largest distance between two outputs of one network for the test input, relative to their spread. Dtypes and
/// devices make a smaller difference, another network makes a larger one.
const MAX_DISTANCE: f64 = 0.1;

/// The file's JSON part. Its tensors are `embeddings` `[M,D]`, `statistics` `[norms,2,M,groups]`, those of
/// the model of statistics, `passes` `[norms,2,M,groups]` with `features` `[M,F]`, and the outputs of
/// the networks for a test input, `recogniser` and `vae`.
#[derive(Serialize, Deserialize)]
struct Index {
    version: u32,
    /// Numbers of an embedding with all its levels; version 0.1 wrote none.
    #[serde(default)]
    width: Option<i64>,
    trust: WindowTrust,
    references: SavedReferences,
    statistics: SavedNormCache,
    /// Version 0.1 wrote none.
    #[serde(default)]
    model: Option<SavedNormModel>,
}

impl StepLoss {
    /// Writes registered references, cached faces of reference images, GroupNorm statistics, the model that predicts them
    /// and the trust in windows to a file.
    ///
    /// # Errors
    /// `Io`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let loss = lock(&self.loss);
        let (references, embeddings) = loss.references().save()?;
        let (statistics, all) = self.norm_cache.save()?;
        let (model, passes) = self.norm_model.save()?;
        let index = Index {
            version: VERSION,
            width: Some(loss.pipeline().levels.width()),
            trust: self.audits.trust,
            references,
            statistics,
            model: Some(model),
        };
        let data = serde_json::to_vec(&index)
            .map_err(|e| Error::Internal(format!("the state of a loss: {e}")))?;
        let index = Array {
            dtype: Dtype::U8,
            shape: vec![data.len()],
            data,
        };
        let mut file = Weights::from([("index".to_string(), index)]);
        let recogniser = recogniser_output(&lock(&loss.pipeline().recogniser))?;
        file.insert("recogniser".into(), to_array(&recogniser)?);
        // Statistics are those of windows.
        if let Some(decoder) = &self.decoder
            && lock(decoder).has_windows()
        {
            file.insert("vae".into(), to_array(&decoder_output(&lock(decoder))?.0)?);
        }
        if let Some(embeddings) = embeddings {
            file.insert("embeddings".into(), to_array(&embeddings)?);
        }
        if let Some(all) = all {
            file.insert("statistics".into(), to_array(all.tensor())?);
        }
        if let Some((features, passes)) = passes {
            file.insert("features".into(), to_array(&features)?);
            file.insert("passes".into(), to_array(passes.tensor())?);
        }
        weights::write(path, &file)
    }

    /// Replaces everything that [`StepLoss::save`] writes by the content of a file. Nothing changes on failure.
    ///
    /// # Errors
    /// Those of reading weights; `Format` for another file; `Argument` where it was saved with other networks.
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        self.read(path)
            .map_err(|e| match e.message().contains(&*path.to_string_lossy()) {
                true => e,
                false => e.context(path.display()),
            })
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        let file = weights::load(path, &|_| true)?;
        let Some(index) = file.get("index").filter(|index| index.dtype == Dtype::U8) else {
            bail!(Format, "not the state of a loss: it has no `index`");
        };
        if index.data.len() > MAX_INDEX {
            bail!(
                Limit,
                "not the state of a loss: its index has {} bytes, at most {MAX_INDEX} are read",
                index.data.len()
            );
        }
        let index: Index = serde_json::from_slice(&index.data).map_err(|e| {
            Error::Format(format!(
                "not the state of a loss: {}",
                shorten(&e.to_string())
            ))
        })?;
        if index.version != VERSION {
            bail!(
                Unsupported,
                "a state of version {}; this library knows version {VERSION}; update facegrad",
                index.version
            );
        }
        let own = recogniser_output(&lock(&lock(&self.loss).pipeline().recogniser))?;
        if !same(&file, "recogniser", &own)? {
            bail!(
                Argument,
                "the state was saved with another recogniser; make the loss with that one, or go on without the state"
            );
        }
        let device = own.device();
        let embeddings = tensor(&file, "embeddings", device)?;
        let rows = index.references.rows();
        let width = lock(&self.loss).pipeline().levels.width();
        if index.width.is_some_and(|saved| saved != width) {
            bail!(
                Argument,
                "the state was saved with other `levels`; make the loss with those, or go on without the state"
            );
        }
        let expected = [rows.unwrap_or(-1), width];
        let embeddings = match embeddings {
            None if rows == Some(0) => own.f_narrow(0, 0, 0)?,
            Some(found) if found.size() == expected => found,
            found => bail!(
                Format,
                "a damaged state: embeddings: expected {expected:?}, got {:?}",
                found.map(|t| t.size())
            ),
        };
        let statistics = statistics_of(&file, "statistics", index.statistics.entries(), device)?;
        let model = index.model.as_ref().map_or(0, SavedNormModel::passes);
        let passes = statistics_of(&file, "passes", model, device)?;
        let features = match tensor(&file, "features", device)? {
            None if model == 0 => None,
            Some(found) if matches!(*found.size(), [count, width] if count == model && width > 0) => {
                Some(found)
            }
            found => bail!(
                Format,
                "a damaged state: features: expected [{model}, F], got {:?}",
                found.map(|t| t.size())
            ),
        };
        if let Some(statistics) = &statistics
            && !fits(&file, statistics, self.decoder.as_ref())?
        {
            bail!(
                Argument,
                "the state was saved with another VAE; make the loss with that one, or go on without the state"
            );
        }
        let known = match &passes {
            Some(passes) => fits(&file, passes, self.decoder.as_ref())?,
            None => true,
        };
        lock(&self.loss)
            .references_mut()
            .restore(index.references, &embeddings)?;
        self.norm_cache
            .restore(index.statistics, statistics.as_ref())?;
        match index.model {
            Some(model) if known => self
                .norm_model
                .restore(model, features.as_ref().zip(passes.as_ref()))?,
            Some(_) => self
                .norm_model
                .forget("the state was saved with another VAE"),
            None => self.norm_model = NormModel::default(),
        }
        self.audits.trust = index.trust;
        Ok(())
    }
}

/// The statistics of `count` samples in the file.
fn statistics_of(
    file: &Weights,
    name: &str,
    count: i64,
    device: Device,
) -> Result<Option<Statistics>> {
    match tensor(file, name, device)? {
        None if count == 0 => Ok(None),
        Some(found) if matches!(*found.size(), [_, 2, found, _] if found == count) => {
            Ok(Some(Statistics::from_tensor(found)))
        }
        found => bail!(
            Format,
            "a damaged state: {name}: expected [norms, 2, {count}, groups], got {:?}",
            found.map(|t| t.size())
        ),
    }
}

/// A tensor of the file as f32.
fn tensor(file: &Weights, name: &str, device: Device) -> Result<Option<Tensor>> {
    let read = |array| -> Result<Tensor> { Ok(from_array(array, device)?.f_to_kind(Kind::Float)?) };
    file.get(name).map(read).transpose()
}

/// Whether statistics of the file are those of the decoder.
fn fits(
    file: &Weights,
    statistics: &Statistics,
    decoder: Option<&Shared<Decoder>>,
) -> Result<bool> {
    let Some(decoder) = decoder else {
        return Ok(false);
    };
    let (image, Some(own)) = decoder_output(&lock(decoder))? else {
        return Ok(false);
    };
    let alike = |statistics: &Statistics| {
        let size = statistics.tensor().size();
        [size[0], size[3]]
    };
    Ok(alike(statistics) == alike(&own) && same(file, "vae", &image)?)
}

/// Whether a tensor of the file is close to the network's own output.
fn same(file: &Weights, name: &str, own: &Tensor) -> Result<bool> {
    let Some(saved) = tensor(file, name, own.device())? else {
        return Ok(false);
    };
    if saved.size() != own.size() {
        return Ok(false);
    }
    let spread = own.f_sub(&own.f_mean(Kind::Float)?)?.f_norm()?;
    let off = saved.f_sub(own)?.f_norm()?;
    Ok(off.f_double_value(&[])? <= MAX_DISTANCE * spread.f_double_value(&[])?)
}

/// The output of a recogniser for the test input: `[1,D]`.
fn recogniser_output(recogniser: &Recogniser) -> Result<Tensor> {
    let _frozen = tch::no_grad_guard();
    let side = recogniser.input_size();
    recogniser.embed(&ramp(&[1, 3, side, side], recogniser.device())?)
}

/// The output of a decoder for the test input: the image, and the statistics of its GroupNorms.
fn decoder_output(decoder: &Decoder) -> Result<(Tensor, Option<Statistics>)> {
    decoder.decode_with_statistics(&ramp(&[1, decoder.channels(), 8, 8], decoder.device())?)
}

/// The test input: numbers that rise evenly from -1 to 1.
fn ramp(shape: &[i64], device: Device) -> Result<Tensor> {
    let count = shape.iter().product::<i64>();
    Ok(Tensor::f_linspace(-1.0, 1.0, count, (Kind::Float, device))?.f_view(shape)?)
}
