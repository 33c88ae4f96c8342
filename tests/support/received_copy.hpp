// What a rank received, copied to host memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/received.hpp"

#include "measure/received_data.hpp"
#include "support/test_memory.hpp"

namespace epistle::testing {

/// A RowDescription in host memory.
class DescriptionCopy {
 public:
  DescriptionCopy(TestMemory& memory, const RowDescription& device, std::int32_t top_k) : description_(device) {
    const std::int64_t num_rows = device.num_rows;
    const std::int64_t num_local = device.num_local_experts;
    const std::int64_t num_weights = num_rows * (device.local_experts != nullptr ? top_k : 1);
    copy(memory, description_.src_rank, src_rank_, num_rows);
    copy(memory, description_.src_token, src_token_, num_rows);
    copy(memory, description_.local_experts, local_experts_, num_rows * top_k);
    copy(memory, description_.row_expert, row_expert_, num_rows);
    copy(memory, description_.weights, weights_, num_weights);
    copy(memory, description_.expert_counts, expert_counts_, num_local);
    copy(memory, description_.expert_begin, expert_begin_, num_local + 1);
    copy(memory, description_.expert_dropped, expert_dropped_, num_local);
  }
  ~DescriptionCopy() = default;
  DescriptionCopy(const DescriptionCopy&) = delete;
  DescriptionCopy& operator=(const DescriptionCopy&) = delete;

  [[nodiscard]] const RowDescription& get() const noexcept { return description_; }

 private:
  template <typename Value>
  static void copy(TestMemory& memory, const Value*& array, std::vector<Value>& target, std::int64_t count) {
    if (array == nullptr) return;
    target.resize(static_cast<std::size_t>(count) + 1);  // never null, also where there is nothing to read
    memory.read(target.data(), array, count * static_cast<std::int64_t>(sizeof(Value)));
    array = target.data();
  }

  RowDescription description_;
  std::vector<std::int32_t> src_rank_;
  std::vector<std::int32_t> src_token_;
  std::vector<std::int32_t> local_experts_;
  std::vector<std::int32_t> row_expert_;
  std::vector<float> weights_;
  std::vector<std::int32_t> expert_counts_;
  std::vector<std::int32_t> expert_begin_;
  std::vector<std::int32_t> expert_dropped_;
};

class ReceivedCopy {
 public:
  ReceivedCopy(TestMemory& memory, const ReceivedData& device, std::int32_t top_k)
      : description_(memory, device.description, top_k), data_(device) {
    data_.description = description_.get();
    data_.rows.data = copy(memory, rows_, device.row_data(), device.num_rows() * device.rows.row_bytes());
    if (device.scales.data != nullptr) {
      data_.scales.data = copy(memory, scales_, device.scale_data(), device.scale_bytes());
    }
  }

  [[nodiscard]] const ReceivedData& data() const noexcept { return data_; }
  /// The bytes of the rows, for comparisons of what was there with what is.
  [[nodiscard]] const std::vector<std::byte>& row_bytes() const noexcept { return rows_; }
  [[nodiscard]] const std::vector<std::byte>& scale_bytes() const noexcept { return scales_; }

 private:
  static std::byte* copy(TestMemory& memory, std::vector<std::byte>& target, const std::byte* source,
                         std::int64_t num_bytes) {
    if (source == nullptr && num_bytes > 0) {
      throw Error(ErrorCode::kVerificationFailed, fmt::format("{} bytes of rows are at a null pointer", num_bytes));
    }
    target.resize(static_cast<std::size_t>(num_bytes) + 1);
    memory.read(target.data(), source, num_bytes);
    return target.data();
  }

  DescriptionCopy description_;
  std::vector<std::byte> rows_;
  std::vector<std::byte> scales_;
  ReceivedData data_;
};

}  // namespace epistle::testing
