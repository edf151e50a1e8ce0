//! The names of arrays, without what checkpoints wrap around them.

use super::Weights;

/// Wrappers that training scripts and `DataParallel` put around a network's own names.
const WRAPPERS: [&str; 10] = [
    "state_dict.",
    "model_state_dict.",
    "params_ema.",
    "params.",
    "model.",
    "module.",
    "backbone.",
    "net.",
    "network.",
    "encoder.",
];

/// Removes wrappers, one after the other, until a name in `anchors` (`conv1.weight`) is there.
/// Arrays outside the wrapper, such as an optimiser's, are left out. Without any anchor the arrays
/// come back as they are.
pub fn strip(mut weights: Weights, anchors: &[&str]) -> Weights {
    let anchored = |weights: &Weights| anchors.iter().any(|anchor| weights.contains_key(*anchor));
    // A wrapper inside a wrapper inside a wrapper is as deep as they come.
    for _ in 0..4 {
        if anchored(&weights) {
            return weights;
        }
        let inside = |wrapper: &&&str| {
            anchors.iter().any(|anchor| {
                weights
                    .keys()
                    .any(|name| name.starts_with(**wrapper) && name.ends_with(anchor))
            })
        };
        let Some(wrapper) = WRAPPERS.iter().find(inside) else {
            return weights;
        };
        weights = take_prefix(weights, wrapper);
    }
    weights
}

/// The arrays whose names start with `prefix`, without it.
pub fn take_prefix(weights: Weights, prefix: &str) -> Weights {
    weights
        .into_iter()
        .filter_map(|(name, array)| Some((name.strip_prefix(prefix)?.to_string(), array)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Array, Dtype};

    #[test]
    fn wrappers_come_off_one_by_one() {
        let array = || Array {
            dtype: Dtype::U8,
            shape: vec![0],
            data: vec![],
        };
        let names = [
            "state_dict.module.backbone.conv1.weight",
            "state_dict.module.backbone.fc.bias",
            "optimizer.state.0",
        ];
        let wrapped = names.iter().map(|n| (n.to_string(), array())).collect();
        let plain = strip(wrapped, &["conv1.weight"]);
        assert_eq!(
            plain.keys().collect::<Vec<_>>(),
            ["conv1.weight", "fc.bias"]
        );
    }
}
