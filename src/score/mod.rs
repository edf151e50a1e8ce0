//! The score, without a gradient: faces, embeddings and similarities as insightface's `FaceAnalysis` computes them,
//! from 8-bit pixels.

use crate::align::{Alignment, align_pixels, crop_for};
use crate::batch::{Located, Outcome, Report, Sample, Targets, gate};
use crate::config::{AlignMode, EvaluatorConfig, Pooling};
use crate::detect::Detector;
use crate::error::{Result, bail};
use crate::face::{Face, FacePlace, assign, choose, nearest};
use crate::log::warn_host;
use crate::nets::Recogniser;
use crate::tensor::{self, select_rows};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// An embedding of norm 1.
type Embedding = Vec<f32>;

/// A detected face and its embedding.
pub struct EmbeddedFace {
    /// Where the face is.
    pub face: Face,
    /// How it was aligned.
    pub alignment: Alignment,
    /// `None` where it was not asked for, where landmarks and box span no area, or where the network's output is not
    /// finite.
    pub embedding: Option<Embedding>,
}

/// How many crops run through the recogniser together: enough to be fast, and few enough to fit into memory.
const BATCH: usize = 16;

/// A detector, a recogniser and the registered people.
pub struct Evaluator {
    config: EvaluatorConfig,
    detector: Detector,
    recogniser: Recogniser,
    device: Device,
    people: HashMap<String, Vec<Embedding>>,
}

impl Evaluator {
    /// Loads both networks.
    ///
    /// # Errors
    /// `Config`, and those of the networks.
    pub fn new(config: EvaluatorConfig, device: Device) -> Result<Self> {
        let (detector, recogniser, runtime) = config.networks()?;
        Ok(Self {
            detector: Detector::new(&detector, device)?,
            recogniser: Recogniser::load_frozen(&recogniser, device, &runtime)?,
            device,
            people: HashMap::new(),
            config,
        })
    }

    /// The detector.
    pub fn detector(&self) -> &Detector {
        &self.detector
    }

    /// The settings that choose between faces, people and samples, under the keys of the configuration.
    pub fn settings(&self) -> serde_json::Value {
        let config = &self.config;
        serde_json::json!({
            "face_choice": config.face_choice,
            "face_index": config.face_index,
            "pooling": config.pooling,
            "face_types": config.face_types,
        })
    }

    /// The recogniser.
    pub fn recogniser(&self) -> &Recogniser {
        &self.recogniser
    }

    /// All faces of every image of `[N,3,H,W]` (RGB, uint8 or floats in [0, 1]), the highest score first. `embed`:
    /// whether they are embedded.
    pub fn faces(&mut self, images: &Tensor, embed: bool) -> Result<Vec<Vec<EmbeddedFace>>> {
        let detected =
            self.detect_and_embed(images, embed, |_, faces, _| (0..faces.len()).collect())?;
        Ok(detected
            .into_iter()
            .map(Option::unwrap_or_default)
            .collect())
    }

    /// The crops `[M,3,S,S]` in [0, 1] of faces. Each face is given as the number of its image and its place.
    ///
    /// # Errors
    /// `Argument` for an image that is not finite, or a place that spans no area.
    pub fn align(&self, images: &Tensor, faces: &[(i64, FacePlace)]) -> Result<Tensor> {
        let size = self.recogniser.input_size();
        let all = tensor::pixels(images)?;
        let mut crops = vec![];
        for (at, (image, place)) in faces.iter().enumerate() {
            let Some(Some(pixels)) = all.get(*image as usize) else {
                bail!(Argument, "faces[{at}]: its image is not finite");
            };
            let Some((cut, _)) = crop_for(AlignMode::Kps, at, place, size)? else {
                bail!(Argument, "faces[{at}]: its landmarks and box span no area");
            };
            crops.push(align_pixels(pixels, &cut, size));
        }
        Ok(Tensor::f_from_slice(&crops.concat())?
            .f_view([faces.len() as i64, 3, size, size])?
            .f_to_device(self.device)?
            .f_to_kind(Kind::Float)?
            .f_div_scalar(255.0)?)
    }

