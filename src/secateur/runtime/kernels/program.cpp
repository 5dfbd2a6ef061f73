// Runs a list of operations, each by all threads together.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <ctime>
#include <limits>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "engine.h"
#include "pool.h"

namespace {

typedef uint16_t Half;
typedef uint8_t Byte;

// What the bytes of a tensor stand for: scale * (byte - zero).
struct Code {
  float scale;
  int zero;
};

struct Run {
  const Op& op;
  float* arena;
  float* const* outside;
  int threads;
  const Path& path;
  const Halves& halves;
  const Bytes& bytes;

  template <typename E = float>
  const E* x() const { return reinterpret_cast<const E*>(arena + op.x); }
  template <typename E = float>
  E* y() const { return reinterpret_cast<E*>(arena + op.y); }
  template <typename E = float>
  const E* other() const { return op.other < 0 ? nullptr : reinterpret_cast<const E*>(arena + op.other); }
  Code in() const { return {op.in_scale, int(op.in.zero)}; }
  Code out() const { return {op.out_scale, int(op.out.zero)}; }
};

// Lines of each kind as float32: a line of halves or bytes is widened into memory of its own, or made there and narrowed; a line
// of floats is itself.
const float* line_of(const Run&, const float* from, int64_t, std::vector<float>&, Code) { return from; }
const float* line_of(const Run& run, const Half* from, int64_t count, std::vector<float>& memory, Code) {
  memory.resize(size_t(count));
  run.halves.widen(memory.data(), from, count);
  return memory.data();
}
const float* line_of(const Run& run, const Byte* from, int64_t count, std::vector<float>& memory, Code code) {
  memory.resize(size_t(count));
  run.bytes.widen(memory.data(), from, count, code.scale, code.zero);
  return memory.data();
}
float* room(float* to, int64_t, std::vector<float>&) { return to; }
template <typename E>
float* room(E*, int64_t count, std::vector<float>& memory) {
  memory.resize(size_t(count));
  return memory.data();
}
void put_line(const Run&, float* to, const float* from, int64_t count, Code) {
  if (to != from) std::memcpy(to, from, size_t(count) * 4);
}
void put_line(const Run& run, Half* to, const float* from, int64_t count, Code) { run.halves.narrow(to, from, count); }
void put_line(const Run& run, Byte* to, const float* from, int64_t count, Code code) {
  run.bytes.narrow(to, from, count, code.scale, code.zero);
}

void get_line(const Run&, float* to, const float* from, int64_t count, Code) { std::memcpy(to, from, size_t(count) * 4); }
void get_line(const Run& run, float* to, const Half* from, int64_t count, Code) { run.halves.widen(to, from, count); }
void get_line(const Run& run, float* to, const Byte* from, int64_t count, Code code) {
  run.bytes.widen(to, from, count, code.scale, code.zero);
}

float value_of(float v, Code) { return v; }
float value_of(Byte v, Code code) { return (float(v) - float(code.zero)) * code.scale; }
float value_of(Half v, Code) {
  const uint32_t bits = uint32_t(v) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
void set_value(float& to, float v, Code) { to = v; }
void set_value(Byte& to, float v, Code code) {  // to the nearest, ties to even; NaN is zero
  v = v * (1.0f / code.scale) + float(code.zero);
  v = v == v ? std::min(std::max(v, 0.0f), 255.0f) : float(code.zero);
  to = Byte(int(v + 12582912.0f - 12582912.0f));
}
void set_value(Half& to, float v, Code) {  // to the nearest, ties to even; NaN stays one
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  to = Half(v == v ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : (bits >> 16) | 0x40);
}

template <typename E> struct MaskOf { typedef int32_t type; };
template <> struct MaskOf<Half> { typedef int16_t type; };
template <> struct MaskOf<Byte> { typedef int8_t type; };
template <typename E> struct JobOf { typedef Job<E, typename MaskOf<E>::type> type; };
template <> struct JobOf<Byte> { typedef ByteJob type; };

void call_rows(const Run& run, int tile, int block, const RowJob& job) { run.path.rows(tile, block, job); }
void call_rows(const Run& run, int tile, int block, const HalfJob& job) { run.halves.rows(tile, block, job); }
void call_rows(const Run& run, int tile, int block, const ByteJob& job) { run.bytes.rows(tile, block, job); }
auto call_pool(const Run& run, const Byte*) {
  return [&run](auto... given) { run.bytes.pool(given..., int(run.op.in.zero)); };
}
auto call_halve(const Run& run, const Byte*) { return run.bytes.halve; }
auto call_halve(const Run& run, const float*) { return run.path.halve; }
auto call_halve(const Run& run, const Half*) { return run.halves.halve; }
auto call_pick(const Run& run, const Byte*) { return run.bytes.pick; }
auto call_pick(const Run& run, const float*) { return run.path.pick; }
auto call_pick(const Run& run, const Half*) { return run.halves.pick; }
auto call_pool(const Run& run, const float*) { return run.path.pool; }
auto call_pool(const Run& run, const Half*) { return run.halves.pool; }

int64_t groups(const Plane& p) { return (p.images + p.lanes - 1) / p.lanes; }
int64_t span(const Plane& p) { return ((p.height - 1) * p.row + p.width) * p.lanes; }  // floats of one image, gaps included
int64_t at(const Plane& p, int64_t c, int64_t group) { return p.lead + c * p.channel + group * p.image; }
int64_t lanes_of(const Plane& p, int64_t group) { return std::min(p.lanes, p.images - group * p.lanes); }

// Calls task(first, last) on pieces of [0, count); a piece goes to whichever thread is free.
template <typename Task>
void shared(int threads, int64_t count, int64_t pieces, const Task& task) {
  pieces = std::min(pieces, count);
  if (threads <= 1 || pieces <= 1) {
    if (count > 0) task(int64_t(0), count);
    return;
  }
  std::atomic<int64_t> next{0};
  together(int(std::min<int64_t>(threads, pieces)), [&](int) {
    for (int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;)
      task(count * piece / pieces, count * (piece + 1) / pieces);
  });
}

// What a job of bytes has beside the others; `place` is its first position in the output.
template <typename J>
void add_codes(const Run&, J&, int64_t) {}
void add_codes(const Run& run, ByteJob& job, int64_t place) {
  const Op& op = run.op;
  job.scale = op.scale;
  job.begin = op.begin;
  job.other_scale = op.other_scale;
  job.other_shift = op.other_shift;
  job.out_scale = op.out_scale;
  job.zero = int(op.out.zero);
  job.real = op.out.bytes == 4 ? run.y() + place : nullptr;
}

template <typename E>
void conv(const Run& run) {
  typedef typename MaskOf<E>::type Mask;
  constexpr int64_t UNIT = 64 / sizeof(E);
  const Op& op = run.op;
  // what is left of a map behind its last tile of bytes is half a line, if that is enough
  const bool half = sizeof(E) == 1 && (span(op.out) + UNIT / 2 - 1) / (UNIT / 2) % 2;
  const int64_t vectors = half ? span(op.out) / UNIT : (span(op.out) + UNIT - 1) / UNIT, images = groups(op.out);
  const int64_t whole = (vectors + op.tile - 1) / op.tile, tiles = whole + half;
  const auto work = [&](int64_t tile, int64_t first, int64_t last) {
    const int64_t group = tile / tiles, i = tile % tiles;
    const int64_t from = i < whole ? vectors * i / whole : vectors, to = i < whole ? vectors * (i + 1) / whole : vectors;
    typename JobOf<E>::type job;
    add_codes(run, job, at(op.out, 0, group) + from * UNIT);
    job.words = op.words;
    job.start = op.start;
    job.rows = op.rows;
    job.bias = op.bias;
    job.first = first;
    job.last = last;
    job.from = nullptr;
    job.to = nullptr;
    job.x = run.x<E>() + at(op.in, 0, group) + from * UNIT;
    job.y = run.y<E>() + at(op.out, 0, group) + from * UNIT;
    job.y_channel = op.out.channel;
    job.other = run.other<E>() ? run.other<E>() + at(op.out, 0, group) + from * UNIT : nullptr;
    job.other_channel = op.other_channel;
    job.mask = op.mask ? static_cast<const Mask*>(op.mask) + from * UNIT : nullptr;
    job.activation = op.activation;
    job.low = op.low;
    job.high = op.high;
    job.after = int(op.after);
    if (op.parts <= 1) {
      call_rows(run, int(to - from), int(op.block), job);
      return;
    }
    static thread_local std::vector<float> sums;
    sums.resize(size_t((last - first) * op.block * std::max<int64_t>(to - from, 1) * UNIT));
    for (int64_t part = 0; part < op.parts; ++part) {
      job.start = op.start + part * op.blocks;
      job.from = part ? sums.data() : nullptr;
      job.to = part + 1 < op.parts ? sums.data() : nullptr;
      call_rows(run, int(to - from), int(op.block), job);
    }
  };
  if (run.threads > 1 && op.split) {
    const int64_t pieces = run.threads * 3;
    const auto cost = [&](int64_t b) { return op.start[b] + 4 * b; };
    const auto edge = [&](int64_t piece) {  // blocks are cut where the work is even, not their number
      const int64_t wanted = cost(op.blocks) * piece / pieces;
      int64_t low = 0, high = op.blocks;
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (cost(middle) < wanted) low = middle + 1; else high = middle;
      }
      return low;
    };
    shared(run.threads, pieces, pieces, [&](int64_t first, int64_t last) {
      for (int64_t tile = 0; tile < tiles * images; ++tile) work(tile, edge(first), edge(last));
    });
    return;
  }
  const int64_t count = tiles * images;
  shared(run.threads, count, std::min(count, int64_t(run.threads) * 4), [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) work(tile, 0, op.blocks);
  });
}

