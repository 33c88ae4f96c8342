// The options of epistle select, and what they ask for.
#pragma once

#include <cstdint>
#include <string>

#include "select/check/check.hpp"
#include "select/query.hpp"

namespace CLI {
class App;
}

namespace epistle::cli {

struct SelectOptions {
  std::string hardware;
  std::string model;
  std::int64_t ep = 0;
  std::int64_t hidden = 0;
  std::int64_t num_experts = 0;
  std::int64_t top_k = 0;
  std::int64_t tokens = 0;
  bool vision = false;
  std::string precision = "bf16";
  std::string phase = "training";
  std::string memory = "normal";
  std::string fabric = "unknown";
  bool unequal_tokens = false;
  std::string assume;
  std::string doctor;
  std::string megatron_version;
  std::string vllm_version;
  std::string sglang_version;
  std::string check;
  std::string fail_on;
  std::string json_target;
};

void add_select_options(CLI::App& command, SelectOptions& options);

/// Throws CLI::ValidationError where an option is missing, an Error where one names what there is not.
[[nodiscard]] SelectQuery make_select_query(const SelectOptions& options);
[[nodiscard]] check::CheckOptions make_check_options(const SelectOptions& options);

}  // namespace epistle::cli
