#include "dispatch/cuda/direct/tuning.hpp"

#include <algorithm>
#include <array>
#include <string_view>

#include <fmt/format.h>

#include "dispatch/cuda/direct/tuning_table.hpp"

namespace epistle::cuda {
namespace {

constexpr int kPermille = 1000;
// Eight SMs store as much as NVLink carries in one direction.
constexpr int kDefaultPackSms = 8;

const TuningRow& find_row(const TuningQuery& query) {
  const LayoutClass layout =
      query.layout == OutputLayout::kTokenMajor ? LayoutClass::kTokenMajor : LayoutClass::kExpertRows;
  const int budget = query.num_sms > 0 ? std::min(query.num_sms, query.sm_share) : query.sm_share;
  const TuningRow* last = nullptr;
  for (const TuningRow& row : kTuningTable) {
    if (row.call != query.call || row.layout != layout) continue;
    last = &row;
    const bool fits_sizes = query.num_tokens <= row.max_tokens && query.row_bytes <= row.max_row_bytes;
    if (fits_sizes && budget <= row.max_sms) return row;
  }
  return *last;  // the table ends with a row for anything, of every call and layout
}

}  // namespace

TuningChoice choose(const TuningQuery& query) {
  const TuningRow& row = find_row(query);
  TuningChoice choice;
  choice.row = &row;
  const int wanted = query.num_sms > 0 ? query.num_sms : row.default_sms;
  choice.num_blocks = std::max(1, std::min(wanted, query.sm_share));
  // Measured between two ranks, where half of the rows stay. With more ranks most rows leave: every block does both.
  const bool split = query.num_ranks == 2 && row.peer_permille < kPermille && choice.num_blocks > 1;
  const int peer_blocks = (choice.num_blocks * row.peer_permille + kPermille / 2) / kPermille;
  choice.peer_blocks = split ? std::clamp(peer_blocks, 1, choice.num_blocks - 1) : choice.num_blocks;
  // Rows that were quantised on their way need not be whole vectors, and a bulk copy of anything else never ends.
  const bool can_bulk = query.compute_major >= kFirstMajorWithBulkCopies && query.row_bytes % kBulkCopyBytes == 0;
  choice.bulk = can_bulk && (query.mover == CudaMover::kBulk || (query.mover == CudaMover::kAuto && row.bulk));
  return choice;
}

int pack_blocks(const TuningQuery& query) noexcept {
  const int wanted = query.num_sms > 0 ? query.num_sms : kDefaultPackSms;
  return std::max(1, std::min(wanted, query.sm_share));
}

std::string describe(const TuningQuery& query) {
  if (query.call == TunedCall::kDispatch && query.mover == CudaMover::kCopyEngines) {
    return fmt::format(
        "dispatch of {} rows, {} tokens: copy engines, no SMs; {} SMs pack where the routing has many runs",
        to_string(query.layout), query.num_tokens, pack_blocks(query));
  }
  const TuningChoice choice = choose(query);
  constexpr std::array<std::string_view, 3> kCalls = {"dispatch", "dispatch behind prepare", "combine"};
  return fmt::format("{} of {} rows, {} tokens ({}): {} SMs, {} of them for peers, {}; measured: {}",
                     kCalls[static_cast<std::size_t>(query.call)], to_string(query.layout), query.num_tokens,
                     choice.row->bucket, choice.num_blocks, choice.peer_blocks,
                     choice.bulk ? "bulk copies" : "16-byte loads and stores", choice.row->measured);
}

}  // namespace epistle::cuda
