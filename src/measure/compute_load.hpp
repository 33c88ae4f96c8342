// Work that stands in for the matrix products of a model while rows are moved: threads that a dispatcher takes are
// missing there, and show.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace epistle {

/// A thread of its own multiplies small matrices that stay in its cache. One unit is one product. What start() asks for
/// may be waited for once.
class ComputeLoad {
 public:
  ComputeLoad();
  ~ComputeLoad();
  ComputeLoad(const ComputeLoad&) = delete;
  ComputeLoad& operator=(const ComputeLoad&) = delete;

  void start(std::int64_t num_units);
  void wait();

 private:
  void work();
  void multiply();

  std::vector<float> a_;
  std::vector<float> b_;
  std::vector<float> c_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t num_units_ = 0;  ///< that were asked for and are not done
  bool ends_ = false;
  std::thread thread_;  ///< the last member: the thread finds all others made
};

/// Units for each pair of calls, so that the work beside a chain takes as long by itself as the chain does.
[[nodiscard]] std::int64_t units_per_pair(double pair_us, double unit_us) noexcept;

}  // namespace epistle
