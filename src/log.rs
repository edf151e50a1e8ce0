//! Messages to the host. The library never prints: it calls the host's callback, or nothing.

use once_cell::sync::Lazy;
use std::sync::{Arc, RwLock};

/// How much a message matters. The numbers are those of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    /// Something was lost or refused that the caller may not see otherwise.
    Error = 1,
    /// A sample was skipped, a fallback taken: training goes on.
    Warn = 2,
    /// One line for something that happens once.
    Info = 3,
    /// Details for finding a fault.
    Debug = 4,
}

/// What receives the messages. It may be called from any thread.
pub type Sink = Arc<dyn Fn(Level, &str) + Send + Sync>;

static SINK: Lazy<RwLock<Option<(Level, Sink)>>> = Lazy::new(|| RwLock::new(None));

/// Sets the receiver and the least important level that it gets; `None` silences the library.
pub fn set_sink(sink: Option<(Level, Sink)>) {
    *SINK.write().unwrap_or_else(|e| e.into_inner()) = sink;
}

/// Sends one message to the host.
pub fn emit(level: Level, message: &str) {
    let sink = SINK.read().unwrap_or_else(|e| e.into_inner()).clone();
    if let Some((max, sink)) = sink
        && level <= max
    {
        sink(level, message);
    }
}

/// `warn_host!("sample {i}: no face")`
#[cfg(feature = "torch")]
macro_rules! warn_host {
    ($($arg:tt)+) => { $crate::log::emit($crate::log::Level::Warn, &format!($($arg)+)) };
}
#[cfg(feature = "torch")]
pub(crate) use warn_host;
