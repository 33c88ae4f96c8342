// Which dispatcher, and why: the rules applied to a query. Pure: nothing is looked up on the machine.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "select/query.hpp"

namespace epistle {

struct SelectReason {
  std::string rule;
  std::string text;
  std::string source;  ///< with its date
};

/// Flags ready to paste, by engine; empty where the engine has no such backend.
struct EngineFlags {
  std::string megatron;      ///< with the names of the queried version
  std::string megatron_old;  ///< before 0.20
  std::string megatron_bridge;
  std::string vllm;
  std::string sglang;
};

struct SelectCandidate {
  std::string backend;
  std::string mode;
  double score = 0;
  std::vector<SelectReason> reasons;
  EngineFlags flags;
  std::vector<std::pair<std::string, std::string>> environment;
  std::int32_t num_sms = 0;         ///< to start from; 0 = not the dispatcher's to say
  std::vector<std::int32_t> sweep;  ///< SM counts to measure
  std::int64_t buffer_bytes = -1;   ///< per rank; -1 where only the package knows
};

struct SelectRejection {
  std::string backend;
  std::string reason;
  std::string rule;
};

struct Selection {
  std::vector<SelectCandidate> candidates;  ///< best first
  std::vector<SelectRejection> rejected;
  std::vector<SelectReason> warnings;
  std::vector<SelectReason> advice;
};

[[nodiscard]] Selection select_dispatcher(const SelectFacts& facts);

}  // namespace epistle
