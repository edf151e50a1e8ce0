//! A frozen face recogniser of any family: crops in, embeddings of length 1 out.

use super::normalisation::{PLUS_MINUS_ONE, onnx_norm, onnx_size};
use super::runner::Runner;
use super::{IResNet, foreign};
use crate::config::{BackboneConfig, ColorOrder, Engine, Runtime};
use crate::error::{Result, bail};
use crate::tensor::{GradGuard, to_host, vjp};
use crate::weights::{self, Kind as File, Weights, onnx};
use tch::{Device, Kind, Tensor};

enum Network {
    IResNet(IResNet),
    Onnx {
        runner: Runner,
        /// Whether several crops may run together; false where the file fixes a batch of one.
        batched: bool,
    },
}

/// A recogniser: the network, and how its input is normalised.
pub struct Recogniser {
    network: Network,
    mean: Tensor,
    std: Tensor,
    /// The normalised value of each 8-bit value, per channel of the network.
    levels: [[f32; 256]; 3],
    bgr: bool,
    kind: Kind,
    /// Height and width of the network's input, pixels.
    input: (i64, i64),
    dim: i64,
    /// The names of the network's outputs; the embedding's is [`EMBEDDING`].
    level_names: Vec<String>,
    description: String,
}

/// The level that every recogniser has: its embedding.
pub const EMBEDDING: &str = "embedding";

/// What `model` may say of an IResNet.
const ARCHITECTURES: [&str; 5] = ["r18", "r34", "r50", "r100", "r200"];

impl Recogniser {
    /// Loads a recogniser that a gradient flows through.
    ///
    /// # Errors
    /// `Config` for a dtype or model that does not fit, and those of reading weights.
    pub fn load(config: &BackboneConfig, device: Device) -> Result<Self> {
        let torch = Runtime {
            engine: Engine::Torch,
            ..Runtime::default()
        };
        Self::load_frozen(config, device, &torch)
    }

    /// Loads a recogniser for scores alone: ONNX files may run in ONNX Runtime, which has no gradient.
    ///
    /// # Errors
    /// As [`Recogniser::load`], and `OnnxRuntime`.
    pub fn load_frozen(config: &BackboneConfig, device: Device, runtime: &Runtime) -> Result<Self> {
        Self::open(config, device, runtime).map_err(|e| {
            match e.message().contains(&*config.path.to_string_lossy()) {
                true => e,
                false => e.context(config.path.display()),
            }
        })
    }

