// Truncates many weights, each by one thread.
#include "lowrank.h"

#include <atomic>

#include "dispatch.h"
#include "pool.h"

extern "C" {

EXPORTED int64_t secateur_scratch(int64_t rows, int64_t columns) {
  const int64_t ld = padded(rows);
  return 8 * ld + 3 * rows * (padded(columns) + ld);
}

// The number of matrices nothing was done to. `jobs` share one scratch per thread: `scratch` has `step` floats for each.
EXPORTED int64_t secateur_truncate(Truncation* jobs, int64_t count, float* scratch, int64_t step, int threads) {
  std::atomic<int64_t> next{0}, left{0};
  const Path& path = chosen_path();
  const auto work = [&](int index) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      jobs[i].scratch = scratch + index * step;
      if (path.truncate(jobs[i])) continue;
      jobs[i].rank = -1;
      left.fetch_add(1, std::memory_order_relaxed);
    }
  };
  if (threads > 1) together(threads, work);
  else work(0);
  return left.load();
}

}  // extern "C"
