// A weight as a matrix that is to be cut in rank; secateur/native/lowrank.py mirrors the struct.
#pragma once
#include "engine.h"

extern "C" struct Truncation {
  float* weight;          // element (m, n) of the matrix lies at row[m] + column[n], here and in `push`
  float* push;            // where U V^T of what is kept goes, or null
  float* basis;           // room for `kept` left singular vectors, each `rows` floats: those of the last time, then of this; or null
  float* scratch;         // secateur_scratch(rows, columns) floats, aligned to 64 bytes
  const int64_t* row;
  const int64_t* column;
  int64_t rows, columns;  // rows <= columns
  int64_t even;           // column[n] is n
  int64_t followed;       // vectors in `basis`, 0: none; afterwards those of this time
  int64_t kept;
  int64_t longest;        // of more rows, the whole eigenproblem is left to others
  int64_t most;           // the highest rank
  int64_t rank;           // afterwards: what is kept; -1 where nothing was done
  double discarded;       // the share of the energy that may go
};

constexpr int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }
