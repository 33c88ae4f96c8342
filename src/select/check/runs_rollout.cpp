// Trainers with an engine of their own for rollouts (slime, vime): "--sglang-NAME" is NAME of that engine.
#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "select/check/runs.hpp"

namespace epistle::check {
namespace {

struct RolloutEngine {
  std::string_view prefix;
  Engine engine;
  std::string_view degree;  ///< what the trainer's number of GPUs per engine is to it
};

constexpr std::array kRolloutEngines = {RolloutEngine{"sglang-", Engine::kSglang, "tp-size"},
                                        RolloutEngine{"vllm-", Engine::kVllm, "tensor-parallel-size"}};

/// GPUs of an engine are its tensor parallelism, unless it is told otherwise.
void add_degree(RunConfig& rollout, const RunConfig& trainer, std::string_view degree) {
  const Setting* const gpus = trainer.find("rollout-num-gpus-per-engine");
  if (gpus == nullptr || rollout.find(degree) != nullptr) return;
  if (rollout.engine == Engine::kVllm && rollout.find("data-parallel-size") != nullptr) return;
  Setting setting = *gpus;
  setting.name = degree;
  rollout.options.push_back(std::move(setting));
}

}  // namespace

std::vector<RunConfig> take_rollout_runs(RunConfig& trainer) {
  std::vector<RunConfig> rollouts;
  if (trainer.engine != Engine::kMegatron) return rollouts;
  for (const RolloutEngine& engine : kRolloutEngines) {
    RunConfig rollout;
    rollout.engine = engine.engine;
    const auto handed_on = [&](const Setting& setting) { return setting.name.starts_with(engine.prefix); };
    for (const Setting& setting : trainer.options) {
      if (!handed_on(setting)) continue;
      rollout.options.push_back(setting);
      rollout.options.back().name = canonical_name(engine.engine, setting.name.substr(engine.prefix.size()));
    }
    if (rollout.options.empty()) continue;
    std::erase_if(trainer.options, handed_on);
    rollout.line = trainer.line;
    rollout.complete = trainer.complete;
    rollout.program = trainer.program;
    rollout.environment = trainer.environment;
    add_degree(rollout, trainer, engine.degree);
    rollouts.push_back(std::move(rollout));
  }
  return rollouts;
}

}  // namespace epistle::check