    fn open(config: &BackboneConfig, device: Device, runtime: &Runtime) -> Result<Self> {
        let kind = match config.dtype.as_deref() {
            None | Some("f32") => Kind::Float,
            Some("bf16") => Kind::BFloat16,
            Some("f16") => Kind::Half,
            Some(other) => bail!(
                Config,
                "backbone config: dtype: expected f32, bf16 or f16, got \"{other}\""
            ),
        };
        if let Some(model) = &config.model
            && !ARCHITECTURES.contains(&model.as_str())
        {
            bail!(
                Config,
                "backbone config: model: expected {}, got \"{model}\"; left out, the weights are not checked",
                ARCHITECTURES.join(", ")
            );
        }
        let _frozen = tch::no_grad_guard();
        let (network, levels, family, norm, own_size) = match weights::kind(&config.path)? {
            File::Onnx => {
                let model = onnx::read(&config.path)?;
                let (norm, size) = (onnx_norm(&model), onnx_size(&model)?);
                let (runner, engine) = Runner::open(config, &model, device, kind, runtime)?;
                let network = Network::Onnx {
                    runner,
                    batched: true,
                };
                let mut levels: Vec<String> =
                    model.outputs.iter().map(|o| o.name.clone()).collect();
                if let Some(first) = levels.first_mut() {
                    *first = EMBEDDING.into();
                }
                (network, levels, engine, norm, size)
            }
            _ if runtime.engine == Engine::Ort || !runtime.providers.is_empty() => bail!(
                Config,
                "ONNX Runtime runs ONNX files alone; give the recogniser's ONNX file, or use `engine`: \"torch\" \
                 without `providers`"
            ),
            _ => {
                let net = iresnet(weights::load(&config.path, &|_| true)?, device, kind)?;
                let (name, size) = (net.name(), net.input_size());
                if let Some(model) = &config.model
                    && *model != name
                {
                    let remedy = match ARCHITECTURES.contains(&name.as_str()) {
                        true => format!("set it to \"{name}\""),
                        false => "leave it out".into(),
                    };
                    bail!(
                        Weights,
                        "the config says \"{model}\", but the weights are those of {name}; {remedy} or give other weights"
                    );
                }
                let levels = IResNet::LEVELS.map(String::from).to_vec();
                (
                    Network::IResNet(net),
                    levels,
                    format!("{name} on libtorch"),
                    PLUS_MINUS_ONE,
                    Some((size, size)),
                )
            }
        };
        if let (Some(own), Some(asked)) = (own_size, config.input_size)
            && own.0.max(own.1) != asked
        {
            bail!(
                Config,
                "backbone config: input_size {asked}: the network takes {}",
                own.0.max(own.1)
            );
        }
        let square = config.input_size.unwrap_or(112);
        let input = own_size.unwrap_or((square, square));
        if input.0.min(input.1) < 8 || input.0.max(input.1) > 1024 {
            bail!(
                Config,
                "backbone config: input_size: expected 8 to 1024, got {} rows of {}",
                input.0,
                input.1
            );
        }
        let configured = |given: bool, known: &str| match given {
            true => "from the config".to_string(),
            false => known.to_string(),
        };
        let (mean, std) = (
            config.mean.unwrap_or(norm.mean),
            config.std.unwrap_or(norm.std),
        );
        if let Some(bad) = std.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            bail!(
                Config,
                "backbone config: std: expected numbers > 0, got {bad}"
            );
        }
        let bgr = config.color == Some(ColorOrder::Bgr);
        let constant = |values: [f64; 3]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(&values)?
                .f_to_kind(Kind::Float)?
                .f_view([1, 3, 1, 1])?
                .f_to_device(device)?)
        };
        let mut recogniser = Self {
            network,
            mean: constant(mean)?,
            std: constant(std)?,
            levels: std::array::from_fn(|channel| {
                std::array::from_fn(|value| {
                    let value = value as f64 / 255.0;
                    ((value - mean[channel]) / std[channel]) as f32
                })
            }),
            bgr,
            kind,
            input,
            dim: 0,
            level_names: levels,
            description: format!(
                "{family} from {}; {}x{} {} ({}), mean {mean:?} std {std:?} of [0, 1] ({}), {}",
                config
                    .path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy(),
                input.0,
                input.1,
                if bgr { "BGR" } else { "RGB" },
                configured(config.color.is_some(), "the family's"),
                configured(config.mean.is_some() || config.std.is_some(), norm.source),
                match kind {
                    Kind::BFloat16 => "bf16",
                    Kind::Half => "f16",
                    _ => "f32",
                },
            ),
        };
        recogniser.probe(device)?;
        Ok(recogniser)
    }

    /// Runs the network to learn the embedding's length and whether a batch works.
    fn probe(&mut self, device: Device) -> Result<()> {
        let ramp = Tensor::f_linspace(
            0.0,
            1.0,
            2 * 3 * self.input_size() * self.input_size(),
            (Kind::Float, device),
        )?;
        let crops = ramp.f_view([2, 3, self.input_size(), self.input_size()])?;
        self.set_batched(false);
        let single = self.embed(&crops)?;
        self.dim = single.size()[1];
        foreign::embedding_size(self.dim)?;
        if !self.batches(&crops, &single)? {
            // A file that was exported for one image often fixes the batch only in a Reshape.
            self.free_batch(true);
            if !self.batches(&crops, &single)? {
                self.free_batch(false);
                self.set_batched(false);
            }
        }
        Ok(())
    }

    /// Whether an ONNX file computes the same embeddings for several crops together as one by one.
    fn batches(&mut self, crops: &Tensor, single: &Tensor) -> Result<bool> {
        self.set_batched(true);
        Ok(match self.embed(crops) {
            Ok(together) if together.size() == single.size() => {
                let apart = together.f_sub(single)?.f_abs()?.f_max()?;
                apart.f_double_value(&[])? < 0.02 && self.independent(crops)?
            }
            _ => false,
        })
    }

    /// Whether what libtorch makes of one of two crops does not depend on the other, as its gradient shows. Values alone do
    /// not tell: what a crop adds to another's embedding may be as small as rounding. True for ONNX Runtime, which takes no
    /// other batch than the file's.
    fn independent(&self, crops: &Tensor) -> Result<bool> {
        if !matches!(
            self.network,
            Network::Onnx {
                runner: Runner::Graph(_),
                ..
            }
        ) {
            return Ok(true);
        }
        let _grad = GradGuard::new();
        let leaf = crops.detach().f_set_requires_grad(true)?;
        let outputs = self.outputs(&leaf)?;
        let rows = outputs
            .iter()
            .filter(|output| output.requires_grad() && output.size().first() == Some(&2));
        for output in rows {
            for (row, other) in [(0, 1), (1, 0)] {
                let one = output.f_narrow(0, row, 1)?;
                let gradient = vjp(&one, &[&leaf], &one.f_ones_like()?, true)?.swap_remove(0);
                let strange = gradient.f_select(0, other)?.f_abs()?.f_max()?;
                if strange.f_double_value(&[])? != 0.0 {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn set_batched(&mut self, value: bool) {
        if let Network::Onnx { batched, .. } = &mut self.network {
            *batched = value;
        }
    }

    fn free_batch(&mut self, free: bool) {
        if let Network::Onnx {
            runner: Runner::Graph(graph),
            ..
        } = &mut self.network
        {
            graph.free_batch(free);
        }
    }

    /// Side of the square crops, pixels. A network whose input is not square sees the middle of the crop: a face that
    /// is aligned to 112×112 and loses 8 columns on both sides is aligned to InsightFace's 112×96.
    pub fn input_size(&self) -> i64 {
        self.input.0.max(self.input.1)
    }

    /// The part of a crop that the network sees: first row, first column, height, width.
    fn part(&self) -> [i64; 4] {
        let (height, width) = self.input;
        let side = self.input_size();
        [(side - height) / 2, (side - width) / 2, height, width]
    }

    /// The device of the network and its inputs.
    pub fn device(&self) -> Device {
        self.mean.device()
    }

    /// The length of an embedding.
    pub fn dim(&self) -> i64 {
        self.dim
    }

    /// One line: family, file, size, colour order and normalisation, and where each comes from.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Embeds crops of 8-bit pixels, each three planes (red, green, blue) of `input_size`² bytes. Embeddings have
    /// length 1. Where ONNX Runtime runs the network, libtorch is not used.
    pub fn embed_pixels(&self, crops: &[&[u8]]) -> Result<Vec<Vec<f32>>> {
        let _frozen = tch::no_grad_guard();
        let (size, dim) = (self.input_size(), self.dim as usize);
        let [_, _, height, width] = self.part();
        if let Network::Onnx {
            runner: Runner::Session(session),
            batched,
        } = &self.network
        {
            let mut rows = vec![];
            for part in crops.chunks(if *batched { crops.len().max(1) } else { 1 }) {
                let shape = [part.len() as i64, 3, height, width];
                let outputs = session.borrow_mut().run(&self.normalised(part), &shape)?;
                match outputs.first() {
                    Some((_, values)) if values.len() == part.len() * dim => {
                        rows.extend(unit_rows(values, dim));
                    }
                    _ => bail!(Weights, "the model yields no row of {dim} for every crop"),
                }
            }
            return Ok(rows);
        }
        let pixels = Tensor::f_from_slice(&crops.concat())?
            .f_view([crops.len() as i64, 3, size, size])?
            .f_to_device(self.mean.device())?
            .f_to_kind(Kind::Float)?
            .f_div_scalar(255.0)?;
        let rows = to_host(&self.embed(&pixels)?)?;
        let flat: Vec<f32> = Vec::try_from(rows.f_contiguous()?.f_view([-1i64])?)?;
        Ok(flat.chunks(dim).map(<[f32]>::to_vec).collect())
    }

    /// Crops as the network takes them, one after the other.
    fn normalised(&self, crops: &[&[u8]]) -> Vec<f32> {
        let side = self.input_size() as usize;
        let [top, left, height, width] = self.part().map(|n| n as usize);
        let mut values = Vec::with_capacity(crops.len() * 3 * height * width);
        for crop in crops {
            for (channel, levels) in self.levels.iter().enumerate() {
                let from = if self.bgr { 2 - channel } else { channel };
                let rows = crop[from * side * side..]
                    .chunks(side)
                    .skip(top)
                    .take(height);
                let pixels = rows.flat_map(|row| &row[left..left + width]);
                values.extend(pixels.map(|&pixel| levels[pixel as usize]));
            }
        }
        values
    }

    /// Embeds crops `[M,3,S,S]`, RGB in [0, 1]: `[M,D]` float32 rows of length 1. The gradient flows
    /// back to `crops`, unless ONNX Runtime runs the network.
    pub fn embed(&self, crops: &Tensor) -> Result<Tensor> {
        if crops.size().first() == Some(&0) {
            return Ok(Tensor::f_zeros(
                [0, self.dim],
                (Kind::Float, crops.device()),
            )?);
        }
        unit(&self.features(crops, &[EMBEDDING])?[0])
    }

    /// The names of the network's levels: `embedding`, of an IResNet also `layer1` … `layer4`, of an ONNX model also
    /// its further outputs.
    pub fn levels(&self) -> &[String] {
        &self.level_names
    }

    /// Some levels of crops `[M,3,S,S]`, M ≥ 1, RGB in [0, 1], as the network computes them: float32, one row per crop.
    /// The gradient flows back to `crops`, unless ONNX Runtime runs the network.
    ///
    /// # Errors
    /// `Config` for a level that the network does not have.
    pub fn features(&self, crops: &Tensor, levels: &[&str]) -> Result<Vec<Tensor>> {
        let wanted = levels.iter().map(|level| self.level(level));
        let wanted = wanted.collect::<Result<Vec<usize>>>()?;
        let outputs = self.outputs(crops)?;
        let picked = wanted.into_iter().map(|at| match outputs.get(at) {
            Some(output) => Ok(output.f_to_kind(Kind::Float)?),
            None => bail!(Weights, "the model yields {} outputs", outputs.len()),
        });
        picked.collect()
    }

    fn level(&self, name: &str) -> Result<usize> {
        match self.level_names.iter().position(|level| level == name) {
            Some(at) => Ok(at),
            None => bail!(
                Config,
                "levels: this recogniser has no \"{name}\", but {}; of an ONNX file these are its outputs, so export \
                 the model with the maps that are wanted as further outputs",
                self.level_names.join(", ")
            ),
        }
    }

    /// All outputs of the network.
    fn outputs(&self, crops: &Tensor) -> Result<Vec<Tensor>> {
        let count = crops.size().first().copied().unwrap_or(0);
        let [top, left, height, width] = self.part();
        let seen = match height == width {
            true => crops.shallow_clone(),
            false => crops.f_narrow(2, top, height)?.f_narrow(3, left, width)?,
        };
        let ordered = match self.bgr {
            true => seen.f_flip([1])?,
            false => seen,
        };
        let x = ordered
            .f_sub(&self.mean)?
            .f_div(&self.std)?
            .f_to_kind(self.kind)?;
        match &self.network {
            Network::IResNet(net) => net.forward(&x),
            Network::Onnx {
                runner,
                batched: true,
            } => runner.forward(&x),
            Network::Onnx {
                runner,
                batched: false,
            } => {
                let rows = (0..count)
                    .map(|at| runner.forward(&x.f_narrow(0, at, 1)?))
                    .collect::<Result<Vec<_>>>()?;
                let all = |at: usize| -> Result<Tensor> {
                    let of = rows.iter().filter_map(|row| row.get(at));
                    Ok(Tensor::f_cat(&of.collect::<Vec<_>>(), 0)?)
                };
                (0..rows.first().map_or(0, Vec::len)).map(all).collect()
            }
        }
    }
}

/// Flattens every row and scales it to length 1: `[M,numbers]`.
pub fn unit(rows: &Tensor) -> Result<Tensor> {
    let flat = rows.f_flatten(1, -1)?;
    let norm = flat
        .f_norm_scalaropt_dim(2.0, [1i64].as_slice(), true)?
        .f_clamp_min(1e-12)?;
    Ok(flat.f_div(&norm)?)
}

/// Rows of `dim` numbers, each scaled to length 1.
fn unit_rows(values: &[f32], dim: usize) -> Vec<Vec<f32>> {
    let unit = |row: &[f32]| {
        let norm = row
            .iter()
            .map(|v| f64::from(*v).powi(2))
            .sum::<f64>()
            .sqrt();
        let scale = 1.0 / norm.max(1e-12);
        row.iter().map(|v| (f64::from(*v) * scale) as f32).collect()
    };
    values.chunks(dim).map(unit).collect()
}

fn iresnet(all: Weights, device: Device, kind: Kind) -> Result<IResNet> {
    let plain = weights::strip(all, &[IResNet::ANCHOR]);
    if plain.contains_key(IResNet::ANCHOR) {
        return IResNet::from_weights(&plain, device, kind);
    }
    let has = |part: &str| plain.keys().any(|name| name.contains(part));
    let export = |networks: &str| {
        format!(
            "{networks}: export it with arcface_torch's own torch2onnx.py, which makes the ONNX file to give here \
             (python torch2onnx.py model.pt --output model.onnx --network NAME)"
        )
    };
    let arcface = [
        (
            "conv_sep.layers.0.weight",
            "arcface_torch's MobileFaceNet (NAME: mbf or mbf_large)",
        ),
        (
            "patch_embed.proj.weight",
            "arcface_torch's ViT (NAME: vit_t, vit_s, vit_b or vit_l_dp005_mask_005)",
        ),
    ];
    if let Some((_, network)) = arcface.iter().find(|(name, _)| has(name)) {
        bail!(Weights, "expected an IResNet, found {}", export(network));
    }
    let looks = if has("input_layer.0.weight") || has("res_layer") {
        "an IR-SE50 (TreB1eN, pSp, e4e), which is another network"
    } else if has("last_linear") || has("repeat_1.") {
        "a facenet InceptionResnet, which is another network"
    } else if has("decoder.") || has("up_blocks") {
        "a VAE"
    } else {
        "something else"
    };
    let names = weights::listed(plain.keys().map(String::as_str), 6);
    bail!(
        Weights,
        "expected an IResNet of arcface_torch (with {}), found {looks}: the file has {}; give arcface_torch weights or \
         a recogniser's ONNX file",
        IResNet::ANCHOR,
        names
    );
}
