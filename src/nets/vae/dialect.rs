//! Translates the names that other projects give to tensors into those of diffusers' AutoencoderKL and
//! AutoencoderTiny. The decoders of the other classes use these names too.
//!
//! Sources: diffusers `loaders/single_file_utils.py`, ComfyUI `diffusers_convert.py`, the
//! original LDM, FLUX and Wan repositories.

use crate::config::LatentFormat;
use crate::error::{Result, bail};
use crate::weights;
use std::collections::{BTreeMap, BTreeSet};

/// The prefixes of the VAE in single-file checkpoints.
const PREFIXES: [&str; 2] = ["first_stage_model.", "vae."];

/// Names of decoders' tensors. Every decoder has one of them.
const ANCHORS: [&str; 6] = [
    "decoder.conv_in.weight",
    "decoder.conv1.weight",
    "decoder.layers.0.weight",
    "decoder.layers.1.weight",
    "taesd_decoder.1.weight",
    "decoder.1.weight",
];

/// The decoder's tensors among a set of names: (name in the file, diffusers' name). Encoders, text encoders, diffusion
/// models and the prefixes of checkpoints are left out.
///
/// # Errors
/// `Weights` when no decoder is found or two names mean the same tensor.
pub(super) fn translate<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
) -> Result<BTreeMap<String, String>> {
    let bare: Vec<(&str, String)> = names.map(|full| (full, weights::bare(full))).collect();
    let Some(prefix) = prefix(bare.iter().map(|(_, name)| name.as_str())) else {
        bail!(
            Weights,
            "no VAE decoder found: expected names such as decoder.conv_in.weight, decoder.layers.0.weight or first_stage_model.decoder.…, got {}",
            weights::listed(bare.iter().map(|(full, _)| *full), 6)
        );
    };
    let short: Vec<(&str, &str)> = bare
        .iter()
        .filter_map(|(full, name)| Some((*full, name.strip_prefix(&*prefix)?)))
        .filter(|(_, name)| is_decoder(name) || is_companion(name))
        .collect();
    let shape = Shape::of(short.iter().map(|(_, name)| *name));
    let mut result = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (full, name) in short {
        let translated = shape.translate(name);
        if !seen.insert(translated.clone()) {
            bail!(
                Weights,
                "two tensors of the file stand for {translated}; the second is {full}"
            );
        }
        result.insert(full.to_string(), translated);
    }
    Ok(result)
}

/// The prefix of the decoder's names. In a checkpoint, the VAE is preferred to any other network that has a decoder.
fn prefix<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
    let of_vae = |name: &&str| {
        let part =
            |prefix: &&str| name.starts_with(*prefix) || name.contains(&format!(".{prefix}"));
        PREFIXES.iter().any(part)
    };
    let named = weights::prefix(names.clone().filter(of_vae), &ANCHORS);
    named.or_else(|| {
        let own = weights::prefix(names.clone(), &ANCHORS);
        // The names in a TAESD decoder's own file begin with a number.
        own.or_else(|| names.clone().all(bare_tiny).then(String::new))
    })
}

/// Names that belong to a decoder in any dialect.
fn is_decoder(name: &str) -> bool {
    let rest = ["decoder.", "taesd_decoder."]
        .into_iter()
        .find_map(|p| name.strip_prefix(p));
    rest.is_some() || bare_tiny(name)
}

/// A TAESD decoder's own file: `1.weight`, `3.conv.0.weight`.
fn bare_tiny(name: &str) -> bool {
    name.split_once('.')
        .is_some_and(|(index, _)| index.parse::<u32>().is_ok())
}

/// The latent format that a name of another network in a single-file checkpoint tells.
pub(super) fn format_hint(name: &str) -> Option<LatentFormat> {
    const HINTS: [(&str, LatentFormat); 4] = [
        ("conditioner.embedders.", LatentFormat::Sdxl),
        ("cond_stage_model.", LatentFormat::Sd15),
        ("model.diffusion_model.joint_blocks.", LatentFormat::Sd3),
        ("model.diffusion_model.double_blocks.", LatentFormat::Flux),
    ];
    let name = weights::bare(name);
    let inner = name.strip_prefix("state_dict.").unwrap_or(&name);
    let found = HINTS.iter().find(|(prefix, _)| inner.starts_with(prefix));
    found.map(|(_, format)| format.clone())
}

