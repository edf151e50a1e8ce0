//! The error type. Every variant maps to a status code of the C ABI. Every message says what was expected and what
//! came, and, where there is a remedy, what to do.

use std::fmt;

/// What every fallible function of the crate returns.
pub type Result<T> = std::result::Result<T, Error>;

macro_rules! errors {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $text:literal;)+) => {
        /// An error with the sentence that a person reads. The variant decides the status code.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Error {
            $($(#[doc = $doc])+ $name(String),)+
        }

        impl Error {
            /// The status code of the C ABI.
            pub fn status(&self) -> i32 {
                match self { $(Error::$name(_) => $code,)+ }
            }

            /// The sentence for a person.
            pub fn message(&self) -> &str {
                match self { $(Error::$name(message) => message,)+ }
            }

            /// The same error with `context` put before its sentence: `reading a.pth: …`.
            #[must_use]
            pub fn context(self, context: impl fmt::Display) -> Self {
                match self { $(Error::$name(message) => Error::$name(format!("{context}: {message}")),)+ }
            }

            /// The same error with `hint` put behind its sentence: `…; try …`.
            #[must_use]
            pub fn hint(self, hint: impl fmt::Display) -> Self {
                match self { $(Error::$name(message) => Error::$name(format!("{message}; {hint}")),)+ }
            }
        }

        /// The static name of a status code; `unknown` for a code this library never returns.
        pub fn status_name(status: i32) -> &'static str {
            match status {
                0 => "ok",
                $($code => $text,)+
                _ => "unknown",
            }
        }
    };
}

errors! {
    /// A required pointer is NULL.
    Null = 1, "null pointer";
    /// A value is outside what the function takes.
    Argument = 2, "invalid argument";
    /// A struct, flag or feature of a version that this library does not know.
    Unsupported = 3, "unsupported";
    /// A tensor has a dtype that the function does not take.
    Dtype = 4, "wrong dtype";
    /// A tensor has the wrong rank or size.
    Shape = 5, "wrong shape";
    /// A tensor's strides, offset or alignment cannot be used.
    Layout = 6, "wrong layout";
    /// A tensor or a request is for another device than the context's.
    Device = 7, "wrong device";
    /// A configuration cannot be read or holds an unknown key or value.
    Config = 8, "invalid configuration";
    /// A handle was freed, is of another type, or never was one.
    Handle = 9, "invalid handle";
    /// The library was called from inside one of its own callbacks.
    Reentrant = 10, "called from a callback";
    /// The context was made before a fork; its worker does not exist in this process.
    Forked = 11, "context made before fork";
    /// An earlier panic left the context in a state that cannot be trusted.
    Poisoned = 12, "context poisoned";
    /// A C++ exception left a callback of the host.
    Callback = 13, "callback threw";
    /// The process is ending.
    Exiting = 14, "process is ending";
    /// A file cannot be found or read.
    Io = 100, "file cannot be read";
    /// A file is not of the expected kind, or is damaged.
    Format = 101, "file format";
    /// A file asks for more than the reader's limits allow.
    Limit = 102, "file exceeds a limit";
    /// A file's tensors are not those of the network.
    Weights = 103, "weights do not fit the network";
    /// A model uses an operator or a feature that is not implemented.
    Operator = 104, "operator not implemented";
    /// The device is out of memory.
    OutOfMemory = 200, "out of memory";
    /// libtorch reported an error.
    Torch = 201, "libtorch error";
    /// ONNX Runtime is missing or reported an error.
    OnnxRuntime = 202, "ONNX Runtime error";
    /// A defect of this library.
    Internal = 900, "internal error";
    /// A defect of this library that ended in a panic; the context is poisoned.
    Panic = 901, "panic";
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Error {}

#[cfg(feature = "torch")]
impl From<tch::TchError> for Error {
    /// libtorch's text is cut to its first line: what follows is a C++ backtrace.
    fn from(error: tch::TchError) -> Self {
        let text = match &error {
            tch::TchError::Torch(text) => text.clone(),
            other => other.to_string(),
        };
        let line = text
            .lines()
            .find(|l| !l.trim().is_empty())
            .unwrap_or("no text")
            .trim()
            .to_string();
        if ["out of memory", "can't allocate memory", "_ALLOC_FAILED"]
            .iter()
            .any(|word| text.contains(word))
        {
            return Error::OutOfMemory(format!(
                "{line} (try a smaller batch, `recompute`, or bf16)"
            ));
        }
        Error::Torch(line)
    }
}

/// A name from a file or a configuration for an error's text: its first 80 characters, without control characters.
pub(crate) fn brief(text: &str) -> String {
    let mut shown: String = text.chars().take(80).filter(|c| !c.is_control()).collect();
    if text.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}

/// A library's message that may quote its input. If it is long, its middle is left out.
pub(crate) fn shorten(text: &str) -> String {
    const END: usize = 400;
    let count = text.chars().count();
    if count <= 8 * END {
        return text.to_string();
    }
    let start: String = text.chars().take(END).collect();
    let end: String = text.chars().skip(count - END).collect();
    format!("{start} … {end}")
}

/// Returns early with an [`Error`]: `bail!(Shape, "images: expected …, got {shape:?}")`.
macro_rules! bail {
    ($kind:ident, $($arg:tt)+) => {
        return Err($crate::error::Error::$kind(format!($($arg)+)))
    };
}
pub(crate) use bail;
