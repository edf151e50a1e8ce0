//! Paths in JSON. JSON is Unicode; the name of a file may be any bytes.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::path::PathBuf;

/// A path. In JSON, a byte that is not UTF-8 is written as `\udcXX`. Python's `json.dumps` writes it so, because
/// Python decodes paths with `surrogateescape` (PEP 383).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PathText(pub PathBuf);

impl<'de> Deserialize<'de> for PathText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = PathText;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a path")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(PathText(text.into()))
            }

            /// serde_json passes a lone surrogate on as bytes, encoded as UTF-8 would encode it.
            fn visit_bytes<E: Error>(self, text: &[u8]) -> Result<Self::Value, E> {
                from_bytes(unescape(text)).map(PathText).map_err(E::custom)
            }
        }

        deserializer.deserialize_bytes(Text)
    }
}

/// For a field: `#[serde(deserialize_with = "path")]`.
pub(super) fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    PathText::deserialize(deserializer).map(|path| path.0)
}

/// [`path`] for a field that may be null.
pub(super) fn optional_path<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PathBuf>, D::Error> {
    Ok(Option::<PathText>::deserialize(deserializer)?.map(|path| path.0))
}

/// Replaces the surrogates U+DC80 to U+DCFF by the bytes that they stand for.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (0xED, [middle @ (0xB2 | 0xB3), last @ 0x80..=0xBF, tail @ ..]) => {
                bytes.push((middle << 6) | (last & 0x3F));
                tail
            }
            _ => {
                bytes.push(*first);
                tail
            }
        };
    }
    bytes
}

/// A path from the bytes of its name. On other systems than Unix they must be UTF-8.
pub fn from_bytes(bytes: Vec<u8>) -> Result<PathBuf, String> {
    #[cfg(unix)]
    return Ok(PathBuf::from(
        <std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes),
    ));
    #[cfg(not(unix))]
    String::from_utf8(bytes)
        .map(PathBuf::from)
        .map_err(|_| "expected a path in UTF-8".into())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_name_of_any_bytes_comes_through_json() {
        let bytes = |json: &str| {
            let path: PathText = serde_json::from_str(json).unwrap();
            path.0.as_os_str().as_bytes().to_vec()
        };
        assert_eq!(bytes(r#""/a/\u00e9.pth""#), "/a/é.pth".as_bytes());
        assert_eq!(bytes(r#""/a/\udcff\udc80b""#), b"/a/\xff\x80b");
        assert_eq!(bytes(r#""\ud83d\ude00""#), "😀".as_bytes());
        assert_eq!(bytes("\"\u{d7ff}\""), "\u{d7ff}".as_bytes());
    }
}