// The planes a strided convolution reads: one per residue of the row and column number, so that its steps become shifts.
template <typename E>
void gather(const Run& run) {
  const Op& op = run.op;
  const int64_t lanes = op.in.lanes, each = op.phases[0] * op.phases[1];
  const auto pick = call_pick(run, run.x<E>());
  shared(run.threads, op.in.channels * each, run.threads * 4, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const int64_t i = op.kernel[0] + c % each / op.phases[1], j = op.kernel[1] + c % op.phases[1];
      const int64_t height = (op.in.height - i + op.stride[0] - 1) / op.stride[0];
      const int64_t width = (op.in.width - j + op.stride[1] - 1) / op.stride[1];
      E* plane = run.y<E>() + c * op.out.channel;
      std::memset(plane, sizeof(E) == 1 ? int(op.out.zero) : 0, size_t(op.out.channel) * sizeof(E));
      for (int64_t group = 0; group < groups(op.in); ++group) {
        const E* from = run.x<E>() + at(op.in, c / each, group) + (i * op.in.row + j) * lanes;
        E* to = plane + op.out.lead + group * op.out.image;
        for (int64_t h = 0; h < height; ++h, from += op.stride[0] * op.in.row * lanes, to += op.out.row * lanes) {
          if (op.stride[1] == 1) {
            std::memcpy(to, from, size_t(width * lanes) * sizeof(E));
          } else if (lanes > 1) {
            for (int64_t w = 0; w < width; ++w) std::memcpy(to + w * lanes, from + w * lanes * op.stride[1], size_t(lanes) * sizeof(E));
          } else if (op.stride[1] == 2) {
            pick(to, from, width);
          } else {
            for (int64_t w = 0; w < width; ++w) to[w] = from[op.stride[1] * w];
          }
        }
      }
    }
  });
}

