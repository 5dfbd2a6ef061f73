// Which layout of bytes pays, beside the engine's loops for float32 and bf16: the inner loops alone, on random weights.
//
//   g++ -std=c++17 -O3 -march=native bench/int8_layouts.cpp -o layouts && ./layouts > bench/results/int8_layouts.txt
//
// Needs a CPU with avx512_bf16 and avx512_vnni. Each line is one layer at one share of zeros; per layout the milliseconds of the
// fastest tile (CPU time of one thread, best of some runs) and how many times bf16's speed that is. Layouts of bytes:
//   unpack   bytes channel by channel; four rows woven by two levels of unpacking
//   rotate   the same, woven by rotations and blends
//   mixed    the same, woven by unpacking, then by rotations and blends
//   pairs    two channels interleaved in memory; two such pairs woven
//   quads    four channels interleaved in memory; nothing is woven, but most of the four weights are zero
#include <immintrin.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#define ALL _Pragma("GCC unroll 64")
#define PICK(mask, a, b) _mm512_ternarylogic_epi32(mask, a, b, 0xca)

namespace {

enum Way { FLOAT32, BF16, UNPACK, ROTATE, MIXED, PAIRS, QUADS };
constexpr int PER_ENTRY[] = {1, 2, 4, 4, 4, 2, 1};   // offsets in an entry; one word of weights follows
constexpr int REGISTERS[] = {1, 2, 4, 4, 4, 2, 1};   // of sums for 64 bytes of input
constexpr int INTERLEAVED[] = {1, 1, 1, 1, 1, 2, 4};  // channels
constexpr int BYTES[] = {4, 2, 1, 1, 1, 1, 1};        // of a value
constexpr int TILES[] = {14, 7, 6, 6, 6, 7, 14};

double seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

__m512i dot(__m512i sum, __m512i bytes, __m512i weights) { return _mm512_dpbusd_epi32(sum, bytes, weights); }

// One entry times one line of 64 bytes at `at`, into the sums of this line.
template <Way WAY>
inline __attribute__((always_inline)) void add(const char* x, const int32_t* entry, int at, __m512i* sum) {
  constexpr int N = PER_ENTRY[WAY];
  const __m512i w = _mm512_set1_epi32(entry[N]);
  __m512i in[N];
  ALL for (int i = 0; i < N; ++i) in[i] = _mm512_loadu_si512(x + entry[i] + at);
  if constexpr (WAY == FLOAT32) {
    sum[0] = _mm512_castps_si512(_mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(in[0]), _mm512_castsi512_ps(sum[0])));
  } else if constexpr (WAY == BF16) {
    sum[0] = (__m512i)_mm512_dpbf16_ps((__m512)sum[0], (__m512bh)_mm512_unpacklo_epi16(in[0], in[1]), (__m512bh)w);
    sum[1] = (__m512i)_mm512_dpbf16_ps((__m512)sum[1], (__m512bh)_mm512_unpackhi_epi16(in[0], in[1]), (__m512bh)w);
  } else if constexpr (WAY == PAIRS) {
    sum[0] = dot(sum[0], _mm512_unpacklo_epi16(in[0], in[1]), w);
    sum[1] = dot(sum[1], _mm512_unpackhi_epi16(in[0], in[1]), w);
  } else if constexpr (WAY == QUADS) {
    sum[0] = dot(sum[0], in[0], w);
  } else if constexpr (WAY == ROTATE) {
    const __m512i half = _mm512_set1_epi32(0xffff), odd = _mm512_set1_epi32(0x00ff00ff);
    const __m512i a = in[0], b = _mm512_rol_epi32(in[1], 8), c = _mm512_rol_epi32(in[2], 16), d = _mm512_rol_epi32(in[3], 24);
    const __m512i ac = PICK(half, a, c), ca = PICK(half, c, a), bd = PICK(half, b, d), db = PICK(half, d, b);
    sum[0] = dot(sum[0], PICK(odd, ac, bd), w);
    sum[1] = dot(sum[1], PICK(odd, db, ac), _mm512_rol_epi32(w, 8));
    sum[2] = dot(sum[2], PICK(odd, ca, db), _mm512_rol_epi32(w, 16));
    sum[3] = dot(sum[3], PICK(odd, bd, ca), _mm512_rol_epi32(w, 24));
  } else {
    const __m512i ab = _mm512_unpacklo_epi8(in[0], in[1]), ba = _mm512_unpackhi_epi8(in[0], in[1]);
    __m512i cd = _mm512_unpacklo_epi8(in[2], in[3]), dc = _mm512_unpackhi_epi8(in[2], in[3]);
    if constexpr (WAY == UNPACK) {
      sum[0] = dot(sum[0], _mm512_unpacklo_epi16(ab, cd), w);
      sum[1] = dot(sum[1], _mm512_unpackhi_epi16(ab, cd), w);
      sum[2] = dot(sum[2], _mm512_unpacklo_epi16(ba, dc), w);
      sum[3] = dot(sum[3], _mm512_unpackhi_epi16(ba, dc), w);
    } else {
      const __m512i half = _mm512_set1_epi32(0xffff), turned = _mm512_rol_epi32(w, 16);
      cd = _mm512_rol_epi32(cd, 16), dc = _mm512_rol_epi32(dc, 16);
      sum[0] = dot(sum[0], PICK(half, ab, cd), w);
      sum[1] = dot(sum[1], PICK(half, cd, ab), turned);
      sum[2] = dot(sum[2], PICK(half, ba, dc), w);
      sum[3] = dot(sum[3], PICK(half, dc, ba), turned);
    }
  }
}

