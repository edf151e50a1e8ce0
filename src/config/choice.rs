use super::path::PathText;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::path::PathBuf;

/// A network by its file alone, or with all the keys of its configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice<T> {
    /// The file.
    Path(PathBuf),
    /// A whole configuration.
    Config(Box<T>),
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Choice<T> {
    /// Written by hand, because the errors of serde's untagged enums do not say what is wrong with the object.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let json = raw.get();
        let read = match json.as_bytes().first() {
            Some(b'"') => serde_json::from_str(json).map(|PathText(path)| Choice::Path(path)),
            Some(b'{') => serde_json::from_str(json).map(|c| Choice::Config(Box::new(c))),
            _ => {
                let start: String = json.chars().take(20).collect();
                return Err(D::Error::custom(format!(
                    "expected a path or an object, got {start}"
                )));
            }
        };
        // Without its line and column, which would be those of the object and not of the whole text.
        read.map_err(|e| {
            let text = e.to_string();
            D::Error::custom(text.split(" at line ").next().unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{EvaluatorConfig, parse};

    #[test]
    fn a_wrong_key_of_the_object_is_named() {
        let parsed = |json: &str| parse::<EvaluatorConfig>("evaluator config", json);
        assert!(parsed(r#"{"detector": "a.onnx", "recogniser": {"path": "b.onnx"}}"#).is_ok());
        let error = parsed(r#"{"detector": {"path": "a", "treshold": 1}}"#).unwrap_err();
        assert!(
            error.message().contains("did you mean `threshold`?"),
            "{error}"
        );
        let error = parsed(r#"{"detector": 3}"#).unwrap_err();
        assert!(error.message().contains("a path or an object"), "{error}");
    }
}
