/*
 * facegrad: a differentiable face identity loss for diffusion training.
 *
 * Generated from the library's sources; do not edit.
 *
 * HOW TO READ THIS FILE
 *
 * Objects. Everything is made by a `_new` function and freed by its one `_free`. Handles are opaque and
 * are looked up, never followed: a handle that was freed, or is of another type, is
 * FACEGRAD_ERR_HANDLE and never a crash. `_free(NULL)` does nothing. Objects may be freed in any order.
 *
 * Errors. Every function that can fail returns a facegrad_status, FACEGRAD_OK (0) on success.
 * facegrad_last_error gives this thread's sentence about it. On failure no output is touched, except
 * that `out` of a `_new` becomes NULL. NULL where a pointer is required is FACEGRAD_ERR_NULL. A panic
 * inside the library becomes FACEGRAD_ERR_PANIC.
 *
 * Tensors. A facegrad_tensor has the layout of DLPack's DLTensor, so `const DLTensor *` may be cast to
 * it. Inputs are borrowed until the call returns (on CUDA: until the work that it put on `stream` has
 * run); outputs are allocated by the caller. Nothing the library allocated is ever freed by the host,
 * and the other way round. Strides may be anything that does not overlap in an output; NHWC is an NCHW
 * shape with NHWC strides. Float tensors are float32, float16 or bfloat16 unless a function says
 * otherwise. Images are RGB in [0, 1].
 *
 * Strings are UTF-8 and end with NUL. A function that returns text copies it into the caller's buffer:
 * call it with NULL and 0 to learn the size.
 *
 * Structs start with `struct_size`: zero the struct and set it to sizeof. Fields are only ever
 * appended; what an older host does not set is zero and means the default, and what a newer host sets
 * beyond this library's knowledge is FACEGRAD_ERR_UNSUPPORTED.
 *
 * Threads. Any function may be called from any thread. All work of a context runs on a thread of its
 * own, one call after the other; different contexts are independent. The caller's grad mode, autocast,
 * random state, current device and stream are neither used nor changed. Release Python's GIL around
 * every call that can run a model. After fork() the contexts of the parent are FACEGRAD_ERR_FORKED in
 * the child.
 *
 * Streams. `stream` is a cudaStream_t; NULL is CUDA's default stream and the only value for the CPU.
 *
 * Growth. Within one FACEGRAD_ABI_VERSION functions are never removed or re-typed, structs and the
 * table of facegrad_get_api grow only at their ends, and constants only gain values. Before version
 * 1.0 of the library a new minor version may raise FACEGRAD_ABI_VERSION.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef FACEGRAD_H
#define FACEGRAD_H

#include <stddef.h>
#include <stdint.h>

/**
 * `facegrad_sample.outcome`: the sample counts.
 */
#define FACEGRAD_SAMPLE_COUNTED 0

/**
 * `use_face_loss` is false.
 */
#define FACEGRAD_SAMPLE_DISABLED 1

/**
 * Its `data_type` is not among `face_types`.
 */
#define FACEGRAD_SAMPLE_DATA_TYPE 2

/**
 * Its weight is 0.
 */
#define FACEGRAD_SAMPLE_ZERO_WEIGHT 3

/**
 * No face was found in the reference.
 */
#define FACEGRAD_SAMPLE_NO_REFERENCE_FACE 4

/**
 * No face was found in the generated image.
 */
#define FACEGRAD_SAMPLE_NO_FACE 5

/**
 * Its landmarks or box span no area.
 */
#define FACEGRAD_SAMPLE_DEGENERATE 6

/**
 * Its image, loss or gradient was not finite; it was dropped.
 */
#define FACEGRAD_SAMPLE_NON_FINITE 7

/**
 * Its noise level lies outside the window of the configuration.
 */
#define FACEGRAD_SAMPLE_TIME 8

/**
 * The step is not one of every n.
 */
#define FACEGRAD_SAMPLE_STEP 9

/**
 * `facegrad_sample.located`: the generated face was not found or not looked for.
 */
#define FACEGRAD_LOCATED_NOWHERE 0

/**
 * By detection on the generated image.
 */
#define FACEGRAD_LOCATED_DETECTED 1

/**
 * The host gave its landmarks or box.
 */
#define FACEGRAD_LOCATED_GIVEN 2

/**
 * Where the reference's face is.
 */
#define FACEGRAD_LOCATED_REFERENCE 3

/**
 * `facegrad_sample.alignment`: the face was not aligned.
 */
#define FACEGRAD_ALIGNMENT_NONE 0

/**
 * By the five landmarks.
 */
#define FACEGRAD_ALIGNMENT_KPS 1

/**
 * By the box, as configured.
 */
#define FACEGRAD_ALIGNMENT_BBOX 2

/**
 * By the box, since the face has no usable landmarks.
 */
#define FACEGRAD_ALIGNMENT_BBOX_FALLBACK 3

/**
 * `facegrad_sample.decoded`: nothing was decoded of the sample: it was gated out, or came as an image.
 */
#define FACEGRAD_DECODED_NOTHING 0

/**
 * All of its image.
 */
#define FACEGRAD_DECODED_FULL 1

/**
 * A window of it, exact but for the gradient through GroupNorm's statistics, if there is any.
 */
#define FACEGRAD_DECODED_WINDOW_EXACT 2

/**
 * A window of it with GroupNorm's statistics from an earlier step.
 */
#define FACEGRAD_DECODED_WINDOW_CACHED 3

/**
 * A window of it with GroupNorm's statistics from that window.
 */
#define FACEGRAD_DECODED_WINDOW 4

/**
 * A window of it with GroupNorm's statistics that a model predicted.
 */
#define FACEGRAD_DECODED_WINDOW_PREDICTED 5

/**
 * Something was lost or refused that the caller may not see otherwise.
 */
#define FACEGRAD_LOG_ERROR 1

/**
 * A sample was skipped or a fallback taken; training goes on.
 */
#define FACEGRAD_LOG_WARN 2

/**
 * Something that happens once.
 */
#define FACEGRAD_LOG_INFO 3

/**
 * Details for finding a fault.
 */
#define FACEGRAD_LOG_DEBUG 4

/**
 * The version of this ABI. It changes when a function or a field is removed or re-typed.
 */
#define FACEGRAD_ABI_VERSION 1

/**
 * A frozen face recogniser. Any thread may use it.
 */
typedef struct facegrad_backbone facegrad_backbone;

/**
 * A device, its thread and everything that lives there. Any thread may use it; calls on one
 * context run one after the other, different contexts are independent.
 */
typedef struct facegrad_context facegrad_context;

/**
 * A face detector (SCRFD). Any thread may use it.
 */
typedef struct facegrad_detector facegrad_detector;

/**
 * Detector and recogniser for scores that need no gradient, and remembered references. Any thread may use
 * it.
 */
typedef struct facegrad_evaluator facegrad_evaluator;

/**
 * An autograd tape whose nodes are numbers. Any thread may use it.
 */
typedef struct facegrad_graph facegrad_graph;

/**
 * A loss: configuration, networks and remembered references. Any thread may use it.
 */
typedef struct facegrad_loss facegrad_loss;

/**
 * A frozen VAE decoder. Any thread may use it.
 */
typedef struct facegrad_vae facegrad_vae;

/**
 * What every fallible function returns: `FACEGRAD_OK` or one of `FACEGRAD_ERR_*`.
 * 1–99: the caller's error; 100–199: a file; 200–299: device and runtimes; 900–: a defect here.
 */
typedef int32_t facegrad_status;

/**
 * Receives messages. `message` is UTF-8 and valid until the callback returns. It may be called from
 * any thread, must not call facegrad (`FACEGRAD_ERR_REENTRANT`), must not longjmp, and should not throw: a C++
 * exception ends at the library, and the call that sent the message is `FACEGRAD_ERR_CALLBACK`.
 */
typedef void (*facegrad_log_callback)(int32_t level, const char *message, void *user_data);