// T lines of 64 bytes of input for all rows; sums in up to four chains, as in the engine.
template <Way WAY, int T>
__attribute__((noinline)) void tile(const char* x, const int32_t* words, const int32_t* start, int rows, char* y, int64_t y_row) {
  constexpr int V = T * REGISTERS[WAY], STEP = PER_ENTRY[WAY] + 1;
  constexpr int U = WAY == FLOAT32 || WAY == QUADS ? 1 : V * 4 <= 24 ? 4 : V * 2 <= 28 ? 2 : 1;
  for (int row = 0; row < rows; ++row) {
    __m512i sum[U][V];
    ALL for (int u = 0; u < U; ++u) ALL for (int v = 0; v < V; ++v) sum[u][v] = _mm512_setzero_si512();
    const int32_t *entry = words + int64_t(STEP) * start[row], *end = words + int64_t(STEP) * start[row + 1];
    for (; U > 1 && end - entry >= U * STEP; entry += U * STEP)
      ALL for (int u = 0; u < U; ++u) ALL for (int t = 0; t < T; ++t)
          add<WAY>(x, entry + u * STEP, 64 * t, sum[u] + t * REGISTERS[WAY]);
    for (; entry != end; entry += STEP) ALL for (int t = 0; t < T; ++t) add<WAY>(x, entry, 64 * t, sum[0] + t * REGISTERS[WAY]);
    ALL for (int u = 1; u < U; ++u) ALL for (int v = 0; v < V; ++v) {
      if (WAY == BF16) sum[0][v] = (__m512i)_mm512_add_ps((__m512)sum[0][v], (__m512)sum[u][v]);
      else sum[0][v] = _mm512_add_epi32(sum[0][v], sum[u][v]);
    }
    char* to = y + row * y_row;
    if constexpr (WAY == FLOAT32) {
      ALL for (int t = 0; t < T; ++t) _mm512_storeu_si512(to + 64 * t, sum[0][t]);
    } else if constexpr (WAY == BF16) {
      ALL for (int t = 0; t < T; ++t)
          _mm512_storeu_si512(to + 64 * t, (__m512i)_mm512_cvtne2ps_pbh((__m512)sum[0][2 * t + 1], (__m512)sum[0][2 * t]));
    } else {
      ALL for (int v = 0; v < V; ++v) {  // scaled and made bytes again
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[0][v]), _mm512_set1_ps(1e-3f));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16 * v), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(scaled)));
      }
    }
  }
}

typedef void (*Tile)(const char*, const int32_t*, const int32_t*, int, char*, int64_t);
template <Way WAY, int T = 1>
Tile tile_of(int wanted) {
  if constexpr (T < TILES[WAY]) if (wanted > T) return tile_of<WAY, T + 1>(wanted);
  return tile<WAY, T>;
}

struct Layer {
  const char* name;
  int outputs, channels, kernel, size;
};

