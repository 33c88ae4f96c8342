// The dispatchers that a plan may choose from: their curves, their rows and their buffers.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plan/plan_request.hpp"

namespace epistle {

enum class ExchangeKind : std::int32_t {
  kThroughput,  ///< a row per (token, rank); SMs are chosen
  kLowLatency,  ///< fixed slots, a row per (token, expert)
  kOneSided,    ///< a row per (token, rank), one fabric
  kAllToAll,    ///< NCCL, permuted rows of every (token, expert)
  kGather,      ///< all-gather of all tokens, reduce-scatter of all outputs
  kFused,       ///< a bound: exchange and GEMMs overlap perfectly in one kernel
};

struct ExchangeMode {
  std::string_view name;      ///< in --dispatchers and in plans
  std::string_view own_name;  ///< of Epistle's dispatcher; empty = somebody else's
  ExchangeKind kind;
  std::string_view dispatch_curve;
  std::string_view combine_curve;
  bool one_domain = false;  ///< cannot leave a scale-up domain
  double max_tokens = 0;    ///< per rank and call; 0 = any
  std::vector<double> sms;  ///< to choose from; empty = all
};

[[nodiscard]] std::span<const ExchangeMode> exchange_modes();

/// Throws kNotFound with the names there are.
[[nodiscard]] const ExchangeMode& find_exchange_mode(std::string_view name);

/// Why the kernels of `mode` do not run on GPUs of `cluster`; nothing where they do.
[[nodiscard]] std::optional<std::string> cannot_run(const ExchangeMode& mode, const Cluster& cluster);

struct ExchangeBuffers {
  double bytes = 0;
  std::string_view source;             ///< where the number comes from
  std::optional<std::string> refusal;  ///< why the mode cannot serve the shape
};

/// Memory of a rank for calls of `tokens`. Epistle's own dispatchers are asked: they allocate what they answer.
[[nodiscard]] ExchangeBuffers exchange_buffers(const ExchangeMode& mode, const PlanRequest& request, double num_ranks,
                                               double tokens, double num_redundant);

}  // namespace epistle
