/*
 * facegrad: a differentiable face identity loss for diffusion training.
 *
 * Generated from the library's sources; do not edit.
 *
 * HOW TO READ THIS FILE
 *
 * Objects. A `_new` function makes an object, and the `_free` function of the same type frees it. The
 * library looks a handle up in a table and never follows it, so a handle that was freed or is of
 * another type is FACEGRAD_ERR_HANDLE and not a crash. `_free(NULL)` does nothing. Objects may be freed
 * in any order.
 *
 * Errors. Every function that can fail returns a facegrad_status, which is FACEGRAD_OK (0) on success.
 * facegrad_last_error gives the sentence that belongs to the last failure on the calling thread. On
 * failure no output is touched, except that `out` of a `_new` function becomes NULL. The docs of a
 * function list the errors that are its own, without FACEGRAD_ERR_. Beside them:
 *   - any function: NULL for a required pointer that is NULL, REENTRANT from inside a callback,
 *     CALLBACK where a callback threw, EXITING, and UNSUPPORTED for a field that is not known here;
 *   - a function that takes a handle: HANDLE, FORKED, POISONED, and PANIC for a defect of the library;
 *   - a function that takes a tensor: DTYPE, SHAPE, LAYOUT and DEVICE;
 *   - a function that takes `config`: CONFIG for text that is not JSON, or an unknown key or value;
 *   - a function that computes: OUT_OF_MEMORY and TORCH.
 *
 * Tensors. A facegrad_tensor has the layout of DLPack's DLTensor, so `const DLTensor *` may be cast to
 * it. Inputs are borrowed until the call returns (on CUDA: until the work that it put on `stream` has
 * run). The caller allocates outputs. The host never frees what the library allocated, nor the library
 * what the host allocated. Any strides are allowed, except that the elements of an output must not
 * overlap. An NHWC tensor is an NCHW shape with NHWC strides. Tensors are float32, float16 or bfloat16
 * and lie on the context's device unless a function says otherwise. Images are RGB in [0, 1]. Places in
 * an image are in pixels, with pixel centres at integers.
 *
 * Strings are UTF-8 and end with NUL. A function that returns text copies it into the caller's buffer:
 * call it with NULL and 0 to learn the size. Paths may have any bytes but NUL.
 *
 * Structs start with `struct_size`: zero the whole struct, then set `struct_size` to its sizeof. Later
 * versions only append fields. A field that an older host does not have counts as zero, which means
 * its default. A field that this library does not know must be zero (FACEGRAD_ERR_UNSUPPORTED).
 *
 * Threads. Any function may be called from any thread. All work of a context runs on a thread of its
 * own, one call after the other; different contexts are independent. The caller's grad mode, autocast,
 * random state, current device and stream are neither used nor changed. Release Python's GIL around
 * every call that can run a model. After fork() the contexts of the parent are FACEGRAD_ERR_FORKED in
 * the child.
 *
 * Streams. `stream` is the cudaStream_t on which the inputs are ready and on which the work is put. NULL
 * is CUDA's default stream, and the only value for a context on the CPU. Tensor outputs are ready in the
 * order of the stream. Structs and numbers are ready when the call returns.
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
 * Its image, loss or gradient is not finite.
 */
#define FACEGRAD_SAMPLE_NON_FINITE 7

/**
 * Its noise level lies outside `t_min` to `t_max`.
 */
#define FACEGRAD_SAMPLE_TIME 8

/**
 * The number of the step is not a multiple of `every_n_steps`.
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
 * At the place of the face in the reference image.
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
 * By the box, because the face has no usable landmarks.
 */
#define FACEGRAD_ALIGNMENT_BBOX_FALLBACK 3

/**
 * `facegrad_sample.decoded`: the sample was gated out, or came as an image, so nothing was decoded.
 */
#define FACEGRAD_DECODED_NOTHING 0

/**
 * Its whole image was decoded with a gradient.
 */
#define FACEGRAD_DECODED_FULL 1

/**
 * A window was decoded whose pixels are those of the whole image. In decoders that have GroupNorm, its gradient leaves
 * out the part that flows through GroupNorm's statistics.
 */
#define FACEGRAD_DECODED_WINDOW_EXACT 2

/**
 * A window was decoded with GroupNorm statistics from earlier steps.
 */
#define FACEGRAD_DECODED_WINDOW_CACHED 3

/**
 * A window was decoded with the GroupNorm statistics of that window.
 */
#define FACEGRAD_DECODED_WINDOW 4

/**
 * A window was decoded with GroupNorm statistics that a model predicted.
 */
#define FACEGRAD_DECODED_WINDOW_PREDICTED 5

/**
 * Something failed that the caller may not see otherwise.
 */
#define FACEGRAD_LOG_ERROR 1

/**
 * A sample was skipped or a fallback was used. Training can go on.
 */
#define FACEGRAD_LOG_WARN 2

/**
 * A message about something that happens once.
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
 * A device, and the thread on which all work of its objects runs. Any thread may use it. Calls on one
 * context run one after the other; different contexts are independent.
 */
typedef struct facegrad_context facegrad_context;

