/* The lower half of facegrad.hpp: errors, the table of functions, and loading the library at run time.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef FACEGRAD_LIBRARY_HPP
#define FACEGRAD_LIBRARY_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <utility>

#include <dlfcn.h>

#include "facegrad.h"

namespace facegrad {

/* ---- errors ------------------------------------------------------------------------------------ */

/// A status of the C ABI, with the sentence that says what was expected, what came and what to do.
class Error : public std::exception {
  public:
    Error(facegrad_status status, std::string text) : status_(status), text_(std::move(text)) {}
    /// One of FACEGRAD_ERR_*.
    facegrad_status status() const noexcept { return status_; }
    const char *what() const noexcept override { return text_.c_str(); }

  private:
    facegrad_status status_;
    std::string text_;
};

/// A value or an Error: what fallible functions return with FACEGRAD_NO_EXCEPTIONS.
template <class T> class Result {
  public:
    Result(T value) : value_(std::move(value)) {}
    Result(Error error) : error_(std::move(error)) {}
    explicit operator bool() const noexcept { return !error_; }
    /// The value. Call it only where the Result is true.
    T &value() & { return *value_; }
    T &&value() && { return std::move(*value_); }
    /// The error. Call it only where the Result is false.
    const Error &error() const { return *error_; }

  private:
    std::optional<T> value_;
    std::optional<Error> error_;
};

template <> class Result<void> {
  public:
    Result() = default;
    Result(Error error) : error_(std::move(error)) {}
    explicit operator bool() const noexcept { return !error_; }
    const Error &error() const { return *error_; }

  private:
    std::optional<Error> error_;
};

#ifdef FACEGRAD_NO_EXCEPTIONS
template <class T> using Outcome = Result<T>;
#else
template <class T> using Outcome = T;
#endif

/* ---- the table of functions --------------------------------------------------------------------- */

namespace detail {

inline const facegrad_api *&table() {
#ifdef FACEGRAD_DYNAMIC
    static const facegrad_api *table = nullptr;
#else
    static const facegrad_api *table = facegrad_get_api(FACEGRAD_ABI_VERSION);
#endif
    return table;
}

/// Throws or returns the error.
template <class T> Outcome<T> fail(facegrad_status status, std::string text) {
    Error error(status, std::move(text));
#ifdef FACEGRAD_NO_EXCEPTIONS
    return error;
#else
    throw error;
#endif
}

/// Checks that the table has every function of the header that this file was compiled with.
inline std::optional<Error> unusable(const facegrad_api *table) {
    if (table == nullptr) {
        return Error(FACEGRAD_ERR_UNSUPPORTED, "no table of functions of ABI version " + std::to_string(FACEGRAD_ABI_VERSION) +
                                                   ": load the library with facegrad::Plugin, or install one of that ABI version");
    }
    if (table->struct_size < sizeof(facegrad_api)) {
        return Error(FACEGRAD_ERR_UNSUPPORTED, "this program knows " + std::to_string(sizeof(facegrad_api)) +
                                                   " bytes of the table of functions and the library only " +
                                                   std::to_string(table->struct_size) + "; update the library");
    }
    return std::nullopt;
}

/// The text of a function that copies one into a buffer.
template <class F> std::string text(F &&copy) {
    std::size_t needed = 0;
    copy(nullptr, std::size_t{0}, &needed);
    std::string text(needed, '\0');
    copy(text.data(), text.size(), &needed);
    text.resize(text.find('\0') == std::string::npos ? text.size() : text.find('\0'));
    return text;
}

} // namespace detail

/// The functions of the library.
inline const facegrad_api &api() { return *detail::table(); }

/// Turns a status into an Error.
inline Outcome<void> check(facegrad_status status) {
    if (status != FACEGRAD_OK) {
        return detail::fail<void>(status, detail::text(api().last_error));
    }
    return Outcome<void>();
}

