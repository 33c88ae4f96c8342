// Where the weights of a store lie, and what copies them: one for each device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "epistle/config.hpp"
#include "epistle/stream.hpp"

#include "group/group_impl.hpp"

namespace epistle::migrate {

class WeightMemory {
 public:
  virtual ~WeightMemory() = default;
  WeightMemory(const WeightMemory&) = delete;
  WeightMemory& operator=(const WeightMemory&) = delete;

  /// This process's address of a rank's places.
  [[nodiscard]] virtual std::byte* base(int rank) const noexcept = 0;
  /// The copying thread's first call.
  virtual void begin_thread() = 0;
  /// Waits until nothing reads the places that the last switch has freed.
  virtual void wait_for_free_places() = 0;
  /// Returns when the bytes are there.
  virtual void copy(std::byte* destination, const std::byte* source, std::size_t num_bytes) = 0;
  /// The places that a switch frees may be read by what is on `stream` by now.
  virtual void free_behind(Stream stream) = 0;

 protected:
  WeightMemory() = default;
};

/// Collective: memory of this rank's GPU, `bytes_of_rank` for every rank. Throws kUnsupported where there is none.
[[nodiscard]] std::unique_ptr<WeightMemory> make_gpu_weights(GroupImpl& group, const CudaOptions& options,
                                                             const std::vector<std::int64_t>& bytes_of_rank);

}  // namespace epistle::migrate
