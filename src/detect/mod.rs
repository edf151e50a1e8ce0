//! Face detection as insightface does it (`model_zoo/scrfd.py`): letterbox, network, decode, merge,
//! suppress. Two engines run the network; everything else is shared.

mod decode;
mod engine;
mod ort;
mod resize;

use crate::config::DetectorConfig;
use crate::error::{Result, bail};
use crate::face::{Face, nms};
use crate::weights::onnx;
use decode::{Layout, decode};
use engine::Network;
use tch::{Device, Kind, Tensor};

/// A loaded SCRFD detector.
pub struct Detector {
    network: Network,
    layout: Layout,
    sizes: Vec<i64>,
    threshold: f64,
    nms_threshold: f64,
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
                description: format!(
                    "{} on {engine}; sizes {sizes:?}, threshold {}, NMS {}",
                    config
                        .path
                        .file_name()
                        .unwrap_or_default()
                        .to_string_lossy(),
                    config.threshold,
                    config.nms_threshold
                ),
                sizes,
            })
        };
        open().map_err(|e| e.context(config.path.display()))
    }

    /// One line: file, engine and why, sizes, thresholds.
    pub fn description(&self) -> String {
        self.description.clone()
    }

    /// The faces of every image of `[N,3,H,W]`, RGB in [0, 1], by falling score. The pixels are
    /// rounded to 8 bits first, as the detectors were trained. An image with a pixel that is not
    /// finite has no faces.
    pub fn detect(&mut self, images: &Tensor) -> Result<Vec<Vec<Face>>> {
        let _frozen = tch::no_grad_guard();
        let count = images.size().first().copied().unwrap_or(0);
        (0..count)
            .map(|at| self.detect_one(&images.f_narrow(0, at, 1)?))
            .collect()
    }

    fn detect_one(&mut self, image: &Tensor) -> Result<Vec<Face>> {
        let image = image.f_to_kind(Kind::Float)?;
        if image.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Ok(vec![]);
        }
        let pixels = image.f_clamp(0.0, 1.0)?.f_mul_scalar(255.0)?.f_round()?;
        let mut faces = vec![];
        for &size in &self.sizes {
            let (canvas, scale) = letterbox(&pixels, size)?;
            let outputs = self.network.run(&canvas)?;
            faces.extend(decode(&self.layout, &outputs, size, scale, self.threshold)?);
        }
        Ok(nms(faces, self.nms_threshold))
    }
}

/// The detection sizes: what the model fixes, else what the config lists.
fn sizes(config: &DetectorConfig, model: &onnx::Model) -> Result<Vec<i64>> {
    let shape = model
        .inputs
        .first()
        .map_or(&[] as &[_], |input| input.shape.as_slice());
    if let [_, _, Some(height), Some(width)] = *shape {
        let listed = config.det_sizes != [640];
        if height != width || (listed && config.det_sizes != [height as u32]) {
            bail!(
                Config,
                "detector config: det_sizes {:?}: the model's input is fixed to {width}x{height}; leave \
                 det_sizes out, or export the model with a dynamic input",
                config.det_sizes
            );
        }
        return Ok(vec![height]);
    }
    if config.det_sizes.is_empty() {
        bail!(
            Config,
            "detector config: det_sizes: expected at least one size"
        );
    }
    if let Some(bad) = config
        .det_sizes
        .iter()
        .find(|&&s| s == 0 || s % 32 != 0 || s > 8192)
    {
        bail!(
            Config,
            "detector config: det_sizes: expected multiples of 32 up to 8192, got {bad}"
        );
    }
    Ok(config.det_sizes.iter().map(|&s| i64::from(s)).collect())
}

/// The picture scaled into the top-left of a black square, normalised, and how much it was scaled.
/// The truncations are insightface's.
fn letterbox(pixels: &Tensor, size: i64) -> Result<(Tensor, f64)> {
    let (height, width) = (pixels.size()[2], pixels.size()[3]);
    let ratio = height as f64 / width as f64;
    let (new_height, new_width) = match ratio > 1.0 {
        true => (size, (size as f64 / ratio) as i64),
        false => ((size as f64 * ratio) as i64, size),
    };
    let (new_height, new_width) = (new_height.max(1), new_width.max(1));
    let scaled = resize::resize(pixels, new_height, new_width)?;
    let canvas = scaled.f_constant_pad_nd([0, size - new_width, 0, size - new_height])?;
    let normalised = canvas
        .f_to_kind(Kind::Float)?
        .f_sub_scalar(127.5)?
        .f_div_scalar(128.0)?;
    Ok((normalised, new_height as f64 / height as f64))
}