/**
 * A face detector (SCRFD). Any thread may use it.
 */
typedef struct facegrad_detector facegrad_detector;

/**
 * A detector and a recogniser for scores without a gradient, and registered people. Any thread may use it.
 */
typedef struct facegrad_evaluator facegrad_evaluator;

/**
 * A graph of operations with gradients, whose nodes are numbers. Any thread may use it.
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
 * Receives a message. `message` is UTF-8 and valid until the callback returns. The callback may run on any
 * thread, also on several at once. It must not call facegrad (`FACEGRAD_ERR_REENTRANT`), must not longjmp, and
 * should not throw: the library catches a C++ exception, and the call that sent the message then fails with
 * `FACEGRAD_ERR_CALLBACK`.
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
 * A face in an image. Places are in pixels, with pixel centres at integers: (0, 0) is the centre of the first
 * pixel.
 */
typedef struct facegrad_face {
  /**
   * `sizeof(facegrad_face)`; in an array, the first element's is the distance between elements.
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
   * Five pairs x, y: left eye, right eye, nose, left and right mouth corner. Left and right are those of the image.
   */
  float landmarks[10];
} facegrad_face;

/**
 * A function of the host that decodes latents.
 *
 * `latents` is `[B,C,h,w]`, float32 and compact, and valid until the function returns. The function fills in `image`
 * with the description of an image `[B,3,H,W]`, float32, float16 or bfloat16, on the same device. The memory of the
 * image must stay valid until the next call of this function or of the `facegrad_vjp_function` with the same
 * `user_data`. If `ticket` is not 0, the host keeps what the gradient needs under that number; one call of the
 * `facegrad_vjp_function` uses it.
 *
 * The function runs on the context's thread, with the caller's CUDA stream current there. It must not call facegrad
 * with objects of the same context, must not longjmp and should not throw. It returns 0, or another number where it
 * failed; the call that needed the image then fails with `FACEGRAD_ERR_CALLBACK`.
 */
typedef int32_t (*facegrad_decode_function)(const struct facegrad_tensor *latents,
                                            uint64_t ticket,
                                            struct facegrad_tensor *image,
                                            void *user_data);

/**
 * A function of the host that computes the gradient with respect to the latents of a ticket.
 *
 * `gradient` is the gradient with respect to their image, `[B,3,H,W]`, float32 and compact. The function fills in
 * `latents_gradient`, `[B,C,h,w]`, as `facegrad_decode_function` fills in `image`, and forgets the ticket. If
 * `gradient` is NULL, it only forgets the ticket, which may be forgotten already. All other rules are those of
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
   * N ids that `facegrad_loss_set_reference` registered. A NULL entry means that the sample uses its
   * reference image. NULL: every sample uses its reference image.
   */
  const char *const *reference_ids;
  /**
   * N `data_type`s: only samples whose type is among the configured `face_types` count. NULL: every sample counts.
   */
  const char *const *data_types;
  /**
   * `[N,5,2]` landmarks of the generated faces, pixels, in the order of `facegrad_face`. A sample whose row is NaN
   * is detected. NULL: all samples are detected. This tensor and those below may be on any device, also in float64.
   */
  const struct facegrad_tensor *landmarks;
  /**
   * `[N,4]` boxes of the generated faces (x1, y1, x2, y2), pixels; rows of NaN and NULL as above.
   */
  const struct facegrad_tensor *boxes;
  /**
   * `[R,5,2]` landmarks of the faces in the R `references`, pixels; rows of NaN and NULL as above.
   */
  const struct facegrad_tensor *reference_landmarks;
  /**
   * `[R,4]` boxes of the faces in the R `references`, pixels; rows of NaN and NULL as above.
   */
  const struct facegrad_tensor *reference_boxes;
  /**
   * `[N]` weights of the samples in the mean, from 0 to 1e30. NULL: 1 each.
   */
  const struct facegrad_tensor *sample_weights;
  /**
   * N names, each unique in the training set, under which `norm_stats` remembers statistics. A sample without a
   * name (a NULL entry, or NULL) is identified by its reference image.
   */
  const char *const *sample_ids;
} facegrad_targets;

/**
 * What happened to one sample.
 */
