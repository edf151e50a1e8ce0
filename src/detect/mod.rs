//! Face detection as insightface does it (`model_zoo/scrfd.py`): letterbox, network, decode, merge,
//! suppress. Two engines run the network; everything else is shared.

mod decode;
mod engine;
mod letterbox;
mod resize;

use crate::config::{DetectionSize, DetectorConfig};
use crate::error::{Result, bail};
use crate::face::{Face, nms};
use crate::log::warn_host;
use crate::tensor::{MAX_PIXELS, Pixels, bounded, finite, pixels, quantised};
use crate::weights::onnx;
use decode::{Layout, decode};
use engine::Network;
use letterbox::{Picture, letterbox};
use tch::{Device, Tensor};

/// The most candidates: more than a crowd has. The time for comparing them grows with the square of their number.
const MAX_CANDIDATES: usize = 1 << 16;
/// The longest side of a canvas that a config may ask for.
const MAX_SIDE: u32 = 8192;
/// The longest side of a canvas that a file may ask for.
const MAX_FIXED_SIDE: i64 = 4096;

/// A loaded SCRFD detector.
pub struct Detector {
    network: Network,
    layout: Layout,
    sizes: Vec<DetectionSize>,
    threshold: f64,
    nms_threshold: f64,
    min_size: f64,
    retry_sizes: Vec<DetectionSize>,
    retry_padding: f64,
    description: String,
}

impl Detector {
    /// Loads the model into the engine that the config asks for.
    ///
    /// Errors: `Config`, `Weights` (not an SCRFD), `Operator`, `OnnxRuntime`, and those of reading.
    pub fn new(config: &DetectorConfig, device: Device) -> Result<Self> {
        let model = onnx::read(&config.path)?;
        let open = || -> Result<Self> {
            let layout = Layout::of(&model)?;
            let sizes = sizes(config, &model)?;
            let retry_sizes = retries(config, &model)?;
            for (name, value) in [
                ("threshold", config.threshold),
                ("nms_threshold", config.nms_threshold),
            ] {
                if !(value > 0.0 && value < 1.0) {
                    bail!(
                        Config,
                        "detector config: {name}: expected a number between 0 and 1, got {value}"
                    );
                }
            }
            let (network, engine) = engine::open(config, &model, device)?;
            Ok(Self {
                network,
                layout,
                threshold: config.threshold,
                nms_threshold: config.nms_threshold,
                min_size: config.min_size,
                retry_sizes,
                retry_padding: config.retry_padding,
                description: format!(
                    "{} on {engine}; sizes [{}], threshold {}, NMS {}{}",
                    config
                        .path
                        .file_name()
                        .unwrap_or_default()
                        .to_string_lossy(),
                    listed(&sizes),
                    config.threshold,
                    config.nms_threshold,
                    further(config)
                ),
                sizes,
            })
        };
        open().map_err(|e| e.context(config.path.display()))
    }

    /// One line of text: file, engine and why, sizes, thresholds.
    pub fn description(&self) -> String {
        self.description.clone()
    }

    /// The faces of every image of `[N,3,H,W]` by falling score. Images are RGB, uint8 or floats in [0, 1]. Floats are
    /// rounded to 8 bits, because the detectors were trained on 8-bit images. An image with a pixel that is not finite
    /// has no faces.
    ///
    /// # Errors
    /// `Limit` for more pixels than can be copied; `OnnxRuntime`, `Torch`.
    pub fn detect(&mut self, images: &Tensor) -> Result<Vec<Vec<Face>>> {
        let _frozen = tch::no_grad_guard();
        bounded(images)?;
        if images.device() == Device::Cpu {
            // One picture at a time: a batch of photographs is large.
            let find = |at| match pixels(&images.f_narrow(0, at, 1)?)?.pop().flatten() {
                Some(picture) => self.find(&picture),
                None => Ok(vec![]),
            };
            return (0..images.size()[0]).map(find).collect();
        }
        (0i64..)
            .zip(finite(images)?)
            .map(|(at, finite)| match finite {
                true => self.find(&quantised(&images.f_narrow(0, at, 1)?)?),
                false => Ok(vec![]),
            })
            .collect()
    }

    /// The faces of one picture by falling score.
    pub fn detect_pixels(&mut self, picture: &Pixels) -> Result<Vec<Face>> {
        let _frozen = tch::no_grad_guard();
        self.find(picture)
    }

    /// Detects at the configured sizes; where that finds no face, at each size to retry, and then with a border.
    fn find<P: Picture>(&mut self, picture: &P) -> Result<Vec<Face>> {
        let (height, width) = picture.size();
        if height == 0 || width == 0 {
            return Ok(vec![]);
        }
        let sizes = self.sizes.clone();
        let mut faces = self.merged(picture, &sizes)?;
        for size in self.retry_sizes.clone() {
            if faces.is_empty() {
                faces = self.merged(picture, &[size])?;
            }
        }
        if faces.is_empty() && self.retry_padding > 0.0 {
            let border = (self.retry_padding * height.max(width) as f64).round();
            let around = 2 * border as i64;
            if (height + around) * (width + around) > MAX_PIXELS {
                warn_host!(
                    "no face was found in a picture of {width}x{height}, and it is too large to look again with \
                     retry_padding {}",
                    self.retry_padding
                );
                return Ok(faces);
            }
            faces = self.merged(&picture.bordered(border as i64)?, &sizes)?;
            for face in &mut faces {
                face.bbox = face.bbox.map(|v| v - border);
                face.landmarks = face.landmarks.map(|l| l.map(|p| p.map(|v| v - border)));
            }
        }
        Ok(faces)
    }

