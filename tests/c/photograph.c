/* A host in C, without Python: detects, embeds, computes the loss and its gradient, and checks both
 * against the numbers of eager PyTorch and against finite differences.
 *
 *     photograph FIXTURES [DATA]
 *
 * FIXTURES is what tests/fixtures/make.py wrote, DATA the folder of real models and photographs. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "facegrad.h"

static int passed, failed;

static void check(int ok, const char *what) {
    char text[2048];
    if (ok) {
        ++passed;
        return;
    }
    ++failed;
    facegrad_last_error(text, sizeof text, NULL);
    fprintf(stderr, "FAILED: %s (last error: %s)\n", what, text);
}

static void must(facegrad_status status, const char *what) {
    check(status == FACEGRAD_OK, what);
    if (status != FACEGRAD_OK) {
        printf("%d passed, %d failed\n", passed, failed);
        exit(1);
    }
}

/* A dense float32 tensor that owns its memory. */
typedef struct {
    facegrad_tensor view;
    int64_t shape[4];
    float *data;
    size_t count;
} tensor;

static void tensor_new(tensor *t, int ndim, int64_t a, int64_t b, int64_t c, int64_t d) {
    const int64_t sizes[4] = {a, b, c, d};
    int i;
    memset(t, 0, sizeof *t);
    t->count = 1;
    for (i = 0; i < ndim; ++i) {
        t->shape[i] = sizes[i];
        t->count *= (size_t)sizes[i];
    }
    t->data = calloc(t->count, sizeof(float));
    if (t->data == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    t->view.data = t->data;
    t->view.device_type = 1;
    t->view.ndim = ndim;
    t->view.dtype_code = 2;
    t->view.dtype_bits = 32;
    t->view.dtype_lanes = 1;
    t->view.shape = t->shape;
}

static FILE *open_in(const char *folder, const char *name) {
    char path[4096];
    FILE *file;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, "rb");
    if (file == NULL) {
        fprintf(stderr, "%s is missing; run `make fixtures`\n", path);
        exit(1);
    }
    return file;
}

static void read_floats(tensor *t, const char *folder, const char *name) {
    FILE *file = open_in(folder, name);
    if (fread(t->data, sizeof(float), t->count, file) != t->count) {
        fprintf(stderr, "%s is too short\n", name);
        exit(1);
    }
    fclose(file);
}

static void read_photo(tensor *t, const char *folder, const char *name) {
    int64_t size[2];
    FILE *file = open_in(folder, name);
    if (fread(size, sizeof(int64_t), 2, file) != 2) {
        exit(1);
    }
    tensor_new(t, 4, 1, 3, size[0], size[1]);
    if (fread(t->data, sizeof(float), t->count, file) != t->count) {
        fprintf(stderr, "%s is too short\n", name);
        exit(1);
    }
    fclose(file);
}

static double run(facegrad_loss *loss, const tensor *images, const facegrad_targets *targets, const tensor *gradient) {
    facegrad_result result;
    memset(&result, 0, sizeof result);
    result.struct_size = sizeof result;
    must(facegrad_loss_images(loss, &images->view, targets, gradient ? &gradient->view : NULL, NULL, 0, &result, NULL),
         "facegrad_loss_images");
    return result.loss;
}

/* The change of the loss along its own gradient must be the gradient's length. */
static void finite_difference(facegrad_loss *loss, tensor *images, const facegrad_targets *targets, const tensor *gradient, double step,
                              double bound, const char *what) {
    double norm = 0, difference, high, low;
    float *kept = malloc(images->count * sizeof(float));
    size_t i;
    if (kept == NULL) {
        exit(1);
    }
    memcpy(kept, images->data, images->count * sizeof(float));
    for (i = 0; i < images->count; ++i) {
        norm += (double)gradient->data[i] * gradient->data[i];
    }
    norm = sqrt(norm);
    for (i = 0; i < images->count; ++i) {
        images->data[i] = kept[i] + (float)(step * gradient->data[i] / norm);
    }
    high = run(loss, images, targets, NULL);
    for (i = 0; i < images->count; ++i) {
        images->data[i] = kept[i] - (float)(step * gradient->data[i] / norm);
    }
    low = run(loss, images, targets, NULL);
    memcpy(images->data, kept, images->count * sizeof(float));
    free(kept);
    difference = (high - low) / (2 * step);
    printf("%s: finite difference %.6g, gradient %.6g\n", what, difference, norm);
    check(norm > 0 && fabs(difference - norm) <= bound * norm, what);
}

