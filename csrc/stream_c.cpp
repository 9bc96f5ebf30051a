// The C face of streams: include/fastrnn_stream.h says what each function does. No exception leaves it.
#include <climits>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>

#include "stream.h"

struct fastrnn_stream : fastrnn::Stream {
  using Stream::Stream;
};

namespace {

constexpr long kMostBytes = LONG_MAX / 2;  // what the "size" of a folder is beyond

thread_local char last_error[256] = "";

fastrnn_status fail(fastrnn_status status, const char* text) {
  std::snprintf(last_error, sizeof(last_error), "%s: %s", fastrnn_status_text(status), text);
  return status;
}

template <class Body>
fastrnn_status guarded(const Body& body) {
  try {
    return body();
  } catch (const fastrnn::StreamError& error) {
    return fail(error.status, error.what());
  } catch (const std::bad_alloc&) {
    return fail(FASTRNN_NO_MEMORY, "expected more memory than there is");
  } catch (const std::exception& error) {  // of the choice of an instruction set
    return fail(FASTRNN_NO_PROCESSOR, error.what());
  }
}

// bfloat16 is the upper half of a float; rounded to the nearest, ties to even.
void narrow(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof(bits));
    const uint32_t rounded = from[i] == from[i] ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
    to[i] = static_cast<uint16_t>(rounded >> 16);
  }
}

void widen(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = uint32_t{from[i]} << 16;
    std::memcpy(to + i, &bits, sizeof(bits));
  }
}

void run(fastrnn_stream* stream, float* y) {
  stream->step();
  const int64_t count = stream->batch() * stream->outputs();
  if (stream->narrow())
    widen(static_cast<const uint16_t*>(stream->y()), count, y);
  else
    std::memcpy(y, stream->y(), static_cast<size_t>(count) * sizeof(float));
}

}  // namespace

extern "C" {

const char* fastrnn_status_text(fastrnn_status status) {
  switch (status) {
    case FASTRNN_OK: return "nothing is wrong";
    case FASTRNN_CANNOT_READ: return "the file cannot be read";
    case FASTRNN_NOT_A_STREAM: return "this is no file of a stream";
    case FASTRNN_OTHER_VERSION: return "the file is of another version";
    case FASTRNN_WRONG_SIZE: return "the file has been cut short or made longer";
    case FASTRNN_WRONG_CHECKSUM: return "the file has been changed";
    case FASTRNN_MALFORMED: return "the file contradicts itself";
    case FASTRNN_NO_MEMORY: return "there is not enough memory";
    case FASTRNN_BAD_ARGUMENT: return "an argument is wrong";
    case FASTRNN_BAD_TOKEN: return "a token is out of range";
    case FASTRNN_NO_PROCESSOR: return "the processor cannot run this";
  }
  return "unknown status";
}

const char* fastrnn_error(void) { return last_error; }

fastrnn_status fastrnn_stream_read(const void* bytes, size_t size, int64_t batch, fastrnn_stream** to) {
  if (!to) return fail(FASTRNN_BAD_ARGUMENT, "to: expected a pointer, got null");
  *to = nullptr;
  if (!bytes) return fail(FASTRNN_BAD_ARGUMENT, "bytes: expected a pointer, got null");
  return guarded([&] {
    *to = new fastrnn_stream(bytes, size, batch);
    return FASTRNN_OK;
  });
}

fastrnn_status fastrnn_stream_load(const char* path, int64_t batch, fastrnn_stream** to) {
  if (!to) return fail(FASTRNN_BAD_ARGUMENT, "to: expected a pointer, got null");
  *to = nullptr;
  if (!path) return fail(FASTRNN_BAD_ARGUMENT, "path: expected a string, got null");
  return guarded([&] {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path, "rb"), std::fclose);
    long size = -1;
    if (file && !std::fseek(file.get(), 0, SEEK_END)) size = std::ftell(file.get());
    if (size < 0 || size > kMostBytes || std::fseek(file.get(), 0, SEEK_SET)) return fail(FASTRNN_CANNOT_READ, path);
    std::vector<uint64_t> bytes(static_cast<size_t>(size) / sizeof(uint64_t) + 1);
    if (std::fread(bytes.data(), 1, static_cast<size_t>(size), file.get()) != static_cast<size_t>(size))
      return fail(FASTRNN_CANNOT_READ, path);
    return fastrnn_stream_read(bytes.data(), static_cast<size_t>(size), batch, to);
  });
}

void fastrnn_stream_free(fastrnn_stream* stream) { delete stream; }

int64_t fastrnn_stream_batch(const fastrnn_stream* stream) { return stream ? stream->batch() : 0; }
int64_t fastrnn_stream_inputs(const fastrnn_stream* stream) { return stream ? stream->inputs() : 0; }
int64_t fastrnn_stream_vocabulary(const fastrnn_stream* stream) { return stream ? stream->vocabulary() : 0; }
int64_t fastrnn_stream_outputs(const fastrnn_stream* stream) { return stream ? stream->outputs() : 0; }
int64_t fastrnn_stream_state_size(const fastrnn_stream* stream) { return stream ? stream->state_size() : 0; }

fastrnn_status fastrnn_stream_step(fastrnn_stream* stream, const float* x, float* y) {
  if (!stream || !x || !y) return fail(FASTRNN_BAD_ARGUMENT, "expected a stream, x and y, got null");
  if (stream->vocabulary()) return fail(FASTRNN_BAD_ARGUMENT, "expected tokens: this model begins with an embedding");
  const int64_t count = stream->batch() * stream->inputs();
  if (stream->narrow())
    narrow(x, count, static_cast<uint16_t*>(stream->x()));
  else
    std::memcpy(stream->x(), x, static_cast<size_t>(count) * sizeof(float));
  run(stream, y);
  return FASTRNN_OK;
}

fastrnn_status fastrnn_stream_step_tokens(fastrnn_stream* stream, const int64_t* tokens, float* y) {
  if (!stream || !tokens || !y) return fail(FASTRNN_BAD_ARGUMENT, "expected a stream, tokens and y, got null");
  if (!stream->vocabulary()) return fail(FASTRNN_BAD_ARGUMENT, "expected x: this model has no embedding");
  if (!stream->look_up(tokens)) return fail(FASTRNN_BAD_TOKEN, "expected 0 to the vocabulary's size - 1");
  run(stream, y);
  return FASTRNN_OK;
}

fastrnn_status fastrnn_stream_reset(fastrnn_stream* stream, int64_t row) {
  if (!stream || row < -1 || row >= stream->batch())
    return fail(FASTRNN_BAD_ARGUMENT, "expected a stream, and a row of it or -1");
  if (row < 0)
    stream->reset_all();
  else
    stream->reset(&row, 1);
  return FASTRNN_OK;
}

fastrnn_status fastrnn_stream_get_state(const fastrnn_stream* stream, float* to) {
  if (!stream || !to) return fail(FASTRNN_BAD_ARGUMENT, "expected a stream and an array, got null");
  stream->get_state(to);
  return FASTRNN_OK;
}

fastrnn_status fastrnn_stream_set_state(fastrnn_stream* stream, const float* from) {
  if (!stream || !from) return fail(FASTRNN_BAD_ARGUMENT, "expected a stream and an array, got null");
  stream->set_state(from);
  return FASTRNN_OK;
}

}  // extern "C"
