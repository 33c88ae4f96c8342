// What is wrong with options whatever the engine: unknown, twice, without a value.
#include <algorithm>
#include <array>
#include <cstddef>

#include <fmt/format.h>

#include "select/check/check.hpp"
#include "select/check/flag_names.hpp"
#include "select/rule.hpp"

namespace epistle::check {
namespace {

bool common_concerns_experts(std::string_view name) {
  return name.starts_with("moe-") || name.find("deepep") != std::string_view::npos ||
         name.find("hybridep") != std::string_view::npos || name.find("all2all") != std::string_view::npos ||
         name.find("a2a-backend") != std::string_view::npos || name.find("expert-parallel") != std::string_view::npos ||
         name.find("expert-model-parallel") != std::string_view::npos ||
         name.find("ep-num-redundant") != std::string_view::npos;
}

std::string with_dashes(const Setting& setting, std::string_view name) {
  if (setting.flag.starts_with("--")) return "--" + std::string(name);
  std::string field(name);
  std::replace(field.begin(), field.end(), '-', '_');
  return field;
}

/// Fields of recipes have other names than options: only what is nearly an option of experts is looked at there.
bool is_field(const RunConfig& run) { return run.dialect != Dialect::kCommandLine; }

/// "--num-moe-experts" to pretrain_gpt.py: the field has that name, the option has not.
bool is_recipes_name(const RunConfig& run, const Setting& setting) {
  if (run.engine != Engine::kMegatron || is_field(run) || run.program.find("pretrain") == std::string::npos)
    return false;
  return setting.flag == "--num-moe-experts";
}

/// "--sglang-deepep-mode": a trainer's, who hands it on.
bool is_handed_on(const RunConfig& run, const Setting& setting) {
  const std::string prefix = std::string(to_string(run.engine)) + "-";
  return setting.name.starts_with(prefix) && is_known_flag(run.engine, setting.name.substr(prefix.size()));
}

void find_unknown_flags(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  for (const Setting& setting : run.options) {
    if (setting.name.empty()) continue;
    if (is_recipes_name(run, setting)) {
      add_finding(findings, rule, setting, fmt::format("{} has no option '{}'", to_string(run.engine), setting.flag),
                  fmt::format("did you mean --{}?", setting.name));
    }
    if (is_known_flag(run.engine, setting.name) || is_handed_on(run, setting)) continue;
    if (setting.flag.starts_with("\xe2\x80")) continue;  // find_other_dashes
    const bool short_flag = setting.flag.starts_with('-') && !setting.flag.starts_with("--");
    if (short_flag) continue;
    const auto longer = flags_that_begin_with(run.engine, setting.name);
    if (longer.size() == 1 && !is_field(run)) continue;
    const std::string_view closest = closest_flag(run.engine, setting.name);
    const bool experts = common_concerns_experts(setting.name) || common_concerns_experts(closest);
    if (closest.empty() ? !common_concerns_experts(setting.name) || is_field(run) : is_field(run) && !experts) continue;
    add_finding(findings, rule, setting, fmt::format("{} has no option '{}'", to_string(run.engine), setting.flag),
                closest.empty() ? "remove it, or look its name up"
                                : fmt::format("did you mean {}?", with_dashes(setting, closest)));
    // It may belong to another release, or to a script of somebody's own.
    const bool ours =
        common_concerns_experts(closest) || closest.ends_with("parallel-size") || closest.ends_with("p-size");
    if (closest.empty()) findings.back().severity = Severity::kWarning;
    if (!closest.empty() && !ours) findings.back().severity = Severity::kInfo;
  }
}

/// "--moe-grouped" of argparse, which takes what is the beginning of one name only.
bool is_shortened(const RunConfig& run, const Setting& setting) {
  if (is_field(run) || !setting.flag.starts_with("--")) return false;
  std::string written = setting.flag.substr(2);
  std::replace(written.begin(), written.end(), '_', '-');
  return !is_known_flag(run.engine, written) && flags_that_begin_with(run.engine, written).size() == 1;
}

void find_shortened_flags(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  if (is_field(run)) return;
  for (const Setting& setting : run.options) {
    if (!is_shortened(run, setting)) continue;
    add_finding(findings, rule, setting,
                fmt::format("'{}' is taken for --{}, as long as no other option begins so", setting.flag, setting.name),
                fmt::format("write --{}", setting.name));
  }
}

void find_underscores(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  if (run.dialect != Dialect::kCommandLine || run.engine == Engine::kVllm) return;
  for (const Setting& setting : run.options) {
    if (!setting.flag.starts_with("--") || setting.flag.find('_') == std::string::npos) continue;
    if (!is_known_flag(run.engine, setting.name) || !common_concerns_experts(setting.name)) continue;
    add_finding(
        findings, rule, setting,
        fmt::format("{} spells its options with dashes; '{}' is none of them", to_string(run.engine), setting.flag),
        fmt::format("write --{}", setting.name));
  }
}

void find_repeated(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const auto& options = facts.run.options;
  for (std::size_t idx = 0; idx < options.size(); ++idx) {
    const Setting& setting = options[idx];
    for (std::size_t before = 0; before < idx; ++before) {
      const Setting& first = options[before];
      if (first.name != setting.name || first.scope != setting.scope || setting.name.empty()) continue;
      // Other repeated options are not ours to judge: some are lists.
      const bool relevant = common_concerns_experts(setting.name) || setting.name == "num-experts" ||
                            setting.name.ends_with("parallel-size") || setting.name.ends_with("p-size");
      if (!relevant) break;
      const bool same = first.values == setting.values;
      add_finding(
          findings, rule, setting,
          same ? fmt::format("'{}' is given twice, first in line {}", setting.flag, first.line)
               : fmt::format("'{}' is given twice with different values: '{}' in line {}, and '{}', which counts",
                             setting.flag, first.value(), first.line, setting.value()),
          "give it once");
      if (same) findings.back().severity = Severity::kInfo;
      break;
    }
  }
}

/// Options that name a thing need its name.
void find_missing_values(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  constexpr std::array<std::string_view, 9> kNeedValue = {"moe-token-dispatcher-type",
                                                          "moe-flex-dispatcher-backend",
                                                          "moe-flex-dispatcher-num-sms",
                                                          "moe-deepep-num-sms",
                                                          "moe-hybridep-num-sms",
                                                          "expert-model-parallel-size",
                                                          "all2all-backend",
                                                          "moe-a2a-backend",
                                                          "deepep-mode"};
  for (const Setting& setting : facts.run.options) {
    const bool needs = std::find(kNeedValue.begin(), kNeedValue.end(), setting.name) != kNeedValue.end();
    // In Python the value may be an expression over several lines.
    if (!needs || !setting.values.empty() || facts.run.dialect == Dialect::kPython) continue;
    add_finding(findings, rule, setting, fmt::format("'{}' needs a value and has none", setting.flag), "give it one");
  }
}

/// Variables that decide what runs, and whose names are long enough for a slip to be told from another name.
const std::vector<std::string_view>& read_variables() {
  static const std::vector<std::string_view> names = {"NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN",
                                                      "HYBRID_EP_MULTINODE",
                                                      "USE_MNNVL",
                                                      "VLLM_ALL2ALL_BACKEND",
                                                      "VLLM_MOE_DP_CHUNK_SIZE",
                                                      "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
                                                      "SGLANG_DEEPEP_V2_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
                                                      "SGLANG_DEEPEP_V2_NUM_SMS",
                                                      "SGLANG_DEEPEP_BF16_DISPATCH",
                                                      "CUDA_DEVICE_MAX_CONNECTIONS",
                                                      "NVSHMEM_QP_DEPTH",
                                                      "NVSHMEM_IB_ENABLE_IBGDA",
                                                      "NVSHMEM_IBGDA_NUM_RC_PER_PE"};
  return names;
}

void find_unexported(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const auto& names = read_variables();
  for (const Setting& variable : facts.run.unexported) {
    if (std::find(names.begin(), names.end(), variable.name) == names.end()) continue;
    if (facts.run.find_environment(variable.name) != nullptr) continue;
    add_finding(findings, rule, variable,
                fmt::format("the run does not see {}: it is not exported, or only behind the run", variable.name),
                fmt::format("write export {}={} in front of the run", variable.name, variable.value()));
  }
}

void find_misspelt_variables(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const auto& names = read_variables();
  for (const Setting& variable : facts.run.environment) {
    if (std::find(names.begin(), names.end(), variable.name) != names.end()) continue;
    const std::string_view closest = closest_of(names, variable.name);
    if (closest.empty()) continue;
    add_finding(findings, rule, variable, fmt::format("nothing reads {}", variable.name),
                fmt::format("did you mean {}?", closest));
  }
}

void find_lost_options(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  for (const Setting& option : facts.run.lost) {
    const bool backslash = option.flag == "\\";
    add_finding(findings, rule, option,
                backslash
                    ? "a backslash with something behind it on its line: the command ends here"
                    : fmt::format("'{}' is no option of the command above, which ends before it, but a command of "
                                  "its own",
                                  option.flag),
                backslash ? "end the line with the backslash"
                          : "end the line above with a backslash, and let no comment line stand in between");
  }
}

/// An editor's dashes in place of two of the keyboard's.
void find_other_dashes(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  for (const Setting& setting : facts.run.options) {
    if (!setting.flag.starts_with("\xe2\x80")) continue;
    add_finding(
        findings, rule, setting,
        fmt::format("'{}' begins with a dash that is no minus sign: it is no option", setting.flag),
        fmt::format("write --{}", setting.flag.substr(setting.flag.find_first_of("abcdefghijklmnopqrstuvwxyz"))));
  }
}

// clang-format off
constexpr std::array kCommonRules = {
    CheckRule{"unknown-flag", Engine::kUnknown, Severity::kError, "an option that the engine does not have", find_unknown_flags,
        source::kMegatron, source::kMegatronDate},
    CheckRule{"shortened-flag", Engine::kUnknown, Severity::kInfo, "an option that is shortened", find_shortened_flags,
        "Python, argparse", "2025"},
    CheckRule{"underscore-flag", Engine::kUnknown, Severity::kError, "an option with underscores where dashes are read", find_underscores,
        source::kMegatron, source::kMegatronDate},
    CheckRule{"repeated-flag", Engine::kUnknown, Severity::kWarning, "an option given twice", find_repeated,
        "Python, argparse: the last one counts", "2025"},
    CheckRule{"missing-value", Engine::kUnknown, Severity::kError, "an option without its value", find_missing_values,
        source::kMegatron, source::kMegatronDate},
    CheckRule{"misspelt-variable", Engine::kUnknown, Severity::kWarning, "a variable that nothing reads", find_misspelt_variables,
        source::kHybridEp, source::kHybridEpDate},
    CheckRule{"lost-option", Engine::kUnknown, Severity::kError, "options behind a line that does not go on", find_lost_options,
        "POSIX shell", "2018"},
    CheckRule{"other-dash", Engine::kUnknown, Severity::kError, "an option that begins with no minus sign", find_other_dashes,
        "Python, argparse", "2025"},
    CheckRule{"unexported-variable", Engine::kUnknown, Severity::kWarning, "a variable that the run does not see", find_unexported,
        "POSIX shell", "2018"},
};
// clang-format on

}  // namespace

std::span<const CheckRule> common_checks() noexcept { return kCommonRules; }

}  // namespace epistle::check
