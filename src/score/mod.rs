//! The score, without a gradient: faces, embeddings and similarities as insightface's `FaceAnalysis` computes them,
//! from 8-bit pixels.

mod faces;
mod people;

pub use faces::EmbeddedFace;

use crate::batch::{Located, Outcome, Report, Sample, Targets, gate};
use crate::config::EvaluatorConfig;
use crate::detect::Detector;
use crate::error::{Result, bail};
use crate::face::{FacePlace, assign};
use crate::log::warn_host;
use crate::nets::Recogniser;
use people::{Embedding, People};
use tch::{Device, Tensor};

/// A detector, a recogniser and the registered people.
pub struct Evaluator {
    config: EvaluatorConfig,
    detector: Detector,
    recogniser: Recogniser,
    device: Device,
    people: People,
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
            people: People::new(config.pooling),
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
        self.people.register(id, rows);
        Ok(used)
    }

    /// Removes a registered id; false where it was not registered.
    pub fn remove(&mut self, id: &str) -> bool {
        self.people.remove(id)
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
                Some(id) => self.people.get(id)?,
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
            self.people.get(id)?;
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
            .map(|id| self.people.get(id))
            .collect::<Result<Vec<_>>>()?;
        let scores: Vec<Vec<f64>> = people
            .iter()
            .map(|person| {
                let score =
                    |(_, e): &(&EmbeddedFace, &Embedding)| self.people.similarity(person, e);
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

    /// Fills in a sample by the face that was found and its similarity to a person.
    fn fill(&self, sample: &mut Sample, found: &EmbeddedFace, person: &[Embedding]) {
        sample.located = Located::Detected;
        sample.score = found.face.score;
        sample.bbox = Some(found.face.bbox);
        sample.landmarks = found.face.landmarks;
        sample.alignment = found.alignment;
        match &found.embedding {
            Some(embedding) => sample.similarity = self.people.similarity(person, embedding),
            None => sample.outcome = Outcome::Degenerate,
        }
    }
}

/// The report of samples, with its sums. Samples that are left out are warned about.
fn finished(samples: Vec<Sample>, number: impl Fn(usize) -> usize) -> Report {
    let mut report = Report {
        samples,
        ..Report::default()
    };
    report.total(1.0, &[(1.0, 1.0)]);
    report.warn(number);
    report
}
