use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

/// A network by its file alone, or with all the keys of its configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice<T> {
    /// The file.
    Path(PathBuf),
    /// A whole configuration.
    Config(Box<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Choice<T> {
    /// By hand, since serde's untagged enums lose what is wrong with the object.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = Choice<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a path or an object")
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<Self::Value, E> {
                PathBuf::deserialize(StrDeserializer::new(path)).map(Choice::Path)
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(|c| Choice::Config(Box::new(c)))
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
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
