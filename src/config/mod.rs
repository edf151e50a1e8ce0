//! One serde struct per object, read from the host's JSON text. An unknown key is an error that names the nearest
//! known key, so that no misspelt option goes unnoticed.

mod backbone;
mod choice;
mod context;
mod detector;
mod evaluator;
mod latent;
mod levels;
mod loss;
mod path;
mod runtime;
mod vae;
mod weight;

pub use backbone::{BackboneConfig, ColorOrder};
pub use choice::Choice;
pub use context::ContextConfig;
pub use detector::{DetectionSize, DetectorConfig, FaceChoice};
pub use evaluator::{EvaluatorConfig, Pooling, RecogniserChoice};
pub use latent::{
    ClampPolicy, CustomFormat, LatentFormat, Packing, Prediction, PredictionConfig, Rect, Time,
};
pub use levels::{LevelWeights, MAX_LEVELS};
pub use loss::{
    AlignMode, DecodeMode, DetectorChoice, Locate, LossConfig, LossType, NormStats, ReferenceMode,
    TimeWeight, VaeChoice,
};
pub use path::from_bytes as path_from_bytes;
pub use runtime::{Engine, Provider, Runtime};
pub use vae::{HostVaeConfig, ImageRange, Precision, Recompute, VaeConfig, VaeFamily};
pub use weight::{MAX_WEIGHT, is_weight};

use crate::error::{Error, Result, bail, brief, shorten};
use serde::de::DeserializeOwned;

/// The most bytes of a configuration: more than any needs, with a model's `config.json` inside it.
pub const MAX_BYTES: usize = 1 << 20;

/// Reads one configuration of up to [`MAX_BYTES`]. `what` names it in errors (`detector config`).
/// NULL, empty and blank text stand for `{}`.
pub fn parse<T: DeserializeOwned>(what: &str, json: &str) -> Result<T> {
    let text = match json.trim() {
        "" => "{}",
        text => text,
    };
    if text.len() > MAX_BYTES {
        bail!(
            Config,
            "{what}: {} bytes; at most {MAX_BYTES} are read",
            text.len()
        );
    }
    // serde would read a list as the fields in order.
    if !text.starts_with('{') {
        bail!(
            Config,
            "{what}: expected a JSON object, got {}",
            brief(text)
        );
    }
    serde_json::from_str(text)
        .map_err(|e| Error::Config(format!("{what}: {}", explain(&e.to_string()))))
}

/// The keys of a configuration, taken from serde's error for an unknown key.
pub fn keys<T: DeserializeOwned>() -> Vec<String> {
    let Err(refusal) = serde_json::from_str::<T>(r#"{"": 0}"#) else {
        return vec![];
    };
    let text = refusal.to_string();
    let names = text.split('`').skip(1).step_by(2).skip(1);
    names.map(str::to_string).collect()
}

/// serde's "unknown field `x`, expected one of `a`, `b`" with the nearest known name added.
fn explain(text: &str) -> String {
    let quoted: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    let unknown = text.starts_with("unknown field") || text.starts_with("unknown variant");
    let Some((came, known)) = quoted.split_first().filter(|_| unknown) else {
        return shorten(text);
    };
    let near = |name: &&str| {
        // Two names of very different length are not compared, because comparing a long one takes long.
        let allowed = name.len().max(came.len()) / 2;
        (came.len() <= 2 * name.len())
            .then(|| strsim::damerau_levenshtein(came, name))
            .filter(|&distance| distance <= allowed)
    };
    let nearest = known
        .iter()
        .filter_map(|name| Some((near(name)?, name)))
        .min();
    let text = shorten(&text.replacen(came, &brief(came), 1));
    match nearest {
        Some((_, name)) => format!("{text} (did you mean `{name}`?)"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_key_names_the_nearest() {
        let error = parse::<DetectorConfig>("detector config", r#"{"path":"a","treshold":0.4}"#)
            .unwrap_err();
        assert_eq!(error.status(), 8);
        assert!(
            error.message().contains("did you mean `threshold`?"),
            "{error}"
        );
    }

    #[test]
    fn a_key_of_megabytes_is_refused_at_once_and_in_short() {
        let refused = |json: &str| {
            let start = std::time::Instant::now();
            let error = parse::<DetectorConfig>("detector config", json).unwrap_err();
            assert!(error.message().len() < 2000, "{}", error.message().len());
            (error.status(), start.elapsed().as_secs_f64())
        };
        let long = "9".repeat(1_000_000);
        let (_, value) = refused(&format!(r#"{{"path":"a","threshold":"{long}"}}"#));
        for length in [200, 1_000_000, 10_000_000] {
            let (status, key) = refused(&format!(r#"{{"path":"a","{}":0.4}}"#, "k".repeat(length)));
            assert_eq!(status, 8);
            // Comparing such a key with every known key would take hundreds of times as long as reading it.
            assert!(
                key < 20.0 * value + 0.01,
                "{length}: {key} s, a value {value} s"
            );
        }
    }

    #[test]
    fn keys_are_the_fields() {
        let keys = keys::<LossConfig>();
        assert!(keys.len() > 20, "{keys:?}");
        assert_eq!(keys[..2], ["use_face_loss", "face_loss_weight"]);
    }

    #[test]
    fn the_documentation_lists_exactly_the_keys_of_a_loss() {
        let page = include_str!("../../docs/configuration.md");
        let (of_the_loss, _) = page.split_once("## The VAE").unwrap();
        let mut listed: Vec<&str> = of_the_loss
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once(" | "))
            .flat_map(|(cell, _)| cell.split('`').step_by(2))
            .filter(|name| !name.contains(','))
            .collect();
        let mut keys = keys::<LossConfig>();
        listed.sort_unstable();
        keys.sort_unstable();
        assert_eq!(listed, keys);
    }

    #[test]
    fn unknown_value_names_the_nearest() {
        let error = parse::<DetectorConfig>("detector config", r#"{"path":"a","engine":"troch"}"#)
            .unwrap_err();
        assert!(error.message().contains("did you mean `torch`?"), "{error}");
    }
}
