/* Recurrent networks one step at a time, from C: runs models that `fastrnn.stream(model).save(path)` wrote. No Python,
 * no other library than the C and C++ runtimes; x86-64 and Arm, on the best instruction set that the processor has.
 *
 *     fastrnn_stream* stream;
 *     if (fastrnn_stream_load("model.stream", 1, &stream) != FASTRNN_OK) fprintf(stderr, "%s\n", fastrnn_error());
 *     for (;;) fastrnn_stream_step(stream, x, y);     // real time: takes no memory, no lock, makes no system call
 *     fastrnn_stream_free(stream);
 *
 * Numbers are those of Python's handle, bit for bit, on the same machine.
 *
 * Threads: a handle belongs to one thread at a time; handles share nothing that is written, so that each thread may
 * have its own. A handle may pass from thread to thread by whatever orders memory (a mutex, a queue). Denormal numbers
 * and rounding are as the calling thread has set them.
 *
 * Arrays are dense, row-major, float32; B is the batch, the rows that run side by side. They belong to the caller and
 * need live only for the call.
 */
#ifndef FASTRNN_STREAM_H
#define FASTRNN_STREAM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#if defined(fastrnn_stream_EXPORTS) /* while the library itself is compiled */
#define FASTRNN_API __declspec(dllexport)
#else
#define FASTRNN_API
#endif
#elif defined(__GNUC__)
#define FASTRNN_API __attribute__((visibility("default")))
#else
#define FASTRNN_API
#endif

typedef struct fastrnn_stream fastrnn_stream;

typedef enum fastrnn_status {
  FASTRNN_OK = 0,
  FASTRNN_CANNOT_READ = 1,    /* there is no such file, or it cannot be read */
  FASTRNN_NOT_A_STREAM = 2,   /* the file was not written by fastrnn's stream.save */
  FASTRNN_OTHER_VERSION = 3,  /* it was, by a version whose files this library does not know */
  FASTRNN_WRONG_SIZE = 4,     /* it has been cut short, or something stands behind it */
  FASTRNN_WRONG_CHECKSUM = 5, /* it has been changed */
  FASTRNN_MALFORMED = 6,      /* what it says cannot be */
  FASTRNN_NO_MEMORY = 7,
  FASTRNN_BAD_ARGUMENT = 8, /* a null pointer, a number out of range, or a call that is for other models */
  FASTRNN_BAD_TOKEN = 9,    /* a token is not from 0 to vocabulary - 1; nothing was done */
  FASTRNN_NO_PROCESSOR = 10 /* the processor runs nothing that this library was compiled for */
} fastrnn_status;

/* What a status means; a static string. */
FASTRNN_API const char* fastrnn_status_text(fastrnn_status status);
/* What the last call of this thread that failed found, with what was expected; valid until its next failure. */
FASTRNN_API const char* fastrnn_error(void);

/* A handle for `batch` rows, 1 to 2^20, from a file or from its bytes, which may go afterwards; states are the model's
 * initial ones. On failure *to is null. */
FASTRNN_API fastrnn_status fastrnn_stream_load(const char* path, int64_t batch, fastrnn_stream** to);
FASTRNN_API fastrnn_status fastrnn_stream_read(const void* bytes, size_t size, int64_t batch, fastrnn_stream** to);
FASTRNN_API void fastrnn_stream_free(fastrnn_stream* stream); /* null is allowed */

/* Sizes; 0 of a null pointer. */
FASTRNN_API int64_t fastrnn_stream_batch(const fastrnn_stream* stream);      /* B */
FASTRNN_API int64_t fastrnn_stream_inputs(const fastrnn_stream* stream);     /* I, numbers in a row of x */
FASTRNN_API int64_t fastrnn_stream_vocabulary(const fastrnn_stream* stream); /* tokens that there are; 0: it takes x */
FASTRNN_API int64_t fastrnn_stream_outputs(const fastrnn_stream* stream);    /* O, numbers in a row of y */
FASTRNN_API int64_t fastrnn_stream_state_size(const fastrnn_stream* stream); /* numbers in the state of all rows */

/* One step of all rows: x (B, I) to y (B, O). A model of bfloat16 rounds x to it. */
FASTRNN_API fastrnn_status fastrnn_stream_step(fastrnn_stream* stream, const float* x, float* y);
/* The same of a model with an embedding: tokens (B). */
FASTRNN_API fastrnn_status fastrnn_stream_step_tokens(fastrnn_stream* stream, const int64_t* tokens, float* y);

/* Sets one row back to the model's initial states, or with -1 all. */
FASTRNN_API fastrnn_status fastrnn_stream_reset(fastrnn_stream* stream, int64_t row);
/* The state, fastrnn_stream_state_size numbers: of each layer h (B, P), then, of an LSTM, c (B, H). */
FASTRNN_API fastrnn_status fastrnn_stream_get_state(const fastrnn_stream* stream, float* to);
FASTRNN_API fastrnn_status fastrnn_stream_set_state(fastrnn_stream* stream, const float* from);

#ifdef __cplusplus
}
#endif

#endif /* FASTRNN_STREAM_H */