/// Whether a name outside the decoder is needed for decoding.
fn is_companion(name: &str) -> bool {
    ["post_quant_conv.", "conv2.", "bn.running_"]
        .iter()
        .any(|p| name.starts_with(p))
}

/// What the renaming of one tensor needs to know about all names.
struct Shape {
    /// Up blocks of an LDM file, which counts them from the output.
    ldm_levels: usize,
    /// Positions in Wan's flat `decoder.upsamples` that end an up block.
    wan_ends: Vec<usize>,
    wan: bool,
}

impl Shape {
    fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut shape = Shape {
            ldm_levels: 0,
            wan_ends: vec![],
            wan: false,
        };
        for name in names {
            let parts: Vec<&str> = name.split('.').collect();
            match parts.as_slice() {
                ["decoder", "up", level, ..] => {
                    let levels = level.parse::<usize>().map_or(0, |n| n.saturating_add(1));
                    shape.ldm_levels = shape.ldm_levels.max(levels);
                }
                ["decoder", "upsamples", at, "resample", "1", "weight"] => {
                    shape.wan = true;
                    shape.wan_ends.extend(at.parse::<usize>().ok());
                }
                ["decoder", "middle" | "upsamples" | "head", ..] => shape.wan = true,
                _ => {}
            }
        }
        shape.wan_ends.sort_unstable();
        shape
    }

    fn translate(&self, name: &str) -> String {
        let parts: Vec<&str> = name.split('.').collect();
        let known = if self.wan {
            self.wan(&parts)
        } else {
            self.ldm(&parts).or_else(|| tiny(&parts))
        };
        known.unwrap_or_else(|| name.to_string())
    }

    fn ldm(&self, parts: &[&str]) -> Option<String> {
        Some(match parts {
            ["decoder", "up", level, "block", j, rest @ ..] => {
                let i = self.flipped(level)?;
                format!("decoder.up_blocks.{i}.resnets.{j}.{}", resnet(rest))
            }
            ["decoder", "up", level, "upsample", "conv", leaf] => {
                let i = self.flipped(level)?;
                format!("decoder.up_blocks.{i}.upsamplers.0.conv.{leaf}")
            }
            ["decoder", "mid", "block_1", rest @ ..] => {
                format!("decoder.mid_block.resnets.0.{}", resnet(rest))
            }
            ["decoder", "mid", "block_2", rest @ ..] => {
                format!("decoder.mid_block.resnets.1.{}", resnet(rest))
            }
            ["decoder", "mid", "attn_1", layer, leaf] => {
                format!("decoder.mid_block.attentions.0.{}.{leaf}", attention(layer))
            }
            // Wan's attention has a `norm.gamma`, older diffusers' `query`, `proj_attn`.
            ["decoder", "mid_block", "attentions", "0", layer, leaf] if *layer != "norm" => {
                format!("decoder.mid_block.attentions.0.{}.{leaf}", attention(layer))
            }
            ["decoder", "norm_out", leaf] => format!("decoder.conv_norm_out.{leaf}"),
            [
                "decoder",
                "up_blocks",
                i,
                "upsamplers",
                "0",
                "resample",
                "1",
                leaf,
            ] => {
                format!("decoder.up_blocks.{i}.upsamplers.0.conv.{leaf}")
            }
            // Wan 2.2, whose up blocks have one upsampler each.
            [
                "decoder",
                "up_blocks",
                i,
                "upsampler",
                "resample",
                "1",
                leaf,
            ] => {
                format!("decoder.up_blocks.{i}.upsampler.conv.{leaf}")
            }
            // BFL's FLUX.2 file keeps it inside the decoder.
            ["decoder", "post_quant_conv", leaf] => format!("post_quant_conv.{leaf}"),
            _ => return None,
        })
    }

    fn flipped(&self, level: &str) -> Option<usize> {
        self.ldm_levels
            .checked_sub(1)?
            .checked_sub(level.parse().ok()?)
    }

    fn wan(&self, parts: &[&str]) -> Option<String> {
        Some(match parts {
            ["conv2", leaf] => format!("post_quant_conv.{leaf}"),
            ["decoder", "conv1", leaf] => format!("decoder.conv_in.{leaf}"),
            ["decoder", "middle", "0", rest @ ..] => {
                format!("decoder.mid_block.resnets.0.{}", wan_resnet(rest))
            }
            ["decoder", "middle", "1", rest @ ..] => {
                format!("decoder.mid_block.attentions.0.{}", rest.join("."))
            }
            ["decoder", "middle", "2", rest @ ..] => {
                format!("decoder.mid_block.resnets.1.{}", wan_resnet(rest))
            }
            ["decoder", "head", "0", leaf] => format!("decoder.conv_norm_out.{leaf}"),
            ["decoder", "head", "2", leaf] => format!("decoder.conv_out.{leaf}"),
            // Wan 2.2: up blocks are lists in a list.
            ["decoder", "upsamples", i, "upsamples", j, rest @ ..] => match rest {
                ["resample", "1", leaf] => format!("decoder.up_blocks.{i}.upsampler.conv.{leaf}"),
                ["time_conv", leaf] => format!("decoder.up_blocks.{i}.upsampler.time_conv.{leaf}"),
                _ => format!("decoder.up_blocks.{i}.resnets.{j}.{}", wan_resnet(rest)),
            },
            ["decoder", "upsamples", at, rest @ ..] => {
                let at: usize = at.parse().ok()?;
                let block = self.wan_ends.partition_point(|&end| end < at);
                let first = match block.checked_sub(1).and_then(|b| self.wan_ends.get(b)) {
                    Some(end) => end + 1,
                    None => 0,
                };
                if self.wan_ends.binary_search(&at).is_ok() {
                    let leaf = match rest {
                        ["resample", "1", leaf] => format!("conv.{leaf}"),
                        _ => rest.join("."),
                    };
                    format!("decoder.up_blocks.{block}.upsamplers.0.{leaf}")
                } else {
                    let j = at.checked_sub(first)?;
                    format!("decoder.up_blocks.{block}.resnets.{j}.{}", wan_resnet(rest))
                }
            }
            _ => return None,
        })
    }
}