/**
 * A strided tensor in memory that the host owns: field for field DLPack's `DLTensor` (v1.x), so a
 * `const DLTensor *` can be cast to it. The library borrows it until the call returns and, on
 * CUDA, until the work that the call put on the stream has run.
 */
typedef struct facegrad_tensor {
  /**
   * First byte of the allocation; may be NULL only for a tensor without elements.
   */
  void *data;
  /**
   * DLPack device type: 1 = CPU, 2 = CUDA.
   */
  int32_t device_type;
  /**
   * Ordinal of the device; 0 on the CPU.
   */
  int32_t device_id;
  /**
   * Number of dimensions.
   */
  int32_t ndim;
  /**
   * DLPack type code: 0 = signed integer, 1 = unsigned integer, 2 = IEEE float, 4 = bfloat16.
   */
  uint8_t dtype_code;
  /**
   * Bits of one element.
   */
  uint8_t dtype_bits;
  /**
   * Must be 1.
   */
  uint16_t dtype_lanes;
  /**
   * `ndim` sizes.
   */
  int64_t *shape;
  /**
   * `ndim` strides in elements; NULL means C order without gaps.
   */
  int64_t *strides;
  /**
   * Bytes from `data` to the first element.
   */
  uint64_t byte_offset;
} facegrad_tensor;

/**
 * A face in an image. Pixels, with pixel centres at integers: (0, 0) is the centre of the first
 * pixel.
 */
typedef struct facegrad_face {
  /**
   * `sizeof(facegrad_face)`; in an array the first element's says the distance of all.
   */
  size_t struct_size;
  /**
   * Index of the image in its batch.
   */
  int64_t image;
  /**
   * x1, y1, x2, y2.
   */
  float bbox[4];
  /**
   * Detection score in [0, 1].
   */
  float score;
  /**
   * 1 where `landmarks` is set.
   */
  int32_t has_landmarks;
  /**
   * Five x, y pairs in the picture's order: left eye, right eye, nose, left and right mouth
   * corner.
   */
  float landmarks[10];
} facegrad_face;

/**
 * Decodes `latents` `[B,C,h,w]`, float32 and compact, valid until the function returns. It fills in `image` with a
 * description of an image `[B,3,H,W]`, float32, float16 or bfloat16, on the same device; that memory must stay until the
 * next call of this function or of the other one with the same `user_data`. With a `ticket` other than 0 it keeps what the gradient needs: each
 * ticket is used by one call of the other function. It is called on the context's thread, with the caller's
 * CUDA stream current there, must not call facegrad with objects of the same context, must not longjmp and should not throw.
 * Returns 0, or anything else where it failed: the call that needed the image is then `FACEGRAD_ERR_CALLBACK`.
 */
typedef int32_t (*facegrad_decode_function)(const struct facegrad_tensor *latents,
                                            uint64_t ticket,
                                            struct facegrad_tensor *image,
                                            void *user_data);

/**
 * The gradient with respect to the latents of a ticket, from the `gradient` `[B,3,H,W]` with respect to their image,
 * float32 and compact: fills in `latents_gradient` as `facegrad_decode_function` fills in `image`, and forgets the ticket.
 * With `gradient` NULL it only forgets; the ticket may then be forgotten already. The other rules are those of
 * `facegrad_decode_function`.
 */
typedef int32_t (*facegrad_vjp_function)(uint64_t ticket,
                                         const struct facegrad_tensor *gradient,
                                         struct facegrad_tensor *latents_gradient,
                                         void *user_data);

/**
 * What the host says about a batch of N generated images. Zero every field that is not used.
 */
typedef struct facegrad_targets {
  /**
   * `sizeof(facegrad_targets)`.
   */
  size_t struct_size;
  /**
   * Reference images `[N,3,H,W]`, or `[1,3,H,W]` for all samples; RGB in [0, 1]; any H and W.
   */
  const struct facegrad_tensor *references;
  /**
   * N ids that `facegrad_loss_set_reference` registered; a NULL entry means the sample's
   * reference image. NULL: every sample uses its image.
   */
  const char *const *reference_ids;
  /**
   * N `data_type`s, checked against the configured `face_types`. NULL: every sample counts.
   */
  const char *const *data_types;
  /**
   * `[N,5,2]` landmarks of the generated faces, pixels; a row of NaN means not known. NULL: none
   * is known, and the detector looks.
   */
  const struct facegrad_tensor *landmarks;
  /**
   * `[N,4]` boxes of the generated faces (x1, y1, x2, y2), pixels; rows of NaN as above.
   */
  const struct facegrad_tensor *boxes;
  /**
   * `[R,5,2]` landmarks of the faces in `references` (R of them), rows of NaN as above.
   */
  const struct facegrad_tensor *reference_landmarks;
  /**
   * `[R,4]` boxes of the faces in `references`, rows of NaN as above.
   */
  const struct facegrad_tensor *reference_boxes;
  /**
   * `[N]` weights ≥ 0. NULL: 1 each.
   */
  const struct facegrad_tensor *sample_weights;
  /**
   * N names that tell the training's samples apart, for statistics that `norm_stats` remembers; a NULL
   * entry, or NULL: the sample's reference image tells.
   */
  const char *const *sample_ids;
} facegrad_targets;

/**
 * What one sample did for the loss.
 */
typedef struct facegrad_sample {
  /**
   * `sizeof(facegrad_sample)`; in an array the first element's says the distance of all.
   */
  size_t struct_size;
  /**
   * `FACEGRAD_SAMPLE_*`.
   */
  int32_t outcome;
  /**
   * `FACEGRAD_LOCATED_*`.
   */
  int32_t located;
  /**
   * `FACEGRAD_ALIGNMENT_*`.
   */
  int32_t alignment;
  /**
   * 1 where `bbox` is set.
   */
  int32_t has_bbox;
  /**
   * 1 where `landmarks` is set.
   */
  int32_t has_landmarks;
  /**
   * Cosine similarity to the reference in [-1, 1]; NaN where none was computed.
   */
  float similarity;
  /**
   * The sample's weight in the mean.
   */
  float weight;
  /**
   * Detection score in [0, 1]; NaN where the face was not detected.
   */
  float score;
  /**
   * The generated face's box, pixels.
   */
  float bbox[4];
  /**
   * Its landmarks, pixels, as in `facegrad_face`.
   */
  float landmarks[10];
  /**
   * `FACEGRAD_DECODED_*`.
   */
  int32_t decoded;
  /**
   * 1 where the whole image was decoded without a gradient, for detection or for GroupNorm's statistics.
   */
  int32_t exact_pass;
  /**
   * At steps that audit: cosine of the window's gradient and the whole image's; else NaN.
   */
  float audit_cosine;
  /**
   * The norm of the window's gradient in units of the whole image's; else NaN.
   */
  float audit_norm_ratio;
} facegrad_sample;

/**
 * The value of a loss.
 */
typedef struct facegrad_result {
  /**
   * `sizeof(facegrad_result)`.
   */
  size_t struct_size;
  /**
   * `face_loss_weight · Σ wᵢ·(1 − min(cosᵢ, target_similarity)) / counted`: the number that the
   * gradient belongs to. 0 where nothing counts.
   */
  double loss;
  /**
   * Mean of `1 − cos` over the counted samples, without weights, in [0, 2]; 0 where none counts.
   */
  double mean_distance;
  /**
   * How many samples count.
   */
  int64_t counted;
  /**
   * How many samples there are.
   */
  int64_t samples;
  /**
   * How many whole images were decoded without a gradient for the sake of windows.
   */
  int64_t exact_passes;
  /**
   * At steps that audit: `audit_cosine` of the sample with the least one; else NaN.
   */
  double audit_cosine;
  /**
   * `audit_norm_ratio` of the same sample; else NaN.
   */
  double audit_norm_ratio;
  /**
   * How many of `level_distances` are set: the configured `levels`, and the embedding last where it is not among them; 0
   * without `levels`, and where no sample counts.
   */
  int64_t levels;
  /**
   * Mean of `1 − cos` over the counted samples on every level, in the order of the configuration.
   */
  double level_distances[8];
} facegrad_result;