struct Sum {
  float operator()(float a, float b) const { return a + b; }
};
struct Larger {
  float operator()(float a, float b) const { return b > a || b != b ? b : a; }
};

int64_t place(const Plane& p, int64_t c, int64_t n) { return at(p, c, n / p.lanes) + n % p.lanes; }

// Rows are joined first, then neighbours in the joined row; outside the image stands `empty`. Bytes are joined as whole
// numbers: the output's have the meaning of the input's.
template <typename E, typename To, typename Join>
void pool(const Run& run, float empty, float scale, const Join& join) {
  const Op& op = run.op;
  constexpr bool SUM = std::is_same<Join, Sum>::value;
  const bool inside = !op.padding[0] && !op.padding[1] && (op.out.height - 1) * op.stride[0] + op.kernel[0] <= op.in.height &&
                      (op.out.width - 1) * op.stride[1] + op.kernel[1] <= op.in.width;
  const bool single = op.out.height == 1 && op.out.width == 1;  // laid out otherwise: images side by side
  const Code whole_numbers{1.0f, int(op.in.zero)};
  if (op.in.lanes == 16 && inside && !single) {
    const auto pool16 = call_pool(run, run.x<E>());
    shared(run.threads, op.in.channels, run.threads * 4, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c)
        for (int64_t group = 0; group < groups(op.in); ++group)
          for (int64_t h = 0; h < op.out.height; ++h)
            pool16(run.y<E>() + at(op.out, c, group) + h * op.out.row * 16,
                   run.x<E>() + at(op.in, c, group) + h * op.stride[0] * op.in.row * 16, op.out.width, op.kernel[0], op.kernel[1],
                   op.in.row * 16, op.stride[1] * 16, SUM, scale);
    });
    return;
  }
  const bool pairs = op.kernel[0] == 2 && op.kernel[1] == 2 && op.stride[0] == 2 && op.stride[1] == 2;
  if (op.in.lanes == 1 && inside && pairs && !SUM) {
    const auto halve = call_halve(run, run.x<E>());
    shared(run.threads, op.in.channels, run.threads * 4, [&](int64_t first, int64_t last) {
      std::vector<E> plane(std::is_same<E, To>::value ? 0 : size_t(op.out.height * op.out.width));
      for (int64_t c = first; c < last; ++c)
        for (int64_t n = 0; n < op.in.images; ++n) {
          const E* from = run.x<E>() + at(op.in, c, n);
          To* to = run.y<To>() + place(op.out, c, n);
          if (std::is_same<E, To>::value) {
            halve(reinterpret_cast<E*>(to), from, op.out.height, op.out.width, op.out.row, op.in.row);
            continue;
          }
          halve(plane.data(), from, op.out.height, op.out.width, op.out.width, op.in.row);
          for (int64_t h = 0; h < op.out.height; ++h)
            for (int64_t w = 0; w < op.out.width; ++w)
              set_value(to[h * op.out.row + w], value_of(plane[size_t(h * op.out.width + w)], run.in()), run.out());
        }
    });
    return;
  }
  const int64_t whole = (op.out.width + 15) / 16 * 16;  // of one row, in whole vectors
  const int64_t lanes = op.in.lanes, width = op.in.width, padded = op.out.width * op.stride[1] + op.kernel[1] + width;
  shared(run.threads, op.in.channels, run.threads * 4, [&](int64_t first, int64_t last) {
    std::vector<float> line(size_t((padded + op.padding[1]) * lanes + 64), empty), wide, made, halved;
    float one[16];
    std::vector<float> row(size_t(whole), 0.0f);
    for (int64_t c = first; c < last; ++c)
      for (int64_t group = 0; group < groups(op.in); ++group) {
        const E* x = run.x<E>() + at(op.in, c, group);
        To* to = run.y<To>() + (single ? 0 : at(op.out, c, group));
        for (int64_t h = 0; h < op.out.height; ++h, to += op.out.row * lanes) {
          float* const y = single && lanes > 1 ? one : lanes == 1 ? row.data() : room(to, op.out.width * lanes, made);
          float* middle = line.data() + op.padding[1] * lanes;
          bool any = false;
          for (int64_t k = 0; k < op.kernel[0]; ++k) {
            const int64_t row = h * op.stride[0] + k - op.padding[0];
            if (row < 0 || row >= op.in.height) continue;
            const float* from = line_of(run, x + row * op.in.row * lanes, width * lanes, wide, whole_numbers);
            if (any && !SUM) run.path.raise(middle, from, width * lanes);
            else if (any) for (int64_t w = 0; w < width * lanes; ++w) middle[w] = join(middle[w], from[w]);
            else std::memcpy(middle, from, size_t(width * lanes) * 4);
            any = true;
          }
          if (!any) std::fill(middle, middle + width * lanes, empty);
          const float* from = line.data();
          if (lanes == 1 && op.stride[1] <= 2) {
            const int64_t each = whole + op.kernel[1] / 2;
            const float* parts[2] = {from, from};
            if (op.stride[1] == 2) {
              halved.resize(size_t(2 * each));
              run.path.split(halved.data(), halved.data() + each, from, each);
              parts[0] = halved.data();
              parts[1] = halved.data() + each;
            }
            for (int64_t k = 0; k < op.kernel[1]; ++k) {
              const float* next = op.stride[1] == 2 ? parts[k % 2] + k / 2 : from + k;
              if (!k) std::memcpy(y, next, size_t(whole) * 4);
              else if (!SUM) run.path.raise(y, next, whole);
              else for (int64_t w = 0; w < op.out.width; ++w) y[w] += next[w];
            }
          } else {
            for (int64_t w = 0; w < op.out.width; ++w)
              for (int64_t l = 0; l < lanes; ++l) {
                const float* p = from + w * op.stride[1] * lanes + l;
                float value = p[0];
                for (int64_t k = 1; k < op.kernel[1]; ++k) value = join(value, p[k * lanes]);
                y[w * lanes + l] = value;
              }
          }
          if (scale != 1.0f) for (int64_t w = 0; w < op.out.width * lanes; ++w) y[w] *= scale;
          if (std::is_same<E, Byte>::value && !std::is_same<To, Byte>::value)
            for (int64_t i = 0; i < op.out.width * lanes; ++i) y[i] *= op.in_scale;
          if (single) for (int64_t l = 0; l < lanes_of(op.in, group); ++l) set_value(to[place(op.out, c, group * lanes + l)], y[l], whole_numbers);
          else put_line(run, to, y, op.out.width * lanes, whole_numbers);
        }
      }
  });
}