/* The fixture that Rust and Python run too: loss and gradient of eager PyTorch. */
static void chain(facegrad_context *context, const char *fixtures) {
    char folder[4096], config[8192];
    facegrad_backbone *backbone;
    facegrad_loss *loss;
    facegrad_targets targets;
    tensor images, references, landmarks, reference_landmarks, weights, want, gradient;
    double value, expected = 0, error = 0, norm = 0;
    size_t i;
    FILE *file;

    snprintf(config, sizeof config, "{\"path\": \"%s/nets/small.safetensors\"}", fixtures);
    must(facegrad_backbone_new(context, config, &backbone), "facegrad_backbone_new");
    must(facegrad_loss_new(context, NULL, backbone, NULL, "{\"face_align_mode\": \"kps\"}", &loss), "facegrad_loss_new");
    snprintf(folder, sizeof folder, "%s/chain", fixtures);
    tensor_new(&images, 4, 3, 3, 96, 80);
    tensor_new(&references, 4, 3, 3, 96, 80);
    tensor_new(&landmarks, 3, 3, 5, 2, 0);
    tensor_new(&reference_landmarks, 3, 3, 5, 2, 0);
    tensor_new(&weights, 1, 3, 0, 0, 0);
    tensor_new(&want, 4, 3, 3, 96, 80);
    tensor_new(&gradient, 4, 3, 3, 96, 80);
    read_floats(&images, folder, "images.f32");
    read_floats(&references, folder, "references.f32");
    read_floats(&landmarks, folder, "landmarks.f32");
    read_floats(&reference_landmarks, folder, "reference_landmarks.f32");
    read_floats(&weights, folder, "weights.f32");
    read_floats(&want, folder, "gradient.f32");
    file = open_in(folder, "loss.txt");
    if (fscanf(file, "%lf", &expected) != 1) {
        exit(1);
    }
    fclose(file);

    memset(&targets, 0, sizeof targets);
    targets.struct_size = sizeof targets;
    targets.references = &references.view;
    targets.landmarks = &landmarks.view;
    targets.reference_landmarks = &reference_landmarks.view;
    targets.sample_weights = &weights.view;
    value = run(loss, &images, &targets, &gradient);
    check(fabs(value - expected) <= 1e-5 * expected, "the loss is PyTorch's");
    for (i = 0; i < want.count; ++i) {
        const double d = (double)gradient.data[i] - want.data[i];
        error += d * d;
        norm += (double)want.data[i] * want.data[i];
    }
    check(sqrt(error / norm) <= 1e-5, "the gradient is PyTorch's");
    finite_difference(loss, &images, &targets, &gradient, 0.01, 2e-3, "synthetic batch");

    free(images.data), free(references.data), free(landmarks.data), free(reference_landmarks.data);
    free(weights.data), free(want.data), free(gradient.data);
    facegrad_loss_free(loss);
    facegrad_backbone_free(backbone);
}

static facegrad_face only_face(facegrad_detector *detector, const tensor *photo) {
    facegrad_face faces[8];
    size_t count = 0;
    memset(faces, 0, sizeof faces);
    faces[0].struct_size = sizeof faces[0];
    must(facegrad_detector_detect(detector, &photo->view, faces, 8, &count, NULL), "facegrad_detector_detect");
    check(count == 1 && faces[0].score > 0.5f && faces[0].has_landmarks == 1, "one face in the photograph");
    return faces[0];
}