typedef struct facegrad_sample {
  /**
   * `sizeof(facegrad_sample)`; in an array, the first element's is the distance between elements.
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
   * The generated face's box x1, y1, x2, y2, pixels.
   */
  float bbox[4];
  /**
   * The generated face's landmarks, pixels, in the order of `facegrad_face`.
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
   * The cosine between the gradients through the window and through the whole image; NaN at steps without an audit.
   */
  float audit_cosine;
  /**
   * The norm of the gradient through the window, divided by that through the whole image; NaN at steps without an
   * audit.
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
   * `face_loss_weight · Σ wᵢ·(1 − min(cosᵢ, target_similarity)) / counted`: the value that is differentiated. With
   * `levels`, the weighted sum of this over the levels. 0 where no sample counts.
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
   * How many whole images were decoded without a gradient, for detection or for GroupNorm's statistics.
   */
  int64_t exact_passes;
  /**
   * The smallest `audit_cosine` of all samples; NaN at steps without an audit.
   */
  double audit_cosine;
  /**
   * `audit_norm_ratio` of the same sample; NaN at steps without an audit.
   */
  double audit_norm_ratio;
  /**
   * How many of `level_distances` are set: one for each of the configured `levels`, then one for the embedding where
   * it is not among them. 0 without `levels`, and where no sample counts.
   */
  int64_t levels;
  /**
   * Per level the mean of `1 − cos` over the counted samples, in the order of the configuration.
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
   * `[N]` noise levels in the unit that the configuration's `prediction.time` says; on any device, also in float64.
   */
  const struct facegrad_tensor *times;
  /**
   * `[N,2]` pairs a, b of x0 = a·x_t + b·prediction, for `prediction.kind` "custom" alone; on any device.
   */
  const struct facegrad_tensor *coefficients;
  /**
   * Height of the unpacked latent in latent pixels. Packings of tokens need it; 0 elsewhere.
   */
  int64_t latent_height;
  /**
   * Width of the unpacked latent, likewise.
   */
  int64_t latent_width;
  /**
   * The number of the step, for `every_n_steps` and `audit_every`.
   */
  uint64_t number;
  /**
   * The norm of the main loss's gradient with respect to the prediction, for `gradient_limit`; 0: not known.
   */
  double gradient_norm;
} facegrad_step;

/**
 * All functions of ABI version 1. Later versions only append to the table, so a host that was compiled
 * with a newer header must compare `struct_size` with a field's offset before it uses the field.
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
 * What was asked for does not exist here: a struct of a newer version sets a field that this library does not know, a
 * VAE's class is not implemented, or a decoder that shows none of its layers has no windows.
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
 * A callback threw a C++ exception during the call, or a function of the host failed. Do not use the outputs.
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
 * The device is out of memory. Nothing is leaked, and a smaller call works.
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
 * The ABI version of the library that is loaded. A host compares it with `FACEGRAD_ABI_VERSION`.
 */
uint32_t facegrad_abi_version(void);

/**
 * `facegrad/x.y.z torch/x.y.z`: the versions of this library and of the torch in this process. A static string.
 */
const char *facegrad_version(void);

/**
 * Describes the library and the process as a JSON object: `facegrad` (the library's version), `abi`, `torch`
 * (the version in this process), `torch_compiled` (the version that `libfacegrad_torch.so` was compiled for),
 * `onnxruntime_api` (the least API level that ONNX Runtime must support), `cuda_devices` (devices that torch
 * sees; 0 while its CUDA half is not loaded), `loss_keys` (the keys of a loss's config).
 *
 * @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
 * @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
 */
facegrad_status facegrad_build_info(char *buffer,
                                    size_t capacity,
                                    size_t *needed);

/**
 * The name of a status as a static string; `unknown` for a number that this library never returns.
 */
const char *facegrad_status_name(facegrad_status status);

/**
 * The sentence about the last call on this thread that failed. It names the argument, what was
 * expected and what came. A call that succeeds does not change it.
 *
 * @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
 * @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
 */
facegrad_status facegrad_last_error(char *buffer, size_t capacity, size_t *needed);

/**
 * Sets the receiver of the library's messages for the whole process, until the next call of this function. The
 * library never prints; without a receiver messages are dropped. After this function has returned, the old receiver
 * is not called again. If it runs on another thread, this function waits for it, for up to 10 seconds.
 *
 * @param[in] log the receiver; NULL for none
 * @param[in] user_data passed to every call of `log`; must stay valid until another receiver is set
 * @param[in] max_level the least important level to send, `FACEGRAD_LOG_*`
 */
facegrad_status facegrad_set_log_callback(facegrad_log_callback log,
                                          void *user_data,
                                          int32_t max_level);

/**
 * Counts the handles that are not freed yet, for a host's own leak tests.
 *
 * @param[in] kind `context`, `detector`, `backbone`, `vae`, `loss`, `graph` or `evaluator`; NULL
 * counts all
 * @param[out] count the number of handles of that kind in the process
 */
facegrad_status facegrad_debug_live(const char *kind, int64_t *count);

/**
 * Makes a context and starts its thread.
 *
 * @param[in] config JSON `{"device": "cpu" | "cuda" | "cuda:N"}`; NULL means the CPU
 * @param[out] out the new context; NULL on failure
 *
 * Errors: `DEVICE` where this machine or this torch has no such device, `TORCH` where the torch of the process
 * is another version than the library was built for.
 */
facegrad_status facegrad_context_new(const char *config,
                                     struct facegrad_context **out);

/**
 * Frees a context. Objects that were made with it stay usable until they are freed themselves. NULL and a
 * handle that was freed do nothing.
 */
void facegrad_context_free(struct facegrad_context *context);

/**
 * Panics on the context's thread on purpose, so that a host can test how it handles `FACEGRAD_ERR_PANIC`
 * and `FACEGRAD_ERR_POISONED`. Afterwards the context can only be freed.
 */
facegrad_status facegrad_debug_panic(struct facegrad_context *context);

