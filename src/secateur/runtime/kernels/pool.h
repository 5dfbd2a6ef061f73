// A pool of threads that run one function together.
#pragma once
#include <functional>

// Calls task(index) for index 0 to count - 1, one of them here, and returns when all have ended.
void together(int count, const std::function<void(int)>& task);
