//! The names of arrays, without the prefixes of checkpoints and the parts that torch's wrappers insert.

use super::Weights;
use crate::error::brief;
use std::collections::HashMap;

/// Parts that torch's own wrappers insert anywhere in a name: `torch.compile`, `DataParallel` and DDP, FSDP and
/// activation checkpointing.
const WRAPPERS: [&str; 4] = [
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// A name without the parts of torch's wrappers.
pub fn bare(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').filter(|p| !WRAPPERS.contains(p)).collect();
    parts.join(".")
}

/// The prefix of a network's names in a checkpoint (`state_dict.backbone.`, often empty): the shortest before one of
/// the names in `anchors`. Averaged weights (`ema`) are used only where there are no others. `None` where no name is an
/// anchor.
pub fn prefix<'a>(names: impl Iterator<Item = &'a str>, anchors: &[&str]) -> Option<String> {
    let prefixes = names.filter_map(|name| {
        let anchor = anchors.iter().find(|anchor| name.ends_with(**anchor))?;
        let prefix = name.strip_suffix(*anchor)?;
        (prefix.is_empty() || prefix.ends_with('.')).then_some(prefix)
    });
    let averaged = |prefix: &str| prefix.split('.').any(|part| part.contains("ema"));
    prefixes
        .min_by_key(|prefix| (averaged(prefix), prefix.len(), prefix.to_string()))
        .map(str::to_string)
}

/// The arrays of the network that has one of the names in `anchors` (`conv1.weight`), by the network's own names. Arrays
/// outside it, such as an optimiser's, are left out. Without any anchor the arrays come back as they are.
pub fn strip(weights: Weights, anchors: &[&str]) -> Weights {
    let short: Vec<(String, String)> = weights.keys().map(|n| (n.clone(), bare(n))).collect();
    let Some(prefix) = prefix(short.iter().map(|(_, bare)| bare.as_str()), anchors) else {
        return weights
            .into_iter()
            .map(|(name, array)| (bare(&name), array))
            .collect();
    };
    let anchor = |name: &str| {
        let rest = name.strip_prefix(&prefix)?;
        anchors.iter().find(|anchor| rest == **anchor)
    };
    // The prefix of the anchor in the file, with the wrappers' parts, is the prefix of the whole network.
    let head = short.iter().find_map(|(full, bare)| {
        let first = anchor(bare)?.split('.').next()?;
        let parts: Vec<&str> = full.split('.').collect();
        let at = parts.iter().rposition(|part| *part == first)?;
        Some(
            parts[..at]
                .iter()
                .map(|part| format!("{part}."))
                .collect::<String>(),
        )
    });
    let head = head.unwrap_or_default();
    let inside = weights
        .into_iter()
        .filter(|(name, _)| name.starts_with(&head));
    let bared = inside.map(|(name, array)| (bare(&name), array)).collect();
    take_prefix(bared, &prefix)
}

/// The arrays whose names start with `prefix`, without it.
pub fn take_prefix(weights: Weights, prefix: &str) -> Weights {
    weights
        .into_iter()
        .filter_map(|(name, array)| Some((name.strip_prefix(prefix)?.to_string(), array)))
        .collect()
}

/// The first names of a file, for an error: at most `count`, and only one of all that share their first part, because
/// the first names of a large file are mostly alike.
pub fn listed<'a>(names: impl Iterator<Item = &'a str>, count: usize) -> String {
    let mut groups: Vec<(&str, usize)> = vec![];
    let mut known = HashMap::new();
    for name in names {
        let head = name.split('.').next().unwrap_or(name);
        let at = *known.entry(head).or_insert(groups.len());
        match groups.get_mut(at) {
            Some((_, size)) => *size += 1,
            None => groups.push((name, 1)),
        }
    }
    let more = groups.len().saturating_sub(count);
    let mut shown: Vec<String> = groups
        .iter()
        .take(count)
        .map(|(name, size)| match size {
            1 => brief(name),
            _ => format!("{} and {} more like it", brief(name), size - 1),
        })
        .collect();
    match (shown.is_empty(), more) {
        (true, _) => return "no tensors".into(),
        (false, 0) => {}
        (false, _) => shown.push(format!("and {more} other groups")),
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Array, Dtype};

    fn plain(names: &[&str]) -> Vec<String> {
        let array = || Array {
            dtype: Dtype::U8,
            shape: vec![0],
            data: vec![],
        };
        let wrapped = names.iter().map(|n| (n.to_string(), array())).collect();
        let plain = strip(wrapped, &["conv1.weight"]);
        plain.into_keys().collect()
    }

    #[test]
    fn wrappers_come_off() {
        let want = ["conv1.weight", "fc.bias"];
        for prefix in [
            "",
            "module.",
            "_orig_mod.",
            "module._orig_mod.",
            "state_dict.module.backbone.",
            "state_dict_backbone.",
            "state_dict.features.module.",
            "ema.",
            "model.net._fsdp_wrapped_module.",
        ] {
            let names = ["conv1.weight", "fc.bias"].map(|name| format!("{prefix}{name}"));
            let beside = ["optimizer.state.0", "state_dict_softmax_fc.weight"];
            let beside = beside.into_iter().filter(|_| !prefix.is_empty());
            let all: Vec<&str> = names.iter().map(String::as_str).chain(beside).collect();
            assert_eq!(plain(&all), want, "{prefix}");
        }
        assert_eq!(
            plain(&["conv1._orig_mod.weight", "fc.module.bias"]),
            want,
            "parts of a network may be wrapped"
        );
    }

    #[test]
    fn trained_weights_come_before_averaged_ones() {
        let names = [
            "ema.conv1.weight",
            "state_dict.conv1.weight",
            "state_dict.a",
        ];
        assert_eq!(plain(&names), ["a", "conv1.weight"]);
    }

    #[test]
    fn errors_list_groups() {
        let names = ["a.x", "a.y", "b.z"];
        assert_eq!(listed(names.into_iter(), 4), "a.x and 1 more like it, b.z");
        assert_eq!(
            listed(names.into_iter(), 1),
            "a.x and 1 more like it, and 1 other groups"
        );
        assert_eq!(listed([].into_iter(), 4), "no tensors");
    }
}
