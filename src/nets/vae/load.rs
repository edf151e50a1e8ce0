//! Builds a decoder from a file or from a host's tensors.

use super::sidecar::{INSTEAD, Sidecar, weights_file};
use super::source::Source;
use super::torchscript::{Script, is_torchscript};
use super::*;
use crate::config::CustomFormat;
use crate::log::warn_host;
use crate::{tensor, weights};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// norm_num_groups of every published model whose file comes without a config.
const DEFAULT_GROUPS: i64 = 32;
/// scaling_factor of HunyuanImage 2.1's VAE.
const HUNYUAN_SCALE: f64 = 0.75289;
/// batch_norm_eps of FLUX.2's VAE.
const DEFAULT_BN_EPS: f64 = 1e-4;
/// Image pixels per latent pixel of every image VAE here.
const DEFAULT_SCALE: i64 = 8;

pub(super) fn from_file(config: &VaeConfig, device: Device) -> Result<Decoder> {
    let Some(path) = &config.path else {
        bail!(
            Config,
            "vae config: `path` is needed to load a VAE from a file"
        );
    };
    let file = weights_file(path)?;
    let read = || {
        if config.family == Some(VaeFamily::Torchscript) || is_torchscript(&file) {
            return script(config, &file, device);
        }
        let sidecar = match &config.model_config {
            Some(given) => Sidecar::of(given.clone())?,
            None => Sidecar::beside(&file, path.is_dir())?,
        };
        sidecar.check_class()?;
        // A checkpoint may hold other networks too. Only the VAE's tensors are read, by their names.
        let all = RefCell::new(BTreeSet::new());
        weights::load(&file, &|name| {
            all.borrow_mut().insert(name.to_string());
            false
        })?;
        let all = all.into_inner();
        let hint = all.iter().find_map(|name| dialect::format_hint(name));
        let decoder = dialect::translate(all.iter().map(String::as_str))?;
        let arrays = weights::load(&file, &|name| decoder.contains_key(name))?;
        let tensors = arrays.into_iter().map(|(name, array)| {
            let tensor = tensor::from_array(&array, device)?.f_to_kind(kind(config.dtype))?;
            Ok((name, tensor))
        });
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        build(tensors, config, &sidecar, hint, device, false)
    };
    read().map_err(|e| match e.message().contains(&*file.to_string_lossy()) {
        true => e,
        false => e.context(file.display()),
    })
}

pub(super) fn from_tensors(
    tensors: Vec<(String, Tensor)>,
    config: &VaeConfig,
    device: Device,
) -> Result<Decoder> {
    let sidecar = match &config.model_config {
        Some(given) => Sidecar::of(given.clone())?,
        None => Sidecar::default(),
    };
    sidecar.check_class()?;
    build(tensors, config, &sidecar, None, device, true)
}

fn build(
    tensors: Vec<(String, Tensor)>,
    config: &VaeConfig,
    sidecar: &Sidecar,
    hint: Option<LatentFormat>,
    device: Device,
    shared: bool,
) -> Result<Decoder> {
    let names = dialect::translate(tensors.iter().map(|(name, _)| name.as_str()))?;
    let renamed: BTreeMap<String, Tensor> = tensors
        .into_iter()
        .filter_map(|(name, tensor)| Some((names.get(&name)?.clone(), tensor)))
        .collect();
    let family = family_of(&renamed)?;
    if let Some(wanted) = config.family
        && wanted != family
    {
        bail!(
            Weights,
            "expected a VAE of the family {wanted:?}, but the tensors are those of {family:?}"
        );
    }
    sidecar.check(family)?;
    let groups = config.norm_num_groups.or(sidecar.norm_num_groups);
    let groups = groups.unwrap_or(DEFAULT_GROUPS);
    let layers = tiny_layers(&renamed);
    let kind = kind(config.dtype);
    let mut source = Source::new(renamed, kind, device, groups, shared);
    let (chain, channels, scale) = match family {
        VaeFamily::Tiny => tiny::build(&mut source, &layers)?,
        VaeFamily::Wan22 => wan22::build(&mut source)?,
        VaeFamily::Hunyuan => hunyuan::build(&mut source)?,
        VaeFamily::Dc => dc::build(&mut source, sidecar.dc_options()?)?,
        _ => kl::build(&mut source)?,
    };
    let stats = if family == VaeFamily::Flux2 {
        let eps = sidecar.batch_norm_eps.unwrap_or(DEFAULT_BN_EPS);
        Some(kl::patch_stats(&mut source, channels, eps)?)
    } else {
        None
    };
    let has_norms = source.next_norm() > 0;
    let assumed = match config.norm_num_groups.or(sidecar.norm_num_groups) {
        None if has_norms && family != VaeFamily::Wan => {
            format!("; no config.json tells norm_num_groups, taken as {DEFAULT_GROUPS}")
        }
        _ => String::new(),
    };
    source.finish(&format!("{family:?} decoder"))?;
    let format = match family {
        VaeFamily::Tiny => Some(LatentFormat::None),
        VaeFamily::Flux2 => Some(LatentFormat::Flux2),
        VaeFamily::Wan if sidecar.is_qwen_image() => Some(LatentFormat::QwenImage),
        VaeFamily::Wan => Some(LatentFormat::Wan21),
        VaeFamily::Wan22 => sidecar.format().or(Some(LatentFormat::Wan22)),
        VaeFamily::Hunyuan => sidecar.format().or(Some(scaled(HUNYUAN_SCALE))),
        // The models of this family differ only in their config.
        VaeFamily::Dc => sidecar.format(),
        _ => sidecar.format().or(hint),
    };
    Ok(Decoder {
        host: None,
        chain,
        family,
        channels,
        scale,
        range: match family {
            VaeFamily::Tiny => ImageRange::Unit,
            _ => ImageRange::Signed,
        },
        kind,
        device,
        recompute: config.recompute,
        slicing: config.slicing,
        has_norms,
        stats,
        format,
        assumed,
    })
}