    /// The merged faces of several sizes, without those that are too small.
    fn merged<P: Picture>(&mut self, picture: &P, sizes: &[DetectionSize]) -> Result<Vec<Face>> {
        let mut faces = vec![];
        for &size in sizes {
            let (canvas, scale) = letterbox(picture, size)?;
            let outputs = self.network.run(&canvas, size)?;
            faces.extend(decode(&self.layout, &outputs, size, scale, self.threshold)?);
            if faces.len() > MAX_CANDIDATES {
                bail!(
                    Weights,
                    "the network finds more than {MAX_CANDIDATES} faces in one picture; it is no SCRFD detector, or \
                     the threshold {} is too low",
                    self.threshold
                );
            }
        }
        let mut faces = nms(faces, self.nms_threshold);
        // Without a least size, a box of negative size is kept too, as in insightface.
        if self.min_size > 0.0 {
            faces.retain(|face| {
                let [x1, y1, x2, y2] = face.bbox;
                (x2 - x1).min(y2 - y1) >= self.min_size
            });
        }
        Ok(faces)
    }
}

/// The other settings that decide whether a face is found, for the description.
fn further(config: &DetectorConfig) -> String {
    let mut text = String::new();
    if config.min_size > 0.0 {
        text += &format!(", no face below {} pixels", config.min_size);
    }
    if !config.retry_sizes.is_empty() {
        text += &format!(", then sizes [{}]", listed(&config.retry_sizes));
    }
    if config.retry_padding > 0.0 {
        text += &format!(", then with a border of {}", config.retry_padding);
    }
    text
}

/// The detection sizes: the one that the model fixes, else those of the config.
fn sizes(config: &DetectorConfig, model: &onnx::Model) -> Result<Vec<DetectionSize>> {
    let shape = model
        .inputs
        .first()
        .map_or(&[] as &[_], |input| input.shape.as_slice());
    if let [batch, channels, Some(height), Some(width)] = *shape {
        if batch.is_some_and(|n| n != 1)
            || channels.is_some_and(|n| n != 3)
            || height.max(width) > MAX_FIXED_SIDE
        {
            bail!(
                Weights,
                "the model's input is fixed to {shape:?}; expected one picture of three colours with sides of at most \
                 {MAX_FIXED_SIDE}"
            );
        }
        let fixed = DetectionSize {
            width: width as u32,
            height: height as u32,
        };
        let given = config.det_sizes != [DetectionSize::from(640)];
        if given && config.det_sizes != [fixed] {
            bail!(
                Config,
                "detector config: det_sizes [{}]: the model's input is fixed to {width}x{height}; leave \
                 det_sizes out, or export the model with a dynamic input",
                listed(&config.det_sizes)
            );
        }
        return Ok(vec![fixed]);
    }
    if config.det_sizes.is_empty() {
        bail!(
            Config,
            "detector config: det_sizes: expected at least one size"
        );
    }
    sides("det_sizes", &config.det_sizes)
}

/// The sizes that are tried where the detection sizes find no face.
fn retries(config: &DetectorConfig, model: &onnx::Model) -> Result<Vec<DetectionSize>> {
    for (name, value) in [
        ("min_size", config.min_size),
        ("retry_padding", config.retry_padding),
    ] {
        if !(value.is_finite() && value >= 0.0) {
            bail!(
                Config,
                "detector config: {name}: expected a number >= 0, got {value}"
            );
        }
    }
    if config.retry_padding > 2.0 {
        bail!(
            Config,
            "detector config: retry_padding: expected a part of the picture's side up to 2, got {}",
            config.retry_padding
        );
    }
    let fixed = |input: &onnx::Value| matches!(*input.shape, [_, _, Some(_), Some(_)]);
    if !config.retry_sizes.is_empty() && model.inputs.first().is_some_and(fixed) {
        bail!(
            Config,
            "detector config: retry_sizes: the model's input size is fixed; leave retry_sizes out, or export the \
             model with a dynamic input"
        );
    }
    sides("retry_sizes", &config.retry_sizes)
}

fn sides(name: &str, sizes: &[DetectionSize]) -> Result<Vec<DetectionSize>> {
    if sizes.len() > 64 {
        bail!(
            Config,
            "detector config: {name}: expected at most 64 sizes, got {}",
            sizes.len()
        );
    }
    let mut sides = sizes.iter().flat_map(|size| [size.width, size.height]);
    if let Some(bad) = sides.find(|&s| s == 0 || s % 32 != 0 || s > MAX_SIDE) {
        bail!(
            Config,
            "detector config: {name}: expected multiples of 32 up to {MAX_SIDE}, got {bad}"
        );
    }
    Ok(sizes.to_vec())
}

/// Sizes as text.
fn listed(sizes: &[DetectionSize]) -> String {
    let texts: Vec<String> = sizes.iter().map(DetectionSize::to_string).collect();
    texts.join(", ")
}
