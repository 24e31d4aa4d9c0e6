/* The C API of libkontext. Every function is safe to call from C and from other languages: nothing is thrown.
 *
 *     kontext_pipeline *pipeline;
 *     if (kontext_load("my-bundle", NULL, &pipeline) != KONTEXT_OK) puts(kontext_error());
 *
 * Zero-initialize structures before filling them in: zero is the default of every field. */
#ifndef KONTEXT_H
#define KONTEXT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define KONTEXT_API
#else
#define KONTEXT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum kontext_status {
    KONTEXT_OK = 0,
    KONTEXT_ERROR = 1,    /* kontext_error() says what is wrong */
    KONTEXT_CANCELLED = 2 /* by the progress callback or kontext_cancel */
} kontext_status;

typedef struct kontext_pipeline kontext_pipeline;

/* 8 bits each of red, green, blue; row by row from the top, no padding. */
typedef struct kontext_image {
    int32_t width;
    int32_t height;
    uint8_t* rgb;
} kontext_image;

/* Content filters: FLUX.1 [dev]'s licence asks those who deploy it for them; none is built in. Both return NULL to go
 * on, or why they refuse: one line that is valid until the next call. The first is called with an edit's references,
 * then its init_image, and the prompt before anything runs, the second with each finished picture, whose pixels it may
 * change. */
typedef const char* (*kontext_input_filter)(void* user, const kontext_image* references, size_t reference_count,
                                            const char* prompt);
typedef const char* (*kontext_output_filter)(void* user, kontext_image* image);

typedef struct kontext_load_options {
    const char* device;   /* as LoadOptions::device of kontext.hpp; NULL: auto, the fastest that works here */
    const char* provider; /* a plug-in provider of ONNX Runtime: "LIBRARY[:key=value,...]"; NULL: none */
    const char* compute;  /* with OpenVINO: fp32, bf16 or fp16; NULL: what the bundle says */
    int32_t threads;      /* cores that a network may use; 0: all that this process may use */
    int32_t low_memory;   /* drop each network after its part of an edit: 1 yes, -1 no, 0: from 2 GiB of weights on */
    int32_t verify;       /* not 0: compare every file's SHA-256 first; what is executed always is */
    kontext_input_filter input_filter;
    kontext_output_filter output_filter;
    void* user;                 /* passed to both filters */
    const char* require_digest; /* sha256:..., of kontext-export digest: refuse other bundles, compare what is used */
    int32_t allow_links;        /* not 0: take weights from files outside a bundle that you have not exported here */
} kontext_load_options;

/* Called after each step; latents are float [pictures, channels, height, width]. Return non-zero to stop the edit. */
typedef int (*kontext_progress)(void* user, int32_t step, int32_t steps, const float* latents, const size_t extents[4]);

/* Called if a prompt is truncated, a picture will not look as given, or no GPU could be used. */
typedef void (*kontext_warning)(void* user, const char* message);

/* A LoRA that `kontext-export lora` has made ready, for bundles exported with --lora-slots. */
typedef struct kontext_lora {
    const char* path;
    double weight; /* multiplies what it changes; 1 is usual */
} kontext_lora;

typedef struct kontext_edit_options {
    const kontext_image* references; /* may be NULL: draw from the prompt alone */
    size_t reference_count;
    int32_t steps;        /* 0: the bundle's default */
    int32_t has_guidance; /* 0: the bundle's default */
    double guidance;
    uint64_t seed;
    int32_t width; /* 0: the preferred size nearest to the first reference's aspect */
    int32_t height;
    const char* reference_method; /* index, offset or stitch; NULL: the bundle's */
    const char* reference_size;   /* auto, preferred, output or WIDTHxHEIGHT; NULL: auto */
    kontext_progress progress;
    kontext_warning warning;
    void* user; /* passed to both callbacks */
    const kontext_image* mask;       /* only what is white is repainted, colours by brightness; NULL: everything */
    int32_t mask_blur;               /* radius of a Gaussian blur, in the mask's pixels */
    double strength;                 /* the share of the steps that run, from the picture with noise; 0: all, from noise */
    const kontext_image* init_image; /* the picture that is repainted; NULL: the first reference */
    int32_t paste_back;              /* not 0: take the picture's own pixels where the blurred mask is black */
    const char* negative_prompt;     /* UTF-8, may be empty; NULL: none */
    double true_cfg;                 /* scale of the guidance away from it, above 1; 0: none */
    double cfg_until;                /* the share of the steps that have it, from the first on; 0: all */
    const kontext_lora* loras;       /* those of this edit; NULL: those of kontext_load_loras */
    size_t lora_count;
} kontext_edit_options;

