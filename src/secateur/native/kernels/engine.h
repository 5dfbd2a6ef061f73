// The engine's C interface: plain structs and pointers, read by Python through ctypes (runtime/structs.py mirrors them).
//
// A tensor of C channels lies channel by channel. Of one channel every image is a plane of rows; the gap behind each row and
// between planes holds zeros, so that the shifted reads of a convolution need no special case at a border; what a tile reads
// beyond its plane for positions in a gap is masked. Sizes are in
// elements: float32, bf16 ("halves") or 8 bits without a sign ("bytes", which stand for scale * (byte - zero); their gaps hold `zero`). `lanes` images stand side by side in the innermost dimension: 1, or 16 for small planes and large batches.
//
//   address(c, n, h, w) = lead + c * channel + (n / lanes) * image + (h * row + w) * lanes + n % lanes
#pragma once
#include <cstdint>

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

struct Plane {
  int64_t channels, images, height, width;  // images: as the user counts them
  int64_t lanes, row, image, channel, lead;  // row in positions, the others in elements
  int64_t bytes;                             // of an element: 4 is float32, 2 is bf16, 1 is a byte
  int64_t zero;                              // the byte that stands for 0
};

enum Kind { CONV = 0, GATHER = 1, MAXPOOL = 2, AVGPOOL = 3, MEAN = 4, ADD = 5, AFFINE = 6, COPY = 7, IMPORT = 8, EXPORT = 9, DOT = 10, SCALE = 11 };
enum Activation { NONE = 0, CLAMP = 1, HARDSWISH = 2, SILU = 3, SIGMOID = 4, HARDSIGMOID = 5, GELU = 6 };

struct Op {
  int32_t kind, activation;
  float low, high;        // of CLAMP
  Plane in, out;
  int64_t x, y, other;    // offsets in the arena in floats, or numbers of outside tensors; other < 0: none
  int64_t other_channel;  // elements between channels of `other`
  const int32_t* words;   // CONV, DOT: entries of (byte offset or column, values of `block` rows); of bf16, entries of two
                          // non-zeros: (byte offset, byte offset, two values for each row, the first in the low half);
                          // of bytes, entries of four: (four byte offsets, four values of 8 bits with a sign for each row)
  const int32_t* start;   // CONV, DOT: first entry of each block of rows, part after part; one more at the end
  const int32_t* rows;    // CONV, DOT: output channels of each block, `block` numbers each, -1 where there is none
  const float* bias;      // one per output channel, in the order of `rows`; AFFINE: shift, one per channel
  const float* scale;     // AFFINE; CONV of bytes: what each row's sum is multiplied by before its bias is added
  const void* mask;       // integers as wide as `out`: -1 where a position of one image holds data, 0 in gaps; or null
  int64_t blocks, block, tile;         // CONV: blocks of rows, rows in a block (1, 2, 4), lines of 64 bytes in a tile
  int64_t parts;                       // CONV: parts of the columns, summed one after the other so that their inputs stay in L1
  int64_t split;                       // CONV: 1 gives threads rows, 0 gives them tiles
  int64_t kernel[2], stride[2], padding[2], phases[2];
  int64_t outer, inner, step;          // IMPORT, EXPORT: floats between images, channels and positions outside
  int64_t after;                       // 1: `other` is added behind the activation
  const int32_t* begin;                // CONV of bytes: what each row's sum begins with, in the order of `rows`
  float in_scale, out_scale;           // of bytes; CONV: out_scale 0 leaves what `scale` and `bias` make as it is
  float other_scale, other_shift;      // of bytes: what is added is other_scale * byte + other_shift
};

// Runs `count` operations; `outside` are tensors of the caller. Returns 0, or the number of the first bad operation plus one.
EXPORTED int secateur_run(const Op* ops, int64_t count, float* arena, float* const* outside, int threads);
// The same for `chunks` parts of a batch: part i shifts outside tensor k by i * steps[k] floats. With inner = 1 every thread
// takes whole parts, with an arena of its own; else `inner` threads work on one part after the other, in arenas[0].
EXPORTED int secateur_chunks(const Op* ops, int64_t count, float* const* arenas, float* const* outside, const int64_t* steps,
                             int64_t tensors, int64_t chunks, int threads, int inner);
// Nanoseconds of the fastest of `repeats` runs of one operation.
EXPORTED int64_t secateur_time(const Op* op, float* arena, float* const* outside, int threads, int64_t repeats);
EXPORTED const char* secateur_path(void);             // the instruction set in use: "avx512_bf16", "avx512_vnni", "avx512", "avx2" or "portable"
EXPORTED int secateur_force(const char* path);        // 0, or -1 where this CPU or this build has no such path; "" chooses the best
EXPORTED const char* secateur_source(void);           // digest of the sources this library was built from
EXPORTED double secateur_peak(int threads);           // measured multiply-adds per second
EXPORTED double secateur_bandwidth(int64_t bytes);    // measured bytes per second of one thread reading `bytes` again and again
}