template <typename E, typename To>
void mean(const Run& run) {
  const Op& op = run.op;
  const float share = 1.0f / float(op.in.height * op.in.width);
  const int64_t lanes = op.in.lanes;
  const Code whole{1.0f, int(op.in.zero)};  // sums of bytes are whole numbers, and gaps add nothing
  const float factor = sizeof(E) == 1 ? share * op.in_scale : share;
  shared(run.threads, op.in.channels, run.threads * 2, [&](int64_t first, int64_t last) {
    std::vector<float> wide;
    for (int64_t c = first; c < last; ++c)
      for (int64_t group = 0; group < groups(op.in); ++group) {
        const int64_t count = span(op.in);
        const float* x = line_of(run, run.x<E>() + at(op.in, c, group), count, wide, whole);
        float sum[16] = {};
        if (lanes == 16) {
          for (int64_t i = 0; i < count; i += 16) for (int l = 0; l < 16; ++l) sum[l] += x[i + l];
        } else {
          for (int64_t i = 0; i + 16 <= count; i += 16) for (int l = 0; l < 16; ++l) sum[l] += x[i + l];
          for (int64_t i = count / 16 * 16; i < count; ++i) sum[i % 16] += x[i];
          for (int l = 1; l < 16; ++l) sum[0] += sum[l];
        }
        for (int64_t l = 0; l < lanes_of(op.in, group); ++l)
          set_value(run.y<To>()[place(op.out, c, group * lanes + l)], sum[l] * factor, run.out());
      }
  });
}