/* Real networks on photographs. */
static void photographs(facegrad_context *context, const char *fixtures, const char *data) {
    char folder[4096], config[8192];
    facegrad_detector *detector;
    facegrad_backbone *backbone;
    facegrad_loss *loss;
    facegrad_targets targets;
    facegrad_face face;
    tensor one, two, other, embeddings[3], gradient;
    double same = 0, different = 0, value;
    int i;

    /* The ABI falls back to libtorch where ONNX Runtime is not found; here it is asked for. */
    snprintf(config, sizeof config, "{\"path\": \"%s/models/det_500m.onnx\", \"engine\": \"torch\"}", data);
    must(facegrad_detector_new(context, config, &detector), "facegrad_detector_new");
    snprintf(config, sizeof config,
             "{\"path\": \"%s/models/foamliu_mobilefacenet_128d_112.onnx\", \"mean\": [0.485, 0.456, 0.406], "
             "\"std\": [0.229, 0.224, 0.225]}",
             data);
    must(facegrad_backbone_new(context, config, &backbone), "facegrad_backbone_new");
    must(facegrad_loss_new(context, detector, backbone, NULL, "{\"face_align_mode\": \"kps\", \"face_loss_weight\": 1}", &loss),
         "facegrad_loss_new");
    snprintf(folder, sizeof folder, "%s/photos", fixtures);
    read_photo(&one, folder, "B_lady_1.f32");
    read_photo(&two, folder, "B_lady_2.f32");
    read_photo(&other, folder, "single_glasses.f32");
    for (i = 0; i < 3; ++i) {
        const tensor *photo = i == 0 ? &one : i == 1 ? &two : &other;
        face = only_face(detector, photo);
        tensor_new(&embeddings[i], 2, 1, 128, 0, 0);
        must(facegrad_backbone_embed(backbone, &photo->view, &face, 1, &embeddings[i].view, NULL), "facegrad_backbone_embed");
    }
    for (i = 0; i < 128; ++i) {
        same += (double)embeddings[0].data[i] * embeddings[1].data[i];
        different += (double)embeddings[0].data[i] * embeddings[2].data[i];
    }
    printf("same person %.3f, different people %.3f\n", same, different);
    check(same > 0.7 && different < 0.2, "similarities tell people apart");

    memset(&targets, 0, sizeof targets);
    targets.struct_size = sizeof targets;
    targets.references = &two.view;
    tensor_new(&gradient, 4, 1, 3, one.shape[2], one.shape[3]);
    value = run(loss, &one, &targets, &gradient);
    check(fabs(value - (1 - same)) < 1e-4, "the loss is one minus the similarity");
    /* With the face's place held still: detection itself has no gradient. */
    face = only_face(detector, &one);
    {
        tensor landmarks;
        tensor_new(&landmarks, 3, 1, 5, 2, 0);
        memcpy(landmarks.data, face.landmarks, sizeof face.landmarks);
        targets.landmarks = &landmarks.view;
        value = run(loss, &one, &targets, &gradient);
        finite_difference(loss, &one, &targets, &gradient, 0.02, 2e-2, "photograph");
        free(landmarks.data);
    }
    for (i = 0; i < 3; ++i) {
        free(embeddings[i].data);
    }
    free(one.data), free(two.data), free(other.data), free(gradient.data);
    facegrad_loss_free(loss);
    facegrad_backbone_free(backbone);
    facegrad_detector_free(detector);
}

int main(int argc, char **argv) {
    facegrad_context *context;
    int64_t live = -1;
    if (argc < 2) {
        fprintf(stderr, "usage: %s FIXTURES [DATA]\n", argv[0]);
        return 2;
    }
    check(facegrad_abi_version() == FACEGRAD_ABI_VERSION, "header and library are of one ABI version");
    check(facegrad_get_api(FACEGRAD_ABI_VERSION) != NULL, "the table of functions");
    must(facegrad_context_new("{\"device\": \"cpu\"}", &context), "facegrad_context_new");
    chain(context, argv[1]);
    if (argc > 2) {
        photographs(context, argv[1], argv[2]);
    }
    facegrad_context_free(context);
    must(facegrad_debug_live(NULL, &live), "facegrad_debug_live");
    check(live == 0, "nothing stays alive");
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
