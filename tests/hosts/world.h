/* What calls.c calls every function with: one picture, one face, the demo's models. A parameter `p` of every function
 * is ARG_p, of one function ARG_<function>__p; STATUS_<function> is what a good call returns where it is not OK. */

#ifndef WORLD_H
#define WORLD_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "facegrad.h"

enum { SIDE = 64, HALF = 32, DIM = 128, CROP = 112 };

/* In the working directory. */
#define STATE "loss.state"

/* A dense float32 tensor in memory of exactly its size, so that AddressSanitizer sees a step beyond. */
typedef struct {
    facegrad_tensor view;
    int64_t shape[4];
} tensor;

static struct {
    const facegrad_api *api;
    facegrad_context *context;
    facegrad_detector *detector;
    facegrad_backbone *backbone;
    facegrad_vae *vae;
    facegrad_loss *loss;
    facegrad_graph *graph;
    facegrad_evaluator *evaluator;
    int64_t image_node, latent_node, crop_node, loss_node;
    char backbone_config[1024], detector_config[1024], vae_config[1024], evaluator_config[2048];
    tensor images, images_out, latents, times, landmarks, embeddings, crops, scalar, weights[5];
    const char *weight_names[5];
    facegrad_tensor weight_views[5];
    facegrad_face *face;
    facegrad_sample *sample;
    facegrad_targets targets;
    facegrad_step step;
    facegrad_result result;
    char text[4096];
    size_t count;
    int64_t node, shape[4], live;
    void *out;
} world;

/* How many structs a parameter's value points to. */
static size_t elements(const void *value) {
    return value == (const void *)world.weight_views ? sizeof world.weight_views / sizeof *world.weight_views : 1;
}