template <typename E, typename Join>
void pool_to(const Run& run, float empty, float scale, const Join& join) {
  run.op.out.bytes != 4 ? pool<E, E>(run, empty, scale, join) : pool<E, float>(run, empty, scale, join);
}

// y = activation(scale * x + shift + other), channel by channel.
void pointwise(const Run& run) {
  const Op& op = run.op;
  const bool vector = op.out.channel == 1;  // one value per channel, side by side
  const int64_t count = vector ? (op.out.channels + 15) / 16 * 16 : (span(op.out) + 15) / 16 * 16;
  shared(run.threads, vector ? 1 : op.out.channels, run.threads * 4, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c)
      for (int64_t group = 0; group < groups(op.out); ++group) {
        const int64_t place = at(op.out, 0, group);
        run.path.finish(run.y() + place + c * op.out.channel, run.x() + place + c * op.in.channel,
                        run.other() ? run.other() + place + c * op.other_channel : nullptr, static_cast<const int32_t*>(op.mask), count,
                        op.scale ? op.scale[c] : 1.0f, op.bias ? op.bias[c] : 0.0f, op.activation, op.low, op.high, int(op.after));
      }
  });
}

void half_pointwise(const Run& run) {
  const Op& op = run.op;
  const int64_t count = (span(op.out) + 31) / 32 * 32;
  shared(run.threads, op.out.channels, run.threads * 4, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c)
      for (int64_t group = 0; group < groups(op.out); ++group) {
        const int64_t place = at(op.out, 0, group);
        const Half* other = run.other<Half>();
        run.halves.finish(run.y<Half>() + place + c * op.out.channel, run.x<Half>() + place + c * op.in.channel,
                          other ? other + place + c * op.other_channel : nullptr, static_cast<const int16_t*>(op.mask), count,
                          op.scale ? op.scale[c] : 1.0f, op.bias ? op.bias[c] : 0.0f, op.activation, op.low, op.high, int(op.after));
      }
  });
}

