//! `exit` and `fork`, which any thread may call at any time.
//!
//! `exit` destroys libtorch's static objects while other threads may be inside calls. Exit handlers run in the reverse
//! order of their registration, so a handler that is registered after such an object was made runs before the object is
//! destroyed. The handlers here refuse new calls and wait for the calls that are under way. Some static objects are
//! made when something is used for the first time. Therefore a handler is registered after the first uses of every
//! entry point, and not only after the first call.

#[cfg(unix)]
use super::{handle, panics};
use crate::error::{Result, bail};
#[cfg(unix)]
use crate::log;
use crate::nets::onnxruntime;
use crate::worker::{Busy, Own};
use std::cell::Cell;
#[cfg(unix)]
use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::panic::Location;
#[cfg(unix)]
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How long the end of the process waits for calls that are under way.
const PATIENCE: Duration = Duration::from_secs(10);

/// A thread has called `exit`. Calls of other threads are refused.
static ENDING: AtomicBool = AtomicBool::new(false);
/// libtorch's static objects may be destroyed. All calls are refused.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// This process is a forked child, and its parent had loaded ONNX Runtime, whose exit handlers wait for threads that
/// only the parent has.
static STRANDED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread runs the exit handlers.
    static ENDS: Cell<bool> = const { Cell::new(false) };
    /// The locks that are held over a fork.
    #[cfg(unix)]
    static HELD: RefCell<Option<(handle::Held, log::Held)>> = const { RefCell::new(None) };
}

/// A call that is under way.
pub struct Inside {
    _own: Own,
    _busy: Busy,
}

/// Lets a call in, unless the process ends.
pub fn enter() -> Result<Inside> {
    watch_forks();
    let ends = || CLOSED.load(SeqCst) || (ENDING.load(SeqCst) && !ENDS.get());
    // The handler does not wait for calls that are refused here, however often a thread repeats them.
    if !ends() {
        // The call is counted before the flags are read again, and the handler sets the flags before it reads the count.
        // So one of the two sees the other.
        let inside = Inside {
            _own: Own::new(),
            _busy: Busy::new(),
        };
        if !ends() {
            return Ok(inside);
        }
    }
    bail!(
        Exiting,
        "the process is ending: facegrad takes no more calls"
    )
}

/// Registers exit handlers after a successful call of the entry point at `here`. Static objects that the call made are
/// destroyed after these handlers have run.
pub fn worked(here: &'static Location<'static>) {
    static RUNTIME: AtomicBool = AtomicBool::new(false);
    let count = uses(here);
    let new_runtime = onnxruntime::is_loaded() && !RUNTIME.swap(true, SeqCst);
    if count <= 16 || count.is_power_of_two() || new_runtime {
        register();
    }
}

/// How often an entry point was used, this time included; `u32::MAX` where that is not known.
fn uses(here: &'static Location<'static>) -> u32 {
    const SLOTS: usize = 256;
    static SEEN: [(AtomicUsize, AtomicU32); SLOTS] =
        [const { (AtomicUsize::new(0), AtomicU32::new(0)) }; SLOTS];
    let key = std::ptr::from_ref(here).addr();
    for step in 0..SLOTS {
        let (owner, count) = &SEEN[(key / align_of::<Location>() + step) % SLOTS];
        let known = owner
            .compare_exchange(0, key, SeqCst, SeqCst)
            .unwrap_or_else(|owner| owner);
        if known == 0 || known == key {
            return count.fetch_add(1, SeqCst).wrapping_add(1);
        }
    }
    u32::MAX
}

fn register() {
    static FIRST: AtomicBool = AtomicBool::new(true);
    // Handlers run in the reverse order, so the first to be registered is the last to run.
    let last = FIRST.swap(false, SeqCst);
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn on_exit(handler: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
        }
        let argument = std::ptr::without_provenance_mut(usize::from(last));
        // SAFETY: the handler is a function of this library, which is never unloaded (`-z nodelete`).
        unsafe { on_exit(at_exit, argument) };
    }
    #[cfg(not(target_env = "gnu"))]
    {
        extern "C" fn before() {
            end(None, false);
        }
        extern "C" fn finally() {
            end(None, true);
        }
        // SAFETY: as above.
        unsafe { libc::atexit(if last { finally } else { before }) };
    }
}

#[cfg(target_env = "gnu")]
extern "C" fn at_exit(status: c_int, last: *mut c_void) {
    end(Some(status), !last.is_null());
}

/// Waits until no call is under way except those that wait for this thread: where `exit` was called in a callback, that
/// is the call that runs the callback.
fn end(status: Option<c_int>, last: bool) {
    ENDS.set(true);
    ENDING.store(true, SeqCst);
    if last {
        CLOSED.store(true, SeqCst);
    }
    let start = Instant::now();
    while Busy::count() > Own::count() && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
    // The next exit handlers would destroy objects that are in use, or would never return. They are skipped.
    let stuck = Busy::count() > Own::count() || STRANDED.load(SeqCst);
    if let (true, Some(status)) = (stuck, status) {
        // SAFETY: NULL means all streams; `_exit` does not return.
        unsafe {
            libc::fflush(std::ptr::null_mut());
            libc::_exit(status);
        }
    }
}

/// Registers the fork handlers. A child process has only the thread that forked. Without the handlers, locks that other
/// threads held would stay locked in the child, and their calls would count as under way for ever.
#[cfg(unix)]
fn watch_forks() {
    static ONCE: Once = Once::new();
    extern "C" fn before() {
        panics::log_own();
        let held = (handle::hold(), log::hold());
        let _ = HELD.try_with(|slot| slot.replace(Some(held)));
    }
    extern "C" fn parent() {
        let _ = HELD.try_with(RefCell::take);
    }
    extern "C" fn child() {
        Busy::forked();
        log::forked();
        STRANDED.fetch_or(onnxruntime::is_loaded(), SeqCst);
        parent();
    }
    ONCE.call_once(|| {
        // SAFETY: the handlers are functions of this library, which is never unloaded (`-z nodelete`).
        unsafe { libc::pthread_atfork(Some(before), Some(parent), Some(child)) };
    });
}

#[cfg(not(unix))]
fn watch_forks() {}
