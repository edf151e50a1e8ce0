/* Every open, read, write, sync and rename of a file, and every allocation of some size, fails once: in loads, a step, a
 * save and a restore. What SQLite calls fault loops: the n-th fails, for n from 1 until none is left to fail. The call is
 * then an error and no signal, the old file is as it was, and the next call is right.
 *
 *     faults LIBRARY ASSETS        in an empty working directory; linked with --export-dynamic
 *
 * The functions below stand before those of libc for the library and for libtorch. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "world.h"

typedef enum {
    OPEN_EIO,
    OPEN_EMFILE,
    OPEN_EINTR,
    READ_EIO,
    READ_SHORT,
    READ_EINTR,
    READ_END,
    WRITE_EIO,
    WRITE_ENOSPC,
    WRITE_SHORT,
    WRITE_EINTR,
    SYNC_EIO,
    SYNC_EINTR,
    RENAME_EIO,
    MEMORY,
    NONE
} fault;
static const char *const names[] = {"open: EIO",    "open: EMFILE",  "open: EINTR",  "read: EIO",     "read: short",
                                    "read: EINTR",  "read: the end", "write: EIO",   "write: ENOSPC", "write: short",
                                    "write: EINTR", "fsync: EIO",    "fsync: EINTR", "rename: EIO",   "allocation"};

/* Smaller allocations are Rust's own, which ends the process where it gets none: so do most programs, and Linux gives them. */
enum { SOME_SIZE = 64 << 10 };

static atomic_int armed = NONE;
static atomic_long left;
static int passed;

static int due(fault kind) { return atomic_load(&armed) == (int)kind && atomic_fetch_sub(&left, 1) == 1; }
static int fails(fault kind, int error) {
    if (!due(kind)) {
        return 0;
    }
    errno = error;
    return 1;
}