    /// Registers `id` with the chosen face of every image of `[K,3,H,W]`. Where `places` says where the face is, the
    /// nearest detected face is chosen. Images without a face are left out with a warning. Returns how many images are
    /// used.
    ///
    /// # Errors
    /// `Argument` where no image has a face.
    pub fn register(&mut self, id: &str, images: &Tensor, places: &[FacePlace]) -> Result<usize> {
        let faces = self.chosen_faces(images, places, &|_| true)?;
        let mut rows = vec![];
        for (at, face) in faces.into_iter().enumerate() {
            match face {
                Ok(EmbeddedFace {
                    embedding: Some(embedding),
                    ..
                }) => rows.push(embedding),
                _ => {
                    warn_host!(
                        "reference \"{id}\": no face was found in image {at}; it is left out"
                    )
                }
            }
        }
        if rows.is_empty() {
            bail!(
                Argument,
                "reference \"{id}\": no face was found in any of its {} image(s)",
                images.size()[0]
            );
        }
        let used = rows.len();
        self.people.insert(id.to_string(), self.pooled(rows));
        Ok(used)
    }

    /// Removes a registered id; false where it was not registered.
    pub fn remove(&mut self, id: &str) -> bool {
        self.people.remove(id).is_some()
    }

    /// Compares one face of every image of `[N,3,H,W]` with its reference. Where `targets` says where a face is, the
    /// nearest detected face is compared.
    pub fn compare(&mut self, images: &Tensor, targets: &Targets) -> Result<Report> {
        let count = images.size()[0] as usize;
        targets.check(count)?;
        let mut samples = gate(targets, count, self.config.face_types.as_deref());
        let live: Vec<bool> = samples
            .iter()
            .map(|s| s.outcome == Outcome::Counted)
            .collect();
        let references = match &targets.references {
            Some(references) => {
                let needed = |row: usize| {
                    (0..count).any(|at| {
                        live[at]
                            && targets.reference_id(at).is_none()
                            && targets.reference_row(at) == row
                    })
                };
                self.chosen_faces(references, &targets.reference_faces, &needed)?
            }
            None => vec![],
        };
        let faces = self.chosen_faces(images, &targets.faces, &|at| live[at])?;
        for (at, (sample, found)) in samples.iter_mut().zip(faces).enumerate() {
            if !live[at] {
                continue;
            }
            let one;
            let person = match targets.reference_id(at) {
                Some(id) => self.person(id)?,
                None => match &references[targets.reference_row(at)] {
                    Ok(EmbeddedFace {
                        embedding: Some(embedding),
                        ..
                    }) => {
                        one = [embedding.clone()];
                        one.as_slice()
                    }
                    _ => {
                        sample.outcome = Outcome::NoReferenceFace;
                        continue;
                    }
                },
            };
            match found {
                Ok(found) => self.fill(sample, &found, person),
                Err(outcome) => sample.outcome = outcome,
            }
        }
        Ok(finished(samples, |at| targets.number(at)))
    }

    /// Finds registered people in every image. Faces and people are matched one to one so that the sum of their
    /// similarities is largest. The report has `ids.len()` samples per image, in the order of `ids`.
    pub fn find(&mut self, images: &Tensor, ids: &[String]) -> Result<Report> {
        for id in ids {
            self.person(id)?;
        }
        let detected =
            self.detect_and_embed(images, true, |_, faces, _| (0..faces.len()).collect())?;
        let mut samples = vec![];
        for of_image in detected {
            let mut own: Vec<Sample> = ids.iter().map(|_| Sample::new(1.0)).collect();
            match of_image {
                None => own
                    .iter_mut()
                    .for_each(|sample| sample.outcome = Outcome::NonFinite),
                Some(faces) => self.matched(&faces, ids, &mut own)?,
            }
            samples.extend(own);
        }
        Ok(finished(samples, |at| at))
    }

    /// Fills in the samples of one image.
    fn matched(
        &self,
        faces: &[EmbeddedFace],
        ids: &[String],
        samples: &mut [Sample],
    ) -> Result<()> {
        let usable: Vec<(&EmbeddedFace, &Embedding)> = faces
            .iter()
            .filter_map(|found| Some((found, found.embedding.as_ref()?)))
            .collect();
        let people = ids
            .iter()
            .map(|id| self.person(id))
            .collect::<Result<Vec<_>>>()?;
        let scores: Vec<Vec<f64>> = people
            .iter()
            .map(|person| {
                let score = |(_, e): &(&EmbeddedFace, &Embedding)| self.similarity(person, e);
                usable.iter().map(score).collect()
            })
            .collect();
        for ((sample, person), face) in samples.iter_mut().zip(people).zip(assign(&scores)) {
            match face {
                Some(at) => self.fill(sample, usable[at].0, person),
                None => sample.outcome = Outcome::NoFace,
            }
        }
        Ok(())
    }