void byte_pointwise(const Run& run) {
  const Op& op = run.op;
  const int64_t count = (span(op.out) + 63) / 64 * 64;
  shared(run.threads, op.out.channels, run.threads * 4, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const float factor = op.scale ? op.scale[c] : 1.0f, scale = factor * op.in_scale;
      const float shift = (op.bias ? op.bias[c] : 0.0f) - scale * float(op.in.zero);
      for (int64_t group = 0; group < groups(op.out); ++group) {
        const int64_t place = at(op.out, 0, group);
        const Byte* other = run.other<Byte>();
        run.bytes.finish(run.y<Byte>() + place + c * op.out.channel, run.x<Byte>() + place + c * op.in.channel,
                         other ? other + place + c * op.other_channel : nullptr, static_cast<const int8_t*>(op.mask), count, scale,
                         shift, op.other_scale, op.other_shift, op.out_scale, int(op.out.zero), op.activation, op.low, op.high,
                         int(op.after));
      }
    }
  });
}

// y = x * other, where `other` has one value per image and channel.
template <typename E, typename By>
void scale(const Run& run) {
  const Op& op = run.op;
  Plane single = op.out;  // layout of `other`
  single.height = single.width = 1;
  const Code factor{op.other_scale, sizeof(By) == 1 && op.other_scale != 0.0f ? int(std::lround(-op.other_shift / op.other_scale)) : 0};
  shared(run.threads, op.out.channels, run.threads * 4, [&](int64_t first, int64_t last) {
    std::vector<float> wide, made;
    for (int64_t c = first; c < last; ++c)
      for (int64_t group = 0; group < groups(op.out); ++group) {
        const E* x = run.x<E>() + at(op.in, c, group);
        E* y = run.y<E>() + at(op.out, c, group);
        const By* by = run.other<By>() + c * op.other_channel + group * op.out.lanes;
        const int64_t count = span(op.out);
        const float* from = line_of(run, x, count, wide, run.in());
        float* to = room(y, count, made);
        if (op.out.lanes == 1) for (int64_t i = 0; i < count; ++i) to[i] = from[i] * value_of(by[0], factor);
        else for (int64_t i = 0; i < count; i += 16) for (int l = 0; l < 16; ++l) to[i + l] = from[i + l] * value_of(by[l], factor);
        put_line(run, y, to, count, run.out());
      }
  });
}