fn family_of(tensors: &BTreeMap<String, Tensor>) -> Result<VaeFamily> {
    let rank = tensors.get("decoder.conv_in.weight").map(Tensor::dim);
    let residual = |name: &String| name.contains(".upsampler.");
    if rank == Some(5) {
        return Ok(match tensors.keys().any(residual) {
            true => VaeFamily::Wan22,
            false => VaeFamily::Wan,
        });
    }
    if rank == Some(4) {
        let has = |name: &str| tensors.contains_key(name);
        return Ok(if has("bn.running_mean") {
            VaeFamily::Flux2
        } else if has("decoder.up_blocks.0.conv1.weight") {
            VaeFamily::Hunyuan
        } else if tensors.keys().any(|n| dc::is_name(n)) {
            VaeFamily::Dc
        } else {
            VaeFamily::Kl
        });
    }
    if tensors.keys().any(|n| n.starts_with("decoder.layers.")) {
        return Ok(VaeFamily::Tiny);
    }
    bail!(
        Weights,
        "the decoder is of no known family (AutoencoderKL, FLUX.2, Qwen-Image/Wan 2.1, Wan 2.2, HunyuanImage 2.1, DC-AE, TAESD): it has {}; {INSTEAD}",
        weights::listed(tensors.keys().map(String::as_str), 6)
    )
}

fn scaled(scale: f64) -> LatentFormat {
    LatentFormat::Custom(CustomFormat {
        scale,
        ..CustomFormat::default()
    })
}

fn tiny_layers(tensors: &BTreeMap<String, Tensor>) -> Vec<u32> {
    let numbers = tensors.keys().filter_map(|name| {
        let rest = name.strip_prefix("decoder.layers.")?;
        rest.split('.').next()?.parse().ok()
    });
    let mut layers: Vec<u32> = numbers.collect();
    layers.sort_unstable();
    layers.dedup();
    layers
}

fn script(config: &VaeConfig, file: &Path, device: Device) -> Result<Decoder> {
    match config.family {
        Some(VaeFamily::Torchscript) => {}
        Some(family) => bail!(
            Weights,
            "expected a VAE of the family {family:?}, got a TorchScript archive"
        ),
        None => bail!(
            Config,
            "a TorchScript archive is a program: loading it runs code that is in the file, with all that this process \
             may do. Where you trust whoever made it, set `family` to \"torchscript\"; else take safetensors or a \
             state dict"
        ),
    }
    let Some(channels) = config.latent_channels else {
        bail!(
            Config,
            "vae config: a TorchScript decoder does not tell its latent; set `latent_channels`"
        );
    };
    warn_host!(
        "{}: a TorchScript program, as `family` says; it runs code that is in the file",
        file.display()
    );
    let blocks: Vec<Box<dyn Block>> = vec![Box::new(Script::load(file, device)?)];
    Ok(Decoder {
        host: None,
        chain: Chain(blocks),
        family: VaeFamily::Torchscript,
        channels,
        scale: config.scale_factor.unwrap_or(DEFAULT_SCALE),
        range: config.image_range,
        kind: kind(config.dtype),
        device,
        recompute: config.recompute,
        slicing: config.slicing,
        has_norms: false,
        stats: None,
        format: None,
        assumed: "; it runs code that is in its file".into(),
    })
}

fn kind(precision: Precision) -> Kind {
    match precision {
        Precision::F32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
        Precision::F16 => Kind::Half,
    }
}
