/* A host in plain C99 that knows facegrad only by its header: loads the plugin with one dlsym, says what it can do, and
 * runs the training step on buffers that it allocated itself. The "model" here is the latent of a portrait, and following
 * the gradient makes its face that of another person.
 *
 *     host LIBRARY ASSETS PORTRAIT.ppm REFERENCE.ppm
 *
 * ASSETS is examples/demo_assets; `python examples/demo_assets/pictures.py FOLDER` draws portraits. With 0_0.ppm and
 * 1_0.ppm it says which models it loaded, and then:
 *
 *     step  0  loss 0.6997  similarity +0.300
 *     step  5  loss 0.5943  similarity +0.406
 *     step 10  loss 0.5020  similarity +0.498
 *     step 15  loss 0.4265  similarity +0.573
 *     step 20  loss 0.3690  similarity +0.631
 */

#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "facegrad.h"

enum { STEPS = 20 };

static const facegrad_api *api;

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void check(facegrad_status status, const char *what) {
    if (status != FACEGRAD_OK) {
        char text[1024];
        api->last_error(text, sizeof text, NULL);
        fail(what, text);
    }
}

/* A dense float32 tensor in memory of this program. */
typedef struct {
    facegrad_tensor view; /* view.shape is NULL: set by tensor_view */
    int64_t shape[4];
    float *data;
    size_t count;
} tensor;

static tensor tensor_new(int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
    tensor t = {{0}, {0}, NULL, 1};
    int i;
    t.shape[0] = a, t.shape[1] = b, t.shape[2] = c, t.shape[3] = d;
    for (i = 0; i < rank; ++i) {
        t.count *= (size_t)t.shape[i];
    }
    t.data = calloc(t.count, sizeof(float));
    if (t.data == NULL) {
        fail("tensor_new", "out of memory");
    }
    t.view.data = t.data;
    t.view.device_type = 1; /* DLPack: CPU */
    t.view.ndim = rank;
    t.view.dtype_code = 2; /* DLPack: float */
    t.view.dtype_bits = 32;
    t.view.dtype_lanes = 1;
    return t;
}

static const facegrad_tensor *tensor_view(tensor *t) {
    t->view.shape = t->shape;
    return &t->view;
}

/* `[1,3,H,W]`, RGB in [0, 1]. */
static tensor read_ppm(const char *path) {
    int width, height, most;
    int64_t x, y, c;
    tensor image;
    FILE *file = fopen(path, "rb");
    if (file == NULL || fscanf(file, "P6 %d %d %d", &width, &height, &most) != 3 || fgetc(file) == EOF || most != 255 || width < 2 ||
        height < 2) {
        fail(path, "not a binary PPM file of 8 bits");
    }
    image = tensor_new(4, 1, 3, height, width);
    for (y = 0; y < height; ++y) {
        for (x = 0; x < width; ++x) {
            for (c = 0; c < 3; ++c) {
                image.data[(c * height + y) * width + x] = (float)fgetc(file) / 255;
            }
        }
    }
    fclose(file);
    return image;
}

/* The demo's VAE: latents are the picture at half its size, from -1 to 1. */
static tensor encode(const tensor *image) {
    const int64_t height = image->shape[2] / 2, width = image->shape[3] / 2;
    int64_t x, y, c;
    tensor latent = tensor_new(4, 1, 3, height, width);
    for (c = 0; c < 3; ++c) {
        for (y = 0; y < height; ++y) {
            for (x = 0; x < width; ++x) {
                const float *p = image->data + (c * image->shape[2] + 2 * y) * image->shape[3] + 2 * x;
                latent.data[(c * height + y) * width + x] = (p[0] + p[1] + p[image->shape[3]] + p[image->shape[3] + 1]) / 2 - 1;
            }
        }
    }
    return latent;
}

static void load(const char *path) {
    const facegrad_api *(*get_api)(uint32_t);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL), *symbol;
    if (library == NULL) {
        fail("dlopen", dlerror());
    }
    symbol = dlsym(library, "facegrad_get_api");
    if (symbol == NULL) {
        fail(path, "not facegrad: it has no facegrad_get_api");
    }
    memcpy(&get_api, &symbol, sizeof symbol); /* ISO C has no cast from data to functions */
    api = get_api(FACEGRAD_ABI_VERSION);
    if (api == NULL || api->struct_size < sizeof *api) {
        fail(path, "the library is older than this program");
    }
}

