#include "stream_file.h"

#include <array>
#include <cstring>

namespace fastrnn {
namespace {

constexpr size_t kHeader = 64, kAlign = 64;
constexpr uint32_t kVersion = 1, kMostLayers = 1024;
constexpr uint64_t kMostSize = uint64_t{1} << 31;
enum Flags : uint32_t { kInt8 = 1, kBiases = 2, kProjection = 4, kInitial = 8, kFloatInputs = 16, kAllFlags = 31 };

// Eight bytes at once, by eight tables: t[k][b] is the remainder of byte b with k bytes of zeros behind it. Source: M.
// Kounavis and F. Berry, A systematic approach to building high performance software-based CRC generators (2005).
uint32_t crc32(const unsigned char* from, size_t size) {
  static const auto tables = [] {
    std::array<std::array<uint32_t, 256>, 8> t{};
    for (uint32_t b = 0; b < 256; ++b) {
      uint32_t crc = b;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
      t[0][b] = crc;
    }
    for (size_t k = 1; k < 8; ++k)
      for (size_t b = 0; b < 256; ++b) t[k][b] = t[k - 1][b] >> 8 ^ t[0][t[k - 1][b] & 255];
    return t;
  }();
  uint32_t crc = ~0u;
  for (; size >= 8; from += 8, size -= 8) {
    uint32_t next = 0;
    for (size_t k = 0; k < 4; ++k) next ^= tables[7 - k][(crc >> 8 * k & 255) ^ from[k]];
    for (size_t k = 4; k < 8; ++k) next ^= tables[7 - k][from[k]];
    crc = next;
  }
  for (; size; ++from, --size) crc = crc >> 8 ^ tables[0][(crc ^ *from) & 255];
  return ~crc;
}

[[noreturn]] void malformed(const std::string& what) { throw StreamError(FASTRNN_MALFORMED, what); }

void require(bool right, const std::string& name, uint64_t found, const std::string& expected) {
  if (!right) malformed(name + ": expected " + expected + ", got " + std::to_string(found));
}

// The bytes one after the other; what stands beyond the end is an error, never read.
struct Cursor {
  const unsigned char* bytes;
  size_t size, at = 0;

