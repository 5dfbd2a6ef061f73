// A pool of threads that run one function together.
#pragma once
#include <functional>

// Calls task(0) here and task(1) to task(count - 1) on other threads, as far as these come in time, and returns when all that
// were begun have ended. A task takes pieces of work until none are left, so that task(0) alone would do them all.
void together(int count, const std::function<void(int)>& task);
