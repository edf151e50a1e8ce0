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