/**
 * What a trainer knows at one step, for a batch of N. Zero every field that is not used.
 */
typedef struct facegrad_step {
  /**
   * `sizeof(facegrad_step)`.
   */
  size_t struct_size;
  /**
   * The noisy latents in the prediction's layout; NULL where the model predicts x0 itself.
   */
  const struct facegrad_tensor *x_t;
  /**
   * The model's prediction, in its own packing; float32, float16 or bfloat16.
   */
  const struct facegrad_tensor *prediction;
  /**
   * `[N]` times, as the configuration's `prediction.time` says; on any device.
   */
  const struct facegrad_tensor *times;
  /**
   * `[N,2]` pairs a, b of x0 = a·x_t + b·prediction, for `prediction.kind` "custom" alone.
   */
  const struct facegrad_tensor *coefficients;
  /**
   * Height of the unpacked latent in latent pixels; needed by packings of tokens, else 0.
   */
  int64_t latent_height;
  /**
   * Its width.
   */
  int64_t latent_width;
  /**
   * The number of the step, for `every_n_steps` and `audit_every`.
   */
  uint64_t number;
  /**
   * The norm of the main loss's gradient with respect to the prediction, for `gradient_limit`; 0 where
   * not known.
   */
  double gradient_norm;
} facegrad_step;

/**
 * All functions of ABI version 1. The table only grows at its end: look at `struct_size` before
 * using a field that came later than the version you were compiled with.
 */
typedef struct facegrad_api {
  /**
   * Bytes of the table in the library that is loaded.
   */
  size_t struct_size;
  /**
   * `FACEGRAD_ABI_VERSION` of the library that is loaded.
   */
  uint32_t abi_version;
  /**
   * Always 0.
   */
  uint32_t reserved;
  facegrad_status (*context_new)(const char *config, struct facegrad_context **out);
  void (*context_free)(struct facegrad_context *context);
  facegrad_status (*debug_panic)(struct facegrad_context *context);
  facegrad_status (*detector_new)(const struct facegrad_context *context,
                                  const char *config,
                                  struct facegrad_detector **out);
  facegrad_status (*detector_detect)(struct facegrad_detector *detector,
                                     const struct facegrad_tensor *images,
                                     struct facegrad_face *faces,
                                     size_t capacity,
                                     size_t *count,
                                     void *stream);
  facegrad_status (*detector_info)(const struct facegrad_detector *detector,
                                   char *buffer,
                                   size_t capacity,
                                   size_t *needed);
  void (*detector_free)(struct facegrad_detector *detector);
  facegrad_status (*backbone_new)(const struct facegrad_context *context,
                                  const char *config,
                                  struct facegrad_backbone **out);
  facegrad_status (*backbone_embed)(struct facegrad_backbone *backbone,
                                    const struct facegrad_tensor *images,
                                    const struct facegrad_face *faces,
                                    size_t count,
                                    const struct facegrad_tensor *embeddings,
                                    void *stream);
  facegrad_status (*backbone_align)(struct facegrad_backbone *backbone,
                                    const struct facegrad_tensor *images,
                                    const struct facegrad_face *faces,
                                    size_t count,
                                    const struct facegrad_tensor *crops,
                                    void *stream);
  facegrad_status (*backbone_info)(const struct facegrad_backbone *backbone,
                                   char *buffer,
                                   size_t capacity,
                                   size_t *needed);
  void (*backbone_free)(struct facegrad_backbone *backbone);
  facegrad_status (*vae_new)(const struct facegrad_context *context,
                             const char *config,
                             struct facegrad_vae **out);
  facegrad_status (*vae_new_from_tensors)(const struct facegrad_context *context,
                                          const char *const *names,
                                          const struct facegrad_tensor *tensors,
                                          size_t count,
                                          const char *config,
                                          struct facegrad_vae **out);
  facegrad_status (*vae_decode)(struct facegrad_vae *vae,
                                const struct facegrad_tensor *latents,
                                const struct facegrad_tensor *images,
                                void *stream);
  facegrad_status (*vae_info)(const struct facegrad_vae *vae,
                              char *buffer,
                              size_t capacity,
                              size_t *needed);
  void (*vae_free)(struct facegrad_vae *vae);
  facegrad_status (*loss_new)(const struct facegrad_context *context,
                              const struct facegrad_detector *detector,
                              const struct facegrad_backbone *backbone,
                              const struct facegrad_vae *vae,
                              const char *config,
                              struct facegrad_loss **out);
  facegrad_status (*loss_set_reference)(struct facegrad_loss *loss,
                                        const char *id,
                                        const struct facegrad_tensor *images,
                                        const struct facegrad_tensor *landmarks,
                                        void *stream);
  facegrad_status (*loss_remove_reference)(struct facegrad_loss *loss, const char *id);
  facegrad_status (*loss_images)(struct facegrad_loss *loss,
                                 const struct facegrad_tensor *images,
                                 const struct facegrad_targets *targets,
                                 const struct facegrad_tensor *gradient,
                                 struct facegrad_sample *samples,
                                 size_t samples_capacity,
                                 struct facegrad_result *result,
                                 void *stream);
  facegrad_status (*loss_step)(struct facegrad_loss *loss,
                               const struct facegrad_step *step,
                               const struct facegrad_targets *targets,
                               const struct facegrad_tensor *gradient,
                               struct facegrad_sample *samples,
                               size_t samples_capacity,
                               struct facegrad_result *result,
                               void *stream);
  facegrad_status (*loss_info)(const struct facegrad_loss *loss,
                               char *buffer,
                               size_t capacity,
                               size_t *needed);
  void (*loss_free)(struct facegrad_loss *loss);
  facegrad_status (*graph_new)(const struct facegrad_context *context, struct facegrad_graph **out);
  facegrad_status (*graph_input)(struct facegrad_graph *graph,
                                 const struct facegrad_tensor *tensor,
                                 int32_t needs_gradient,
                                 int64_t *node,
                                 void *stream);
  facegrad_status (*graph_predict_x0)(struct facegrad_graph *graph,
                                      int64_t x_t,
                                      int64_t prediction,
                                      const struct facegrad_tensor *times,
                                      const char *config,
                                      int64_t *node,
                                      void *stream);
  facegrad_status (*graph_unpack)(struct facegrad_graph *graph,
                                  int64_t latents,
                                  const struct facegrad_vae *vae,
                                  const char *config,
                                  int64_t height,
                                  int64_t width,
                                  int64_t *node,
                                  void *stream);
  facegrad_status (*graph_decode)(struct facegrad_graph *graph,
                                  int64_t latents,
                                  struct facegrad_vae *vae,
                                  const char *config,
                                  int64_t *node,
                                  void *stream);
  facegrad_status (*graph_face_loss)(struct facegrad_graph *graph,
                                     int64_t images,
                                     struct facegrad_loss *loss,
                                     const struct facegrad_targets *targets,
                                     struct facegrad_sample *samples,
                                     size_t samples_capacity,
                                     struct facegrad_result *result,
                                     int64_t *node,
                                     void *stream);
  facegrad_status (*graph_shape)(const struct facegrad_graph *graph,
                                 int64_t node,
                                 int64_t *shape,
                                 size_t capacity,
                                 size_t *ndim);
  facegrad_status (*graph_read)(const struct facegrad_graph *graph,
                                int64_t node,
                                const struct facegrad_tensor *tensor,
                                void *stream);
  facegrad_status (*graph_backward)(struct facegrad_graph *graph,
                                    int64_t node,
                                    const struct facegrad_tensor *seed,
                                    void *stream);
  facegrad_status (*graph_gradient)(const struct facegrad_graph *graph,
                                    int64_t node,
                                    const struct facegrad_tensor *tensor,
                                    void *stream);
  void (*graph_free)(struct facegrad_graph *graph);
  const char *(*version)(void);
  facegrad_status (*build_info)(char *buffer, size_t capacity, size_t *needed);
  const char *(*status_name)(facegrad_status status);
  facegrad_status (*last_error)(char *buffer, size_t capacity, size_t *needed);
  facegrad_status (*set_log_callback)(facegrad_log_callback log, void *user_data, int32_t max_level);
  facegrad_status (*debug_live)(const char *kind, int64_t *count);
  facegrad_status (*evaluator_new)(const struct facegrad_context *context,
                                   const char *config,
                                   struct facegrad_evaluator **out);
  facegrad_status (*evaluator_faces)(struct facegrad_evaluator *evaluator,
                                     const struct facegrad_tensor *images,
                                     struct facegrad_face *faces,
                                     size_t capacity,
                                     const struct facegrad_tensor *embeddings,
                                     size_t *count,
                                     void *stream);
  facegrad_status (*evaluator_align)(struct facegrad_evaluator *evaluator,
                                     const struct facegrad_tensor *images,
                                     const struct facegrad_face *faces,
                                     size_t count,
                                     const struct facegrad_tensor *crops,
                                     void *stream);
  facegrad_status (*evaluator_set_reference)(struct facegrad_evaluator *evaluator,
                                             const char *id,
                                             const struct facegrad_tensor *images,
                                             const struct facegrad_tensor *landmarks,
                                             void *stream);
  facegrad_status (*evaluator_remove_reference)(struct facegrad_evaluator *evaluator, const char *id);
  facegrad_status (*evaluator_compare)(struct facegrad_evaluator *evaluator,
                                       const struct facegrad_tensor *images,
                                       const struct facegrad_targets *targets,
                                       struct facegrad_sample *samples,
                                       size_t samples_capacity,
                                       struct facegrad_result *result,
                                       void *stream);
  facegrad_status (*evaluator_find)(struct facegrad_evaluator *evaluator,
                                    const struct facegrad_tensor *images,
                                    const char *const *ids,
                                    size_t people,
                                    struct facegrad_sample *samples,
                                    size_t samples_capacity,
                                    struct facegrad_result *result,
                                    void *stream);
  facegrad_status (*evaluator_info)(const struct facegrad_evaluator *evaluator,
                                    char *buffer,
                                    size_t capacity,
                                    size_t *needed);
  void (*evaluator_free)(struct facegrad_evaluator *evaluator);
  facegrad_status (*loss_save)(struct facegrad_loss *loss, const char *path);
  facegrad_status (*loss_restore)(struct facegrad_loss *loss, const char *path);
  facegrad_status (*vae_new_from_functions)(const struct facegrad_context *context,
                                            facegrad_decode_function decode,
                                            facegrad_vjp_function vjp,
                                            void *user_data,
                                            const char *config,
                                            struct facegrad_vae **out);
  facegrad_status (*graph_features)(struct facegrad_graph *graph,
                                    int64_t crops,
                                    struct facegrad_backbone *backbone,
                                    const char *level,
                                    int64_t *node,
                                    void *stream);
  facegrad_status (*sampler_step)(const struct facegrad_context *context,
                                  const struct facegrad_tensor *x_t,
                                  const struct facegrad_tensor *prediction,
                                  const struct facegrad_tensor *times,
                                  const struct facegrad_tensor *next_times,
                                  const char *config,
                                  const struct facegrad_tensor *next,
                                  void *stream);
  facegrad_status (*graph_sampler_step)(struct facegrad_graph *graph,
                                        int64_t x_t,
                                        int64_t prediction,
                                        const struct facegrad_tensor *times,
                                        const struct facegrad_tensor *next_times,
                                        const char *config,
                                        int64_t *node,
                                        void *stream);
} facegrad_api;

