// What is asked of a selection, and what follows from it before any rule is looked at.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "select/version.hpp"
#include "topology/cluster.hpp"

namespace epistle {

enum class WorkPhase : std::int32_t { kTraining, kPrefill, kDecode };
enum class Precision : std::int32_t { kBf16, kFp8, kMxfp8, kNvfp4 };
enum class Fabric : std::int32_t { kUnknown, kInfiniBand, kRoce, kEfa };

/// What rules tell apart; which GPU belongs where is decided by architecture and domain, not by name.
enum class GpuClass : std::int32_t { kUnknown, kAmpere, kHopper, kBlackwell, kBlackwellNvl72, kPcie, kAmd };

/// The families of the rules; kOther has none of its own.
enum class ModelFamily : std::int32_t { kOther, kDeepSeekV3, kQwen3Large, kQwen3Small, kQwen3Next, kMixtral, kVision };

[[nodiscard]] std::string_view to_string(WorkPhase phase) noexcept;
[[nodiscard]] std::string_view to_string(Precision precision) noexcept;
[[nodiscard]] std::string_view to_string(Fabric fabric) noexcept;

struct SelectModel {
  std::string name;  ///< empty where only a shape is given
  std::int64_t hidden = 0;
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  ModelFamily family = ModelFamily::kOther;
};

/// A model by the names of `epistle models`, or one of the vision-language models that share a text model's shape.
/// Throws kNotFound.
[[nodiscard]] SelectModel find_select_model(std::string_view name);

struct SelectQuery {
  Cluster cluster;
  std::int32_t ep = 1;
  SelectModel model;
  Precision precision = Precision::kBf16;
  WorkPhase phase = WorkPhase::kTraining;
  std::optional<std::int64_t> tokens_per_rank;
  bool memory_tight = false;
  bool unequal_tokens = false;  ///< ranks may bring different numbers of tokens
  Fabric fabric = Fabric::kUnknown;
  std::set<std::string, std::less<>> available;  ///< names of backends
  std::string availability;                      ///< where `available` comes from, for messages
  Version megatron = kNewestMegatron;
  std::optional<Version> vllm;    ///< newest where not given
  std::optional<Version> sglang;  ///< newest where not given
};

/// A query with what its rules ask for.
struct SelectFacts {
  SelectQuery query;
  GpuClass gpu = GpuClass::kUnknown;
  bool nvlink = false;
  std::int32_t domain_ranks = 1;  ///< ranks of the EP group that share a scale-up domain
  std::int32_t num_domains = 1;
  double distinct_ranks = 1;    ///< ranks that a token has experts on, on average, under uniform routing
  double distinct_domains = 1;  ///< domains likewise
  bool low_latency = false;     ///< few enough tokens for the low-latency modes

  /// Rows that a token puts on the network, on average: one per expert, rank or domain elsewhere.
  [[nodiscard]] double network_rows_per_expert() const noexcept { return elsewhere(query.model.top_k); }
  [[nodiscard]] double network_rows_per_rank() const noexcept { return elsewhere(distinct_ranks); }
  [[nodiscard]] double network_rows_per_domain() const noexcept { return elsewhere(distinct_domains); }

  [[nodiscard]] bool training() const noexcept { return query.phase == WorkPhase::kTraining; }
  [[nodiscard]] bool has(std::string_view backend) const { return query.available.contains(backend); }
  [[nodiscard]] bool eight_bit() const noexcept { return query.precision != Precision::kBf16; }

 private:
  /// Of copies that are spread evenly over the domains, those that leave the token's.
  [[nodiscard]] double elsewhere(double copies) const noexcept { return copies * (num_domains - 1) / num_domains; }
};

[[nodiscard]] GpuClass classify_gpu(const Cluster& cluster) noexcept;

/// Ranks that share a domain of `gpus` GPUs when `ep` ranks are laid over such domains. Racks are filled to equal parts
/// (EP 128 takes 64 of 72 GPUs of two), hosts are filled one by one.
[[nodiscard]] std::int64_t ranks_per_domain(std::int64_t ep, std::int64_t gpus) noexcept;

/// Most tokens per rank for which a low-latency mode is faster than a throughput mode.
[[nodiscard]] std::int64_t low_latency_limit(std::int32_t ep) noexcept;

/// Throws kInvalidArgument where the shape or the EP degree makes no sense.
[[nodiscard]] SelectFacts make_facts(SelectQuery query);

}  // namespace epistle
