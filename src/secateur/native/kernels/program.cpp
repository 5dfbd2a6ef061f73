// Runs a list of operations, each by all threads together.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <limits>
#include <vector>

#include "pooling.inc"
#include "products.inc"
#include "run.inc"
#include "values.inc"

namespace {

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