/**
 * The call did what it says.
 */
#define FACEGRAD_OK 0

/**
 * A required pointer is NULL.
 */
#define FACEGRAD_ERR_NULL 1

/**
 * A value is outside what the function takes.
 */
#define FACEGRAD_ERR_ARGUMENT 2

/**
 * A struct of a newer version sets a field that this library does not know.
 */
#define FACEGRAD_ERR_UNSUPPORTED 3

/**
 * A tensor's dtype.
 */
#define FACEGRAD_ERR_DTYPE 4

/**
 * A tensor's rank or size.
 */
#define FACEGRAD_ERR_SHAPE 5

/**
 * A tensor's strides, offset or alignment.
 */
#define FACEGRAD_ERR_LAYOUT 6

/**
 * A tensor on another device than the context, or a device that is not there.
 */
#define FACEGRAD_ERR_DEVICE 7

/**
 * A configuration that is not JSON, or has an unknown key or value.
 */
#define FACEGRAD_ERR_CONFIG 8

/**
 * A handle that was freed, is of another type, or never was one.
 */
#define FACEGRAD_ERR_HANDLE 9

/**
 * A callback called back into the library.
 */
#define FACEGRAD_ERR_REENTRANT 10

/**
 * The context was made before this process was forked.
 */
#define FACEGRAD_ERR_FORKED 11

/**
 * An earlier call on this context ended in `FACEGRAD_ERR_PANIC`.
 */
#define FACEGRAD_ERR_POISONED 12

/**
 * A C++ exception left a callback during the call. The exception ended there; outputs are not to be used.
 */
#define FACEGRAD_ERR_CALLBACK 13

/**
 * The process is ending: `exit` was called, or the main program has returned.
 */
#define FACEGRAD_ERR_EXITING 14

/**
 * A file cannot be found or read.
 */
#define FACEGRAD_ERR_IO 100

/**
 * A file is of the wrong kind, or damaged.
 */
#define FACEGRAD_ERR_FORMAT 101

/**
 * A file asks for more than the reader's limits allow.
 */
#define FACEGRAD_ERR_LIMIT 102

/**
 * A file's tensors are not those of the network.
 */
#define FACEGRAD_ERR_WEIGHTS 103

/**
 * A model uses an operator that is not implemented; the text names it.
 */
#define FACEGRAD_ERR_OPERATOR 104

/**
 * The device is out of memory; nothing is leaked and a smaller call works.
 */
#define FACEGRAD_ERR_OUT_OF_MEMORY 200

/**
 * libtorch reported an error.
 */
#define FACEGRAD_ERR_TORCH 201

/**
 * ONNX Runtime is missing or reported an error.
 */
#define FACEGRAD_ERR_ONNXRUNTIME 202

/**
 * A defect of this library.
 */
#define FACEGRAD_ERR_INTERNAL 900

/**
 * A defect of this library that ended in a panic. The context is poisoned: free it.
 */
#define FACEGRAD_ERR_PANIC 901

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The ABI version of the library that is loaded: compare it with `FACEGRAD_ABI_VERSION`.
 */
uint32_t facegrad_abi_version(void);

/**
 * `facegrad/x.y.z torch/x.y.z`: the versions of this library and of the torch in this process. A static string.
 */
const char *facegrad_version(void);

/**
 * What the library was built for and what it finds, as a JSON object with the keys `facegrad`,
 * `abi`, `torch` (the version in this process), `torch_compiled` (the version that `libfacegrad_torch.so` was
 * compiled for), `onnxruntime_api` (the least API level that ONNX Runtime must serve), `cuda_devices`
 * (devices that torch sees; 0 while its CUDA half is not loaded), `loss_keys` (the keys of a loss's config).
 *
 * @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
 * @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
 */
facegrad_status facegrad_build_info(char *buffer,
                                    size_t capacity,
                                    size_t *needed);

/**
 * The name of a status: a static string, `unknown` for a number that this library never returns.
 */
const char *facegrad_status_name(facegrad_status status);

/**
 * What went wrong in the last call on this thread that failed: a sentence that names the argument,
 * what was expected and what came. A call that succeeds leaves it as it is.
 *
 * @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
 * @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
 */
facegrad_status facegrad_last_error(char *buffer, size_t capacity, size_t *needed);

/**
 * Where the library's messages go; without a callback they go nowhere. The library never prints.
 * The setting is the process's and holds until the next call.
 *
 * @param[in] log the receiver; NULL ends the messages
 * @param[in] user_data handed to every call of `log`; must stay valid as long as the setting
 * @param[in] max_level the least important level to send, `FACEGRAD_LOG_*`
 */
facegrad_status facegrad_set_log_callback(facegrad_log_callback log,
                                          void *user_data,
                                          int32_t max_level);

