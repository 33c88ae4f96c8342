// What a rank received on a GPU, read back into host memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/layout.hpp"

#include "support/device_arena.hpp"

namespace epistle::testing {

/// Not copied: `output` points into the vectors.
struct HostOutput {
  HostOutput() = default;
  HostOutput(const HostOutput&) = delete;
  HostOutput& operator=(const HostOutput&) = delete;

  DispatchOutput output;  ///< host pointers
  std::vector<std::byte> rows;
  std::vector<std::byte> scales;
  std::vector<std::byte> combine_rows;
  std::vector<std::int32_t> src_rank;
  std::vector<std::int32_t> src_token;
  std::vector<std::int32_t> local_expert_ids;
  std::vector<float> weights;
  std::vector<std::int64_t> expert_counts;
  std::vector<std::int64_t> expert_begin;
  std::vector<std::int64_t> expert_dropped;

  /// The numbers and the description of the rows, once the stream has got there.
  void read_description(DeviceArena& arena, const DispatchOutput& device, const DispatchLayout& layout) {
    const std::int64_t num_local = device.num_local_experts;
    const std::int64_t num_weights = device.num_rows * layout.weights_per_row();
    output = device;
    output.rows = nullptr;
    output.scales = nullptr;
    output.src_rank = read(arena, src_rank, device.src_rank, device.num_rows);
    output.src_token = read(arena, src_token, device.src_token, device.num_rows);
    output.local_expert_ids = read(arena, local_expert_ids, device.local_expert_ids, num_weights);
    output.weights = read(arena, weights, device.weights, num_weights);
    output.expert_counts = read(arena, expert_counts, device.expert_counts, num_local);
    output.expert_begin = read(arena, expert_begin, device.expert_begin, num_local + 1);
    output.expert_dropped = read(arena, expert_dropped, device.expert_dropped, num_local);
    mirror_combine_rows(device, layout);
  }

  void read_rows(DeviceArena& arena, const DispatchOutput& device, const DispatchLayout& layout) {
    output.rows = read_bytes(arena, rows, device.rows, device.num_rows * layout.params().row_bytes);
    const std::int64_t scale_bytes = layout.params().scale_bytes;
    output.scales = scale_bytes > 0 ? read_bytes(arena, scales, device.scales, device.num_rows * scale_bytes) : nullptr;
    mirror_combine_rows(device, layout);
  }

  void read_combine_rows(DeviceArena& arena, const std::byte* device_rows, const DispatchLayout& layout) {
    (void)read_bytes(arena, combine_rows, device_rows, output.num_rows * layout.params().combine_row_bytes);
    output.combine_rows = combine_rows.data();
  }

 private:
  /// Never null, as rows on the host never are: also where there is nothing to read.
  static std::byte* read_bytes(DeviceArena& arena, std::vector<std::byte>& target, const std::byte* source,
                               std::int64_t num_bytes) {
    if (source == nullptr && num_bytes > 0) {
      throw Error(ErrorCode::kVerificationFailed,
                  fmt::format("{} bytes of output rows are at a null pointer", num_bytes));
    }
    target.resize(static_cast<std::size_t>(num_bytes) + 1);
    arena.download(target.data(), source, num_bytes);
    return target.data();
  }

  template <typename Value>
  static const Value* read(DeviceArena& arena, std::vector<Value>& target, const Value* source, std::int64_t count) {
    if (source == nullptr) return nullptr;
    target.resize(static_cast<std::size_t>(count) + 1);
    arena.download(target.data(), source, count * static_cast<std::int64_t>(sizeof(Value)));
    return target.data();
  }

  void mirror_combine_rows(const DispatchOutput& device, const DispatchLayout& layout) {
    if (device.combine_rows == nullptr) return;
    combine_rows.resize(static_cast<std::size_t>(device.num_rows * layout.params().combine_row_bytes) + 1);
    output.combine_rows = combine_rows.data();
  }
};

}  // namespace epistle::testing
