/* A libonnxruntime.so that is too old: it serves no API of level 17 (onnxruntime_c_api.h: OrtApiBase). */
#include <stddef.h>
#include <stdint.h>

static const void *get_api(uint32_t version) {
    (void)version;
    return NULL;
}
static const char *get_version_string(void) { return "1.10.0"; }
static const struct {
    const void *(*get_api)(uint32_t);
    const char *(*get_version_string)(void);
} base = {get_api, get_version_string};

const void *OrtGetApiBase(void) { return &base; }
