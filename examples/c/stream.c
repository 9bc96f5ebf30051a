/* Runs a model that Python saved, without Python:
 *
 *     stream.save("model.stream")                                     # fastrnn.stream(model), in Python
 *     python -c "import fastrnn.streaming as s; print(*s.c_library())"  # where the header and the library are
 *     cc -O2 stream.c -I INCLUDE LIBRARY -Wl,-rpath,FOLDER_OF_LIBRARY -o stream
 *     ./stream model.stream < input > output
 *
 * Input and output are raw float32, little-endian: inputs numbers a step come in, outputs numbers go out, as they would
 * in the callback of an audio plug-in. With an embedding the input is int64, a token a step.
 */
#include <fastrnn_stream.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static int run(fastrnn_stream* stream) {
  const int64_t vocabulary = fastrnn_stream_vocabulary(stream);
  const size_t inputs = vocabulary ? 1 : (size_t)fastrnn_stream_inputs(stream);
  const size_t outputs = (size_t)fastrnn_stream_outputs(stream), item = vocabulary ? sizeof(int64_t) : sizeof(float);
  void* x = malloc(inputs * item);
  float* y = malloc(outputs * sizeof(float));
  int64_t steps = 0;
  fastrnn_status status = x && y ? FASTRNN_OK : FASTRNN_NO_MEMORY;
  while (status == FASTRNN_OK && fread(x, item, inputs, stdin) == inputs) {
    status = vocabulary ? fastrnn_stream_step_tokens(stream, x, y) : fastrnn_stream_step(stream, x, y);
    if (status == FASTRNN_OK && fwrite(y, sizeof(float), outputs, stdout) != outputs) break;
    ++steps;
  }
  free(x);
  free(y);
  if (status != FASTRNN_OK) fprintf(stderr, "step %" PRId64 ": %s\n", steps, fastrnn_error());
  return status != FASTRNN_OK || ferror(stdin) || fflush(stdout) ? 1 : 0;
}

int main(int count, char** arguments) {
  fastrnn_stream* stream = NULL;
  int result;
  if (count != 2) {
    fprintf(stderr, "usage: %s model.stream < input > output\n", arguments[0]);
    return 2;
  }
  if (fastrnn_stream_load(arguments[1], 1, &stream) != FASTRNN_OK) {
    fprintf(stderr, "%s\n", fastrnn_error());
    return 1;
  }
  result = run(stream);
  fastrnn_stream_free(stream);
  return result;
}