/**
 * Counts live handles: for a host's own leak tests.
 *
 * @param[in] kind `context`, `detector`, `backbone`, `vae`, `loss`, `graph`, `evaluator`; NULL
 * counts all
 */
facegrad_status facegrad_debug_live(const char *kind, int64_t *count);

/**
 * Makes a context and starts its thread.
 *
 * @param[in] config JSON `{"device": "cpu" | "cuda" | "cuda:N"}`; NULL means the CPU
 * @param[out] out the new context; NULL on failure
 *
 * Errors: `CONFIG` for unknown keys, `DEVICE` where the device is not there, `TORCH` where the torch
 * of the process is not the one the library was built for.
 */
facegrad_status facegrad_context_new(const char *config,
                                     struct facegrad_context **out);

/**
 * Frees a context. What was made with it stays usable until it is freed itself.
 * NULL does nothing; so does a handle that was freed.
 */
void facegrad_context_free(struct facegrad_context *context);

/**
 * Panics on the context's thread, on purpose: lets a host test how it meets `FACEGRAD_ERR_PANIC` and
 * `FACEGRAD_ERR_POISONED`. The context can only be freed afterwards.
 */
facegrad_status facegrad_debug_panic(struct facegrad_context *context);

/**
 * Loads an SCRFD face detector (InsightFace's det_10g.onnx, det_500m.onnx, scrfd_10g_bnkps.onnx, …).
 *
 * @param[in] config JSON: `path` (required); `engine` "auto" | "ort" | "torch"; `det_sizes` sides of
 * the detection canvases, or pairs [width, height], multiples of 32 (default [640]), whose finds are merged; `threshold`
 * (0.5); `nms_threshold` (0.4); `onnxruntime` the path of ONNX Runtime's library or folder; `providers` its
 * execution providers, best first, where one that is not there is an error (`facegrad_evaluator_new` lists
 * them); `min_size` least length of a face's shorter side, pixels; `retry_sizes` sides tried in turn where
 * `det_sizes` find nothing; `retry_padding` then `det_sizes` again with a black border of this part of the
 * picture's longer side
 * @param[out] out the new detector; NULL on failure
 *
 * Errors: `CONFIG`, `IO`, `FORMAT`, `OPERATOR`, `ONNXRUNTIME`.
 */
facegrad_status facegrad_detector_new(const struct facegrad_context *context,
                                      const char *config,
                                      struct facegrad_detector **out);

/**
 * Finds the faces of a batch of images, ordered by image and then by falling score. Without a
 * gradient.
 *
 * @param[in] images `[N,3,H,W]` RGB: uint8, or float32, float16 or bfloat16 in [0, 1], rounded to 8 bits as
 * the detectors were trained. An image with NaN has no faces.
 * @param[out] faces receives the first `capacity` faces; the first element's `struct_size` must be
 * set; NULL with `capacity` 0 only counts
 * @param[out] count how many faces there are, also beyond `capacity`
 * @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU. Waits for the result.
 */
facegrad_status facegrad_detector_detect(struct facegrad_detector *detector,
                                         const struct facegrad_tensor *images,
                                         struct facegrad_face *faces,
                                         size_t capacity,
                                         size_t *count,
                                         void *stream);

/**
 * What was loaded: file, engine and why, detection sizes. One line of text.
 *
 * @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
 * @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
 */
facegrad_status facegrad_detector_info(const struct facegrad_detector *detector,
                                       char *buffer,
                                       size_t capacity,
                                       size_t *needed);

/**
 * Frees a detector. A loss that was made with it keeps what it needs.
 */
void facegrad_detector_free(struct facegrad_detector *detector);

/**
 * Loads a frozen recogniser: arcface_torch weights (`.pth`, `.safetensors`) or any recogniser ONNX
 * (InsightFace's w600k_r50.onnx, glintr100.onnx, …), both differentiable. The file's kind is found
 * from its content.
 *
 * @param[in] config JSON: `path` (required); `model` "r18" | "r34" | "r50" | "r100" | "r200", checked
 * against the file; `input_size` pixels; `mean`, `std` three numbers each in units of an image in
 * [0, 1]; `color` "rgb" | "bgr"; `dtype` "f32" | "bf16" | "f16". What is left out comes from the
 * model's known family; `facegrad_backbone_info` says what is used.
 * @param[out] out the new recogniser; NULL on failure
 *
 * Errors: `CONFIG`, `IO`, `FORMAT`, `LIMIT`, `WEIGHTS`, `OPERATOR`.
 */
facegrad_status facegrad_backbone_new(const struct facegrad_context *context,
                                      const char *config,
                                      struct facegrad_backbone **out);

/**
 * Embeds faces, without a gradient. Rows have length 1, so the cosine of two is their dot product.
 *
 * @param[in] images `[N,3,H,W]` RGB in [0, 1]
 * @param[in] faces `count` faces in them, aligned by landmarks where `has_landmarks`, else by box;
 * NULL with `count` 0 means that `images` are crops of `input_size` already
 * @param[out] embeddings `[count,D]` (`[N,D]` for crops), any float dtype
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 */
facegrad_status facegrad_backbone_embed(struct facegrad_backbone *backbone,
                                        const struct facegrad_tensor *images,
                                        const struct facegrad_face *faces,
                                        size_t count,
                                        const struct facegrad_tensor *embeddings,
                                        void *stream);

/**
 * Cuts faces out as `facegrad_backbone_embed` and the loss see them: for looking at.
 *
 * @param[in] images `[N,3,H,W]` RGB
 * @param[in] faces `count` faces in them
 * @param[out] crops `[count,3,S,S]`, S the recogniser's input size; in the images' units
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 */
facegrad_status facegrad_backbone_align(struct facegrad_backbone *backbone,
                                        const struct facegrad_tensor *images,
                                        const struct facegrad_face *faces,
                                        size_t count,
                                        const struct facegrad_tensor *crops,
                                        void *stream);

/**
 * What was loaded, as a JSON object: `description` (family, file, normalisation, colour order and
 * where each comes from), `dim` (numbers of an embedding), `input_size` (pixels).
 *
 * @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
 * @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
 */
facegrad_status facegrad_backbone_info(const struct facegrad_backbone *backbone,
                                       char *buffer,
                                       size_t capacity,
                                       size_t *needed);

/**
 * Frees a recogniser. A loss that was made with it keeps what it needs.
 */
void facegrad_backbone_free(struct facegrad_backbone *backbone);

/**
 * Loads the frozen decoder of a VAE: AutoencoderKL (SD1.5, SDXL, SD3, FLUX.1 and all that share it),
 * FLUX.2, Qwen-Image and Wan 2.1 (one frame), the TAESD family, or TorchScript. The family and the dialect
 * of the names (diffusers, LDM, ComfyUI, Wan) are found from the tensors; a config.json beside the file
 * is read.
 *
 * @param[in] config JSON: `path` a file, single-file checkpoint or diffusers folder (required); `family`
 * "kl" | "flux2" | "wan" | "tiny" | "torchscript", which has to be named, since loading a TorchScript file runs code that
 * is in it; `dtype` "f32" | "bf16" | "f16"; `recompute` "none" |
 * "blocks" (keeps only the blocks' inputs for the backward pass); `slicing` decodes one sample at a time;
 * `norm_num_groups`; `model_config` what diffusers' config.json says (an object), in place of the one beside
 * the file; for TorchScript `latent_channels`, `image_range` "signed" | "unit", `scale_factor`
 * @param[out] out the new decoder; NULL on failure
 *
 * Errors: `CONFIG`, `IO`, `FORMAT`, `LIMIT`, `WEIGHTS`.
 */
facegrad_status facegrad_vae_new(const struct facegrad_context *context,
                                 const char *config,
                                 struct facegrad_vae **out);

/**
 * Builds a decoder from tensors that the host already has, named as in any of the files above. Tensors
 * of the configured dtype on the context's device are used where they are: they must stay, unchanged,
 * until the decoder and every loss made with it are freed. Waits for all work on the context's device.
 *
 * @param[in] names `count` names
 * @param[in] tensors `count` tensors
 * @param[in] config as in `facegrad_vae_new`, without `path`; NULL for the defaults
 * @param[out] out the new decoder; NULL on failure
 */
