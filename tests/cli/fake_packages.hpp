// Python packages that stand in for those of other dispatchers (tests/fakes).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cli/epistle_command.hpp"

namespace epistle::test {

/// What the fakes do; see tests/fakes/base/outcome.py.
struct FakeSettings {
  std::string outcome = "good";
  std::string rank = "";  ///< empty = on all
  std::string num_gpus = "2";
};

/// `epistle` where Python finds `fakes` ("deep_ep", "nccl") and a fake torch.
[[nodiscard]] inline CommandResult run_with_fakes(std::vector<std::string> arguments,
                                                  const std::vector<std::string>& fakes, const FakeSettings& settings) {
  const std::string folder = EPISTLE_SOURCE_DIR "/tests/fakes/";
  std::string path = folder + "base";
  for (const std::string& fake : fakes) path += ":" + folder + fake;
  CommandOptions options;
  options.environment = {{"PYTHONPATH", path},
                         {"PYTHONDONTWRITEBYTECODE", "1"},
                         {"FAKE_OUTCOME", settings.outcome},
                         {"FAKE_GPUS", settings.num_gpus}};
  if (!settings.rank.empty()) options.environment.emplace_back("FAKE_RANK", settings.rank);
  return run_epistle(std::move(arguments), std::move(options));
}

}  // namespace epistle::test