static void list(const facegrad_detector *detector, const facegrad_backbone *backbone, const facegrad_vae *vae) {
    char text[2048];
    printf("%s, ABI %u, %u functions\n", api->version(), (unsigned)api->abi_version,
           (unsigned)((api->struct_size - offsetof(facegrad_api, context_new)) / sizeof(void (*)(void))));
    check(api->build_info(text, sizeof text, NULL), "build_info");
    printf("build:      %s\n", text);
    check(api->detector_info(detector, text, sizeof text, NULL), "detector_info");
    printf("detector:   %s\n", text);
    check(api->backbone_info(backbone, text, sizeof text, NULL), "backbone_info");
    printf("recogniser: %s\n", text);
    check(api->vae_info(vae, text, sizeof text, NULL), "vae_info");
    printf("vae:        %s\n", text);
}

int main(int argc, char **argv) {
    facegrad_context *context;
    facegrad_detector *detector;
    facegrad_backbone *backbone;
    facegrad_vae *vae;
    facegrad_loss *loss;
    facegrad_step step = {0};
    facegrad_targets targets = {0};
    facegrad_sample sample = {0};
    facegrad_result result = {0};
    char config[4096];
    tensor latent, reference, gradient, portrait;
    float first = 0;
    int i;

    if (argc != 5) {
        fprintf(stderr, "usage: %s LIBRARY ASSETS PORTRAIT.ppm REFERENCE.ppm\n", argv[0]);
        return 2;
    }
    load(argv[1]);
    check(api->context_new("{\"device\": \"cpu\"}", &context), "context_new");
    snprintf(config, sizeof config, "{\"path\": \"%s/detector.onnx\", \"det_sizes\": [192]}", argv[2]);
    check(api->detector_new(context, config, &detector), "detector_new");
    snprintf(config, sizeof config, "{\"path\": \"%s/recogniser.safetensors\"}", argv[2]);
    check(api->backbone_new(context, config, &backbone), "backbone_new");
    snprintf(config, sizeof config, "{\"path\": \"%s/vae.safetensors\"}", argv[2]);
    check(api->vae_new(context, config, &vae), "vae_new");
    check(
        api->loss_new(
            context, detector, backbone, vae,
            "{\"face_loss_weight\": 1, \"face_align_mode\": \"kps\", \"prediction\": {\"kind\": \"sample\"}, \"latent_format\": \"none\"}",
            &loss),
        "loss_new");
    list(detector, backbone, vae);

    portrait = read_ppm(argv[3]);
    reference = read_ppm(argv[4]);
    latent = encode(&portrait);
    gradient = tensor_new(4, 1, 3, latent.shape[2], latent.shape[3]);
    step.struct_size = sizeof step;
    step.prediction = tensor_view(&latent);
    targets.struct_size = sizeof targets;
    targets.references = tensor_view(&reference);
    sample.struct_size = sizeof sample;
    result.struct_size = sizeof result;
    for (i = 0; i <= STEPS; ++i) {
        double norm = 0;
        size_t at;
        step.number = (uint64_t)i;
        check(api->loss_step(loss, &step, &targets, tensor_view(&gradient), &sample, 1, &result, NULL), "loss_step");
        if (result.counted == 0) {
            fail("loss_step", "no face was found");
        }
        if (i == 0) {
            first = sample.similarity;
        }
        if (i % 5 == 0) {
            printf("step %2d  loss %.4f  similarity %+.3f\n", i, result.loss, sample.similarity);
        }
        for (at = 0; at < gradient.count; ++at) {
            norm += (double)gradient.data[at] * gradient.data[at];
        }
        norm = sqrt(norm) + 1e-12;
        for (at = 0; at < latent.count; ++at) {
            latent.data[at] -= (float)(0.5 * gradient.data[at] / norm);
        }
    }

    free(portrait.data), free(reference.data), free(latent.data), free(gradient.data);
    api->loss_free(loss);
    api->vae_free(vae);
    api->backbone_free(backbone);
    api->detector_free(detector);
    api->context_free(context);
    return sample.similarity > first ? 0 : 1;
}
