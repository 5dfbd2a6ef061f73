#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

constexpr int SPINS = 4000;  // some ten microseconds: layers follow each other at that pace; then sleep and leave the core

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

class Pool {
 public:
  explicit Pool(int workers) : owner_(getpid()) {
    for (int i = 1; i <= workers; ++i) threads_.emplace_back([this, i] { work(i); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  int size() const { return int(threads_.size()) + 1; }
  bool mine() const { return owner_ == getpid(); }  // threads do not survive a fork

  void run(int count, const std::function<void(int)>& task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      count_ = count;
      open_ = true;
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    task(0);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      open_ = false;  // all work is taken: who has not come by now is not waited for
    }
    for (int spin = 0; busy_.load(std::memory_order_acquire) != 0; ++spin)
      if (spin < SPINS) relax(); else std::this_thread::yield();
  }

 private:
  void work(int index) {
    unsigned seen = 0;
    for (;;) {
      for (int spin = 0; spin < SPINS && round_.load(std::memory_order_acquire) == seen; ++spin) relax();
      const std::function<void(int)>* task = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return ending_ || round_.load(std::memory_order_relaxed) != seen; });
        if (ending_) return;
        seen = round_.load(std::memory_order_relaxed);
        if (open_ && index < count_) {
          task = task_;
          busy_.fetch_add(1, std::memory_order_relaxed);
        }
      }
      if (!task) continue;
      (*task)(index);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  const pid_t owner_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> round_{0};
  std::atomic<int> busy_{0};
  const std::function<void(int)>* task_ = nullptr;
  int count_ = 0;
  bool open_ = false;
  bool ending_ = false;
};

std::mutex guard;
Pool* pool = nullptr;  // never freed at exit: a thread may still be inside a library being unloaded

}  // namespace

void together(int count, const std::function<void(int)>& task) {
  if (count <= 1) {
    task(0);
    return;
  }
  std::unique_lock<std::mutex> lock(guard, std::try_to_lock);
  if (!lock.owns_lock()) {  // another caller's work holds the pool: do it alone
    task(0);
    return;
  }
  if (pool && !pool->mine()) pool = nullptr;  // the parent's: its threads are not here to be joined
  if (!pool || pool->size() < count) {
    delete pool;
    pool = new Pool(count - 1);
  }
  pool->run(count, task);
}