/**
 * Loads an SCRFD face detector (InsightFace's det_10g.onnx, det_500m.onnx, scrfd_10g_bnkps.onnx, …).
 *
 * @param[in] config JSON, with defaults in parentheses: `path` (required); `engine` "auto" | "ort" | "torch"
 * ("auto"); `det_sizes` sides of the detection canvases, or pairs [width, height], in pixels, multiples of 32
 * ([640]), the faces of all sizes are merged; `threshold` the least score of a face, in (0, 1) (0.5);
 * `nms_threshold` the intersection over union above which the weaker of two boxes is dropped, in (0, 1) (0.4);
 * `onnxruntime` the path of ONNX Runtime's library or folder; `providers` its execution providers, best first,
 * as `facegrad_evaluator_new` lists them, a provider that is missing is an error; `min_size` the least length
 * of a face's shorter side, pixels (0); `retry_sizes` sizes to try one after the other where `det_sizes` find
 * no face ([]); `retry_padding` after these, `det_sizes` again with a black border of this part of the image's
 * longer side (0: no)
 * @param[out] out the new detector; NULL on failure
 *
 * Errors: `IO`, `FORMAT`, `LIMIT`, `WEIGHTS` for a model that is no SCRFD, `OPERATOR`, `ONNXRUNTIME`.
 */
facegrad_status facegrad_detector_new(const struct facegrad_context *context,
                                      const char *config,
                                      struct facegrad_detector **out);

/**
 * Finds the faces of a batch of images, ordered by image and then by falling score, without a gradient.
 *
 * @param[in] images `[N,3,H,W]` RGB: uint8, or float32, float16 or bfloat16 in [0, 1]. Floats are rounded to
 * 8 bits, because the detectors were trained on 8-bit images. An image with NaN or infinity has no faces.
 * @param[out] faces receives the first `capacity` faces; the first element's `struct_size` must be
 * set; NULL with `capacity` 0 only counts
 * @param[out] count the number of faces, which may be larger than `capacity`
 * @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU. The call waits for the result.
 *
 * Errors: `LIMIT` for more than 2^28 pixels in an image or 2^30 in the batch, `ONNXRUNTIME`.
 */
facegrad_status facegrad_detector_detect(struct facegrad_detector *detector,
                                         const struct facegrad_tensor *images,
                                         struct facegrad_face *faces,
                                         size_t capacity,
                                         size_t *count,
                                         void *stream);

/**
 * Describes the detector in one line of text: file, engine and why, detection sizes, thresholds.
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
 * (InsightFace's w600k_r50.onnx, glintr100.onnx, …). A gradient can flow through both. The content of the
 * file tells its kind, not its name.
 *
 * @param[in] config JSON: `path` (required); `model` "r18" | "r34" | "r50" | "r100" | "r200", checked
 * against the file; `input_size` pixels; `mean`, `std` three numbers each in units of an image in
 * [0, 1], in the model's channel order; `color` "rgb" | "bgr", the model's channel order; `dtype` "f32" |
 * "bf16" | "f16". Keys that are left out take the values of the model's known family.
 * `facegrad_backbone_info` says what is used.
 * @param[out] out the new recogniser; NULL on failure
 *
 * Errors: `IO`, `FORMAT`, `LIMIT`, `WEIGHTS` for tensors of another network, `OPERATOR`.
 */
facegrad_status facegrad_backbone_new(const struct facegrad_context *context,
                                      const char *config,
                                      struct facegrad_backbone **out);

/**
 * Embeds faces, without a gradient. The embeddings have length 1, so the cosine of two is their dot product.
 *
 * @param[in] images `[N,3,H,W]` RGB in [0, 1]
 * @param[in] faces `count` faces in them, aligned by landmarks where `has_landmarks` is set, else by box.
 * NULL with `count` 0: `images` are crops of `input_size` already
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
 * Returns the crops that `facegrad_backbone_embed` and the loss give to the recogniser, for a person to
 * look at. Bilinear sampling, without a gradient.
 *
 * @param[in] images `[N,3,H,W]` RGB, in any units
 * @param[in] faces `count` faces in them
 * @param[out] crops `[count,3,S,S]` in the units of the images, any float dtype; S is the recogniser's
 * `input_size`
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 */
facegrad_status facegrad_backbone_align(struct facegrad_backbone *backbone,
                                        const struct facegrad_tensor *images,
                                        const struct facegrad_face *faces,
                                        size_t count,
                                        const struct facegrad_tensor *crops,
                                        void *stream);