void copy(const Run& run) {
  const Op& op = run.op;
  shared(run.threads, op.in.channels, run.threads * 2, [&](int64_t first, int64_t last) {
    const int64_t bytes = op.in.bytes;
    std::memcpy(run.y<char>() + at(op.out, first, 0) * bytes, run.x<char>() + at(op.in, first, 0) * bytes,
                size_t((last - first) * op.in.channel * bytes));
  });
}

template <bool IN, typename E>
void border(const Run& run) {
  const Op& op = run.op;
  const Plane& p = IN ? op.out : op.in;
  float* const outside = run.outside[IN ? op.x : op.y];
  E* const inside = IN ? run.y<E>() : const_cast<E*>(run.x<E>());
  const Code code = IN ? run.out() : run.in();
  const auto move = [&](float& out, E& in) { if (IN) set_value(in, out, code); else out = value_of(in, code); };
  constexpr int64_t STRIP = 16;  // channels at a time: where they are neighbours outside, a line is read once
  const int64_t strip = op.inner == 1 ? STRIP : 1, strips = (p.channels + strip - 1) / strip;
  shared(run.threads, strips * groups(p), run.threads * 4, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t group = i / strips, begin = i % strips * strip, end = std::min(begin + strip, p.channels);
      const int64_t lanes = lanes_of(p, group);
      float* from = outside + group * p.lanes * op.outer;
      E* base = inside + at(p, 0, group);
      for (int64_t h = 0; h < p.height; ++h) {
        if (p.lanes == 1 && op.step == 1) {
          for (int64_t c = begin; c < end; ++c) {
            float* out = from + c * op.inner + h * p.width;
            E* in = base + c * p.channel + h * p.row;
            if (IN) put_line(run, in, out, p.width, code);
            else get_line(run, out, in, p.width, code);
          }
          continue;
        }
        for (int64_t w = 0; w < p.width; ++w)
          for (int64_t c = begin; c < end; ++c) {
            float* out = from + c * op.inner + (h * p.width + w) * op.step;
            E* in = base + c * p.channel + (h * p.row + w) * p.lanes;
            for (int64_t l = 0; l < lanes; ++l) move(out[l * op.outer], in[l]);
          }
      }
    }
  });
}

