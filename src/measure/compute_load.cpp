#include "measure/compute_load.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace epistle {
namespace {

// Three matrices of fp32 are 48 KiB: about a first-level cache, so that the memory, which dispatchers fill, is not what
// is measured here.
constexpr std::size_t kSize = 64;
constexpr float kValue = 0.5F;

}  // namespace

ComputeLoad::ComputeLoad()
    : a_(kSize * kSize, kValue), b_(kSize * kSize, kValue), c_(kSize * kSize), thread_([this] { work(); }) {}

ComputeLoad::~ComputeLoad() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void ComputeLoad::start(std::int64_t num_units) {
  {
    const std::lock_guard lock(mutex_);
    num_units_ = num_units;
  }
  changed_.notify_all();
}

void ComputeLoad::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return num_units_ == 0; });
}

void ComputeLoad::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ends_ || num_units_ > 0; });
    if (ends_) return;
    const std::int64_t num_units = num_units_;
    lock.unlock();
    for (std::int64_t unit = 0; unit < num_units; ++unit) multiply();
    lock.lock();
    num_units_ = 0;
    changed_.notify_all();
  }
}

/// c += a * b, so that no product can be left out.
void ComputeLoad::multiply() {
  for (std::size_t row = 0; row < kSize; ++row) {
    for (std::size_t inner = 0; inner < kSize; ++inner) {
      const float factor = a_[row * kSize + inner];
      for (std::size_t column = 0; column < kSize; ++column) {
        c_[row * kSize + column] += factor * b_[inner * kSize + column];
      }
    }
  }
}

std::int64_t units_per_pair(double pair_us, double unit_us) noexcept {
  if (!(pair_us > 0.0) || !(unit_us > 0.0)) return 1;
  return std::max<std::int64_t>(1, std::llround(pair_us / unit_us));
}

}  // namespace epistle