facegrad_status facegrad_vae_new_from_tensors(const struct facegrad_context *context,
                                              const char *const *names,
                                              const struct facegrad_tensor *tensors,
                                              size_t count,
                                              const char *config,
                                              struct facegrad_vae **out);

/**
 * Decodes latents, without a gradient.
 *
 * @param[in] latents `[B,C,h,w]` as the VAE takes them (not scaled by a model), float32, float16 or
 * bfloat16
 * @param[out] images `[B,3,s·h,s·w]`, RGB in units of [0, 1], not clamped; any float dtype
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 */
facegrad_status facegrad_vae_decode(struct facegrad_vae *vae,
                                    const struct facegrad_tensor *latents,
                                    const struct facegrad_tensor *images,
                                    void *stream);

/**
 * What was loaded, as a JSON object: `description`, `channels` of the latents, `scale_factor` (image
 * pixels per latent pixel), `latent_format` as a loss's config takes it (null where the files do not tell).
 *
 * @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
 * @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
 */
facegrad_status facegrad_vae_info(const struct facegrad_vae *vae,
                                  char *buffer,
                                  size_t capacity,
                                  size_t *needed);

/**
 * Frees a decoder. A loss that was made with it keeps what it needs.
 */
void facegrad_vae_free(struct facegrad_vae *vae);

/**
 * Makes a decoder of the host's own: any VAE, and models whose latents are pixels. Loss, gates, packing and report are as
 * with the library's decoders; windows are not available.
 *
 * @param[in] decode, vjp what the host does; both are called until the decoder and every loss and graph made with it
 * are freed
 * @param[in] user_data handed to every call; may be NULL
 * @param[in] config JSON: `latent_channels` (0: any); `image_range` of the images, "signed" ([-1, 1], default) | "unit"
 * ([0, 1]); `latent_format` as in `facegrad_loss_new` (default "none"); `slicing` decodes one sample at a time. NULL for
 * the defaults
 * @param[out] out the new decoder; NULL on failure
 *
 * Errors: `NULL`, `CONFIG`.
 */
facegrad_status facegrad_vae_new_from_functions(const struct facegrad_context *context,
                                                facegrad_decode_function decode,
                                                facegrad_vjp_function vjp,
                                                void *user_data,
                                                const char *config,
                                                struct facegrad_vae **out);

/**
 * Makes a loss. Networks may be handed over, and shared between losses, or named in the
 * configuration; without any detector the host has to say where every face is.
 *
 * @param[in] detector NULL: loaded from the config's `detector`, where there is one
 * @param[in] backbone NULL: loaded from the config's `arcface_weights`
 * @param[in] vae needed by `facegrad_loss_step` alone; NULL: loaded from the config's `vae`, where there is
 * one
 * @param[in] config JSON, all keys optional, NULL for the defaults: the keys are described in docs/configuration.md, and
 * `facegrad_build_info` lists their names
 * @param[out] out the new loss; NULL on failure
 *
 * Errors: `CONFIG`, `ARGUMENT` (objects of another context), and those of the networks' constructors.
 */
facegrad_status facegrad_loss_new(const struct facegrad_context *context,
                                  const struct facegrad_detector *detector,
                                  const struct facegrad_backbone *backbone,
                                  const struct facegrad_vae *vae,
                                  const char *config,
                                  struct facegrad_loss **out);

/**
 * Registers a reference person under an id, replacing an earlier one. Images without a face are
 * left out with a warning; it is an error when none has one.
 *
 * @param[in] id any UTF-8 text
 * @param[in] images `[K,3,H,W]` RGB in [0, 1], K ≥ 1
 * @param[in] landmarks `[K,5,2]` where the faces are, pixels, rows of NaN for not known; NULL: detected
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 */
facegrad_status facegrad_loss_set_reference(struct facegrad_loss *loss,
                                            const char *id,
                                            const struct facegrad_tensor *images,
                                            const struct facegrad_tensor *landmarks,
                                            void *stream);

/**
 * Forgets a registered reference.
 *
 * Errors: `ARGUMENT` where the id was not registered.
 */
facegrad_status facegrad_loss_remove_reference(struct facegrad_loss *loss, const char *id);

/**
 * The loss of a batch of images and its gradient, in one call.
 *
 * A sample that cannot count (gated, no face, not finite) counts nothing, has a gradient of exactly
 * zero and says why; when all are out, loss and gradient are 0 and the call succeeds.
 *
 * @param[in] images `[N,3,H,W]` RGB, nominally in [0, 1], float32, float16 or bfloat16; not clamped
 * @param[in] targets references and per-sample facts
 * @param[out] gradient of `result->loss` with respect to `images`: the same shape, any float dtype, best
 * float32 (see `facegrad_loss_step`); NULL: not computed
 * @param[out] samples N reports; the first element's `struct_size` must be set; may be NULL
 * @param[in] samples_capacity elements of `samples`, at least N unless it is NULL
 * @param[out] result may be NULL; its `struct_size` must be set
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU. `samples` and `result` are
 * ready on return, `gradient` in the stream's order.
 */
facegrad_status facegrad_loss_images(struct facegrad_loss *loss,
                                     const struct facegrad_tensor *images,
                                     const struct facegrad_targets *targets,
                                     const struct facegrad_tensor *gradient,
                                     struct facegrad_sample *samples,
                                     size_t samples_capacity,
                                     struct facegrad_result *result,
                                     void *stream);

/**
 * Writes what the loss remembers to a file: registered references, faces of reference images, statistics of
 * `norm_stats`, and whether audits have ended the use of windows. With it a training that was stopped goes on
 * with the same numbers. The file is there as a whole or not at all; it holds embeddings of people's faces.
 *
 * @param[in] path replaces a file of that name
 *
 * Errors: `IO`.
 */
facegrad_status facegrad_loss_save(struct facegrad_loss *loss,
                                   const char *path);

/**
 * Remembers what `facegrad_loss_save` wrote, in place of all that the loss remembers. The configuration is the
 * loss's own. On failure nothing changes.
 *
 * @param[in] path a file of any content: nothing in it is trusted
 *
 * Errors: `IO`, `FORMAT` for another or a damaged file, `LIMIT`; `ARGUMENT` where the recogniser or the VAE is another
 * than the one that it was saved with; `UNSUPPORTED` for a file of a newer library.
 */
facegrad_status facegrad_loss_restore(struct facegrad_loss *loss,
                                      const char *path);

/**
 * What the loss uses, as a JSON object: `detector`, `backbone`, `vae`, `face_align_mode`,
 * `face_loss_weight`, `face_types`; `latent_format`, the config's or else what the VAE's files tell; `settings`, every
 * key of the config with the value that counts.
 *
 * @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
 * @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
 */
facegrad_status facegrad_loss_info(const struct facegrad_loss *loss,
                                   char *buffer,
                                   size_t capacity,
                                   size_t *needed);

/**
 * Frees a loss.
 */
void facegrad_loss_free(struct facegrad_loss *loss);

/**
 * One training step: from the model's prediction to the weighted loss and its gradient with respect to
 * the prediction, in the prediction's own packing. A sample that is gated out by its data type, noise level or
 * step number costs nothing.
 *
 * @param[in] step latents, prediction and times
 * @param[in] targets as in `facegrad_loss_images`; pixels are those of the decoded image
 * @param[out] gradient of `result->loss` with respect to `step->prediction`: the same shape, any float
 * dtype; NULL: not computed. Take float32, whatever the prediction's dtype is, and multiply a loss scale in before
 * casting: unscaled, most of it is below float16's least number
 * @param[out] samples, result and the rest as in `facegrad_loss_images`
 */
facegrad_status facegrad_loss_step(struct facegrad_loss *loss,
                                   const struct facegrad_step *step,
                                   const struct facegrad_targets *targets,
                                   const struct facegrad_tensor *gradient,
                                   struct facegrad_sample *samples,
                                   size_t samples_capacity,
                                   struct facegrad_result *result,
                                   void *stream);

