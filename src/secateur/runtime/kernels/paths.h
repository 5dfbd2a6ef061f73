// What every instruction set provides.
#pragma once
#include "engine.h"

struct RowJob {
  const int32_t* words;
  const int32_t* start;
  const int32_t* rows;
  const float* bias;
  int64_t first, last;     // blocks of rows to do
  const float* from;       // sums so far of block `first`, tile by tile, in place of the bias; or null
  float* to;               // where unfinished sums go, laid out alike; or null, and sums end in `y`
  const float* x;          // input, at the tile's first position
  float* y;                // output of channel 0, at the tile's first position
  int64_t y_channel;
  const float* other;      // residual of channel 0 at the tile's first position, or null
  int64_t other_channel;
  const int32_t* mask;     // at the tile's first position, or null
  int activation;
  float low, high;
  int after;
};

struct Path {
  void (*rows)(int tile, int block, const RowJob& job);  // tile: 1 to TILES
  void (*finish)(float* y, const float* x, const float* other, const int32_t* mask, int64_t count, float scale, float shift,
                 int activation, float low, float high, int after);  // count: a multiple of 16
  double (*burn)(int64_t rounds);                        // multiply-adds done
  double (*read)(const float* x, int64_t count);
};

constexpr int TILES = 14;

extern const Path path_portable;
#ifdef SECATEUR_X86
extern const Path path_avx2;
extern const Path path_avx512;
#endif
