//! Arguments from C: strings and structs that may be older or newer than the library.

use crate::config::{parse, path_from_bytes};
use crate::error::{Error, Result, bail};
use serde::de::DeserializeOwned;
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
use std::path::PathBuf;

/// A required string.
///
/// # Safety
/// `text` is NULL or a NUL-terminated string.
pub unsafe fn text(argument: &str, text: *const c_char) -> Result<String> {
    // SAFETY: the caller's promise is the same.
    match unsafe { optional_text(argument, text) }? {
        Some(text) => Ok(text),
        None => bail!(Null, "{argument}: expected a string, got NULL"),
    }
}

/// A string or NULL.
///
/// # Safety
/// `text` is NULL or a NUL-terminated string.
pub unsafe fn optional_text(argument: &str, text: *const c_char) -> Result<Option<String>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, and the caller promises the terminator.
    let bytes = unsafe { CStr::from_ptr(text) };
    let text = bytes
        .to_str()
        .map_err(|_| Error::Argument(format!("{argument}: expected UTF-8")))?;
    Ok(Some(text.to_string()))
}

/// An optional configuration in JSON. NULL gives the defaults. `what` names it in errors.
///
/// # Safety
/// `json` is NULL or a NUL-terminated string.
pub unsafe fn config<T: DeserializeOwned>(what: &str, json: *const c_char) -> Result<T> {
    // SAFETY: the caller's promise is the same.
    let json = unsafe { optional_text("config", json) }?.unwrap_or_default();
    parse(what, &json)
}

/// A required path, of any bytes but NUL.
///
/// # Safety
/// `path` is NULL or a NUL-terminated string.
pub unsafe fn path(argument: &str, path: *const c_char) -> Result<PathBuf> {
    if path.is_null() {
        bail!(Null, "{argument}: expected a path, got NULL");
    }
    // SAFETY: not NULL, and the caller promises the terminator.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes().to_vec();
    path_from_bytes(bytes).map_err(|why| Error::Argument(format!("{argument}: {why}")))
}

/// An output pointer that must not be NULL.
pub fn output<T>(argument: &str, pointer: *mut T) -> Result<*mut T> {
    if pointer.is_null() {
        bail!(
            Null,
            "{argument}: expected a place for the result, got NULL"
        );
    }
    Ok(pointer)
}

/// Marks the C structs that start with `struct_size` and whose all-zero bytes are their defaults.
///
/// # Safety
/// The type is `repr(C)`, its first field is `struct_size: usize`, and zero bytes are a valid value.
pub unsafe trait Versioned: Copy {
    /// The type's name in C.
    const NAME: &'static str;
}

/// Reads a struct of any version. Fields that an older host does not have are zero. A field that a newer
/// host sets and this library does not know is an error.
///
/// # Safety
/// `pointer` is NULL or points to a struct that is `struct_size` bytes long.
pub unsafe fn versioned<T: Versioned>(argument: &str, pointer: *const T) -> Result<T> {
    // SAFETY: the caller's promise is the same.
    unsafe { sized(argument, pointer, struct_size(argument, pointer)?) }
}

/// [`versioned`] for an element of an array. The array's first element tells the size of all.
///
/// # Safety
/// `pointer` is aligned and has `size` readable bytes.
pub unsafe fn sized<T: Versioned>(argument: &str, pointer: *const T, size: usize) -> Result<T> {
    let known = size.min(size_of::<T>());
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are readable on one side and fit on the other; zero is a valid `T`.
    let value = unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), known);
        value.assume_init()
    };
    // SAFETY: the host promises `size` readable bytes.
    let beyond = (known..size).any(|at| unsafe { pointer.cast::<u8>().add(at).read() } != 0);
    if beyond {
        bail!(
            Unsupported,
            "{argument}: this library knows {} bytes of {}, and a field beyond is set; update facegrad",
            size_of::<T>(),
            T::NAME
        );
    }
    Ok(value)
}

/// The size that a struct says it has: also the distance between the elements of an array of them.
///
/// # Safety
/// `pointer` is NULL or points to a struct that starts with its `struct_size`.
pub unsafe fn struct_size<T: Versioned>(argument: &str, pointer: *const T) -> Result<usize> {
    if pointer.is_null() {
        bail!(Null, "{argument}: expected a {}, got NULL", T::NAME);
    }
    // SAFETY: not NULL, and the first field of every versioned struct is its size.
    let size = unsafe { pointer.cast::<usize>().read_unaligned() };
    if size < size_of::<usize>() || size > MAX_STRUCT {
        bail!(
            Argument,
            "{argument}: struct_size is {size}; set it to sizeof({})",
            T::NAME
        );
    }
    if !pointer.is_aligned() || !size.is_multiple_of(align_of::<T>()) {
        bail!(
            Layout,
            "{argument}: {} must be aligned to {} bytes, and so must its struct_size",
            T::NAME,
            align_of::<T>()
        );
    }
    Ok(size)
}

/// A size above this is an uninitialised field, not a newer struct.
const MAX_STRUCT: usize = 1 << 16;

/// Writes as much of `value` as fits into the host's struct of `size` bytes, and `size` as its
/// `struct_size`.
///
/// # Safety
/// `pointer` is aligned and has `size` writable bytes.
pub unsafe fn write_versioned<T: Versioned>(pointer: *mut T, size: usize, value: &T) {
    let header = size_of::<usize>();
    let bytes = size.min(size_of::<T>()) - header;
    // SAFETY: both sides have at least `header + bytes` bytes.
    unsafe {
        pointer.cast::<usize>().write(size);
        std::ptr::copy_nonoverlapping(
            std::ptr::from_ref(value).cast::<u8>().add(header),
            pointer.cast::<u8>().add(header),
            bytes,
        );
    }
}
