// The dispatch layout gives the same numbers in device code as on the host. Without a GPU the test is skipped (exit
// code 77), but that it compiles shows that the layout can be used in kernels.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "layout/dispatch_layout.hpp"

namespace {

using epistle::DispatchLayout;
using epistle::LayoutParams;

constexpr int kSkipped = 77;
constexpr int kMaxLocalExperts = 64;
constexpr int kNumValues = 256;

/// Everything that the layout computes, as a row of numbers.
EPISTLE_HOST_DEVICE void evaluate(const DispatchLayout& layout, std::int64_t* values) {
  int idx = 0;
  const epistle::ExpertPartition partition = layout.partition();
  for (std::int32_t expert = 0; expert < layout.params().num_experts && idx < 64; ++expert) {
    values[idx++] = partition.rank_of(expert);
  }
  for (std::int32_t rank = 0; rank < layout.params().num_ranks; ++rank) {
    values[idx++] = partition.first_expert(rank);
    values[idx++] = partition.num_local_experts(rank);
  }
  std::int64_t counts[kMaxLocalExperts];
  std::int64_t begins[kMaxLocalExperts + 1];
  const std::int32_t num_local = partition.max_local_experts();
  for (std::int32_t local = 0; local < num_local; ++local) counts[local] = (local * 7 + 3) % 11;
  values[idx++] = layout.expert_group_begins(counts, num_local, begins);
  for (std::int32_t local = 0; local <= num_local; ++local) values[idx++] = begins[local];
  for (std::int64_t count = 0; count < 20; ++count) values[idx++] = layout.kept_rows(count * 3, count, 5);
  for (std::int64_t count = 0; count < 20; ++count) {
    values[idx++] = layout.group_rows(count * 5);
    values[idx++] = layout.static_output_rows(count * 5);
  }
  values[idx++] = layout.row_limit();
  values[idx++] = layout.max_output_rows();
  values[idx++] = layout.max_rows_per_token();
  values[idx++] = layout.max_ranks_per_token();
  values[idx++] = layout.max_other_ranks_per_token();
  values[idx++] = layout.weights_per_row();
  values[idx++] = layout.widest_row_bytes();
  values[idx++] = layout.record_bytes();
  values[idx++] = layout.pair_record_bytes();
  values[idx++] = layout.counts_entries();
  values[idx++] = layout.counts_offset(1);
}

__global__ void evaluate_kernel(DispatchLayout layout, std::int64_t* values) { evaluate(layout, values); }

std::vector<LayoutParams> cases() {
  std::vector<LayoutParams> all;
  for (const auto layout : {epistle::OutputLayout::kTokenMajor, epistle::OutputLayout::kExpertMajor,
                            epistle::OutputLayout::kExpertBlocks}) {
    for (const std::int64_t capacity_rows : {0, 40}) {
      LayoutParams params;
      params.num_ranks = 6;
      params.num_experts = 37;
      params.top_k = 5;
      params.max_tokens = 100;
      params.row_bytes = 5760;
      params.scale_bytes = 92;
      params.combine_row_bytes = 11520;
      params.layout = layout;
      params.alignment = 16;
      params.capacity_rows = layout == epistle::OutputLayout::kExpertBlocks ? 40 : capacity_rows;
      params.sizing = capacity_rows > 0 ? epistle::SizingMode::kCapacity : epistle::SizingMode::kExact;
      all.push_back(params);
    }
  }
  return all;
}

}  // namespace

int main() {
  int num_devices = 0;
  if (cudaGetDeviceCount(&num_devices) != cudaSuccess || num_devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return kSkipped;
  }
  std::int64_t* on_device = nullptr;
  if (cudaMalloc(&on_device, kNumValues * sizeof(std::int64_t)) != cudaSuccess) return 1;
  int num_cases = 0;
  for (const LayoutParams& params : cases()) {
    const DispatchLayout layout(params);
    std::vector<std::int64_t> expected(kNumValues, -1);
    std::vector<std::int64_t> actual(kNumValues, -2);
    evaluate(layout, expected.data());
    cudaMemset(on_device, 0xff, kNumValues * sizeof(std::int64_t));  // -1, as on the host
    evaluate_kernel<<<1, 1>>>(layout, on_device);
    const cudaError_t status =
        cudaMemcpy(actual.data(), on_device, kNumValues * sizeof(std::int64_t), cudaMemcpyDeviceToHost);
    if (status != cudaSuccess) {
      std::printf("CUDA error: %s\n", cudaGetErrorString(status));
      return 1;
    }
    for (int idx = 0; idx < kNumValues; ++idx) {
      if (actual[idx] == expected[idx]) continue;
      std::printf("case %d, value %d: %lld on the device, %lld on the host\n", num_cases, idx,
                  static_cast<long long>(actual[idx]), static_cast<long long>(expected[idx]));
      return 1;
    }
    ++num_cases;
  }
  cudaFree(on_device);
  std::printf("%d layouts equal on host and device\n", num_cases);
  return 0;
}
