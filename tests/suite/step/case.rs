//! A step of the fixtures: networks, inputs, and what PyTorch made of them.

use crate::common::{Tensors, device, fixture, numbers};
use facegrad::batch::{Report, Targets};
use facegrad::config::{BackboneConfig, LossConfig, VaeConfig, parse};
use facegrad::error::Result;
use facegrad::face::FacePlace;
use facegrad::loss::Loss;
use facegrad::nets::vae::Decoder;
use facegrad::nets::{Levels, Recogniser};
use facegrad::pipeline::Pipeline;
use facegrad::shared::Shared;
use facegrad::step::{Step, StepLoss};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard};
use tch::Tensor;

pub fn shared<T>(value: T) -> Shared<T> {
    Arc::new(Mutex::new(value))
}

/// The library has one receiver of messages: tests that set it take turns.
pub fn lock_log() -> MutexGuard<'static, ()> {
    static LOG: Mutex<()> = Mutex::new(());
    LOG.lock().unwrap_or_else(|e| e.into_inner())
}

pub fn decoder(name: &str, more: Value) -> Result<Decoder> {
    let mut config =
        json!({ "path": fixture(&format!("step/{name}.safetensors")), "norm_num_groups": 8 });
    config
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let config: VaeConfig = parse("test", &config.to_string())?;
    Decoder::load(&config, device())
}

pub fn loss(config: &Value, vae: &Shared<Decoder>) -> StepLoss {
    let config = LossConfig::parse(&config.to_string()).unwrap();
    let json = json!({ "path": fixture("nets/small.safetensors") }).to_string();
    let backbone: BackboneConfig = parse("test", &json).unwrap();
    let recogniser = Recogniser::load(&backbone, device()).unwrap();
    let pipeline = Pipeline {
        detector: None,
        levels: Levels::new(config.levels.as_ref(), &recogniser).unwrap(),
        recogniser: shared(recogniser),
        align_mode: config.face_align_mode,
        choice: config.face_choice,
        index: config.face_index,
        is_score: config.is_score(),
    };
    StepLoss::new(shared(Loss::new(config, pipeline)), Some(vae.clone()))
}

pub fn known(rows: &[f64]) -> Vec<FacePlace> {
    rows.chunks(10)
        .map(|row| FacePlace {
            bbox: None,
            landmarks: Some(std::array::from_fn(|i| [row[2 * i], row[2 * i + 1]])),
        })
        .collect()
}

/// One of the fixture's cases: a configuration, and what PyTorch made of it.
pub struct Case {
    pub about: Value,
    pub tensors: Tensors,
}

impl Case {
    pub fn all() -> Vec<Value> {
        let text = std::fs::read_to_string(fixture("step/cases.json")).unwrap();
        serde_json::from_str::<Vec<Value>>(&text).unwrap()
    }

    pub fn named(name: &str) -> Case {
        let about = Case::all().into_iter().find(|c| c["name"] == name).unwrap();
        Case {
            about,
            tensors: Tensors::open("step/steps.safetensors"),
        }
    }

    pub fn get(&self, name: &str) -> Tensor {
        self.tensors.get(&self.path(name))
    }

    pub fn optional(&self, name: &str) -> Option<Tensor> {
        self.tensors.has(&self.path(name)).then(|| self.get(name))
    }

    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.about["name"].as_str().unwrap())
    }

    pub fn config(&self) -> Value {
        self.about["config"].clone()
    }

    pub fn with(&self, more: Value) -> Value {
        let mut config = self.config();
        let keys = config.as_object_mut().unwrap();
        keys.extend(more.as_object().unwrap().clone());
        config
    }

    pub fn vae(&self, more: Value) -> Shared<Decoder> {
        shared(decoder(self.about["vae"].as_str().unwrap(), more).unwrap())
    }

    pub fn step(&self) -> Step {
        let pairs = self
            .optional("coefficients")
            .map_or(vec![], |t| numbers(&t));
        let custom = !pairs.is_empty();
        Step {
            x_t: self.optional("x_t"),
            prediction: self.get("prediction"),
            times: if custom {
                vec![]
            } else {
                numbers(&self.get("times"))
            },
            coefficients: pairs.chunks(2).map(|p| (p[0], p[1])).collect(),
            size: self.about["size"]
                .as_array()
                .map(|s| (s[0].as_i64().unwrap(), s[1].as_i64().unwrap())),
            number: 0,
            gradient_norm: None,
        }
    }

    pub fn targets(&self) -> Targets {
        let chain = Tensors::open("chain/chain.safetensors");
        Targets {
            references: Some(chain.get("references")),
            faces: known(&chain.numbers("landmarks")),
            reference_faces: known(&chain.numbers("reference_landmarks")),
            weights: numbers(&self.get("weights")),
            ..Targets::default()
        }
    }

    pub fn run(&self, config: &Value, vae: Value) -> (Report, Tensor) {
        let (report, gradient) = loss(config, &self.vae(vae))
            .step(&self.step(), &self.targets(), true)
            .unwrap();
        (report, gradient.unwrap())
    }
}
