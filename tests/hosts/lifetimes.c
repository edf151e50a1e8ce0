/* How processes end: one way a run. Every one must end with status 0 and no signal.
 *
 *     lifetimes LIBRARY ASSETS WAY */

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "world.h"

#define FAIL(what)                             \
    do {                                       \
        fprintf(stderr, "FAILED: %s\n", what); \
        _exit(1);                              \
    } while (0)
#define CHECK(ok, what) \
    do {                \
        if (!(ok)) {    \
            FAIL(what); \
        }               \
    } while (0)

typedef const facegrad_api *(*get_api)(uint32_t);
static void *library;
static const char *path;

static const facegrad_api *load(void) {
    get_api get;
    void *symbol;
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    CHECK(library != NULL, "dlopen");
    symbol = dlsym(library, "facegrad_get_api");
    CHECK(symbol != NULL, "facegrad_get_api");
    memcpy(&get, &symbol, sizeof symbol);
    return get(FACEGRAD_ABI_VERSION);
}

static facegrad_status work(double *loss) {
    const facegrad_status status =
        world.api->loss_images(world.loss, &world.images.view, &world.targets, &world.images_out.view, NULL, 0, &world.result, NULL);
    *loss = world.result.loss;
    return status;
}

static void *work_and_free(void *unused) {
    double loss;
    (void)unused;
    CHECK(work(&loss) == FACEGRAD_OK, "work after main");
    world_free();
    return NULL;
}

static void start(void *(*body)(void *), pthread_t *thread) { CHECK(pthread_create(thread, NULL, body, NULL) == 0, "pthread_create"); }

static void free_at_exit(void) { world_free(); }
static void use_at_exit(void) {
    double loss;
    CHECK(work(&loss) == FACEGRAD_OK, "work at exit");
}

static void exit_here(int32_t level, const char *message, void *user_data) {
    ignore(level, message, user_data);
    exit(0);
}

static void *leave(void *unused) {
    (void)unused;
    exit(0);
}

/* Child and parent of a fork after work: the child's old context is an error, its new one works. */
static void fork_after_work(int use_parent) {
    double before, after;
    int status = -1;
    pid_t child;
    CHECK(work(&before) == FACEGRAD_OK, "work before the fork");
    child = fork();
    if (child == 0) {
        CHECK(work(&after) == FACEGRAD_ERR_FORKED, "FORKED in the child");
        world_free();
        if (use_parent) {
            exit(0);
        }
        world_new(load(), getenv("ASSETS"));
        CHECK(work(&after) == FACEGRAD_OK && after == before, "a new context in the child");
        world_free();
        exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended well");
    CHECK(work(&after) == FACEGRAD_OK && after == before, "work in the parent after the fork");
}

/* Works for ever: what is refused at the end must be refused with EXITING. */
static int kind;
static void *busy(void *unused) {
    (void)unused;
    for (;;) {
        facegrad_status status;
        facegrad_vae *vae = NULL;
        size_t count;
        if (kind == 0) {
            status = world.api->loss_images(world.loss, &world.images.view, &world.targets, &world.images_out.view, NULL, 0, &world.result,
                                            NULL);
        } else if (kind == 1) {
            status = world.api->detector_detect(world.detector, &world.images.view, NULL, 0, &count, NULL);
        } else {
            status = world.api->vae_new(world.context, world.vae_config, &vae);
            world.api->vae_free(vae);
        }
        if (status == FACEGRAD_ERR_EXITING) {
            pause();
        }
        CHECK(status == FACEGRAD_OK, "work while the process ends");
    }
}

/* exit() in the middle of work on other threads, two of them, as the children of this process. */
static void exit_while_busy(void) {
    int round;
    for (round = 0; round < 6; ++round) {
        int status = -1;
        const pid_t child = fork();
        if (child == 0) {
            pthread_t threads[2];
            world_new(load(), getenv("ASSETS"));
            kind = round % 3;
            alarm(60);
            start(busy, &threads[0]);
            start(busy, &threads[1]);
            usleep(20000 + 7919 * (unsigned)round);
            exit(42);
        }
        CHECK(waitpid(child, &status, 0) == child, "waitpid");
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42, "the child ended with its status and no signal");
    }
}