/* Opens a bundle; `options` may be NULL. Free the pipeline with kontext_free. */
KONTEXT_API kontext_status kontext_load(const char* bundle, const kontext_load_options* options,
                                        kontext_pipeline** pipeline);
KONTEXT_API void kontext_free(kontext_pipeline* pipeline);

/* Uses these LoRAs in all further edits that name none, in place of earlier ones; `loras` may be NULL for none. */
KONTEXT_API kontext_status kontext_load_loras(kontext_pipeline* pipeline, const kontext_lora* loras, size_t count);

/* Edits as the prompt (UTF-8) says; `options` may be NULL. Free `image` with kontext_image_free. */
KONTEXT_API kontext_status kontext_edit(kontext_pipeline* pipeline, const char* prompt,
                                        const kontext_edit_options* options, kontext_image* image);

/* One prompt of a batch, with its references. */
typedef struct kontext_batch_entry {
    const char* prompt;
    const kontext_image* references; /* may be NULL: draw from the prompt alone */
    size_t reference_count;
} kontext_batch_entry;

/* `num_images` pictures for each of `count` entries, into images[count * num_images], entry by entry. The first has the
 * options' seed, each further one the next. The options' references are not used. Free each with kontext_image_free. */
KONTEXT_API kontext_status kontext_edit_all(kontext_pipeline* pipeline, const kontext_batch_entry* entries,
                                            size_t count, int32_t num_images, const kontext_edit_options* options,
                                            kontext_image* images);

/* What picture `index` of those being sampled would become by the last step's direction, in rough colours: a pixel for
 * each latent (FLUX.1's are 8 by 8 pixels), sides `enlarge` times that, from 1 to 16. Only in an edit's progress
 * callback. Free `image` with kontext_image_free. */
KONTEXT_API kontext_status kontext_preview(kontext_pipeline* pipeline, size_t index, int32_t enlarge,
                                           kontext_image* image);

/* Stops the running edit, from any thread, also in the middle of a step. */
KONTEXT_API void kontext_cancel(kontext_pipeline* pipeline);

/* Calls `found` for each device that this build finds here, with what kontext_load_options takes (one of `device` and
 * `provider` is NULL) and a description; with a plug-in provider ("LIBRARY[:key=value,...]", may be NULL) for its
 * devices too. */
typedef void (*kontext_device_found)(void* user, const char* device, const char* provider, const char* description);
KONTEXT_API kontext_status kontext_list_devices(const char* provider, kontext_device_found found, void* user);

/* Read PNG, JPEG or (in builds with libwebp) WebP; write PNG or JPEG, as the suffix says. A mask is grey of the picture's
 * brightness or, if it has transparency, of its opacity; `warning` may be NULL. */
KONTEXT_API kontext_status kontext_image_read(const char* path, kontext_image* image);
KONTEXT_API kontext_status kontext_mask_read(const char* path, kontext_warning warning, void* user,
                                             kontext_image* mask);
KONTEXT_API kontext_status kontext_image_write(const kontext_image* image, const char* path);
KONTEXT_API void kontext_image_free(kontext_image* image);

/* The last error in this thread: one line, valid until the next call in this thread. */
KONTEXT_API const char* kontext_error(void);

#ifdef __cplusplus
}
#endif

#endif
