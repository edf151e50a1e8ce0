//! Messages to the host. The library never prints. It calls the host's callback where there is one.

use crate::error::shorten;
use once_cell::sync::Lazy;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// How much a message matters. The numbers are those of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    /// Something failed that the caller may not see otherwise.
    Error = 1,
    /// A sample was skipped, or a fallback was used. Training can go on.
    Warn = 2,
    /// A message about something that happens once.
    Info = 3,
    /// Details for finding a fault.
    Debug = 4,
}

/// What receives the messages. It may be called from any thread.
pub type Sink = Arc<dyn Fn(Level, &str) + Send + Sync>;

type Setting = Option<(Level, Sink)>;

static SINK: Lazy<RwLock<Setting>> = Lazy::new(|| RwLock::new(None));

/// How many messages are being delivered.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// How many of them are this thread's.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

/// How long [`set_sink`] waits for the old receiver while it runs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sets the receiver and the least important level that it gets; `None` silences the library. When this returns, the
/// old receiver is not called again. If it runs on another thread, this waits for it, for up to 10 seconds.
pub fn set_sink(sink: Setting) {
    *SINK.write().unwrap_or_else(|e| e.into_inner()) = sink;
    let start = Instant::now();
    while RUNNING.load(SeqCst) > OWN.get() && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Sends one message to the host. Where it quotes a file at length, its middle is left out.
pub fn emit(level: Level, message: &str) {
    struct Running;
    impl Drop for Running {
        fn drop(&mut self) {
            OWN.set(OWN.get().saturating_sub(1));
            RUNNING.fetch_sub(1, SeqCst);
        }
    }
    RUNNING.fetch_add(1, SeqCst);
    OWN.set(OWN.get() + 1);
    let _running = Running;
    let sink = SINK.read().unwrap_or_else(|e| e.into_inner()).clone();
    if let Some((max, sink)) = sink
        && level <= max
    {
        sink(level, &shorten(message));
    }
}

/// The locked setting: no other thread can read or change it meanwhile.
pub type Held = RwLockWriteGuard<'static, Setting>;

/// Locks the setting, for the duration of a fork.
pub fn hold() -> Held {
    SINK.write().unwrap_or_else(|e| e.into_inner())
}

/// In a forked child, forgets the messages of threads that exist only in the parent.
pub fn forked() {
    RUNNING.store(OWN.get(), SeqCst);
}

/// `warn_host!("sample {i}: no face")`
#[cfg(feature = "torch")]
macro_rules! warn_host {
    ($($arg:tt)+) => { $crate::log::emit($crate::log::Level::Warn, &format!($($arg)+)) };
}
#[cfg(feature = "torch")]
pub(crate) use warn_host;
