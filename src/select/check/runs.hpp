// From words and maps to runs: which engine they start, and with what.
#pragma once

#include <string>
#include <vector>

#include "select/check/config.hpp"
#include "select/check/shell.hpp"
#include "select/check/yaml.hpp"

namespace epistle::check {

/// Adds the runs that `text` starts to `file`. `environment` counts for all of them.
void read_script_runs(ConfigFile& file, const LinedText& text, const std::vector<Setting>& environment);

void read_yaml_runs(ConfigFile& file, const YamlTree& tree);

void read_python_runs(ConfigFile& file, std::string_view text);

/// Whether a key is an option of some engine, or nearly one.
[[nodiscard]] bool is_option_key(std::string_view name);

/// "moe_layer_freq" and "--moe-layer-freq" are "moe-layer-freq".
[[nodiscard]] std::string plain_key(std::string_view key);

/// Upper case with an underscore: a variable of the environment.
[[nodiscard]] bool is_variable_name(std::string_view key);

/// A run from words: options, and the engine that they and the program tell. kUnknown where it is none.
[[nodiscard]] RunConfig read_words(const std::vector<LinedText>& words);

/// Takes out of a trainer's options those that it hands on to an engine for rollouts ("--sglang-ep-size",
/// "--vllm-all2all-backend"): each engine is a run of its own.
[[nodiscard]] std::vector<RunConfig> take_rollout_runs(RunConfig& trainer);

/// Unit files of systemd and recipes of containers as the shell scripts that they stand for, line for line; empty where
/// `text` is neither.
[[nodiscard]] LinedText script_of_service(std::string_view text, std::string_view name);

/// The name under which rules know an option of the engine: "tp" of SGLang is "tp-size".
[[nodiscard]] std::string canonical_name(Engine engine, std::string_view name);

/// How strongly names of options speak for each engine; kUnknown where none does.
[[nodiscard]] Engine guess_engine(const std::vector<Setting>& options);

/// "h100-hgx" of "NVIDIA H100", "gpu:h100:8"; empty where no preset is named.
[[nodiscard]] std::string find_hardware_name(std::string_view text);

}  // namespace epistle::check