namespace detail {

/// Returns `make()` where the call succeeded, else the error.
template <class F> auto done(facegrad_status status, F &&make) -> Outcome<decltype(make())> {
    if (status != FACEGRAD_OK) {
        return fail<decltype(make())>(status, text(api().last_error));
    }
    return make();
}

/// Owns a handle of the C ABI.
template <class H, void (*facegrad_api::*Free)(H *)> class Handle {
  public:
    explicit Handle(H *handle = nullptr) noexcept : handle_(handle) {}
    Handle(Handle &&other) noexcept : handle_(other.release()) {}
    Handle &operator=(Handle &&other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~Handle() {
        if (handle_ != nullptr) {
            (api().*Free)(handle_);
        }
    }
    /// The handle. This object still owns it.
    H *get() const noexcept { return handle_; }
    /// The handle. From now on the caller owns it.
    H *release() noexcept { return std::exchange(handle_, nullptr); }

  private:
    H *handle_;
};

} // namespace detail

/// The library, loaded at run time through its one symbol. It stays loaded until the process ends.
class Plugin {
  public:
    /// Loads `path`. `libtorch` is the folder of libtorch_cpu.so. It is needed where the process has no libtorch yet, and
    /// libtorch is not where it was at build time. Of several installed parts, the one for that torch is used.
    static Outcome<Plugin> load(const std::string &path = "libfacegrad.so.0.2", const std::string &libtorch = "") {
        if (!libtorch.empty() && dlopen((libtorch + "/libtorch_cpu.so").c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
            return detail::fail<Plugin>(FACEGRAD_ERR_TORCH, std::string("libtorch cannot be loaded: ") + dlerror());
        }
        const std::string torch = loaded_torch();
        const std::string folder = path.substr(0, path.find_last_of('/') + 1);
        if (!torch.empty() && !folder.empty()) {
            // The library then finds this part by its SONAME. Where there is none, the default one is tried below.
            dlopen((folder + "facegrad/torch" + torch + "/libfacegrad_torch.so").c_str(), RTLD_NOW | RTLD_LOCAL);
        }
        void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) {
            const std::string reason = dlerror();
            if (!torch.empty()) {
                return detail::fail<Plugin>(FACEGRAD_ERR_TORCH,
                                            path + " cannot be loaded beside the libtorch " + torch +
                                                " of this process; it needs a libfacegrad_torch.so for that torch: " + reason);
            }
            if (reason.find("libtorch") != std::string::npos || reason.find("libc10") != std::string::npos) {
                return detail::fail<Plugin>(FACEGRAD_ERR_TORCH,
                                            path +
                                                " needs the libtorch_cpu.so of the torch that its libfacegrad_torch.so was compiled "
                                                "for, looked for where it was at build time and in LD_LIBRARY_PATH; name its folder "
                                                "in Plugin::load: " +
                                                reason);
            }
            return detail::fail<Plugin>(FACEGRAD_ERR_IO, reason);
        }
        using GetApi = const facegrad_api *(*)(std::uint32_t);
        const auto get_api = reinterpret_cast<GetApi>(dlsym(library, "facegrad_get_api"));
        if (get_api == nullptr) {
            return detail::fail<Plugin>(FACEGRAD_ERR_UNSUPPORTED, path + " has no facegrad_get_api; it is not facegrad");
        }
        const facegrad_api *table = get_api(FACEGRAD_ABI_VERSION);
        if (auto error = detail::unusable(table)) {
            return detail::fail<Plugin>(error->status(), path + ": " + error->what());
        }
        detail::table() = table;
        return Plugin();
    }

  private:
    Plugin() = default;
    /// The version of the libtorch in this process, such as `2.10`; "of unknown version" where libtorch does not tell.
    static std::string loaded_torch() {
        void *torch = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
        if (torch == nullptr) {
            return "";
        }
        const auto version = reinterpret_cast<std::uint64_t (*)()>(dlsym(torch, "aoti_torch_abi_version"));
        const std::uint64_t number = version == nullptr ? 0 : version();
        dlclose(torch);
        return number == 0 ? "of unknown version" : std::to_string(number >> 56) + "." + std::to_string((number >> 48) & 0xff);
    }
};

} // namespace facegrad

#endif /* FACEGRAD_LIBRARY_HPP */