// Milliseconds of the fastest tile.
template <Way WAY>
double fastest(const Layer& layer, const std::vector<std::vector<int>>& columns) {
  constexpr int N = PER_ENTRY[WAY], bytes = BYTES[WAY], mixed = INTERLEAVED[WAY], positions = 64 / bytes / mixed;
  const int taps = layer.kernel * layer.kernel, row = layer.size + (layer.kernel == 3), span = (layer.size - 1) * row + layer.size;
  const int64_t unit = bytes * mixed, lead = ((row + 1) * unit + 63) / 64 * 64;
  int64_t channel = lead + ((span + layer.size + 80) * unit + 63) / 64 * 64;
  if (channel / 64 % 2 == 0) channel += 64;
  std::vector<int32_t> words, start{0}, offsets;
  for (const auto& given : columns) {
    offsets.clear();
    for (int column : given) {
      const int c = column / taps, tap = column % taps;
      const int64_t shift = layer.kernel == 3 ? (tap / 3 - 1) * row + tap % 3 - 1 : 0;
      offsets.push_back(int32_t(lead + c / mixed * channel + shift * unit));
    }
    std::sort(offsets.begin(), offsets.end());
    if (mixed > 1) offsets.erase(std::unique(offsets.begin(), offsets.end()), offsets.end());
    for (size_t i = 0; i < offsets.size(); i += N) {
      for (size_t j = 0; j < size_t(N); ++j) words.push_back(offsets[std::min(i + j, offsets.size() - 1)]);
      words.push_back(WAY == FLOAT32 ? 0x3f800000 : 0x01010101);
    }
    start.push_back(int32_t(words.size() / (N + 1)));
  }
  const size_t in = size_t(layer.channels / mixed * channel + 8192) / 64 * 64, out = size_t(layer.outputs * channel + 8192) / 64 * 64;
  char *x = static_cast<char*>(std::aligned_alloc(64, in)), *y = static_cast<char*>(std::aligned_alloc(64, out));
  std::memset(x, 1, in);
  std::memset(y, 1, out);
  const int lines = (span + positions - 1) / positions;
  double best = 1e9;
  for (int t = 1; t <= std::min(TILES[WAY], lines); ++t)
    for (int repeat = 0; repeat < 5; ++repeat) {
      const int tiles = (lines + t - 1) / t;
      const double begin = seconds();
      for (int i = 0; i < tiles; ++i) {
        const int64_t from = lines * i / tiles, to = lines * (i + 1) / tiles;
        tile_of<WAY>(int(to - from))(x + from * 64, words.data(), start.data(), layer.outputs, y + from * positions * bytes, channel);
      }
      best = std::min(best, seconds() - begin);
    }
  std::free(x);
  std::free(y);
  return best * 1e3;
}

}  // namespace

int main() {
  const Layer layers[] = {{"1x1 256>64, 56", 64, 256, 1, 56},    {"3x3 64>64, 56", 64, 64, 3, 56},  {"3x3 128>128, 28", 128, 128, 3, 28},
                          {"1x1 1024>256, 14", 256, 1024, 1, 14}, {"3x3 256>256, 14", 256, 256, 3, 14}, {"1x1 512>2048, 7", 2048, 512, 1, 7},
                          {"3x3 256>256, 8", 256, 256, 3, 8},     {"3x3 128>128, 16", 128, 128, 3, 16}};
  const time_t now = time(nullptr);
  std::string cpu;
  std::ifstream about("/proc/cpuinfo");
  while (std::getline(about, cpu) && cpu.rfind("model name", 0) != 0) {
  }
  double load[1] = {0};
  getloadavg(load, 1);
  std::printf("Milliseconds, and in brackets times the speed of bf16. Written by bench/int8_layouts.cpp (g++ %s), seed 1,\n%s, load %.1f, %s",
              __VERSION__, cpu.substr(cpu.find(':') + 2).c_str(), load[0], asctime(gmtime(&now)));
  std::printf("%-17s %5s  %8s %8s  %15s %15s %15s %15s %15s\n", "layer", "zeros", "float32", "bf16", "unpack", "rotate", "mixed", "pairs", "quads");
  for (const Layer& layer : layers)
    for (double density : {0.2, 0.1, 0.05}) {
      std::mt19937 generator(1);
      std::uniform_real_distribution<> uniform;
      std::vector<std::vector<int>> columns(size_t(layer.outputs));
      for (auto& row : columns)
        for (int i = 0; i < layer.channels * layer.kernel * layer.kernel; ++i)
          if (uniform(generator) < density) row.push_back(i);
      const double single = fastest<FLOAT32>(layer, columns), half = fastest<BF16>(layer, columns);
      std::printf("%-17s %4.0f%%  %8.3f %8.3f", layer.name, 100 - 100 * density, single, half);
      for (double ms : {fastest<UNPACK>(layer, columns), fastest<ROTATE>(layer, columns), fastest<MIXED>(layer, columns),
                        fastest<PAIRS>(layer, columns), fastest<QUADS>(layer, columns)})
        std::printf("  %6.3f (%4.2f) ", ms, half / ms);
      std::printf("\n");
      std::fflush(stdout);
    }
}
