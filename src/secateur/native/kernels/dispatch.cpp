#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#ifndef SECATEUR_SOURCE
#define SECATEUR_SOURCE "unknown"
#endif

namespace {

struct Named {
  const char* name;
  const Path* path;
  const Halves* halves;
  const Bytes* bytes;
  bool usable;
};

// Best first.
const Named* known(int& count) {
#ifdef SECATEUR_X86
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  const Bytes* bytes = &bytes_avx512;
#ifdef SECATEUR_HAS_VNNI
  const bool fours = wide && __builtin_cpu_supports("avx512vnni");
  if (fours) bytes = &bytes_avx512_vnni;
#endif
  static const Named table[] = {
#ifdef SECATEUR_HAS_BF16
      {"avx512_bf16", &path_avx512, &halves_avx512_bf16, bytes, wide && __builtin_cpu_supports("avx512bf16")},
#endif
#ifdef SECATEUR_HAS_VNNI
      {"avx512_vnni", &path_avx512, &halves_avx512, bytes, fours},
#endif
      {"avx512", &path_avx512, &halves_avx512, &bytes_avx512, wide},
      {"avx2", &path_avx2, &halves_avx2, &bytes_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
      {"portable", &path_portable, &halves_portable, &bytes_portable, true},
  };
#else
  static const Named table[] = {{"portable", &path_portable, &halves_portable, &bytes_portable, true}};
#endif
  count = int(sizeof table / sizeof table[0]);
  return table;
}

const Named* find(const char* name) {
  int count;
  const Named* table = known(count);
  for (int i = 0; i < count; ++i)
    if (table[i].usable && (!name || !*name || !std::strcmp(name, table[i].name))) return &table[i];
  return nullptr;
}

std::atomic<const Named*> current{nullptr};

const Named* now_chosen() {
  const Named* named = current.load(std::memory_order_acquire);
  if (!named) current.store(named = find(nullptr), std::memory_order_release);
  return named;
}

}  // namespace

const Path& chosen_path() { return *now_chosen()->path; }
const Halves& chosen_halves() { return *now_chosen()->halves; }
const Bytes& chosen_bytes() { return *now_chosen()->bytes; }

extern "C" {
const char* secateur_path(void) { return now_chosen()->name; }

int secateur_force(const char* path) {
  const Named* named = find(path);
  if (!named) return -1;
  current.store(named, std::memory_order_release);
  return 0;
}

const char* secateur_source(void) { return SECATEUR_SOURCE; }
}
