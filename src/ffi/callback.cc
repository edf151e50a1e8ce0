// A C++ exception must not unwind into Rust, and Rust cannot catch one: it ends here.

#include <cstdint>

// `log` is facegrad_log_callback. 1 where it threw.
extern "C" std::int32_t facegrad_call_log(void (*log)(std::int32_t, const char *, void *), std::int32_t level, const char *message,
                                          void *user_data) noexcept {
    try {
        log(level, message, user_data);
        return 0;
    } catch (...) {
        return 1;
    }
}

// `decode` is facegrad_decode_function. Its own status; -1 where it threw.
extern "C" std::int32_t facegrad_call_decode(std::int32_t (*decode)(const void *, std::uint64_t, void *, void *), const void *latents,
                                             std::uint64_t ticket, void *image, void *user_data) noexcept {
    try {
        return decode(latents, ticket, image, user_data);
    } catch (...) {
        return -1;
    }
}

// `vjp` is facegrad_vjp_function. Its own status; -1 where it threw.
extern "C" std::int32_t facegrad_call_vjp(std::int32_t (*vjp)(std::uint64_t, const void *, void *, void *), std::uint64_t ticket,
                                          const void *gradient, void *latents_gradient, void *user_data) noexcept {
    try {
        return vjp(ticket, gradient, latents_gradient, user_data);
    } catch (...) {
        return -1;
    }
}