/**
 * The deterministic step of a sampler: from the noisy latents and the model's prediction to the same sample
 * at another noise level. Euler's step for flow matching, DDIM's with eta 0 for epsilon, v and x0. It is linear
 * in both, so every packing is as good as any other. Computed in float32, without a gradient.
 *
 * @param[in] x_t the noisy latents `[N,...]` in the host's layout; float32, float16 or bfloat16
 * @param[in] prediction the model's prediction, of the same shape; float32, float16 or bfloat16
 * @param[in] times `[N]`, the noise levels of `x_t`, as `config` says; on any device
 * @param[in] next_times `[N]`, the noise levels to go to, lower or higher; -1 among the timesteps 0 to 999 of
 * epsilon, v and x0 is the clean latent
 * @param[in] config JSON, the object `prediction` of `facegrad_loss_new`; NULL for flow matching. Kind "sample"
 * is x0 of a variance-preserving process; of a flow model give the velocity (x_t - x0) / t. Kind "custom" has no
 * step
 * @param[out] next the latents at `next_times`: the shape of `x_t`, any float dtype; it may be the memory of
 * `x_t`
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 *
 * Errors: `ARGUMENT` for a level outside its range, naming the sample; `SHAPE`, `DTYPE`, `DEVICE`, `CONFIG`.
 */
facegrad_status facegrad_sampler_step(const struct facegrad_context *context,
                                      const struct facegrad_tensor *x_t,
                                      const struct facegrad_tensor *prediction,
                                      const struct facegrad_tensor *times,
                                      const struct facegrad_tensor *next_times,
                                      const char *config,
                                      const struct facegrad_tensor *next,
                                      void *stream);

/**
 * Makes an empty graph. Its nodes are numbers that count from 0 in the order of making; every node
 * is computed when it is made and stays until the graph is freed.
 *
 * @param[out] out the new graph; NULL on failure
 */
facegrad_status facegrad_graph_new(const struct facegrad_context *context,
                                   struct facegrad_graph **out);

/**
 * Adds a copy of a tensor.
 *
 * @param[in] tensor float32, float16 or bfloat16, any shape
 * @param[in] needs_gradient not 0: `facegrad_graph_gradient` will be asked for it
 * @param[out] node the new node
 * @param[in] stream cudaStream_t that `tensor` is ready on; NULL on a CPU
 */
facegrad_status facegrad_graph_input(struct facegrad_graph *graph,
                                     const struct facegrad_tensor *tensor,
                                     int32_t needs_gradient,
                                     int64_t *node,
                                     void *stream);

/**
 * The clean latent x0 = a·x_t + b·prediction, in the prediction's layout, float32.
 *
 * @param[in] x_t a node, or -1 where the model predicts x0 itself
 * @param[in] prediction a node
 * @param[in] times `[N]`, as `config` says, or `[N,2]` pairs a, b for kind "custom"; NULL for "sample"
 * @param[in] config JSON, the object `prediction` of `facegrad_loss_new`; NULL for flow matching
 * @param[out] node the new node
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 */
facegrad_status facegrad_graph_predict_x0(struct facegrad_graph *graph,
                                          int64_t x_t,
                                          int64_t prediction,
                                          const struct facegrad_tensor *times,
                                          const char *config,
                                          int64_t *node,
                                          void *stream);

/**
 * The sample at another noise level, as in `facegrad_sampler_step`: a node of `x_t`'s dtype and layout that no
 * gradient passes.
 *
 * @param[in] x_t a node: the noisy latents
 * @param[in] prediction a node of the same shape
 * @param[in] times `[N]`, the noise levels of `x_t`, as `config` says
 * @param[in] next_times `[N]`, the noise levels to go to
 * @param[in] config JSON, the object `prediction` of `facegrad_loss_new`; NULL for flow matching
 * @param[out] node the new node
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 */
facegrad_status facegrad_graph_sampler_step(struct facegrad_graph *graph,
                                            int64_t x_t,
                                            int64_t prediction,
                                            const struct facegrad_tensor *times,
                                            const struct facegrad_tensor *next_times,
                                            const char *config,
                                            int64_t *node,
                                            void *stream);

/**
 * Model-space latents in the host's packing → what the VAE decodes, `[B,C,H,W]` float32.
 *
 * @param[in] latents a node
 * @param[in] vae of the same context: its files may tell the latent format, and hold FLUX.2's statistics
 * @param[in] config JSON: `packing`, `latent_crop`, `latent_format` as in `facegrad_loss_new`; NULL for the
 * defaults
 * @param[in] height, width of the unpacked latent in latent pixels; 0 where the layout tells
 * @param[out] node the new node
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 */
facegrad_status facegrad_graph_unpack(struct facegrad_graph *graph,
                                      int64_t latents,
                                      const struct facegrad_vae *vae,
                                      const char *config,
                                      int64_t height,
                                      int64_t width,
                                      int64_t *node,
                                      void *stream);

/**
 * VAE-space latents → images `[B,3,H,W]` in [0, 1], float32.
 *
 * @param[in] latents a node of shape `[B,C,h,w]`
 * @param[in] vae of the same context
 * @param[in] config JSON: `clamp` as in `facegrad_loss_new`; NULL for the default
 * @param[out] node the new node
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 */
facegrad_status facegrad_graph_decode(struct facegrad_graph *graph,
                                      int64_t latents,
                                      struct facegrad_vae *vae,
                                      const char *config,
                                      int64_t *node,
                                      void *stream);

/**
 * What a recogniser makes of aligned crops at one of its levels, float32, not normalised. The gradient flows to the crops.
 *
 * @param[in] crops a node of shape `[M,3,S,S]`, RGB in [0, 1]
 * @param[in] backbone of the same context
 * @param[in] level "embedding", the last, `[M,D]`; of an IResNet "layer1" to "layer4", `[M,C,h,w]`; of an ONNX model an
 * output by its name. NULL: "embedding"
 * @param[out] node the new node
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 *
 * Errors: `SHAPE`, `CONFIG` for a level that the recogniser does not have.
 */
facegrad_status facegrad_graph_features(struct facegrad_graph *graph,
                                        int64_t crops,
                                        struct facegrad_backbone *backbone,
                                        const char *level,
                                        int64_t *node,
                                        void *stream);

/**
 * The loss of a node of images: a scalar float32 node. The same numbers as `facegrad_loss_images`.
 *
 * @param[in] images a node of shape `[N,3,H,W]`
 * @param[in] loss a loss of the same context
 * @param[in] targets, samples, samples_capacity, result as in `facegrad_loss_images`
 * @param[out] node the new node
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 */
facegrad_status facegrad_graph_face_loss(struct facegrad_graph *graph,
                                         int64_t images,
                                         struct facegrad_loss *loss,
                                         const struct facegrad_targets *targets,
                                         struct facegrad_sample *samples,
                                         size_t samples_capacity,
                                         struct facegrad_result *result,
                                         int64_t *node,
                                         void *stream);

/**
 * The sizes of a node's value.
 *
 * @param[out] shape receives the first `capacity` sizes; may be NULL with `capacity` 0
 * @param[out] ndim the number of dimensions; 0 for a scalar
 */
facegrad_status facegrad_graph_shape(const struct facegrad_graph *graph,
                                     int64_t node,
                                     int64_t *shape,
                                     size_t capacity,
                                     size_t *ndim);

/**
 * Copies a node's value out.
 *
 * @param[out] tensor the node's shape, any float dtype
 * @param[in] stream cudaStream_t that the copy is put on; NULL on a CPU
 */
facegrad_status facegrad_graph_read(const struct facegrad_graph *graph,
                                    int64_t node,
                                    const struct facegrad_tensor *tensor,
                                    void *stream);

/**
 * Computes the gradients of a node with respect to all nodes before it. The gradients of an earlier call are dropped.
 *
 * @param[in] node the node to differentiate, usually a loss
 * @param[in] seed the gradient with respect to it, of its shape; NULL: ones
 * @param[in] stream cudaStream_t that the work is put on, the one of the graph's nodes; NULL on a CPU
 */
