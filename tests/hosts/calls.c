/* Calls every function of the header: well, with NULL and with nonsense for every pointer, with structs of every age.
 *
 *     calls ASSETS            linked
 *     calls ASSETS LIBRARY    compiled with -DDYNAMIC: loaded with one dlsym
 *
 * The table of cases is made from the header by header.py, so that no function can be forgotten. */

#include <dlfcn.h>
#include <stddef.h>

#include "world.h"

#ifdef DYNAMIC
typedef const facegrad_api *(*get_api)(uint32_t);
static get_api loaded_get_api;
static uint32_t loaded_abi_version(void) { return world.api->abi_version; }
#define CALL(name) world.api->name
#define DIRECT(name) loaded_##name
#else
#define CALL(name) facegrad_##name
#define DIRECT(name) facegrad_##name
#endif

static int passed, failed;

static void *made(void *out) { return out; }

#include "cases.h"

static void check(int ok, const test_case *c, int at, const char *what, facegrad_status status) {
    if (ok) {
        ++passed;
        return;
    }
    ++failed;
    world.api->last_error(world.text, sizeof world.text, NULL);
    fprintf(stderr, "FAILED: %s, %s %s: status %d, last error: %s\n", c->name, at < 0 ? "" : c->names[at], what, (int)status, world.text);
}

/* Anything but a defect. */
static int sane(facegrad_status status) { return status >= 0 && status < FACEGRAD_ERR_INTERNAL; }

/* What a `_new` made is not needed any longer. */
static void drop(void) {
    facegrad_context *none = world.out;
    if (none != NULL) {
        world.api->context_free(world.out);
        world.api->detector_free(world.out);
        world.api->backbone_free(world.out);
        world.api->vae_free(world.out);
        world.api->loss_free(world.out);
        world.api->graph_free(world.out);
        world.api->evaluator_free(world.out);
    }
    world.out = NULL;
}

static facegrad_status call(const test_case *c, int which, const void *other) {
    const facegrad_status status = c->call(which, other);
    drop();
    return status;
}

static void null_everywhere(const test_case *c) {
    int at;
    for (at = 0; at < c->parameters; ++at) {
        facegrad_status status;
        if (c->kinds[at] == VALUE) {
            continue;
        }
        status = call(c, at, NULL);
        if (!c->fallible) {
            check(1, c, at, "NULL", status);
        } else if (c->kinds[at] == REQUIRED || c->kinds[at] == HANDLE) {
            check(status == FACEGRAD_ERR_NULL, c, at, "NULL", status);
        } else {
            check(sane(status), c, at, "NULL", status);
        }
    }
}

static void handles_that_are_none(const test_case *c) {
    facegrad_graph *freed = fresh_graph();
    const void *strange[4];
    int at, i;
    world.api->graph_free(freed);
    strange[0] = freed;
    strange[1] = (const void *)(size_t)0xdead0;
    strange[2] = (const void *)(size_t)-1;
    for (at = 0; at < c->parameters; ++at) {
        if (c->kinds[at] != HANDLE && c->kinds[at] != HANDLE_OR_NULL) {
            continue;
        }
        /* Another type: no function takes two of the same. */
        strange[3] = strcmp(c->names[at], "context") == 0 ? (const void *)world.graph : (const void *)world.context;
        for (i = 0; i < 4; ++i) {
            const facegrad_status status = call(c, at, strange[i]);
            check(!c->fallible || status == FACEGRAD_ERR_HANDLE, c, at, "no handle", status);
        }
    }
}

/* A copy of what the parameter points to, with room behind. */
static void *copied(const structure *s, const void *value, size_t size) {
    char *copy = out_of_memory(calloc(1, size));
    memcpy(copy, value, size < s->size ? size : s->size);
    if (s->versioned) {
        memcpy(copy, &size, sizeof size);
    }
    return copy;
}