/**
 * Describes the recogniser as a JSON object: `description` (family, file, normalisation, colour order and
 * where each comes from), `dim` (the length of an embedding), `input_size` (side of a crop, pixels).
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
 * Loads the frozen decoder of a VAE: AutoencoderKL (SD1.5, SDXL, SD3, FLUX.1 and all that share it), FLUX.2,
 * Qwen-Image and Wan 2.1 (one frame), Wan 2.2 (one frame), HunyuanImage 2.1, Sana's DC-AE, the TAESD family, or
 * TorchScript. The tensors' names tell the family and the dialect (diffusers, LDM, ComfyUI, Wan). A config.json beside
 * the file is read.
 *
 * @param[in] config JSON, with defaults in parentheses: `path` a file, single-file checkpoint or diffusers folder
 * (required); `family` "kl" | "flux2" | "wan" | "wan22" | "hunyuan" | "dc" | "tiny" | "torchscript" (from the
 * tensors), where "torchscript" must be named, because loading a TorchScript file runs code that is in it; `dtype` of
 * the computation "f32" | "bf16" | "f16" ("f32"); `recompute` "none" | "blocks", which keeps only the blocks' inputs
 * for the backward pass ("none"); `slicing` decodes one sample at a time (false); `norm_num_groups` the groups of the
 * KL families' GroupNorm (the config.json's, or 32); `model_config` an object that replaces the config.json beside the
 * file; for TorchScript alone `latent_channels`, `image_range` "signed" ([-1, 1]) | "unit" ([0, 1]) ("signed"),
 * `scale_factor` image pixels per latent pixel (8)
 * @param[out] out the new decoder; NULL on failure
 *
 * Errors: `IO`, `FORMAT`, `LIMIT`, `WEIGHTS` for tensors of another family, `UNSUPPORTED` for a VAE that this library
 * has no decoder for.
 */
facegrad_status facegrad_vae_new(const struct facegrad_context *context,
                                 const char *config,
                                 struct facegrad_vae **out);

/**
 * Builds a decoder from tensors that the host already has, named as in any file that `facegrad_vae_new` reads. Tensors
 * of the configured dtype on the context's device are shared and not copied: they must stay valid and unchanged until
 * the decoder and every loss and graph made with it are freed. The call waits for all work on the context's device.
 *
 * @param[in] names `count` names
 * @param[in] tensors `count` tensors, in the order of the names; of any float dtype, on any device
 * @param[in] config as in `facegrad_vae_new`, without `path`; NULL for the defaults
 * @param[out] out the new decoder; NULL on failure
 *
 * Errors: `WEIGHTS`, `UNSUPPORTED`.
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
 * @param[in] latents `[B,C,h,w]` as the VAE takes them (without the scaling of a diffusion model), float32, float16 or
 * bfloat16
 * @param[out] images `[B,3,s·h,s·w]`, RGB, nominally in [0, 1], not clamped; any float dtype; s is `scale_factor`
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 */
facegrad_status facegrad_vae_decode(struct facegrad_vae *vae,
                                    const struct facegrad_tensor *latents,
                                    const struct facegrad_tensor *images,
                                    void *stream);

/**
 * Describes the decoder as a JSON object: `description`, `channels` (of the latents), `scale_factor` (image pixels per
 * latent pixel), `latent_format` (as in the config of a loss; null where the files do not tell).
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
 * Makes a decoder from two functions of the host. This serves any VAE, and models whose latents are pixels. Loss,
 * gates, packing and report are the same as with the library's decoders. Windows are not available.
 *
 * @param[in] decode, vjp the host's functions; they may be called until the decoder and every loss and graph made with
 * it are freed
 * @param[in] user_data passed to every call; may be NULL
 * @param[in] config JSON: `latent_channels` (0: any); `image_range` of the images, "signed" ([-1, 1], default) | "unit"
 * ([0, 1]); `latent_format` as in `facegrad_loss_new` (default "none"); `slicing` decodes one sample at a time. NULL for
 * the defaults
 * @param[out] out the new decoder; NULL on failure
 *
 * Calls that need the image fail with `CALLBACK` where a function of the host fails.
 */
facegrad_status facegrad_vae_new_from_functions(const struct facegrad_context *context,
                                                facegrad_decode_function decode,
                                                facegrad_vjp_function vjp,
                                                void *user_data,
                                                const char *config,
                                                struct facegrad_vae **out);

/**
 * Makes a loss. The host passes its networks, which several losses may share, or the configuration names their files.
 * Without a detector, the host must say where every face is.
 *
 * @param[in] detector NULL: loaded from the config's `detector`, where there is one
 * @param[in] backbone NULL: loaded from the config's `arcface_weights`
 * @param[in] vae needed by `facegrad_loss_step` alone; NULL: loaded from the config's `vae`, where there is
 * one
 * @param[in] config JSON with optional keys; NULL for the defaults. docs/configuration.md describes the keys, and
 * `facegrad_build_info` lists their names
 * @param[out] out the new loss; NULL on failure
 *
 * Errors: `ARGUMENT` for objects of another context, and those of the networks' constructors.
 */
facegrad_status facegrad_loss_new(const struct facegrad_context *context,
                                  const struct facegrad_detector *detector,
                                  const struct facegrad_backbone *backbone,
                                  const struct facegrad_vae *vae,
                                  const char *config,
                                  struct facegrad_loss **out);