static void *out_of_memory(void *memory) {
    if (memory == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return memory;
}

static void tensor_new(tensor *t, int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
    const int64_t sizes[4] = {a, b, c, d};
    size_t count = 1, i;
    float *data;
    memset(t, 0, sizeof *t);
    for (i = 0; i < (size_t)rank; ++i) {
        t->shape[i] = sizes[i];
        count *= (size_t)sizes[i];
    }
    data = out_of_memory(malloc(count * sizeof(float)));
    for (i = 0; i < count; ++i) {
        data[i] = (float)(i * 7919 % 1000) / 1000;
    }
    t->view.data = data;
    t->view.device_type = 1;
    t->view.ndim = rank;
    t->view.dtype_code = 2;
    t->view.dtype_bits = 32;
    t->view.dtype_lanes = 1;
    t->view.shape = t->shape;
}

static void must(facegrad_status status, const char *what) {
    if (status != FACEGRAD_OK) {
        world.api->last_error(world.text, sizeof world.text, NULL);
        fprintf(stderr, "%s: %s\n0 passed, 1 failed\n", what, world.text);
        exit(1);
    }
}

/* The demo's decoder, written down again (examples/demo_assets/vae.py). */
static void weights_new(void) {
    const char *names[5] = {"decoder.layers.0.weight", "decoder.layers.0.bias", "decoder.layers.3.weight", "decoder.layers.4.weight",
                            "decoder.layers.4.bias"};
    size_t i;
    tensor_new(&world.weights[0], 4, 6, 3, 3, 3);
    tensor_new(&world.weights[1], 1, 6, 0, 0, 0);
    tensor_new(&world.weights[2], 4, 6, 6, 3, 3);
    tensor_new(&world.weights[3], 4, 3, 6, 3, 3);
    tensor_new(&world.weights[4], 1, 3, 0, 0, 0);
    for (i = 0; i < 5; ++i) {
        world.weight_names[i] = names[i];
        world.weight_views[i] = world.weights[i].view;
    }
}

static void world_new(const facegrad_api *api, const char *assets) {
    static const float landmarks[10] = {22, 26, 42, 26, 32, 36, 24, 46, 40, 46};
    world.api = api;
    snprintf(world.detector_config, sizeof world.detector_config,
             "{\"path\": \"%s/detector.onnx\", \"engine\": \"torch\", \"det_sizes\": [64]}", assets);
    snprintf(world.backbone_config, sizeof world.backbone_config, "{\"path\": \"%s/recogniser.safetensors\"}", assets);
    snprintf(world.vae_config, sizeof world.vae_config, "{\"path\": \"%s/vae.safetensors\"}", assets);
    must(api->context_new(NULL, &world.context), "context_new");
    must(api->detector_new(world.context, world.detector_config, &world.detector), "detector_new");
    must(api->backbone_new(world.context, world.backbone_config, &world.backbone), "backbone_new");
    must(api->vae_new(world.context, world.vae_config, &world.vae), "vae_new");
    must(api->loss_new(world.context, NULL, world.backbone, world.vae, "{\"face_align_mode\": \"kps\", \"latent_format\": \"none\"}",
                       &world.loss),
         "loss_new");
    must(api->graph_new(world.context, &world.graph), "graph_new");
    /* A threshold that finds faces in noise. */
    snprintf(world.evaluator_config, sizeof world.evaluator_config,
             "{\"engine\": \"torch\", \"recogniser\": \"%s/recogniser.safetensors\", \"detector\": {\"path\": \"%s/detector.onnx\", "
             "\"engine\": \"torch\", \"det_sizes\": [64], \"threshold\": 1e-9}}",
             assets, assets);
    must(api->evaluator_new(world.context, world.evaluator_config, &world.evaluator), "evaluator_new");

    tensor_new(&world.images, 4, 1, 3, SIDE, SIDE);
    tensor_new(&world.images_out, 4, 1, 3, SIDE, SIDE);
    tensor_new(&world.latents, 4, 1, 3, HALF, HALF);
    tensor_new(&world.times, 1, 1, 0, 0, 0);
    tensor_new(&world.landmarks, 3, 1, 5, 2, 0);
    tensor_new(&world.embeddings, 2, 1, DIM, 0, 0);
    tensor_new(&world.crops, 4, 1, 3, CROP, CROP);
    tensor_new(&world.scalar, 0, 0, 0, 0, 0);
    weights_new();
    memcpy(world.landmarks.view.data, landmarks, sizeof landmarks);

    world.face = out_of_memory(calloc(1, sizeof *world.face));
    world.face->struct_size = sizeof *world.face;
    world.face->has_landmarks = 1;
    memcpy(world.face->landmarks, landmarks, sizeof landmarks);
    world.sample = out_of_memory(calloc(1, sizeof *world.sample));
    world.sample->struct_size = sizeof *world.sample;
    world.result.struct_size = sizeof world.result;
    world.targets.struct_size = sizeof world.targets;
    world.targets.references = &world.images.view;
    world.targets.landmarks = &world.landmarks.view;
    world.targets.reference_landmarks = &world.landmarks.view;
    world.step.struct_size = sizeof world.step;
    world.step.x_t = &world.latents.view;
    world.step.prediction = &world.latents.view;
    world.step.times = &world.times.view;

    must(api->evaluator_set_reference(world.evaluator, "eva", &world.images.view, &world.landmarks.view, NULL), "evaluator_set_reference");
    must(api->loss_save(world.loss, STATE), "loss_save");
    must(api->graph_input(world.graph, &world.images.view, 1, &world.image_node, NULL), "graph_input");
    must(api->graph_input(world.graph, &world.latents.view, 1, &world.latent_node, NULL), "graph_input");
    must(api->graph_input(world.graph, &world.crops.view, 1, &world.crop_node, NULL), "graph_input");
    must(api->graph_face_loss(world.graph, world.image_node, world.loss, &world.targets, NULL, 0, NULL, &world.loss_node, NULL),
         "graph_face_loss");
    must(api->graph_backward(world.graph, world.loss_node, NULL, NULL), "graph_backward");
}

static void world_free(void) {
    tensor *all[] = {&world.images,     &world.images_out, &world.latents,   &world.times,      &world.landmarks,
                     &world.embeddings, &world.crops,      &world.scalar,    &world.weights[0], &world.weights[1],
                     &world.weights[2], &world.weights[3], &world.weights[4]};
    size_t i;
    world.api->evaluator_free(world.evaluator);
    world.api->graph_free(world.graph);
    world.api->loss_free(world.loss);
    world.api->vae_free(world.vae);
    world.api->backbone_free(world.backbone);
    world.api->detector_free(world.detector);
    world.api->context_free(world.context);
    for (i = 0; i < sizeof all / sizeof *all; ++i) {
        free(all[i]->view.data);
    }
    free(world.face);
    free(world.sample);
}

/* A new object that the call will free, or leave for good. */
#define FRESH(kind, ...)                                        \
    static facegrad_##kind *fresh_##kind(void) {                \
        facegrad_##kind *made = NULL;                           \
        must(world.api->kind##_new(__VA_ARGS__, &made), #kind); \
        return made;                                            \
    }
FRESH(context, NULL)
FRESH(detector, world.context, world.detector_config)
FRESH(backbone, world.context, world.backbone_config)
FRESH(vae, world.context, world.vae_config)
FRESH(loss, world.context, NULL, world.backbone, world.vae, NULL)
FRESH(graph, world.context)
FRESH(evaluator, world.context, world.evaluator_config)

/* A person that remove_reference may forget. */
static const char *registered(void) {
    must(world.api->evaluator_set_reference(world.evaluator, "bob", &world.images.view, &world.landmarks.view, NULL), "set_reference");
    return "bob";
}

static const char *const people[1] = {"eva"};

/* debug_panic leaves its context alive and poisoned. */
static facegrad_context *panicking(void) {
    static facegrad_context *last;
    world.api->context_free(last);
    last = fresh_context();
    return last;
}

static void ignore(int32_t level, const char *message, void *user_data) {
    (void)level;
    (void)message;
    (void)user_data;
}

/* A decoder of a host's that knows one picture. */
static int32_t host_decode(const facegrad_tensor *latents, uint64_t ticket, facegrad_tensor *image, void *user_data) {
    (void)latents;
    (void)ticket;
    (void)user_data;
    *image = world.images.view;
    return 0;
}

static int32_t host_vjp(uint64_t ticket, const facegrad_tensor *gradient, facegrad_tensor *latents_gradient, void *user_data) {
    (void)ticket;
    (void)user_data;
    if (gradient != NULL) {
        *latents_gradient = world.latents.view;
    }
    return 0;
}

#define ARG_abi_version FACEGRAD_ABI_VERSION
#define ARG_status FACEGRAD_ERR_NULL
#define ARG_buffer world.text
#define ARG_capacity sizeof world.text
#define ARG_needed &world.count
#define ARG_log ignore
#define ARG_user_data &world
#define ARG_max_level FACEGRAD_LOG_WARN
#define ARG_kind "loss"
#define ARG_count &world.count
#define ARG_debug_live__count &world.live
#define ARG_out made(&world.out)
#define ARG_stream NULL
#define ARG_context world.context
#define ARG_detector world.detector
#define ARG_backbone world.backbone
#define ARG_vae world.vae
#define ARG_loss world.loss
#define ARG_graph world.graph
#define ARG_evaluator world.evaluator
#define ARG_path STATE
#define ARG_evaluator_new__config world.evaluator_config
#define ARG_evaluator_faces__capacity 1
#define ARG_evaluator_align__count 1
#define ARG_evaluator_set_reference__id "eva"
#define ARG_evaluator_remove_reference__id registered()
#define ARG_evaluator_free__evaluator fresh_evaluator()
#define ARG_ids people
#define ARG_people 1
#define ARG_context_free__context fresh_context()
#define ARG_debug_panic__context panicking()
#define STATUS_debug_panic FACEGRAD_ERR_PANIC
#define ARG_detector_free__detector fresh_detector()
#define ARG_backbone_free__backbone fresh_backbone()
#define ARG_decode host_decode
#define ARG_vjp host_vjp
#define ARG_vae_free__vae fresh_vae()
#define ARG_loss_free__loss fresh_loss()
#define ARG_graph_free__graph fresh_graph()
#define ARG_config NULL
#define ARG_detector_new__config world.detector_config
#define ARG_backbone_new__config world.backbone_config
#define ARG_vae_new__config world.vae_config
#define ARG_loss_new__detector NULL
#define ARG_images &world.images.view
#define ARG_vae_decode__images &world.images_out.view
#define ARG_graph_face_loss__images world.image_node
#define ARG_faces world.face
#define ARG_detector_detect__capacity 1
#define ARG_backbone_embed__count 1
#define ARG_backbone_align__count 1
#define ARG_embeddings &world.embeddings.view
#define ARG_crops &world.crops.view
#define ARG_names world.weight_names
#define ARG_tensors world.weight_views
#define ARG_vae_new_from_tensors__count 5
#define ARG_latents &world.latents.view
#define ARG_graph_unpack__latents world.latent_node
#define ARG_graph_decode__latents world.latent_node
#define ARG_graph_features__crops world.crop_node
#define ARG_level "embedding"
#define ARG_id (world.api->loss_set_reference(world.loss, "anna", &world.images.view, &world.landmarks.view, NULL), "anna")
#define ARG_landmarks &world.landmarks.view
#define ARG_targets &world.targets
#define ARG_step &world.step
#define ARG_gradient &world.images_out.view
#define ARG_loss_step__gradient &world.latents.view
#define ARG_samples world.sample
#define ARG_samples_capacity 1
#define ARG_result &world.result
#define ARG_tensor &world.images_out.view
#define ARG_needs_gradient 1
#define ARG_node &world.node
#define ARG_graph_shape__node world.image_node
#define ARG_graph_read__node world.image_node
#define ARG_graph_gradient__node world.image_node
#define ARG_graph_backward__node world.loss_node
#define ARG_x_t world.latent_node
#define ARG_prediction world.latent_node
#define ARG_times &world.times.view
#define ARG_next_times &world.times.view
#define ARG_sampler_step__x_t &world.latents.view
#define ARG_sampler_step__prediction &world.latents.view
#define ARG_next &world.latents.view
#define ARG_height 0
#define ARG_width 0
#define ARG_shape world.shape
#define ARG_graph_shape__capacity 4
#define ARG_ndim &world.count
#define ARG_seed &world.scalar.view

#endif
