// What every instruction set provides.
#pragma once
#include "engine.h"
#include "lowrank.h"

template <typename Element, typename Mask>
struct Job {
  const int32_t* words;
  const int32_t* start;
  const int32_t* rows;
  const float* bias;
  int64_t first, last;     // blocks of rows to do
  const float* from;       // sums so far of block `first`, tile by tile, in place of the bias; or null
  float* to;               // where unfinished sums go, laid out alike; or null, and sums end in `y`
  const Element* x;        // input, at the tile's first position
  Element* y;              // output of channel 0, at the tile's first position
  int64_t y_channel;
  const Element* other;    // residual of channel 0 at the tile's first position, or null
  int64_t other_channel;
  const Mask* mask;        // at the tile's first position, or null
  int activation;
  float low, high;
  int after;
};

typedef Job<float, int32_t> RowJob;
typedef Job<uint16_t, int16_t> HalfJob;

struct ByteJob : Job<uint8_t, int8_t> {
  const float* scale;      // one per output channel, like `bias`
  const int32_t* begin;    // what each sum begins with
  float other_scale, other_shift;
  float out_scale;         // 0: the result is the byte already
  int zero;                // the byte for 0 in the output
  float* real;             // where the result goes as float32, in place of `y`; or null
};

struct Path {
  void (*rows)(int tile, int block, const RowJob& job);  // tile: 1 to TILES
  void (*finish)(float* y, const float* x, const float* other, const int32_t* mask, int64_t count, float scale, float shift,
                 int activation, float low, float high, int after);  // count: a multiple of 16
  // `count` positions of 16 images, each the maximum or the sum of tall x wide, `row` and 16 floats apart, times `share`
  void (*pool)(float* y, const float* x, int64_t count, int64_t tall, int64_t wide, int64_t row, int64_t step, int sum, float share);
  void (*raise)(float* y, const float* x, int64_t count);  // y = max(y, x); NaN is larger than any number
  void (*split)(float* even, float* odd, const float* x, int64_t count);  // count: of each
  void (*pick)(float* y, const float* x, int64_t count);  // every second
  // a plane of height x width maxima of 2 x 2 each, rows `y_row` and `x_row` elements apart; nothing else is written
  void (*halve)(float* y, const float* x, int64_t height, int64_t width, int64_t y_row, int64_t x_row);
  double (*burn)(int64_t rounds);                        // multiply-adds done
  double (*read)(const float* x, int64_t count);
  bool (*truncate)(Truncation& job);                     // false: nothing was done
};

struct Halves {
  void (*rows)(int tile, int block, const HalfJob& job);  // tile: 1 to 7; to 3 of AVX2, to 2 of narrower vectors
  void (*finish)(uint16_t* y, const uint16_t* x, const uint16_t* other, const int16_t* mask, int64_t count, float scale, float shift,
                 int activation, float low, float high, int after);  // count: a multiple of 32
  void (*pool)(uint16_t* y, const uint16_t* x, int64_t count, int64_t tall, int64_t wide, int64_t row, int64_t step, int sum,
               float share);
  void (*pick)(uint16_t* y, const uint16_t* x, int64_t count);
  void (*halve)(uint16_t* y, const uint16_t* x, int64_t height, int64_t width, int64_t y_row, int64_t x_row);
  void (*widen)(float* y, const uint16_t* x, int64_t count);
  void (*narrow)(uint16_t* y, const float* x, int64_t count);
};

struct Bytes {
  void (*rows)(int tile, int block, const ByteJob& job);  // tile: 0 (half a line) to 6, of 2 rows to 3, of 4 to 2; narrow vectors to 1
  // y = activation(scale * x + shift + other), all of them bytes that stand for numbers; count: a multiple of 64
  void (*finish)(uint8_t* y, const uint8_t* x, const uint8_t* other, const int8_t* mask, int64_t count, float scale, float shift,
                 float other_scale, float other_shift, float out_scale, int zero, int activation, float low, float high, int after);
  void (*pool)(uint8_t* y, const uint8_t* x, int64_t count, int64_t tall, int64_t wide, int64_t row, int64_t step, int sum,
               float share, int zero);
  void (*pick)(uint8_t* y, const uint8_t* x, int64_t count);
  void (*halve)(uint8_t* y, const uint8_t* x, int64_t height, int64_t width, int64_t y_row, int64_t x_row);
  void (*widen)(float* y, const uint8_t* x, int64_t count, float scale, int zero);   // y = scale * (x - zero)
  void (*narrow)(uint8_t* y, const float* x, int64_t count, float scale, int zero);  // the nearest byte; NaN is zero
};

constexpr int TILES = 14;

extern const Path path_portable;
extern const Halves halves_portable;
extern const Bytes bytes_portable;
#ifdef SECATEUR_X86
extern const Path path_avx2;
extern const Path path_avx512;
extern const Halves halves_avx2;
extern const Halves halves_avx512;
extern const Bytes bytes_avx2;
extern const Bytes bytes_avx512;
#ifdef SECATEUR_HAS_VNNI
extern const Bytes bytes_avx512_vnni;
void half_line_avx512_vnni(int block, const ByteJob& job);
#endif
#ifdef SECATEUR_HAS_BF16
extern const Halves halves_avx512_bf16;
#endif
#endif