facegrad_status facegrad_graph_backward(struct facegrad_graph *graph,
                                        int64_t node,
                                        const struct facegrad_tensor *seed,
                                        void *stream);

/**
 * Copies the gradient with respect to a node from the last `facegrad_graph_backward`; zeros where the node has no
 * influence.
 *
 * @param[out] tensor the node's shape, any float dtype
 * @param[in] stream cudaStream_t that the copy is put on; NULL on a CPU
 */
facegrad_status facegrad_graph_gradient(const struct facegrad_graph *graph,
                                        int64_t node,
                                        const struct facegrad_tensor *tensor,
                                        void *stream);

/**
 * Frees a graph with all its nodes.
 */
void facegrad_graph_free(struct facegrad_graph *graph);

/**
 * Makes an evaluator: faces, embeddings and similarities as insightface's FaceAnalysis computes them, from
 * 8-bit pixels, without a gradient.
 *
 * @param[in] config JSON: `detector` (required) the path of an SCRFD ONNX, or the object of
 * `facegrad_detector_new` with its own `engine`, `providers` and `onnxruntime`; `recogniser` (required) the
 * path of a recogniser's ONNX or weights, or the object of `facegrad_backbone_new`; `engine` "auto" | "ort" |
 * "torch"; `providers` ONNX Runtime's execution providers, best first: "cpu" | "cuda" | "tensorrt" | "rocm" |
 * "migraphx" | "openvino" | "coreml" | "directml", where one that is not there is an error; `onnxruntime` the
 * path of its library or folder; `face_choice` "score" | "largest" | "center" | "index" with `face_index`;
 * `pooling` of several reference images of one person "centroid" (the cosine with their normalised mean) |
 * "mean" (of the cosines) | "max"; `face_types` the data types that count (all)
 * @param[out] out the new evaluator; NULL on failure
 *
 * Errors: `CONFIG`, `ONNXRUNTIME` and those of the networks' constructors.
 */
facegrad_status facegrad_evaluator_new(const struct facegrad_context *context,
                                       const char *config,
                                       struct facegrad_evaluator **out);

/**
 * Finds and embeds all faces of a batch of images, ordered by image and then by falling score.
 *
 * @param[in] images `[N,3,H,W]` RGB: uint8, or float32, float16 or bfloat16 in [0, 1], rounded to 8 bits. An
 * image with NaN has no faces.
 * @param[out] faces receives the first `capacity` faces; the first element's `struct_size` must be set; NULL
 * with `capacity` 0 only counts
 * @param[out] embeddings `[capacity,D]`, any float dtype: row i belongs to face i and has length 1, or is NaN
 * where the face spans no area; rows beyond the last face are untouched; NULL: not wanted
 * @param[out] count how many faces there are, also beyond `capacity`
 * @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU. Waits for the result.
 */
facegrad_status facegrad_evaluator_faces(struct facegrad_evaluator *evaluator,
                                         const struct facegrad_tensor *images,
                                         struct facegrad_face *faces,
                                         size_t capacity,
                                         const struct facegrad_tensor *embeddings,
                                         size_t *count,
                                         void *stream);

/**
 * Cuts faces out as the recogniser sees them: insightface's `norm_crop`, by landmarks where a face has them,
 * else by its box.
 *
 * @param[in] images `[N,3,H,W]` RGB, uint8 or float in [0, 1], rounded to 8 bits
 * @param[in] faces `count` faces in them
 * @param[out] crops `[count,3,S,S]` in [0, 1], any float dtype; S is the `input_size` of
 * `facegrad_evaluator_info`
 * @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU. Waits for the result.
 */
facegrad_status facegrad_evaluator_align(struct facegrad_evaluator *evaluator,
                                         const struct facegrad_tensor *images,
                                         const struct facegrad_face *faces,
                                         size_t count,
                                         const struct facegrad_tensor *crops,
                                         void *stream);

/**
 * Registers a person under an id, replacing an earlier one, by the chosen face of every image. Images without
 * a face are left out with a warning; it is an error when none has one.
 *
 * @param[in] id any UTF-8 text
 * @param[in] images `[K,3,H,W]` RGB, uint8 or float in [0, 1], K ≥ 1
 * @param[in] landmarks `[K,5,2]` pixels, rows of NaN for not known: of several faces the nearest counts; NULL:
 * `face_choice` decides
 * @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU
 */
facegrad_status facegrad_evaluator_set_reference(struct facegrad_evaluator *evaluator,
                                                 const char *id,
                                                 const struct facegrad_tensor *images,
                                                 const struct facegrad_tensor *landmarks,
                                                 void *stream);

/**
 * Forgets a registered person.
 *
 * Errors: `ARGUMENT` where the id was not registered.
 */
facegrad_status facegrad_evaluator_remove_reference(struct facegrad_evaluator *evaluator,
                                                    const char *id);

/**
 * Compares one face of every image with its reference.
 *
 * A sample whose face or reference is not found counts nothing and says why; when all are out, the loss is 0
 * and the call succeeds.
 *
 * @param[in] images `[N,3,H,W]` RGB, uint8 or float in [0, 1], rounded to 8 bits
 * @param[in] targets references (uint8 or float) and per-sample facts. Landmarks and boxes say which face is
 * meant: of those that detection finds, the nearest is compared.
 * @param[out] samples N reports; the first element's `struct_size` must be set; may be NULL
 * @param[in] samples_capacity elements of `samples`, at least N unless it is NULL
 * @param[out] result `loss` is `Σ wᵢ·(1 − cosᵢ) / counted`; may be NULL; its `struct_size` must be set
 * @param[in] stream cudaStream_t that the tensors are ready on; NULL on a CPU. Waits for the result.
 */
facegrad_status facegrad_evaluator_compare(struct facegrad_evaluator *evaluator,
                                           const struct facegrad_tensor *images,
                                           const struct facegrad_targets *targets,
                                           struct facegrad_sample *samples,
                                           size_t samples_capacity,
                                           struct facegrad_result *result,
                                           void *stream);

/**
 * Finds several registered people in every image: people and faces are matched one to one so that the sum of
 * their similarities is largest (the Hungarian method).
 *
 * @param[in] images `[N,3,H,W]` RGB, uint8 or float in [0, 1], rounded to 8 bits
 * @param[in] ids `people` ids that `facegrad_evaluator_set_reference` registered
 * @param[out] samples `N · people` reports, image after image, the people in the order of `ids`; a person
 * without a face is `FACEGRAD_SAMPLE_NO_FACE`. The first element's `struct_size` must be set; may be NULL
 * @param[in] samples_capacity elements of `samples`, at least `N · people` unless it is NULL
 * @param[out] result over all of them; may be NULL; its `struct_size` must be set
 * @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU. Waits for the result.
 */
facegrad_status facegrad_evaluator_find(struct facegrad_evaluator *evaluator,
                                        const struct facegrad_tensor *images,
                                        const char *const *ids,
                                        size_t people,
                                        struct facegrad_sample *samples,
                                        size_t samples_capacity,
                                        struct facegrad_result *result,
                                        void *stream);

/**
 * What the evaluator uses, as a JSON object: `detector` and `recogniser` (file, engine and why), `dim` of an
 * embedding, `input_size` of the recogniser.
 *
 * @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
 * @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
 */
facegrad_status facegrad_evaluator_info(const struct facegrad_evaluator *evaluator,
                                        char *buffer,
                                        size_t capacity,
                                        size_t *needed);

/**
 * Frees an evaluator.
 */
void facegrad_evaluator_free(struct facegrad_evaluator *evaluator);

/**
 * The table of all functions: the one symbol that a host that loads the library needs. It is static
 * and never freed.
 *
 * @param[in] abi_version the `FACEGRAD_ABI_VERSION` that the host was compiled with
 *
 * @return NULL where the library does not speak that version
 */
const struct facegrad_api *facegrad_get_api(uint32_t abi_version);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FACEGRAD_H */