/* Calls of a thread whose own data is gone: errors are errors, with their text. */
static void call_late(void) {
    facegrad_context *context = (facegrad_context *)&context;
    char text[512] = "";
    CHECK(world.api->context_new("{\"nope\": 1}", &context) == FACEGRAD_ERR_CONFIG && context == NULL, "a wrong key is an error");
    CHECK(world.api->last_error(text, sizeof text, NULL) == FACEGRAD_OK && strstr(text, "nope") != NULL, "with its sentence");
    CHECK(world.api->context_new(NULL, &context) == FACEGRAD_OK, "a right call works");
    world.api->context_free(context);
}
static pthread_key_t key;
static void call_in_destructor(void *unused) {
    static __thread int rounds;
    (void)unused;
    /* Rust's own destructors run in the first round. */
    if (rounds++ < 2) {
        pthread_setspecific(key, &key);
    } else {
        call_late();
    }
}
static void *leave_a_key(void *unused) {
    (void)unused;
    call_late();
    CHECK(pthread_setspecific(key, &key) == 0, "pthread_setspecific");
    return NULL;
}

/* The world is in use by others while this thread forks: the child makes one of its own. */
static volatile int stop;
static void *look_up(void *unused) {
    int64_t count;
    facegrad_context *context;
    (void)unused;
    while (!stop) {
        must(world.api->debug_live(NULL, &count), "debug_live");
        must(world.api->context_new(NULL, &context), "context_new");
        must(world.api->set_log_callback(ignore, NULL, FACEGRAD_LOG_WARN), "set_log_callback");
        world.api->context_free(context);
    }
    return NULL;
}
static void fork_while_others_are_inside(void) {
    pthread_t threads[2];
    int round;
    start(look_up, &threads[0]);
    start(look_up, &threads[1]);
    for (round = 0; round < 100; ++round) {
        int status = -1;
        const pid_t child = fork();
        if (child == 0) {
            facegrad_context *context;
            int64_t count;
            alarm(10);
            must(world.api->context_new(NULL, &context), "context_new in the child");
            must(world.api->debug_live("context", &count), "debug_live in the child");
            world.api->context_free(context);
            exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended well");
    }
    stop = 1;
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
}

/* ONNX Runtime's exit handlers wait for threads that a child does not have. */
static void fork_with_onnxruntime(const char *assets) {
    char config[1024];
    facegrad_detector *detector;
    size_t count;
    int status = -1;
    pid_t child;
    snprintf(config, sizeof config, "{\"path\": \"%s/detector.onnx\", \"engine\": \"ort\", \"det_sizes\": [64]}", assets);
    must(world.api->detector_new(world.context, config, &detector), "detector_new");
    must(world.api->detector_detect(detector, &world.images.view, NULL, 0, &count, NULL), "detect");
    child = fork();
    if (child == 0) {
        alarm(20);
        exit(7);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7, "the child ended with its status");
    world.api->detector_free(detector);
}

/* The six objects, freed in every order. */
static void every_order(const char *assets) {
    int order[6] = {0, 1, 2, 3, 4, 5}, left, i, j, round = 0;
    for (;;) {
        int64_t live = -1;
        facegrad_context *context;
        facegrad_detector *detector;
        facegrad_backbone *backbone;
        facegrad_vae *vae;
        facegrad_loss *loss;
        facegrad_graph *graph;
        const facegrad_api *api = world.api;
        must(api->context_new(NULL, &context), "context_new");
        must(api->vae_new(context, world.vae_config, &vae), "vae_new");
        must(api->graph_new(context, &graph), "graph_new");
        must(api->backbone_new(context, world.backbone_config, &backbone), "backbone_new");
        must(api->detector_new(context, world.detector_config, &detector), "detector_new");
        must(api->loss_new(context, detector, backbone, vae, NULL, &loss), "loss_new");
        for (i = 0; i < 6; ++i) {
            switch (order[i]) {
            case 0: api->context_free(context); break;
            case 1: api->detector_free(detector); break;
            case 2: api->backbone_free(backbone); break;
            case 3: api->vae_free(vae); break;
            case 4: api->loss_free(loss); break;
            default: api->graph_free(graph);
            }
        }
        must(api->debug_live("loss", &live), "debug_live");
        CHECK(live == 1, "the other loss is alive, and no more");
        /* The next of the 720 orders that is a multiple of 12 away: 60 of them. */
        for (left = 0; left < 12; ++left) {
            for (i = 4; i >= 0 && order[i] > order[i + 1]; --i) {
            }
            if (i < 0) {
                CHECK(round == 59, "sixty orders");
                (void)assets;
                return;
            }
            for (j = 5; order[j] < order[i]; --j) {
            }
            {
                const int t = order[i];
                order[i] = order[j];
                order[j] = t;
            }
            for (++i, j = 5; i < j; ++i, --j) {
                const int t = order[i];
                order[i] = order[j];
                order[j] = t;
            }
        }
        ++round;
    }
}

int main(int argc, char **argv) {
    const char *way;
    pthread_t thread;
    double loss, again;
    if (argc != 4) {
        return 2;
    }
    path = argv[1];
    way = argv[3];
    setenv("ASSETS", argv[2], 1);
    if (strcmp(way, "fork before") == 0) {
        const pid_t child = fork();
        int status = -1;
        world_new(load(), argv[2]);
        CHECK(work(&loss) == FACEGRAD_OK, "work");
        world_free();
        if (child == 0) {
            return 0;
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended well");
        return 0;
    }
    if (strcmp(way, "exit while others work") == 0) {
        exit_while_busy();
        return 0;
    }
    if (strcmp(way, "dlclose first") == 0) {
        load();
        CHECK(dlclose(library) == 0, "dlclose");
        return 0;
    }
    world_new(load(), argv[2]);
    CHECK(work(&loss) == FACEGRAD_OK, "work");
    if (strcmp(way, "freed") == 0) {
        world_free();
    } else if (strcmp(way, "left alive") == 0) {
        return 0;
    } else if (strcmp(way, "every order") == 0) {
        every_order(argv[2]);
    } else if (strcmp(way, "freed at exit") == 0) {
        atexit(free_at_exit);
    } else if (strcmp(way, "used at exit") == 0) {
        atexit(use_at_exit);
    } else if (strcmp(way, "exit on a thread") == 0) {
        start(leave, &thread);
        pthread_join(thread, NULL);
    } else if (strcmp(way, "exit in a callback") == 0) {
        must(world.api->set_log_callback(exit_here, NULL, FACEGRAD_LOG_WARN), "set_log_callback");
        memset(world.landmarks.view.data, 0, 10 * sizeof(float));
        work(&loss);
        FAIL("the message of a degenerate face ends the process");
    } else if (strcmp(way, "main ends first") == 0) {
        start(work_and_free, &thread);
        pthread_exit(NULL);
    } else if (strcmp(way, "dlclose and again") == 0) {
        CHECK(dlclose(library) == 0, "dlclose");
        CHECK(work(&again) == FACEGRAD_OK && again == loss, "the code is still there");
        CHECK(load() == world.api, "the same table");
        world_free();
        CHECK(dlclose(library) == 0, "dlclose");
    } else if (strcmp(way, "dlclose left alive") == 0) {
        CHECK(dlclose(library) == 0, "dlclose");
    } else if (strcmp(way, "fork after") == 0) {
        fork_after_work(0);
        world_free();
    } else if (strcmp(way, "fork, the child only frees") == 0) {
        fork_after_work(1);
    } else if (strcmp(way, "errors at exit") == 0) {
        call_late();
        atexit(call_late);
    } else if (strcmp(way, "errors in a key's destructor") == 0) {
        CHECK(pthread_key_create(&key, call_in_destructor) == 0, "pthread_key_create");
        start(leave_a_key, &thread);
        pthread_join(thread, NULL);
    } else if (strcmp(way, "fork while others are inside") == 0) {
        fork_while_others_are_inside();
    } else if (strcmp(way, "fork with ONNX Runtime") == 0) {
        fork_with_onnxruntime(argv[2]);
    } else {
        FAIL(way);
    }
    return 0;
}
