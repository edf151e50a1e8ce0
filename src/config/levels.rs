//! Weights of a recogniser's levels.

use super::weight::{MAX_WEIGHT, is_weight};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// The most levels: `facegrad_result` of the C ABI has room for so many.
pub const MAX_LEVELS: usize = 8;

/// Names with their weights, in the order in which they are written.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelWeights(pub Vec<(String, f64)>);

impl<'de> Deserialize<'de> for LevelWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InOrder)
    }
}

impl Serialize for LevelWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, weight)| (name, weight)))
    }
}

struct InOrder;

impl<'de> Visitor<'de> for InOrder {
    type Value = LevelWeights;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of weights by level, such as {\"layer4\": 0.4, \"embedding\": 1}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LevelWeights, A::Error> {
        let mut all: Vec<(String, f64)> = vec![];
        while let Some((name, weight)) = map.next_entry::<String, f64>()? {
            if !is_weight(weight) {
                let text = format!(
                    "levels: {name}: expected a weight from 0 to {MAX_WEIGHT:e}, got {weight:?}"
                );
                return Err(A::Error::custom(text));
            }
            if all.iter().any(|(known, _)| *known == name) {
                return Err(A::Error::custom(format!("levels: {name} is there twice")));
            }
            all.push((name, weight));
        }
        if all.is_empty() || all.len() > MAX_LEVELS {
            let text = format!(
                "levels: expected 1 to {MAX_LEVELS} levels, got {}",
                all.len()
            );
            return Err(A::Error::custom(text));
        }
        Ok(LevelWeights(all))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::LossConfig;

    #[test]
    fn levels_keep_their_order_and_are_checked() {
        let levels = |json: &str| LossConfig::parse(&format!(r#"{{"levels": {json}}}"#));
        let read = levels(r#"{"layer4": 0.4, "embedding": 1, "layer1": 0.1}"#).unwrap();
        let names: Vec<String> = read.levels.unwrap().0.into_iter().map(|l| l.0).collect();
        assert_eq!(names, ["layer4", "embedding", "layer1"]);
        for (bad, text) in [
            ("{}", "1 to 8"),
            (r#"{"a": -1}"#, "a weight from 0 to 1e30, got -1.0"),
            (r#"{"a": 1, "a": 2}"#, "twice"),
            ("[1]", "weights by level"),
        ] {
            let error = levels(bad).unwrap_err();
            assert!(error.to_string().contains(text), "{bad}: {error}");
        }
    }
}