/**
 * Registers a person under an id by the faces of reference images. A person that was registered under the same id
 * before is replaced. Images without a face are left out with a warning.
 *
 * @param[in] id any UTF-8 text
 * @param[in] images `[K,3,H,W]` RGB in [0, 1], K ≥ 1
 * @param[in] landmarks `[K,5,2]` landmarks of the faces, pixels, NaN in the rows that are not known; NULL: the
 * detector finds the faces
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 *
 * Errors: `ARGUMENT` where no image has a face.
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
 * Computes the loss of a batch of images and its gradient.
 *
 * A sample that is gated out, has no face or is not finite does not count. Its gradient is exactly zero, and its
 * report says why. If no sample counts, loss and gradient are 0 and the call succeeds.
 *
 * @param[in] images `[N,3,H,W]` RGB, nominally in [0, 1], float32, float16 or bfloat16; not clamped
 * @param[in] targets references and per-sample facts
 * @param[out] gradient the gradient of `result->loss` with respect to `images`: the same shape, any float dtype,
 * preferably float32 (see `facegrad_loss_step`); NULL: not computed
 * @param[out] samples N reports; the first element's `struct_size` must be set; may be NULL
 * @param[in] samples_capacity elements of `samples`, at least N unless it is NULL
 * @param[out] result may be NULL; its `struct_size` must be set
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU. `samples` and `result` are
 * ready on return, `gradient` in the order of the stream.
 *
 * Errors: `ARGUMENT` for an id that was not registered, or a face whose place is not known and no detector.
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
 * `norm_stats`, and whether audits have ended the use of windows. A training that was stopped and restores this
 * file continues with the same numbers. The file is written as a whole or not at all. It holds embeddings of
 * people's faces.
 *
 * @param[in] path the file to write; a regular file of that name is replaced
 *
 * Errors: `IO`; an older file is then unchanged.
 */
facegrad_status facegrad_loss_save(struct facegrad_loss *loss,
                                   const char *path);

/**
 * Replaces everything that the loss remembers by what `facegrad_loss_save` wrote. The configuration does not change.
 * On failure nothing changes.
 *
 * @param[in] path the file to read; its content is not trusted
 *
 * Errors: `IO`; `FORMAT` for another or a damaged file; `LIMIT`; `ARGUMENT` where the file was saved with another
 * recogniser or VAE; `UNSUPPORTED` for a file of a newer library.
 */
facegrad_status facegrad_loss_restore(struct facegrad_loss *loss,
                                      const char *path);

/**
 * Describes the loss as a JSON object: `detector`, `backbone` and `vae` (descriptions), `face_align_mode`,
 * `face_loss_weight`, `face_types`, `latent_format` (the config's, or else the one that the VAE's files tell),
 * `settings` (every key of the config with the value that is used).
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
 * Computes the loss of one training step: from the model's prediction to the weighted loss and its gradient with
 * respect to the prediction, in the prediction's own packing. No network runs for a sample that is gated out by
 * its data type, noise level or step number.
 *
 * @param[in] step latents, prediction and times
 * @param[in] targets as in `facegrad_loss_images`; pixels are those of the decoded image
 * @param[out] gradient the gradient of `result->loss` with respect to `step->prediction`: the same shape, any float
 * dtype; NULL: not computed. Use float32, whatever the prediction's dtype is, and multiply by the loss scale before
 * casting: most of the unscaled gradient is below float16's least number
 * @param[out] samples, samples_capacity, result, stream as in `facegrad_loss_images`
 *
 * Errors: `ARGUMENT` for a loss without a VAE, times outside their range; `UNSUPPORTED` for `decode` "window_only" with a
 * decoder that has no windows; and those of `facegrad_loss_images`.
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
 * Takes the deterministic step of a sampler: from the noisy latents and the model's prediction to the same sample
 * at another noise level. For flow matching this is Euler's step; for epsilon, v and x0 it is DDIM's with eta 0. The
 * step is linear in latents and prediction, so it works in any packing. It is computed in float32, without a gradient.
 *
 * @param[in] x_t the noisy latents `[N,...]` in the host's layout; float32, float16 or bfloat16
 * @param[in] prediction the model's prediction, of the same shape; float32, float16 or bfloat16
 * @param[in] times `[N]`, the noise levels of `x_t` in the unit that `config` says; on any device
 * @param[in] next_times `[N]`, the noise levels to go to, lower or higher, in the same unit. Where the unit is the
 * timestep 0 to 999 of epsilon, v and x0, -1 means the clean latent
 * @param[in] config JSON, the object `prediction` of `facegrad_loss_new`; NULL for flow matching. Kind "sample"
 * is x0 of a variance-preserving process. For x0 of a flow model, give the velocity (x_t - x0) / t as a
 * prediction of kind "flow". Kind "custom" has no step
 * @param[out] next the latents at `next_times`: the shape of `x_t`, any float dtype; it may be the memory of
 * `x_t`
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 *
 * Errors: `ARGUMENT` for a noise level outside its range; the text names the sample.
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
 * Makes an empty graph. Nodes are numbered from 0 in the order in which they are made. A node is computed when
 * it is made, and it stays until the graph is freed.
 *
 * @param[out] out the new graph; NULL on failure
 */
facegrad_status facegrad_graph_new(const struct facegrad_context *context,
                                   struct facegrad_graph **out);