  const unsigned char* pass(uint64_t count) {
    if (count > size - at) malformed("expected more numbers than the file has");
    at += count;
    return bytes + at - count;
  }
  template <class N>
  N number() {
    N found;
    std::memcpy(&found, pass(sizeof(N)), sizeof(N));
    return found;
  }
  uint64_t count(const std::string& name, uint64_t least) {
    const auto found = number<uint64_t>();
    require(found >= least && found < kMostSize, name, found, std::to_string(least) + " to 2^31 - 1");
    return found;
  }
  // So many rows of so many numbers, each of `item` bytes, and zeros up to where the next array begins.
  const void* array(uint64_t rows, uint64_t columns, size_t item) {
    const unsigned __int128 total = static_cast<unsigned __int128>(rows) * columns * item;
    if (total > size) malformed("expected more numbers than the file has");
    const unsigned char* const found = pass(static_cast<uint64_t>(total));
    align();
    return found;
  }
  const float* floats(uint64_t count) { return static_cast<const float*>(array(1, count, sizeof(float))); }
  void align() {
    while (at % kAlign)
      if (*pass(1)) malformed("expected zeros between arrays");
  }
};

const void* int8_matrix(Cursor& file, uint64_t rows, uint64_t depth) {
  require(depth <= static_cast<uint64_t>(kInt8Depth), "columns of a matrix of int8", depth,
          "at most " + std::to_string(kInt8Depth));
  const void* const found = file.array(rows, depth, 1);
  const auto* const values = static_cast<const int8_t*>(found);
  for (uint64_t i = 0; i < rows * depth; ++i)
    if (values[i] == -128) malformed("a matrix of int8: expected -127 to 127, got -128");
  return found;
}

void read_arrays(Cursor& file, size_t item, uint32_t flags, StreamLayer& layer) {
  const uint64_t rows = static_cast<uint64_t>(facts(layer.mode).gates) * layer.hidden;
  const auto matrix = [&](const float*& scales, uint64_t height, uint64_t depth) -> const void* {
    if (!layer.int8) return file.array(height, depth, item);
    scales = file.floats(height);
    return int8_matrix(file, height, depth);
  };
  if (layer.float_inputs)
    layer.w_ih = file.floats(rows * layer.inputs);
  else
    layer.w_ih = matrix(layer.s_ih, rows, layer.inputs);
  layer.w_hh = matrix(layer.s_hh, rows, layer.outputs);
  if (flags & kBiases)
    for (const void** bias : {&layer.b_ih, &layer.b_hh}) *bias = file.array(1, rows, layer.int8 ? 4 : item);
  if (flags & kProjection) layer.w_hr = matrix(layer.s_hr, layer.outputs, layer.hidden);
  if (flags & kInitial) {
    layer.h = file.floats(layer.outputs);
    if (facts(layer.mode).has_cell) layer.c = file.floats(layer.hidden);
  }
}

Cursor checked_whole(const void* bytes, size_t size) {
  Cursor file{static_cast<const unsigned char*>(bytes), size};
  const uint16_t order = 1;
  if (!*reinterpret_cast<const unsigned char*>(&order))
    throw StreamError(FASTRNN_NO_PROCESSOR, "expected a processor that is little-endian, as the file");
  if (size < 16 || std::memcmp(file.pass(8), "FRNNSTRM", 8))
    throw StreamError(FASTRNN_NOT_A_STREAM, "expected a file that begins with FRNNSTRM");
  if (const auto version = file.number<uint32_t>(); version != kVersion)
    throw StreamError(FASTRNN_OTHER_VERSION,
                      "version: expected " + std::to_string(kVersion) + ", got " + std::to_string(version));
  const auto checksum = file.number<uint32_t>();
  const uint64_t wanted = size < kHeader ? kHeader : file.number<uint64_t>();
  if (wanted != size)
    throw StreamError(FASTRNN_WRONG_SIZE,
                      "size: expected " + std::to_string(wanted) + " bytes, got " + std::to_string(size));
  if (const uint32_t found = crc32(file.bytes + 16, size - 16); found != checksum)
    throw StreamError(FASTRNN_WRONG_CHECKSUM,
                      "checksum: expected " + std::to_string(checksum) + ", got " + std::to_string(found));
  return file;
}

}  // namespace

StreamModel read_stream_file(const void* bytes, size_t size) {
  Cursor file = checked_whole(bytes, size);
  StreamModel model{};
  const auto numbers = file.number<uint32_t>(), layers = file.number<uint32_t>();
  require(numbers <= 1, "numbers", numbers, "0 or 1");
  require(layers >= 1 && layers <= kMostLayers, "layers", layers, "1 to " + std::to_string(kMostLayers));
  model.narrow = numbers == 1;
  const size_t item = model.narrow ? 2 : 4;
  model.vocabulary = file.count("vocabulary", 0);
  model.inputs = file.count("inputs", 1);
  model.linear_outputs = file.count("outputs of the linear layer", 0);
  const auto has_bias = file.number<uint32_t>(), nothing = file.number<uint32_t>();
  require(has_bias <= (model.linear_outputs ? 1 : 0), "bias of the linear layer", has_bias,
          "0, or 1 with such a layer");
  require(!nothing, "reserved", nothing, "0");

  std::vector<uint32_t> flags;
  uint64_t inputs = model.inputs;
  for (uint32_t i = 0; i < layers; ++i) {
    StreamLayer layer{};
    const std::string name = "layer " + std::to_string(i) + ", ";
    const auto mode = file.number<uint32_t>();
    flags.push_back(file.number<uint32_t>());
    require(mode < sizeof(kCells) / sizeof(*kCells), name + "mode", mode, "0 to 3");
    const bool int8 = flags[i] & kInt8, float_inputs = flags[i] & kFloatInputs;
    require(flags[i] <= kAllFlags && !(model.narrow && int8) && !(float_inputs && !int8), name + "flags", flags[i],
            "0 to 31, no weights of int8 among bfloat16, and 16 with those of int8 alone");
    layer.mode = static_cast<Mode>(mode), layer.int8 = int8, layer.float_inputs = float_inputs;
    layer.inputs = inputs;
    layer.hidden = file.count(name + "hidden units", 1), layer.outputs = file.count(name + "outputs", 1);
    const bool projects = flags[i] & kProjection;
    require(projects ? facts(layer.mode).has_cell : layer.outputs == layer.hidden, name + "outputs", layer.outputs,
            "the number of hidden units, or the projection of an LSTM");
    require(!file.number<uint64_t>(), name + "reserved", 1, "0");
    inputs = layer.outputs;
    model.layers.push_back(layer);
  }
  file.align();
  if (model.vocabulary) model.embedding = file.array(model.vocabulary, model.inputs, item);
  for (uint32_t i = 0; i < layers; ++i) read_arrays(file, item, flags[i], model.layers[i]);
  if (model.linear_outputs) model.linear_weight = file.array(model.linear_outputs, inputs, item);
  if (has_bias) model.linear_bias = file.array(1, model.linear_outputs, item);
  require(file.at == size, "bytes", size, "as many as the arrays fill, " + std::to_string(file.at));
  return model;
}

}  // namespace fastrnn