// One input vector against sparse rows: bound by reading the weights, so rows are summed in four chains and no more.
void dot(const Run& run) {
  const Op& op = run.op;
  const float* x = run.x();
  float* y = run.y();
  shared(run.threads, (op.blocks + 15) / 16, run.threads * 4, [&](int64_t first, int64_t last) {
    const int64_t end = std::min(last * 16, op.blocks);
    for (int64_t row = first * 16; row < end; ++row) {
      const int32_t* entry = op.words + 2 * int64_t(op.start[row]);
      const int32_t* stop = op.words + 2 * int64_t(op.start[row + 1]);
      float sum[4] = {op.bias[row], 0, 0, 0}, weight;
      for (; stop - entry >= 8; entry += 8)
        for (int k = 0; k < 4; ++k) {
          std::memcpy(&weight, entry + 2 * k + 1, 4);
          sum[k] += weight * x[entry[2 * k]];
        }
      for (; entry != stop; entry += 2) {
        std::memcpy(&weight, entry + 1, 4);
        sum[0] += weight * x[entry[0]];
      }
      y[row] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    if (op.activation || op.other >= 0)
      run.path.finish(y + first * 16, y + first * 16, run.other() ? run.other() + first * 16 : nullptr, nullptr, (last - first) * 16,
                      1.0f, 0.0f, op.activation, op.low, op.high, int(op.after));
  });
}

template <typename E>
bool run_map(const Run& run) {
  const float lowest = -std::numeric_limits<float>::infinity();
  switch (run.op.kind) {
    case CONV: conv<E>(run); return true;
    case GATHER: gather<E>(run); return true;
    case MAXPOOL: pool_to<E>(run, lowest, 1.0f, Larger()); return true;
    case AVGPOOL: pool_to<E>(run, 0.0f, 1.0f / float(run.op.kernel[0] * run.op.kernel[1]), Sum()); return true;
    case MEAN: run.op.out.bytes != 4 ? mean<E, E>(run) : mean<E, float>(run); return true;
    case IMPORT: border<true, E>(run); return true;
    case EXPORT: border<false, E>(run); return true;
    case SCALE: run.op.out.images == 1 ? scale<E, float>(run) : scale<E, E>(run); return true;
    default: return false;
  }
}

bool run_one(const Run& run) {
  const int64_t size = (run.op.kind == IMPORT ? run.op.out : run.op.in).bytes;
  switch (run.op.kind) {
    case ADD:
    case AFFINE: size == 1 ? byte_pointwise(run) : size == 2 ? half_pointwise(run) : pointwise(run); return true;
    case COPY: copy(run); return true;
    case DOT: dot(run); return true;
    default: return size == 1 ? run_map<Byte>(run) : size == 2 ? run_map<Half>(run) : run_map<float>(run);
  }
}

// Nanoseconds: of one thread those it has worked, which others on the machine do not lengthen.
int64_t now(int threads) {
#ifdef CLOCK_THREAD_CPUTIME_ID
  timespec time;
  if (threads <= 1 && !clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)) return int64_t(time.tv_sec) * 1000000000 + time.tv_nsec;
#endif
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

extern "C" {

int secateur_run(const Op* ops, int64_t count, float* arena, float* const* outside, int threads) {
  const Path& path = chosen_path();
  const Halves& halves = chosen_halves();
  const Bytes& bytes = chosen_bytes();
  for (int64_t i = 0; i < count; ++i)
    if (!run_one(Run{ops[i], arena, outside, threads, path, halves, bytes})) return int(i + 1);
  return 0;
}

int secateur_chunks(const Op* ops, int64_t count, float* const* arenas, float* const* outside, const int64_t* steps, int64_t tensors,
                    int64_t chunks, int threads, int inner) {
  const int outer = inner == 1 ? int(std::min<int64_t>(threads, chunks)) : 1;
  std::atomic<int64_t> next{0};
  std::atomic<int> bad{0};
  together(outer, [&](int index) {
    std::vector<float*> here(size_t(tensors), nullptr);
    for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      for (int64_t k = 0; k < tensors; ++k) here[size_t(k)] = outside[k] + chunk * steps[k];
      if (const int failed = secateur_run(ops, count, arenas[index], here.data(), inner)) bad = failed;
    }
  });
  return bad;
}

int64_t secateur_time(const Op* op, float* arena, float* const* outside, int threads, int64_t repeats) {
  int64_t best = std::numeric_limits<int64_t>::max();
  for (int64_t i = 0; i <= repeats; ++i) {
    const int64_t begin = now(threads);
    if (secateur_run(op, 1, arena, outside, threads)) return -1;
    if (i) best = std::min(best, now(threads) - begin);  // the first run warms the caches
  }
  return best;
}

double secateur_peak(int threads) {
  std::vector<double> done(size_t(std::max(threads, 1)), 0.0);
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const int64_t begin = now(threads);
    together(int(done.size()), [&](int i) { done[size_t(i)] = chosen_path().burn(400000); });
    double total = 0;
    for (double each : done) total += each;
    best = std::max(best, total / (double(now(threads) - begin) * 1e-9));
  }
  return best;
}

double secateur_bandwidth(int64_t bytes) {
  std::vector<float> values(size_t(bytes / 4), 1.0f);
  double best = 0;
  volatile double sink = 0;
  const int64_t passes = std::max<int64_t>(1, (int64_t(64) << 20) / std::max<int64_t>(bytes, 1));
  for (int round = 0; round < 4; ++round) {
    const int64_t begin = now(1);
    for (int64_t pass = 0; pass < passes; ++pass) sink = sink + chosen_path().read(values.data(), int64_t(values.size()));
    best = std::max(best, double(bytes) * double(passes) / (double(now(1) - begin) * 1e-9));
  }
  return best;
}
}
