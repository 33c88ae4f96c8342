// The copies of weights that lead from one placement to another, in an order in which no expert is ever without a slot.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "balance/slot_table.hpp"

namespace epistle::balance {

enum class LinkClass : std::int32_t {
  kLocal,         ///< within a rank
  kDomain,        ///< between ranks of one scale-up domain
  kAcrossDomain,  ///< over the scale-out network
};
[[nodiscard]] std::string_view to_string(LinkClass link) noexcept;

/// The place for one expert that every rank has besides its slots, where experts that change places wait.
inline constexpr std::int32_t kStagingSlot = -1;

struct CopyStep {
  std::int32_t expert = 0;
  SlotRef source;
  SlotRef destination;
  std::int64_t bytes = 0;
  LinkClass link = LinkClass::kLocal;
  friend bool operator==(const CopyStep&, const CopyStep&) = default;
};

struct CopySummary {
  std::int64_t num_copies = 0;  ///< between ranks
  std::int64_t bytes = 0;       ///< of these
  std::int64_t bytes_across_domains = 0;
};

/// Puts experts that stay on a rank back into the slots that they have there, `share` with them.
void keep_slots(const SlotTable& from, SlotTable& to, std::vector<std::int64_t>& share);

/// Steps to be done one after the other. The source is in the same domain where one is there, and ranks take turns.
[[nodiscard]] std::vector<CopyStep> list_copies(const SlotTable& from, const SlotTable& to, std::int32_t num_experts,
                                                const Cluster& cluster, std::int64_t expert_bytes);

[[nodiscard]] CopySummary summarize(const std::vector<CopyStep>& steps);

}  // namespace epistle::balance
