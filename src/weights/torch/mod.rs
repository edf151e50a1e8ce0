//! torch's own files, `.pth` and `.pt`: the zip format since 1.6, and the format before. Both hold a
//! pickle, which is a program. [`pickle`] runs the few instructions that torch writes, knows the few
//! names that a state dict needs, and refuses everything else.

mod flatten;
mod legacy;
mod pickle;
mod zip;

pub use legacy::read as read_legacy;
pub use zip::{kind as zip_kind, read as read_zip};

use super::Dtype;
use std::rc::Rc;

/// A storage that a pickle mentions: a flat buffer, kept beside the pickle.
#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    /// Its name in the file.
    pub key: Rc<str>,
    /// Element type; `None` for untyped bytes.
    pub dtype: Option<Dtype>,
    /// How many elements it has (bytes where untyped).
    pub length: usize,
}

/// A tensor that a pickle makes: a strided window into a storage.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorRef {
    /// Where its elements are.
    pub storage: Rc<Storage>,
    /// First element.
    pub offset: usize,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Distances in elements.
    pub strides: Vec<usize>,
}