/**
 * Adds a copy of a tensor as a node.
 *
 * @param[in] tensor float32, float16 or bfloat16, any shape
 * @param[in] needs_gradient not 0 where the host wants its `facegrad_graph_gradient`
 * @param[out] node the new node
 * @param[in] stream cudaStream_t that `tensor` is ready on; NULL on a CPU
 */
facegrad_status facegrad_graph_input(struct facegrad_graph *graph,
                                     const struct facegrad_tensor *tensor,
                                     int32_t needs_gradient,
                                     int64_t *node,
                                     void *stream);

/**
 * Adds the clean latent x0 = a·x_t + b·prediction, in the prediction's layout, float32.
 *
 * @param[in] x_t a node with the noisy latents, or -1 where the model predicts x0 itself
 * @param[in] prediction a node with the model's prediction, of the same shape
 * @param[in] times `[N]` noise levels in the unit that `config` says, or `[N,2]` pairs a, b for kind "custom";
 * NULL for "sample"; on any device
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
 * Adds the sample at another noise level, as in `facegrad_sampler_step`: a node of `x_t`'s dtype and layout. No
 * gradient flows through it.
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
 * Converts model-space latents in the host's packing to the latents that the VAE decodes: `[B,C,H,W]` float32.
 *
 * @param[in] latents a node
 * @param[in] vae a VAE of the same context: its files may tell the latent format, and hold FLUX.2's statistics
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
 * Decodes VAE-space latents to images `[B,3,H,W]`, RGB in [0, 1], float32.
 *
 * @param[in] latents a node of shape `[B,C,h,w]`
 * @param[in] vae a VAE of the same context
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
 * Adds a recogniser's features of aligned crops at one of its levels: float32, not normalised. The gradient flows to
 * the crops.
 *
 * @param[in] crops a node of shape `[M,3,S,S]`, RGB in [0, 1]; S is the recogniser's `input_size`
 * @param[in] backbone a recogniser of the same context
 * @param[in] level "embedding", the last level, `[M,D]`; of an IResNet also "layer1" to "layer4", `[M,C,h,w]`; of an
 * ONNX model also its further outputs by name. NULL: "embedding"
 * @param[out] node the new node
 * @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
 *
 * Errors: `CONFIG` for a level that the recogniser does not have.
 */
facegrad_status facegrad_graph_features(struct facegrad_graph *graph,
                                        int64_t crops,
                                        struct facegrad_backbone *backbone,
                                        const char *level,
                                        int64_t *node,
                                        void *stream);

/**
 * Adds the loss of a node of images: a scalar float32 node with the value that `facegrad_loss_images` computes.
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
 * Returns the shape of a node's value.
 *
 * @param[out] shape receives the first `capacity` sizes, outermost first; may be NULL with `capacity` 0
 * @param[out] ndim the number of dimensions; 0 for a scalar
 */
facegrad_status facegrad_graph_shape(const struct facegrad_graph *graph,
                                     int64_t node,
                                     int64_t *shape,
                                     size_t capacity,
                                     size_t *ndim);

/**
 * Copies a node's value to the host's tensor.
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
 * @param[in] seed the gradient with respect to `node`, of the same shape; NULL: ones
 * @param[in] stream cudaStream_t that the work is put on: the stream on which the nodes were made; NULL on a CPU
 */
facegrad_status facegrad_graph_backward(struct facegrad_graph *graph,
                                        int64_t node,
                                        const struct facegrad_tensor *seed,
                                        void *stream);

/**
 * Copies the gradient with respect to a node from the last `facegrad_graph_backward` to the host's tensor. It is zero
 * where the node has no influence.
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
 * Makes an evaluator. It computes faces, embeddings and similarities as insightface's FaceAnalysis does, from
 * 8-bit pixels, without a gradient.
 *
 * @param[in] config JSON: `detector` (required) the path of an SCRFD ONNX, or the object of
 * `facegrad_detector_new` with its own `engine`, `providers` and `onnxruntime`; `recogniser` (required) the
 * path of a recogniser's ONNX or weights, or the object of `facegrad_backbone_new`; `engine` "auto" | "ort" |
 * "torch"; `providers` ONNX Runtime's execution providers, best first: "cpu" | "cuda" | "tensorrt" | "rocm" |
 * "migraphx" | "openvino" | "coreml" | "directml", a provider that is missing is an error; `onnxruntime` the
 * path of its library or folder; `face_choice` which of several faces counts, "score" | "largest" | "center" |
 * "index" with `face_index`; `pooling` of several reference images of one person, "centroid" (the cosine with
 * their normalised mean) | "mean" (the mean of the cosines) | "max" (the largest cosine); `face_types` the data
 * types that count (all)
 * @param[out] out the new evaluator; NULL on failure
 *
 * Errors: `ONNXRUNTIME` and those of `facegrad_detector_new` and `facegrad_backbone_new`.
 */
facegrad_status facegrad_evaluator_new(const struct facegrad_context *context,
                                       const char *config,
                                       struct facegrad_evaluator **out);