    /// The chosen face of every image, or why there is none. Images that are not `wanted` are skipped.
    fn chosen_faces(
        &mut self,
        images: &Tensor,
        places: &[FacePlace],
        wanted: &dyn Fn(usize) -> bool,
    ) -> Result<Vec<std::result::Result<EmbeddedFace, Outcome>>> {
        let count = images.size()[0] as usize;
        let rows: Vec<usize> = (0..count).filter(|&at| wanted(at)).collect();
        let picked = select_rows(images, &rows)?;
        let (choice, index) = (self.config.face_choice, self.config.face_index);
        let detected = self.detect_and_embed(&picked, true, |row, faces, (width, height)| {
            let at = rows[row];
            let chosen = match places.get(at).and_then(FacePlace::middle) {
                Some(point) => nearest(faces, point),
                None => choose(faces, choice, index, width, height),
            };
            chosen.into_iter().collect()
        })?;
        let mut all: Vec<_> = (0..count).map(|_| Err(Outcome::NoFace)).collect();
        for (row, of_image) in rows.into_iter().zip(detected) {
            all[row] = match of_image {
                None => Err(Outcome::NonFinite),
                Some(faces) => faces.into_iter().next().ok_or(Outcome::NoFace),
            };
        }
        Ok(all)
    }

    /// Detects the faces of every image, keeps those that `keep` picks, and embeds them where asked for. `keep` gets the
    /// image's row, its faces, and its width and height. `None` for an image that is not finite.
    fn detect_and_embed(
        &mut self,
        images: &Tensor,
        embed: bool,
        mut keep: impl FnMut(usize, &[Face], (f64, f64)) -> Vec<usize>,
    ) -> Result<Vec<Option<Vec<EmbeddedFace>>>> {
        let size = self.recogniser.input_size();
        let mut crops = vec![];
        let mut detected = vec![];
        for (row, pixels) in tensor::pixels(images)?.into_iter().enumerate() {
            let Some(pixels) = pixels else {
                detected.push(None);
                continue;
            };
            let faces = self.detector.detect_pixels(&pixels)?;
            let kept = keep(row, &faces, (pixels.width as f64, pixels.height as f64));
            let mut found = vec![];
            for face in kept.into_iter().filter_map(|at| faces.get(at)) {
                let cut = crop_for(AlignMode::Kps, row, &FacePlace::from(face), size)?;
                let alignment = cut.as_ref().map(|(_, how)| *how).unwrap_or_default();
                if let (true, Some((cut, _))) = (embed, cut) {
                    crops.push((row, found.len(), align_pixels(&pixels, &cut, size)));
                }
                found.push(EmbeddedFace {
                    face: face.clone(),
                    alignment,
                    embedding: None,
                });
            }
            detected.push(Some(found));
        }
        for batch in crops.chunks(BATCH) {
            let planes: Vec<&[u8]> = batch.iter().map(|(_, _, crop)| crop.as_slice()).collect();
            for ((row, at, _), embedding) in
                batch.iter().zip(self.recogniser.embed_pixels(&planes)?)
            {
                if let Some(found) = detected[*row].as_mut().and_then(|found| found.get_mut(*at)) {
                    found.embedding = embedding.iter().all(|v| v.is_finite()).then_some(embedding);
                }
            }
        }
        Ok(detected)
    }

    fn person(&self, id: &str) -> Result<&[Embedding]> {
        match self.people.get(id) {
            Some(rows) => Ok(rows),
            None => bail!(
                Argument,
                "the reference \"{id}\" was not registered; call set_reference first"
            ),
        }
    }

    /// The rows that represent a person with these embeddings, as `pooling` says.
    fn pooled(&self, rows: Vec<Embedding>) -> Vec<Embedding> {
        if self.config.pooling != Pooling::Centroid {
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

    fn similarity(&self, person: &[Embedding], embedding: &Embedding) -> f64 {
        let cosines = person.iter().map(|row| {
            let pairs = row.iter().zip(embedding);
            pairs
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum::<f64>()
        });
        match self.config.pooling {
            Pooling::Max => cosines.fold(f64::NEG_INFINITY, f64::max),
            Pooling::Centroid | Pooling::Mean => cosines.sum::<f64>() / person.len() as f64,
        }
    }

    fn fill(&self, sample: &mut Sample, found: &EmbeddedFace, person: &[Embedding]) {
        sample.located = Located::Detected;
        sample.score = found.face.score;
        sample.bbox = Some(found.face.bbox);
        sample.landmarks = found.face.landmarks;
        sample.alignment = found.alignment;
        match &found.embedding {
            Some(embedding) => sample.similarity = self.similarity(person, embedding),
            None => sample.outcome = Outcome::Degenerate,
        }
    }
}

fn finished(samples: Vec<Sample>, number: impl Fn(usize) -> usize) -> Report {
    let mut report = Report {
        samples,
        ..Report::default()
    };
    report.total(1.0, &[(1.0, 1.0)]);
    report.warn(number);
    report
}