static void structs_of_every_age(const test_case *c, int at, const structure *s, const void *value) {
    const size_t wrong[] = {0, 3, 7, (size_t)-1, (size_t)1 << 40};
    const size_t newer = s->size + 32;
    size_t size, i;
    char *copy;
    facegrad_status status;
    for (i = 0; i < sizeof wrong / sizeof *wrong; ++i) {
        copy = copied(s, value, s->size);
        memcpy(copy, &wrong[i], sizeof wrong[i]);
        status = call(c, at, copy);
        check(status == FACEGRAD_ERR_ARGUMENT, c, at, "a struct_size that is none", status);
        free(copy);
    }
    for (size = sizeof(size_t); size < s->size; size += sizeof(size_t)) {
        copy = copied(s, value, size);
        status = call(c, at, copy);
        check(sane(status), c, at, "an older struct", status);
        free(copy);
    }
    copy = copied(s, value, newer);
    status = call(c, at, copy);
    check(status == c->wants, c, at, "a newer struct", status);
    copy[s->size + 9] = 1;
    status = call(c, at, copy);
    if (c->constant[at]) {
        check(status == FACEGRAD_ERR_UNSUPPORTED, c, at, "a newer struct with a new field set", status);
    } else {
        check(status == c->wants && copy[s->size + 9] == 1, c, at, "a newer output", status);
    }
    free(copy);
}

static void structs(const test_case *c) {
    int at, i;
    for (at = 0; at < c->parameters; ++at) {
        const structure *s;
        const void *value;
        if (c->structures[at] < 0) {
            continue;
        }
        s = &STRUCTURES[c->structures[at]];
        value = c->value(at);
        if (value == NULL) {
            continue;
        }
        if (s->versioned) {
            structs_of_every_age(c, at, s, value);
        }
        for (i = 0; i < s->pointers; ++i) {
            /* An array is copied whole: the function reads all of it. */
            char *copy = out_of_memory(malloc(elements(value) * s->size));
            facegrad_status status;
            memcpy(copy, value, elements(value) * s->size);
            memset(copy + s->offset[i], 0, sizeof(void *));
            status = call(c, at, copy);
            check(sane(status), c, at, "a field of NULL", status);
            free(copy);
        }
    }
}

int main(int argc, char **argv) {
    const size_t count = sizeof CASES / sizeof *CASES;
    const facegrad_api *api = NULL;
    int64_t live = -1;
    size_t i;
    int round;
    if (argc < 2) {
        fprintf(stderr, "usage: %s ASSETS [LIBRARY]\n", argv[0]);
        return 2;
    }
#ifdef DYNAMIC
    {
        void *library = argc > 2 ? dlopen(argv[2], RTLD_NOW | RTLD_LOCAL) : NULL;
        void *symbol = library ? dlsym(library, "facegrad_get_api") : NULL;
        if (symbol == NULL) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        memcpy(&loaded_get_api, &symbol, sizeof symbol);
        api = loaded_get_api(FACEGRAD_ABI_VERSION);
    }
#else
    api = facegrad_get_api(FACEGRAD_ABI_VERSION);
#endif
    if (api == NULL || api->struct_size < sizeof *api) {
        fprintf(stderr, "the library is older than the header\n0 passed, 1 failed\n");
        return 1;
    }
    world_new(api, argv[1]);
    /* Well, before and after all that is wrong. */
    for (round = 0; round < 2; ++round) {
        for (i = 0; i < count; ++i) {
            const facegrad_status status = call(&CASES[i], -1, NULL);
            check(status == CASES[i].wants, &CASES[i], -1, round ? "well again" : "well", status);
        }
        for (i = 0; round == 0 && i < count; ++i) {
            null_everywhere(&CASES[i]);
            handles_that_are_none(&CASES[i]);
            structs(&CASES[i]);
        }
    }
    for (i = 0; i < 3; ++i) {
        const uint32_t unknown[3] = {0, FACEGRAD_ABI_VERSION + 1, (uint32_t)-1};
        check(DIRECT(get_api)(unknown[i]) == NULL, &CASES[0], -1, "a table of an unknown version", 0);
    }
    must(api->set_log_callback(NULL, NULL, FACEGRAD_LOG_WARN), "set_log_callback");
    world_free();
    must(api->debug_live(NULL, &live), "debug_live");
    /* The last context that panicked is left to the exit. */
    check(live == 1, &CASES[0], -1, "objects stay alive", (facegrad_status)live);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