/**
 * Finds and embeds all faces of a batch of images, ordered by image and then by falling score.
 *
 * @param[in] images `[N,3,H,W]` RGB: uint8, or float32, float16 or bfloat16 in [0, 1], rounded to 8 bits. An
 * image with NaN or infinity has no faces.
 * @param[out] faces receives the first `capacity` faces; the first element's `struct_size` must be set; NULL
 * with `capacity` 0 only counts
 * @param[out] embeddings `[capacity,D]`, any float dtype: row i belongs to face i and has length 1, or is NaN
 * where the face spans no area; rows after the last face are not written; NULL: not wanted
 * @param[out] count the number of faces, which may be larger than `capacity`
 * @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU. The call waits for the result.
 */
facegrad_status facegrad_evaluator_faces(struct facegrad_evaluator *evaluator,
                                         const struct facegrad_tensor *images,
                                         struct facegrad_face *faces,
                                         size_t capacity,
                                         const struct facegrad_tensor *embeddings,
                                         size_t *count,
                                         void *stream);

/**
 * Returns the crops that the recogniser sees, as insightface's `norm_crop` makes them: by landmarks where a
 * face has them, else by its box.
 *
 * @param[in] images `[N,3,H,W]` RGB, uint8 or float in [0, 1], rounded to 8 bits
 * @param[in] faces `count` faces in them
 * @param[out] crops `[count,3,S,S]` in [0, 1], any float dtype; S is the `input_size` of
 * `facegrad_evaluator_info`
 * @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU. The call waits for the result.
 *
 * Errors: `ARGUMENT` for an image that is not finite, or a face that spans no area.
 */
facegrad_status facegrad_evaluator_align(struct facegrad_evaluator *evaluator,
                                         const struct facegrad_tensor *images,
                                         const struct facegrad_face *faces,
                                         size_t count,
                                         const struct facegrad_tensor *crops,
                                         void *stream);

/**
 * Registers a person under an id by the chosen face of every image. A person that was registered under the same
 * id before is replaced. Images without a face are left out with a warning.
 *
 * @param[in] id any UTF-8 text
 * @param[in] images `[K,3,H,W]` RGB, uint8 or float in [0, 1], K ≥ 1
 * @param[in] landmarks `[K,5,2]` pixels, NaN in the rows that are not known: of several detected faces the one
 * nearest to them counts; NULL: `face_choice` decides
 * @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU
 *
 * Errors: `ARGUMENT` where no image has a face.
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
 * Compares one face of every image with its reference, without a gradient.
 *
 * A sample whose face or reference is not found does not count, and its report says why. If no sample counts,
 * the loss is 0 and the call succeeds.
 *
 * @param[in] images `[N,3,H,W]` RGB, uint8 or float in [0, 1], rounded to 8 bits
 * @param[in] targets references (uint8 or float) and per-sample facts. Landmarks and boxes say which face is
 * meant: the detected face that is nearest to them is compared.
 * @param[out] samples N reports; the first element's `struct_size` must be set; may be NULL
 * @param[in] samples_capacity elements of `samples`, at least N unless it is NULL
 * @param[out] result `loss` is `Σ wᵢ·(1 − cosᵢ) / counted`; may be NULL; its `struct_size` must be set
 * @param[in] stream cudaStream_t that the tensors are ready on; NULL on a CPU. The call waits for the result.
 *
 * Errors: `ARGUMENT` for an id that was not registered.
 */
facegrad_status facegrad_evaluator_compare(struct facegrad_evaluator *evaluator,
                                           const struct facegrad_tensor *images,
                                           const struct facegrad_targets *targets,
                                           struct facegrad_sample *samples,
                                           size_t samples_capacity,
                                           struct facegrad_result *result,
                                           void *stream);

/**
 * Finds several registered people in every image. People and faces are matched one to one so that the sum of
 * their similarities is largest (the Hungarian method).
 *
 * @param[in] images `[N,3,H,W]` RGB, uint8 or float in [0, 1], rounded to 8 bits
 * @param[in] ids `people` ids that `facegrad_evaluator_set_reference` registered
 * @param[in] people how many `ids` there are
 * @param[out] samples `N · people` reports, image after image, the people in the order of `ids`; a person
 * without a face is `FACEGRAD_SAMPLE_NO_FACE`. The first element's `struct_size` must be set; may be NULL
 * @param[in] samples_capacity elements of `samples`, at least `N · people` unless it is NULL
 * @param[out] result the sums over all of these samples; may be NULL; its `struct_size` must be set
 * @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU. The call waits for the result.
 *
 * Errors: `ARGUMENT` for an id that was not registered.
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
 * Describes the evaluator as a JSON object: `detector` and `recogniser` (file, engine and why), `dim` (the
 * length of an embedding), `input_size` (side of a crop, pixels), `settings` (keys of the config with their values).
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
 * The table of all functions. A host that loads the library at run time needs this symbol alone. The
 * table is static and never freed.
 *
 * @param[in] abi_version the `FACEGRAD_ABI_VERSION` that the host was compiled with
 *
 * @return the table; NULL where the library does not implement that version
 */
const struct facegrad_api *facegrad_get_api(uint32_t abi_version);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FACEGRAD_H */
