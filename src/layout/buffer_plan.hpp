// How many bytes the buffers of a rank take and where they lie. What is predicted with a plan is what is allocated: a
// dispatcher works with the same object. Host only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "layout/buffer_section.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle {

inline constexpr std::array<BufferSection, kNumBufferSections> kBufferSections = [] {
  std::array<BufferSection, kNumBufferSections> all{};
  for (std::size_t idx = 0; idx < all.size(); ++idx) all[idx] = static_cast<BufferSection>(idx);
  return all;
}();

/// A number of bytes for every section.
class SectionBytes {
 public:
  [[nodiscard]] constexpr std::int64_t& operator[](BufferSection section) noexcept {
    return bytes_[static_cast<std::size_t>(section)];
  }
  [[nodiscard]] constexpr std::int64_t operator[](BufferSection section) const noexcept {
    return bytes_[static_cast<std::size_t>(section)];
  }

 private:
  std::array<std::int64_t, kNumBufferSections> bytes_{};
};

/// The rows that calls need on one rank; buffers are committed for the largest of each.
struct RowDemand {
  std::int64_t tokens = 0;         ///< tokens this rank routes
  std::int64_t output_rows = 0;    ///< rows of the output layout, padding included
  std::int64_t grad_rows = 0;      ///< output rows for which gradients of the weights are asked; on a device all
  std::int64_t send_rows = 0;      ///< rows this rank packs, or gets back in combine where its rules count those: one
                                   ///< per (token, rank), or per (token, expert) or (token, domain) where those travel
  std::int64_t receive_rows = 0;   ///< rows this rank is sent, or returns, counted likewise
  std::int64_t send_pairs = 0;     ///< (token, rank) pairs this rank sends; on a device: to other ranks only
  std::int64_t receive_pairs = 0;  ///< (token, rank) pairs this rank is sent

  void raise_to(const RowDemand& other) noexcept;
  [[nodiscard]] bool operator==(const RowDemand&) const = default;
};

/// What of a plan is a dispatcher's own. The functions here are what all dispatchers have in common: one that needs
/// more adds to it.
class PlanRules {
 public:
  virtual ~PlanRules() = default;
  PlanRules(const PlanRules&) = delete;
  PlanRules& operator=(const PlanRules&) = delete;

  /// True when dispatch sends one row per (token, expert) instead of one per (token, rank).
  [[nodiscard]] virtual bool sends_per_expert(const DispatchLayout& layout) const noexcept;
  /// True when combine brings back one row per (token, rank) instead of one per (token, expert).
  [[nodiscard]] virtual bool combines_per_rank(const DispatchLayout& layout) const noexcept;

  /// True when rows cross to another domain once per (token, domain).
  [[nodiscard]] virtual bool crosses_domains(const DispatchLayout& layout) const noexcept;
  /// True when no rank reaches into the memory of another domain: it is put there by a link.
  [[nodiscard]] virtual bool uses_links(const DispatchLayout& layout) const noexcept;

  /// What is in one copy of every section but kControl, which is the engine's.
  [[nodiscard]] virtual SectionBytes content_bytes(const DispatchLayout& layout,
                                                   const RowDemand& demand) const noexcept;
  /// The largest demand that any routing within the layout's parameters can make.
  [[nodiscard]] virtual RowDemand max_demand(const DispatchLayout& layout) const noexcept;
  /// What is committed when a dispatcher is created: under kCapacity everything that a call takes, so that no later one
  /// allocates.
  [[nodiscard]] virtual RowDemand initial_demand(const DispatchLayout& layout) const noexcept;

 protected:
  PlanRules() = default;
};

/// What of a plan is the engine's, whichever its dispatcher; the same on all ranks.
struct EngineSizes {
  std::int64_t control_bytes = 0;  ///< of kControl
  std::int64_t page_bytes = 4096;  ///< granularity of memory commitment
  std::int64_t most_sources = 1;   ///< of one domain, whose rows a rank passes on: where ranks are masked out
};

class BufferPlan {
 public:
  BufferPlan() = default;
  /// The rules outlive the plan.
  BufferPlan(const PlanRules& rules, const LayoutParams& params, const EngineSizes& engine) noexcept;

  [[nodiscard]] const PlanRules& rules() const noexcept { return *rules_; }
  [[nodiscard]] const DispatchLayout& layout() const noexcept { return layout_; }
  [[nodiscard]] const RowDemand& max_demand() const noexcept { return max_demand_; }
  [[nodiscard]] const RowDemand& initial_demand() const noexcept { return initial_demand_; }

  /// Bytes that one copy of every section needs for `demand`, rounded up to pages.
  [[nodiscard]] SectionBytes section_bytes(const RowDemand& demand) const noexcept;
  /// How often a section is there: what a lease shows is there once per buffer.
  [[nodiscard]] std::int32_t section_copies(BufferSection section) const noexcept;
  /// Bytes from one copy of a section to the next; 0 where there is one, which is then that of every buffer.
  [[nodiscard]] std::int64_t section_stride(BufferSection section) const noexcept { return strides_[section]; }
  /// Offset of a section's first copy in a rank's address range, placed for the largest demand.
  [[nodiscard]] std::int64_t section_offset(BufferSection section) const noexcept { return offsets_[section]; }
  /// Bytes committed on a rank for `demand`: the sum of its sections.
  [[nodiscard]] std::int64_t buffer_bytes(const RowDemand& demand) const noexcept;
  /// Bytes of address range a rank reserves (committed only as needed).
  [[nodiscard]] std::int64_t reserved_bytes() const noexcept { return reserved_bytes_; }

  /// See PlanRules.
  [[nodiscard]] bool sends_per_expert() const noexcept { return sends_per_expert_; }
  [[nodiscard]] bool combines_per_rank() const noexcept { return combines_per_rank_; }
  [[nodiscard]] bool crosses_domains() const noexcept { return crosses_domains_; }
  [[nodiscard]] bool uses_links() const noexcept { return uses_links_; }
  /// True when the experts' ranks sum over a token's experts before the rows travel.
  [[nodiscard]] bool returns_partial_sums() const noexcept { return combines_per_rank_ && !layout_.token_major(); }

 private:
  const PlanRules* rules_ = nullptr;
  DispatchLayout layout_;
  EngineSizes engine_;
  // Asked for in every call, so computed once.
  RowDemand max_demand_;
  RowDemand initial_demand_;
  SectionBytes offsets_;
  SectionBytes strides_;
  std::int64_t reserved_bytes_ = 0;
  bool sends_per_expert_ = false;
  bool combines_per_rank_ = false;
  bool crosses_domains_ = false;
  bool uses_links_ = false;
};

}  // namespace epistle