fn resnet(rest: &[&str]) -> String {
    match rest {
        ["nin_shortcut", leaf] => format!("conv_shortcut.{leaf}"),
        _ => rest.join("."),
    }
}

fn wan_resnet(rest: &[&str]) -> String {
    match rest {
        ["residual", "0", leaf] => format!("norm1.{leaf}"),
        ["residual", "2", leaf] => format!("conv1.{leaf}"),
        ["residual", "3", leaf] => format!("norm2.{leaf}"),
        ["residual", "6", leaf] => format!("conv2.{leaf}"),
        ["shortcut", leaf] => format!("conv_shortcut.{leaf}"),
        _ => rest.join("."),
    }
}

/// LDM's and older diffusers' names of the attention layers.
fn attention(layer: &str) -> &str {
    match layer {
        "norm" => "group_norm",
        "q" | "query" => "to_q",
        "k" | "key" => "to_k",
        "v" | "value" => "to_v",
        "proj_out" | "proj_attn" => "to_out.0",
        other => other,
    }
}

/// TAESD's sequential numbers: `decoder.layers.N`, `taesd_decoder.N`, `decoder.N` or `N`.
fn tiny(parts: &[&str]) -> Option<String> {
    let rest = match parts {
        ["decoder", "layers", rest @ ..] | ["taesd_decoder" | "decoder", rest @ ..] => rest,
        _ => parts,
    };
    let (index, leaf) = rest.split_first()?;
    index.parse::<u32>().ok()?;
    Some(format!("decoder.layers.{index}.{}", leaf.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_up_blocks_are_translated_in_linear_time() {
        let names: Vec<String> = (0..100_000)
            .map(|at| format!("decoder.upsamples.{at}.resample.1.weight"))
            .chain(["decoder.conv1.weight".to_string()])
            .collect();
        let start = std::time::Instant::now();
        let translated = translate(names.iter().map(String::as_str)).unwrap();
        assert_eq!(
            translated["decoder.upsamples.99999.resample.1.weight"],
            "decoder.up_blocks.99999.upsamplers.0.conv.weight"
        );
        // The square of their number takes minutes.
        assert!(start.elapsed().as_secs() < 20);
    }
}