static int opened(const char *path, int flags, mode_t mode) {
    if (fails(OPEN_EIO, EIO) || fails(OPEN_EMFILE, EMFILE) || fails(OPEN_EINTR, EINTR)) {
        return -1;
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
#define OPEN(name)                                                       \
    int name(const char *path, int flags, ...) {                         \
        va_list rest;                                                    \
        mode_t mode;                                                     \
        va_start(rest, flags);                                           \
        mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                    \
        return opened(path, flags, mode);                                \
    }
OPEN(open)
OPEN(open64)

static int regular(int file) {
    struct stat about;
    return fstat(file, &about) == 0 && S_ISREG(about.st_mode);
}
ssize_t read(int file, void *buffer, size_t count) {
    if (atomic_load(&armed) != NONE && count > 0 && regular(file)) {
        if (fails(READ_EIO, EIO) || fails(READ_EINTR, EINTR)) {
            return -1;
        }
        if (due(READ_END)) {
            return 0;
        }
        if (due(READ_SHORT)) {
            count = count / 2 + 1;
        }
    }
    return syscall(SYS_read, file, buffer, count);
}
ssize_t write(int file, const void *buffer, size_t count) {
    if (atomic_load(&armed) != NONE && count > 0 && regular(file)) {
        if (fails(WRITE_EIO, EIO) || fails(WRITE_ENOSPC, ENOSPC) || fails(WRITE_EINTR, EINTR)) {
            return -1;
        }
        if (due(WRITE_SHORT)) {
            count = count / 2 + 1;
        }
    }
    return syscall(SYS_write, file, buffer, count);
}
static int unsynced(void) { return fails(SYNC_EIO, EIO) || fails(SYNC_EINTR, EINTR); }
int fsync(int file) { return unsynced() ? -1 : (int)syscall(SYS_fsync, file); }
int fdatasync(int file) { return unsynced() ? -1 : (int)syscall(SYS_fdatasync, file); }
int rename(const char *from, const char *to) {
    return fails(RENAME_EIO, EIO) ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
static int none(size_t size) { return size >= SOME_SIZE && fails(MEMORY, ENOMEM); }
void *malloc(size_t size) { return none(size) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return none(count * size) ? NULL : __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { return none(size) ? NULL : __libc_realloc(old, size); }
void *aligned_alloc(size_t align, size_t size) { return none(size) ? NULL : __libc_memalign(align, size); }
int posix_memalign(void **out, size_t align, size_t size) {
    void *made = none(size) ? NULL : __libc_memalign(align, size);
    if (made == NULL) {
        return ENOMEM;
    }
    *out = made;
    return 0;
}

static double right;

static facegrad_status load_recogniser(void) {
    facegrad_backbone *made = NULL;
    const facegrad_status status = world.api->backbone_new(world.context, world.backbone_config, &made);
    world.api->backbone_free(made);
    return status;
}
static facegrad_status load_detector(void) {
    facegrad_detector *made = NULL;
    const facegrad_status status = world.api->detector_new(world.context, world.detector_config, &made);
    world.api->detector_free(made);
    return status;
}
static facegrad_status load_vae(void) {
    facegrad_vae *made = NULL;
    const facegrad_status status = world.api->vae_new(world.context, world.vae_config, &made);
    world.api->vae_free(made);
    return status;
}
static facegrad_status step(void) {
    memset(&world.result, 0, sizeof world.result);
    world.result.struct_size = sizeof world.result;
    return world.api->loss_step(world.loss, &world.step, &world.targets, &world.latents.view, NULL, 0, &world.result, NULL);
}
static facegrad_status images(void) {
    memset(&world.result, 0, sizeof world.result);
    world.result.struct_size = sizeof world.result;
    return world.api->loss_images(world.loss, &world.images.view, &world.targets, &world.images_out.view, NULL, 0, &world.result, NULL);
}
static facegrad_status save(void) { return world.api->loss_save(world.loss, "saved"); }
static facegrad_status restore(void) { return world.api->loss_restore(world.loss, "saved"); }

static const char *what = "";
static void must_be(int ok, const char *sentence, int n) {
    if (!ok) {
        char text[512] = "";
        world.api->last_error(text, sizeof text, NULL);
        fprintf(stderr, "FAILED: %s, number %d: %s (%s)\n%d passed, 1 failed\n", what, n, sentence, text, passed);
        _exit(1);
    }
}

/* The files of the working directory and their bytes: a number for comparison. */
static unsigned long folder(void) {
    unsigned long sum = 5381;
    struct dirent *entry;
    DIR *files = opendir(".");
    while ((entry = readdir(files)) != NULL) {
        unsigned long own = 5381;
        const char *at;
        FILE *file;
        int byte;
        if (entry->d_name[0] == '.') {
            continue;
        }
        for (at = entry->d_name; *at; ++at) {
            own = own * 33 + (unsigned char)*at;
        }
        file = fopen(entry->d_name, "rb");
        while ((byte = fgetc(file)) != EOF) {
            own = own * 33 + (unsigned)byte;
        }
        fclose(file);
        sum += own;
    }
    closedir(files);
    return sum;
}

/* What the loss remembers of "anna" is what it was. */
static int remembers(void) {
    const char *ids[1] = {"anna"};
    facegrad_targets targets = world.targets;
    targets.references = NULL;
    targets.reference_landmarks = NULL;
    targets.reference_ids = ids;
    memset(&world.result, 0, sizeof world.result);
    world.result.struct_size = sizeof world.result;
    return world.api->loss_images(world.loss, &world.images.view, &targets, NULL, NULL, 0, &world.result, NULL) == FACEGRAD_OK &&
           fabs(world.result.loss - right) < 1e-9;
}

static void loop(const char *name, facegrad_status (*run)(void), fault kind, int can_happen) {
    static char title[128];
    const int passes =
        kind == OPEN_EINTR || kind == SYNC_EINTR || kind == READ_SHORT || kind == READ_EINTR || kind == WRITE_SHORT || kind == WRITE_EINTR;
    int n, hit = 1;
    snprintf(title, sizeof title, "%s, %s", name, names[kind]);
    what = title;
    must_be(run() == FACEGRAD_OK, "it works", 0);
    for (n = 1; hit; ++n) {
        const unsigned long before = folder();
        facegrad_status status;
        atomic_store(&left, n);
        atomic_store(&armed, kind);
        status = run();
        atomic_store(&armed, NONE);
        hit = atomic_load(&left) <= 0;
        if (!hit || passes) {
            must_be(status == FACEGRAD_OK, "it works without a fault, and with one that is none", n);
        }
        must_be(status < FACEGRAD_ERR_INTERNAL && status != FACEGRAD_ERR_POISONED, "an error, and no defect", n);
        if (status != FACEGRAD_OK) {
            char text[512] = "";
            world.api->last_error(text, sizeof text, NULL);
            must_be(text[0] != 0, "an error has a sentence", n);
            must_be(folder() == before, "the old file is there as it was, and no other", n);
        }
        must_be(remembers(), "the loss remembers what it did", n);
        must_be(run() == FACEGRAD_OK, "the next call works", n);
        must_be(n < 20000, "there is an end", n);
    }
    must_be(!can_happen || n > 2, "the fault happened", n);
    ++passed;
}

int main(int argc, char **argv) {
    static const fault reading[] = {OPEN_EIO, OPEN_EMFILE, OPEN_EINTR, READ_EIO, READ_SHORT, READ_EINTR, READ_END, MEMORY};
    static const fault writing[] = {OPEN_EIO,    OPEN_EMFILE, OPEN_EINTR, WRITE_EIO,  WRITE_ENOSPC, WRITE_SHORT,
                                    WRITE_EINTR, SYNC_EIO,    SYNC_EINTR, RENAME_EIO, MEMORY};
    static const struct {
        const char *name;
        facegrad_status (*run)(void);
    } loads[] = {{"a recogniser", load_recogniser}, {"a detector", load_detector}, {"a VAE", load_vae}, {"a restore", restore}};
    const facegrad_api *(*get)(uint32_t);
    void *library, *symbol;
    size_t i, j;
    if (argc != 3) {
        return 2;
    }
    library = dlopen(argv[1], RTLD_NOW);
    symbol = library ? dlsym(library, "facegrad_get_api") : NULL;
    if (symbol == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    memcpy(&get, &symbol, sizeof symbol);
    world_new(get(FACEGRAD_ABI_VERSION), argv[2]);
    must(world.api->loss_set_reference(world.loss, "anna", &world.images.view, &world.landmarks.view, NULL), "set_reference");
    must(images(), "images");
    right = world.result.loss;
    must(save(), "save");
    for (i = 0; i < sizeof loads / sizeof *loads; ++i) {
        for (j = 0; j < sizeof reading / sizeof *reading; ++j) {
            loop(loads[i].name, loads[i].run, reading[j], reading[j] != MEMORY && reading[j] != READ_SHORT);
        }
    }
    for (j = 0; j < sizeof writing / sizeof *writing; ++j) {
        loop("a save", save, writing[j], writing[j] != MEMORY);
    }
    loop("a step", step, MEMORY, 1);
    loop("a loss of images", images, MEMORY, 1);
    world_free();
    printf("%d passed, 0 failed\n", passed);
    return 0;
}
